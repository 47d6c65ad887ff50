"""The command ``jaxtrain``: new, inspect, runs, info, compare, fidelity, verify-resume."""
