"""The root logger of the program that embeds jaxtrain, kept as it was while Orbax is in use."""

import logging

import absl.logging

_holders = 0  # stores that use Orbax now
_ours: list[logging.Handler] = []


def hold_root() -> None:
    """Where the root logger has no handler, each line that Orbax logs through absl calls basicConfig, as if the program
    that embeds jaxtrain had, whose own call would then do nothing. So while a store is in use there is absl's."""
    global _holders
    _holders += 1
    if not logging.root.handlers:
        logging.root.addHandler(absl.logging.get_absl_handler())
        _ours.append(absl.logging.get_absl_handler())


def release_root() -> None:
    global _holders
    _holders -= 1
    while not _holders and _ours:
        logging.root.removeHandler(_ours.pop())
