"""The version, which hatch reads."""

__version__ = "0.1.0"
