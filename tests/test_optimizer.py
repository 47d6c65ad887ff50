"""Gradients become parameters exactly as braintools and optax do it by hand."""

from types import SimpleNamespace
from typing import Any

import brainstate
import braintools.optim as bo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

from jaxtrain.core.functional import Functional
from jaxtrain.engine.optimizer import Optimizer

RNG = np.random.default_rng(0)
SHAPES: dict[str, Any] = {"in.weight": {"weight": (3, 4), "bias": (4,)}, "out.weight": (4, 2)}


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return jax.tree.map(make, SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple))


GRADS = [numbers(seed) for seed in range(1, 6)]


def fresh():
    return {name: brainstate.ParamState(value) for name, value in numbers().items()}


def module(configured, group=None):
    return SimpleNamespace(configure_optimizer=lambda: configured, group=group)


class Bench:
    """An Optimizer in a compiled program."""

    def __init__(self, configured, *, clip=None, accumulate=1, group=None, params=None, traced=True, loss=False):
        self.params = params or fresh()
        self.optimizer = Optimizer(module(configured, group), self.params, clip=clip, accumulate=accumulate)
        self.named = {**self.params, **{f"optimizer/{k}": s for k, s in self.optimizer.states().items()}}
        self.values = {name: state.value for name, state in self.named.items()}
        weight = [jnp.float32(1)] * (1 + loss) if traced else []
        update = self.optimizer.update if traced else lambda grads: self.optimizer.update(grads, 2.0)
        example = {name: state.value for name, state in self.params.items()}
        self._call = jax.jit(Functional(update, self.named, [], example, *weight))

    def __call__(self, grads, *weight) -> dict[str, Any]:
        self.values, metrics = self._call(self.values, grads, *map(jnp.float32, weight))
        return {name: (float(mean.num), float(mean.weight)) for name, mean in metrics.items()}

    def run(self, grads=GRADS, weight=2.0):
        """The parameters after some updates, and the learning rate of each."""
        rates = [self(g, weight).get("lr", (None,))[0] for g in grads]
        return self.now(), rates

    def now(self):
        return {name: self.values[name] for name in self.params}

    @property
    def updates(self) -> int:
        return int(self.values["optimizer/updates"])

    def put(self, values):
        self.values = {**self.values, **values}
        for name, state in self.named.items():
            state.value = jax.tree.map(jnp.copy, self.values[name])


def by_hand(optimizer, grads=GRADS, weight=2.0, scheduler=None):
    """braintools driven by itself."""
    params = fresh()
    optimizer.register_trainable_weights(params)
    rates = []

    @brainstate.transform.jit
    def step(grads):
        optimizer.update(jax.tree.map(lambda leaf: leaf / weight, grads))

    for g in grads:
        rates.append(float(optimizer.current_lr))
        step(g)
        if scheduler is not None:
            scheduler.step()
    return {name: state.value for name, state in params.items()}, rates


def optax_by_hand(tx, grads=GRADS, weight=2.0):
    params = numbers()
    state = tx.init(params)
    step = jax.jit(tx.update)
    for g in grads:
        updates, state = step(jax.tree.map(lambda leaf: leaf / weight, g), state, params)
        params = optax.apply_updates(params, updates)
    return params


def same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), got, wanted)


# ------------------------------------------------------------------------------------------------ equal to by hand

PLAIN = (
    "SGD Momentum MomentumNesterov Adam AdamW Adagrad Adadelta RMSprop Adamax Nadam RAdam Lamb Lars Lookahead Yogi "
    "Rprop Adafactor AdaBelief Lion SM3 Novograd Fromage"
).split()


def made(name):
    return getattr(bo, name)(**({"base_optimizer": optax.sgd(1e-2)} if name == "Lookahead" else {"lr": 1e-2}))


@pytest.mark.full
@pytest.mark.parametrize("name", PLAIN)
def test_every_plain_braintools_optimizer(name):
    wanted, _ = by_hand(made(name), GRADS[:3])
    bench = Bench(made(name))
    same(bench.run(GRADS[:3])[0], wanted)
    assert bench.updates == 3


def test_adam_with_decay_and_its_own_clipping():
    make = lambda: bo.AdamW(1e-2, weight_decay=0.1, grad_clip_norm=0.5)  # noqa: E731
    wanted, rates = by_hand(make())
    got, shown = Bench(make()).run()
    same(got, wanted)
    np.testing.assert_allclose(shown, rates)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(1e-2),
        lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 4), momentum=0.9),
        lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(optax.linear_schedule(1e-2, 0.0, 3))),
        lambda: optax.inject_hyperparams(optax.adam)(1e-2),
    ],
    ids=["adam", "cosine", "chain", "injected"],
)
def test_optax(make):
    bench = Bench(make())
    same(bench.run()[0], optax_by_hand(make()))
    assert bench.updates == 5


