"""Options that recipes share, for a network and for training. JAX is imported only when they are used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..nn.cells import CellName
from ..period import Period
from .config import Options

if TYPE_CHECKING:
    from ..callbacks.base import Callback
    from ..strategies import Strategy


@dataclass(frozen=True)
class NetworkOptions(Options):
    """The recurrent cell and its initial values. A recipe's Config extends this and may change the defaults.

    >>> NetworkOptions(cell="lru", hidden=32).network(10, 10, memory=50)  # doctest: +ELLIPSIS
    Network(...)
    """

    cell: CellName = "gru"
    """type of the recurrent layer; determines which rules are exact and how biased the others are"""
    hidden: int = 128
    """units per layer"""
    layers: int = 1
    """number of recurrent layers"""
    width: int | None = None
    """units of a linear encoder before the first layer, and of an LRU's output; none: no encoder"""
    nonlinear: bool = False
    """apply a GELU after the encoder"""
    mlp: int = 0
    """units of a residual MLP after every recurrent layer; 0: none"""
    chrono: float | None = None
    """longest memory, in time steps, of the initial gate biases (chrono initialisation)"""
    orthogonal: bool = False
    """initialise recurrent weights as orthogonal and input weights as Xavier-normal"""
    learned_state: bool = False
    """learn the initial hidden states"""
    r_min: float | None = None
    """smallest initial modulus of an LRU's poles; none: from the memory that the task needs"""
    r_max: float | None = None
    """largest initial modulus of an LRU's poles; none: from the memory that the task needs"""
    max_phase: float = 2 * math.pi
    """largest initial phase of an LRU's poles"""

    def network(self, n_in: int, n_out: int, memory: float) -> Any:
        """Create the network, which computes one time step ``(B, n_in) -> (B, n_out)``; see ``jaxtrain.nn.Network``.

        Args:
            n_in: Number of inputs.
            n_out: Number of outputs.
            memory: Time steps that the task must bridge. By default, an LRU keeps a third of a value over this time at
                the smallest modulus, and nine tenths at the largest.

        Returns:
            A ``jaxtrain.nn.Network``.
        """
        from ..core.one_program import in_one_program
        from ..nn.networks import Network, radii

        r_min, r_max = radii(memory)
        r_min = r_min if self.r_min is None else self.r_min
        r_max = r_max if self.r_max is None else self.r_max
        make = partial(
            Network, n_in, n_out, cell=self.cell, hidden=self.hidden, layers=self.layers, width=self.width,
            nonlinear=self.nonlinear, mlp=self.mlp,
            chrono=self.chrono, orthogonal=self.orthogonal, learned_state=self.learned_state, r_min=r_min,
            r_max=r_max, max_phase=self.max_phase,
        )  # fmt: skip
        return in_one_program(make)


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Batches, learning rate, budget and periods. A recipe's Config extends this and may change the defaults.

    >>> fit = jaxtrain.Fit("drtrl", **TrainingOptions(max_steps=100, clip=0.5).fit_options())
    """

    batch_size: int = 64
    """sequences per batch"""
    lr: float = 3e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "constant"
    """learning rate after the warm-up: cosine decays to zero at max_steps"""
    warmup: float = 0.0
    """updates over which the learning rate rises from zero; below 1: fraction of all updates"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices (AdamW)"""
    pole_rate: float | None = None
    """learning rate of an LRU's poles as a fraction of lr; none: smaller for a longer memory"""
    clip: float | None = 1.0
    """largest global norm of the gradient"""
    max_steps: int = 2000
    """train steps, one batch each"""
    seed: int = 0
    """seed of initial values, of random numbers in the model, and of the data"""
    seeds: int | None = None
    """number of seeds to train side by side, counted from --seed, on the batches of --seed"""
    devices: Literal["auto", "all"] | int = "auto"
    """devices that share each batch (or the seeds); auto: on CPU one per core, if the batch divides and a time step is
    worth it; all: one per core, or every GPU"""
    chunk: Literal["auto"] | int = "auto"
    """steps per dispatch"""
    log_every: int = 50
    """steps between log entries"""
    validate_every: int | str | None = 200
    """steps between validations and figures"""
    checkpoint_every: int | str = 500
    """steps between checkpoints, or a time such as 10min; the newest two are kept, and the best two by val/loss"""
    test: bool = False
    """score the test data once the run is over"""

    def optimizer(self, memory: float | None = None, updates: Callable[[], int] | None = None) -> Any:
        """Create Adam for ``Module.configure_optimizer``, with a second optimizer for an LRU's poles (see ``group``).

        Args:
            memory: Time steps that the task must bridge; only an LRU needs it. A change of a pole's phase is multiplied
                by this number, so the default rate of poles falls with it.
            updates: Returns the number of updates in all steps; None: one update per step. It is called only if the
                learning rate depends on it.

        Returns:
            An optimizer, or a dict of two by group, for ``configure_optimizer`` to return.

        Raises:
            ConfigError: The network is an LRU, and neither ``memory`` nor ``pole_rate`` is given.
        """
        from ..nn.schedules import adam, schedule

        scheduled = self.warmup > 0 or self.decay != "constant"
        total = updates() if updates is not None and scheduled else self.max_steps
        # A fraction means at least one update, and never all of them.
        warmup = int(self.warmup) if not 0 < self.warmup < 1 else min(max(1, round(self.warmup * total)), total - 1)

        def at(lr: float) -> Any:
            rate = schedule(lr, total, warmup=warmup, decay=self.decay)
            return adam(rate, self.weight_decay)

        if not self.has_poles():
            return at(self.lr)
        if (poles := self.pole_rate) is None:
            if memory is None:
                raise ConfigError("optimizer(): an LRU needs the time steps that the task must bridge: memory=...")
            poles = min(1.0, 5 / memory)
        return {"rest": at(self.lr), "poles": at(poles * self.lr)}

    def has_poles(self) -> bool:
        """Return whether the network has poles, which are trained by a separate optimizer."""
        return getattr(self, "cell", None) == "lru"

    def group(self, name: str) -> str:
        """Return the optimizer that trains the parameter ``name``, for ``Module.group``."""
        from ..nn.networks import is_pole

        return "poles" if is_pole(name) else "rest"

    def fit_options(self) -> dict[str, Any]:
        """Return arguments of ``Fit``."""
        names = "max_steps clip seed seeds devices chunk log_every validate_every run_dir progress"
        return {name: getattr(self, name) for name in names.split()}

    def callbacks(self, validates: bool = True) -> list[Callback]:
        """Return the callbacks that differ from the defaults of ``Fit``: when checkpoints are saved.

        Args:
            validates: Whether the run has validation data, by which the best checkpoints are chosen.
        """
        from ..callbacks import Checkpoint

        if self.run_dir is None:
            return []
        best: dict[str, Any] = {"keep_best": 2} if validates else {"monitor": None}
        return [Checkpoint(every=self.checkpoint_every, keep_last=2, **best)]


