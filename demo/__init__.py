"""The whole product in a few minutes: `make demo`."""
