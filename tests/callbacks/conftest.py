from types import SimpleNamespace
from typing import Any

import pytest

from jaxtrain.callbacks.base import Callback
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.callbacks.recorder import Recorder
from jaxtrain.callbacks.run import Run


@pytest.fixture
def make_run(tmp_path):
    """A real Run around some callbacks, without a loop."""

    def make(*callbacks: Callback, restored: int | None = None, **changes: Any) -> Run:
        options: dict[str, Any] = dict(
            own_module=SimpleNamespace(), callbacks=Callbacks(callbacks), recorder=Recorder(10),
            config={"fit": {"validate_every": "10"}}, run_dir=tmp_path, max_steps=100, epoch_length=None,
            batch_size=4,
        )  # fmt: skip
        run = Run(**{**options, **changes})
        run.restored_step = restored
        run.step = restored or 0
        return run

    return make
