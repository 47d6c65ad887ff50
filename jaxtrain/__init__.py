"""jaxtrain: a trainer for stateful one-step models in JAX, where how gradients are made is one flag.

Everything public is imported from here, lazily (PEP 562): ``import jaxtrain`` costs nothing, so that a recipe's
``--help`` never waits for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .strategies import EXPORTS

__version__ = "0.1.0"

_HOME = {
    "Period": "period",
    "DataModule": "data",
    "DataError": "data",
    "DataEnded": "data",
    "CopyDataset": "datasets",
    "CopyDataModule": "datasets",
    "PaddedCopyDataModule": "datasets",
    "StreamDataModule": "datasets",
    "Module": "module",
    "Phases": "module",
    **dict.fromkeys(EXPORTS, "strategies"),
    "Callback": "callback",
    "Checkpoint": "callbacks",
    "CopyFigure": "callbacks",
    "Curriculum": "callbacks",
    "EarlyStopping": "callbacks",
    "GradientFidelity": "callbacks",
    "LearningRateMonitor": "callbacks",
    "ProgressBar": "callbacks",
    "Throughput": "callbacks",
    "JSONL": "loggers",
    "TensorBoard": "loggers",
    "CorruptCheckpoint": "checkpoint",
    "NoReadableCheckpoint": "checkpoint",
    "NonFiniteError": "run",
    "Fit": "fit",
    "Result": "run",
    "Run": "run",
    "load": "loading",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .callback import Callback as Callback
    from .callbacks import Checkpoint as Checkpoint
    from .callbacks import CopyFigure as CopyFigure
    from .callbacks import Curriculum as Curriculum
    from .callbacks import EarlyStopping as EarlyStopping
    from .callbacks import GradientFidelity as GradientFidelity
    from .callbacks import LearningRateMonitor as LearningRateMonitor
    from .callbacks import ProgressBar as ProgressBar
    from .callbacks import Throughput as Throughput
    from .checkpoint import CorruptCheckpoint as CorruptCheckpoint
    from .checkpoint import NoReadableCheckpoint as NoReadableCheckpoint
    from .data import DataEnded as DataEnded
    from .data import DataError as DataError
    from .data import DataModule as DataModule
    from .datasets import CopyDataModule as CopyDataModule
    from .datasets import CopyDataset as CopyDataset
    from .datasets import PaddedCopyDataModule as PaddedCopyDataModule
    from .datasets import StreamDataModule as StreamDataModule
    from .fit import Fit as Fit
    from .loading import load as load
    from .loggers import JSONL as JSONL
    from .loggers import TensorBoard as TensorBoard
    from .module import Module as Module
    from .module import Phases as Phases
    from .period import Period as Period
    from .run import NonFiniteError as NonFiniteError
    from .run import Result as Result
    from .run import Run as Run
    from .strategies import BPTT as BPTT
    from .strategies import DNI as DNI
    from .strategies import DRTRL as DRTRL
    from .strategies import TBPTT as TBPTT
    from .strategies import UORO as UORO
    from .strategies import EProp as EProp
    from .strategies import ETrace as ETrace
    from .strategies import Learner as Learner
    from .strategies import OnlineRule as OnlineRule
    from .strategies import OSTLFeedforward as OSTLFeedforward
    from .strategies import OSTLRecurrent as OSTLRecurrent
    from .strategies import PPProp as PPProp
    from .strategies import ReadoutOnly as ReadoutOnly
    from .strategies import SnAp as SnAp
    from .strategies import SteppedRule as SteppedRule
    from .strategies import Strategy as Strategy
    from .strategies import ThreeFactor as ThreeFactor
    from .strategies import WindowedRule as WindowedRule
    from .strategies import register as register


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'jaxtrain' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
