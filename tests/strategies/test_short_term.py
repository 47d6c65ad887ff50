"""Short-term states with and without a batch axis: one value per sequence under every engine and update schedule."""

import dataclasses

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtrain.strategies.bind_rule as rules_of
from jaxtrain import BPTT, DRTRL
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import create_hidden, parameters
from jaxtrain.strategies import PPProp, SnAp
from jaxtrain.strategies.axes import batch_axes
from jaxtrain.strategies.network import Network
from jaxtrain.strategies.reverse.learner import ReverseLearner
from tests.kit.tiers import longer
from tests.strategies.short_term import HIDDEN, KINDS, SHORT, N, Net, Shared
from tests.strategies.sums import sums

pytestmark = pytest.mark.full


def task(lab, *args, **kwargs):
    with brainstate.random.seed_context(0):
        model = Net(lab.N_IN, lab.N_OUT, *args, **kwargs)
        for state in parameters(model).values():
            state.value = jax.tree.map(lambda leaf: leaf + 0.1 * brainstate.random.randn(*leaf.shape), state.value)
    return lab.Task(model)


def batches(lab, count: int, time: int, resets: bool, carried: bool = False) -> list[Phases]:
    rng = np.random.default_rng(5)
    made = [lab.sequences(seed, warm=0 if carried else 2, time=time) for seed in range(count)]
    if not resets:
        return made
    masks = [jnp.asarray(rng.random((sum(phases.sizes[:2]), lab.B)) < 0.1) for phases in made]
    return [dataclasses.replace(phases, reset=mask) for phases, mask in zip(made, masks, strict=True)]


def agree(lab, fields, make, given) -> list[str]:
    """The engines' gradients and metrics, and the metrics of BPTT if no state continues. Returns the notes."""
    got, metrics, notes = sums(lab, DRTRL(**fields), make(), given)
    wanted, known, _ = sums(
        lab, DRTRL(engine="trace", **{k: v for k, v in fields.items() if k != "segment"}), make(), given
    )
    lab.same(got, wanted)
    if not fields.get("stateful"):
        known = [*known, *sums(lab, BPTT(batching=fields.get("batching", "auto")), make(), given)[1]]
        metrics = 2 * metrics
    for ours, theirs in zip(metrics, known, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    return notes


FIELDS = [
    {}, {"window": 3}, {"vjp": "single-step"}, {"segment": 3}, {"segment": 3, "vjp": "single-step"},
    {"stateful": True}, {"update_every": 2}, {"stateful": True, "update_every": 1}, {"stateful": True, "window": 2},
]  # fmt: skip
DRAWS = dict(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3, unique=True).map(tuple),
    elementwise=st.booleans(),
    hidden=st.booleans(),
    resets=st.booleans(),
)


def draw(lab, fields, kinds, elementwise, hidden, resets, time=7):
    hidden = hidden and not {"Copy", "Mask", "RandomMask", "Shared", "Buffer", "Environment"} & set(kinds)
    if "Flag" in kinds and fields.get("vjp") == "single-step":
        hidden = False  # a bool: refused, see below
    carried = fields.get("stateful", False)
    make = lambda: task(lab, kinds, elementwise=elementwise, hidden=hidden)  # noqa: E731
    agree(lab, fields, make, batches(lab, 2, time, resets, carried))


@pytest.mark.parametrize("fields", [{"stateful": True}, *longer({"segment": 3}, {"update_every": 2}, {})], ids=str)
def test_a_mask_a_counter_and_what_is_shared(lab, fields):
    """An element-wise weight beside states that differ from sequence to sequence; some are reset on the way."""
    carried = "stateful" in fields
    make = lambda: task(lab, ("Mask", "Counter", "Shared"))  # noqa: E731
    assert agree(lab, fields, make, batches(lab, 1, 7, resets=True, carried=carried)) == []


@pytest.mark.full
@pytest.mark.parametrize("fields", [{"stateful": True}, *longer({"segment": 3}, {})], ids=str)
def test_what_begins_at_random_begins_alike(lab, fields):
    make = lambda: task(lab, ("RandomMask",), elementwise=False)  # noqa: E731
    agree(lab, fields, make, batches(lab, 2, 7, resets=True, carried="stateful" in fields))


@pytest.mark.full
@settings(max_examples=3, deadline=None, derandomize=True)
@given(fields=st.sampled_from(FIELDS), **DRAWS)
def test_any_states(lab, fields, kinds, elementwise, hidden, resets):
    draw(lab, fields, kinds, elementwise, hidden, resets)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=60, deadline=None)
