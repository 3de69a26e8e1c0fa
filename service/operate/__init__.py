"""Commands for those who run the service: doctor, gc, backup and restore."""
