"""Foundations of the engine and the strategies: modules, phases, metrics, states."""
