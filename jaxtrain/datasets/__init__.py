"""Tasks with data made on the spot."""

from .copy import CopyDataModule as CopyDataModule
from .copy import CopyDataset as CopyDataset
from .episodes import Episode as Episode
from .episodes import Episodes as Episodes
from .episodes import EpisodeStream as EpisodeStream
from .padded import PaddedCopyDataModule as PaddedCopyDataModule
from .streams import Adding as Adding
from .streams import AnBn as AnBn
from .streams import BinaryCopy as BinaryCopy
from .streams import StreamCopy as StreamCopy
from .streams import StreamDataModule as StreamDataModule
