"""Helpers that know nothing of training: files, digests, coercion of values, logging."""
