"""Run twice by test_processes.py. It initializes jax.distributed itself, as a user's program does.

python -m tests.two_processes PORT PROCESS FOLDER
"""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.distributed import ending, processes
from tests.small import Linear, line

SETTINGS = {"max_epochs": 2, "chunk": 3, "log_every": 2}


class Lines(jt.DataModule):
    """``length`` batches per epoch, whose numbers may differ between processes (``shift``)."""

    def __init__(self, length: int = 4, shift: float = 0.0, val: bool = True):
        self._length, self._shift, self._val = length, shift, val

    def identity(self):
        return {"class": "Lines"}

    def train_data(self):
        return self

    def val_data(self):
        return [line(9), line(8)] if self._val else None

    def predict_data(self):
        return [line(9)[0]]

    def __len__(self):
        return self._length

    def batch(self, step):
        return jax.tree.map(lambda leaf: leaf + self._shift, line(step))


class Watches(jt.Callback):
    """A logger, so it runs in the first process only; its events create boundaries, and it requests saves."""

    rank = "record"

    def on_epoch_end(self, run):
        """It reads the model while the other process continues."""
        params = run.params()
        np.testing.assert_array_equal(run.module.model.w.value, params["w"])
        x, y = line(9)
        loss = np.square(run.predict([x]) - y).mean()
        np.testing.assert_allclose(run.validate([(x, y)])["val/loss"], loss, rtol=1e-5)

    def on_log(self, run, row):
        if row["step"] == 2:
            run.save()


class Asks(jt.Callback):
    def on_chunk_end(self, run, metrics):
        if processes.index() == 1:
            run.save()  # the first process decides
            run.stop("the other one")

    def state(self):
        return {"array": np.arange(3)}

    def load_state(self, state):
        np.testing.assert_array_equal(state["array"], np.arange(3))


class Odd(jt.Callback):
    def on_chunk_end(self, run, metrics):
        run.set_task(level=np.int64(3))


def fit(folder: Path | None, *callbacks: jt.Callback, **settings) -> jt.Fit:
    return jt.Fit("bptt", run_dir=folder, callbacks=callbacks, **{**SETTINGS, **settings})


def main(folder: Path) -> int:
    rank, module = processes.index(), Linear()
    first = fit(folder / "run", Watches(), Asks(), jt.Checkpoint(every=3, keep_last=9))
    config = {"sizes": (1, 2), "where": Path("x"), "nothing": float("nan")}
    result = first.run(module, Lines(), config=config)
    assert (result.status, result.step, result.exit_code) == ("finished", 8, 0)

    # Each process reads independently.
    if rank == 0:
        np.testing.assert_allclose(first.validate(module, Lines())["val/loss"], result.metrics["val/loss"], rtol=1e-5)
    else:
        jt.load(folder / "run", Linear())
        assert first.predict(module, Lines()).shape[1] == line(9)[0].shape[1]

    # A caught error does not affect later runs.
    with pytest.raises((FileExistsError, processes.ProcessError), match="holds a run"):
        fit(folder / "run").run(Linear(), Lines())
    again = fit(folder / "run", Watches(), Asks(), jt.Checkpoint(every=3, keep_last=9), max_epochs=3)
    assert again.run(Linear(), Lines(), resume="last", config=config).step == 12
    fork = fit(folder / "run", Watches(), max_epochs=3).run(Linear(), Lines(), resume=8, config=config)
    assert fork.run_dir is not None and fork.run_dir.name == "run-from-8" and fork.step == 12

    # Differences that would make the processes diverge are refused in both.
    for data, what in ((Lines(4 + rank), "data.epoch: 4"), (Lines(shift=rank), "data.first batch: "),
                       (Lines(val=rank == 0), "val")):  # fmt: skip
        with pytest.raises((ValueError, processes.ProcessError), match=f"the processes disagree: {what}"):
            fit(None).run(Linear(), data)
    with pytest.raises(
        (ValueError, processes.ProcessError), match="the processes disagree: dry run: False in process 0"
    ):
        fit(None).run(Linear(), Lines(), dry_run=rank == 1)
    with pytest.raises((TypeError, processes.ProcessError), match="what callbacks ask for at step 3 is not JSON"):
        fit(None, Odd()).run(Linear(), Lines())

    with pytest.raises(jt.errors.NonFiniteError, match="^step 1: "):
        fit(None).run(Linear(), Lines(shift=np.nan))
    print("fine")
    return 0


if __name__ == "__main__":
    port, rank, folder = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank), cluster_detection_method="deactivate",
                               heartbeat_timeout_seconds=20)  # fmt: skip
    sys.exit(ending.run(lambda: main(Path(folder))))
