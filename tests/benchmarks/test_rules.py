"""benchmarks/rules.py: the arithmetic of its tables, rules that cannot run, and a run at a tiny size."""

import json
import math
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import rules

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rules.py"


def result(rule, own, reference, engine="reverse", temporary=2, far=0.5):
    """Measurements of a process; times in ms, memory in MiB."""
    seconds = {rule: [t / 1e3 for t in own], rules.REFERENCE: [t / 1e3 for t in reference]}
    memory = {"temporary_bytes": temporary * 2**20, "own_bytes": 3 * 2**19}
    return {"seconds": seconds, "far": far, "engine": engine, **memory}


def test_networks_that_are_not_measured_again_are_kept():
    def sections(*places, seconds):
        rows = {"drtrl": {name: result("drtrl", [seconds], [10.0]) for name in ("kept", "default")}}
        return {f"{place}: size": rules.section(rows) for place in places}

    earlier = {**sections("long, lru", "wide, lif", seconds=8.0), "Overview": []}
    found = rules.joined({**sections("wide, lru", "long, lru", seconds=5.0), "Overview": []}, earlier)
    assert list(found) == ["wide, lif: size", "wide, lru: size", "long, lru: size", "Overview"]
    assert found["Overview"][-1] == "| drtrl | 0.80 | 0.50 | 0.50 |"


