"""Recurrent cells by name, a network around them, and initial values that help recurrent networks learn.

Everything that acts on a hidden state uses layers of ``braintrace.nn``, so that every rule can train it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

from ..core.one_program import when_known
from .cells import CellName

CELLS: dict[str, Callable] = {
    "gru": braintrace.nn.GRUCell,
    "mgu": braintrace.nn.MGUCell,
    "mini_gru": braintrace.nn.MiniGRU,
    "minimal_rnn": braintrace.nn.MinimalRNNCell,
    "cfn": braintrace.nn.CFNCell,
    "lstm": braintrace.nn.LSTMCell,
    "mini_lstm": braintrace.nn.MiniLSTM,
    "lru": braintrace.nn.LRUCell,
    "vanilla": braintrace.nn.ValinaRNNCell,
}
"""Constructors of cells, by name."""
assert tuple(CELLS) == get_args(CellName)

GATES: dict[str, dict[str, tuple[int, float]]] = {
    "gru": {"Wz": (-1, 0.0)},
    "mgu": {"Wf": (-1, 0.0)},
    "mini_gru": {"W_z": (-1, 0.0)},
    "minimal_rnn": {"W_u": (1, 0.0)},
    "cfn": {"Wf": (1, 0.0), "Wi": (-1, 0.0)},
    "lstm": {"Wf": (1, -1.0), "Wi": (-1, 0.0)},
    "mini_lstm": {"W_f": (1, 0.0), "W_i": (-1, 0.0)},
}
"""Gates of each cell that determine how long a unit remembers: (sign, offset) of the gate's bias.

