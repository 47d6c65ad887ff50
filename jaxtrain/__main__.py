"""``python -m jaxtrain``: the command ``jaxtrain``."""

import sys

from .commands.main import tool

if __name__ == "__main__":
    sys.exit(tool())
