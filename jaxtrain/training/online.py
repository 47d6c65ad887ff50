"""Opens an online session: checks what it needs, and compiles its programs before the first time step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import numpy as np

from ..callbacks.base import Callback
from ..callbacks.checkpoint import DEFAULT, Checkpoint
from ..callbacks.dispatch import Callbacks
from ..checkpoint.comparison import refuse_differences as refuse
from ..checkpoint.load import build, require_module
from ..checkpoint.locate import Origin, open_run
from ..core.module import Module
from ..core.ownership import alone, refuse_in_use, under_way
from ..core.state import flatten, parameters, signature, states_of
from ..data.datamodule import DataModule, as_data
from ..engine.program import Program
from ..strategies import ThreeFactor
from ..strategies.specs.base import ScheduledStrategy
from ..utils.logging import log
from .control import one_process
from .live import View
from .online_saves import Saves
from .online_session import OnlineSession
from .prepare import check_resumable
from .reader import What
from .run_config import run_config
from .settings import FitSettings
from .time_steps import Stream, TimeSteps

if TYPE_CHECKING:
    from .fit import Fit


class _Arrivals(DataModule):
    """Data that arrives during a session, as a description of it."""

    batch_first = False

    def __init__(self, time_steps: TimeSteps):
        super().__init__()
        self._identity = {"class": "Fit.online", **time_steps.identity}

    def identity(self) -> dict[str, Any]:
        return self._identity


class _Held:
    """The run in progress that other entry points see: the session holds its module."""

    batch_first = False

    def __init__(self, stream: Stream, checkpoint: Checkpoint | None):
        self._stream, self._checkpoint = stream, checkpoint

    def trains(self, module: Any) -> bool:
        return module is self._stream.program.module

    def shares(self, module: Any) -> bool:
        model = getattr(module, "model", None)
        if not isinstance(model, brainstate.nn.Module):
            return False
        return not self._stream.program.state_ids.isdisjoint(id(state) for state in states_of(model).values())

    def uses(self, callback: Any) -> bool:
        return callback is self._checkpoint

    def view(self, source: Any, encode: Any, what: What, seed: int | None) -> View:
        program = self._stream.program
        return View(program, program.values, encode or program.objective.encode, what, seed, one_device=False)

    def describe(self) -> str:
        return (
            f"an online session, at time step {self._stream.steps}, trains {type(self._stream.program.module).__name__}"
        )


@contextmanager
def online(
    fit: Fit,
    module: Module,
    example: Any,
    *,
    resume: str | int | Path = "never",
    config: dict[str, Any] | None = None,
) -> Iterator[OnlineSession]:
    """Open a session that predicts and learns one time step at a time, as data arrives.

    It is a context: enter it with ``with``, or with ``ExitStack.enter_context`` in a notebook. At its end the state is
    saved, if there is a run directory, and the module receives the values. Strategy, clip, seed, nonfinite, run_dir and
    the options every and keep_last of a ``Checkpoint`` are those of the ``Fit``. Hidden states and traces always
    continue from one time step to the next.

    Args:
        fit: The ``Fit``. Its strategy needs a number for ``update_every``.
        module: The module to train.
        example: ``(x, target)`` of one time step, each ``(B, ...)``; ``(x, target, reset)`` if sequences will be reset.
            Only shapes and types count, unless the strategy is "dni", which fits its synthesiser on it.
        resume: As for ``Fit.run``. "last" continues at the last save; ``live.steps`` is the number of the next input.
        config: A JSON dict that is stored in config.json.

    Returns:
        The session.

    Raises:
        ValueError: A setting of the ``Fit``, the module, the example or ``resume`` does not fit.
        RuntimeError: A run or another session trains this module.

    Example::

        fit = jaxtrain.Fit(jaxtrain.DRTRL(update_every=1), run_dir="runs/live")
        with fit.online(module, (x, target), resume="last") as live:
            y = live.step(x, target)
    """
    given, loggers = fit._with_defaults.args[:2]
    settings = _session_settings(fit.settings, given, loggers)
    with ExitStack() as stack:
        with alone("Fit.online"):
            refuse_in_use(module, "Fit.online", settings.callbacks)
            origin = stack.enter_context(open_run(settings.run_dir, resume, write=True))
            time_steps = TimeSteps(example)
            data = as_data(_Arrivals(time_steps))
            stream, stored = _prepare(settings, module, time_steps, data, origin, config)
            saves = Saves(origin.run_dir, settings.checkpoint, stored)
            stack.callback(saves.close)
            fit._latest = origin.run_dir
            fit._readers.trained(module, data, None)
            stack.enter_context(under_way(_Held(stream, settings.checkpoint)))
            session = OnlineSession(settings, stream, time_steps, saves)
        stack.callback(session.end)
        yield session


def _session_settings(settings: FitSettings, callbacks: Iterable[Callback], loggers: Any) -> FitSettings:
    """The settings of a session.

    Raises:
        ValueError: A setting has no meaning in a session.
    """
    strategy, name = settings.strategy, settings.strategy.name
    if isinstance(strategy, ThreeFactor):
        raise ValueError(f"Fit.online: strategy {name!r} learns from a reward, and a session has none: use 'drtrl'")
    if not isinstance(strategy, ScheduledStrategy):
        raise ValueError(
            f"Fit.online: strategy {name!r} needs whole sequences; use jaxtrain.DRTRL(update_every=1) or "
            "jaxtrain.TBPTT(window=10, update_every=10)"
        )
    if strategy.update_every == "sequence":
        raise ValueError(
            f"Fit.online: strategy {name!r} has update_every='sequence', and a session has no end of a sequence; use "
            f"jaxtrain.{type(strategy).__name__}(update_every={getattr(strategy, 'window', 1)})"
        )
    of_run = ("max_steps", "max_epochs", "max_time", "validate_every", "seeds")
    if unfit := [option for option in of_run if getattr(settings, option) is not None]:
        raise ValueError(f"Fit.online: leave {unfit[0]} out; a session trains one seed, without a budget or validation")
    if settings.accumulate > 1:
        raise ValueError("Fit.online: leave accumulate out, and choose update_every of the strategy")
    if settings.devices not in (1, "auto") or not one_process():
        raise ValueError("Fit.online: a session runs on one device, in one process; leave devices out")
    other = [one for one in callbacks if not isinstance(one, Checkpoint)]
    other += [] if isinstance(loggers, str) else list(loggers)
    if other:
        raise ValueError(
            f"Fit.online: a session calls no {type(other[0]).__name__}; leave it out, and read live.metrics instead"
        )
    checkpoint = settings.checkpoint
    if checkpoint is not None:
        _check_checkpoint(checkpoint)
    kept = Callbacks([] if checkpoint is None else [checkpoint])
    return replace(settings, strategy=replace(strategy, stateful=True), devices=1, callbacks=kept)


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise ValueError for options that need validations or epochs."""
    monitor, every = checkpoint.monitor, checkpoint.every
    if monitor is not None and (monitor.tag, checkpoint.mode, checkpoint.keep_best) != (DEFAULT[0], "min", DEFAULT[2]):
        raise ValueError("Fit.online: a session has no validation to rank checkpoints: Checkpoint(monitor=None)")
    if every is not None and every.unit == "epoch":
        raise ValueError(f"Checkpoint(every={every.shown()}): a session has no epochs; give steps or a time")


