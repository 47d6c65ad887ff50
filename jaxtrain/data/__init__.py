"""Data: where batches come from, in which order, and how a run returns to its place."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