def test_the_rate_of_optax_is_shown_where_it_is_known():
    assert "lr" not in Bench(optax.adam(1e-2))(GRADS[0], 2)
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    _, rates = Bench(optax.inject_hyperparams(optax.sgd)(schedule)).run()
    np.testing.assert_allclose(rates, [schedule(count) for count in range(5)], rtol=1e-6)


def test_the_rate_of_a_pair_is_that_of_the_update():
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    values, rates = Bench((optax.sgd(schedule), schedule)).run()
    known, expected = Bench(optax.inject_hyperparams(optax.sgd)(schedule)).run()
    same(values, known)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    _, constant = Bench((optax.sgd(0.5), 0.5)).run()
    np.testing.assert_allclose(constant, 0.5)


def test_a_weight_known_beforehand_needs_no_condition():
    bench = Bench(bo.Adam(1e-2), traced=False)
    for g in GRADS:
        bench(g)
    same(bench.now(), by_hand(bo.Adam(1e-2))[0])
    text = str(bench._call.lower(bench.values, GRADS[0]).as_text())
    assert "stablehlo.case" not in text and "stablehlo.if" not in text


def test_parameters_with_units():
    params = {"w": brainstate.ParamState(jnp.ones(3) * u.mV)}
    by_itself = {"w": brainstate.ParamState(jnp.ones(3) * u.mV)}
    grads = {"w": jnp.array([1.0, -2.0, 3.0]) * u.mV}
    hand = bo.Adam(1e-1)
    hand.register_trainable_weights(by_itself)
    bench = Bench(bo.Adam(1e-1), params=params)
    for _ in range(3):
        hand.update(jax.tree.map(lambda leaf: leaf / 2, grads))
        bench(grads, 2)
    assert u.get_unit(bench.now()["w"]) == u.mV
    same(bench.now()["w"], by_itself["w"].value)


# ------------------------------------------------------------------------------------- clipping and accumulation


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_clipping_is_by_global_norm_after_the_division(clip):
    wanted = optax_by_hand(optax.chain(optax.clip_by_global_norm(clip), optax.sgd(0.1)))
    bench = Bench(bo.SGD(0.1), clip=clip)
    norm = float(optax.tree.norm(GRADS[0])) / 2
    assert 0.5 < norm < 1e3
    np.testing.assert_allclose(bench(GRADS[0], 2)["grad_norm"], (norm, 1), rtol=1e-6)
    for g in GRADS[1:]:
        bench(g, 2)
    same(bench.now(), wanted)


def test_clipping_survives_a_zero_gradient():
    bench = Bench(bo.SGD(0.1), clip=1.0)
    assert bench(jax.tree.map(jnp.zeros_like, GRADS[0]), 1)["grad_norm"] == (0, 1)
    same(bench.now(), numbers())


def test_accumulation_is_one_update_with_the_merged_gradient():
    weights = (1.0, 0.0, 3.5, 2.0)
    merged = jax.tree.map(lambda *leaves: sum(leaves), *GRADS[:4])
    whole = Bench(bo.Adam(1e-2), clip=0.7)
    norm = whole(merged, sum(weights))["grad_norm"]
    bench = Bench(bo.Adam(1e-2), clip=0.7, accumulate=4)
    for turn in (1, 2):
        before = bench.now()
        for g, w in zip(GRADS[:3], weights, strict=False):
            metrics = bench(g, w)
            assert metrics["grad_norm"] == (0, 0) and metrics["lr"][1] == 1
            same(bench.now(), before)
        assert bench.updates == turn - 1
        np.testing.assert_allclose(bench(GRADS[3], weights[3])["grad_norm"], norm, rtol=1e-5)
        same(bench.now(), whole.now())
        assert bench.updates == turn
        whole(merged, sum(weights))