@given(fields=st.sampled_from(FIELDS), **DRAWS)
def test_any_states_more(lab, fields, kinds, elementwise, hidden, resets):
    draw(lab, fields, kinds, elementwise, hidden, resets)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("time", [510, 511, 2000])
@settings(max_examples=4, deadline=None)
@given(**DRAWS)
def test_long_sequences(lab, time, kinds, elementwise, hidden, resets):
    """512 time steps are one segment, 513 and 2,000 several."""
    draw(lab, {}, kinds, elementwise, hidden, resets, time=time)


@pytest.mark.full
@pytest.mark.parametrize("fields", [{"segment": 3}, *longer({"stateful": True})], ids=str)
def test_mapped_models(lab, fields):
    """States that begin alike in all sequences, a shared one, and one that is no array, under batching='vmap'."""

    class Alone(Net):
        def init_state(self, **_):
            kept = self.shared
            super().init_state(1)
            for state in self.states(SHORT).values():
                state.value = jax.tree.map(lambda leaf: leaf[0], state.value)
            self.shared = kept

    def make():
        made = task(lab, ("Mask", "Flag", "Environment", "Shared"))
        made.model.__class__, made.model.shared = Alone, SHORT(Shared.begin(1))
        return made

    agree(lab, {**fields, "batching": "vmap"}, make, batches(lab, 2, 7, resets=True, carried="stateful" in fields))


# ---------------------------------------------------------------------------------------- sequences that are not alone


class Mixing(Net):
    """Each sequence sees the mean over all."""

    def update(self, x):
        return super().update(x - x.mean(0, keepdims=True))


class Summing(Net):
    """A state that all sequences share and change."""

    def init_state(self, batch_size, **kwargs):
        super().init_state(batch_size)
        self.sum = SHORT(jnp.zeros(()))

    def update(self, x):
        self.sum.value = 0.5 * self.sum.value + x.sum()
        return super().update(x) * jnp.tanh(self.sum.value)


class Square(Net):
    """A shape that cannot be split into sequences."""

    def init_state(self, batch_size, **kwargs):
        super().init_state(batch_size)
        self.pairs = SHORT(jnp.zeros((batch_size, batch_size)))

    def update(self, x):
        self.pairs.value = self.pairs.value + x[:, :1] * x[:, :1].T
        return super().update(x) + 0.1 * self.pairs.value.sum(1, keepdims=True)


class Fixed(Net):
    """Its batch size is its own."""

    def init_state(self, batch_size=None, **kwargs):
        super().init_state(3)


def of(lab, cls, kinds=("Mask",)):
    def make():
        made = task(lab, kinds)
        made.model.__class__ = cls
        return made

    return make


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Mixing, "engine: a trace, since a time step over the batch gives another value of "),
        *longer(
            (Summing, "engine: a trace, since the sequences share the state 'sum', which each of them changes"),
            (Square, "engine: a trace, since it cannot be run one sequence at a time (ValueError: the hidden state"),
        ),
    ],
)
def test_what_cannot_be_taken_one_sequence_at_a_time_keeps_its_batch(lab, cls, why):
    (note,) = agree(lab, {"segment": 3}, of(lab, cls), batches(lab, 1, 7, resets=False))
    assert note.startswith(why)


def test_one_batch_size_for_good(lab):
    """Axis 0 is the batch axis of such a model, resets included; a state of another length is shared."""
    make = of(lab, Fixed, ("Mask", "Clock"))
    model = make().model
    create_hidden(model, lab.B, False)
    assert batch_axes(model, False) is None
    assert Network(model, "batched").axes(lab.B) == {"h": [0], "mask": [0], "clock": [None]}


@pytest.mark.full
def test_one_batch_size_trains(lab):
    assert agree(lab, {"segment": 3}, of(lab, Fixed), batches(lab, 1, 7, resets=True)) == []


def test_axes_follow_the_batch_size(lab):
    model = task(lab, ("Buffer", "Environment", "Shared", "Clock", "Counter")).model
    create_hidden(model, lab.B, False)
    found = Network(model, "batched").axes(lab.B)
    assert found == {
        "h": [0], "buffer": [1], "environment": [0, 0], "shared": [None], "clock": [None], "counter": [0],
    }  # fmt: skip


