"""The commands: those that work on this machine, and `jobs`, `datasets` and `models`, which ask a service."""