def test_accumulation_is_state():
    names = set(Bench(bo.SGD(0.1), accumulate=2).optimizer.states()) - set(Bench(bo.SGD(0.1)).optimizer.states())
    assert names == {"accumulated.in.weight", "accumulated.out.weight", "accumulated_weight", "accumulated_batches"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_weighed_is_no_update(accumulate):
    bench = Bench(bo.Adam(bo.StepLR(1e-2, step_size=1)), accumulate=accumulate)
    before = bench.values
    for _ in range(accumulate):
        assert bench(jax.tree.map(jnp.zeros_like, GRADS[0]), 0)["grad_norm"] == (0, 0)
    jax.tree.map(np.testing.assert_array_equal, bench.values, before)
    for _ in range(accumulate):
        bench(GRADS[0], 1)
    assert bench.updates == 1


# ---------------------------------------------------------------------------------------------------- schedules

SCHEDULES = {
    "step": lambda: bo.StepLR(1e-1, step_size=2, gamma=0.5),
    "multistep": lambda: bo.MultiStepLR(1e-1, milestones=[1, 3], gamma=0.1),
    "exponential": lambda: bo.ExponentialLR(1e-1, gamma=0.9),
    "cosine": lambda: bo.CosineAnnealingLR(1e-1, T_max=4),
    "polynomial": lambda: bo.PolynomialLR(1e-1, total_iters=4),
    "linear": lambda: bo.LinearLR(start_factor=0.1, end_factor=1.0, total_iters=3, base_lr=1e-1),
    "warmup-cosine": lambda: bo.WarmupCosineSchedule(1e-1, warmup_steps=2, total_steps=5),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_braintools_schedules_advance_by_updates(make):
    scheduler = make()
    wanted, rates = by_hand(bo.SGD(scheduler), scheduler=scheduler)
    got, shown = Bench(bo.SGD(make())).run()
    np.testing.assert_allclose(shown, rates, rtol=1e-6)
    same(got, wanted)
    assert len(set(rates)) > 1
    bench = Bench(bo.SGD(make()), accumulate=2)
    np.testing.assert_allclose([bench(GRADS[0], 1)["lr"][0] for _ in range(4)], np.repeat(rates[:2], 2), rtol=1e-6)


REFUSED = {
    "ReduceLROnPlateau": (lambda: bo.ReduceLROnPlateau(1e-1), "optax.contrib.reduce_on_plateau"),
    "SequentialLR": (
        lambda: bo.SequentialLR([bo.ConstantLR(1e-1), bo.StepLR(1e-1)], milestones=[2]), "optax.join_schedules"
    ),
    "ChainedScheduler": (lambda: bo.ChainedScheduler([bo.StepLR(1e-1)]), "one optax schedule that multiplies"),
    "CosineAnnealingWarmRestarts": (lambda: bo.CosineAnnealingWarmRestarts(1e-1, T_0=2), "optax.sgdr_schedule"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_schedules_that_cannot_be_compiled_are_refused(name):
    make, instead = REFUSED[name]
    with pytest.raises(ValueError, match=f"^the scheduler {name} cannot run in a compiled program: use .*{instead}"):
        Bench(bo.SGD(make()))


def test_a_changed_rate_wins_over_the_saved_one():
    """As after a restore: states as they were, a configuration that asks for another learning rate."""
    for old, new, wanted in (
        (bo.SGD(1e-1), bo.SGD(1e-2), 1e-2),
        (bo.Adam(SCHEDULES["step"]()), bo.Adam(bo.StepLR(1.0, step_size=2, gamma=0.5)), 0.25),
        (optax.inject_hyperparams(optax.sgd)(1e-1), optax.inject_hyperparams(optax.sgd)(1e-2), 1e-2),
    ):
        first, second = Bench(old), Bench(new)
        first.run()
        settings = first.optimizer.settings()
        assert settings != second.optimizer.settings()
        second.put(first.values)
        second.optimizer.renew(settings)
        second.values = {name: state.value for name, state in second.named.items()}
        assert second(GRADS[0], 2)["lr"][0] == pytest.approx(wanted)
        assert second.updates == 6
        before = first.values
        first.put(before)
        first.optimizer.renew(first.optimizer.settings())
        jax.tree.map(np.testing.assert_array_equal, {n: s.value for n, s in first.named.items()}, before)


def test_a_copy_of_the_states_goes_on_bit_for_bit():
    make = lambda: bo.Adam(SCHEDULES["cosine"](), grad_clip_norm=1.0)  # noqa: E731
    first, second = Bench(make()), Bench(make())
    first.run(GRADS[:2])
    second.put(jax.tree.map(jnp.copy, first.values))
    first.run(GRADS[2:])
    second.run(GRADS[2:])
    jax.tree.map(np.testing.assert_array_equal, first.values, second.values)


# ------------------------------------------------------------------------------------------- groups and refusals


def test_groups_have_their_own_optimizers():
    group = {"in.weight": "slow", "out.weight": "fast"}.get
    bench = Bench({"slow": bo.SGD(bo.StepLR(1e-2, step_size=1)), "fast": optax.adam(1e-1)}, group=group)
    rates = [bench(g, 2)["lr/slow"][0] for g in GRADS]
    np.testing.assert_allclose(rates, [1e-2 * 0.1**i for i in range(5)], rtol=1e-5)
    scheduler = bo.StepLR(1e-2, step_size=1)
    wanted = {
        "in.weight": by_hand(bo.SGD(scheduler), scheduler=scheduler)[0]["in.weight"],
        "out.weight": optax_by_hand(optax.adam(1e-1))["out.weight"],
    }
    same(bench.now(), wanted)
    assert {name.split(".")[0] for name in bench.optimizer.states()} == {"updates", "slow", "fast"}
    with pytest.raises(ValueError, match=r"^Module.group gives labels without an optimizer: \{'out.weight': 'fast'\}"):
        Bench({"slow": bo.SGD(1e-2)}, group=group)
    with pytest.raises(ValueError, match=r"^no parameter belongs to the optimizer\(s\) \['x'\]; Module.group gives"):
        Bench({"slow": bo.SGD(1e-2), "fast": bo.SGD(1), "x": bo.SGD(1)}, group=group)


@pytest.mark.parametrize(
    "keys",
    [
        lambda p: p,
        lambda p: {("out", "weight"): p["out.weight"], ("in", "weight"): p["in.weight"]},
        lambda p: brainstate.util.FlattedDict({tuple(name.split(".")): state for name, state in p.items()}),
        lambda p: {"out": {"weight": p["out.weight"]}, "in": p["in.weight"]},
    ],
    ids=["names", "paths", "as model.states() gives them", "nested"],
)
def test_an_optimizer_that_is_registered_already(keys):
    params, registered = fresh(), bo.Adam(1e-2)
    registered.register_trainable_weights(keys(params))
    same(Bench(registered, params=params).run()[0], by_hand(bo.Adam(1e-2))[0])


def test_an_optimizer_that_is_registered_in_part():
    params, part = fresh(), bo.Adam(1e-2)
    part.register_trainable_weights({"out.weight": params["out.weight"]})
    with pytest.raises(ValueError, match=r"^the optimizer misses \['in.weight'\]: register every trained parameter"):
        Bench(part, params=params)
    params, more = fresh(), bo.Adam(1e-2)
    more.register_trainable_weights(params)
    with pytest.raises(ValueError, match=r"^the optimizer holds \['in.weight'\], which the module does not train"):
        Bench(more, params={"out.weight": params["out.weight"]})


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"^configure_optimizer returned float; expected a gradient-based braintools"):
        Bench(0.1)
    with pytest.raises(TypeError, match=r"^configure_optimizer of group 'a' returned str; expected"):
        Bench({"a": "adam"}, group=lambda name: "a")
    with pytest.raises(
        ValueError, match=r"^the optimizer of SimpleNamespace cannot run in a compiled program .*optax$"
    ):
        Bench(optax.GradientTransformation(lambda p: None, lambda g, s, p: (jax.tree.map(np.asarray, g), s)))


# ------------------------------------------------------------------------------------------- a look at the loss


def plateau(**options):
    return optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(**{"factor": 0.5, "patience": 2, **options}))


def scale_of(values):
    return float(next(leaf for path, leaf in jax.tree_util.tree_leaves_with_path(values) if "scale" in str(path)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plateau_of_the_loss_lowers_the_rate(accumulate):
    """Against optax driven by itself; the loss of an accumulated update is the mean over its batches."""
    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]
    params, state = numbers(), plateau().init(numbers())
    grads = jax.tree.map(jnp.ones_like, params)
    for loss in losses:
        updates, state = plateau().update(grads, state, params, value=jnp.float32(loss))
        params = optax.apply_updates(params, updates)
    bench = Bench(plateau(), accumulate=accumulate, loss=True)
    for loss in losses:
        for part in [0.5, 1.5][:accumulate] if accumulate > 1 else [1.0]:  # sum(w * loss) over a weight of 2 a batch
            bench(jax.tree.map(lambda leaf: 2 * leaf, grads), 2.0, 2.0 * loss * part)
    same(bench.now(), params)
    assert scale_of(bench.values["optimizer/state"]) == scale_of(state) == 0.25


def test_only_who_looks_at_the_loss_keeps_it():
    """Checkpoints of other optimizers hold what they always held."""
    for make in (lambda: bo.Adam(0.1), lambda: optax.adam(0.1), lambda: optax.inject_hyperparams(optax.adam)(0.1)):
        assert not Bench(make(), accumulate=2).optimizer.wants_loss
        assert "accumulated_loss" not in Bench(make(), accumulate=2).optimizer.states()
    assert "accumulated_loss" in Bench(plateau(), accumulate=2, loss=True).optimizer.states()
    assert "accumulated_loss" not in Bench(plateau(), loss=True).optimizer.states()


def test_a_transformation_that_needs_more_than_the_loss_is_refused():
    match = r"cannot run in a compiled program, given gradients, parameters and the loss as value \(.*value_fn.*optax$"
    with pytest.raises(ValueError, match=match):
        Bench(optax.lbfgs())
