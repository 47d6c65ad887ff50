"""D-RTRL in reverse against braintrace's trace: the same gradients, for any network, segments and update schedule."""

from dataclasses import replace

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain import BPTT, DRTRL
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import parameters
from jaxtrain.engine.program import Program
from jaxtrain.strategies.reverse.learner import ReverseLearner
from tests.kit.tiers import longer
from tests.strategies.conftest import CELLS

pytestmark = pytest.mark.full

VARIANTS = [
    DRTRL(),
    DRTRL(vjp="single-step"),
    DRTRL(window=3),
    DRTRL(window=4),
    DRTRL(segment=2),
    DRTRL(segment=3, window=2),
    DRTRL(segment=3, vjp="single-step"),
    DRTRL(batching="vmap"),
    DRTRL(batching="vmap", segment=3),
]


def traced(strategy: DRTRL) -> DRTRL:
    return replace(strategy, engine="trace", segment="auto")


def reverse(strategy: DRTRL) -> DRTRL:
    return replace(strategy, engine="reverse")


def label(strategy: DRTRL) -> str:
    known = {**DRTRL().config(), "name": None}
    return "-".join(f"{key}={value}" for key, value in strategy.config().items() if known.get(key, value) != value)


@pytest.mark.cover
@pytest.mark.parametrize("cell", ["gru", "lstm", "lru", "mgu", "minigru", "vanilla", "lif"])
@pytest.mark.parametrize("strategy", VARIANTS, ids=label)
def test_gradient_is_the_traces(lab, cell, strategy):
    drive = lab.Drive(reverse(strategy), lab.task(cell), lab.sequences())
    assert isinstance(drive.learner, ReverseLearner) and drive.learner.resolved()["engine"] == "reverse"
    other = lab.Drive(traced(strategy), lab.task(cell), lab.sequences())
    for seed in range(3):
        (grads, weight, metrics), (wanted, same_weight, known) = (d(lab.sequences(seed)) for d in (drive, other))
        lab.same(grads, wanted)
        assert weight == same_weight
        for name, mean in known.items():
            np.testing.assert_allclose(metrics[name], mean, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- any two networks


class Stack(brainstate.nn.Module):
    """Layers of cells, and a readout."""

    def __init__(self, cells: tuple[str, ...], n_in: int, n_out: int, width: int):
        super().__init__()
        made = []
        for cell in cells:
            made.append(CELLS[cell](n_in))
            n_in = n_in if cell == "lru" else width
        self.layers = brainstate.nn.Sequential(*made)
        self.out = braintrace.nn.Linear(n_in, n_out)

    def update(self, x):
        return self.out(self.layers(x))


def stack(lab, cells):
    with brainstate.random.seed_context(0):
        model = Stack(cells, lab.N_IN, lab.N_OUT, lab.N)
        for state in parameters(model).values():
            state.value = jax.tree.map(lambda leaf: leaf + 0.1 * brainstate.random.randn(*leaf.shape), state.value)
    return lab.Task(model)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=15, deadline=None)
@given(
    cells=st.lists(st.sampled_from(["gru", "lstm", "lru", "minigru"]), min_size=1, max_size=3).map(tuple),
    warm=st.sampled_from([0, 3]),
    time=st.sampled_from([4, 5]),
    window=st.sampled_from([1, 2, 3]),
    segment=st.sampled_from(["sequence", 2, 4]),
    single=st.booleans(),
    weights=st.sampled_from([None, "time", "sequences"]),
    resets=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_network_segments_and_weights(lab, cells, warm, time, window, segment, single, weights, resets, seed):
    rng = np.random.default_rng(seed)
    shape = {"time": (time,), "sequences": (time, lab.B)}.get(weights)
    phases = lab.sequences(
        seed, warm=warm, time=time,
        weights=None if shape is None else jnp.asarray(rng.integers(0, 3, shape), jnp.float32),
        reset=jnp.asarray(rng.random((warm + time, lab.B)) < 0.2) if resets else None,
    )  # fmt: skip
    strategy = DRTRL(vjp="single-step", segment=segment) if single else DRTRL(window=window, segment=segment)
    grads = lab.learn(reverse(strategy), stack(lab, cells), phases)
    lab.same(grads, lab.learn(traced(strategy), stack(lab, cells), phases), 2e-5)


@pytest.mark.parametrize(
    "strategy", [DRTRL(segment=2, window=2), *longer(DRTRL(), DRTRL(vjp="single-step"))], ids=label
)
def test_two_layers_with_weights_and_resets(lab, strategy):
    rng = np.random.default_rng(3)
    phases = lab.sequences(
        weights=jnp.asarray(rng.integers(0, 3, (lab.LEARN, lab.B)), jnp.float32),
        reset=jnp.asarray(rng.random((lab.WARM + lab.LEARN, lab.B)) < 0.3),
    )
    grads = lab.learn(reverse(strategy), stack(lab, ("gru", "lru")), phases)
    lab.same(grads, lab.learn(traced(strategy), stack(lab, ("gru", "lru")), phases))


@pytest.mark.long
@pytest.mark.parametrize("cell", ["gru", "lru"])
def test_a_regulariser_on_weights_and_on_hidden_states(lab, cell):
    class Regularised(lab.Task):
        def learning_step(self, forward, x, y):
            out = forward(x)
            h = self.model.rnn.h_re.value if cell == "lru" else self.model.rnn.h.value
            decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(self.model.out.weight.value))
            return lab.squared(out, y) + 0.3 * (h**2).mean(-1) + 0.1 * decay

    for strategy in (DRTRL(), DRTRL(window=2), DRTRL(vjp="single-step")):
        pair = [
            lab.learn(s, Regularised(lab.task(cell).model), lab.sequences())
            for s in (reverse(strategy), traced(strategy))
        ]
        if strategy.vjp == "multi-step":
            lab.same(*pair)
        plain = lab.learn(reverse(strategy), lab.task(cell), lab.sequences())
        assert lab.cosine(pair[0], plain) < 0.999


