# Made from `_async` by `make client`: change it there.
"""The client for programs with an event loop; `make client` makes `_sync`, the one for others, of it."""
