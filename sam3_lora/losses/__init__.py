"""The training loss: upstream's own classes with the official weights."""
