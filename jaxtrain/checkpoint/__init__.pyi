from ..errors import CorruptCheckpoint as CorruptCheckpoint
from ..errors import NoReadableCheckpoint as NoReadableCheckpoint
from .load import load as load
