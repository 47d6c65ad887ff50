"""The online session: what a user calls while data arrives."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..callbacks.recorder import tag
from ..core.metrics import is_rate
from ..engine.nonfinite import class_range_advice, nonfinite_leaves
from ..engine.steps import ALL_FINITE, NONFINITE_INDEX, ZERO_GRADIENT, Packed
from ..errors import NonFiniteError
from ..utils.logging import log
from .online_saves import Saves
from .settings import FitSettings
from .time_steps import Stream, TimeSteps


class OnlineSession:
    """Predicts and learns one time step at a time. ``Fit.online`` opens it.

    Attributes:
        run_dir: The run directory, or None.
    """

    def __init__(self, settings: FitSettings, stream: Stream, time_steps: TimeSteps, saves: Saves):
        self._settings, self._stream, self._time_steps, self._saves = settings, stream, time_steps, saves
        self.run_dir = saves.run_dir
        self._packed: Packed | None = None
        self._valid = True
        """Whether the state is that of ``steps`` time steps: not within a step, and not after a nonfinite update."""

    @property
    def steps(self) -> int:
        """Number of time steps so far, including those before the session was resumed: the number of the next input."""
        return self._stream.steps

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last update (``train/loss``, ``train/grad_norm``, ``lr``); {} before the first one.

        They are fetched when they are read. A metric without a value, because no target was given, is left out.
        """
        if self._packed is None:
            return {}
        means = jax.tree.map(lambda leaf: np.asarray(leaf)[None], self._packed).unpack(None)
        del means[NONFINITE_INDEX], means[ZERO_GRADIENT]
        return {
            name if is_rate(name) else tag(name): float(mean.num[0] / mean.weight[0])
            for name, mean in means.items()
            if mean.weight[0]
        }

    def step(self, x: Any, target: Any = None, *, reset: Any = None) -> Any:
        """Predict one time step, and learn from it.

        The parameters change at every ``update_every``-th time step, after the prediction.

        Args:
            x: Inputs of the time step, ``(B, ...)``, in the shapes of the example.
            target: Targets, ``(B, ...)``. None if there are none: the time step then has weight 0, and hidden states
                and traces advance.
            reset: Bool ``(B,)``: sequences that begin with this time step, from initial hidden states and without
                traces. It requires an example with a reset.

        Returns:
            The outputs of ``Module.predict_step`` before the update, ``(B, ...)``, as numpy.

        Raises:
            ValueError: An array does not have the shape or type of the example.
            NonFiniteError: The update is not finite and ``nonfinite`` is "raise". The session is over.
            RuntimeError: The session is over.
        """
        time_step = self._time_steps.batch(x, target, reset)
        if not self._valid:
            again = "open another one" if self.run_dir is None else "open it again with resume='last'"
            raise RuntimeError(f"live.step: the session is over; {again}")
        self._valid = False
        y, packed, batch = self._stream.advance(time_step)
        self._valid = True
        if packed is None:
            y = jax.tree.map(np.asarray, y)
        else:
            self._packed = packed
            y, nonfinite = jax.tree.map(np.asarray, (y, packed.nonfinite))
            if nonfinite != ALL_FINITE:
                self._report_nonfinite(nonfinite, batch)
        if self._saves.due(self.steps):
            self._saves.save(self._stream)
        return y

    def predict(self, x: Any, *, reset: Any = None) -> Any:
        """Predict a time step without learning from it: states do not advance, and ``steps`` does not count it.

        Args:
            x: Inputs of the time step, ``(B, ...)``.
            reset: As for ``step``.

        Returns:
            What ``step`` would return, up to rounding.
        """
        return jax.tree.map(np.asarray, self._stream.predict(self._time_steps.batch(x, None, reset)))

    def save(self) -> bool:
        """Save now, and wait until the checkpoint is on disk.

        Returns:
            Whether it is on disk; False if the disk is full, which is logged.

        Raises:
            RuntimeError: There is no run directory, or the session is over.
            SaveFailed: The save failed for another reason than a full disk.
        """
        if self.run_dir is None:
            raise RuntimeError("live.save: there is no run directory; open the session of a Fit(run_dir=...)")
        if not self._valid:
            raise RuntimeError("live.save: the session is over, and its last save stays")
        self._saves.save(self._stream)
        return self._saves.wait()

    def _report_nonfinite(self, index: Any, batch: Any) -> None:
        stream, policy, name = self._stream, self._settings.nonfinite, self._stream.program.bad_name(int(index))
        time, text = stream.every - 1, f"{name} is not finite, but x and target are"
        advice = class_range_advice(batch) * (name == "train/loss") + "lower the learning rate, clip gradients"
        for path, bad in reversed(list(nonfinite_leaves(batch))):  # the first one counts
            time, advice = int(np.argwhere(bad)[0, 0]), "check inputs before live.step"
            part = {"inputs": "x", "targets": "target"}[path[0].name] + jax.tree_util.keystr(path[1:])
            text = f"{part} is NaN or infinite in {bad[time].sum()} of {bad[time].size} values; {name} is not finite"
        text = f"live.step number {stream.steps - stream.every + time}: {text}"
        if policy == "raise":
            self._valid = False
            raise NonFiniteError(f"{text}; {advice}, or use Fit(nonfinite='skip')")
        log.warning("%s%s", text, "; skipped" if policy == "skip" else "")

    def end(self) -> None:
        """Save the last state, and return it to the module."""
        finite = self._packed is None or self._settings.nonfinite != "raise" or self._packed.nonfinite == ALL_FINITE
        valid, self._valid = self._valid and bool(finite), False  # an interrupt may come before the check of a step
        if valid:
            self._stream.program.write_back()
        if valid and self.run_dir is not None:
            self._saves.save(self._stream)
        self._saves.end(self.steps, valid)
