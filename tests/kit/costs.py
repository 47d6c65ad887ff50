"""What each test costs in CPU seconds, by kind; `pytest --costs FILE` writes one line per test."""

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

COMPILING = "/jax/core/compile/"  # tracing, lowering and the backend's compilation


@dataclass
class Cost:
    """CPU seconds of one test; ``compile`` counts seconds of the clock, which one thread spends."""

    compile: float = 0.0
    run: float = 0.0
    child: float = 0.0
    python: float = 0.0


@dataclass
class Meter:
    """Reads the clocks of this process; tracing within tracing counts once."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def heard(self, name: str, seconds: float, **_) -> None:
        if name.startswith(COMPILING):
            end = time.monotonic()
            while self.spans and self.spans[-1][0] >= end - seconds:
                self.spans.pop()
            self.spans.append((end - seconds, end))

    def start(self) -> None:
        self.spans.clear()
        self.cpu, self.children = time.process_time(), _children()

    def read(self) -> Cost:
        cpu = time.process_time() - self.cpu
        compiling = min(sum(end - begin for begin, end in self.spans), cpu)
        cost = Cost(compile=compiling, child=_children() - self.children)
        if self.spans:
            cost.run = cpu - compiling
        else:
            cost.python = cpu
        return cost


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Costs:
    """Notes the cost of every test in its teardown report; the controller writes them."""

    def __init__(self, path: Path | None):
        self.path, self.meter, self.lines = path, Meter(), []

    def pytest_sessionstart(self, session):
        import jax

        jax.monitoring.register_event_duration_secs_listener(self.meter.heard)

    def pytest_runtest_logstart(self, nodeid, location):
        self.meter.start()

    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown":
            item.user_properties.append(("cost", asdict(self.meter.read())))

    def pytest_runtest_logreport(self, report):
        costs = dict(report.user_properties)
        if report.when == "teardown" and "cost" in costs:
            self.lines.append({"test": report.nodeid, **costs["cost"]})

    def pytest_sessionfinish(self, session):
        if self.path is not None and not hasattr(session.config, "workerinput"):
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))


def pytest_addoption(parser):
    parser.addoption("--costs", type=Path, metavar="FILE", help="write the CPU seconds of every test to FILE")


def pytest_configure(config):
    if config.getoption("--costs") is not None or hasattr(config, "workerinput"):
        config.pluginmanager.register(Costs(config.getoption("--costs")), "costs")
