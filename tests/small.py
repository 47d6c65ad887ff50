"""A run small enough for a test: the copying task at its smallest, callbacks that watch, and equality of two runs."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

import jaxtrain as jt
from jaxtrain.callbacks.base import EVENTS

WATCH = {name for name in EVENTS if name not in ("flush", "on_figure", "on_histogram")}
TIMED = ("time/", "throughput/", "memory/")


class GRUNet(brainstate.nn.Module):
    def __init__(self, hidden: int, noise: float, layers: int = 1):
        super().__init__()
        sizes = [10] + [hidden] * layers
        self.rnn = brainstate.nn.Sequential(*(braintrace.nn.GRUCell(i, hidden) for i in sizes[:-1]))
        self.readout = braintrace.nn.Linear(hidden, 10)
        self.noise = noise

    def update(self, x):
        h = self.rnn(x)
        if self.noise:
            h = h + self.noise * brainstate.random.randn(*h.shape)
        return self.readout(h)


class CopyGRU(jt.Module):
    """The copying task with a GRU; ``optimizer`` makes the optimizer."""

    def __init__(self, optimizer: Callable | None = None, hidden: int = 6, noise: float = 0.0):
        self.optimizer = optimizer or (lambda: braintools.optim.Adam(0.01))
        self.hidden, self.noise = hidden, noise

    def build(self):
        return GRUNet(self.hidden, self.noise)

    def learning_step(self, forward, x, y):
        logits = forward(x)
        loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, y)
        return loss, {"accuracy": logits.argmax(-1) == y}

    def configure_optimizer(self):
        return self.optimizer()


class Linear(jt.Module):
    """The cheapest module to compile: a leaky sum and a weight, on batches of ``line`` below."""

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.full((2, 3), 0.1, jnp.float32))
            self.b = brainstate.ParamState(jnp.zeros((3,), jnp.float32))

        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size or 1, 3), jnp.float32))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + x @ self.w.value + self.b.value
            return self.h.value

    def __init__(self, optimizer: Callable | None = None):
        self.optimizer = optimizer or (lambda: braintools.optim.SGD(0.05))

    def build(self):
        return self.Net()

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y).mean(-1)

    def configure_optimizer(self):
        return self.optimizer()


def line(step: int, time: int = 3, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Batch number ``step`` for ``Linear``."""
    rng = np.random.default_rng((7, step))
    return rng.normal(size=(time, batch, 2)).astype(np.float32), rng.normal(size=(time, batch, 3)).astype(np.float32)


class Lines:
    """Endless batches of ``line``, changed on the way by ``change(step, batch)``; with ``length`` an epoch."""

    def __init__(self, change: Callable | None = None):
        self.change = change

    def batch(self, step: int):
        return self.change(step, line(step)) if self.change else line(step)


class LinesOf(Lines):
    def __init__(self, length: int, change: Callable | None = None):
        super().__init__(change)
        self.length = length

    def __len__(self):
        return self.length


def lines(val: int = 2, **options: Any) -> jt.DataModule:
    return jt.DataModule(Lines(**options), LinesOf(val))


def copies(**changes: Any) -> jt.datasets.CopyDataModule:
    return jt.datasets.CopyDataModule(**{**dict(time_lag=3, num_digits=2, batch_size=4, val_batches=2), **changes})


class Trace(jt.Callback):
    """Every event as a text with its step, in order; several of different ranks may share one list."""

    def __init__(self, events: list[str], mark: str = ""):
        self.events, self.mark = events, mark


def _recorder(name: str):
    def event(self, run, *args):
        self.events.append(f"{self.mark}{name.removeprefix('on_')} {run.step}")

    return event


for _name in WATCH:
    setattr(Trace, _name, _recorder(_name))


class At(jt.Callback):
    """Calls ``action(run)`` in the hook ``event`` when the step is one of ``steps``."""

    rank = "decide"

    def __init__(self, event: str, steps: int | list[int], action: Callable):
        self.event, self.steps, self.action = event, [steps] if isinstance(steps, int) else steps, action

    def _call(self, event: str, run):
        if event == self.event and run.step in self.steps:
            self.action(run)

    def on_chunk_start(self, run):
        self._call("on_chunk_start", run)

    def on_chunk_end(self, run, metrics):
        self._call("on_chunk_end", run)

    def on_validation_end(self, run, metrics):
        self._call("on_validation_end", run)

    def on_log(self, run, row):
        if self.event == "on_log" and row["step"] in self.steps:
            self.action(run)

    def on_checkpoint(self, run, path):
        self._call("on_checkpoint", run)


def kill(*_: Any, number: int = signal.SIGTERM) -> None:
    if signal.getsignal(number) is not signal.SIG_DFL:  # the second signal would end the tests
        os.kill(os.getpid(), number)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what the clock says."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(text).items() if not k.startswith(TIMED)} for text in lines]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """``{tag: [(step, value)]}`` as TensorBoard's own reader shows them, without what the clock says."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(Path(run_dir) / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    shown = {}
    for tag in reader.Tags()["scalars"]:
        if not tag.startswith(TIMED):
            values = [(event.step, event.value) for event in reader.Scalars(tag)]
            shown[tag] = [(step, "nan" if math.isnan(value) else value) for step, value in values]
    return shown


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((Path(run_dir) / "result.json").read_text())


def steps_of(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (Path(run_dir) / "checkpoints").iterdir())


def leaves(module: jt.Module) -> dict[str, np.ndarray]:
    """The parameters of a module on the host, by name."""
    from jaxtrain.core.state import flatten, parameters

    values = {name: state.value for name, state in parameters(module.model).items()}
    return {name: np.asarray(leaf) for name, leaf in flatten(values).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def tree_bytes(run_dir: Path) -> dict[str, bytes]:
    """Every file below a directory but the lock."""
    files = [path for path in Path(run_dir).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in files}


def count_compiles() -> tuple[list[float], Callable[[], None]]:
    """A list that grows with every program that the backend compiles, and what ends that."""
    seen: list[float] = []

    def listener(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listener)
    return seen, lambda: jax.monitoring.unregister_event_duration_listener(listener)
