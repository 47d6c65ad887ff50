"""What weighs nothing changes neither loss nor gradient, whatever it holds; all advice about NaN works."""

import functools
from dataclasses import replace

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtrain as jt
from jaxtrain.checkpoint.load import build, build_each
from jaxtrain.engine.steps import ALL_FINITE, NONFINITE_INDEX
from jaxtrain.strategies.padding import inert
from jaxtrain.training.workload import make_program
from tests.kit.tiers import longer
from tests.small import Linear

pytestmark = pytest.mark.full

WARM, LEARN, B = 2, 4, 3
NAN = np.float32(np.nan)


class Nothing:
    """A network without States."""

    def reset(self, batch_size):
        pass


@functools.partial(jax.jit, static_argnames="carried")
def cleaned(phases: jt.Phases, carried: bool = False) -> jt.Phases:
    return inert(phases, lambda network, x, y, w, extras: (y, extras), Nothing(), carried=carried)  # type: ignore[arg-type]


def counts(weights: np.ndarray, reset: np.ndarray | None, warm: int, carried: bool) -> np.ndarray:
    """Whether a weighted time step can be reached from each, by walking on from it."""
    time, batch = weights.shape
    found = np.zeros((warm + time, batch), bool)
    for t, b in np.ndindex(found.shape):
        for s in range(t, warm + time + 1):
            if s == warm + time:
                found[t, b] = carried
            elif s > t and reset is not None and reset[s, b]:
                break
            elif s >= warm and weights[s - warm, b] != 0:
                found[t, b] = True
                break
    return found


def drawn(seed: int, warm: int, resets: bool, by_sequence: bool) -> jt.Phases:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-1, 2, (LEARN, B) if by_sequence else LEARN).astype(np.float32)
    weights *= rng.random(weights.shape) < 0.5
    if seed % 5 == 0:
        weights[...] = 0
    return jt.Phases(
        warmup=rng.normal(size=(warm, B, 2)).astype(np.float32) if warm else None,
        inputs=rng.normal(size=(LEARN, B, 2)).astype(np.float32),
        targets={"y": rng.normal(size=(LEARN, B)).astype(np.float32), "class": rng.integers(0, 3, (LEARN, B))},
        weights=weights,
        reset=rng.random((warm + LEARN, B)) < 0.3 if resets else None,
    )


def whole(weights: np.ndarray) -> np.ndarray:
    return np.broadcast_to(weights if weights.ndim == 2 else weights[:, None], (LEARN, B))


KINDS = [
    (0, False, False, False),
    (WARM, True, False, False),
    (WARM, True, True, False),
    (WARM, True, True, True),
    (WARM, False, True, True),
]
"""Time steps of warm-up; whether there are resets, a weight for each sequence, states that continue."""


