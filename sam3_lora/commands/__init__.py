"""Commands that ask a running service, or make what it takes; none needs a model on this machine."""
