"""Models that answer one question after another, of any adapter, from one process."""
