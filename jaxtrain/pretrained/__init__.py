"""Parameters of other runs and other libraries: partial loading, safetensors, NIR."""

from .._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
