"""Datasets of other tools as folders that the service takes. Free of torch; it looks at files of this machine only."""