def test_add_needs_a_result():
    command = [sys.executable, str(SCRIPT), "--add", "--small"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "--add needs --json with a file that exists" in found.stderr


def test_the_arithmetic_of_a_table():
    nan = math.nan
    rows = {
        "bptt": {
            "kept": result("bptt", [10.0, 11.0, 12.0], [10.0, 10.0, 10.0], engine="-", far=1e-7),
            "default": result("bptt", [12.0, 12.0, 12.0], [16.0, 12.0, 12.0], engine="-", far=1e-7),
        },
        "drtrl": {
            "kept": result("drtrl", [8.0, 9.0, 30.0], [10.0, 12.0, 20.0]),  # ratios 0.8, 0.75, 1.5
            "default": result("drtrl", [24.0, 24.0, 24.0], [12.0, 12.0, 12.0]),
            "trace": result("drtrl", [50.0, nan, 70.0], [10.0, 9.0, 10.0], engine="trace", temporary=64),
        },
        "eprop": {
            "kept": result("eprop", [9.0], [10.0]),
            "default": result("eprop", [9.0], [10.0]),
            "trace": {"reason": "took more than 600 s"},
        },
        "dni": {
            "kept": result("dni", [30.0], [10.0], engine="trace"),
            "default": result("dni", [30.0], [12.0], engine="trace"),
        },
        "uoro": {"kept": {"reason": "a train step needs 34 GB | and this machine has 16 GB"}},
    }
    head, _, bptt, drtrl, eprop, dni, uoro, _, kept, _, default = rules.section(rows)
    assert head == "| " + " | ".join(rules.HEAD) + " |"
    assert bptt == "| bptt | - | 11.0 (10.5 to 11.5) | 1.10 | 1.00 | 2.0 (1.5) | - | - |"
    assert drtrl == "| drtrl | reverse | 9.0 (8.5 to 19.5) | 0.80 | 2.00 | 2.0 (1.5) | 6.00 | 64.0 (1.5) |"
    assert eprop.endswith("| 0.90 | 0.90 | 2.0 (1.5) | took more than 600 s | - |")
    assert dni.endswith("| 3.00 | 2.50 | 2.0 (1.5) | same | - |")
    assert uoro == ("| uoro |  | cannot run: a train step needs 34 GB / and this machine has 16 GB |  |  |  |  |  |")
    assert kept == "BPTT by hand: 10.0 ms per step." and default == (
        "BPTT by hand, with the default allocator: 12.0 ms per step."
    )
    tables = {"long, gru": rules.section(rows), "wide, gru": rules.section({**rows, "dni": rows["uoro"]})}
    assert rules.overview(tables)[3:] == [
        "| drtrl | 0.80 | 0.80 |", "| eprop | 0.90 | 0.90 |", "| dni | 3.00 | - |", "| uoro | - | - |"
    ]  # fmt: skip
    assert rules.failures({"long, gru": rows}) == []


def test_a_gradient_that_differs_is_marked_and_a_failure():
    kept, trace = result("drtrl", [1.0], [1.0], far=0.5), result("drtrl", [1.0], [1.0], engine="trace", far=0.51)
    row = {"kept": kept, "default": kept, "trace": trace}
    assert rules.cells("drtrl", row)[1] == "reverse (**gradient differs**)"
    assert rules.failures({"copy, gru": {"drtrl": row}}) == ["copy, gru, drtrl"]
    assert not rules.differs("drtrl", {**row, "trace": {**trace, "far": 0.5005}})
    bptt = result("bptt", [1.0], [1.0], engine="-", far=0.01)
    assert rules.differs("bptt", {"kept": bptt, "default": bptt})
    assert rules.differs("drtrl", {"kept": {**kept, "far": math.nan}, "default": kept})


def test_the_processes_of_a_row(monkeypatch):
    calls = []

    def fresh(script, *argv, env, limit):
        calls.append((argv, {name for name in env if name.startswith("MALLOC")}, limit))
        return result(argv[0], [1.0], [1.0], engine="trace" if "--engine" in argv or argv[0] == "dni" else "reverse")

    monkeypatch.setattr(rules.common, "fresh", fresh)
    assert list(rules.measure("drtrl", ["drtrl"], {"A": "1"}, 60)) == ["kept", "default", "trace"]
    (_, kept, limit), (_, default, _), (argv, trace, _) = calls
    assert kept == trace == set(rules.ALLOCATOR) and default == set() and limit == 60
    assert argv == ("drtrl", "--alone", "--engine", "trace")
    assert list(rules.measure("dni", ["dni"], {}, 60)) == ["kept", "default"], "dni has no other engine"


@pytest.mark.parametrize(
    "error, expected",
    [
        (
            RuntimeError("rules.py ended with exit code -9"),
            {"reason": "killed, probably out of memory", "failed": False},
        ),
        (RuntimeError("rules.py ended with exit code 1"), {"reason": "exit code 1", "failed": True}),
        (subprocess.TimeoutExpired("rules.py", 60), {"reason": "took more than 60 s"}),
    ],
)
def test_a_process_without_a_result_has_a_reason(monkeypatch, error, expected):
    def fresh(*argv, **options):
        raise error

    monkeypatch.setattr(rules.common, "fresh", fresh)
    row = rules.measure("drtrl", [], {}, 60)
    assert row == {"kept": expected}
    assert bool(rules.failures({"copy, gru": {"drtrl": row}})) == expected.get("failed", False)


def options(rule, setting="copy", network="gru"):
    return Namespace(
        settings=[setting], networks=[network], rules=[rule], engine=None, rounds=3, turn=1e-3, devices=1, small=True
    )


@pytest.mark.full
def test_a_process_measures_a_rule_and_the_reference():
    measured = rules.alone(options("bptt"))
    assert {name: len(seconds) for name, seconds in measured["seconds"].items()} == {rules.REFERENCE: 3, "bptt": 3}
    assert measured["far"] < 1e-5 and measured["temporary_bytes"] > 0 and measured["engine"] == "-"
    assert not rules.differs("bptt", {"kept": measured})


@pytest.mark.full
def test_a_rule_that_refuses_a_network_gives_its_reason():
    assert "window=10" in rules.alone(options("drtrl-window-10", "wide", "lif"))["reason"]


@pytest.mark.full
def test_a_rule_beyond_memory_does_not_start(monkeypatch):
    from jaxtrain.utils import memory

    monkeypatch.setattr(memory, "available", lambda: 1000)
    monkeypatch.setattr(rules.common, "by_turns", None)
    assert "needs" in rules.alone(options("bptt"))["reason"]


@pytest.mark.long
@pytest.mark.parametrize("network", ["alif", "lru"])
def test_a_run_at_a_tiny_size(tmp_path, network):
    path = tmp_path / "rules.json"
    chosen = ["bptt", "drtrl", "three_factor"]
    argv = ["--small", "--settings", "wide", "copy", "--networks", network, "--rules", *chosen, "--rounds", "3"]
    argv += ["--turn", "0.001", "--json", path]
    done = subprocess.run([sys.executable, SCRIPT, *map(str, argv)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_text())
    ((title, table),) = [(title, lines) for title, lines in saved["sections"].items() if title != "Overview"]
    assert title.startswith(f"wide, {network}: inputs 6, hidden 5") and f"### {title}" in done.stdout
    rows = [line.strip("| ").split(" | ") for line in table[2 : 2 + len(chosen)]]
    assert [row[0] for row in rows] == chosen
    for rule, _, _, ratio, *_ in rows:
        seconds = saved["numbers"][f"wide, {network}"][rule]["kept"]["seconds"]
        ratios = [own / of for own, of in zip(seconds[rule], seconds[rules.REFERENCE], strict=True)]
        assert float(ratio) == pytest.approx(statistics.median(ratios), abs=0.006)