@given(st.integers(0, 2**20), st.sampled_from(KINDS))
@settings(deadline=None, max_examples=60)
def test_what_is_not_reached_is_replaced_and_nothing_else(seed, kind):
    warm, resets, by_sequence, carried = kind
    phases = drawn(seed, warm, resets, by_sequence)
    weighted = whole(phases.weights) != 0
    keep = counts(whole(phases.weights), phases.reset, warm, carried)
    spoiled = jt.Phases(
        warmup=None if phases.warmup is None else np.where(keep[:warm, :, None], phases.warmup, NAN),
        inputs=np.where(keep[warm:, :, None], phases.inputs, NAN),
        targets={
            "y": np.where(weighted, phases.targets["y"], np.inf).astype(np.float32),
            "class": np.where(weighted, phases.targets["class"], -1),
        },
        weights=phases.weights,
        reset=phases.reset,
    )
    one, other = cleaned(phases, carried), cleaned(spoiled, carried)
    assert jax.tree.structure(one) == jax.tree.structure(phases)
    for a, b, first in zip(jax.tree.leaves(one), jax.tree.leaves(other), jax.tree.leaves(phases), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == jnp.asarray(first).dtype and np.isfinite(a).all()
    for got, wanted, kept in (
        (one.warmup, phases.warmup, keep[:warm]),
        (one.inputs, phases.inputs, keep[warm:]),
        (one.targets["y"], phases.targets["y"], weighted),
        (one.targets["class"], phases.targets["class"], weighted),
    ):
        if wanted is not None:
            np.testing.assert_array_equal(np.asarray(got)[kept], wanted[kept])
            if kept.any():  # from the domain of the data
                assert np.isin(np.asarray(got)[~kept], wanted[kept]).all()


def test_trees_units_keys_and_kinds():
    weights = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    phases = jt.Phases(
        warmup=None,
        inputs={"v": np.arange(6.0, dtype=np.float32).reshape(2, 3) * u.mV, "on": np.eye(2, 3, dtype=bool)},
        targets=[np.array([[3, -1, -1], [-1, 5, -1]])],
        weights=weights,
        extras={"key": jax.random.split(jax.random.key(0), (2, 3)), "r": np.full((2, 3), np.nan, np.float32)},
    )
    made = cleaned(phases)
    assert made.inputs["v"].unit == u.mV and made.inputs["on"].dtype == bool
    np.testing.assert_array_equal(made.inputs["v"].mantissa, [[0, 1, 0], [0, 4, 0]])
    np.testing.assert_array_equal(made.targets[0], [[3, 5, 3], [3, 5, 3]])
    kept = jax.random.key_data(made.extras["key"])[0, 0]
    np.testing.assert_array_equal(kept, jax.random.key_data(phases.extras["key"])[0, 0])
    assert np.isnan(made.extras["r"]).all(), "what is given where the weight is not zero is the user's"


def test_without_weights_nothing_is_done_and_nan_weights_count():
    phases = drawn(1, WARM, True, True)
    bare = jt.Phases(phases.warmup, phases.inputs, phases.targets, reset=phases.reset)
    assert cleaned.__wrapped__(bare) is bare
    weights = np.zeros((LEARN, B), np.float32)
    weights[1, 1] = np.nan
    made = cleaned(jt.Phases(None, phases.inputs, phases.targets, weights=weights))
    np.testing.assert_array_equal(made.inputs[:2, 1], phases.inputs[:2, 1])


# ------------------------------------------------------------------------------------------------- under every rule


class Net(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = braintrace.nn.MiniGRU(2, 3), braintrace.nn.Linear(3, 1)

    def update(self, x):
        return self.out(self.rnn(x / jnp.linalg.norm(x, axis=-1, keepdims=True)))  # zeros are not in its domain


class Masked(jt.Module):
    """Batches are ``Phases``; a target or an extra of zero gives an infinite loss."""

    def build(self):
        return Net()

    def learning_step(self, forward, x, y, gain):
        return jnp.square(forward(x) - jnp.log(y) / gain).mean(-1)

    def configure_optimizer(self):
        return optax.sgd(1.0)


def sequences(seed: int = 0, spoil: float | None = None, resets: bool = True, carried: bool = False) -> jt.Phases:
    """Sequence 0 is scored at some time steps, 1 ends early, 2 is never scored and is reset in the middle."""
    rng = np.random.default_rng(seed)
    weights = np.array([[1, 1, 0], [0, 0.5, 0], [0, 0, 0], [2, 0, 0]], np.float32)
    reset = np.zeros((WARM + LEARN, B), bool)
    reset[4, 1] = reset[3, 2] = resets
    x = rng.normal(size=(WARM + LEARN, B, 2)).astype(np.float32)
    y, gain = np.exp(rng.normal(size=(2, LEARN, B, 1))).astype(np.float32)
    if spoil is not None:
        keep = counts(weights, reset, WARM, carried)
        assert not keep.all()
        x[~keep] = spoil
        y[weights == 0] = spoil
        gain[weights == 0] = spoil
    return jt.Phases(x[:WARM], x[WARM:], y, weights=weights, reset=reset if resets else None, extras={"gain": gain})


RULES = {
    "bptt": jt.BPTT(),
    "remat": jt.BPTT(remat=True, batching="vmap"),
    "tbptt": jt.TBPTT(window=2),
    "tbptt, stateful": jt.TBPTT(window=2, update_every=2, stateful=True),
    "reverse": jt.DRTRL(),
    "trace": jt.DRTRL(engine="trace"),
    "windows": jt.DRTRL(window=2, engine="trace"),
    "segments": jt.DRTRL(segment=3, window=2),
    "updates": jt.DRTRL(update_every=2, stateful=True),
    "stateful trace": jt.DRTRL(engine="trace", stateful=True),
    "single": jt.DRTRL(vjp="single-step"),
    "pp_prop": jt.strategies.PPProp(),
    "eprop": jt.strategies.EProp(kappa=0.5),
    "uoro": jt.strategies.UORO(),
    "dni": jt.strategies.DNI(fit_epochs=2),
    "readout": jt.strategies.ReadoutOnly(),
}
QUICK = ("bptt", "reverse")
FULL = ("tbptt, stateful", "trace", "updates", "pp_prop", "eprop", "uoro", "readout")


def program(strategy, example: jt.Phases, **options):
    module = Masked()
    seeds = options.get("seeds")
    fit = jt.Fit(strategy, max_steps=1, chunk=1, **options)
    if seeds is None:
        build(module, 0)
        models = ()
    else:
        models = build_each(module, fit.seeds, several=True, resumed=False)
    made = make_program(fit.settings, module, jt.DataModule([example]), example, models=models)
    made.prepare()
    return made


def trained(made, batch: jt.Phases) -> dict[str, np.ndarray]:
    """The state after one step from the first values, and the loss."""
    first = getattr(made, "first", None)
    if first is None:
        params, rest = made.state()
        first = made.first = [{name: np.array(leaf) for name, leaf in part.items()} for part in (params, rest)]
    made.load(*first, made.optimizer.settings())
    found = made.train([batch], 0).fetch()
    assert (found[NONFINITE_INDEX][:1] == ALL_FINITE).all()
    params, rest = made.state()
    values = {name: np.array(leaf) for name, leaf in {**params, **rest}.items()}
    return {**values, "loss": found["loss"].num[:1], "weight": found["loss"].weight[:1]}


@pytest.mark.parametrize(
    "rule",
    [
        *QUICK,
        *(pytest.param(rule, marks=pytest.mark.full) for rule in FULL),
        *longer(*(rule for rule in RULES if rule not in (*QUICK, *FULL))),
    ],
)
def test_what_weighs_nothing_may_be_anything(rule):
    carried = getattr(RULES[rule], "stateful", False)
    made = program(RULES[rule], sequences(spoil=NAN, carried=carried))
    clean = trained(made, sequences())
    assert clean["loss"].any() and any((clean[name] != made.first[0][name]).any() for name in made.first[0])
    for spoil in (np.nan, np.inf, 0.0, -1e30):
        for name, value in trained(made, sequences(spoil=spoil, carried=carried)).items():
            np.testing.assert_array_equal(value, clean[name], err_msg=f"{name} with {spoil}")


@pytest.mark.full
def test_of_several_seeds():
    made = program(jt.BPTT(), sequences(spoil=NAN), seeds=2)
    clean, spoiled = (trained(made, sequences(spoil=value)) for value in (None, np.nan))
    for name, value in spoiled.items():
        np.testing.assert_array_equal(value, clean[name], err_msg=name)


def test_the_gradient_is_that_of_the_sequences_by_themselves():
    """Backpropagation through each sequence, truncated after its last scored time step, by hand."""
    batch = sequences(spoil=NAN, resets=False)
    module = Masked()
    build(module, 0)
    made = make_program(jt.Fit("bptt", max_steps=1, chunk=1).settings, module, jt.DataModule([batch]), batch)
    made.prepare()
    before = {name: np.array(leaf) for name, leaf in made.state()[0].items()}
    after = trained(made, batch)

    def loss(params):
        total, weight = 0.0, 0.0
        for b, last in ((0, LEARN), (1, 2)):
            h = jnp.zeros(3)
            inputs = np.concatenate([batch.warmup, batch.inputs])[: WARM + last, b]
            for t, x in enumerate(inputs):
                x = x / jnp.linalg.norm(x)
                gate, candidate = params["rnn.W_z.weight"], params["rnn.W_x.weight"]
                z = jax.nn.sigmoid(jnp.concatenate([x, h]) @ gate["weight"] + gate["bias"])
                h = (1 - z) * h + z * (x @ candidate["weight"] + candidate["bias"])
                if t >= WARM and (w := batch.weights[t - WARM, b]):
                    out = h @ params["out.weight"]["weight"] + params["out.weight"]["bias"]
                    y, gain = batch.targets[t - WARM, b], batch.extras["gain"][t - WARM, b]
                    total, weight = total + w * jnp.square(out - jnp.log(y) / gain).mean(), weight + w
        return total / weight

    tree: dict = {}
    for name, leaf in before.items():
        state, inner = name.rsplit(".", 1)
        tree.setdefault(state, {})[inner] = jnp.asarray(leaf)
    grads = jax.grad(loss)(tree)
    for name, leaf in before.items():
        state, inner = name.rsplit(".", 1)
        np.testing.assert_allclose(leaf - after[name], grads[state][inner], rtol=1e-4, atol=1e-5, err_msg=name)


# ------------------------------------------------------------------------------------------ what reaches the model


class Forced(Linear):
    """The target of a time step is fed to the model, and scored where that weighs something."""

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x + y[:, :2]) - y).mean(-1)


