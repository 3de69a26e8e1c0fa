"""HTTP: translates requests into use cases and rows into answers; decides nothing."""
