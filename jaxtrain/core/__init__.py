"""What the engine and the strategies stand on: modules, phases, metrics, states."""
