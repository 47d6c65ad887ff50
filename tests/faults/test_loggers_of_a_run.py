"""A run whose loggers fail: it continues, reports it, and gives the same numbers."""

from dataclasses import dataclass

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import jaxtrain as jt
from tests.faults.tiny import Noisy, fit
from tests.small import Linear, Lines, lines, result_of, rows, steps_of


class Breaks(jt.Callback):
    """A logger that has had enough at step 3."""

    rank = "record"
    heard = 0

    def __init__(self, error):
        self.error = error

    def on_log(self, run, row):
        if row["step"] == 3 and self.error is not None:
            raise self.error
        self.heard += 1


@pytest.mark.full
def test_a_logger_that_raises_ends_no_run(tmp_path, caplog):
    whole = fit(tmp_path / "whole", 8).run(Noisy(), lines())
    broken = Breaks(KeyError("column"))
    result = fit(tmp_path / "run", 8, broken).run(Noisy(), lines())
    assert (result.status, result.exit_code, result.digest) == ("finished", 0, whole.digest)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") and broken.heard == 2
    assert caplog.text.count("Breaks.0.on_log failed and is disabled for the rest of this run: KeyError: 'column'") == 1
    again = fit(tmp_path / "again", 8, Breaks(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):  # its row waits to the end, and is lost there
        again.run(Noisy(), lines())
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")


def test_a_logger_that_was_dropped_is_named_in_the_result(tmp_path):
    fit(tmp_path / "run", 4, Breaks(KeyError("column"))).run(Noisy(), lines())
    assert result_of(tmp_path / "run")["dropped"] == {"Breaks.0": "KeyError: 'column'"}


def test_a_dataclass_is_a_callback_and_a_logger():
    @dataclass
    class Watch(jt.Callback):
        n: int = 0

        def on_chunk_end(self, run, metrics):
            self.n += 1

    @dataclass
    class Log(Watch):
        rank = "record"

    watch, log = Watch(), Log()
    result = jt.Fit("bptt", max_steps=4, chunk=1, callbacks=[watch, log]).run(Linear(), lines())
    assert (watch.n, log.n, result.summary["dropped"]) == (4, 4, {})


@pytest.mark.parametrize("rank", ["record", "decide"])
def test_a_probe_whose_logger_raises_ends_no_run(caplog, rank):
    class Probes(jt.Callback):
        probe_every = 1
        heard = 0

        def probe(self, module, learner, phases):
            return jnp.zeros(())

        def on_probe(self, run, values):
            self.heard += 1
            raise ValueError("no such column")

    Probes.rank = rank
    probes = Probes()
    fit = jt.Fit("bptt", max_steps=4, chunk=1, callbacks=[probes])
    if rank == "decide":
        with pytest.raises(ValueError, match="no such column"):
            fit.run(Linear(), lines())
        return
    assert fit.run(Linear(), lines()).summary["dropped"] == {"Probes.0": "ValueError: no such column"}
    assert probes.heard == 1 and caplog.text.count("Probes.0.on_probe failed") == 1


def test_a_state_that_cannot_be_told_ends_no_run(tmp_path, caplog):
    class Broken(jt.Callback):
        rank, step = "record", 0

        def on_chunk_end(self, run, metrics):
            self.step = run.step

        def state(self):  # of a run that is under way; before it begins, it is refused
            if self.step:
                raise ValueError("no such state")
            return {}

    assert fit(tmp_path / "run", 8, Broken()).run(Noisy(), lines()).saved
    assert caplog.text.count("Broken.0.state failed and is disabled for the rest of this run") == 1


@pytest.mark.parametrize("where", ["save", "_save_step_metadata"])
def test_a_save_that_fails_does_not_hide_the_error_of_the_data(tmp_path, monkeypatch, where):
    """At once or in the background: the data's error ends the run, and a note tells of the save."""

    def batch(step, given):
        if step == 5:
            monkeypatch.setattr(ocp.AsyncCheckpointer, where, fail)
            raise ValueError("batch 5 is torn")
        return given

    def fail(*args, **kwargs):
        raise RuntimeError("no such device")

    with pytest.raises(ValueError, match="batch 5 is torn") as caught:
        jt.Fit("bptt", max_steps=8, chunk=2, run_dir=tmp_path / "run").run(Linear(), jt.DataModule(Lines(batch)))
    note = caught.value.__notes__[-1]
    assert note.startswith("jaxtrain: step 5 is not saved: SaveFailed: ") and "no such device" in note
    assert steps_of(tmp_path / "run") == []
