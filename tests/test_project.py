"""Module.project: one update equals the update without it, projected by numpy; for every way to train."""

from operator import itemgetter
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import jaxtrain as jt
from jaxtrain import projections
from jaxtrain.checkpoint.load import build_each
from jaxtrain.engine.program import Program
from jaxtrain.engine.projection import projection_of
from jaxtrain.engine.seeds import SeedAxis
from jaxtrain.engine.steps import NONFINITE_INDEX
from jaxtrain.strategies import registry
from tests.kit.tiers import longer
from tests.small import At, Linear, Lines, kill, leaves, line, same

SIGNS = np.array([1, -1, 1, 1])
WEIGHT, ROWS = "rnn.W.weight", slice(2, None)


class Net(brainstate.nn.Module):
    """Two inputs, four recurrent units, three outputs. The mask is a State, which seeds may draw."""

    def __init__(self):
        super().__init__()
        self.rnn = braintrace.nn.ValinaRNNCell(2, 4, activation="tanh")
        self.out = braintrace.nn.Linear(4, 3)
        self.mask = brainstate.LongTermState(brainstate.random.rand(4, 3) < 0.5)

    def update(self, x):
        return self.out(self.rnn(x))


class Plain(Linear):
    """Without a projection. The large learning rate violates every constraint."""

    def build(self):
        return Net()

    def configure_optimizer(self):
        return optax.adam(0.1)


class Projected(Plain):
    """Dale's law for the recurrent weights, a random mask and a largest norm for the readout."""

    dale = staticmethod(projections.dale(SIGNS, rows=ROWS))

    def project(self, name, value):
        if name == WEIGHT:
            return {**value, "weight": self.dale(value["weight"])}
        masked = projections.sparse(self.model.mask.value)(value["weight"])
        return {**value, "weight": projections.max_norm(0.5)(masked)}

    def learning_step(self, forward, x, y):
        weight = jax.lax.stop_gradient(self.model.rnn.W.weight.value["weight"])[ROWS]
        wrong = (weight * SIGNS[:, None] < 0).sum().astype(jnp.float32)
        return super().learning_step(forward, x, y), {"wrong": wrong}


