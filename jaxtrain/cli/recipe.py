"""A recipe as a command line. Nothing here imports JAX: `--help` is instant.

Where a value comes from, later ones win: the recipe's defaults, `--preset`, `--config FILE`, the flags. A run that is
resumed takes its own saved configuration in place of the first three. Mistakes are one line on stderr
(`JAXTRAIN_TRACEBACK=1` shows where they were raised); errors in a user's own code keep their traceback.
Exit codes: 0 done, 1 a run (or what a tool measures) failed, 2 the command line, or a file it names, cannot be used,
130 Ctrl-C, 143 SIGTERM, 128 + n another signal that ends a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import dis
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

import tyro

from ..distributed import processes
from ..errors import ConfigError as ConfigError
from ..period import Period
from ..strategies import registry
from ..utils.coerce import did_you_mean, field_types, overlay, read_config
from ..utils.compilation_cache import use_compilation_cache
from ..utils.diff import require_equal
from ..utils.fields import options
from ..utils.fields import summary as summary_of
from ..utils.logging import run_main
from .argv import readable
from .made import make_run
from .run_dirs import drop_unused, fresh_run, newest_run, saved_config
from .summary import summary

if TYPE_CHECKING:
    from ..strategies import Strategy

    StrategyName = str
else:
    StrategyName = Literal[(*registry.available(), *registry.ALIASES)]


def _renew_choices() -> None:
    """Make strategies that were registered since then choices, too: annotations are looked up when they are used."""
    globals()["StrategyName"] = Literal[(*registry.available(), *registry.ALIASES)]


PERSONAL = ("run_dir", "progress")
"""Options of one start that are no part of what is trained: never saved, never imposed on a resume."""

WORDS = ("never", "last", "best")
PROCESSES = (
    "processes that train together, each on its share of every batch, started with the same options; auto: as SLURM, "
    "Open MPI or Kubernetes say"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What every recipe's Config begins with; subclass it as a frozen dataclass whose fields are the flags.

    `rule_defaults`: by strategy, what its fields are in this recipe unless a preset, a file or a flag says otherwise.
    """

    rule_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    strategy: StrategyName = "drtrl"
    """how gradients are made"""
    strategy_fields: Annotated[dict[str, Any], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    """the strategy's own fields, as given by --strategy.FIELD"""
    run_dir: str | None = None
    """directory of the run; by itself a fresh numbered one under checkpoints/"""
    progress: bool = True
    """show a progress bar"""

    def make_strategy(self) -> Strategy:
        """The strategy object, to give to Fit. Raises ValueError for an unknown name or field."""
        own = self.checked_defaults().get(registry.lookup(self.strategy).name, {})
        return registry.make_strategy(self.strategy, **{**own, **self.strategy_fields})

    @classmethod
    def checked_defaults(cls) -> dict[str, dict[str, Any]]:
        """`rule_defaults` by the strategies' own names. Raises ConfigError for what no strategy has."""
        each = [(registry.lookup(name), own) for name, own in cls.rule_defaults.items()]
        return {kind.name: registry.check(kind, own, f"rule_defaults: {kind.name}") for kind, own in each}

    def saved(self) -> dict[str, Any]:
        """The configuration as a run directory keeps it: a plain dict without the options of this start alone."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in PERSONAL}


def check(config: Options, counts: Sequence[str] = (), periods: Sequence[str] = ()) -> None:
    """For a Config's `__post_init__`: ConfigError with one line where a field named in `counts` is below 1, or one in
    `periods` is no period (`200`, `"1ep"`, `"10min"`)."""
    for name in (*counts, *periods):
        value, flag = getattr(config, name), "--" + name.replace("_", "-")
        if name in counts and value is not None and not 1 <= value < 2**31:
            raise ConfigError(f"{flag} {value}: expected a whole number, {'1 or more' if value < 1 else 'below 2**31'}")
        try:
            Period.of(value if name in periods else None)
        except ValueError as error:
            raise ConfigError(f"{flag} {value}: {error}") from None


def main(Config: type[Options], make: Callable[[Any], tuple[Any, Any, Any]], *,
         presets: Mapping[str, Mapping[str, Any]] | None = None, chance: Mapping[str, float] | None = None,
         argv: Sequence[str] | None = None) -> int:  # fmt: skip
    """Run a recipe from the command line; returns the exit code, for `sys.exit`.

    `Config`: a frozen dataclass that extends `Options`. `make(config)`: `(fit, module, data)`; import JAX in there.
    `presets`: name -> {option: value}; a key that is a strategy's name holds fields for that strategy alone.
    `chance`: metric name -> what guessing scores, shown beside the results. `argv`: without the program's name.
    """
    return processes.run(lambda: guarded(lambda: _recipe(Config, make, presets or {}, chance or {}, argv)))


def _recipe(Config, make, presets, chance, argv) -> int:
    if not (isinstance(Config, type) and issubclass(Config, Options)):
        raise TypeError(f"{Config!r} is no recipe's Config; expected a dataclass that extends jaxtrain.cli.Options")
    script = Path(inspect.getfile(make))
    root = Path("checkpoints") / script.stem
    config, args, start = _parse(Config, presets, list(sys.argv[1:] if argv is None else argv), script.name, root)
    try:
        processes.check(args.processes, args.process, args.coordinator, args.process_timeout)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    devices = getattr(config, "devices", 1)
    use_compilation_cache()
    if devices != 1:
        from ..engine.sharding import start as start_devices

        start_devices(devices)  # before anything in make starts JAX
    processes.start(args.processes, args.process, args.coordinator, args.process_timeout)
    with processes.report_failures(ends=True):
        return _started(make, config, args, start, script, root, chance)


def _started(make, config, args, start, script: Path, root: Path, chance) -> int:
    asked = {"run directory": start.run_dir, "resume": start.resume, "dry run": args.dry_run}
    require_equal(asked, "start all with the same options, on one disk")
    if start.note and processes.is_first():
        print(start.note)
    fresh = start.run_dir is None
    label = config.strategy + "".join(
        f"-{key}{getattr(config, key)}" for key in ("seed", "seeds") if _given(config, key)
    )
    run_dir = start.run_dir
    if run_dir is None:
        made = fresh_run(root, label, create=not args.dry_run) if processes.is_first() else None
        run_dir = Path(processes.broadcast(str(made)))
    config = dataclasses.replace(config, run_dir=str(run_dir))
    try:
        fit, module, data = _made(make, config)
        result = fit.run(module, data, resume=start.resume, config=config.saved(), dry_run=args.dry_run)
    finally:
        if fresh and processes.is_first():
            drop_unused(run_dir)
    if not args.dry_run and processes.is_first():
        print(summary(result, config, script, root, chance))
    return result.exit_code


def _made(make: Callable[[Any], Any], config: Options) -> tuple[Any, Any, Any]:
    """What a recipe makes. Values that Fit, a strategy or a callback refuse there came from the command line."""
    try:
        return make_run(make, config)
    except ValueError as error:
        if isinstance(error, ConfigError) or not _deliberate(error):
            raise
        raise ConfigError(str(error)) from error


def _given(config: Options, name: str) -> bool:
    return getattr(config, name, None) is not None


# ---- from the command line to a config ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Start:
    """Which run: its directory (None: a fresh numbered one), what to tell Fit, and the configuration it takes over."""

    run_dir: Path | None
    resume: str | int
    source: Path | None = None
    saved: dict[str, Any] | None = None
    note: str = ""


def _parse(Config, presets, argv: list[str], prog: str, root: Path):
    _renew_choices()
    # These few decide what the others' defaults are, so they are looked at first; tyro reports what is malformed.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("strategy", "config", "preset", "resume", "run-dir"):
        early.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest=name.replace("-", "_"), nargs="?")
    given = early.parse_known_args(argv)[0]

    layers: list[tuple[Mapping[str, Any], str]] = []
    if given.preset not in (None, "None"):
        if given.preset not in presets:
            known = did_you_mean(given.preset, presets) if presets else "this recipe has none"
            raise ConfigError(f"unknown preset {given.preset!r}; {known}")
        layers.append((presets[given.preset], f"preset {given.preset!r}"))
    if given.config not in (None, "None"):
        layers.append((read_config(Path(given.config)), given.config))
    config, fields = overlaid(Config(), layers)
    run_dir = config.run_dir if given.run_dir is None else given.run_dir  # a file may name the directory
    start = _find(given.resume or "never", run_dir, root)
    if start.saved is not None:
        config, fields = overlaid(Config(), [(start.saved, f"{start.source}/config.json")])
    kind = registry.lookup(given.strategy or config.strategy)  # an alias stands for its strategy
    own = {name: option.default for name, option in options(kind).items()} | fields.get(kind.name, {})
    types = get_type_hints(Config) | {f"strategy.{name}": hint for name, hint in field_types(kind).items()}
    argv = readable(argv, {**types, "resume": str, "config": str, "preset": str})
    arguments, default = _arguments(Config, kind, config, own, presets)
    description = _describe(Config, kind, presets)
    parsed, unknown = tyro.cli(
        arguments, args=argv, default=default, prog=prog, description=description, return_unknown_args=True
    )
    if unknown:
        raise ConfigError(_unknown(unknown[0], Config, kind))
    # An alias is the command line's alone: labels, reports and config.json have the strategy's own name.
    own = {"strategy": kind.name, "strategy_fields": dataclasses.asdict(parsed.fields)}
    chosen = dataclasses.replace(parsed.recipe, **own)
    ignored = [f"--{name}" for name in ("preset", "config") if getattr(parsed, name) is not None]
    if start.saved is not None:
        replaces = f", which replaces {' and '.join(ignored)}" if ignored else ""
        note = f"resuming {start.source} at {parsed.resume} with its saved configuration{replaces}"
        start = dataclasses.replace(start, note=note)
    return chosen, parsed, start


def overlaid(config: Options, layers) -> tuple[Options, dict[str, dict[str, Any]]]:
    """The config with all layers put over it in turn, and the fields they hold for each strategy."""
    fields = config.checked_defaults()
    known = {*registry.available(), *registry.ALIASES, "strategy_fields"}
    for values, where in layers:
        tables = {key: values[key] for key in values if key in known}
        for key, table in tables.items():
            if not isinstance(table, Mapping):
                raise ConfigError(f"{where}: {key} = {table!r}; expected a table of the strategy's fields")
        config = overlay(config, {key: values[key] for key in values if key not in tables}, where)
        for key, table in tables.items():
            kind = registry.lookup(config.strategy if key == "strategy_fields" else key)
            fields.setdefault(kind.name, {}).update(registry.check(kind, table, f"{where}: {key}"))
    return config, fields


def _arguments(Config, kind: type[Strategy], config: Options, values: dict[str, Any], presets):
    """The whole command line as one dataclass for tyro, and its defaults."""
    arg = tyro.conf.arg
    own = [(name, Annotated[option.type, arg(help=option.help)]) for name, option in options(kind).items()]
    fields = dataclasses.make_dataclass("Fields", own, frozen=True)
    preset = Literal[tuple(presets)] if presets else str  # pyright: ignore[reportInvalidTypeForm]
    resume = (
        "last continues a run; best, a step, or the path of RUN_DIR/checkpoints/STEP begins a new run from there; "
        "`jaxtrain info RUN_DIR` lists the steps that its Checkpoint has kept (the newest ones, and those of the best "
        "scores)"
    )
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("recipe", Annotated[Config, arg(name="")]),
            ("fields", Annotated[fields, arg(name="strategy", help=f"{kind.name}: {summary_of(kind)}")]),
            ("resume", Annotated[str, arg(help=resume, metavar="never|last|best|STEP|PATH")]),
            ("config", Annotated[Path | None, arg(help="JSON or TOML file of options, or a run's config.json")]),
            ("preset", Annotated[preset | None, arg(help="a named set of options")]),
            ("processes", Annotated[Literal["auto"] | int, arg(help=PROCESSES)]),
            ("process", Annotated[int | None, arg(help="this process's number, from 0")]),
            ("coordinator", Annotated[str | None, arg(help="HOST:PORT, where process 0 listens")]),
            ("process_timeout", Annotated[int, arg(help="seconds after which a silent process counts as dead")]),
            ("dry_run", Annotated[bool, tyro.conf.FlagCreatePairsOff, arg(help="print the report of a run and stop")]),
        ],
        frozen=True,
    )
    return arguments, arguments(config, fields(**values), "never", None, None, 1, None, None, processes.SECONDS, False)


def _describe(Config, kind: type[Strategy], presets) -> str:
    lines = [inspect.cleandoc(Config.__doc__ or "")]
    default = registry.lookup(Config().strategy)
    for other in map(registry.lookup, registry.REGISTRY):
        flags = ", ".join(f"--strategy.{name.replace('_', '-')}" for name in field_types(other))
        named = f"--strategy {other.name}{' (default)' if other is default else ''}: {summary_of(other)}."
        lines.append(f"{named} Options: {'see below' if other is kind else flags}.")
    for name, values in presets.items():
        lines.append(f"--preset {name}: " + ", ".join(f"{key}={value}" for key, value in values.items()) + ".")
    return "\n".join(lines)


def _unknown(word: str, Config, kind: type[Strategy]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; options are spelled --name value, see --help"
    flag = word.split("=")[0]
    field = flag.removeprefix("--strategy.").replace("-", "_")
    owners = [name for name in registry.REGISTRY if field in field_types(registry.lookup(name))]
    if flag.startswith("--strategy.") and owners:
        return f"{flag} is a field of strategy {' and '.join(owners)}; this run's strategy is {kind.name}"
    if (name := flag.removeprefix("--").replace("-", "_")) in field_types(kind):
        return f"unknown option {flag}; did you mean --strategy.{name.replace('_', '-')}?"
    own = [f.name for f in dataclasses.fields(Config) if f.name != "strategy_fields"]
    start = ("resume", "config", "preset", "processes", "process", "coordinator", "process_timeout", "dry_run", "help")
    flags = [f"--{name}".replace("_", "-") for name in (*own, *start)]
    flags += [f"--strategy.{name}".replace("_", "-") for name in field_types(kind)] + ["--no-progress"]
    close = did_you_mean(flag, flags).partition("; ")[2]
    return f"unknown option {flag}; {close or 'see --help'}"


def _find(resume: str, run_dir: str | None, root: Path) -> _Start:
    """Which run `--resume` and `--run-dir` mean."""
    if run_dir == "":
        raise ConfigError("--run-dir '': expected a directory; leave it out for a fresh one")
    given = None if run_dir in (None, "None") else Path(run_dir).expanduser()
    if resume == "never":
        return _Start(given, resume)
    if resume not in WORDS and not resume.isdecimal():
        path = Path(resume).expanduser()
        step = path.name.isdecimal() and path.parent.name == "checkpoints"
        if not (step and path.with_name(f"{int(path.name):08d}").is_dir()):
            expected = "expected never, last, best, a step, or the path of an existing RUN_DIR/checkpoints/STEP"
            hint = did_you_mean(resume, WORDS).partition("; ")[2]
            raise ConfigError(f"--resume {resume}: {expected}" + (f"; {hint}" if hint else ""))
        source = path.parent.parent
        return _Start(given or source, str(path), source, saved_config(source))
    source = given or newest_run(root)
    if source is None:
        if resume != "last":
            raise ConfigError(f"--resume {resume}: there is no run under {root}; say which with --run-dir")
        return _Start(None, "never", note=f"--resume last: there is no run under {root} yet, starting a fresh one")
    return _Start(source, int(resume) if resume.isdecimal() else resume, source, saved_config(source))


# ---- what ends it ---------------------------------------------------------------------------------------------------

STDLIB = (Path(os.__file__).parent, Path(os.__file__).parent / "pathlib")
EXPECTED = (ValueError, TypeError, RuntimeError, OSError, LookupError, ArithmeticError)


def guarded(work: Callable[[], int]) -> int:
    """`work()`'s exit code, with a person's mistakes told in one line; every other error goes on as it is."""
    try:
        return run_main(work)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ConfigError as error:
        if os.environ.get("JAXTRAIN_TRACEBACK") == "1":
            raise
        print(f"{processes.rank_prefix()}error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"{processes.rank_prefix()}error: not enough memory: {_text(error) or 'it ran out'}", file=sys.stderr)
        return 1
    except EXPECTED as error:
        if os.environ.get("JAXTRAIN_TRACEBACK") == "1" or not _deliberate(error):
            raise
        notes = [note for note in getattr(error, "__notes__", []) if "JAX_TRACEBACK_FILTERING" not in note]
        print(" ".join(f"{processes.rank_prefix()}error: {'; '.join([_text(error), *notes])}".split()), file=sys.stderr)
        return 1


def _text(error: BaseException) -> str:
    """The message alone: a KeyError would quote it, an OSError put its number first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _deliberate(error: BaseException) -> bool:
    """Whether jaxtrain raised this itself, or the system refused jaxtrain a file: not a bug, not a user's code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    files = [frame.f_code.co_filename for frame, _ in frames]
    if isinstance(error, OSError):
        while files and (files[-1].startswith("<frozen") or Path(files[-1]).parent in STDLIB):
            files.pop()
    if not files or not Path(files[-1]).is_relative_to(Path(__file__).parents[1]):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    # A `raise` statement, rather than an operation that failed.
    raised = last is not None and dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised or isinstance(error, OSError)
