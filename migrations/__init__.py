"""One Alembic tree for PostgreSQL and SQLite."""