The sign is 1 if an open gate keeps the state, -1 if it overwrites it. The offset is added to the bias of a chrono
initialisation: -1 for an LSTM's forget gate, since the cell itself adds 1.
"""


def chrono_bias(rng: np.random.Generator, units: int, longest: float) -> np.ndarray:
    """Gate biases of the chrono initialisation (Tallec & Ollivier, ICLR 2018).

    A unit keeps its content for 1 to ``longest - 1`` time steps. Biases are the logarithms of times drawn uniformly at
    random from this range.

    >>> bias = chrono_bias(np.random.default_rng(0), 1000, 100)
    >>> bool(0 <= bias.min() and bias.max() <= math.log(99))
    True

    Args:
        rng: Source of random numbers.
        units: Number of units.
        longest: Longest memory in time steps, above 2.

    Returns:
        Biases ``(units,)``, float32.

    Raises:
        ValueError: ``longest`` is not above 2.
    """
    if not longest > 2:
        raise ValueError(f"chrono={longest}: expected a number of time steps above 2")
    return np.log(rng.uniform(1.0, longest - 1.0, units)).astype(np.float32)


def orthogonal_recurrence(inputs: int, gain: float = 1.0) -> Callable:
    """Initialiser for weights ``(inputs + units, units)`` that act on ``[x, h]``.

    The part that acts on the ``units`` hidden states is orthogonal (Saxe et al. 2014); the part that acts on the
    ``inputs`` is Xavier-normal. Weights of any other number of rows are Xavier-normal.

    Args:
        inputs: Size of x.
        gain: Factor of the orthogonal part.

    Returns:
        A function of the shape.

    >>> weight = orthogonal_recurrence(2)((2 + 8, 8))[2:]
    >>> bool(jnp.allclose(weight @ weight.T, jnp.eye(8), atol=1e-5))
    True
    """

    def init(shape: Any, **_: Any) -> Any:
        rows, units = shape
        if rows != inputs + units:
            return braintools.init.XavierNormal()(shape)  # acts only on inputs
        outer = braintools.init.XavierNormal()((inputs, units))
        return jnp.concatenate([outer, braintools.init.Orthogonal(gain)((units, units))])

    return init


class LearnedState(brainstate.nn.Module):
    """A cell whose hidden states start from learned values in every sequence and after every reset.

    The learned values enter the first time step as an element-wise weight, so online rules keep a trace of them.

    Args:
        cell: The cell; its hidden states are ``(B, units)``.

    >>> cell = LearnedState(make_cell("gru", 10, 128))
    """

    def __init__(self, cell: Any):
        super().__init__()
        self.cell = cell
        with brainstate.environ.context():
            brainstate.nn.init_all_states(cell)
        shapes = {name: jnp.shape(state.value) for name, state in self._hidden().items()}
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            setattr(self, f"initial_{name}", brainstate.ParamState(jnp.zeros(shape[-1:], jnp.float32)))

    def _hidden(self) -> dict[str, Any]:
        return {path[-1]: state for path, state in self.cell.states(brainstate.HiddenState).items()}

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        """Create the flag of the first time step, for ``batch_size`` sequences."""
        self.begins = brainstate.ShortTermState(jnp.ones((1,) if batch_size is None else (batch_size, 1), jnp.float32))

    def update(self, x: Any) -> Any:
        """Return the output of the cell for the inputs ``x``, ``(B, ...)``."""
        for name in self.names:
            state = getattr(self.cell, name)
            initial = braintrace.element_wise(getattr(self, f"initial_{name}").value)
            state.value = state.value + self.begins.value * initial
        self.begins.value = jnp.zeros_like(self.begins.value)
        return self.cell(x)


class Block(brainstate.nn.Module):
    """A cell, optionally with a skip connection, followed by an MLP of one hidden layer with a skip connection.

    Args:
        cell: The cell; its output is ``(B, width)``, and with ``skip`` so is its input.
        width: Size of the cell's output.
        mlp: Hidden units of the MLP.
        skip: Add the cell's input to its output.

    >>> block = Block(make_cell("gru", 128, 128), width=128, mlp=256, skip=True)
    """

    def __init__(self, cell: Any, width: int, mlp: int, skip: bool):
        super().__init__()
        self.cell, self.skip = cell, skip
        self.up, self.down = braintrace.nn.Linear(width, mlp), braintrace.nn.Linear(mlp, width)

    def update(self, x: Any) -> Any:
        """Return the output ``(B, width)`` for the inputs ``x``, ``(B, ...)``."""
        h = self.cell(x) + x if self.skip else self.cell(x)
        return h + self.down(jax.nn.gelu(self.up(h)))


class Network(brainstate.nn.Module):
    """One time step of a recurrent network, ``(B, n_in) -> (B, n_out)``: an encoder, stacked cells, a linear readout.

    Args:
        n_in: Size of the input.
        n_out: Size of the output.
        cell: Name of the cell. The output of an LRU has the size of its input; other cells output their units.
        hidden: Units per layer.
        layers: Number of cells.
        width: Size of the encoder's output; None: no encoder.
        nonlinear: Apply a GELU after the encoder.
        mlp: Hidden units of a residual MLP after every cell; 0: no MLP.
        chrono: Longest memory, in time steps, of the initial gates (see ``chrono_bias``); None: default biases.
        orthogonal: Initialise recurrent weights as orthogonal matrices.
        learned_state: Start hidden states from learned values (see ``LearnedState``).
        r_min: Smallest initial modulus of an LRU's poles (Orvieto et al. 2023). A pole of modulus r forgets within
            about 1 / (1 - r) time steps.
        r_max: Largest initial modulus of an LRU's poles.
        max_phase: Largest initial phase of an LRU's poles, in radians.

    Raises:
        ValueError: An option does not apply to the cell or has an invalid value.

    >>> model = Network(10, 10, cell="lru", hidden=32, width=16, mlp=64)
    """

    def __init__(self, n_in: int, n_out: int, *, cell: CellName = "gru", hidden: int = 128, layers: int = 1,
                 width: int | None = None, nonlinear: bool = False, mlp: int = 0, chrono: float | None = None,
                 orthogonal: bool = False, learned_state: bool = False, r_min: float = 0.9, r_max: float = 0.999,
                 max_phase: float = 2 * math.pi):  # fmt: skip
        super().__init__()
        if nonlinear and width is None:
            raise ValueError("nonlinear=True applies to the encoder, which needs a width; set width or drop nonlinear")
        self.encoder = None if width is None else braintrace.nn.Linear(n_in, width)
        self._shape = jax.nn.gelu if nonlinear else lambda x: x
        size, cells = n_in if width is None else width, []
        for layer in range(layers):
            if cell == "lru":
                one, out = lru(size, hidden, r_min, r_max, max_phase), size
                refused = {"chrono": chrono is not None, "orthogonal": orthogonal}
                if any(refused.values()):
                    which = ", ".join(name for name, given in refused.items() if given)
                    raise ValueError(f"cell 'lru' has no gates and no recurrent matrix, so {which} does not apply")
            else:
                one, out = make_cell(cell, size, hidden, chrono, orthogonal), hidden
            one = LearnedState(one) if learned_state else one
            cells.append(Block(one, out, mlp, skip=layer > 0 and out == size) if mlp else one)
            size = out
        self.rnn = brainstate.nn.Sequential(*cells)
        self.readout = braintrace.nn.Linear(size, n_out)

    def update(self, x: Any) -> Any:
        """Return the output ``(B, n_out)`` for the inputs ``x``, ``(B, n_in)``."""
        return self.readout(self.rnn(x if self.encoder is None else self._shape(self.encoder(x))))


def radii(memory: float) -> tuple[float, float]:
    """Moduli of poles whose response decays to exp(-1) and exp(-0.1) after ``memory`` time steps.

    >>> radii(50)
    (0.98, 0.998)
    """
    memory = max(memory, 10.0)
    return 1 - 1 / memory, 1 - 0.1 / memory


def lru(width: int, hidden: int, r_min: float, r_max: float, max_phase: float) -> Any:
    """A linear recurrent unit, ``(B, width) -> (B, width)``, with poles in a ring.

    Raises ValueError for an invalid ring.
    """
    if not 0 <= r_min < r_max < 1:
        raise ValueError(f"LRU: r_min={r_min}, r_max={r_max}; expected 0 <= r_min < r_max < 1")
    if not 0 < max_phase <= 2 * math.pi + 0.01:
        raise ValueError(f"LRU: max_phase={max_phase}; expected a positive angle up to 2 pi")
    return braintrace.nn.LRUCell(width, hidden, r_min=r_min, r_max=r_max, max_phase=max_phase)


def make_cell(name: str, inputs: int, hidden: int, chrono: float | None = None, orthogonal: bool = False) -> Any:
    """A cell with gates or a recurrent matrix, ``(B, inputs) -> (B, hidden)``.

    Args:
        name: Name of the cell, a key of ``CELLS``.
        inputs: Size of the input.
        hidden: Number of units.
        chrono: Longest memory, in time steps, of the initial gates; None: default biases.
        orthogonal: Initialise recurrent weights as orthogonal matrices.

    Raises:
        ValueError: The name is unknown, or ``chrono`` is given for a cell without gates.

    Returns:
        A cell of ``braintrace.nn``.

    >>> cell = make_cell("lstm", inputs=10, hidden=64, chrono=50)
    """
    if name not in CELLS:
        raise ValueError(f"cell {name!r} is unknown; expected one of {', '.join(CELLS)}")
    options: dict[str, Any] = {}
    if orthogonal:
        # A MinimalRNN's gate receives the latent input, which has as many units as the cell.
        options["w_init"] = orthogonal_recurrence(hidden if name == "minimal_rnn" else inputs)
    cell = CELLS[name](inputs, hidden, **options)
    if chrono is not None:
        if name not in GATES:
            raise ValueError(f"cell {name!r} has no gates, so chrono does not apply")
        longest, gates = chrono, GATES[name]

        def set_biases(seed: Any) -> None:
            bias = chrono_bias(np.random.default_rng(np.asarray(seed)), hidden, longest)
            for gate, (sign, more) in gates.items():
                state = getattr(cell, gate).weight
                state.value = {**state.value, "bias": jnp.asarray(sign * bias + more, jnp.float32)}

        when_known(set_biases, brainstate.random.randint(0, 2**31 - 1, (2,)))  # from the random state of the run
    return cell


def is_pole(name: str) -> bool:
    """Return True if a parameter places poles of an LRU, which need smaller learning rates for longer memories.

    Over a memory of T time steps, a change of a pole's phase is multiplied by T.

    >>> is_pole("rnn.layers.0.nu_log"), is_pole("readout.weight")
    (True, False)
    """
    return name.rsplit(".", 1)[-1] in ("nu_log", "theta_log")
