"""The version of this installation."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("sam3-lora-service")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"
