"""``jaxtrain compare``: strategies by options by seeds."""
