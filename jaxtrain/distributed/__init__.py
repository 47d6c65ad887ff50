"""Several processes over ``jax.distributed``."""
