"""What a ``Fit`` reads of a module beside metrics: predictions, generated sequences and recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.module import Module
from ..core.ownership import alone, step_by_step
from ..data.datamodule import DataModule
from .generate import generating, unpadded
from .predict import Outputs, each_batch, in_layout, joined
from .reader import PREDICTIONS
from .record import Recording, recording


class ReadsOutputs:
    """The methods of ``Fit`` that run a module without a loss. Compiled programs are kept as long as the module exists.

    A call compiles nothing for a shape of batch that an earlier call had.
    """

    _read: Callable[..., tuple[Any, Iterator[Any], bool | None]]

    @alone("Fit.predict")
    def predict(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> Any:
        """Compute ``predict_step`` over the learning phase of all batches.

        Args:
            module: The module.
            data: A DataModule (its ``predict_data`` is used), or batches of any number of sequences. Targets are not
                needed.
            checkpoint: As in ``validate``.
            batch_first: Layout of bare batches, as in ``run``.

        Returns:
            The outputs, joined along the sequences, in the layout of the data: ``(T_l, N, ...)``, or ``(N, T_l, ...)``
            for batch-first data. If the sequences differ in length, a list with the outputs ``(T_i, ...)`` of each.
            For a data set of ``jaxtrain.datasets``, the outputs are in its order, without padding.
        """
        reader, batches, layout = self._read(module, data, "predict", checkpoint, batch_first, PREDICTIONS)
        return joined(each_batch(reader, batches, layout), layout)

    def predict_batches(
        self, module: Module, data: Any, *, checkpoint: str | int | Path | None = None, batch_first: bool | None = None
    ) -> Iterator[Outputs]:
        """Predict one batch at a time, for outputs that do not fit into memory.

        The next batch is dispatched before the outputs of this one are handed over. All batches are predicted with the
        values that the module has now.

        Args:
            module: The module.
            data: As in ``predict``, and also ``checkpoint`` and ``batch_first``.
            checkpoint: As in ``validate``.
            batch_first: Layout of bare batches, as in ``run``.

        Returns:
            An iterator over batches, in the order in which the data has them. Each item has ``values`` (the outputs of
            ``predict_step``, ``(T_l, B, ...)`` or ``(B, T_l, ...)``), ``rows`` (the numbers of its sequences, ``(B,)``)
            and ``lengths`` (their time steps without padding, ``(B,)``). Sequences that only fill a batch are left out.

        Example::

            on_disk = np.lib.format.open_memmap("outputs.npy", "w+", "float32", (1, 8, 2))  # (T_l, N, ...)
            for batch in fit.predict_batches(module, data):
                on_disk[:, batch.rows] = batch.values
        """
        with alone("Fit.predict_batches"):
            reader, batches, layout = self._read(module, data, "predict", checkpoint, batch_first, PREDICTIONS)
        each = (in_layout(outputs, layout) for outputs in each_batch(reader, batches, layout))
        return step_by_step(each, "Fit.predict_batches")

    @alone("Fit.generate")
    def generate(
        self,
        module: Module,
        prompt: Any,
        steps: int,
        *,
        sample: Callable[[Any, Any], Any] | None = None,
        seed: int | None = None,
        checkpoint: str | int | Path | None = None,
        batch_first: bool | None = None,
    ) -> Any:
        """Run a module on a prompt, and then freely: each further input is made of the output before it.

        Args:
            module: The module.
            prompt: One batch of inputs, as a batch of ``predict``; or a DataModule, whose ``predict_data`` has prompts
                without padding in time, and whose ``encode`` is applied.
            steps: Number of inputs to generate, at least 1.
            sample: ``sample(output, key)`` returns the next input, ``(B, ...)`` (before ``encode``), of what
                ``predict_step`` returned. It is traced. None: the output itself, for example of a regression. A
                character model may use ``lambda logits, key: jax.nn.one_hot(jax.random.categorical(key, logits), n)``.
            seed: Seed of the keys and of random numbers in the model; None: the seed of this ``Fit``.
            checkpoint: As in ``validate``.
            batch_first: Layout of a bare prompt, as in ``run``.

        Returns:
            The generated inputs, which continue the prompt, in its layout: ``(steps, B, ...)`` or ``(B, steps, ...)``.
            The first of them is made of the output at the prompt's last time step.

        Raises:
            ValueError: ``steps`` is less than 1, or ``sample`` returns something unlike an input.
            DataError: Prompts of a data set differ in length.
        """
        what = generating(steps, sample, seed)
        data = prompt if isinstance(prompt, DataModule) else [prompt]
        reader, batches, layout = self._read(module, data, "predict", checkpoint, batch_first, what, seed)
        return joined(each_batch(reader, map(unpadded, batches), layout), layout)

    @alone("Fit.record")
    def record(
        self,
        module: Module,
        data: Any,
        states: Sequence[str] | None = None,
        *,
        checkpoint: str | int | Path | None = None,
        batch_first: bool | None = None,
    ) -> Recording | list[Recording]:
        """Record hidden states, spikes and outputs over the warm-up and the learning phase of all batches.

        Args:
            module: The module.
            data: As in ``predict``.
            states: Dotted names of hidden states (``"rnn.h"``), of the spikes of neurons with ``get_spike``
                (``"neurons.spike"``), and ``"output"``, what the model returned. None records all of them.
            checkpoint: As in ``validate``.
            batch_first: Layout of bare batches, as in ``run``.

        Returns:
            A dict of numpy arrays ``(T_w + T_l, N, ...)``, or ``(N, T_w + T_l, ...)`` for batch-first data: the values
            after each time step. A state with a physical unit is given as numbers in that unit, ``units[name]``. If the
            sequences differ in length, a list with a dict of arrays ``(T_i, ...)`` for each. As in ``predict``, the
            sequences of a data set are in its order, without padding.

        Raises:
            ValueError: The model has no such state; the message lists those that it has.
        """
        reader, batches, layout = self._read(module, data, "predict", checkpoint, batch_first, recording(states))
        found = joined(each_batch(reader, batches, layout), layout)
        return [Recording.of(each) for each in found] if isinstance(found, list) else Recording.of(found)
