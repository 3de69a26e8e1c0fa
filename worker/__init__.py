"""The GPU and CPU workers: claim rows, train and validate in child processes, publish what they made."""
