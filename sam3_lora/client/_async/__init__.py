"""The client for programs with an event loop; `make client` makes `_sync`, the one for others, of it."""
