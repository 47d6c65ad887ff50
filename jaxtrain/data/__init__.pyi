from .batch import DataError as DataError
from .datamodule import DataModule as DataModule
from .sources import DataEnded as DataEnded
