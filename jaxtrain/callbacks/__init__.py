"""Callbacks that come with the trainer: one idea a file."""

from .checkpoint import Checkpoint as Checkpoint
from .copy_figure import CopyFigure as CopyFigure
from .curriculum import Curriculum as Curriculum
from .early_stopping import EarlyStopping as EarlyStopping
from .gradient_fidelity import GradientFidelity as GradientFidelity
from .lr_monitor import LearningRateMonitor as LearningRateMonitor
from .progress import ProgressBar as ProgressBar
from .throughput import Throughput as Throughput
