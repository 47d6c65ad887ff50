"""Options that recipes share: of a network and of training. Free of JAX until they are used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..nn.cells import CellName
from .recipe import Options, check

if TYPE_CHECKING:
    from ..callbacks.base import Callback
    from ..strategies import Strategy


@dataclass(frozen=True)
class NetworkOptions(Options):
    """Which cell, and what it begins with; a recipe's Config extends this and sets defaults of its own."""

    cell: CellName = "gru"
    """the recurrent layer: which rules are exact, and how biased the others are, depends on it"""
    hidden: int = 128
    """units of a layer"""
    layers: int = 1
    """recurrent layers"""
    width: int | None = None
    """units of a linear encoder in front, and of an LRU's output; none: no encoder"""
    nonlinear: bool = False
    """a GELU behind the encoder"""
    mlp: int = 0
    """units of a residual MLP behind every recurrent layer; 0: none"""
    chrono: float | None = None
    """longest memory, in time steps, that the gates' biases begin with (chrono initialisation)"""
    orthogonal: bool = False
    """recurrent weights begin orthogonal, input weights Xavier-normal"""
    learned_state: bool = False
    """hidden states begin with learned values"""
    r_min: float | None = None
    """least modulus of an LRU's poles at the beginning; none: by the memory that the task asks for"""
    r_max: float | None = None
    """largest modulus of an LRU's poles at the beginning; none: by the memory that the task asks for"""
    max_phase: float = 2 * math.pi
    """largest phase of an LRU's poles at the beginning"""

    def network(self, n_in: int, n_out: int, memory: float) -> Any:
        """The network, one time step ``(B, n_in) -> (B, n_out)``; see ``jaxtrain.nn.Network``.

        ``memory``: time steps that the task asks to bridge. Of these an LRU keeps a third at the least modulus that is
        chosen for it and nine tenths at the largest.
        """
        from ..nn.networks import Network, radii

        r_min, r_max = radii(memory)
        r_min = r_min if self.r_min is None else self.r_min
        r_max = r_max if self.r_max is None else self.r_max
        return Network(
            n_in, n_out, cell=self.cell, hidden=self.hidden, layers=self.layers, width=self.width,
            nonlinear=self.nonlinear, mlp=self.mlp,
            chrono=self.chrono, orthogonal=self.orthogonal, learned_state=self.learned_state, r_min=r_min,
            r_max=r_max, max_phase=self.max_phase,
        )  # fmt: skip


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Batches, rates, budget and periods; a recipe's Config extends this and sets defaults of its own."""

    batch_size: int = 64
    """sequences in a batch"""
    lr: float = 3e-3
    """learning rate of Adam"""
    decay: Literal["constant", "cosine"] = "constant"
    """the rate after the warm-up: cosine goes to zero at max_steps"""
    warmup: float = 0.0
    """updates over which the rate rises from zero; below 1 a part of all of them"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices (AdamW)"""
    pole_rate: float | None = None
    """learning rate of an LRU's poles, as a part of lr; none: the less the longer the memory"""
    clip: float | None = 1.0
    """largest global norm of the gradient"""
    max_steps: int = 2000
    """steps to train, one batch each"""
    seed: int = 0
    """of initial values, of randomness in the model, and of the data"""
    seeds: int | None = None
    """train so many seeds side by side, --seed and the next ones, on the batches of --seed"""
    devices: Literal["all"] | int = 1
    """devices that share each batch (or the seeds); on CPU so many are made, or of all one a core"""
    chunk: Literal["auto"] | int = "auto"
    """steps run in one dispatch"""
    log_every: int = 50
    """steps between rows of the record"""
    validate_every: int | str | None = 200
    """steps between validations and figures"""
    checkpoint_every: int | str = 500
    """steps between checkpoints, or a time such as 10min; the best two by val/loss are kept besides"""

    def optimizer(self, memory: float, updates: Callable[[], int] | None = None) -> Any:
        """For ``Module.configure_optimizer``, beside ``group``: Adam as these options have it, of an LRU's poles apart.

        ``memory``: time steps that the task asks to bridge; over them a phase turns as many times as far as a step
        moves it. ``updates``: counts those of all steps, where the rate hangs on it; None: one a step.
        """
        from ..nn.schedules import adam, schedule

        scheduled = self.warmup > 0 or self.decay != "constant"
        total = updates() if updates is not None and scheduled else self.max_steps
        # A part of all is one update at least, and never all of them.
        warmup = int(self.warmup) if not 0 < self.warmup < 1 else min(max(1, round(self.warmup * total)), total - 1)

        def at(lr: float) -> Any:
            rate = schedule(lr, total, warmup=warmup, decay=self.decay)
            return adam(rate, self.weight_decay)

        poles = min(1.0, 5 / memory) if self.pole_rate is None else self.pole_rate
        both = {"rest": at(self.lr), "poles": at(poles * self.lr)}
        return both if self.has_poles() else both["rest"]

    def has_poles(self) -> bool:
        """Whether the network that is trained has poles, which then have an optimizer of their own."""
        return getattr(self, "cell", None) == "lru"

    def group(self, name: str) -> str:
        """For ``Module.group``: which of the two optimizers trains a parameter."""
        from ..nn.networks import is_pole

        return "poles" if is_pole(name) else "rest"

    def fit_options(self) -> dict[str, Any]:
        """Arguments of ``Fit``."""
        names = (
            "max_steps", "clip", "seed", "seeds", "devices", "chunk", "log_every", "validate_every", "run_dir",
            "progress",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def callbacks(self, validates: bool = True) -> list[Callback]:
        """The callbacks that differ from the defaults of ``Fit``: with a run directory, when checkpoints are saved.

        Args:
            validates: Whether the run has validation data, by which the best checkpoints are chosen.
        """
        from ..callbacks import Checkpoint

        if self.run_dir is None:
            return []
        best: dict[str, Any] = {"keep_best": 2} if validates else {"monitor": None}
        return [Checkpoint(every=self.checkpoint_every, keep_last=2, **best)]


def check_options(config: Options, counts: Sequence[str] = (), updates: int | None = None) -> None:
    """For a Config's ``__post_init__``: ConfigError with one line for values of these options that make no sense.

    ``counts``: further ones of the recipe's own that count something. ``updates``: the most that there are in
    ``max_steps``; None: one a step.
    """
    periods = []
    if isinstance(config, NetworkOptions):
        counts = (*counts, "hidden", "layers", "width")
        _not_below(config, 0, "mlp")
        _refuse_gates(config)
        _refuse_poles(config)
    if isinstance(config, TrainingOptions):
        counts, periods = (*counts, "batch_size", "seeds"), ["validate_every", "checkpoint_every"]
        if config.devices != "all":
            counts = (*counts, "devices")
        _not_below(config, 0, "warmup", "weight_decay")
        _not_below(config, None, "lr", "pole_rate")
        most = config.max_steps if updates is None else updates
        if config.warmup >= 1 and not (config.warmup < most and config.warmup.is_integer()):
            bound = f"--max-steps {most}" if updates is None else f"the {most} updates of --max-steps"
            raise ConfigError(
                f"--warmup {config.warmup:g}: expected a whole number below {bound}, or a part of it, as 0.1"
            )
    check(config, counts=counts, periods=periods)


def _refuse_gates(config: NetworkOptions) -> None:
    """What gates, or a recurrent matrix, begin with has no effect where there is none."""
    if config.cell == "lru" and (config.chrono is not None or config.orthogonal):
        name = "orthogonal" if config.chrono is None else "chrono"
        raise ConfigError(
            f"--{name}: cell 'lru' has no gates and no recurrent matrix, so {name} does not apply; leave it out"
        )


def _refuse_poles(config: NetworkOptions) -> None:
    """What places poles, or is their rate, has no effect on other cells."""
    if config.cell == "lru":
        return
    for field in dataclasses.fields(config):
        if field.name in ("r_min", "r_max", "max_phase", "pole_rate") and getattr(config, field.name) != field.default:
            raise ConfigError(
                f"--{field.name.replace('_', '-')} is of an LRU's poles, and has no effect with --cell {config.cell}: "
                "leave it out"
            )


def _not_below(config: Options, least: float | None, *names: str) -> None:
    """``least=None``: above zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and (value > 0 if least is None else value >= least)):
            expected = "a positive number" if least is None else f"{least} or more"
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected {expected}")


def streamed(strategy: Strategy) -> Strategy:
    """A strategy for an endless stream: hidden states and traces go on from piece to piece, and unless it says
    otherwise it makes an update at every time step, or at the end of every window.

    Raises ConfigError for one that begins anew with every piece, as BPTT does.
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
    """Time steps of an update that a strategy makes in a piece of a stream: all of them, unless it says otherwise."""
    every = getattr(strategy, "update_every", "sequence")
    return unroll if every == "sequence" else int(every)
