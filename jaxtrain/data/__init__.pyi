from ..errors import DataEnded as DataEnded
from ..errors import DataError as DataError
from .datamodule import DataModule as DataModule
