from types import SimpleNamespace
from typing import Any

import pytest

from jaxtrain.callbacks.base import Callback
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.callbacks.recorder import Recorder
from jaxtrain.callbacks.run import Run

CONFIG = {
    "schema": 1,
    "config": {"lr": 0.01, "clip": None, "cell": {"kind": "gru", "sizes": [8, 8]}},
    "fit": {"max_steps": 100, "clip": None},
    "strategy": {"name": "drtrl", "update_every": 1},
    "data": {"class": "CopyDataModule", "seed": 0},
    "module": "CopyGRU",
    "command": ["python", "recipes/copy_gru.py", "--name", "a b"],
}


@pytest.fixture
def make_run(tmp_path):
    """A real Run around some callbacks, without a loop; files that a test leaves open, as a kill does, are closed."""
    made = []

    def make(*callbacks: Callback, restored: int | None = None, **changes: Any) -> Run:
        options: dict[str, Any] = dict(
            own_module=SimpleNamespace(), callbacks=Callbacks(callbacks), recorder=Recorder(10), config=CONFIG,
            run_dir=tmp_path, max_steps=100, epoch_length=None, batch_size=4,
        )  # fmt: skip
        run = Run(**{**options, **changes})
        run.restored_step = restored
        run.step = restored or 0
        made.append(run)
        return run

    yield make
    for run in made:
        run.callbacks("on_fit_end", run, "finished")
