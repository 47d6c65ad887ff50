"""Phases are split and checked; an objective scores a time step, and refuses what it cannot score."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain
from jaxtrain.core.metrics import Mean
from jaxtrain.core.module import Module, Phases
from jaxtrain.core.objective import Objective, check_phases, total_weight, weights_of
from jaxtrain.core.optimizer_spec import split_schedule
from tests.small import Linear, line

T_W, T_L, B = 2, 3, 4


def phases(**changes) -> Phases:
    fields = dict(warmup=np.zeros((T_W, B, 5)), inputs=np.zeros((T_L, B, 5)), targets=np.zeros((T_L, B), int))
    return Phases(**{**fields, **changes})


# ---------------------------------------------------------------------------------------------------------- phases


def test_a_dict_whose_targets_nobody_names():
    with pytest.raises(TypeError, match=r"^a batch is a dict with the key 'y', .*: define Module\.phases, and return"):
        Module().phases({"x": np.zeros((3, 2, 1)), "y": np.zeros((3, 2, 1))})
    inputs = {"left": np.zeros((3, 2, 1)), "right": np.zeros((3, 2, 1))}
    assert Module().phases(inputs).inputs is inputs, "a model may have several inputs"


def test_sizes():
    assert phases().sizes == (T_W, T_L, B) == jaxtrain.Phases(**vars(phases())).sizes
    assert phases(warmup=None).sizes == (0, T_L, B)
    assert phases(inputs={"a": np.zeros((T_L, B, 2)), "b": np.zeros((T_L, B))}).sizes == (T_W, T_L, B)


def test_phases_are_a_pytree():
    doubled = jax.tree.map(lambda leaf: leaf * 2, phases(weights=np.ones(T_L), extras={"r": np.ones((T_L, B))}))
    assert isinstance(doubled, Phases) and doubled.extras["r"].sum() == 2 * T_L * B and doubled.reset is None


def test_what_fits_passes():
    for good in (
        phases(),
        phases(warmup=None, targets=None),
        phases(targets={"where": np.zeros((T_L, B, 2)), "when": np.zeros((T_L, B))}),
        phases(weights=np.ones(T_L)),
        phases(weights=np.ones((T_L, B)), reset=np.zeros((T_W + T_L, B), bool), extras={"r": np.zeros((T_L, B))}),
    ):
        assert check_phases(good) is good


TIME_MAJOR = (
    r"; arrays are read as time-major, \(T, B, ...\)\. If axis 0 of the data is the batch, pass batch_first=True with "
    r"bare data or set it on the DataModule; "
    r"a target for a whole sequence is \(1, B, ...\), or \(B, 1, ...\) with batch_first=True$"
)
REFUSED = {
    "no inputs": (dict(inputs=None), r"^the batch holds no inputs for the learning phase$"),
    "empty inputs": (dict(inputs=[]), r"^the batch holds no inputs for the learning phase$"),
    "one axis": (dict(targets=np.zeros(T_L)), r"^targets has shape \(3,\); expected at least \(T, B\): every array"),
    "inner leaf": (
        dict(inputs={"x": np.zeros((T_L, B)), "y": np.float32(1)}),
        r"^inputs\['y'\] has shape \(\); expected at least \(T, B\)",
    ),
    "targets' batch": (
        dict(targets=np.zeros((T_L, 7))), r"^targets has shape \(3, 7\), but the inputs' batch axis is 4" + TIME_MAJOR
    ),
    "targets' time": (
        dict(targets=np.zeros((9, B))), r"^targets has shape \(9, 4\), but the learning phase is 3 time steps"
        + TIME_MAJOR,
    ),
    "warm-up's batch": (dict(warmup=np.zeros((2, 1, 5))), r"^warmup has shape \(2, 1, 5\), but the inputs' batch axis"),
    "extras' time": (dict(extras={"r": np.zeros((4, B))}), r"^extras\['r'\] has shape \(4, 4\), but the learning"),
    "no time": (
        dict(inputs=np.zeros((0, B, 5)), targets=None), r"^inputs has shape \(0, 4, 5\): no time steps or an empty"
    ),
    "no sequences": (
        dict(warmup=None, inputs=np.zeros((T_L, 0, 5)), targets=None), r"^inputs has shape \(3, 0, 5\): no time steps"
    ),
    "weights": (dict(weights=np.ones((B, T_L))), r"^weights have shape \(4, 3\); expected \(3,\) or \(3, 4\)$"),
    "reset": (dict(reset=np.zeros((T_L, B), bool)), r"^reset has shape \(3, 4\); expected \(5, 4\)$"),
    "float reset": (dict(reset=np.zeros((T_W + T_L, B))), r"^reset has dtype float\d\d; expected bool, True at"),
    "int reset": (dict(reset=np.zeros((T_W + T_L, B), np.int8)), r"^reset has dtype int8; expected bool"),
}  # fmt: skip


@pytest.mark.parametrize("changes,message", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_phases(phases(**changes))


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match=r"^Module.phases must return jaxtrain.Phases, got tuple$"):
        check_phases((1, 2))
    with pytest.raises(TypeError, match=r"^extras must be a dict of sequences, got ndarray$"):
        check_phases(phases(extras=np.zeros((T_L, B))))


def test_a_batch_is_split_at_the_scored_end():
    split = Module().phases((np.arange(5 * B).reshape(5, B), np.zeros((T_L, B))))
    assert split.sizes == (2, T_L, B) and split.warmup[0, 0] == 0 and split.inputs[0, 0] == 2 * B
    nested = Module().phases(({"a": np.zeros((5, B)), "b": np.ones((5, B, 2))}, [np.zeros((5, B)), np.zeros((5, B))]))
    assert nested.warmup is None and nested.sizes == (0, 5, B)
    inputs = np.zeros((5, B))
    for batch in (inputs, (inputs, None)):
        whole = Module().phases(batch)
        assert whole.inputs is inputs and whole.warmup is None and whole.targets is None
    given = phases()
    assert Module().phases(given) is given
    with pytest.raises(
        ValueError, match=r"^targets have 6 time steps and inputs only 5; arrays are read as time-major"
    ):
        Module().phases((np.zeros((5, B)), np.zeros((6, B))))


def test_weights():
    np.testing.assert_array_equal(weights_of(phases()), np.ones(T_L))
    assert total_weight(phases()) == T_L * B and isinstance(total_weight(phases()), float)
    assert total_weight(phases(weights=np.array([1, 0, 2.0]))) == 3 * B
    assert total_weight(phases(weights=np.eye(T_L, B))) == 3
    assert total_weight(phases(weights=np.ones(T_L, bool))) == T_L * B


def test_what_must_be_written_is_asked_for():
    class Empty(Module):
        pass

    for call, missing in (
        (lambda m: m.build(), r"^Empty defines neither build\(\) nor a model$"),
        (lambda m: m.learning_step(None, 0, 0), r"^Empty defines no learning_step\(forward, x, y\)$"),
        (lambda m: m.configure_optimizer(), r"^Empty defines no configure_optimizer\(\); return an optax transform"),
        (lambda m: m.group("w"), r"^Empty.configure_optimizer gives a dict, so define group\(name\) -> label$"),
    ):
        with pytest.raises(TypeError, match=missing):
            call(Empty())
    assert Empty().trainable("anything")


# ------------------------------------------------------------------------------------------------------- objective


def score(step, w=1.0, y=None, encode=lambda x: x, **extras):
    class Task(Module):
        def learning_step(self, forward, x, y, **extras):
            return step(forward, x, y, **extras)

    module = Task()
    module.model = SimpleNamespace()
    w = jnp.asarray(w, jnp.float32)
    return Objective(module, encode).learn(lambda x: x * 2, jnp.arange(float(B)), y, w, extras)


def test_a_step_is_scored():
    loss, metrics = score(lambda forward, x, y: (forward(x), {"hit": x > 1, "size": jnp.float32(7)}))
    assert loss == 12 and metrics["loss"] == Mean(12, B)
    assert metrics["hit"] == Mean(2, B) and metrics["size"] == Mean(7 * B, B)
    assert metrics["hit"].num.dtype == jnp.float32


def test_a_step_is_weighted():
    step = lambda forward, x, y: (forward(x), {"hit": x > 1, "size": jnp.float32(7)})  # noqa: E731
    loss, metrics = score(step, w=0.5)
    assert loss == 6 and metrics["hit"] == Mean(1, 2) and metrics["size"] == Mean(14, 2)
    loss, metrics = score(step, w=[0, 1, 0, 2])
    assert loss == 1 * 2 + 2 * 6 and metrics["hit"] == Mean(2, 3) and metrics["size"] == Mean(21, 3)
    assert score(lambda forward, x, y: forward(x).mean(), w=0.5)[0] == 3 * 2


def test_a_metric_may_have_a_weight_of_its_own():
    own = jnp.array([0, 1, 0.5, 0])
    last = jnp.array([jnp.nan, 1, 0, 9])

    def step(forward, x, y):
        return forward(x), {"last": (last, own), "all": (x > 0, True), "none": (jnp.nan, 0), "one": (x.sum(), 0.5)}

    loss, metrics = score(step)
    assert loss == 12 and metrics["last"] == Mean(1, 1.5) and metrics["all"] == Mean(3, B)
    assert metrics["none"] == Mean(0, 0) and metrics["one"] == Mean(6 * 2, 2)
    assert score(step, w=[1, 2, 0, 1])[1]["last"] == Mean(2, 2)


def test_inputs_are_encoded_and_extras_named():
    loss, _ = score(lambda forward, x, y, *, reward: forward(x) * reward, encode=lambda x: x + 1, reward=3.0)
    assert loss == 3 * 2 * (1 + 2 + 3 + 4)


def test_a_step_that_does_not_take_the_extras_is_told_of_them():
    class Plain(Module):
        def learning_step(self, forward, x, y):
            return forward(x) + y

    class Short(Module):
        def learning_step(self, forward, x):  # type: ignore[override]
            return forward(x)

    def learn(module, y: Any = 1.0, **extras):
        return Objective(module, lambda x: x).learn(lambda x: x, jnp.arange(float(B)), y, jnp.float32(1), extras)

    wanted = r"^Plain.learning_step\(forward, x, y\) got an unexpected keyword argument 'reward': it is called with "
    with pytest.raises(TypeError, match=wanted + r"forward, x, y, reward= \(Phases.extras come by keyword\)$"):
        learn(Plain(), reward=3.0)
    with pytest.raises(TypeError, match=r"^Short.learning_step\(forward, x\) too many positional arguments: .* x, y$"):
        learn(Short())
    with pytest.raises(TypeError, match="NoneType"):  # within the step: its own error
        learn(Plain(), y=None)
    assert learn(Plain())[0] == 6 + B


SCORED = {
    "twice": (lambda f, x, y: f(f(x)), ValueError, r"^Task.learning_step called forward 2 times; expected exactly one"),
    "never": (lambda f, x, y: x, ValueError, r"^Task.learning_step called forward 0 times; expected exactly one"),
    "metrics": (lambda f, x, y: (f(x), 3), TypeError, r"returned metrics of type int; expected a dict name -> value$"),
    "loss": (lambda f, x, y: (f(x), {"loss": x}), ValueError, r"returned a metric 'loss'; the trainer uses this"),
    "shape": (lambda f, x, y: f(x)[:, None], ValueError, r"_step: loss has shape \(4, 1\); expected \(\) or"),
    "metric": (lambda f, x, y: (f(x), {"m": jnp.ones(2)}), ValueError, r"step: m has shape \(2,\); expected \(\) or"),
    "mean": (lambda f, x, y: (f(x), {"m": Mean(x, x)}), TypeError, r"m is a Mean; expected an array, or a pair \("),
    "triple": (lambda f, x, y: (f(x), {"m": (x, x, x)}), TypeError, r"m is a tuple; expected an array, or a pair"),
    "pair": (lambda f, x, y: ((f(x), x), {}), TypeError, r"_step: loss is a tuple; expected an array$"),
    "its weight": (
        lambda f, x, y: (f(x), {"m": (x, jnp.ones(2))}), ValueError, r"the weight of Task.learning_step: m has shape"
    ),
    "int": (lambda f, x, y: f(x).astype(int), TypeError, r"_step: loss has dtype int32; expected a floating type$"),
}  # fmt: skip


@pytest.mark.parametrize("step,kind,message", SCORED.values(), ids=SCORED.keys())
def test_what_cannot_be_scored_is_named(step, kind, message):
    with pytest.raises(kind, match=message):
        score(step)


def test_a_scalar_loss_cannot_be_weighted_per_sequence():
    with pytest.raises(ValueError, match=r"^Task.learning_step: loss is a scalar, .* one loss per sequence, \(4,\)"):
        score(lambda forward, x, y: forward(x).mean(), w=np.ones(B))


def test_evaluation_and_prediction_default_to_the_learning_step():
    class Task(Module):
        model = SimpleNamespace()

        def learning_step(self, forward, x, y):
            return forward(x), {"hit": x > 1}

    objective = Objective(Task(), lambda x: x)
    x, w = jnp.arange(float(B)), jnp.float32(1)
    assert objective.evaluate(lambda x: x, x, None, w, {}) == {"loss": Mean(6, B), "hit": Mean(2, B)}
    np.testing.assert_array_equal(objective.predict(lambda x: -x, x), -x)


def test_names_of_other_libraries_are_answered():
    with pytest.warns(UserWarning) as said:

        class Lightning(Module):
            def training_step(self, batch, index): ...
            def validation_step(self, batch, index): ...
            def on_train_epoch_end(self): ...
            def helper(self): ...

    assert [str(warning.message) for warning in said] == [
        "Lightning.training_step is never called by jaxtrain; define learning_step(forward, x, y), which is one time "
        "step",
        "Lightning.validation_step is never called by jaxtrain; define evaluation_step(forward, x, y); the default is "
        "learning_step",
        "Lightning.on_train_epoch_end is never called by jaxtrain; use a jaxtrain.Callback",
    ]
    assert all(warning.filename == __file__ for warning in said), "it points at the class"
    with pytest.warns(UserWarning, match=r"Data.train_dataloader is never called by jaxtrain; define train_data\(\)"):

        class Data(jaxtrain.DataModule):
            def train_dataloader(self): ...


@pytest.mark.parametrize(
    ("loss", "mixes"),
    [
        (lambda out, y: jnp.square(out[..., 0] - y).mean(-1), True),
        (lambda out, y: jnp.square(y - out[..., 0]).mean(0), True),
        (lambda out, y: jnp.square(out[..., 0] - y).mean(), True),
        (lambda out, y: jnp.square(out[..., :1] - y).mean(-1), False),
        (lambda out, y: jnp.square(out[..., :1] - y).mean(), False),
    ],
)
def test_a_loss_that_mixes_sequences_by_its_shapes_is_noted(loss, mixes):
    class Task(Linear):
        def learning_step(self, forward, x, y):
            return loss(forward(x), y), {"any": jnp.zeros(())}

    x, y = line(0, batch=4)
    notes = jaxtrain.Fit("bptt", max_steps=1).run(Task(), [(x, y[..., :1])], batch_first=False, dry_run=True)
    notes = notes.report["notes"]
    named = [note for note in notes if "Task.learning_step mixes sequences: the loss of one depends on" in note]
    assert len(named) == mixes and all(
        "(output and targets are (4, 3), (4, 1); an array (4,)" in note for note in named
    )


# ------------------------------------------------------------------------------------------------------- optimizer


def test_configure_optimizers_is_another_name():
    class Plural(Module):
        def configure_optimizers(self):
            return "plural"

    class Singular(Plural):
        def configure_optimizer(self):
            return "singular " + super().configure_optimizer()

    class Again(Singular):
        def configure_optimizers(self):
            return "again " + super().configure_optimizers()

    for kind, expected in ((Plural, "plural"), (Singular, "singular plural"), (Again, "again singular plural")):
        assert kind().configure_optimizer() == kind().configure_optimizers() == expected

    class Mixin:
        def configure_optimizers(self):
            return "mixin"

    class Empty(Module):
        pass

    class Mixed(Mixin, Singular): ...

    class Diamond(Empty, Singular): ...

    assert Mixed().configure_optimizer() == Mixed().configure_optimizers() == "mixin"
    assert Diamond().configure_optimizer() == "singular plural"
    with pytest.raises(TypeError, match=r"^Empty defines no configure_optimizer\(\)"):
        Empty().configure_optimizers()


def test_a_run_uses_configure_optimizers():
    class Plural(Linear):
        def configure_optimizers(self):
            return optax.sgd(0.1)

    fit = jaxtrain.Fit("bptt", max_steps=1)
    wanted = fit.run(Linear(optimizer=lambda: optax.sgd(0.1)), [line(0)], batch_first=False).digest
    assert fit.run(Plural(), [line(0)], batch_first=False).digest == wanted


def test_both_names_are_an_error():
    with pytest.raises(TypeError, match=r"^Both defines configure_optimizer and configure_optimizers, two names"):

        class Both(Module):
            def configure_optimizer(self): ...
            def configure_optimizers(self): ...

    class Same(Module):
        def configure_optimizer(self):
            return "one"

        configure_optimizers = configure_optimizer

    assert Same().configure_optimizers() == "one"


def test_a_schedule_is_split_from_its_optimizer():
    adam, schedule = optax.adam(1e-3), optax.cosine_decay_schedule(1e-3, 100)
    braintools = SimpleNamespace()
    for alone in (adam, braintools, {"a": adam, "b": braintools}, optax.inject_hyperparams(optax.adam)(1e-3)):
        assert split_schedule(alone) == (alone, None)
    for rate in (schedule, 1e-3, 1, np.float32(1e-3), jnp.float32(1e-3), lambda step: 1e-3):
        assert split_schedule((adam, rate)) == (adam, rate)
    several, rates = {"a": adam, "b": braintools}, {"a": schedule}
    assert split_schedule((several, rates)) == (several, rates)


A = optax.sgd(1.0)
SCHEDULES = {
    "triple": ((A, 1, 2), TypeError, r"^configure_optimizer returned a tuple of 3; expected an optimizer or \(opti"),
    "text": ((A, "1e-3"), TypeError, r"returned a schedule of type str; expected a number, or a function of the num"),
    "bool": ((A, True), TypeError, r"returned a schedule of type bool; expected a number"),
    "array": ((A, np.ones(2)), TypeError, r"returned a schedule of type ndarray; expected a number"),
    "swapped": ((1e-3, A), TypeError, r"returned a pair of float and Gradient\w+; expected an optax transf"),
    "lists": (([A], [1e-3]), TypeError, r"returned a pair of list and list; expected an optax transformation and its"),
    "one for several": (({"a": A}, 1e-3), TypeError, r"several optimizers with a schedule of type float; expected a d"),
    "unknown": (({"a": A}, {"b": 1}), ValueError, r"schedules for \['b'\], but optimizers for \['a'\]: use the same"),
    "of a label": (({"a": A}, {"a": "x"}), TypeError, r"^configure_optimizer, label 'a', returned a schedule of type "),
}  # fmt: skip


@pytest.mark.parametrize("returned,kind,message", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_wrong_schedule_is_named(returned, kind, message):
    with pytest.raises(kind, match=message):
        split_schedule(returned)
