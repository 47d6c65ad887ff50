"""Callbacks: the base class, what a callback sees of a run, and those that come with the trainer."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
