"""The database: engine, rows, repositories, migrations."""