def test_a_reset_reaches_the_batch_axis_and_leaves_shared_states_alone(lab):
    model = task(lab, ("Buffer", "Shared", "Clock")).model
    create_hidden(model, lab.B, False)
    network = Network(model, "batched")
    for state in network.hidden.values():
        state.value = jax.tree.map(lambda leaf: leaf + 5, state.value)
    network.reset_sequences(jnp.asarray([False, True, False]))
    buffer = np.asarray(network.hidden["buffer"].value)
    assert (buffer[:, 1] == 1).all() and (buffer[:, [0, 2]] == 6).all()
    np.testing.assert_allclose(network.hidden["shared"].value, np.asarray([5.9, 5.4, 5.6]), rtol=1e-6)
    assert network.hidden["clock"].value == 5


def test_a_shape_without_a_batch_axis_cannot_be_reset(lab):
    model = of(lab, Square)().model
    create_hidden(model, lab.B, False)
    with pytest.raises(
        ValueError, match=r"^the hidden state 'pairs' of Square has shape \(3, 3\) for 3 sequences; let"
    ):
        Network(model, "batched").reset_sequences(jnp.zeros(lab.B, bool))


@pytest.mark.full
@pytest.mark.parametrize(
    ("cls", "kinds", "why"),
    [
        (Mixing, (), "a time step over the batch gives another value of"),
        (Net, ("Mask",), "init_state"),
        (Net, ("RandomMask",), "init_state"),
    ],
)
def test_a_large_batched_model_is_mapped_only_where_it_is_the_same(lab, monkeypatch, cls, kinds, why):
    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)

    class Either(cls):
        def init_state(self, batch_size=None, **kwargs):
            super().init_state(batch_size or 1)
            if batch_size is None:
                for state in self.states(SHORT).values():
                    state.value = state.value[0] if state.value.ndim else state.value

    make = of(lab, Either, kinds)
    learner = PPProp(engine="trace").bind(Objective(make(), lambda x: x), lab.sequences())
    (note,) = learner.notes
    assert learner.resolved()["batching"] == "batched" and why in note
    got, metrics, _ = sums(lab, PPProp(engine="trace"), make(), [lab.sequences()])
    wanted, known, _ = sums(lab, PPProp(engine="trace", batching="batched"), make(), [lab.sequences()])
    lab.same(got, wanted)
    assert metrics == known


@pytest.mark.full
def test_a_rule_that_needs_a_mapped_model_says_where_it_differs(lab):
    class Either(Net):
        def init_state(self, batch_size=None, **kwargs):
            super().init_state(batch_size or 1)
            if batch_size is None:
                self.h.value, self.mask.value = self.h.value[0], self.mask.value[0]

    learner = SnAp().bind(Objective(of(lab, Either)(), lambda x: x), lab.sequences())
    start = (
        "batching: snap takes one sequence at a time, for which the model differs: init_state makes other values of "
        "'mask'"
    )
    assert [note[: len(start)] for note in learner.notes] == [start]
    assert not SnAp().bind(Objective(lab.task("minigru"), lambda x: x), lab.sequences()).notes


@pytest.mark.full
def test_a_large_model_whose_sequences_are_alone_is_mapped(lab, monkeypatch):
    """A clock that the batch shares becomes one per sequence, with equal values."""
    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)

    class Either(Net):
        def init_state(self, batch_size=None, **kwargs):
            super().init_state(1)
            self.h = HIDDEN(jnp.zeros(N if batch_size is None else (batch_size, N)))

    learner = PPProp(engine="trace").bind(Objective(of(lab, Either, ("Clock",))(), lambda x: x), lab.sequences())
    assert learner.resolved()["batching"] == "vmap" and not learner.notes


@pytest.mark.parametrize("dtype", [jnp.int32, bool])
def test_hidden_states_of_whole_numbers_go_back_in_reverse(lab, dtype):
    model = task(lab, ("Flag" if dtype is bool else "Counter",), hidden=True)
    learner = DRTRL(engine="reverse", segment=3).bind(Objective(model, lambda x: x), lab.sequences())
    assert isinstance(learner, ReverseLearner) and set(learner.known.traced) == {"h"}


def test_a_hidden_bool_under_a_single_step_trace_is_refused(lab):
    (phases,) = batches(lab, 1, 7, resets=False)
    refused = (
        r"^strategy 'drtrl' with vjp='single-step': the hidden state '\w+' of Net is bool, .* use vjp='multi-step'$"
    )
    with pytest.raises(ValueError, match=refused):
        lab.Drive(DRTRL(engine="trace", vjp="single-step"), task(lab, ("Flag",), hidden=True), phases)
    lab.Drive(DRTRL(engine="trace"), task(lab, ("Flag",), hidden=True), phases)
    lab.Drive(DRTRL(engine="trace", vjp="single-step"), task(lab, ("Flag",)), phases)
