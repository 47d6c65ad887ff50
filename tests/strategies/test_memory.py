"""Credit through readout memory: against ``jax.grad`` of loops written by hand, BPTT, and e-prop's filter."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import parameters
from jaxtrain.strategies import UORO, EProp, ETrace, bind_rule, in_reverse
from jaxtrain.strategies.reverse.learner import ReverseLearner
from tests.kit.tiers import longer
from tests.strategies.sums import sums

pytestmark = pytest.mark.full

N, OUT = 4, 2
KEPT, LEAK = 0.8, 0.7


class Units(brainstate.nn.Module):
    """Units, with recurrent weights or each independent, and a readout that is ``memory``."""

    def __init__(self, n_in: int, memory: str, recurrent: bool = False, layers: int = 1, delay: int = 3):
        super().__init__()
        self.memory, self.recurrent, self.delay = memory, recurrent, delay
        self.mix = braintrace.nn.Linear(n_in + N * recurrent, N)
        self.more = [braintrace.nn.Linear(N, N) for _ in range(layers - 1)]
        self.out = braintrace.nn.Linear(N, OUT)
        if memory == "learned":  # leaks, by element-wise weights
            self.leak = brainstate.ParamState(jnp.asarray([LEAK, 0.5]))

    def init_state(self, batch_size=None, **_):
        lead = () if batch_size is None else (batch_size,)
        zeros = lambda *shape: jnp.zeros((*lead, *shape))  # noqa: E731
        self.h = brainstate.HiddenState(zeros(N))
        self.higher = [brainstate.HiddenState(zeros(N)) for _ in self.more]
        if self.memory == "delay":
            self.buffer = brainstate.ShortTermState(zeros(self.delay, N))
        elif self.memory != "none":
            self.total = brainstate.HiddenState(zeros(OUT))

    def update(self, x):
        given = jnp.concatenate([x, self.h.value], -1) if self.recurrent else x
        self.h.value = jnp.tanh(KEPT * self.h.value + self.mix(given))
        h = self.h.value
        for weight, state in zip(self.more, self.higher, strict=True):
            state.value = jnp.tanh(KEPT * state.value + weight(h))
            h = state.value
        if self.memory == "delay":
            held = self.buffer.value
            self.buffer.value = jnp.concatenate([held[..., 1:, :], h[..., None, :]], -2)
            return self.out(held[..., 0, :])
        if self.memory == "none":
            return self.out(h)
        made, total = self.out(h), self.total.value
        if self.memory == "sum":
            self.total.value = total + jnp.tanh(made)
        else:
            leak = braintrace.element_wise(self.leak.value) if self.memory == "learned" else LEAK
            self.total.value = leak * total + made
        return self.total.value


def task(lab, memory: str, kind=Units, **kwargs):
    with brainstate.random.seed_context(0):
        model = kind(lab.N_IN, memory, **kwargs)
        for state in parameters(model).values():
            state.value = jax.tree.map(lambda leaf: leaf + 0.3 * brainstate.random.randn(*leaf.shape), state.value)
    return lab.Task(model)


def ratio(lab, got, wanted) -> float:
    norm = lambda grads: np.linalg.norm(np.concatenate([leaf.ravel() for leaf in lab.flat(grads).values()]))  # noqa: E731
    return float(norm(got) / norm(wanted))


def exact(lab, got, wanted) -> None:
    assert lab.cosine(got, wanted) > 0.999 and abs(ratio(lab, got, wanted) - 1) < 0.01
    lab.same(got, wanted, 1e-4)


# ----------------------------------------------------------------------------------- units that are each by themselves


@pytest.mark.parametrize("memory", ["leaky", *longer("sum", "delay")])
@pytest.mark.parametrize("vjp", ["multi-step", *longer("single-step")])
def test_on_units_without_recurrent_weights_it_is_bptt(lab, memory, vjp):
    """With a warm-up and resets; without the field most of the norm is missing."""
    phases = lab.sequences(reset=jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool).at[4, 1].set(True).at[7, 0].set(True))
    truth = lab.learn(BPTT(), task(lab, memory), phases)
    exact(lab, lab.learn(DRTRL(readout_memory=True, vjp=vjp), task(lab, memory), phases), truth)
    short = lab.learn(DRTRL(vjp=vjp, engine="trace"), task(lab, memory), phases)
    assert ratio(lab, {"mix": short["mix.weight"]}, {"mix": truth["mix.weight"]}) < 0.6


@pytest.mark.full
@pytest.mark.parametrize(
    "strategy", [DRTRL(window=3, readout_memory=True), DRTRL(batching="vmap", readout_memory=True)]
)
@pytest.mark.parametrize("memory", ["leaky", "delay"])
def test_windows_and_mapped_models(lab, strategy, memory):
    phases = lab.sequences()
    exact(lab, lab.learn(strategy, task(lab, memory), phases), lab.learn(BPTT(), task(lab, memory), phases))


@pytest.mark.full
def test_a_deep_network_of_such_units(lab):
    """Upper layers whose units are each by themselves are memory of the lowest."""
    phases = lab.sequences()
    truth = lab.learn(BPTT(), task(lab, "sum", layers=3), phases)
    exact(lab, lab.learn(DRTRL(readout_memory=True), task(lab, "sum", layers=3), phases), truth)
    assert ratio(lab, lab.learn(DRTRL(), task(lab, "sum", layers=3), phases), truth) < 0.9


@pytest.mark.full
@pytest.mark.parametrize("vjp", ["multi-step", "single-step"])
def test_without_memory_nothing_changes(lab, vjp):
    phases, strategy = lab.sequences(), DRTRL(vjp=vjp, readout_memory=True)
    learner = strategy.bind(Objective(task(lab, "none", recurrent=True), lambda x: x), phases)
    assert learner.notes == ["readout_memory: the model has none, so the option has no effect"]
    got = lab.learn(strategy, task(lab, "none", recurrent=True), phases)
    lab.same(got, lab.learn(DRTRL(vjp=vjp), task(lab, "none", recurrent=True), phases))


def test_it_is_eprops_filter_where_the_readout_is_linear(lab):
    """A leaky readout with one decay for all its units: what ``kappa`` filters, reverse mode finds going back."""

    class Reads(Units):
        def update(self, x):
            self.h.value = jnp.tanh(KEPT * self.h.value + self.mix(x))
            return self.out(self.h.value)

    class Weighs(lab.Task):  # a linear loss, so that what is fed back does not depend on the readout's value
        def learning_step(self, forward, x, y):
            return (forward(x) * y).sum(-1)

    leaky, plain = task(lab, "leaky").model, task(lab, "none", kind=Reads).model
    phases = lab.sequences(warm=0, time=9)
    got = lab.learn(DRTRL(vjp="single-step", readout_memory=True), Weighs(leaky), phases)
    filtered = lab.learn(EProp(kappa=LEAK), Weighs(plain), phases)
    lab.same({"mix": got["mix.weight"]}, {"mix": filtered["mix.weight"]})


KAPPA = EProp(kappa=LEAK), EProp(kappa=LEAK, engine="trace"), ETrace(trace_filter="kappa", kappa=LEAK)


@pytest.mark.parametrize("strategy", KAPPA, ids=str)
def test_kappa_with_a_readout_that_leaks_by_itself_is_refused(lab, strategy, monkeypatch):
    phases = lab.sequences(warm=0, time=9)
    name = type(strategy).__name__
    with pytest.raises(ValueError, match=rf"^{name}\(kappa=0.7\): kappa filters .* but total of Units has memory"):
        lab.learn(strategy, task(lab, "leaky"), phases)
    for fine in (task(lab, "none"), task(lab, "none", layers=2), task(lab, "delay")):  # their readouts do not leak
        strategy.bind(Objective(fine, lambda x: x), phases)
    if name == "EProp":  # why: the units' gradient is right, but that of the readout is not
        for file in (bind_rule, in_reverse):
            monkeypatch.setattr(file, "require_one_filter", lambda *args: None)
        got, truth = (lab.learn(each, task(lab, "leaky"), phases) for each in (strategy, BPTT()))
        lab.same({"mix": got["mix.weight"]}, {"mix": truth["mix.weight"]})
        assert ratio(lab, {"out": got["out.weight"]}, {"out": truth["out.weight"]}) > 1.5


# ---------------------------------------------------------------------------------------------- recurrent, by hand


def by_hand(model, phases, *, single: bool, window: int = 1, segment: int | None = None):
    """The gradient of ``sum(w * loss)`` of a recurrent network with a leaky readout, by ``jax.grad``.

    ``frozen``: units whose recurrent input is held constant, as D-RTRL has them. Each window begins with them, goes
    through its time steps as they are (or, for the single-step rule, follows the frozen units), and hands the readout's
    value on. At the start of a segment, that value depends on the readout's own weights alone.
    """
    x, y = np.concatenate([phases.warmup, phases.inputs]), phases.targets
    warm, time, batch = phases.sizes
    weights = jnp.ones((time, batch)) if phases.weights is None else phases.weights
    reset = jnp.zeros((warm + time, batch), bool) if phases.reset is None else phases.reset
    held = jax.lax.stop_gradient

    def loss(values):
        affine = lambda name, x: x @ values[name]["weight"] + values[name]["bias"]  # noqa: E731
        mix, out = (lambda x: affine("mix.weight", x)), (lambda h: affine("out.weight", h))
        grow = lambda h, x, fed: jnp.tanh(KEPT * h + mix(jnp.concatenate([x, fed], -1)))  # noqa: E731
        frozen, units = jnp.zeros((batch, N)), jnp.zeros((batch, N))
        read, own, total = jnp.zeros((batch, OUT)), jnp.zeros((batch, OUT)), 0.0
        for t in range(warm + time):
            if t <= warm or (t - warm) % window == 0:
                units = frozen
            if segment is not None and (t == warm or (t > warm and (t - warm) % segment == 0)):
                read = own
            fresh = reset[t][:, None]
            frozen, units = jnp.where(fresh, 0, frozen), jnp.where(fresh, 0, units)
            read, own = jnp.where(fresh, 0, read), jnp.where(fresh, 0, own)
            frozen, units = grow(frozen, x[t], held(frozen)), grow(units, x[t], units)
            units = frozen if single else units
            leak = values.get("leak", LEAK)
            read, own = leak * read + out(units), leak * own + out(held(frozen))
            if t >= warm:
                total = total + (weights[t - warm] * jnp.square(read - y[t - warm]).mean(-1)).sum()
        return total

    return jax.jit(jax.grad(loss))({name: state.value for name, state in parameters(model).items()})


@pytest.mark.parametrize(
    "fields", [{}, *longer({"vjp": "single-step"}, {"window": 3}, {"batching": "vmap"}, {"engine": "reverse"})]
)
def test_a_recurrent_network_by_hand(lab, fields):
    rng = np.random.default_rng(0)
    phases = lab.sequences(
        weights=jnp.asarray(rng.integers(0, 3, (lab.LEARN, lab.B)), jnp.float32),
        reset=jnp.asarray(rng.random((lab.WARM + lab.LEARN, lab.B)) < 0.2),
    )
    got = lab.learn(DRTRL(readout_memory=True, **fields), task(lab, "leaky", recurrent=True), phases)
    single = fields.get("vjp") == "single-step"
    wanted = by_hand(task(lab, "leaky", recurrent=True).model, phases, single=single, window=fields.get("window", 1))
    lab.same(got, wanted)
    truth = lab.learn(BPTT(), task(lab, "leaky", recurrent=True), phases)
    plain = lab.learn(DRTRL(**fields), task(lab, "leaky", recurrent=True), phases)
    assert lab.cosine(got, truth) > lab.cosine(plain, truth)


@pytest.mark.parametrize(
    ("memory", "fields"),
    [
        ("learned", {"segment": 2}),
        *longer(
            ("leaky", {"segment": 2}),
            ("leaky", {"segment": 4, "window": 2}),
            ("leaky", {"segment": 3, "vjp": "single-step"}),
            ("learned", {"segment": 3, "vjp": "single-step"}),
            ("leaky", {"segment": 2, "batching": "vmap"}),
        ),
    ],
)
def test_segments_by_hand(lab, memory, fields):
    """Within a segment everything; between segments the readout's own weights have their trace."""
    reset = jnp.zeros((lab.WARM + 7, lab.B), bool).at[lab.WARM + 3, 1].set(True)
    phases = lab.sequences(time=7, reset=reset)
    make = lambda: task(lab, memory, recurrent=True)  # noqa: E731
    single, window = fields.get("vjp") == "single-step", fields.get("window", 1)
    wanted = by_hand(make().model, phases, single=single, window=window, segment=fields["segment"])
    lab.same(lab.learn(DRTRL(readout_memory=True, **fields), make(), phases), wanted)