def _prepare(
    settings: FitSettings, module: Module, time_steps: TimeSteps, data: DataModule, origin: Origin, config: Any
) -> tuple[Stream, dict[str, Any]]:
    """Build the model, compile, and restore the checkpoint. Returns the stream, and the content of config.json."""
    require_module(module)
    described, initial = check_resumable(settings, module, data, origin)
    saved, every = origin.saved, settings.strategy.config()["update_every"]
    build(module, settings.seed)
    if saved is not None:
        values = {name: state.value for name, state in parameters(module.model).items()}
        refuse(saved.meta, {"model": signature(flatten(values))}, ("model",))
    batch = jax.tree.map(lambda leaf: np.repeat(leaf, every, axis=0), time_steps.example)
    settings = settings.resolved((origin.config or {}).get("auto") or {})
    program = Program(
        module, settings.strategy, data.encode, batch, seed=settings.seed, clip=settings.clip, accumulate=1,
        nonfinite=settings.nonfinite, chunk=1,
    )  # fmt: skip
    if program.phases.warmup is not None:
        raise ValueError(
            f"Fit.online: {type(module).__name__}.phases gives a warm-up; let it return the Phases that it receives"
        )
    stored = run_config(settings, program, described, initial, config, origin.parent)
    if saved is not None:
        params, train = program.signature()
        refuse(saved.meta, {"model": params, "optimizer": train}, ("model", "optimizer"))
        program.load(saved.params, saved.train, saved.meta["optimizer_settings"])
    for report in program.parameter_reports:
        if report.trains != "yes":
            log.info("%s  trained: %s; %s", report.name, report.trains, report.why)
    return Stream(program, time_steps.example, every, saved), stored
