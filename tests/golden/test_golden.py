"""Recorded runs: the same numbers bit for bit, the same log entries, events and files."""

import json
import math
from pathlib import Path

import pytest

from tests.golden.runs import RUNS, machine, observe, renamed

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "recorded.json").read_text())
NAMES = json.loads((HERE / "renames.json").read_text())


def close(got, wanted) -> bool:
    if isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(close, got, wanted))
    return got == wanted or (isinstance(got, float) and math.isclose(got, wanted, rel_tol=1e-4, abs_tol=1e-6))


@pytest.mark.full
@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_as_recorded(name, tmp_path):
    """On another processor or with another jaxlib the last bits differ: numbers are then compared to 1e-4."""
    found, wanted = observe(name, tmp_path / "run"), renamed(RECORDED["runs"][name], NAMES)
    assert found["events"] == wanted["events"]
    assert found["files"] == wanted["files"]
    assert [[*row] for row in found["log"]] == [[*row] for row in wanted["log"]]
    if machine() == RECORDED["machine"]:
        assert found == wanted
    for got, want in zip(found["log"], wanted["log"], strict=True):
        assert all(close(got[tag], want[tag]) for tag in want), (got, want)
