"""Images and labels in the IDX files of MNIST and of data sets in its format."""

import gzip
import math
import zlib
from pathlib import Path

from jaxtrain.errors import ConfigError

CLASSES = 10


def read_idx(folder: str, name: str, axes: int):
    """The uint8 array of an IDX file, ``name`` or ``name.gz`` in ``folder``.

    Its header is the magic number 0x800 + number of axes, then the length of each axis, in 32-bit big-endian numbers.

    Raises:
        ConfigError: The file is missing, or is not an IDX file of bytes with this number of axes.
    """
    import numpy as np

    path = next((path for path in (Path(folder) / name, Path(folder) / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise ConfigError(
            f"--data {folder}: there is no {name}.gz; install it with apt-get install dataset-fashion-mnist, or pass "
            "the folder of the IDX files"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"--data: {path} cannot be read: {error}") from None
    magic, *shape = np.frombuffer(content[: 4 * (1 + axes)].ljust(4 * (1 + axes), b"\0"), ">u4").tolist()
    if magic != 0x800 + axes:
        raise ConfigError(f"--data: {path} begins with {magic:#x}; expected {0x800 + axes:#x}, bytes with {axes} axes")
    if len(content) != 4 * (1 + axes) + math.prod(shape):
        raise ConfigError(f"--data: {path} has {len(content):,} bytes, but its header says {tuple(shape)}")
    return np.frombuffer(content, np.uint8, offset=4 * (1 + axes)).reshape(shape)


def load(folder: str):
    """Images ``(N, H, W)`` and labels ``(N,)`` of the training files, then those of the test files."""
    arrays = []
    for part in ("train", "t10k"):
        x, y = read_idx(folder, f"{part}-images-idx3-ubyte", 3), read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
        if len(x) != len(y):
            raise ConfigError(f"--data {folder}: {part} has {len(x)} images and {len(y)} labels")
        if y.max() >= CLASSES:
            raise ConfigError(f"--data {folder}: {part} has the label {y.max()}; expected 0 to {CLASSES - 1}")
        arrays += [x, y.astype("int32")]
    (_, *one), (_, *other) = arrays[0].shape, arrays[2].shape
    if one != other:
        shapes = [" x ".join(map(str, shape)) for shape in (other, one)]
        raise ConfigError(f"--data {folder}: the test images have {shapes[0]} pixels, the training images {shapes[1]}")
    return arrays