@pytest.mark.full
@pytest.mark.parametrize("fields", [{"stateful": True}, {"update_every": 2}, {"stateful": True, "update_every": 2}])
def test_a_stream_in_batches_is_one_sequence_in_segments(lab, fields):
    whole = lab.sequences(warm=0, time=8)
    parts = [jax.tree.map(lambda leaf, part=part: leaf[part], whole) for part in (slice(0, 4), slice(4, 8))]
    batches = parts if "stateful" in fields else [whole]
    got, *_ = sums(lab, DRTRL(readout_memory=True, **fields), task(lab, "leaky", recurrent=True), batches)
    segment = fields.get("update_every", 4)
    wanted, *_ = sums(lab, DRTRL(readout_memory=True, segment=segment), task(lab, "leaky", recurrent=True), [whole])
    lab.same(got, wanted)


# ------------------------------------------------------------------------------------------------- what is memory


class TwoLayers(brainstate.nn.Module):
    def __init__(self, lab, mixed: bool):
        super().__init__()
        self.low, self.high = braintrace.nn.MiniGRU(lab.N_IN, N), braintrace.nn.GRUCell(N, N)
        self.out = braintrace.nn.Linear(N, lab.N_OUT)
        self.mixed = mixed

    def update(self, x):
        h = self.high(self.low(x))
        if self.mixed:  # mixes positions before the hidden state, so that no detached step fits
            self.low.h.value = jnp.roll(self.low.h.value, 1, -1)
        return self.out(h)


