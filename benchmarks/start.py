"""Start-up time: imports, --help, and the first train step, compiled or loaded from the compilation cache.

python benchmarks/start.py
python benchmarks/start.py --repeats 5 --strategy drtrl

Everything runs in new processes. "first step" is the default configuration of recipes/copy_gru.py with a run directory,
from the end of all imports until the metrics of step 1 are available: with an empty compilation cache ("cold"), and
again with the cache that the first run wrote ("warm"). Its time is divided into parts that exclude each other. Programs
compile in threads, so only the time that the run waits for them counts.
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

RECIPE = common.ROOT / "recipes" / "copy_gru.py"
GOALS = {"cold": 0.95, "warm": 0.38}
"""Largest time of a first step, as a fraction of that of ``import braintrace`` in the same round."""
PROCESSES = {
    "python -c pass": ["-c", "pass"],
    "import jaxtrain": ["-c", "import jaxtrain"],
    "copy_gru.py --help": [str(RECIPE), "--help"],
    "import jax": ["-c", "import jax"],
    "import braintrace": ["-c", "import braintrace"],
    "import all of jaxtrain": ["-c", "import jaxtrain; [getattr(jaxtrain, n) for n in jaxtrain.__all__]"],
}


class Parts:
    """Seconds of a process by part. A part is a function, without the time it spends in other parts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock, self._inner = clock, [0.0]

    def time(self, name: str, owner: Any, attribute: str) -> None:
        """Replace ``owner.attribute`` by a function whose calls count for ``name``."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            started = self._clock()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                seconds = self._clock() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inner.pop()
                self._inner[-1] += seconds

        setattr(owner, attribute, timed)

    @property
    def counted(self) -> float:
        """Seconds of all parts."""
        return self._inner[0]


def first_step(strategy: str, run_dir: str, small: bool) -> dict[str, Any]:
    """Time from the end of the imports to the first metrics. Run it in a new process."""
    from jaxtrain.utils.compilation_cache import use_compilation_cache

    use_compilation_cache()
    import jax

    import jaxtrain as jt
    from jaxtrain.core.metrics import Pending
    from jaxtrain.engine.compilation import Compilation
    from jaxtrain.engine.program import Program
    from jaxtrain.training import prepare as prepare_file

    [getattr(jt, name) for name in jt.__all__]
    spec = importlib.util.spec_from_file_location("copy_gru", RECIPE)
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["copy_gru"] = recipe
    spec.loader.exec_module(recipe)
    sizes = {"hidden": 8, "time_lag": 3, "digits": 2, "batch_size": 2} if small else {}

    events: Counter[str] = Counter()
    jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[-1]]))
    parts = Parts()
    for name, owner, attribute in (
        ("build the model", prepare_file, "build_each"),
        ("bind the strategy, prepare the state", Program, "__init__"),
        ("trace the train step", vars(Program)["_step"], "func"),  # a cached property
        ("lower the train program", Program, "_lower_train"),
        ("trace and lower validation", Program, "_evaluation"),
        ("trace and lower probes", Program, "_probing"),
        ("wait for the compiler, or the cache", vars(Compilation)["program"], "func"),
        ("the report", Program, "report"),
        ("dispatch", Program, "train"),
        ("wait for step 1", Pending, "fetch"),
    ):
        parts.time(name, owner, attribute)

    class Stop(jt.Callback):
        done = cpu = 0.0
        parts: dict[str, float]

        def on_chunk_end(self, run, metrics):  # the rest of the run does not count
            self.done, self.cpu, self.parts = time.perf_counter(), time.process_time(), dict(parts.seconds)

    started, cpu = time.perf_counter(), time.process_time()
    config = recipe.Config(strategy=strategy, max_steps=1, run_dir=run_dir, progress=False, **sizes)
    fit, module, data = recipe.make(config)
    stop = Stop()
    fit.callbacks = type(fit.callbacks)([*fit.callbacks, stop])
    fit.run(module, data)
    total = stop.done - started
    seconds = {**stop.parts, "everything else": total - sum(stop.parts.values())}
    counts = {"misses": events["cache_misses"], "hits": events["cache_hits"]}
    return {"total": total, "cpu": stop.cpu - cpu, "parts": seconds, **counts}


def process(argv: list[str]) -> float:
    """Seconds that a Python process takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL, cwd=common.ROOT)
    return time.perf_counter() - started


def make_sections(processes: dict[str, list[float]], steps: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Tables of processes and of the parts of a first step, and the goal."""
    sections = {}
    rows = [_quartiles_row(name, seconds) for name, seconds in processes.items()]
    for kind, runs in steps.items():
        rows.append(_quartiles_row(f"first step, {kind}", [run["total"] for run in runs]))
        rows.append(_quartiles_row(f"first step, {kind}: CPU time of all threads", [run["cpu"] for run in runs]))
    sections["Seconds of a new process; for first steps, from the end of the imports"] = common.table(
        ["", "median", "lower quartile", "upper quartile"], rows
    )
    names = dict.fromkeys(name for runs in steps.values() for run in runs for name in run["parts"])
    rows = [
        [name, *(f"{statistics.median(run['parts'].get(name, 0.0) for run in runs):.2f}" for runs in steps.values())]
        for name in names
    ]
    counts = [f"{runs[-1]['hits']:.0f} / {runs[-1]['misses']:.0f}" for runs in steps.values()]
    rows.append(["programs loaded from the cache / compiled", *counts])
    sections["Parts of the first step, seconds (medians)"] = common.table(["", *steps], rows)
    sections["Goals"] = common.goals_table(make_goals(processes, steps))
    return sections


def make_goals(processes: dict[str, list[float]], steps: dict[str, list[dict[str, Any]]]) -> list[common.Goal]:
    """The first step over ``import braintrace``: ratios of each round, since the speed of a machine changes."""
    goals = []
    for kind, runs in steps.items():
        pairs = zip(runs, processes["import braintrace"], strict=True)
        ratio = statistics.median(run["total"] / seconds for run, seconds in pairs)
        goals.append(common.Goal(f"first step, {kind}: time over that of import braintrace", ratio, GOALS[kind]))
    return goals


def _quartiles_row(name: str, values: list[float]) -> list[str]:
    low, median, high = common.quartiles(values)
    return [name, *(f"{value:.2f}" for value in (median, low, high))]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="new processes of each kind, in turns")
    parser.add_argument("--strategy", default="drtrl")
    parser.add_argument("--small", action="store_true", help="test run with a tiny network")
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
            for kind, runs in steps.items():
                run_dir = str(Path(root) / kind)
                argv = ["--alone", run_dir, "--strategy", options.strategy, *small]
                runs.append(common.fresh("start.py", *argv, env=env))
    sections = make_sections(processes, steps)
    print(f"{common.machine()}; {options.repeats} repeats, strategy {options.strategy}")
    common.show(sections)
    if options.json:
        numbers = {"processes": processes, "first step": steps}
        common.save("start", sections, numbers, options.json, make_goals(processes, steps))


if __name__ == "__main__":
    main()
