"""What every strategy shares: weights, resets, extras, encoding, batching, evaluation, and errors that say what."""

import dataclasses
from functools import cache

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import jaxtrain
from jaxtrain import BPTT, DRTRL
from jaxtrain.core.functional import Functional
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import parameters
from jaxtrain.strategies import bind_rule as rules_of
from jaxtrain.strategies.base import choose_batching
from tests.kit.tiers import longer

pytestmark = pytest.mark.full

both = pytest.mark.parametrize("strategy", [BPTT(), DRTRL()], ids=["bptt", "drtrl"])
three = pytest.mark.parametrize(
    "strategy", [DRTRL(), *longer(BPTT(), DRTRL(window=3))], ids=["drtrl", "bptt", "window"]
)


def bind(strategy, module, phases):
    return strategy.bind(Objective(module, lambda x: x), phases)


# ---------------------------------------------------------------------------------------------- weights and resets


@pytest.mark.parametrize("vjp,window", [("multi-step", 2), *longer(("multi-step", None), ("single-step", None))])
def test_weights_are_the_reference_loops(lab, vjp, window):
    rng = np.random.default_rng(7)
    for shape in ((lab.LEARN, lab.B), (lab.LEARN,))[: 1 if window else 2]:
        phases = lab.sequences(weights=jnp.asarray(rng.uniform(size=shape), jnp.float32))
        wanted = lab.by_hand(lab.task().model, phases, lab.squared, vjp=vjp, window=window)
        lab.same(lab.learn(DRTRL(vjp=vjp, window=window or 1), lab.task(), phases), wanted)


CHOSEN = 1


@pytest.fixture(scope="module")
def rest_of(lab):
    """The gradient of one sequence's time steps from ``late`` on, alone and from a fresh state."""

    @cache
    def gradient(rule: str, late: int):
        full, scored = lab.sequences(), max(late - lab.WARM, 0)
        x, y = jnp.concatenate([full.warmup, full.inputs])[late:, [CHOSEN]], full.targets[scored:, [CHOSEN]]
        warm = len(x) - len(y)
        rest = Phases(x[:warm] if warm else None, x[warm:], y)
        if rule == "bptt":
            return lab.learn(BPTT(), lab.task(), rest)
        # Windows stay where they are: the one with the reset continues from it.
        tiles = {0: (3, 1), 1: (2, 1), 3: (1,)}[scored] if rule == "window" else None
        return lab.by_hand(lab.task().model, rest, lab.squared, window=tiles)

    return gradient


@pytest.mark.parametrize(
    "strategy,rule",
    [
        (BPTT(batching="batched"), "bptt"),
        (DRTRL(batching="vmap"), "drtrl"),
        *longer((DRTRL(window=3), "window"), (BPTT(batching="vmap"), "bptt"), (DRTRL(batching="batched"), "drtrl")),
    ],
    ids=["bptt", "drtrl-vmap", "window", "bptt-vmap", "drtrl"],
)
def test_zero_weights_and_resets(lab, strategy, rule, rest_of):
    """What weighs nothing contributes nothing. A sequence that is reset has the gradient of its time steps before, plus
    that of the rest alone from a fresh state."""
    full, none = lab.sequences(), jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool)
    ones = jnp.ones((lab.LEARN, lab.B))
    drive = lab.Drive(strategy, lab.task(), Phases(full.warmup, full.inputs, full.targets, ones, none))

    def grads(weights=ones, reset=none, targets=full.targets):
        return drive.grads(Phases(full.warmup, full.inputs, targets, weights, reset))

    lab.same(grads(), lab.grads_of(strategy))
    lab.same(grads(reset=none.at[0].set(True)), lab.grads_of(strategy))
    lab.same(grads(weights=0 * ones), jax.tree.map(jnp.zeros_like, grads()))
    for late in (3, lab.WARM + 1) + ((lab.WARM + 3,) if rule == "window" else ()):
        scored = max(late - lab.WARM, 0)
        before = ones.at[scored:, CHOSEN].set(0)
        prefix = grads(before)
        lab.same(grads(before, targets=full.targets.at[scored:, CHOSEN].set(99.0)), prefix)
        wanted = jax.tree.map(jnp.add, prefix, rest_of(rule, late))
        lab.same(grads(reset=none.at[late, CHOSEN].set(True)), wanted)


