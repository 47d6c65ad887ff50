"""A small laboratory: models, batches, the gradient a strategy hands to ``update``, and braintrace driven by hand."""

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import jaxtrain
from jaxtrain.core.functional import Functional
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective, check_phases
from jaxtrain.core.state import (
    drop_weak_types,
    long_term_states,
    name_of,
    parameters,
    set_key,
    with_strong_types,
)

_programs: dict[Any, Any] = {}

N_IN, N, N_OUT, B = 3, 6, 2, 3
WARM, LEARN = 5, 4
KEY = jax.random.key(11)
"""Root of the random numbers of every sequence that a Drive drives."""

CELLS = {
    "gru": lambda i=N_IN: braintrace.nn.GRUCell(i, N),
    "lstm": lambda i=N_IN: braintrace.nn.LSTMCell(i, N),
    "mgu": lambda i=N_IN: braintrace.nn.MGUCell(i, N),
    "minigru": lambda i=N_IN: braintrace.nn.MiniGRU(i, N),
    "lru": lambda i=N_IN: braintrace.nn.LRUCell(i, N),
    "vanilla": lambda i=N_IN: braintrace.nn.ValinaRNNCell(i, N, activation="tanh"),
}


class Net(brainstate.nn.Module):
    """A cell and a readout; ``states=True`` gives the hidden state as a second output."""

    def __init__(self, cell: str, states: bool = False):
        super().__init__()
        self.rnn = CELLS[cell]()
        self.out = braintrace.nn.Linear(N_IN if cell == "lru" else N, N_OUT)
        self.states_too = states

    def update(self, x):
        y = self.out(self.rnn(x))
        return (y, self.rnn.h.value) if self.states_too else y


class Spiking(brainstate.nn.Module):
    """A recurrent LIF network whose weights carry a unit, with a readout of its spikes."""

    def __init__(self):
        import brainpy.state as bp
        import braintools

        super().__init__()
        self.neuron = bp.LIF(
            N, tau=20.0 * u.ms, V_rest=0.0 * u.mV, V_th=1.0 * u.mV, V_reset=0.0 * u.mV, R=1.0 * u.ohm,
            V_initializer=braintools.init.ZeroInit(unit=u.mV),
        )  # fmt: skip
        self.synapse = braintrace.nn.Linear(
            N_IN + N, N, w_init=braintools.init.KaimingNormal(scale=20.0, unit=u.mA),
            b_init=braintools.init.Constant(2.0 * u.mA),
        )  # fmt: skip
        self.out = braintrace.nn.Linear(N, N_OUT)

    def update(self, x):
        spikes = self.neuron.get_spike()
        return self.out(self.neuron(self.synapse(jnp.concatenate([x, spikes], axis=-1))))


class Task(jaxtrain.Module):
    """Squared error, one loss per sequence. ``kind``: the arguments of ``task`` that made it."""

    kind: Any = None

    def __init__(self, model):
        self.model = model

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y).mean(-1)


def plain(x):
    return x


class Drive:
    """A learner in a compiled program whose ``update`` hands out what it was given.

    The program is compiled once per worker for each strategy, kind of ``task`` and shape of batch; every Drive begins
    with the parameters of its own module and with the learner's first values.
    """

    def __init__(self, strategy, module, phases: Phases, encode=plain):
        key = self._kind(strategy, module, phases, encode)
        known = _programs.get(key) or self._compile(strategy, module, phases, encode)
        if key is not None:
            _programs[key] = known
        self.learner, self._call, first = known
        own = {
            name: state.value for name, state in {**parameters(module.model), **long_term_states(module.model)}.items()
        }
        self._values = {**first, **{name: with_strong_types(value) for name, value in own.items()}}

    def _kind(self, strategy, module, phases: Phases, encode) -> Any:
        """What the program depends on; None where it may depend on more."""
        if type(module) is not Task or module.kind is None or encode is not plain or strategy.name == "dni":
            return None
        leaves, tree = jax.tree.flatten(phases)
        return type(self), strategy, module.kind, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    def _compile(self, strategy, module, phases: Phases, encode) -> tuple[Any, Any, dict[str, Any]]:
        """The learner, the program, and the values that it begins with."""
        with brainstate.environ.context(**module.environ, fit=True):
            drop_weak_types(parameters(module.model).values())
            self.learner = strategy.bind(Objective(module, encode), check_phases(phases))
            lasts = {f"learner/{name}": state for name, state in self.learner.states().items()}
            named = {**parameters(module.model), **long_term_states(module.model), **lasts}
            drop_weak_types([*lasts.values(), *self.learner.short_term_states()])
            values = {name: state.value for name, state in named.items()}
            functional = Functional(self._step, named, self.learner.short_term_states(), phases)
        return self.learner, jax.jit(functional), values

    def _key(self, phases: Phases) -> jax.Array:
        return KEY

    def _step(self, phases):
        handed = {}
        set_key(self._key(phases))

        def update(grads, weight, metrics):
            assert not handed, "update was called twice"
            handed.update(grads=dict(grads), weight=jnp.asarray(weight))
            return metrics

        metrics = self.learner.learn(check_phases(phases), update)
        return handed["grads"], handed["weight"], metrics

    def __call__(self, phases: Phases):
        """Gradients, weight, metrics; the parameters are unchanged, the states of a stateful learner continue."""
        values, result = self._call(self._values, phases)
        self._values |= {name: value for name, value in values.items() if name.startswith("learner/")}
        return result

    def grads(self, phases: Phases) -> dict[str, Any]:
        return self(phases)[0]


class Drawing(Drive):
    """A drive whose random numbers come with the sequence, as ``drawn`` puts them there; for a ``Drawn`` task."""

    def _key(self, phases: Phases) -> jax.Array:
        assert phases.extras is not None
        return jax.random.wrap_key_data(phases.extras["draw"][0, 0])


