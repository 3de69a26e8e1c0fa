"""Training runs: set-up, the loop, checkpoints, and the process that the worker starts."""