@three
def test_a_scalar_loss_with_weights_per_sequence_is_refused(lab, strategy):
    class Scalar(lab.Task):
        def learning_step(self, forward, x, y):
            return super().learning_step(forward, x, y).mean()

    full = lab.sequences(weights=jnp.ones((lab.LEARN,)))
    lab.same(lab.learn(strategy, Scalar(lab.task().model), full), lab.grads_of(strategy))  # a mean weighs its sequences
    batch_size = lab.sequences(weights=jnp.ones((lab.LEARN, lab.B)))
    with pytest.raises(ValueError, match=r"^Scalar.learning_step: loss is a scalar, .* return one loss per seq"):
        lab.learn(strategy, Scalar(lab.task().model), batch_size)


# ------------------------------------------------------------------------------------------------- what a step gets


@three
def test_extras_come_by_keyword(lab, strategy):
    class Rewarded(lab.Task):
        def learning_step(self, forward, x, y, *, reward, phase):
            assert reward.shape == (lab.B,) and phase.shape == (lab.B, 1)
            return reward * super().learning_step(forward, x, y), {"phase": phase[:, 0]}

    reward = jnp.asarray(np.random.default_rng(1).uniform(size=(lab.LEARN, lab.B)), jnp.float32)
    phase = jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (lab.LEARN, lab.B, 1))
    phases = lab.sequences(extras={"phase": phase, "reward": reward})
    grads, weight, metrics = lab.Drive(strategy, Rewarded(lab.task().model), phases)(phases)
    lab.same(grads, lab.learn(strategy, lab.task(), lab.sequences(weights=reward)))
    assert metrics["phase"].num / metrics["phase"].weight == 1.5 and weight == lab.LEARN * lab.B


@both
def test_inputs_are_encoded_one_time_step_at_a_time(lab, strategy):
    ids = np.random.default_rng(2).integers(0, lab.N_IN, (lab.WARM + lab.LEARN, lab.B)).astype(np.int8)
    full, one_hot = lab.sequences(), lambda x: jax.nn.one_hot(x, lab.N_IN)
    coded = Phases(ids[: lab.WARM], ids[lab.WARM :], full.targets)
    plain = Phases(one_hot(coded.warmup), one_hot(coded.inputs), full.targets)
    lab.same(lab.learn(strategy, lab.task(), coded, one_hot), lab.learn(strategy, lab.task(), plain))


class Words(brainstate.nn.Module):
    """Integer inputs that go straight into the model."""

    def __init__(self, lab):
        super().__init__()
        self.embedding = braintrace.nn.Embedding(7, lab.N_IN)
        self.net = lab.Net("gru")

    def update(self, ids):
        return self.net(self.embedding(ids))


def test_integer_inputs(lab):
    ids = jnp.asarray(np.random.default_rng(2).integers(0, 7, (lab.WARM + lab.LEARN, lab.B)), jnp.int32)
    phases = Phases(ids[: lab.WARM], ids[lab.WARM :], lab.sequences().targets)

    def task():
        with brainstate.random.seed_context(0):
            return lab.Task(Words(lab))

    wanted = lab.by_hand(task().model, phases, lab.squared)
    assert lab.flat(wanted)["embedding.weight"].any()
    lab.same(lab.learn(DRTRL(), task(), phases), wanted)
    lab.same(lab.learn(DRTRL(batching="vmap"), task(), phases), wanted)
    lab.same(lab.learn(BPTT(batching="vmap"), task(), phases), lab.learn(BPTT(), task(), phases))


@both
def test_a_batch_without_targets(lab, strategy):
    class Rate(lab.Task):
        def learning_step(self, forward, x, y):
            assert y is None
            return jnp.square(forward(x)).mean(-1)

    full = lab.sequences()
    silent = Phases(full.warmup, full.inputs)
    zeros = Phases(full.warmup, full.inputs, jnp.zeros_like(full.targets))
    lab.same(lab.learn(strategy, Rate(lab.task().model), silent), lab.learn(strategy, lab.task(), zeros))


