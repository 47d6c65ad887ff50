"""Names of cells for command lines, without JAX; the cells themselves are in ``CELLS`` of ``networks.py``."""

from typing import Literal

CellName = Literal["gru", "mgu", "mini_gru", "minimal_rnn", "cfn", "lstm", "mini_lstm", "lru", "vanilla"]
