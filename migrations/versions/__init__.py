"""Migrations, oldest first by `down_revision`."""
