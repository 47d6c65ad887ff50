"""From a recipe's command line to its configuration and the run that it starts or resumes. Does not import JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from ..distributed import processes
from ..errors import ConfigError
from ..strategies import registry
from ..utils.coerce import did_you_mean, field_types, overlay, read_config
from ..utils.fields import Option, options
from .argv import read_options
from .config import Options, update_strategy_names
from .help import recipe_help, strategy_help
from .run_dirs import newest_run, saved_config

if TYPE_CHECKING:
    from ..strategies import Strategy

Layer = tuple[Mapping[str, Any], str]
"""Option values and where they come from."""

WORDS = ("never", "last", "best")
RESUME = Option(
    Literal["never", "last", "best", "STEP", "PATH"],
    "never",
    "last: continue a run; best, a step, or the path RUN_DIR/checkpoints/STEP: start a new run from that checkpoint "
    "(`jaxtrain info RUN_DIR` lists the saved steps)",
)
PROCESSES = (
    "number of processes that train together, each on its share of every batch; start all with the same options; "
    "auto: use the settings of SLURM, Open MPI or Kubernetes"
)
ONLY_FLAGS = {
    "config": Option(Path | None, None, "JSON or TOML file with options, or the config.json of another run"),
    "processes": Option(Literal["auto"] | int, 1, PROCESSES),
    "process": Option(int | None, None, "number of this process, starting at 0"),
    "coordinator": Option(str | None, None, "HOST:PORT at which process 0 listens"),
    "process_timeout": Option(int, processes.SECONDS, "seconds of silence after which a process counts as dead"),
    "dry_run": Option(bool, False, "print what the rule does to each parameter, and exit"),
}
"""Options that every recipe has but no Config."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Which run a command line starts or resumes.

    `run_dir`: None for a new numbered directory. `resume`: the argument of `Fit.run`. `source`: the run directory whose
    configuration is used. `note`: a line to print.
    """

    run_dir: Path | None
    resume: str | int
    source: Path | None = None
    note: str = ""


def parse(
    Config: type[Options], presets: Mapping[str, Any], argv: list[str], prog: str, root: Path
) -> tuple[Options, dict[str, Any], Start]:
    """Parse a recipe's command line.

    Args:
        Config: The recipe's options.
        presets: Option values by preset name.
        argv: The command line without the program's name.
        prog: The path of the recipe, for `--help`.
        root: The directory of the recipe's numbered runs.

    Returns:
        The configuration, the values of `ONLY_FLAGS`, and the run to start or resume.

    Raises:
        ConfigError: An option, a file or a value is invalid.
        SystemExit: After `--help`.
    """
    update_strategy_names()
    # These few determine the defaults of the others, so they are read first.
    early = {"strategy": str, "resume": str, **dict.fromkeys(("config", "preset", "run_dir"), str | None)}
    given, _ = read_options(argv, early)

    layers = preset_layers(given.get("preset"), presets)
    if (file := given.get("config")) is not None:
        layers.append((read_config(Path(file)), file))
    config, fields = overlaid(Config(), layers)
    resume = given.get("resume", "never")
    start = find_start(resume, given.get("run_dir", config.run_dir), root)  # a file may name the directory
    if start.source is not None and (saved := saved_config(start.source)) is not None:
        config, fields = overlaid(Config(), [(saved, f"{start.source}/config.json")])
        ignored = [f"--{name}" for name in ("preset", "config") if given.get(name) is not None]
        replaces = f", which replaces {' and '.join(ignored)}" if ignored else ""
        which = {"last": "its last checkpoint", "best": "its best checkpoint"}.get(resume, f"step {Path(resume).name}")
        note = f"resuming {start.source} from {which}, with its saved configuration{replaces}"
        start = dataclasses.replace(start, note=note)
    strategy = registry.lookup(given.get("strategy", config.strategy))
    own = {name: option.default for name, option in options(strategy).items()} | fields.get(strategy.name, {})
    if "--help" in argv or "-h" in argv:
        flags = {"resume": RESUME, **ONLY_FLAGS}
        if presets:
            flags["preset"] = Option(Literal[tuple(presets)], None, "a named set of options")  # pyright: ignore
        named = "strategy" in given
        print(strategy_help(strategy, own, prog) if named else recipe_help(config, strategy, presets, flags, prog))
        raise SystemExit(0)

    only_flags = {name: option.type for name, option in ONLY_FLAGS.items()}
    strategy_types = {f"strategy.{name}": hint for name, hint in field_types(strategy).items()}
    values, unknown = read_options(argv, {**get_type_hints(Config), **early, **only_flags, **strategy_types})
    if unknown:
        raise ConfigError(_unknown(unknown[0], Config, strategy))
    own |= {name.removeprefix("strategy."): value for name, value in values.items() if name in strategy_types}
    changes = {field.name: values[field.name] for field in dataclasses.fields(config) if field.name in values}
    # An alias is valid on the command line only: labels, reports and config.json use the strategy's name.
    config = dataclasses.replace(config, **{**changes, "strategy": strategy.name, "strategy_fields": own})
    return config, {name: values.get(name, option.default) for name, option in ONLY_FLAGS.items()}, start


def preset_layers(preset: str | None, presets: Mapping[str, Any]) -> list[Layer]:
    """The values of a preset, in a list that is empty if no preset is named. Raises ConfigError if it is unknown."""
    if preset is None:
        return []
    if preset not in presets:
        known = did_you_mean(preset, presets) if presets else "this recipe has none"
        raise ConfigError(f"unknown preset {preset!r}; {known}")
    return [(presets[preset], f"preset {preset!r}")]


def overlaid(config: Options, layers: Sequence[Layer]) -> tuple[Options, dict[str, dict[str, Any]]]:
    """Apply layers of option values to a configuration.

    Args:
        config: The configuration.
        layers: Later ones take precedence. A table named after a strategy holds fields of that strategy.

    Returns:
        The new configuration, and the fields that it and the layers set, by strategy name.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type.
    """
    fields = config.checked_defaults()
    known = {*registry.available(), *registry.ALIASES, "strategy_fields"}
    for values, where in layers:
        tables = {key: values[key] for key in values if key in known}
        for key, table in tables.items():
            if not isinstance(table, Mapping):
                raise ConfigError(f"{where}: {key} = {table!r}; expected a table of the strategy's fields")
        config = overlay(config, {key: values[key] for key in values if key not in tables}, where)
        for key, table in tables.items():
            strategy = registry.lookup(config.strategy if key == "strategy_fields" else key)
            fields.setdefault(strategy.name, {}).update(registry.check(strategy, table, f"{where}: {key}"))
    return config, fields


def find_start(resume: str, run_dir: str | None, root: Path) -> Start:
    """Find the run that `--resume` and `--run-dir` refer to. Raises ConfigError if there is none."""
    if run_dir == "":
        raise ConfigError("--run-dir '': expected a directory; leave it out for a new numbered one")
    given = None if run_dir is None else Path(run_dir).expanduser()
    if resume == "never":
        return Start(given, resume)
    if resume not in WORDS and not resume.isdecimal():
        path = Path(resume).expanduser()
        step = path.name.isdecimal() and path.parent.name == "checkpoints"
        if not (step and path.with_name(f"{int(path.name):08d}").is_dir()):
            expected = "expected never, last, best, a step, or the path of an existing RUN_DIR/checkpoints/STEP"
            hint = did_you_mean(resume, WORDS).partition("; ")[2]
            raise ConfigError(f"--resume {resume}: {expected}" + (f"; {hint}" if hint else ""))
        source = path.parent.parent
        return Start(given or source, str(path), source)
    source = given or newest_run(root)
    if source is None:
        if resume != "last":
            raise ConfigError(f"--resume {resume}: there is no run under {root}; name one with --run-dir")
        return Start(None, "never", note=f"--resume last: there is no run under {root} yet, starting a new one")
    return Start(source, int(resume) if resume.isdecimal() else resume, source)


def _unknown(word: str, Config: type[Options], strategy: type[Strategy]) -> str:
    """The error message for a word that is no option."""
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; options are spelled --name value, see --help"
    flag = word.split("=")[0]
    field = flag.removeprefix("--strategy.").replace("-", "_")
    owners = [name for name in registry.REGISTRY if field in field_types(registry.lookup(name))]
    if flag.startswith("--strategy.") and owners:
        return f"{flag} is a field of strategy {' and '.join(owners)}; this run's strategy is {strategy.name}"
    own = field_types(strategy)
    if (name := flag.removeprefix("--").replace("-", "_")) in own:
        return f"unknown option {flag}; did you mean --strategy.{name.replace('_', '-')}?"
    names = [field.name for field in dataclasses.fields(Config) if field.name != "strategy_fields"]
    names += ["no_progress", "resume", "preset", "help", *ONLY_FLAGS]
    names += [f"strategy.{name}" for name in own]
    close = did_you_mean(flag, [f"--{name}".replace("_", "-") for name in names]).partition("; ")[2]
    return f"unknown option {flag}; {close or 'see --help'}"
