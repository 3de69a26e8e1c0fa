"""Repositories: all the SQL, in terms of rows and plain values. None of them commits."""
