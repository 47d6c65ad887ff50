"""The values of a run on its devices: how they are saved, loaded, and copied into the module's model."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..core.state import flatten, restore_objects, signature, stack, unflatten, with_strong_types
from ..distributed import processes
from .binding import Binding
from .seeds import SeedAxis
from .sharding import Devices


class TrainState:
    """``values`` maps names to device values, placed as programs expect them; ``root`` is the root random key.

    Names are those of ``Binding.states``. With several seeds, every leaf has a leading axis of size S.

    Args:
        binding: The States that the values belong to.
        devices: Where the values are placed.
        seed: The seed of the run, or a tuple of the seeds that are trained side by side.
        initial: Initial values of each seed.
    """

    def __init__(self, binding: Binding, devices: Devices, seed: int | tuple[int, ...], initial: list[dict[str, Any]]):
        self.binding, self.devices = binding, devices
        self.seed_axis = SeedAxis(seed) if isinstance(seed, tuple) else None
        self.seed = seed[0] if isinstance(seed, tuple) else seed
        """The seed of the run; with several, the first."""
        if self.seed_axis is None:
            root, values = jax.random.key(self.seed), initial[0]
        else:
            root, values = self.seed_axis.root(), self.seed_axis.stacked(initial)
        self.root, self.values = devices.place(root), devices.place(values)

    @property
    def state_ids(self) -> set[int]:
        """Identities of the States that a step reads or writes."""
        return {id(state) for state in self.binding.states.values()}

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flat arrays of the parameters, and of everything else that is needed to continue training."""
        params, rest = self._split()
        return flatten(params), flatten(rest)

    def _split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        params = {name: self.values[name] for name in self.binding.parameters}
        return params, {**{n: value for n, value in self.values.items() if n not in params}, "rng": self.root}

    def signature(self) -> tuple[dict[str, str], dict[str, str]]:
        """Shapes and dtypes of ``state()``."""
        params, train = self.state()
        return signature(params), signature(train)

    def load(self, params: dict[str, Any], train: dict[str, Any], optimizer_settings: dict[str, Any]) -> None:
        """Load the arrays of a checkpoint.

        A learning rate that was changed since the checkpoint replaces the saved one.

        Args:
            params: The parameters, as in ``state()``.
            train: Everything else, as in ``state()``.
            optimizer_settings: ``Optimizer.settings()`` at the time of the checkpoint.
        """
        template, rest = self._split()
        restored = {**unflatten(template, params), **unflatten(rest, train)}
        self.root = self.devices.place(restored.pop("rng"))
        self.values = self.devices.place(restored)
        optimizer = self.binding.optimizer
        if optimizer_settings == optimizer.settings():
            return
        each = [dict(self.values)] if self.seed_axis is None else self.seed_axis.each(self.values)
        for values in each:
            self.binding.assign(self.devices.on_first_device(values))
            optimizer.renew(optimizer_settings)
            for name, state in optimizer.states().items():
                values[f"optimizer/{name}"] = with_strong_types(state.value)
        self.values = self.devices.place(each[0] if self.seed_axis is None else stack(each))

    def write_back(self, values: dict[str, Any] | None = None) -> int:
        """Copy the current values, or ``values``, into the module's model and the optimizer.

        With several seeds, the first that is not frozen is written back. If a dispatch failed after the values were
        donated to it, nothing is written.

        Returns:
            The seed whose values were written.
        """
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.values)):
            return self.seed
        host = jax.tree.map(processes.allgather, values or self.values)
        restore_objects(self.binding.objects)
        seed, host = (self.seed, host) if self.seed_axis is None else self.seed_axis.first_live(host)
        self.binding.assign(host)
        return seed

    def host_parameters(self, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """A host copy of the parameters, from ``values`` or the current ones."""
        held = values or self.values
        return jax.tree.map(np.array, jax.device_get({name: held[name] for name in self.binding.parameters}))