@pytest.mark.parametrize(
    "strategy", [DRTRL(batching="vmap"), *longer(BPTT(batching="vmap"), DRTRL(batching="batched"))]
)
def test_evaluate_and_predict_are_the_model_stepped_by_itself(lab, strategy):
    full, task = lab.sequences(reset=jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool).at[6, 0].set(True)), lab.task()
    learner = bind(strategy, task, full)

    def run(phases):
        return learner.evaluate(phases), learner.predict(phases)

    functional = Functional(run, parameters(task.model), learner.short_term_states(), full)
    values = {name: state.value for name, state in parameters(task.model).items()}
    metrics, outputs = jax.jit(functional)(values, full)[1]
    model = lab.task().model
    x = jnp.concatenate([full.warmup, full.inputs])
    brainstate.nn.init_all_states(model, batch_size=lab.B)
    whole = brainstate.transform.for_loop(model, x)[lab.WARM :]
    brainstate.nn.init_all_states(model, batch_size=1)
    rest = brainstate.transform.for_loop(model, x[6:, :1])
    wanted = whole.at[1:, :1].set(rest)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].num, lab.squared(wanted, full.targets).sum(), rtol=1e-5)


# --------------------------------------------------------------------------------------------------------- batching


class OneSequence(brainstate.nn.Module):
    """Written for one sequence: its readout is a matrix times a vector."""

    def __init__(self, lab):
        super().__init__()
        self.rnn = lab.task().model.rnn
        self.out = brainstate.ParamState(jnp.asarray(np.random.default_rng(0).standard_normal((lab.N_OUT, lab.N))))

    def update(self, x):
        return jnp.dot(self.out.value, self.rnn(x))


class Scalar(OneSequence):
    """One number per sequence: with a batch it would mix the sequences, without an error."""

    def update(self, x):
        return self.rnn(x).sum() * self.out.value.sum()


@pytest.mark.parametrize("model", [OneSequence, *longer(Scalar)])
def test_a_model_for_one_sequence_is_mapped(lab, model):
    def loss(out, y):
        return lab.squared(out[..., None] if model is Scalar else out, y)

    class Task(lab.Task):
        def learning_step(self, forward, x, y):
            return loss(forward(x), y)

    phases = lab.sequences()
    drive = lab.Drive(DRTRL(), Task(model(lab)), phases)
    assert drive.learner.resolved()["batching"] == "vmap"
    lab.same(drive.grads(phases), lab.by_hand(model(lab), phases, loss, vmap=True))
    bptt = lab.Drive(BPTT(), Task(model(lab)), phases)
    assert bptt.learner.resolved() == {"batching": "vmap"}
    batch_size = [
        lab.learn(BPTT(batching="vmap"), Task(model(lab)), jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], phases))
        for i in range(lab.B)
    ]
    lab.same(bptt.grads(phases), jax.tree.map(lambda *leaves: sum(leaves), *batch_size))


def test_a_model_with_its_own_states_is_batched(lab, monkeypatch):
    """Hidden states made in ``__init__`` cannot be mapped, even with a large trace; every sequence resets them."""

    class Fixed(lab.Net):
        def __init__(self):
            super().__init__("gru")
            self.rnn.h = brainstate.HiddenState(jnp.full((lab.B, lab.N), 0.5))
            self.rnn.init_state = lambda *args, **kwargs: None

    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    phases = lab.sequences(warm=0)
    drive = lab.Drive(DRTRL(), lab.Task(Fixed()), phases)
    assert drive.learner.resolved()["batching"] == "batched"
    first, again = drive.grads(phases), drive.grads(phases)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))


@both
def test_a_model_that_fits_no_batch_says_what_it_was_given(lab, strategy):
    wide = jnp.ones((4, lab.B, lab.N_IN + 1))
    with pytest.raises(Exception) as raised:
        bind(strategy, lab.task(), Phases(None, wide, wide))
    assert raised.value.__notes__[-1] == (
        "jaxtrain: the model was called with an input of shape (3, 4), (B, ...), one time step"
    )


