"""``jaxtrain new FILE``: writes an experiment for arrays of the user's own."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from ..errors import ConfigError


def command(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Parse the arguments of ``jaxtrain new``, write the file, and print what to type next."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write, e.g. my_experiment.py")
    path = parser.parse_args(argv).file.expanduser()
    if path.suffix != ".py":
        raise ConfigError(f"new {path}: expected the name of a Python file, e.g. {path.stem or 'my_experiment'}.py")
    if path.exists():
        raise ConfigError(f"new {path}: the file exists and is not overwritten; choose another name")
    if importlib.util.find_spec(path.stem.partition(".")[0]) is not None:
        raise ConfigError(f"new {path}: the file would hide the module {path.stem}; choose another name")
    text = Path(__file__).with_name("experiment.txt").read_text().replace("EXPERIMENT.py", str(path))
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"new {path}: {error.strerror}; expected a file in an existing directory") from None
    print(f"wrote {path}; it trains on made-up arrays, or with --data FOLDER on x.npy and y.npy\n")
    print(f"python {path} --help\npython {path} --strategy drtrl\njaxtrain inspect {path}")
    return 0
