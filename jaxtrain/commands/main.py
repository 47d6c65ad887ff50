"""The command `jaxtrain`. Each subcommand parses its own arguments, in the module named here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from threading import current_thread, main_thread

from .._version import __version__
from ..cli.failures import guarded
from ..cli.help import Parser
from ..errors import ConfigError
from ..training.signals import exit_code
from ..utils.coerce import did_you_mean

COMMANDS = {
    "new": (".new", "Write an experiment for arrays of your own: one file to edit and run."),
    "inspect": (".preflight", "Show what a learning rule does to each parameter of a recipe."),
    "runs": (".runs", "List the runs below a directory, with rule, steps, best score and status."),
    "info": (".info", "Show one run: its result, curves, options and checkpoints."),
    "compare": (".compare.command", "Train a recipe with several strategies, option values and seeds."),
    "fidelity": (".fidelity.command", "Measure how far each strategy's gradient is from that of BPTT."),
    "verify-resume": (".verify_resume", "Check that a run killed at random moments resumes bit for bit."),
}
"""Command -> module and description. The module has ``command(parser, argv)``, which returns the exit code."""
START_PROCESSES = ("compare", "verify-resume")

ABOUT = """\
A trainer for recurrent and spiking networks in JAX. One option selects how gradients are computed: backpropagation \
through time, or an online learning rule such as D-RTRL, whose memory does not grow with the length of a sequence. You \
write a model, a loss and data. A run that is killed resumes bit for bit.

  jaxtrain new my_experiment.py              write an experiment, then edit it
  python my_experiment.py --help             its options and the learning rules
  python my_experiment.py --strategy bptt    train
  jaxtrain compare my_experiment.py --strategies drtrl,pp_prop
  jaxtrain runs                              all runs below checkpoints/
"""


def tool(argv: Sequence[str] | None = None) -> int:
    """Run the command `jaxtrain`.

    Args:
        argv: The command line without the program's name (default: `sys.argv[1:]`).

    Returns:
        The exit code.
    """
    return guarded(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv)))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises SystemExit(143), so that a command ends the processes that it has started."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_code("SIGTERM")))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _dispatch(argv: list[str]) -> int:
    parser = Parser("jaxtrain", usage="jaxtrain COMMAND [OPTIONS]", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"jaxtrain {__version__}")
    commands = parser.add_subparsers(title="commands (jaxtrain COMMAND --help)", dest="command", metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description, add_help=False)
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise ConfigError(f"unknown command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS)}")
    args, rest = parser.parse_known_args(argv)
    if args.command is None:
        raise ConfigError(f"unknown option {argv[0]}; expected a command, see --help")
    module, description = COMMANDS[args.command]
    command = import_module(module, __package__).command
    with _terminable() if args.command in START_PROCESSES else nullcontext():
        return command(Parser(f"jaxtrain {args.command}", description=description), rest)
