"""Low-rank adapters for SAM3: layers, where they go, and the files they are kept in."""
