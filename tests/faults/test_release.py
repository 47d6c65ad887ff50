"""Runs of earlier releases, kept in ``fixtures``, resume; a run of a later release gives an error with advice."""

import json
import shutil

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.store import Store
from jaxtrain.utils.digests import json_digest
from tests.faults.release import CUT, FIXTURES, WHOLE
from tests.faults.tiny import Noisy, fit
from tests.small import lines, rows, scalars

RELEASES = sorted(path.name for path in FIXTURES.iterdir())


def test_this_release_has_a_fixture():
    assert jt.__version__ in RELEASES, "python -m tests.faults.release makes it"


@pytest.mark.parametrize("release", RELEASES)
def test_a_run_of_an_earlier_release_goes_on(tmp_path, release):
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / release / "run", run)
    before = Store(run / "checkpoints", read_only=True).restore(CUT)  # every leaf against its digest
    loaded = jt.load(run, Noisy())
    assert {n: s.value.tobytes() for n, s in loaded.model.states().items() if n == ("w",)} == {
        ("w",): before.params["w"].tobytes()
    }
    result = fit(run, WHOLE).run(Noisy(), lines(), resume="last")
    assert (result.status, result.step) == ("finished", WHOLE)
    expected = json.loads((FIXTURES / release / "expected.json").read_text())["rows"]
    found = rows(run)
    assert [row["step"] for row in found] == [row["step"] for row in expected] == list(range(1, WHOLE + 1))
    for one, other in zip(found, expected, strict=True):  # another processor may round otherwise
        assert one.keys() == other.keys()
        del one["lr"], other["lr"]  # 0.1.0 logged the rate of the previous update
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-4)
    assert len(scalars(run)["train/loss"]) == WHOLE, "the history is shown again"


def test_a_checkpoint_of_a_later_release_says_what_to_do(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / jt.__version__ / "run", run)
    path = run / "checkpoints" / f"{CUT:08d}" / "meta" / "metadata"
    found = json.loads(path.read_text())
    found |= {"schema": 3, "versions": {"jaxtrain": "9.9"}}
    found["digest"] = json_digest({key: value for key, value in found.items() if key != "digest"})
    path.write_text(json.dumps(found))
    message = (
        r"step 4 has schema 3, and this jaxtrain reads 2: it was written by jaxtrain 9.9; install that one, or start"
    )
    for resume in ("last", "best", CUT):
        with pytest.raises(ValueError, match=message):
            fit(run, WHOLE).run(Noisy(), lines(), resume=resume)
    with pytest.raises(ValueError, match=message):
        jt.load(run, Noisy())
