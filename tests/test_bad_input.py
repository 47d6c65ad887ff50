"""A run that cannot be gets one clear line, and nothing is written in its run directory."""

import braintools
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from tests.small import CopyGRU, Linear, Lines, LinesOf, copies, line, lines


def x(time=3, batch=2, width=2):
    return np.zeros((time, batch, width), np.float32)


class Twice(Linear):
    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - forward(x)).mean(-1)


class Never(Linear):
    def learning_step(self, forward, x, y):
        return jnp.square(y).mean(-1)


class Matrix(Linear):
    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y)


class Whole(Linear):
    def learning_step(self, forward, x, y):
        forward(x)
        return jnp.ones((), jnp.int32)


class NamedLoss(Linear):
    def learning_step(self, forward, x, y):
        loss = jnp.square(forward(x) - y).mean(-1)
        return loss, {"loss": loss}


class NamedRate(Linear):
    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y).mean(-1), {"lr": 1.0}


class ListOfMetrics(Linear):
    def learning_step(self, forward, x, y):
        return jnp.square(forward(x) - y).mean(-1), [1.0]


class NoModel(Linear):
    def build(self):
        return lambda x: x


class NoStep(jt.Module):
    build = Linear.build
    Net = Linear.Net

    def configure_optimizer(self):
        return braintools.optim.SGD(0.1)


class NoOptimizer(Linear):
    def configure_optimizer(self):
        return "adam"


class WithoutOptimizer(Linear):
    configure_optimizer = jt.Module.configure_optimizer


class Misses(Linear):
    def configure_optimizer(self):
        optimizer = braintools.optim.SGD(0.1)
        optimizer.register_trainable_weights({"w": self.model.w})
        return optimizer


class Frozen(Linear):
    def trainable(self, name):
        return False


class NoPhases(Linear):
    def phases(self, batch):
        return batch


