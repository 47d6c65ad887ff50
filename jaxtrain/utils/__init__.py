"""Helpers that do not depend on training: files, digests, coercion of values, logging."""