def two_layers(lab, mixed: bool = False):
    with brainstate.random.seed_context(0):
        return lab.Task(TwoLayers(lab, mixed))


@pytest.mark.full
def test_a_second_recurrent_layer_is_no_memory(lab):
    phases = lab.sequences()
    got = lab.learn(DRTRL(readout_memory=True), two_layers(lab), phases)
    lab.same(got, lab.learn(DRTRL(engine="trace"), two_layers(lab), phases))


@pytest.mark.parametrize(
    ("memory", "kwargs", "found"),
    [
        ("leaky", {}, {"total"}),
        ("sum", {"recurrent": True}, {"total"}),
        ("delay", {}, {"buffer"}),
        ("none", {"recurrent": True}, set()),
        ("sum", {"layers": 2}, {"higher.0", "total"}),
    ],
)
def test_which_states_are_memory(lab, memory, kwargs, found):
    learner = DRTRL(readout_memory=True).bind(Objective(task(lab, memory, **kwargs), lambda x: x), lab.sequences())
    assert isinstance(learner, ReverseLearner) and set(learner.known.memory) == found
    if found:
        assert learner.notes == [f"readout_memory: credit passes through {', '.join(learner.known.memory)}"]


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"segment": 2}, {}),
        ({"segment": 3, "window": 3}, {}),
        ({"stateful": True}, {"stateful": False, "update_every": "sequence"}),
        ({"update_every": 2}, {"stateful": False, "update_every": "sequence"}),
    ],
)
def test_the_report_says_where_credit_through_memory_ends(lab, fields, more):
    """Where it does, a part of the gradient is missing, and the advice brings it back."""
    phases = lab.sequences(warm=0, time=7)

    def rows(strategy):
        learner = strategy.bind(Objective(task(lab, "leaky"), lambda x: x), phases)
        return {row.name: row for row in learner.report(phases)}["mix.weight"]

    advice = "segment='sequence'" + " with stateful=False and update_every='sequence'" * bool(more)
    row = rows(DRTRL(readout_memory=True, **fields))
    assert row.trains == "in part"
    assert row.why == f"its credit through total ends at the start of a segment. {advice} gives it all"
    followed = DRTRL(readout_memory=True, **{**fields, **more, "segment": "sequence"})
    assert (rows(followed).trains, rows(followed).why) == ("yes", "")
    exact(lab, lab.learn(followed, task(lab, "leaky"), phases), lab.learn(BPTT(), task(lab, "leaky"), phases))
    assert rows(DRTRL(readout_memory=True, segment=7)).trains == "yes"