def by_numpy(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters of one seed, projected by loops."""
    cell, out = (np.array(values[name]["weight"]) for name in (WEIGHT, "out.weight"))
    for i, sign in enumerate(SIGNS):
        for j in range(4):
            if cell[2 + i, j] * sign < 0:
                cell[2 + i, j] = 0
    out = out * np.asarray(values["model/mask"])
    for j in range(3):
        out[:, j] *= min(1.0, 0.5 / max(np.linalg.norm(out[:, j].astype(float)), 1e-9))
    return {WEIGHT: {**values[WEIGHT], "weight": cell}, "out.weight": {**values["out.weight"], "weight": out}}


def program(module: Any, strategy: Any, *, seed: Any = 0, batch: Any = None, **options: Any) -> Program:
    several = isinstance(seed, tuple)
    models = build_each(module, seed if several else (seed,), several=several, resumed=False)
    options = {"clip": None, "accumulate": 1, "nonfinite": "raise", "chunk": 1, **options}
    example = line(0) if batch is None else batch
    made = Program(module, strategy, lambda x: x, example, seed=seed, models=models, **options)
    made.prepare()
    return made


def host(made: Program) -> dict[str, Any]:
    names = (*made.parameters, "model/mask")
    return jax.device_get({name: value for name, value in made.values.items() if name in names})


def put(made: Program, values: dict[str, Any]) -> None:
    made.values = {**made.values, **made.devices.place(jax.tree.map(jnp.array, values))}


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        for leaf, truth in zip(jax.tree.leaves(found[name]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(leaf, truth, rtol=2e-6, atol=1e-9, err_msg=name)


def each(values: dict[str, Any], seeds: int | None) -> list[dict[str, Any]]:
    return [values] if seeds is None else [jax.tree.map(itemgetter(i), values) for i in range(seeds)]


def check(strategy: Any, seeds: int | None = None, **options: Any) -> None:
    """Three steps of both programs, from the same state each time."""
    seed = 0 if seeds is None else tuple(range(seeds))
    made, free = program(Projected(), strategy, seed=seed, **options), program(Plain(), strategy, seed=seed, **options)
    for mine, start in zip(each(host(made), seeds), each(host(free), seeds), strict=True):
        close(mine, by_numpy(start))
    broken = 0
    for step in range(3):
        put(free, jax.device_get(made.values))
        made.train([line(step)], step).fetch(), free.train([line(step)], step).fetch()
        for mine, start in zip(each(host(made), seeds), each(host(free), seeds), strict=True):
            expected = by_numpy(start)
            close(mine, expected)
            broken += (expected[WEIGHT]["weight"] != start[WEIGHT]["weight"]).any()
            broken += (expected["out.weight"]["weight"] != start["out.weight"]["weight"]).any()
    assert broken, "without the projection the constraints are violated"


@pytest.mark.full
@pytest.mark.parametrize("name", ["bptt", "drtrl", *longer("tbptt", "pp_prop", "dni", "uoro")])
def test_each_update_of_every_rule(name):
    check(registry.lookup(name)(**({"window": 2} if name == "tbptt" else {})))


@pytest.mark.full
@pytest.mark.parametrize("strategy", [jt.BPTT(), *longer(jt.DRTRL())], ids=lambda s: s.name)
def test_each_seed(strategy):
    check(strategy, seeds=2)


@pytest.mark.full
def test_vectorized_seeds(monkeypatch):
    make = SeedAxis.__init__

    def vectorized(self, seeds):
        make(self, seeds)
        self.one_by_one = False

    monkeypatch.setattr(SeedAxis, "__init__", vectorized)
    check(jt.BPTT(), seeds=2)


@pytest.mark.full
@pytest.mark.parametrize("strategy", [jt.strategies.PPProp(update_every=1), *longer(jt.DRTRL(update_every=2))], ids=str)
def test_updates_within_a_sequence(strategy):
    """Each time step counts the wrong signs of the parameters that it runs with."""

    class After(Projected):
        """It starts from projected values and projects nothing."""

        project = jt.Module.project

    counts = []
    for module in (Projected(), After()):
        made = program(module, strategy, batch=line(0, time=6))
        put(made, by_numpy(host(made)))
        wrong = made.train([line(0, time=6)], 0).fetch()["wrong"]
        counts.append(float(wrong.num[0]))
    assert counts[0] == 0 < counts[1]


@pytest.mark.full
def test_a_batch_that_only_accumulates_projects_nothing():
    made = program(Projected(), jt.BPTT(), accumulate=2)
    start = jax.device_get(made.values)
    start[WEIGHT] = {**start[WEIGHT], "weight": -start[WEIGHT]["weight"]}
    put(made, start)
    made.train([line(0)], 0).fetch()
    close(host(made), {name: start[name] for name in made.parameters})
    made.train([line(1)], 1).fetch()
    after = host(made)
    close(after, by_numpy(after))
    free = program(Plain(), jt.BPTT(), accumulate=2)
    put(free, start)
    for step in range(2):
        free.train([line(step)], step).fetch()
    close(after, by_numpy(host(free)))


def test_a_batch_without_weight_and_a_skipped_step_project_nothing():
    class Weighted(Projected):
        def phases(self, batch):
            x, y = batch
            return jt.Phases(warmup=None, inputs=x, targets=y[0], weights=y[1])

    def batch(weight, factor=1.0):
        x, y = line(0)
        return factor * x, (y, np.full(len(y), weight, np.float32))

    made = program(Weighted(), jt.BPTT(), batch=batch(1), nonfinite="skip")
    start = jax.device_get(made.values)
    start[WEIGHT] = {**start[WEIGHT], "weight": -start[WEIGHT]["weight"]}
    put(made, start)
    assert made.train([batch(0)], 0).fetch()[NONFINITE_INDEX][0, 0] < 0
    assert made.train([batch(1, np.nan)], 1).fetch()[NONFINITE_INDEX][0, 0] >= 0
    now = host(made)
    for name in made.parameters:
        jax.tree.map(np.testing.assert_array_equal, now[name], start[name])
    made.train([batch(1)], 2).fetch()
    close(host(made), by_numpy(host(made)))


# ------------------------------------------------------------------------------------------- whole runs


def run(path, steps, more=(), module=None, resume="last"):
    kept = jt.Checkpoint(every=2, monitor=None, keep_last=5)
    fit = jt.Fit("bptt", max_steps=steps, chunk=1, callbacks=[kept, *more], loggers=(), run_dir=path)
    module = module or Cheap()
    return fit.run(module, Lines(), resume=resume), leaves(module)


class Cheap(Linear):
    """A column norm, which repeated projections would change by rounding, and a parameter that is not trained."""

    def build(self):
        net = super().build()
        net.w.value, net.b.value = jnp.asarray([[3.0, -1, 0.3], [1, 2, 0.7]]), jnp.asarray([1.0, -2, 3])
        return net

    def trainable(self, name):
        return name != "b"

    def project(self, name, value):
        return projections.max_norm(0.7)(value) if name == "w" else projections.non_negative()(value)


@pytest.mark.full
def test_a_killed_run_and_a_fork_equal_the_uninterrupted_run(tmp_path):
    whole, values = run(tmp_path / "whole", 6)
    assert (np.linalg.norm(values["w"], axis=0) < 0.7001).all()
    np.testing.assert_array_equal(values["b"], [1, 0, 3])  # projected before step 0, although it is not trained
    killed, _ = run(tmp_path / "killed", 6, [At("on_chunk_end", 3, kill)])
    assert killed.status == "terminated"
    module = jt.load(tmp_path / "killed", Cheap())
    stored = leaves(module)["w"]
    assert (np.linalg.norm(stored, axis=0) < 0.7001).all()
    resumed, again = run(tmp_path / "killed", 6)
    assert resumed.digest == whole.digest and same(values, again)
    fork, forked = run(tmp_path / "whole", 6, resume=2)
    assert fork.run_dir != whole.run_dir and same(values, forked)


def test_initial_values_of_a_module_that_was_built_before_are_projected():
    module = Cheap()
    module.model = module.build()
    jt.Fit("bptt", max_steps=1, loggers=(), callbacks=[]).run(module, Lines(), dry_run=True)
    np.testing.assert_allclose(np.linalg.norm(leaves(module)["w"][:, :2], axis=0), 0.7, rtol=1e-6)


def test_a_module_without_a_projection_is_not_projected():
    assert projection_of(Linear()) is None and projection_of(Cheap()) is not None


def test_a_projection_that_matches_no_name_is_warned_of(caplog):
    class Misnamed(Linear):
        matches = "w.weight"

        def project(self, name, value):
            return projections.clip(-9, 9)(value) if name == self.matches else value

    fit = jt.Fit("bptt", max_steps=1, loggers=(), callbacks=[])
    fit.run(Misnamed(), Lines(), dry_run=True)
    assert caplog.text.count("Misnamed.project returns every parameter unchanged; names are b, w\n") == 1
    caplog.clear()
    module = Misnamed()
    module.matches = "w"  # the values happen to satisfy the constraint
    fit.run(module, Lines(), dry_run=True)
    assert "returns every parameter" not in caplog.text


def test_a_quantity_keeps_its_unit():
    class Currents(Linear):
        class Net(Linear.Net):
            def __init__(self):
                super().__init__()
                self.w.value = self.w.value * u.mA

            def update(self, x):
                self.h.value = 0.5 * self.h.value + x @ self.w.value.to_decimal(u.mA) + self.b.value
                return self.h.value

        def project(self, name, value):
            return projections.clip(-50 * u.uA, 50 * u.uA)(value) if name == "w" else value

    module = Currents()
    jt.Fit("bptt", max_steps=3, loggers=(), callbacks=[]).run(module, Lines())
    weight = module.model.w.value
    assert weight.unit == u.mA and np.abs(weight.mantissa).max() == np.float32(0.05)


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "project, message",
    [
        (
            lambda name, value: None,
            r"Bad.project changes 'b' from .*float32\[3\].* to .*None\); expected the same tree",
        ),
        (lambda name, value: value[:1], r"Bad.project changes 'b' from .*\[3\].* to .*\[1\]"),
        (lambda name, value: value.astype(jnp.float16), r"Bad.project changes 'b' from .*float32.* to .*float16"),
        (lambda name, value: value + 0 * brainstate.random.randn(3), r"Bad.project draws random numbers for 'b'"),
    ],
    ids=["none", "shape", "dtype", "random"],
)
def test_what_is_no_projection(project, message):
    class Bad(Linear):
        def project(self, name, value):
            return project(name, value) if name == "b" else value

    with pytest.raises(ValueError, match=message):
        jt.Fit("bptt", max_steps=1, loggers=(), callbacks=[]).run(Bad(), Lines())


def test_a_mask_that_differs_between_seeds_must_be_a_state():
    class Attribute(Linear):
        def build(self):
            self.mask = np.asarray(brainstate.random.rand(2, 3)) < 0.5
            return super().build()

        def project(self, name, value):
            return projections.sparse(self.mask)(value) if name == "w" else value

    with pytest.raises(ValueError, match="under seed 1 differs from that of seed 0 .* for example a mask"):
        jt.Fit("bptt", max_steps=1, seeds=2, loggers=(), callbacks=[]).run(Attribute(), Lines())
