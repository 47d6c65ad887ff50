"""Loggers: callbacks of rank "record" that write the log entries of a run."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
