"""Programs that predict and learn one time step at a time, while data arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.objective import phases_of
from ..core.state import fold_in, restore_objects, set_key
from ..strategies.inputs import split_reset
from .binding import Binding, environ
from .collectives import Collectives
from .compilation import Compilation
from .steps import PREDICT, Packed, Steps


class Stepping:
    """Compiled programs of one binding: predict a time step, and learn from the last ``every`` time steps.

    Programs receive the data of the root key, because JAX passes a typed key through Python. Prediction has hidden
    states of its own: within an interval, those that the rule learns with stay at its beginning.

    Args:
        binding: The module under a strategy that carries its states from one batch to the next.
        train: The train step, ``(values, root, index, batch) -> (values, Packed)``.
        batch: The time steps of one update.
        time_step: A single time step, as a batch.
        values: Values of the States of the binding.
    """

    def __init__(self, binding: Binding, train: Callable, batch: Any, time_step: Any, values: dict[str, Any]):
        learner = binding.learner
        self.hidden_names = [f"learner/{name}" for name in learner.hidden()]
        self._read_names = [*binding.parameters, *(f"model/{name}" for name in binding.long_term)]
        self.every_step = jax.tree.leaves(batch)[0].shape[0] == 1
        """Whether there is an update at every time step, so that one program predicts and learns."""

        def predicted(root, index, batch):
            set_key(fold_in(root, PREDICT, index))
            phases = phases_of(binding.module, batch)
            first = jax.tree.map(lambda leaf: leaf[0], (phases.inputs, split_reset(phases)[1]))
            return learner.predict_step(*first)

        restore_objects(binding.objects)
        with environ(binding.module, fit=False):
            forward = Steps(binding, Collectives(1)).functional(predicted, jnp.int32(0), time_step)

        def predict(values, hidden, root, index, batch):
            new, y = forward({**values, **hidden}, jax.random.wrap_key_data(root), index, batch)
            return {name: new[name] for name in hidden}, y

        def learn(values, root, index, batch):
            return train(values, jax.random.wrap_key_data(root), index, batch)

        def predict_and_learn(values, root, index, batch):
            y = predict({n: values[n] for n in self._read_names}, self.hidden(values), root, index, batch)[1]
            values, packed = learn(values, root, index, batch)
            return values, packed, y

        root, index = jax.random.key_data(jax.random.key(0)), np.int32(0)
        self._predict = Compilation(
            jax.jit(predict).lower(self._read(values), self.hidden(values), root, index, time_step)
        )
        last = predict_and_learn if self.every_step else learn
        self._learn = Compilation(jax.jit(last, donate_argnums=0).lower(values, root, index, batch))

    def hidden(self, values: dict[str, Any]) -> dict[str, Any]:
        """The hidden states among the values of a binding."""
        return {name: values[name] for name in self.hidden_names}

    def _read(self, values: dict[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in self._read_names}

    def predict(self, values: Any, hidden: Any, root: Any, index: int, time_step: Any) -> tuple[dict[str, Any], Any]:
        """The next hidden states, and the outputs of ``predict_step``, ``(B, ...)``."""
        return self._predict.program(self._read(values), hidden, root, np.int32(index), time_step)

    def learn(self, values: Any, root: Any, index: int, batch: Any) -> tuple[dict[str, Any], Packed, Any]:
        """The next values (the given ones are donated), what a train step returns, and the outputs of the time step.

        The outputs are None unless there is an update at every time step.
        """
        values, packed, *outputs = self._learn.program(values, root, np.int32(index), batch)
        return values, packed, outputs[0] if outputs else None
