# Made from `_async` by `make generate`: change it there.
"""The client for programs with an event loop; `make generate` makes `_sync`, the one for others, of it."""
