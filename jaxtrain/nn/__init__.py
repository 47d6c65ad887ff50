"""Networks, cells and learning-rate schedules for recipes."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
