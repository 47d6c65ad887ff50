"""Runs a recipe from the command line. Nothing here imports JAX before the options are parsed: `--help` is instant.

Precedence, lowest first: the recipe's defaults, `--preset`, `--config FILE`, flags. A resumed run uses its saved
configuration instead of the first three. A mistake in the options is printed in one line on stderr
(`JAXTRAIN_TRACEBACK=1` shows where it was raised); errors in the user's code keep their traceback.
Exit codes: 0 success, 1 the run (or what a command measures) failed, 2 the command line, or a file it names, is
invalid, 75 another process of several has ended, 130 Ctrl-C, 143 SIGTERM, 128 + n for another signal n that ends a run.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..distributed import ending, processes
from ..errors import ConfigError
from ..utils.allocator import keep_freed_memory
from ..utils.compilation_cache import use_compilation_cache
from ..utils.diff import require_equal
from ..utils.files import RunLock
from .config import Options as Options
from .failures import guarded, is_deliberate
from .make import make_run
from .parse import Start, parse
from .run_dirs import drop_unused, fresh_run, saved_devices
from .summary import relative, summary


def main(Config: type[Options], make: Callable[[Any], tuple[Any, Any, Any]], *,
         presets: Mapping[str, Mapping[str, Any]] | None = None, chance: Mapping[str, float] | None = None,
         argv: Sequence[str] | None = None) -> int:  # fmt: skip
    """Run a recipe from the command line.

    Args:
        Config: A frozen dataclass that extends `Options`; its fields are the flags.
        make: Returns `(fit, module, data)` for a Config. Import JAX inside of it.
        presets: Option values by preset name. A key that is a strategy's name holds fields of that strategy.
        chance: What guessing scores, by metric name; the summary shows it beside the results.
        argv: The command line without the program's name (default: `sys.argv[1:]`).

    Returns:
        The exit code, for `sys.exit`.

    Example::

        if __name__ == "__main__":
            sys.exit(jaxtrain.cli.main(Config, make))
    """
    return ending.run(lambda: guarded(lambda: _main(Config, make, presets or {}, chance or {}, argv)))


def _main(Config, make, presets, chance, argv) -> int:
    if not (isinstance(Config, type) and issubclass(Config, Options)):
        raise TypeError(f"{Config!r} is not a recipe's Config; expected a dataclass that extends jaxtrain.cli.Options")
    started = Path(sys.argv[0])  # it may import `make` from another file
    script = started if argv is None and started.is_file() else Path(inspect.getfile(make))
    root = Path("checkpoints") / script.stem
    config, flags, start = parse(
        Config, presets, list(sys.argv[1:] if argv is None else argv), str(relative(script)), root
    )
    distributed = [flags[name] for name in ("processes", "process", "coordinator", "process_timeout")]
    processes.check(*distributed)
    dry_run = flags["dry_run"]
    if start.run_dir is not None and (start.run_dir / ".lock").exists() and flags["processes"] == 1 and not dry_run:
        with RunLock(start.run_dir):  # refuses a directory in use before JAX is imported
            pass
    devices = getattr(config, "devices", 1)
    if devices == "auto" and flags["processes"] != 1:
        devices = 1  # what "auto" means in each of several processes
    elif devices == "auto" and start.source is not None:
        devices = saved_devices(start.source)  # Fit takes the same number from the run
    keep_freed_memory()
    use_compilation_cache()
    if devices != 1:
        from ..engine.sharding import start as start_devices

        start_devices(devices)  # must come before `make` initialises JAX
    processes.start(*distributed)
    with processes.report_failures(ends=True):
        return _train(make, config, dry_run, start, script, root, chance)


def _train(make, config: Options, dry_run: bool, start: Start, script: Path, root: Path, chance) -> int:
    asked = {"run directory": start.run_dir, "resume": start.resume, "dry run": dry_run}
    require_equal(asked, "start all with the same options, on one disk")
    if start.note and processes.is_first():
        print(start.note)
    run_dir = start.run_dir
    if run_dir is None:
        seeds = [(name, getattr(config, name, None)) for name in ("seed", "seeds")]
        label = config.strategy + "".join(f"-{name}{value}" for name, value in seeds if value is not None)
        numbered = fresh_run(root, label, create=not dry_run) if processes.is_first() else None
        run_dir = Path(processes.broadcast(str(numbered)))
    config = dataclasses.replace(config, run_dir=str(run_dir))
    try:
        fit, module, data = _make(make, config)
        result = fit.run(module, data, resume=start.resume, config=config.saved(), dry_run=dry_run,
                         test=getattr(config, "test", False))  # fmt: skip
    finally:
        if start.run_dir is None and processes.is_first():
            drop_unused(run_dir)
    if not dry_run and processes.is_first():
        print(summary(result, config, script, root, chance))
    return result.exit_code


def _make(make: Callable[[Any], Any], config: Options) -> tuple[Any, Any, Any]:
    """Call `make`. The values that Fit, a strategy or a callback rejects there came from the command line."""
    try:
        return make_run(make, config)
    except ValueError as error:
        if isinstance(error, ConfigError) or not is_deliberate(error):
            raise
        raise ConfigError(str(error)) from error
