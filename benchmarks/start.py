"""How long a start takes: imports, --help, and the first train step, compiled anew or loaded from the cache.

python benchmarks/start.py
python benchmarks/start.py --repeats 5 --strategy drtrl

All are fresh processes. "first step" runs recipes/copy_gru.py's own configuration with a run directory, in a process
that has imported everything, until the metrics of step 1 are there: with an empty compilation cache ("cold"), and again
with the cache that this left ("warm"). Where the time went is told by parts that exclude each other.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

RECIPE = common.ROOT / "recipes" / "copy_gru.py"
GOAL = 1.5
PROCESSES = {
    "python -c pass": ["-c", "pass"],
    "import jaxtrain": ["-c", "import jaxtrain"],
    "copy_gru.py --help": [str(RECIPE), "--help"],
    "import jax": ["-c", "import jax"],
    "import braintrace": ["-c", "import braintrace"],
    "import all of jaxtrain": ["-c", "import jaxtrain; [getattr(jaxtrain, n) for n in jaxtrain.__all__]"],
}


class Parts:
    """Seconds of a process by part: of a function, less what it spent in functions that are parts themselves."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock, self._inner = clock, [0.0]

    def time(self, name: str, owner: Any, attribute: str) -> None:
        """From now on calls of ``owner.attribute`` count for ``name``."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            started = self._clock()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                taken = self._clock() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + taken - self._inner.pop()
                self._inner[-1] += taken

        setattr(owner, attribute, timed)

    @property
    def counted(self) -> float:
        return self._inner[0]


def first_step(strategy: str, run_dir: str, small: bool) -> dict[str, Any]:
    """From the end of imports to the first metrics; meant for a fresh process."""
    from jaxtrain.utils.compilation_cache import use_compilation_cache

    use_compilation_cache()
    import jax

    import jaxtrain as jt
    from jaxtrain.core.metrics import Pending
    from jaxtrain.engine.program import Program
    from jaxtrain.training import prepare as prepare_file

    [getattr(jt, name) for name in jt.__all__]
    spec = importlib.util.spec_from_file_location("copy_gru", RECIPE)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["copy_gru"] = recipe
    spec.loader.exec_module(recipe)
    sizes = {"hidden": 8, "time_lag": 3, "digits": 2, "batch_size": 2} if small else {}

    seen: dict[str, float] = {}
    jax.monitoring.register_event_listener(lambda event, **_: _add(seen, event.rsplit("/", 1)[-1], 1))
    parts = Parts()
    for name, owner, attribute in (
        ("build the model", prepare_file, "build_each"),
        ("bind the strategy, prepare the state", Program, "__init__"),
        ("trace the train step", Program, "_train_step"),
        ("lower the train program", Program, "_compile_train"),
        ("trace and lower validation", Program, "evaluate"),
        ("trace and lower probes", Program, "probe"),
        ("compile, or load from the cache", jax.stages.Lowered, "compile"),
        ("the report", Program, "report"),
        ("dispatch", Program, "train"),
        ("wait for step 1", Pending, "fetch"),
    ):
        parts.time(name, owner, attribute)

    class Stop(jt.Callback):
        done = cpu = 0.0
        parts: dict[str, float]

        def on_chunk_end(self, run, metrics):  # what comes after the first step is not counted
            self.done, self.cpu, self.parts = time.perf_counter(), time.process_time(), dict(parts.seconds)

    started, cpu = time.perf_counter(), time.process_time()
    config = recipe.Config(strategy=strategy, max_steps=1, run_dir=run_dir, progress=False, **sizes)
    fit, module, data = recipe.make(config)
    stop = Stop()
    fit.callbacks = type(fit.callbacks)([*fit.callbacks, stop])
    fit.run(module, data)
    total = stop.done - started
    told = {**stop.parts, "everything else": total - sum(stop.parts.values())}
    counts = {"misses": seen.get("cache_misses", 0), "hits": seen.get("cache_hits", 0)}
    return {"total": total, "cpu": stop.cpu - cpu, "parts": told, **counts}


def _add(counts: dict[str, float], name: str, value: float) -> None:
    counts[name] = counts.get(name, 0) + value


def process(argv: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL, cwd=common.ROOT)
    return time.perf_counter() - started


def tables(processes: dict[str, list[float]], steps: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    told = {}
    rows = [[name, *(f"{value:.2f}" for value in _middle(taken))] for name, taken in processes.items()]
    for kind, taken in steps.items():
        for key, name in (("total", f"first step, {kind}"), ("cpu", f"first step, {kind}: of all threads")):
            rows.append([name, *(f"{value:.2f}" for value in _middle([one[key] for one in taken]))])
    told["Seconds of a fresh process; of first steps, from the end of imports on"] = common.table(
        ["", "median", "lower quartile", "upper quartile"], rows
    )
    names = dict.fromkeys(name for taken in steps.values() for one in taken for name in one["parts"])
    rows = [
        [name, *(f"{statistics.median(one['parts'].get(name, 0.0) for one in taken):.2f}" for taken in steps.values())]
        for name in names
    ]
    counts = [f"{taken[-1]['hits']:.0f} / {taken[-1]['misses']:.0f}" for taken in steps.values()]
    rows.append(["programs found in the cache / compiled", *counts])
    told["Where the first step's time goes, seconds (medians)"] = common.table(["", *steps], rows)
    told["Judged"] = common.goals_table(goals(steps))
    return told


def goals(steps: dict[str, list[dict[str, Any]]]) -> list[common.Goal]:
    warm = statistics.median(one["total"] for one in steps["warm"])
    return [common.Goal("first step with a warm cache, seconds", warm, GOAL)]


def _middle(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = common.quartiles(values)
    return middle, low, high


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes of each kind, by turns")
    parser.add_argument("--strategy", default="drtrl")
    parser.add_argument("--small", action="store_true", help="a tiny network: not what is judged")
    parser.add_argument("--alone", metavar="RUN_DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        return print(json.dumps(first_step(options.strategy, options.alone, options.small)))
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    processes: dict[str, list[float]] = {name: [] for name in PROCESSES}
    steps: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    small = ["--small"] if options.small else []
    for _ in range(options.repeats):
        for name, argv in PROCESSES.items():
            processes[name].append(process(argv))
        with tempfile.TemporaryDirectory() as root:
            env = {"JAX_COMPILATION_CACHE_DIR": str(Path(root) / "cache")}
            for kind, taken in steps.items():
                run_dir = str(Path(root) / kind)
                argv = ["--alone", run_dir, "--strategy", options.strategy, *small]
                taken.append(common.fresh("start.py", *argv, env=env))
    told = tables(processes, steps)
    print(f"{common.machine()}; {options.repeats} repeats, strategy {options.strategy}")
    common.tell(told)
    if options.json:
        common.keep("start", told, {"processes": processes, "first step": steps}, options.json, goals(steps))


if __name__ == "__main__":
    main()