def check_options(config: Options, counts: Sequence[str] = (), updates: int | None = None, *,
                  periods: Sequence[str] = ()) -> None:  # fmt: skip
    """Check the values of options; call it in a Config's ``__post_init__``.

    Args:
        config: The options. Those of ``NetworkOptions`` and ``TrainingOptions`` are checked as well.
        counts: Names of the recipe's own options that must be None or a whole number from 1 to 2**31 - 1.
        updates: Largest number of updates in ``max_steps`` steps; None: one update per step.
        periods: Names of the recipe's own options that must be None or a period such as ``200``, ``"1ep"`` or
            ``"10min"``.

    Raises:
        ConfigError: A value is out of range, or has no effect.

    >>> check_options(TrainingOptions(), counts=("log_every",), periods=("validate_every",))
    """
    if isinstance(config, NetworkOptions):
        counts = (*counts, "hidden", "layers", "width")
        _not_below(config, 0, "mlp")
        _refuse_gates(config)
    if isinstance(config, TrainingOptions):
        counts, periods = (*counts, "batch_size", "seeds"), (*periods, "validate_every", "checkpoint_every")
        if config.devices not in ("auto", "all"):
            counts = (*counts, "devices")
        _not_below(config, 0, "warmup", "weight_decay")
        _not_below(config, None, "lr", "pole_rate")
        most = config.max_steps if updates is None else updates
        if config.warmup >= 1 and not (config.warmup < most and config.warmup.is_integer()):
            bound = f"--max-steps {most}" if updates is None else f"the {most} updates of --max-steps"
            raise ConfigError(
                f"--warmup {config.warmup:g}: expected a whole number below {bound}, or a fraction of it such as 0.1"
            )
    _refuse_poles(config)
    for name in (*counts, *periods):
        value, flag = getattr(config, name), "--" + name.replace("_", "-")
        if name in counts and value is not None and not 1 <= value < 2**31:
            raise ConfigError(f"{flag} {value}: expected a whole number, {'1 or more' if value < 1 else 'below 2**31'}")
        try:
            Period.of(value if name in periods else None)
        except ValueError as error:
            raise ConfigError(f"{flag} {value}: {error}") from None


def _refuse_gates(config: NetworkOptions) -> None:
    """Raise ConfigError for initial values of gates or of a recurrent matrix if the cell has none."""
    if config.cell == "lru" and (config.chrono is not None or config.orthogonal):
        name = "orthogonal" if config.chrono is None else "chrono"
        raise ConfigError(
            f"--{name}: cell 'lru' has no gates and no recurrent matrix, so {name} does not apply; leave it out"
        )


def _refuse_poles(config: Options) -> None:
    """Raise ConfigError for options of an LRU's poles if the network has none."""
    cell = getattr(config, "cell", None)
    if config.has_poles() if isinstance(config, TrainingOptions) else cell == "lru":
        return
    where = "in this network, which has none" if cell is None else f"with --cell {cell}"
    for field in dataclasses.fields(config):
        if field.name in ("r_min", "r_max", "max_phase", "pole_rate") and getattr(config, field.name) != field.default:
            raise ConfigError(
                f"--{field.name.replace('_', '-')} sets an LRU's poles and has no effect {where}: leave it out"
            )


def _not_below(config: Options, least: float | None, *names: str) -> None:
    """Raise ConfigError if an option is below ``least``; None: not above zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 if least is None else value >= least)):
            expected = "a positive number" if least is None else f"{least} or more"
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected {expected}")


def streamed(strategy: Strategy) -> Strategy:
    """Return the strategy for an endless stream.

    Hidden states and traces continue between segments. By default there is an update at every time step, or at the end
    of every window.

    Raises:
        ConfigError: The strategy starts from fresh states in every segment, as BPTT does.
    """
    own = {field.name for field in dataclasses.fields(strategy)}
    if "stateful" not in own:
        raise ConfigError(
            f"--strategy {strategy.name} starts from fresh states with every segment of the stream; use tbptt instead"
        )
    fields: dict[str, Any] = {"stateful": True}
    if getattr(strategy, "update_every", None) == "sequence":
        fields["update_every"] = getattr(strategy, "window", 1)
    return dataclasses.replace(strategy, **fields)


def time_steps_of(strategy: Strategy, unroll: int) -> int:
    """Number of time steps per update in a segment of a stream (default: all ``unroll`` time steps)."""
    every = getattr(strategy, "update_every", "sequence")
    return unroll if every == "sequence" else int(every)
