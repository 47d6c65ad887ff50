"""jaxtrain: a trainer for recurrent networks in JAX; one flag selects how gradients are computed.

``import jaxtrain`` imports neither JAX nor numpy, so that a recipe's ``--help`` does not wait for them.
"""

from ._lazy import attach
from ._version import __version__ as __version__

__getattr__, __dir__, __all__ = attach(__name__, __file__)
__all__ += ["__version__"]
