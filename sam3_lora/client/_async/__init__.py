"""The client for programs with an event loop; `make generate` makes `_sync`, the one for others, of it."""