def test_wrong_words_are_refused(lab):
    with pytest.raises(ValueError, match=r"^BPTT\(batching='rows'\): expected 'auto' or 'batched' or 'vmap'$"):
        BPTT(batching="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^batching must be 'auto', 'batched' or 'vmap', got 'rows'$"):
        choose_batching("rows", lab.task().model, lab.sequences().inputs[0], lab.B)  # type: ignore[arg-type]

    class Lazy(lab.Task):
        def learning_step(self, forward, x, y):
            return y.sum(-1)

    with pytest.raises(ValueError, match=r"^Lazy.learning_step called forward 0 times; expected exactly one"):
        bind(DRTRL(), Lazy(lab.task().model), lab.sequences())

    class Frozen(lab.Task):
        def trainable(self, name):
            return False

    for strategy in (BPTT(), DRTRL()):
        with pytest.raises(ValueError, match=r"^nothing to train: the model's parameters are \['out.weight', "):
            # BPTT binds, to read a frozen model.
            bind(strategy, Frozen(lab.task().model), lab.sequences()).report(lab.sequences())


def test_configuration_and_what_auto_became():
    assert DRTRL(window=3).config() == {
        "name": "drtrl", "update_every": "sequence", "stateful": False, "batching": "auto", "vjp": "multi-step",
        "window": 3, "engine": "auto", "segment": "auto", "readout_memory": False,
    }  # fmt: skip
    assert DRTRL().resolve({"batching": "vmap", "chunk": 5}) == DRTRL(batching="vmap")
    assert DRTRL(batching="batched").resolve({"batching": "vmap"}) == DRTRL(batching="batched")

    @dataclasses.dataclass(frozen=True)
    class Made(BPTT):
        made: str = dataclasses.field(init=False, default="auto")

    assert Made().resolve({"batching": "vmap", "made": "x"}) == Made(batching="vmap")
    assert BPTT(remat=True).resolve({}) == BPTT(remat=True) == jaxtrain.strategies.BPTT(remat=True)


class Clocked(brainstate.nn.Module):
    """Reads the environment's time; ``own`` sets it, from a count of its own."""

    def __init__(self, lab, own: bool):
        super().__init__()
        self.net, self.own = lab.task("minigru").model, own

    def init_state(self, batch_size=None, **kwargs):
        batch_size = () if batch_size is None else (batch_size,)
        self.count = brainstate.HiddenState(jnp.zeros((*batch_size, 1)))

    def update(self, x):
        if not self.own:
            return self.net(x) + 0.1 * brainstate.environ.get("t")
        self.count.value = self.count.value + 1.0
        with brainstate.environ.context(t=self.count.value):
            return self.net(x) + 0.1 * brainstate.environ.get("t")


@pytest.mark.cover
@pytest.mark.parametrize("batching", ["auto", "vmap"])
@both
def test_a_model_that_reads_the_time_of_the_environment_is_refused(lab, strategy, batching):
    """Without a time, and with one that would stand still; a model that sets its own is none of our business."""
    strategy = dataclasses.replace(strategy, batching=batching)
    for environ in ({}, {"t": 0.0}):
        with (
            brainstate.environ.context(**environ),
            pytest.raises(ValueError, match=r"^Clocked reads the time 't' of brainstate.environ, which is the same at"),
        ):
            bind(strategy, lab.Task(Clocked(lab, own=False)), lab.sequences())
        with brainstate.environ.context(**environ):
            bind(strategy, lab.Task(Clocked(lab, own=True)), lab.sequences())


def test_gif_is_refused_by_name(lab):
    """Two hidden states in one equation: braintrace refuses, and what was asked of it is named."""
    import brainpy.state as bp

    class Spikes(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = bp.Gif(lab.N, V_initializer=braintools.init.ZeroInit(unit=u.mV))
            self.synapse = braintrace.nn.Linear(
                lab.N_IN, lab.N, w_init=braintools.init.KaimingNormal(unit=u.mA), b_init=None
            )

        def update(self, x):
            return self.neuron(self.synapse(x))

    with brainstate.environ.context(dt=1.0 * u.ms), pytest.raises(ValueError) as raised:
        bind(DRTRL(engine="trace"), lab.Task(Spikes()), lab.sequences())
    assert "one hidden state in a single equation" in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith("strategy 'drtrl' cannot run on Spikes: ")
