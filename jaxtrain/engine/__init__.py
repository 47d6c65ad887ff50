"""Compiled programs: a strategy, an optimizer and devices as one train step."""
