from .load import load as load
from .store import CorruptCheckpoint as CorruptCheckpoint
from .store import NoReadableCheckpoint as NoReadableCheckpoint
