"""The command `jaxtrain`. Each subcommand parses its own arguments, in the module named here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .._version import __version__
from ..cli.failures import guarded

COMMANDS = {
    "info": (".info", "Show what a run directory holds."),
    "fidelity": (".fidelity.command", "Measure how far each strategy's gradient is from that of BPTT."),
    "compare": (".compare.command", "Train a recipe with several strategies, option values and seeds."),
    "verify-resume": (".verify_resume", "Check that a run killed at random moments resumes bit for bit."),
}
"""Command -> module and description. The module has ``command(parser, argv)``, which returns the exit code."""


def tool(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxtrain`.

    Args:
        argv: The command line without the program's name (default: `sys.argv[1:]`).

    Returns:
        The exit code.
    """
    return guarded(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv)))


def _dispatch(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="jaxtrain", description="Inspect runs and compare learning strategies.")
    parser.add_argument("--version", action="version", version=f"jaxtrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    args, rest = parser.parse_known_args(argv)
    module, description = COMMANDS[args.command]
    # An abbreviation could be an option of the recipe.
    own = argparse.ArgumentParser(f"jaxtrain {args.command}", description=description, allow_abbrev=False)
    return import_module(module, __package__).command(own, rest)
