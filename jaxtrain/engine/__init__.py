"""Compiled programs: a strategy, an optimizer and devices combined into one train step."""