class Drawn(Task):
    def learning_step(self, forward, x, y, draw=None):
        return super().learning_step(forward, x, y)


def drawn(phases: Phases, i: int) -> Phases:
    """The sequence with draw number ``i``."""
    data = jax.random.key_data(jax.random.key(i))
    return replace(phases, extras={"draw": jnp.broadcast_to(data, (*phases.sizes[1:], *data.shape))})


def learn(strategy, module, phases: Phases, encode=plain) -> dict[str, Any]:
    return Drive(strategy, module, phases, encode).grads(phases)


def task(cell: str = "gru", seed: int = 0, **kwargs) -> Task:
    """The same initial values for the same cell and seed; "lif" is a spiking network."""
    environ = {"dt": 1.0 * u.ms} if cell == "lif" else {}
    with brainstate.random.seed_context(seed), brainstate.environ.context(**environ):
        model = Spiking() if cell == "lif" else Net(cell, **kwargs)
        for state in parameters(model).values():  # biases too, so that no gradient vanishes by symmetry
            state.value = jax.tree.map(lambda leaf: leaf + 0.1 * brainstate.random.randn(*leaf.shape), state.value)
    made = Task(model)
    made.environ, made.kind = environ, (cell, *sorted(kwargs.items()))
    return made


def sequences(seed: int = 0, warm: int = WARM, time: int = LEARN, batch_size: int = B, **kwargs) -> Phases:
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    x, y = make(warm + time, batch_size, N_IN), make(time, batch_size, N_OUT)
    return Phases(warmup=x[:warm] if warm else None, inputs=x[warm:], targets=y, **kwargs)


def by_hand(model, phases: Phases, loss, *, vjp="multi-step", vmap=False, window=None, environ=None) -> dict[str, Any]:
    """The gradient of ``sum(w * loss)`` by braintrace's own drivers: compile, ``etrace_evolve``, ``etrace_grad``.

    ``loss(out, y)`` is one value per sequence, over all axes before that of the features. ``window``: one length (the
    rest is a window of its own), or the lengths of all windows.
    """
    weights = jnp.ones(phases.sizes[1:2]) if phases.weights is None else phases.weights
    weights = jnp.broadcast_to(weights if weights.ndim == 2 else weights[:, None], phases.sizes[1:])

    time = phases.sizes[1]
    if window is None:  # one call drives all time steps
        tiles, single = (time,), True
    else:
        whole, rest = divmod(time, window) if isinstance(window, int) else (0, 0)
        tiles, single = (window if isinstance(window, tuple) else (window,) * whole + (rest,) * bool(rest)), False
    assert sum(tiles) == time

    def run(phases, weights):
        learner = braintrace.compile(
            model, "d_rtrl", phases.inputs[0], batch_size=phases.sizes[2], vmap=vmap, vjp_method=vjp
        )
        if phases.warmup is not None:
            learner.etrace_evolve(phases.warmup)

        def part(now, size):
            def step(x, y, w):
                out = learner(x if size is None else braintrace.MultiStepData(x))
                return (w * loss(out, y)).sum(-1)

            return learner.etrace_grad(
                phases.inputs[now], phases.targets[now], weights[now], step_fn=step, chunk_size=size, reduction="sum"
            )

        parts, start = [], 0
        for size in tiles:
            parts.append(part(slice(start, start + size), None if single or size == 1 else size))
            start += size
        return jax.tree.map(lambda *leaves: sum(leaves), *({name_of(k): v for k, v in p.items()} for p in parts))

    with warnings.catch_warnings(), brainstate.environ.context(**(environ or {}), fit=True):
        warnings.simplefilter("ignore")
        return brainstate.transform.jit(run)(phases, weights)


def drive_of(strategy, cell: str = "gru") -> Drive:
    """A strategy on ``task(cell)`` and ``sequences()``; "auto" is "batched" there."""
    strategy = replace(strategy, batching="batched") if strategy.batching == "auto" else strategy
    return Drive(strategy, task(cell), sequences())


def grads_of(strategy, cell: str = "gru") -> dict[str, Any]:
    return drive_of(strategy, cell).grads(sequences())


def squared(out, y):
    return jnp.square(out - y).mean(-1)


def flat(grads) -> dict[str, np.ndarray]:
    return {
        f"{name}{jax.tree_util.keystr(path)}": np.asarray(leaf)
        for name, tree in grads.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same(got, wanted, tolerance: float = 1e-5) -> None:
    """Every leaf within ``tolerance`` of the largest number of the wanted leaf; exact zeros are equal."""
    got, wanted = flat(got), flat(wanted)
    assert got.keys() == wanted.keys()
    for name, want in wanted.items():
        have, scale = got[name], np.abs(want).max()
        assert have.shape == want.shape and have.dtype == want.dtype, name
        assert np.isfinite(want).all(), name
        if scale == 0:
            assert not have.any(), f"{name}: expected exact zeros, got {np.abs(have).max()}"
        error = np.abs(have - want).max()
        assert error <= tolerance * scale, f"{name}: off by {error / scale:.2e} of its largest number"


def cosine(a, b) -> float:
    x, y = (np.concatenate([leaf.ravel() for leaf in flat(g).values()]) for g in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.fixture(scope="session")
def lab():
    return SimpleNamespace(
        **{
            f.__name__: f
            for f in (Drawing, Drawn, Drive, Net, Task, drawn, learn, drive_of, grads_of, task)
            + (sequences, by_hand, squared, flat, same, cosine)
        },
        B=B, N=N, N_IN=N_IN, N_OUT=N_OUT, WARM=WARM, LEARN=LEARN, KEY=KEY,
    )  # fmt: skip