def forced_loss(x, y, weights) -> float:
    h, total = 0.0, 0.0
    for t in range(len(x)):
        h = 0.5 * h + (x[t] + y[t, :, :2]) @ np.full((2, 3), 0.1)
        total += (weights[t] * np.square(h - y[t]).mean(-1)).sum()
    return total / weights.sum()


def test_a_target_that_is_fed_to_the_model_is_an_input():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2, 2)).astype("f"), rng.normal(size=(4, 2, 3)).astype("f")
    weights = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    wanted = forced_loss(x, y, weights)
    y[2:, 1] = y[3] = x[2:, 1] = x[3] = np.nan  # behind the last scored time step of each
    batch = jt.Phases(None, x, y, weights=weights)
    module = Forced()
    assert jt.Fit("bptt", max_steps=1).validate(module, [batch])["val/loss"] == pytest.approx(wanted, rel=1e-5)
    assert jt.Fit("bptt", max_steps=1).run(Forced(), [batch]).metrics["train/loss"] == pytest.approx(wanted, rel=1e-5)


def test_what_the_next_batch_depends_on_is_kept_if_states_continue():
    """The inputs behind the last weighted time step of a batch reach the next one, up to a reset."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3, 2, 2)).astype("f"), rng.normal(size=(2, 3, 2, 3)).astype("f")
    weights = np.array([[[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 1], [1, 1]]], np.float32)
    reset = np.zeros((2, 3, 2), bool)
    reset[0, 2, 1] = True
    h, total = np.zeros((2, 3)), 0.0
    for t in range(6):
        h = 0.5 * np.where(reset.reshape(6, 2)[t][:, None], 0, h) + x.reshape(6, 2, 2)[t] @ np.full((2, 3), 0.1)
        total = np.square(h - y.reshape(6, 2, 3)[t]).mean() + (total if t > 3 else 0)
    x[0, 1, 1], y[0, 1:] = np.nan, np.nan
    batches = [jt.Phases(None, x[i], y[i], weights=weights[i], reset=reset[i]) for i in range(2)]
    module = Linear(lambda: optax.sgd(0.0))
    result = jt.Fit(jt.TBPTT(window=2, stateful=True), max_steps=2, log_every=1).run(module, batches)
    assert result.metrics["train/loss"] == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.full
def test_an_evaluation_and_a_probe_are_not_disturbed():
    clean, spoiled = sequences(), sequences(spoil=NAN)
    fit = jt.Fit("bptt", max_steps=1)
    module = Masked()
    assert fit.validate(module, [spoiled]) == fit.validate(module, [clean])
    probed = jt.Fit("bptt", max_steps=1, log_every=1, callbacks=[jt.GradientFidelity(every=1, per_parameter=False)])
    assert probed.run(module, [spoiled]).history[-1]["fidelity/cosine"] == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------------------------------------------- the advice


class Lines(Linear):
    def phases(self, batch):
        return batch if isinstance(batch, jt.Phases) else super().phases(batch)


def lines(bad: int | None = None, masked: bool = False) -> jt.Phases:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(3, 2, 2)).astype("f"), rng.normal(size=(3, 2, 3)).astype("f")
    weights = np.ones((3, 2), np.float32)
    weights[2, 0] = 0
    y[2, 0] = np.nan
    if bad is not None:
        y[bad, 1, 0] = np.nan
        weights[bad, 1] *= not masked
    return jt.Phases(None, x, y, weights=weights)


@pytest.mark.full
def test_the_advice_about_data_that_is_not_finite_works():
    named = (
        r"^step 2: train/loss is not finite; train data: batch 1: Phases.targets holds 1 values that are not finite, "
        r"the first at \[1, 1, 0\]: fix the data, or give it weight 0 \(Phases.weights\); or lower the learning rate"
    )
    batches = [lines(), lines(1)]
    with pytest.raises(jt.errors.NonFiniteError, match=named):
        jt.Fit("bptt", max_steps=2).run(Linear(), batches)
    for mended in ([lines(), lines()], [lines(), lines(1, masked=True)]):
        assert jt.Fit("bptt", max_steps=2).run(Linear(), mended).status == "finished"
    skipping, alone = Linear(), Linear()
    assert jt.Fit("bptt", max_steps=2, nonfinite="skip").run(skipping, batches).status == "finished"
    jt.Fit("bptt", max_steps=1, nonfinite="skip").run(alone, batches)
    np.testing.assert_array_equal(skipping.model.w.value, alone.model.w.value)
    assert np.isfinite(skipping.model.w.value).all()


@pytest.mark.full
def test_the_advice_about_a_rate_that_is_too_high_works():
    batches = [lines()]

    def run(rate, **options):
        fit = jt.Fit("bptt", max_steps=200, **options)
        return fit.run(Linear(lambda: optax.sgd(rate)), batches)

    with pytest.raises(
        jt.errors.NonFiniteError, match=r"is not finite; lower the learning rate, clip gradients, or choose"
    ):
        run(50.0)
    assert np.isfinite(run(0.05).metrics["train/loss"])
    assert np.isfinite(run(50.0, clip=1e-3).metrics["train/loss"])
    assert run(50.0, nonfinite="skip").status == "finished"


def test_the_advice_about_a_metric_without_a_value_works():
    class Last(Linear):
        pair = False

        def learning_step(self, forward, x, y):
            out = forward(x)
            right, known = (out > 0)[:, 0] == (y > 0)[:, 0], y[:, 1] > 0
            value = jnp.where(known, right, jnp.nan)
            return jnp.square(out - y).mean(-1), {"accuracy": (value, known) if self.pair else value}

    class Paired(Last):
        pair = True

    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(3, 4, 2)).astype("f"), rng.normal(size=(3, 4, 3)).astype("f")
    fit = jt.Fit("bptt", max_steps=1)
    with pytest.raises(
        jt.errors.NonFiniteError, match=r"train/accuracy is not finite; return \(value, weight\), with w"
    ):
        fit.run(Last(), [(x, y)], batch_first=False)
    h, right, known = 0.0, [], []
    for t in range(3):
        h = 0.5 * h + x[t] @ np.full((2, 3), 0.1)
        right.append((h[:, 0] > 0) == (y[t, :, 0] > 0))
        known.append(y[t, :, 1] > 0)
    wanted = np.array(right)[np.array(known)].mean()
    assert fit.run(Paired(), [(x, y)], batch_first=False).metrics["train/accuracy"] == pytest.approx(wanted)
    assert fit.validate(Paired(), [(x, y)], batch_first=False)["val/accuracy"] == pytest.approx(wanted)


@pytest.mark.full
@pytest.mark.parametrize("stateful", [False, True])
def test_the_advice_about_padding_that_is_not_finite_works(stateful):
    """A value of weight 0 from which a weighted time step is reached."""

    def batch(value, at, reset=False):
        phases = lines()
        x, weights, resets = phases.inputs.copy(), phases.weights.copy(), np.zeros((3, 2), bool)
        x[at, 1, 0], weights[at, 1], resets[at + 1 :, 1] = value, 0, reset
        return replace(phases, inputs=x, weights=weights, reset=resets)

    at, why = {
        False: (1, "a weighted time step of its sequence follows: replace these values"),
        True: (2, "with stateful=True the hidden state continues from it: replace these values, or let Phases.reset"),
    }[stateful]
    advice = rf"values that are not finite, the first at \[{at}, 1, 0\]: it has weight 0, but {why}"
    fit = jt.Fit(jt.TBPTT(window=2, stateful=stateful), max_steps=2)
    with pytest.raises(jt.errors.NonFiniteError, match=advice):
        fit.run(Linear(), [batch(np.nan, at)] * 2)
    assert fit.run(Linear(), [batch(0.0, at)] * 2).status == "finished"
    assert fit.run(Linear(), [batch(np.nan, 1, reset=True)] * 2).status == "finished"
