from .jsonl import JSONL as JSONL
from .jsonl import read_rows as read_rows
from .tensorboard import TensorBoard as TensorBoard
