"""States on one side and flat arrays on the other: nothing is lost on the way, and misuse is named."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtrain.core import state as js
from jaxtrain.core.functional import Functional, draws_random
from jaxtrain.strategies.axes import where_sequences

DTYPES = (np.float32, np.int32, np.int8, np.uint32, np.bool_, np.complex64)


@st.composite
def arrays(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    raw = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 2, (*shape, 8), np.uint8)
    return jnp.asarray(raw.sum(-1).astype(dtype))


keys = st.builds(
    lambda seed, n, impl: jax.random.key(seed, impl=impl) if n == 0 else jax.random.split(jax.random.key(seed), n),
    st.integers(0, 2**31 - 1), st.integers(0, 3), st.just("threefry2x32"),
)  # fmt: skip
quantities = st.builds(lambda a: jnp.asarray(a, jnp.float32) * u.mV, arrays().filter(lambda a: a.dtype == jnp.float32))
names = st.text("abcXYZ_09", min_size=1, max_size=4)
leaves = arrays() | keys | quantities
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=3))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if js.is_key(x):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.full
@settings(max_examples=50)
@given(st.dictionaries(st.builds(".".join, st.lists(names, min_size=1, max_size=3)), trees, max_size=4))
def test_flatten_round_trip(values):
    """Random keys, zero-d arrays, empty arrays, booleans, units and nested trees come back as they went."""
    names = js.leaf_names(values)
    if len(set(names)) < len(names):
        with pytest.raises(ValueError, match=r"^two arrays of the state are both named '.*': rename one of them$"):
            js.flatten(values)
        return
    flat = js.flatten(values)
    assert list(flat) == names
    assert all(type(leaf).__module__.startswith("jax") and not js.is_key(leaf) for leaf in flat.values())
    host = {name: np.asarray(leaf) for name, leaf in flat.items()}
    equal(js.unflatten(values, host), values)
    assert js.signature(host) == js.signature(flat)


def test_leaf_names():
    values = {
        "rnn.Wz.weight": {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "scale": jnp.float32(1),
        "both": [jnp.int32(1), {"a": jnp.ones(1)}], "rng": jax.random.key(0),
    }  # fmt: skip
    flat = js.flatten(values)
    assert list(flat) == js.leaf_names(values) == [
        "rnn.Wz.weight.bias", "rnn.Wz.weight.weight", "scale", "both.0", "both.1.a", "rng"
    ]  # fmt: skip
    assert js.signature(flat)["rng"] == "uint32[2]" and js.signature(flat)["rnn.Wz.weight.weight"] == "float32[2, 3]"


def test_leaves_that_share_a_name_are_refused():
    with pytest.raises(ValueError, match=r"^two arrays of the state are both named 'a.b': rename one of them$"):
        js.flatten({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)})


def test_unflatten_names_a_missing_leaf():
    with pytest.raises(KeyError, match=r"w\.b"):
        js.unflatten({"w": {"a": jnp.ones(1), "b": jnp.ones(1)}}, {"w.a": np.ones(1)})


def test_keys_of_another_kind_keep_it():
    values = {"rng": jax.random.key(3, impl="rbg")}
    restored = js.unflatten(values, js.flatten(values))["rng"]
    assert restored.dtype == values["rng"].dtype
    np.testing.assert_array_equal(jax.random.uniform(restored, 4), jax.random.uniform(values["rng"], 4))


# ---------------------------------------------------------------------------------------------------------- states


class Net(brainstate.nn.Module):
    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.rnn = braintrace.nn.GRUCell(2, 3)
        self.out = braintrace.nn.Linear(3, 1)
        self.seen = brainstate.LongTermState(jnp.int32(0))
        self.noise = noise

    def update(self, x):
        if self.noise:
            x = x + self.noise * brainstate.random.randn(*x.shape)
        return self.out(self.rnn(x))


def test_states_by_kind():
    net = Net()
    assert list(js.parameters(net)) == ["out.weight", "rnn.Wh.weight", "rnn.Wr.weight", "rnn.Wz.weight"]
    assert list(js.long_term_states(net)) == ["seen"] and js.short_term(net) == {}
    js.create_hidden(net, 4, vmapped=False)
    assert list(js.short_term(net)) == ["rnn.h"] and net.rnn.h.value.shape == (4, 3)
    js.create_hidden(net, 4, vmapped=True)
    assert net.rnn.h.value.shape == (4, 3)
    assert set(js.states_of(net)) == {*js.parameters(net), *js.long_term_states(net), *js.short_term(net)}


@pytest.mark.parametrize("vmapped", [False, True])
def test_fresh_hidden_keeps_the_state_objects(vmapped):
    net = Net()
    js.create_hidden(net, 4, vmapped)
    state = net.rnn.h
    state.value = jnp.ones((4, 3))
    fresh = js.fresh_hidden(net, 4, vmapped)
    assert net.rnn.h is state and (state.value == 1).all()
    assert list(fresh) == ["rnn.h"] and not fresh["rnn.h"].any()


def test_draws_random():
    x = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    for noise, draws in ((0.0, False), (0.1, True)):
        net = Net(noise)
        js.create_hidden(net, 4, False)
        assert draws_random(net, x) is draws


def test_strong_drops_weak_types_and_keeps_keys():
    value = {"weak": jnp.asarray(1.0) * 1, "python": 3, "key": jax.random.key(0), "f": np.float64(2)}
    assert jnp.asarray(1.0).weak_type
    strong = js.with_strong_types(value)
    assert not any(strong[name].weak_type for name in ("weak", "python", "f"))
    assert strong["python"].dtype == jnp.int32 and js.is_key(strong["key"]) and strong["f"] == 2
    state = brainstate.State(3)
    js.drop_weak_types([state])
    assert isinstance(state.value, jax.Array)


def test_seeded_puts_the_random_state_back():
    before = jax.random.key_data(brainstate.random.DEFAULT.value).tolist()
    draws = []
    for seed in (1, 1, 2):
        with js.seeded(seed):
            draws.append(float(brainstate.random.rand()))
    assert draws[0] == draws[1] != draws[2]
    assert jax.random.key_data(brainstate.random.DEFAULT.value).tolist() == before
    with pytest.raises(RuntimeError), js.seeded(1):
        raise RuntimeError
    assert jax.random.key_data(brainstate.random.DEFAULT.value).tolist() == before


def test_fold_in_tells_streams_apart():
    root = jax.random.key(0)
    made = {tuple(jax.random.key_data(js.fold_in(root, a, b)).tolist()) for a in range(4) for b in range(4)}
    assert len(made) == 16 and js.fold_in(root) is root


def test_where_lanes():
    mask = jnp.array([True, False, True])
    new = {"a": jnp.ones((3, 2, 2)), "b": jnp.ones(3)}
    got = where_sequences(mask, new, jax.tree.map(jnp.zeros_like, new))
    assert got["a"][:, 0, 0].tolist() == got["b"].tolist() == [1, 0, 1]


# ----------------------------------------------------------------------------------------------------- Functional


def test_functional_is_pure():
    count, scratch = brainstate.State(jnp.int32(0)), brainstate.State(jnp.zeros(2))

    def step(x):
        scratch.value = x * 2
        count.value = count.value + 1
        return scratch.value.sum() + count.value

    functional = Functional(step, {"count": count}, [scratch], jnp.zeros(2))
    values = {"count": jnp.int32(5), "unread": jnp.float32(1)}
    new, result = jax.jit(functional)(values, jnp.ones(2))
    assert (int(new["count"]), float(new["unread"]), float(result)) == (6, 1.0, 10.0)
    assert values["count"] == 5 and count.value == 0 and not scratch.value.any()
    final, _ = jax.lax.scan(lambda v, x: functional(v, x), values, jnp.ones((7, 2)))
    assert final["count"] == 12


def test_functional_refuses_states_of_nobody():
    mine, other = brainstate.State(jnp.ones(2)), brainstate.LongTermState(jnp.ones((3, 1)))

    def step():
        other.value = other.value + mine.value[0]

    with pytest.raises(ValueError, match=r"touches a LongTermState that .* \(value \(3, 1\)\): make it an attribute"):
        Functional(step, {"mine": mine}, [])


def grown(value):
    return jnp.concatenate([value, value])


@pytest.mark.parametrize(
    "change,message",
    [
        (grown, r"^state 'w' changes from float32\[2\] to float32\[4\] within a step; a State keeps its shapes"),
        (lambda value: value.astype(jnp.int32), r"^state 'w' changes from float32\[2\] to int32\[2\] within a step"),
    ],
)
def test_functional_names_a_state_that_changes(change, message):
    state = brainstate.State(jnp.ones(2))

    def step():
        state.value = change(state.value)

    functional = Functional(step, {"w": state}, [])
    with pytest.raises(ValueError, match=message):
        functional({"w": jnp.ones(2)})


def test_functional_draws_from_the_key_that_is_set():
    def step(key):
        js.set_key(key)
        return brainstate.random.rand(3)

    functional = Functional(step, {}, [], jax.random.key(0))
    one, two, again = (functional({}, jax.random.key(seed))[1] for seed in (1, 2, 1))
    assert (one == again).all() and (one != two).all()
