"""The rules: plain values and a unit of work in, rows out. No HTTP, no SQL, no commit."""