@pytest.mark.parametrize(
    ("strategy", "advice"),
    [
        (EProp(), "Use readout_memory=True"),
        (
            DRTRL(update_every=2),
            "Use readout_memory=True, which reaches back to the last update only (update_every=2)",
        ),
        (UORO(), "Use a rule with readout_memory=True, such as drtrl or eprop"),
    ],
    ids=["has it", "updates", "has it not"],
)
def test_the_report_advises_what_the_rule_has(lab, strategy, advice):
    phases = lab.sequences(warm=0, time=4)
    learner = strategy.bind(Objective(task(lab, "leaky"), lambda x: x), phases)
    row = next(row for row in learner.report(phases) if row.name == "mix.weight")
    lost = "its credit does not pass through total, of which no trace is kept. "
    exact = "strategy='bptt'" + ", which has no update_every" * (strategy == DRTRL(update_every=2))
    assert row.why == f"{lost}{advice}, unless total belongs to a second recurrent layer; or {exact}"


def test_where_there_is_no_reverse_form_it_is_refused(lab):
    with pytest.raises(ValueError, match=r"^DRTRL\(engine='trace', readout_memory=True\): a trace does not go through"):
        DRTRL(engine="trace", readout_memory=True)
    objective = Objective(two_layers(lab, mixed=True), lambda x: x)
    with pytest.raises(
        ValueError, match=r"^DRTRL\(readout_memory=True\) does not fit TwoLayers, which needs a trace: "
    ):
        DRTRL(readout_memory=True).bind(objective, lab.sequences())
    DRTRL(readout_memory=False).bind(objective, lab.sequences())  # the advice
