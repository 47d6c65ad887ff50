"""The command ``jaxtrain``: info, fidelity, compare, verify-resume."""
