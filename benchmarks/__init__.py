"""Measurements that take minutes: what each says and the latest figures are in README.md."""
