from . import callbacks as callbacks
from . import cli as cli
from . import datasets as datasets
from . import distributed as distributed
from . import errors as errors
from . import loggers as loggers
from . import metrics as metrics
from . import nn as nn
from . import period as period
from . import projections as projections
from . import strategies as strategies
from .callbacks import Checkpoint as Checkpoint
from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import GradientFidelity as GradientFidelity
from .callbacks.base import Callback as Callback
from .callbacks.run import Run as Run
from .checkpoint.load import load as load
from .core.module import Module as Module
from .core.module import Phases as Phases
from .data.datamodule import DataModule as DataModule
from .strategies import BPTT as BPTT
from .strategies import DRTRL as DRTRL
from .strategies import TBPTT as TBPTT
from .strategies import register as register
from .training.fit import Fit as Fit
from .training.result import Result as Result

__version__: str
