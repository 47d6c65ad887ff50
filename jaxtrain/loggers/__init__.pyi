from .jsonl import JSONL as JSONL
from .jsonl import read_log as read_log
from .tensorboard import TensorBoard as TensorBoard
from .wandb import WandB as WandB
