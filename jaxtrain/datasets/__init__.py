"""Arrays and sequences as data, encoders, and tasks whose data is generated on the fly."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