# ------------------------------------------------------------------------------------- other relations, other states


class Words(brainstate.nn.Module):
    """Tokens in, by an embedding that is added to the recurrent input: a table that is traced."""

    def __init__(self, lab):
        super().__init__()
        self.table = braintrace.nn.Embedding(5, lab.N)
        self.mix = braintrace.nn.Linear(lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)
        self.width = lab.N

    def init_state(self, batch_size=None, **kwargs):
        shape = (self.width,) if batch_size is None else (batch_size, self.width)
        self.h = brainstate.HiddenState(jnp.zeros(shape))

    def update(self, x):
        self.h.value = jnp.tanh(0.5 * self.h.value + self.table(x) + self.mix(self.h.value))
        return self.out(self.h.value)


class Built(brainstate.nn.Module):
    """A recurrence from any operation of braintrace: ``make(inputs, units)``."""

    def __init__(self, lab, make):
        super().__init__()
        self.width = lab.N
        self.mix = make(lab.N_IN + lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def init_state(self, batch_size=None, **kwargs):
        shape = (self.width,) if batch_size is None else (batch_size, self.width)
        self.h = brainstate.HiddenState(jnp.zeros(shape))

    def update(self, x):
        made = self.mix(jnp.concatenate([x, self.h.value], -1))
        self.h.value = jnp.tanh(0.4 * self.h.value + made)
        return self.out(self.h.value)


MAKERS = {
    "lora": lambda i, o: braintrace.nn.LoRA(i, 2, o),
    "signed": lambda i, o: braintrace.nn.SignedWLinear(i, o),
}


@pytest.mark.parametrize("segment", ["sequence", 2])
def test_an_embedding(lab, segment):
    phases = lab.sequences()
    rng = np.random.default_rng(0)
    words = lambda leaf: jnp.asarray(rng.integers(0, 5, leaf.shape[:2]))  # noqa: E731
    phases = replace(phases, warmup=words(phases.warmup), inputs=words(phases.inputs))

    def model():
        with brainstate.random.seed_context(0):
            return lab.Task(Words(lab))

    grads = lab.learn(DRTRL(engine="reverse", segment=segment), model(), phases)
    lab.same(grads, lab.learn(DRTRL(engine="trace"), model(), phases))
    assert lab.flat(grads)["table.weight"].any()


@pytest.mark.parametrize("name", MAKERS)
def test_other_products(lab, name):
    def model():
        with brainstate.random.seed_context(0):
            made = Built(lab, MAKERS[name])
            for state in parameters(made).values():
                state.value = jax.tree.map(lambda leaf: leaf + 0.3 * brainstate.random.randn(*leaf.shape), state.value)
            return lab.Task(made)

    strategies = [DRTRL(), DRTRL(vjp="single-step")] + ([] if name == "lora" else [DRTRL(segment=2)])
    for strategy in strategies:
        grads = lab.learn(reverse(strategy), model(), lab.sequences())
        lab.same(grads, lab.learn(traced(strategy), model(), lab.sequences()))


class Noisy(brainstate.nn.Module):
    """A network with noise of its own and a running mean of its input."""

    def __init__(self, lab):
        super().__init__()
        self.net = lab.task().model
        self.mean = brainstate.LongTermState(jnp.zeros(lab.N_IN))

    def update(self, x):
        self.mean.value = 0.9 * self.mean.value + 0.1 * x.mean(0)
        return self.net(x - self.mean.value + 0.1 * brainstate.random.randn(*x.shape))


@pytest.mark.parametrize("strategy", [DRTRL(window=3), *longer(DRTRL(), DRTRL(segment=2))], ids=label)
def test_noise_and_running_statistics(lab, strategy):
    """The windows, differentiated by themselves, meet the same random numbers and statistics as the way to them."""
    pair = [lab.Drive(s, lab.Task(Noisy(lab)), lab.sequences()) for s in (reverse(strategy), traced(strategy))]
    ours, wanted = ([d(lab.sequences(seed))[0] for seed in range(2)] for d in pair)
    for have, want in zip(ours, wanted, strict=True):
        lab.same(have, want)
    means = [d._call(d._values, lab.sequences())[0]["mean"] for d in pair]
    np.testing.assert_allclose(*means, rtol=1e-5)
    assert np.asarray(means[0]).any()


# ------------------------------------------------------------------------- update schedule, states that continue


def updates(lab, strategy, batches, cell="gru"):
    """Every gradient and weight handed to ``update``, the parameters moved a little each time."""
    from jaxtrain.core.functional import Functional
    from jaxtrain.core.state import drop_weak_types, long_term_states, set_key

    module = lab.task(cell)
    drop_weak_types(parameters(module.model).values())
    learner = strategy.bind(Objective(module, lambda x: x), batches[0])
    lasts = {f"learner/{name}": state for name, state in learner.states().items()}
    named = {**parameters(module.model), **long_term_states(module.model), **lasts}
    drop_weak_types([*lasts.values(), *learner.short_term_states()])

    def step(phases):
        set_key(lab.KEY)

        def update(grads, weight, metrics):
            for name, grad in grads.items():
                state = parameters(module.model)[name]
                state.value = jax.tree.map(lambda p, g: p - 0.01 * g, state.value, grad)
            return {}

        learner.learn(phases, update)

    values = {name: state.value for name, state in named.items()}
    call = jax.jit(Functional(step, named, learner.short_term_states(), batches[0]))
    for phases in batches:
        values, _ = call(values, phases)
    return {name: values[name] for name in parameters(module.model)}


@pytest.mark.cover
@pytest.mark.parametrize("cell", ["gru", "lstm", "lru"])
@pytest.mark.parametrize("every", [1, 2, "sequence"])
def test_updates_within_stateful_streams(lab, cell, every):
    """Weights that move within a sequence, hidden states and traces that continue, sequences that are reset."""
    rng = np.random.default_rng(1)
    batches = [
        lab.sequences(seed, warm=0, reset=jnp.asarray(rng.random((lab.LEARN, lab.B)) < 0.2)) for seed in range(3)
    ]
    made = [
        updates(lab, DRTRL(engine=engine, update_every=every, stateful=True), batches, cell)
        for engine in ("reverse", "trace")
    ]
    lab.same(*made, 1e-4)


def test_states_that_continue_have_names(lab):
    learner = DRTRL(engine="reverse", stateful=True).bind(Objective(lab.task(), lambda x: x), lab.sequences())
    assert set(learner.states()) == {"hidden.rnn.h", "influence0", "influence1"}
    assert not learner.short_term_states()


# ------------------------------------------------------------------------------ memory, truth, training


def temporary_bytes(lab, strategy, warm):
    phases = lab.sequences(warm=warm)
    drive = lab.Drive(strategy, lab.task(), phases)
    return drive._call.lower(drive._values, phases).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_sequence():
    from tests.strategies import conftest as lab

    short, long = (temporary_bytes(lab, DRTRL(engine="reverse", segment=20), warm) for warm in (200, 2000))
    own = [2000 * lab.B * lab.N_IN * 4, 200 * lab.B * lab.N_IN * 4]  # the inputs, in segments
    assert long - own[0] <= 1.05 * (short - own[1]) + 4096
    whole = [temporary_bytes(lab, DRTRL(engine="reverse", segment="sequence"), warm) for warm in (200, 2000)]
    assert whole[1] > 5 * whole[0]


def test_an_lru_has_bptts_gradient(lab):
    """Its recurrence is diagonal, so that nothing is left out; a GRU's is not."""
    for cell, exact in (("lru", True), ("gru", False)):
        ours = lab.learn(DRTRL(engine="reverse"), lab.task(cell), lab.sequences())
        truth = lab.learn(BPTT(), lab.task(cell), lab.sequences())
        assert (lab.cosine(ours, truth) > 0.99999) == exact


def test_it_trains_through_a_program(lab):
    """The same weights after some steps as with a trace, but for rounding."""
    import optax

    class Trained(lab.Task):
        def configure_optimizer(self):
            return optax.sgd(0.05)

    after = []
    for engine in ("reverse", "trace"):
        module = Trained(lab.task().model)
        program = Program(module, DRTRL(engine=engine), lambda x: x, lab.sequences(), seed=0, clip=None, accumulate=1,
                          nonfinite="raise", chunk=2)  # fmt: skip
        program.prepare()
        for step in (0, 2):
            program.train([lab.sequences(step), lab.sequences(step + 1)], step).fetch()
        after.append(program.host_parameters())
    lab.same(*after)
