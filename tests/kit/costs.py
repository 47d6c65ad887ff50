"""What each test costs in CPU seconds, by kind: the table of `make durations`, and the guard of `make test-all`.

`pytest --costs FILE` writes minutes per test file. `pytest --guard` fails a test without a tier marker that takes more
than `LIMIT` seconds. Both scale CPU seconds to a reference processor by means of a calibration loop.
"""

import resource
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from . import forks, tiers

LIMIT = 10
COMPILING = "/jax/core/compile/"  # tracing, lowering and the backend's compilation
KINDS = ("compile", "run", "processes", "python")
REFERENCE = 0.1
"""CPU seconds of the calibration loop on the reference processor."""


def calibrate() -> float:
    """Seconds on the reference processor per second on this one."""

    def loop() -> float:
        began, table = time.process_time(), {}
        for i in range(400_000):
            table[i % 1000] = str(i)
        return time.process_time() - began

    return REFERENCE / min(loop() for _ in range(3))


def _processes() -> float:
    """CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + forks.cpu_seconds()


class Meter:
    """CPU seconds of this process and its children since `start`, by kind.

    JAX reports compilation in wall-clock seconds of one thread. The rest of a test that compiles counts as "run"; a
    test that compiles nothing is pure Python.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def on_duration(self, name: str, seconds: float, **_) -> None:
        if name.startswith(COMPILING):
            end = time.monotonic()
            while self._spans and self._spans[-1][0] >= end - seconds:
                self._spans.pop()  # tracing within tracing counts once
            self._spans.append((end - seconds, end))

    def start(self) -> None:
        self._spans.clear()
        self._cpu, self._children = time.process_time(), _processes()

    def read(self) -> dict[str, float]:
        cpu = time.process_time() - self._cpu
        compiling = min(sum(end - begin for begin, end in self._spans), cpu)
        rest = "run" if self._spans else "python"
        return {"compile": compiling, rest: cpu - compiling, "processes": _processes() - self._children}


class Costs:
    def __init__(self, table: Path | None, guards: bool):
        self.table, self.guards, self.meter = table, guards, Meter()
        self.files: dict[str, Counter[str]] = defaultdict(Counter)

    def pytest_sessionstart(self):
        import jax

        jax.monitoring.register_event_duration_secs_listener(self.meter.on_duration)
        self.scale = calibrate()

    def pytest_runtest_logstart(self):
        self.meter.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item):
        result = yield
        cost = {kind: seconds * self.scale for kind, seconds in self.meter.read().items()}
        item.user_properties.append(("cost", cost))
        if self.guards and tiers.of(item) is None:
            self._guard(sum(cost.values()))
        return result

    def _guard(self, seconds: float) -> None:
        if seconds > LIMIT:
            seconds *= min(1.0, calibrate() / self.scale)  # the machine may have become slower
        if seconds > LIMIT:
            pytest.fail(
                f"{seconds:.1f} CPU seconds: a test without a tier marker may take {LIMIT}; make it cheaper, or mark "
                "it `full` or `long`",
                pytrace=False,
            )

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown" and (cost := dict(report.user_properties).get("cost")):
            self.files[report.nodeid.partition("::")[0]].update({"tests": 1, **cost})

    def pytest_sessionfinish(self, session):
        if self.table is None or hasattr(session.config, "workerinput"):
            return
        lines = ["\t".join(("file", "tests", *KINDS, "all"))]
        files = {**dict(sorted(self.files.items())), "all": sum(self.files.values(), Counter())}
        for name, cost in files.items():
            minutes = [cost[kind] / 60 for kind in KINDS]
            lines.append("\t".join((name, str(cost["tests"]), *(f"{m:.1f}" for m in [*minutes, sum(minutes)]))))
        self.table.write_text("\n".join(lines) + "\n")


def pytest_addoption(parser):
    parser.addoption("--costs", type=Path, metavar="FILE", help="write the CPU minutes of every test file to FILE")
    parser.addoption("--guard", action="store_true", help=f"fail unmarked tests of more than {LIMIT} CPU seconds")


def pytest_configure(config):
    table, guards = config.getoption("--costs"), config.getoption("--guard")
    if table is not None or guards:
        config.pluginmanager.register(Costs(table, guards), "costs")
