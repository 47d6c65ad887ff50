"""The tiers of tests, and the record of when each long test last passed.

A test without a marker is quick and runs in `make test`. `full` tests also need `make test-all`, and `long` tests
`make test-long`. `cover` thins out a product of parameters: a few combinations in which every value occurs stay in the
tier of the test, and the others become long. `longer(*values)` makes some values of a parameter long.

`--long-record FILE` keeps the day on which each long test last passed, and its seconds. `--long-budget SECONDS` selects
the long tests that passed longest ago, as many as fit.
"""

import collections
import datetime
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

MARKERS = {
    "quick": "run by `make test`, although it may take longer than an unmarked test",
    "full": "left out by `make test`",
    "long": "run by `make test-long` only: full products, fault walks, fuzzers, leak tests, training to a score",
}
COVER = "make all combinations of the parameters long, except a few in which every value occurs"
UNKNOWN = ("0000-00-00", 60.0)
"""Day and seconds of a test that has no entry."""


def of(item: pytest.Item) -> str | None:
    """ "quick", "full" or "long"; None without a marker. In a file whose `pytestmark` is full, a test may be long."""
    return next((name for name in reversed(MARKERS) if item.get_closest_marker(name)), None)


def longer(*values: Any) -> list[Any]:
    """Values of a parameter, or tuples of values of several, that are left to `make test-long`."""
    each = (value if isinstance(value, tuple) else (value,) for value in values)
    return [pytest.param(*value, marks=pytest.mark.long) for value in each]


def cover(items: list[Any]) -> list[Any]:
    """A few of the items of one test, in which every value of every parameter occurs, and evenly often."""
    values = {item: [(name, id(value)) for name, value in item.callspec.params.items()] for item in items}
    missing = {value for own in values.values() for value in own}
    used: collections.Counter[Any] = collections.Counter()
    chosen = []
    while missing:
        gain = {item: (len(missing & {*own}), -sum(used[value] for value in own)) for item, own in values.items()}
        best = max(items, key=lambda item: gain[item])
        chosen.append(best)
        missing -= {*values[best]}
        used.update(values[best])
    return chosen


class Record:
    """When each long test last passed, in a file of lines `day, seconds, test`."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, tuple[str, float]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                day, seconds, test = line.split("\t")
                self.entries[test] = day, float(seconds)
        self.seconds: dict[str, float] = {}

    def chosen(self, items: list[pytest.Item], budget: float, today: str) -> list[pytest.Item]:
        """The items that passed longest ago. The order within a day changes daily, so that all get their turn."""

        def age(item: pytest.Item):
            return self.entries.get(item.nodeid, UNKNOWN)[0], hashlib.sha256((today + item.nodeid).encode()).digest()

        kept = set()
        for item in sorted(items, key=age):
            seconds = self.entries.get(item.nodeid, UNKNOWN)[1]
            if seconds <= budget:
                kept.add(item)
                budget -= seconds
        return [item for item in items if item in kept]

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        done = report.skipped or (report.when == "call" and report.passed)
        if done and "long" in report.keywords:
            self.entries[report.nodeid] = _today(), 0.0

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workerinput"):
            return
        for test, (day, seconds) in self.entries.items():
            self.entries[test] = day, self.seconds.get(test, seconds)
        kept = sorted((test, entry) for test, entry in self.entries.items() if _exists(test))
        lines = [f"{day}\t{seconds:.0f}\t{test}\n" for test, (day, seconds) in kept]
        self.path.write_text("".join(lines))


def _exists(test: str) -> bool:
    path, *_, function = test.split("::")
    return Path(path).exists() and f"def {function.partition('[')[0]}(" in Path(path).read_text()


def _today() -> str:
    return os.environ["TESTS_TODAY"]


def pytest_addoption(parser):
    parser.addoption("--long-record", type=Path, metavar="FILE", help="when long tests passed last; is kept up to date")
    parser.addoption("--long-budget", type=float, metavar="SECONDS", help="run as many long tests, the oldest first")


def pytest_configure(config):
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.addinivalue_line("markers", f"cover: {COVER}")
    # In the environment, so that all workers choose the same tests around midnight.
    os.environ.setdefault("TESTS_TODAY", datetime.date.today().isoformat())
    if (path := config.getoption("--long-record")) is not None:
        config.pluginmanager.register(Record(path), "long-record")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config, items):
    products = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("cover"):
            products[item.nodeid.partition("[")[0]].append(item)
    for product in products.values():
        few = cover([item for item in product if of(item) != "long"])
        for item in product:
            if item not in few:
                item.add_marker("long")
    result = yield  # which deselects by -m
    _keep_within_budget(config, items)
    return result


def _keep_within_budget(config, items):
    budget = config.getoption("--long-budget")
    if budget is None:
        return
    record = config.pluginmanager.get_plugin("long-record") or pytest.fail("--long-budget needs --long-record")
    kept = record.chosen([item for item in items if of(item) == "long"], budget, _today())
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