RUNS = {
    "too many targets": (
        Linear,
        [(x(3), x(4, width=3))],
        {},
        ValueError,
        "targets have 4 time steps and inputs only 3.*time-major",
    ),
    "batch-major": (
        Linear,
        [(x(2, 5), x(2, 3, 3))],
        {},
        ValueError,
        r"targets has shape \(2, 3, 3\), but the inputs' batch axis is 5.*batch_first=True",
    ),
    "no batch axis": (
        Linear,
        [(np.zeros(3, np.float32), np.zeros(3, np.float32))],
        {},
        ValueError,
        r"inputs has shape \(3,\); expected at least \(T, B\)",
    ),
    "no time steps": (Linear, [(x(0), x(0, width=3))], {}, ValueError, "no time steps or an empty batch"),
    "empty list": (Linear, [], {}, jt.errors.DataError, "train data: holds no batch; expected at least one"),
    "empty generator": (Linear, iter(()), {}, jt.errors.DataError, "train data: holds no batch"),
    "no data": (Linear, None, {}, jt.errors.DataError, "train data: got None; give a DataModule"),
    "a class": (
        Linear,
        jt.datasets.CopyDataModule,
        {},
        jt.errors.DataError,
        "CopyDataModule is a class; give an instance",
    ),
    "a number": (
        Linear,
        3,
        {},
        jt.errors.DataError,
        r"train data: got an object of type int; expected batch\(step\) or an iterable",
    ),
    "text": (
        Linear,
        [(x(), np.full((3, 2), "a"))],
        {},
        jt.errors.DataError,
        r"leaf batch\[1\] has dtype <U1; expected numbers",
    ),
    "max_epochs without length": (
        Linear,
        Lines(),
        dict(max_epochs=2, max_steps=None),
        ValueError,
        r"max_epochs=...\) needs train data with a length; give max_steps",
    ),
    "epochs without length": (
        Linear,
        lines(),
        dict(validate_every="1ep"),
        ValueError,
        '"1ep" counts epochs, but the train data has no length',
    ),
    "checkpoint epochs": (
        Linear,
        Lines(),
        dict(callbacks=[jt.Checkpoint(every="1ep", monitor=None)]),
        ValueError,
        "counts epochs",
    ),
    "validation without data": (
        Linear,
        Lines(),
        dict(validate_every=2),
        ValueError,
        r"Fit\(validate_every=2\), but DataModule has no val data: give jaxtrain.DataModule\(train, val\), define"
        r" val_data\(\), or leave validate_every out",
    ),
    "forward twice": (
        Twice,
        Lines(),
        {},
        ValueError,
        "Twice.learning_step called forward 2 times; expected exactly one",
    ),
    "forward never": (Never, Lines(), {}, ValueError, r"Never.learning_step (never called|called forward 0 times)"),
    "loss of a wrong shape": (
        Matrix,
        Lines(),
        {},
        ValueError,
        r"Matrix.learning_step: loss has shape \(2, 3\); expected \(\) or \(2,\)",
    ),
    "whole loss": (Whole, Lines(), {}, TypeError, "loss has dtype int32; expected a floating type"),
    "a metric named loss": (NamedLoss, Lines(), {}, ValueError, "returned a metric 'loss'; .*choose another"),
    "a metric named lr": (NamedRate, Lines(), {}, ValueError, "returned a metric 'lr'; the trainer uses this name"),
    "metrics in a list": (ListOfMetrics, Lines(), {}, TypeError, "metrics of type list; expected a dict"),
    "not a model": (
        NoModel,
        Lines(),
        {},
        TypeError,
        "the model of NoModel is a function; expected a brainstate.nn.Module",
    ),
    "no model": (jt.Module, Lines(), {}, TypeError, r"Module defines neither build\(\) nor a model"),
    "no learning_step": (NoStep, Lines(), {}, TypeError, r"NoStep defines no learning_step\(forward, x, y\)"),
    "not a module": (Linear.Net, Lines(), {}, TypeError, "expected a jaxtrain.Module object, got"),
    "a module's class": (lambda: Linear, Lines(), {}, TypeError, "expected a jaxtrain.Module object, got"),
    "no optimizer": (NoOptimizer, Lines(), {}, TypeError, "configure_optimizer returned str; expected"),
    "no configure_optimizer": (
        WithoutOptimizer,
        Lines(),
        {},
        TypeError,
        r"WithoutOptimizer defines no configure_optimizer\(\); return an optax transformation, as optax.adam",
    ),
    "optimizer misses": (
        Misses,
        Lines(),
        {},
        ValueError,
        r"the optimizer misses \['b'\]: register every trained parameter, or none",
    ),
    "nothing to train": (Frozen, Lines(), {}, ValueError, "nothing to train.*trainable"),
    "no phases": (NoPhases, Lines(), {}, TypeError, "Module.phases must return jaxtrain.Phases, got tuple"),
    "an update too late": (
        CopyGRU,
        copies(),
        dict(strategy=jt.DRTRL(update_every=3)),
        ValueError,
        "the learning phase has only 2 time steps",
    ),
    "a probe is missing": (
        Linear,
        Lines(),
        dict(callbacks=[type("P", (jt.Callback,), {"probe_every": 2})()]),
        TypeError,
        r"defines no probe\(module, learner, phases\)",
    ),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_run_that_cannot_be(tmp_path, what):
    module, data, options, error, message = RUNS[what]
    options = {**dict(strategy="bptt", max_steps=3), **options}
    fit = jt.Fit(run_dir=tmp_path / "run", **options)
    with pytest.raises(error, match=message) as caught:
        fit.run(module(), data)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


class Numpy(jt.Callback):
    def state(self):
        return {"best": np.float32(1)}


class Made(jt.Callback):
    """Its state is made when the run starts, which is no mistake."""

    def on_fit_start(self, run):
        self.best = 0

    def state(self):
        return {"best": self.best}


class Sized(jt.BPTT):
    def config(self):
        return {**super().config(), "size": np.int32(3)}


class Task(jt.DataModule):
    task = {"lag": np.int8(3)}


CHEAP = {
    "max_epochs": (Lines(), dict(max_epochs=2), ValueError, "needs train data with a length"),
    "validate_every": (lines(), dict(validate_every="1ep"), ValueError, "counts epochs"),
    "callback state": (Lines(), dict(callbacks=[Numpy()]), TypeError, r"the state of callback Numpy\.0 is not JSON"),
    "strategy": (Lines(), dict(strategy=Sized()), TypeError, "the configuration of Sized is not JSON .*int32"),
    "task": (Task(Lines()), {}, TypeError, "Task.task is not JSON .*int8"),
    "val": (jt.DataModule(Lines(), Lines()), {}, jt.errors.DataError, "val data: is endless"),
}


@pytest.mark.parametrize("what", CHEAP)
def test_what_is_cheap_to_find_is_found_before_a_model_is_built(tmp_path, what):
    class Unbuilt(Linear):
        def build(self):
            raise AssertionError("built")

    data, options, error, message = CHEAP[what]
    fit = jt.Fit(run_dir=tmp_path / "a" / "run", **{**dict(strategy="bptt", max_steps=3), **options})
    with pytest.raises(error, match=message) as caught:
        fit.run(Unbuilt(), data)
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_state_made_when_the_run_starts_is_no_mistake(tmp_path):
    jt.Fit("bptt", max_steps=2, callbacks=[Made()], run_dir=tmp_path).run(Linear(), Lines())


def test_data_that_a_validation_cannot_use(tmp_path):
    data = jt.DataModule(LinesOf(3), [(x(5, 2), x(5, 4, 3))])
    with pytest.raises(ValueError, match="targets has shape .*batch axis is 2"):
        jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run").run(Linear(), data)
    data = jt.DataModule(LinesOf(3), Lines())
    with pytest.raises(jt.errors.DataError, match="val data: is endless; give it a __len__"):
        jt.Fit("bptt", max_steps=2, validate_every=1, run_dir=tmp_path / "run").run(Linear(), data)
    assert line(0)[0].shape == (3, 2, 2)
