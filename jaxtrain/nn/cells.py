"""The names of cells, free of JAX, for command lines; ``nn.CELLS`` has the cells."""

from typing import Literal

CellName = Literal["gru", "mgu", "mini_gru", "minimal_rnn", "cfn", "lstm", "mini_lstm", "lru", "vanilla"]
