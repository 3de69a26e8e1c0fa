"""Commands that ask a running service; none needs a model on this machine."""
