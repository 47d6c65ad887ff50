"""Strategies as frozen dataclasses: options, defaults, help and checks. Loading them imports no JAX."""
