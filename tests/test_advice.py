"""What an error advises works: each entry makes the mistake, reads the advice, and then follows it.

Of advice about runs on disk, processes and devices, tests that follow it stand beside those of the feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import braintools.optim as bo
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain as jt
from jaxtrain.data.eval_loader import EvalLoader
from jaxtrain.data.iterator import DataIterator
from jaxtrain.strategies import registry
from tests.small import Linear, Lines, LinesOf, line, lines

Step = Callable[[], Any]


def followed(mistake: Step, advice: str, *steps: Step) -> None:
    """The mistake is one line that ends in the advice, and every step that the advice means succeeds."""
    with pytest.raises(Exception, match=advice) as caught:
        mistake()
    assert len(str(caught.value).splitlines()) == 1, caught.value
    for step in steps:
        step()


# ----------------------------------------------------------------------------------- what is found when it is made


class Endless:
    def __iter__(self):
        return iter(int, 1)


class Named(jt.DataModule):
    def __init__(self):
        super().__init__(Lines(), LinesOf(1))


class Sized(Lines):
    def __len__(self):
        return 3


def once(n=2):
    return iter([line(i) for i in range(n)])


def registered(name="tests_advice", base=jt.BPTT, **fields):
    """A strategy of one's own, which leaves the registry again."""

    def make():
        body = {"name": name, "__annotations__": dict.fromkeys(fields, int), **fields}
        cls = dataclass(frozen=True)(type("Mine", (base,), body))
        try:
            jt.register(cls)
        finally:
            if name == "tests_advice":
                registry.REGISTRY.pop(name, None)

    return make


def without_default():
    @dataclass(frozen=True, kw_only=True)
    class Mine(jt.BPTT):
        name = "tests_advice"
        size: int

    jt.register(Mine)


MADE: dict[str, tuple[Any, ...]] = {
    "seed beside a list": (
        lambda: jt.Fit("bptt", seed=3, seeds=[1, 2]), "the list contains all seeds; do not also pass seed",
        lambda: jt.Fit("bptt", seeds=[1, 2]),
    ),
    "seeds": (
        lambda: jt.Fit("bptt", seeds="two"), "expected the number of seeds, counted from seed=0, or a list",
        lambda: jt.Fit("bptt", seeds=2), lambda: jt.Fit("bptt", seeds=[4, 7]),
    ),
    "strategy class": (
        lambda: jt.Fit(jt.BPTT), r"did you mean BPTT\(\)", lambda: jt.Fit(jt.BPTT()),  # pyright: ignore
    ),
    "checkpoint mode": (
        lambda: jt.Checkpoint(monitor=None, mode="max"), r"give a monitor, or neither of them",
        lambda: jt.Checkpoint(monitor="val/accuracy", keep_best=2, mode="max"), lambda: jt.Checkpoint(monitor=None),
    ),
    "curriculum ema": (
        lambda: jt.callbacks.Curriculum([{"a": 1}], "val/x", 1.0, mode="max", ema=0.9, restart=0.0),
        "instead of over; drop one",
        lambda: jt.callbacks.Curriculum([{"a": 1}], "train/x", 1.0, mode="max", ema=0.9, restart=0.0),
        lambda: jt.callbacks.Curriculum([{"a": 1}], "val/x", 1.0, mode="max", over=3),
    ),
    "segment of a trace": (
        lambda: jt.DRTRL(engine="trace", segment=4), "a trace has no segments; drop one",
        lambda: jt.DRTRL(engine="trace"), lambda: jt.DRTRL(segment=4),
    ),
    "single-step window": (
        lambda: jt.strategies.PPProp(vjp="single-step", window=2, decay=0.9), "set window=1, or leave vjp out",
        lambda: jt.strategies.PPProp(vjp="single-step", window=1, decay=0.9),
        lambda: jt.strategies.PPProp(window=2, decay=0.9),
    ),
    "decay and rank": (
        lambda: jt.strategies.PPProp(decay=0.9, rank=3), "a rank replaces the decay; drop one",
        lambda: jt.strategies.PPProp(decay=0.9), lambda: jt.strategies.PPProp(rank=3),
    ),
    "feedback seed": (
        lambda: jt.strategies.ETrace(feedback_seed=3), "nothing is drawn; drop it",
        lambda: jt.strategies.ETrace(),
        lambda: jt.strategies.ETrace(feedback_seed=3, learning_signal="random_feedback"),
    ),
    "a point with a strategy of its own": (
        lambda: jt.strategies.ETrace(learning_signal="modulatory"),  # pyright: ignore
        "this is strategy 'three_factor'; use it", lambda: jt.Fit("three_factor"),
    ),
    "a name that is taken": (
        registered("bptt"), "the name 'bptt' is taken; choose another", registered(),
    ),
    "a field without default": (
        without_default, "the strategy must be constructible without arguments", registered(size=3),
    ),
    "a class of data": (
        lambda: jt.Fit("bptt", max_steps=1).run(Linear(), Named), r"give an instance: Named\(...\)", Named,
    ),
    "one array": (
        lambda: DataIterator(np.zeros((3, 2, 2))), r"give a list of batches: \[x\], or list\(x\)",
        lambda: DataIterator([np.zeros((3, 2, 2))]), lambda: DataIterator(list(np.zeros((3, 2, 2)))),
    ),
    "one batch": (
        lambda: DataIterator(line(0)), r"give a list of batches: \[\(x, y\)\]", lambda: DataIterator([line(0)]),
    ),
    "a class as a source": (
        lambda: DataIterator(Lines), "call it first", lambda: DataIterator(Lines()),
    ),
    "no train data": (
        lambda: jt.DataModule().train_data(), r"define train_data\(\) or give it a source of batches",
        lambda: jt.DataModule([line(0)]).train_data(),
        lambda: type("Own", (jt.DataModule,), {"train_data": lambda self: [line(0)]})().train_data(),
    ),
    "an endless pass": (
        lambda: EvalLoader(Lines(), "val"), "is endless; give it a __len__", lambda: EvalLoader(Sized(), "val"),
    ),
    "a pass of an iterator": (
        lambda: EvalLoader(once(), "val"), "a one-shot iterator cannot be read twice; give a list",
        lambda: EvalLoader(list(once()), "val"),
    ),
    "a new task of an iterator": (
        lambda: DataIterator(once()).clear(), r"give an object with batch\(step\)",
        lambda: DataIterator(Lines()).clear(),
    ),
    "epochs of an endless source": (
        lambda: jt.period.Period.of("2ep").steps(None), 'give the data a __len__ or count steps',
        lambda: jt.period.Period.of("2ep").steps(DataIterator(Sized()).length),
        lambda: jt.period.Period.of("200").steps(None),
    ),
    "an event that is none": (
        lambda: raises_a_warning(lambda: type("Mine", (jt.Callback,), {"on_train_end": lambda self, run: None})),
        "jaxtrain has no such event; use on_fit_end",
        lambda: raises_a_warning(lambda: type("Mine", (jt.Callback,), {"on_fit_end": lambda self, run, status: 0})),
    ),
}  # fmt: skip


def raises_a_warning(make: Step) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


@pytest.mark.parametrize("name", MADE)
def test_advice_on_what_is_made(name):
    followed(*MADE[name])


# ----------------------------------------------------------------------------------------- what a run runs into


class Net(brainstate.nn.Module):
    """``step(net, x)`` is its time step; ``w`` maps inputs to three units, whose state is ``h``."""

    def __init__(self, step: Callable, **states: Any):
        super().__init__()
        self.into, self.step = braintrace.nn.Linear(2, 3), step
        for name, state in states.items():
            setattr(self, name, state)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((*([batch_size] if batch_size else []), 3)))

    def update(self, x):
        return self.step(self, x)


def leak(net, x):
    net.h.value = 0.5 * net.h.value + net.into(x)
    return net.h.value + 0.0


class Of(Linear):
    """``Linear`` with another model, and methods of one's own by name."""

    def __init__(self, net: Callable[[], Any] = lambda: Net(leak), optimizer: Any = None, **methods: Callable):
        super().__init__(optimizer)
        self.net = net
        for name, method in methods.items():
            setattr(self, name, method)

    def build(self):
        return self.net()


def train(module=None, strategy: Any = "bptt", data=None, callbacks=list, **options) -> Step:
    """One step."""

    def run():
        made = module() if module else Of()
        fit = jt.Fit(strategy, callbacks=callbacks(), **{"max_steps": 1, **options})
        fit.run(made, data() if data else [line(0)])

    return run


def error(forward, x, y, **_):
    return jnp.square(forward(x) - y).mean(-1)


def step(method: Callable) -> Callable:
    return lambda: Of(learning_step=method)


def batches(make: Callable) -> Callable:
    """Batches as the module's ``phases`` makes them of ``(x, y)``."""
    return lambda: Of(phases=lambda batch: make(*batch))


OUTSIDE = brainstate.LongTermState(jnp.float32(0))


def touches(net, x):
    OUTSIDE.value = OUTSIDE.value + 1.0
    return leak(net, x)


def counts(net, x):
    net.seen.value = net.seen.value + 1.0
    return leak(net, x)


def drive(out: Callable) -> Callable:
    """A model that returns ``out`` of what drives its units."""

    def step(net, x):
        y = net.into(x)
        net.h.value = 0.5 * net.h.value + y
        net.k.value = 0.5 * net.k.value + net.again(net.h.value)
        return out(y)

    class Two(Net):
        def init_state(self, batch_size=None, **_):
            super().init_state(batch_size)
            self.k = brainstate.HiddenState(jnp.zeros_like(self.h.value))

    return lambda: Of(lambda: Two(step, again=braintrace.nn.Linear(3, 3)))


def copied(copy: Callable) -> Callable:
    """A model with a hidden state that ends a time step with a copy of another."""

    def step(net, x):
        before = net.last.value
        net.h.value = 0.8 * net.h.value + net.into(x)
        net.last.value = copy(net.h.value)
        return net.h.value - before

    class Copies(Net):
        def init_state(self, batch_size=None, **_):
            super().init_state(batch_size)
            self.last = brainstate.HiddenState(jnp.zeros_like(self.h.value))

    return lambda: Of(lambda: Copies(step))


class Dense(Net):
    """Not built from braintrace: its product is JAX's own."""

    def __init__(self):
        super().__init__(self.product)
        self.w = brainstate.ParamState(jnp.full((2, 3), 0.1))

    def product(self, net, x):
        self.h.value = 0.5 * self.h.value + x @ self.w.value
        return self.h.value


def with_time(net, x):
    return brainstate.environ.get("t") * leak(net, x)


def own_time(net, x):
    net.t.value = net.t.value + 1.0
    with brainstate.environ.context(t=net.t.value):
        return with_time(net, x)


class Clocked(Net):
    """Counts its time steps in a state of the sequence."""

    def init_state(self, batch_size=None, **_):
        super().init_state(batch_size)
        self.t = brainstate.ShortTermState(jnp.float32(0))


def normalised(net, x):
    net.mean.value = 0.9 * net.mean.value + 0.1 * x.mean()
    return leak(net, x - net.mean.value)


def two_updates():
    made = bo.SGD(0.1)

    def again():
        return made

    def twice():
        module = Of(optimizer=again)
        fit = jt.Fit("bptt", max_steps=1)
        fit.run(module, [line(0)])
        fit.run(module, [line(0)])

    return twice


def fresh_each_time():
    module = Of(optimizer=lambda: bo.SGD(0.1))
    fit = jt.Fit("bptt", max_steps=1)
    fit.run(module, [line(0)])
    fit.run(module, [line(0)])


def optimizer(make: Callable) -> Step:
    return train(lambda: Of(optimizer=make))


def narrow(dtype):
    def step(net, x):
        net.h.value = 0.5 * net.h.value + net.into(x)
        return net.h.value

    class Half(Net):
        def __init__(self):
            super().__init__(step)
            self.into.weight.value = jax.tree.map(lambda leaf: leaf.astype(dtype), self.into.weight.value)

        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros((*([batch_size] if batch_size else []), 3), dtype))

    return Half


def cast_batch(dtype):
    return lambda: [tuple(jnp.asarray(leaf).astype(dtype) for leaf in line(0))]


class Renewed:
    """Starts again each time."""

    def __iter__(self):
        return once()

    def __len__(self):
        return 2


class Spent(Renewed):
    def __init__(self):
        self.iterator = once()

    def __iter__(self):
        return self.iterator


class Logs(jt.Callback):
    """Logs in one event."""

    def __init__(self, event: str):
        self.event = event

    def on_chunk_end(self, run, metrics):
        self.log("on_chunk_end", run)

    def on_validation_end(self, run, metrics):
        self.log("on_validation_end", run)

    def on_fit_end(self, run, status):
        self.log("on_fit_end", run)

    def log(self, event, run):
        if event == self.event:
            run.log({"mine": 1.0})


def stopping(monitor="val/loss", **options):
    return [jt.EarlyStopping(monitor, **options)]


def built():
    module = Of()
    module.model = module.build()
    return module


def masked(hold: Callable) -> Net:
    """A mask that is drawn when the model is built."""
    mask = hold((brainstate.random.rand(3) > 0.5).astype(jnp.float32))
    net = Net(lambda net, x: leak(net, x) * getattr(net.mask, "value", net.mask))
    net.mask = mask
    return net


TRACED = jt.strategies.PPProp(engine="trace")

TRAINED: dict[str, tuple[Any, ...]] = {
    "a scheduler on a plateau": (
        optimizer(lambda: bo.Adam(bo.ReduceLROnPlateau(1e-3))),
        "use optax with optax.contrib.reduce_on_plateau, chained after the optimizer, which receives the train loss",
        optimizer(lambda: optax.chain(
            optax.adam(1e-3), optax.contrib.reduce_on_plateau(patience=2, accumulation_size=4))),
    ),
    "schedules in sequence": (
        optimizer(lambda: bo.SGD(bo.SequentialLR([bo.ConstantLR(0.1), bo.StepLR(0.1)], milestones=[2]))),
        "use optax with optax.join_schedules",
        optimizer(lambda: optax.sgd(optax.join_schedules([lambda n: 0.1, lambda n: 0.01], [2]))),
    ),
    "chained schedules": (
        optimizer(lambda: bo.SGD(bo.ChainedScheduler([bo.StepLR(0.1)]))),
        "use optax with one optax schedule that multiplies the factors",
        optimizer(lambda: optax.sgd(
            lambda n: optax.exponential_decay(0.1, 5, 0.9)(n) * optax.linear_schedule(1, 0, 9)(n))),
    ),
    "warm restarts": (
        optimizer(lambda: bo.SGD(bo.CosineAnnealingWarmRestarts(0.1, T_0=2))), "use optax with optax.sgdr_schedule",
        optimizer(lambda: optax.sgd(optax.sgdr_schedule(
            [dict(init_value=0.0, peak_value=0.1, decay_steps=5, warmup_steps=1)]))),
    ),
    "an optimizer that searches along a line": (
        optimizer(optax.lbfgs), "use another one, for example optax.adam of optax", optimizer(lambda: optax.adam(1e-3)),
    ),
    "no optimizer": (
        optimizer(lambda: 0.1), "an optax transformation, or a dict of them",
        optimizer(lambda: optax.sgd(0.1)), optimizer(lambda: bo.SGD(0.1)),
    ),
    "an optimizer that was used": (
        two_updates(), "configure_optimizer must return a new one each time", fresh_each_time,
    ),
    "accumulate and update_every": (
        train(strategy=jt.DRTRL(update_every=1), accumulate=2, max_steps=2), "choose one of the two",
        train(strategy=jt.DRTRL(update_every=1)), train(strategy="drtrl", accumulate=2, max_steps=2),
    ),
    "epochs without a length": (
        train(data=Lines, max_steps=None, max_epochs=1), "give max_steps instead", train(data=Lines),
    ),
    "a window over all": (
        train(strategy=jt.DRTRL(window=3)), "use strategy='bptt', or a window below the 3 time steps",
        train(), train(strategy=jt.DRTRL(window=2)),
    ),
    "updates beyond the sequence": (
        train(strategy=jt.DRTRL(update_every=4)), "give 3 or less, or 'sequence'",
        train(strategy=jt.DRTRL(update_every=3)), train(strategy=jt.DRTRL(update_every="sequence")),
    ),
    "a window beyond the sequence": (
        train(strategy=jt.TBPTT(window=4)), "give a window of 3 or less, or use strategy='bptt'",
        train(strategy=jt.TBPTT(window=3)), train(),
    ),
    "a third part of a batch": (
        train(data=lambda: [(*line(0), np.ones((3, 2)))]), "let Module.phases return jaxtrain.Phases",
        train(lambda: Of(phases=lambda batch: jt.Phases(None, batch[0], batch[1], weights=batch[2])),
              data=lambda: [(*line(0), np.ones((3, 2), np.float32))]),
    ),
    "phases that are none": (
        train(batches(lambda x, y: (x, y))), "must return jaxtrain.Phases, got tuple",
        train(batches(lambda x, y: jt.Phases(None, x, y))),
    ),
    "a scalar loss with weights": (
        train(lambda: Of(learning_step=lambda forward, x, y: error(forward, x, y).mean(),
                         phases=lambda batch: jt.Phases(None, *batch, weights=jnp.ones((3, 2))))),
        r"return one loss per sequence, \(2,\)",
        train(lambda: Of(learning_step=error, phases=lambda batch: jt.Phases(None, *batch, weights=jnp.ones((3, 2))))),
    ),
    "two calls of forward": (
        train(step(lambda forward, x, y: error(forward, x, y) + error(forward, x, y))), "expected exactly one call",
        train(step(error)),
    ),
    "a metric's name": (
        train(step(lambda forward, x, y: (error(forward, x, y), {"lr": 1.0}))), "choose another",
        train(step(lambda forward, x, y: (error(forward, x, y), {"rate": 1.0}))),
    ),
    "a loss in two parts": (
        train(step(lambda forward, x, y: (error(forward, x, y), {}, 1))), r"expected loss, or \(loss, metrics\)",
        train(step(error)), train(step(lambda forward, x, y: (error(forward, x, y), {"a": 1.0}))),
    ),
    "a state outside of the model": (
        train(lambda: Of(lambda: Net(touches))), "make it an attribute of the module's model",
        train(lambda: Of(lambda: Net(counts, seen=brainstate.LongTermState(jnp.float32(0))))),
    ),
    "the time of the environment": (
        train(lambda: Of(lambda: Net(with_time))), "let the model count its time steps in a State, and set 't' itself",
        train(lambda: Of(lambda: Clocked(own_time))),
    ),
    "a running mean mapped over sequences": (
        train(lambda: Of(lambda: Net(normalised, mean=brainstate.LongTermState(jnp.float32(0)))),
              strategy=jt.BPTT(batching="vmap")),
        "use 'batched'",
        train(lambda: Of(lambda: Net(normalised, mean=brainstate.LongTermState(jnp.float32(0)))),
              strategy=jt.BPTT(batching="batched")),
    ),
    "a recurrence without braintrace": (
        train(lambda: Of(Dense), strategy="pp_prop"), "build the recurrence from braintrace.nn, or use strategy='bptt'",
        train(strategy="pp_prop"), train(lambda: Of(Dense)),
    ),
    "what also feeds a weight": (
        train(drive(lambda y: y), strategy=TRACED), "return something made from it, or use strategy='bptt'",
        train(drive(lambda y: 1.0 * y), strategy=TRACED), train(drive(lambda y: y)),
    ),
    "a hidden state that copies another": (
        train(copied(lambda h: h), strategy=TRACED),
        "give a HiddenState that copies another a value of its own, as 1.0 [*] h.value, or use strategy='bptt'",
        train(copied(lambda h: 1.0 * h), strategy=TRACED), train(copied(lambda h: h)),
    ),
    "a narrow recurrence": (
        train(lambda: Of(narrow(jnp.bfloat16)), strategy="pp_prop", data=cast_batch(jnp.bfloat16)),
        "give the model float32 inputs, or use strategy='bptt'",
        train(lambda: Of(narrow(jnp.float32)), strategy="pp_prop"),
        train(lambda: Of(narrow(jnp.bfloat16)), data=cast_batch(jnp.bfloat16)),
    ),
    "nothing to read out": (
        train(strategy="readout_only"), "give the model a readout",
        train(lambda: Of(lambda: Net(lambda net, x: net.out(leak(net, x)), out=braintrace.nn.Linear(3, 3))),
              strategy="readout_only"),
    ),
    "several seeds of one model": (
        lambda: jt.Fit("bptt", max_steps=1, seeds=2).run(built(), [line(0)]), "pass a new module",
        train(seeds=2),
    ),
    "a plain attribute drawn at random": (
        train(lambda: Of(lambda: masked(lambda mask: mask)), seeds=2),
        "Make it a brainstate.State of the model, or train one seed per run",
        train(lambda: Of(lambda: masked(brainstate.LongTermState)), seeds=2),
        train(lambda: Of(lambda: masked(lambda mask: mask))),
    ),
    "a metric of each seed": (
        train(Linear, seeds=2, data=lines, callbacks=lambda: stopping("seeds/val/loss"), validate_every=1),
        "expected one number, such as their mean",
        train(Linear, seeds=2, data=lines, callbacks=stopping, validate_every=1),
    ),
    "a metric that validation does not give": (
        train(Linear, data=lines, callbacks=lambda: stopping("val/acc", mode="max"), validate_every=1),
        "which validation does not give; expected val/loss",
        train(Linear, data=lines, callbacks=stopping, validate_every=1),
    ),
    "no validation data": (
        train(callbacks=stopping, validate_every=None),
        r"give DataModule\(val=...\) or define val_data\(\), or leave EarlyStopping out",
        train(Linear, data=lines, callbacks=stopping, validate_every=1), train(),
    ),
    "batches unlike the first": (
        train(data=lambda: [line(0), line(1, time=4)], max_steps=2), "make all alike",
        train(data=lambda: [line(0), line(1)], max_steps=2),
    ),
    "an iterable that does not start again": (
        train(data=Spent, max_steps=4), "must give a new iterator each time", train(data=Renewed, max_steps=4),
    ),
    "a log after the row is written": (
        train(Linear, callbacks=lambda: [Logs("on_fit_end")]), "log in on_validation_end or on_chunk_end",
        train(Linear, callbacks=lambda: [Logs("on_chunk_end")]),
        train(Linear, data=lines, callbacks=lambda: [Logs("on_validation_end")]),
    ),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", TRAINED)
def test_advice_on_what_is_trained(name):
    followed(*TRAINED[name])


def test_a_validation_at_the_end_alone_stops_nothing(caplog):
    advice = "the only one is at the end: set Fit(validate_every=...)"
    train(Linear, data=lines, callbacks=stopping)()
    assert advice in caplog.text
    caplog.clear()
    train(Linear, data=lines, callbacks=stopping, validate_every=1)()
    assert advice not in caplog.text


def test_an_optimizer_as_lightning_has_it():
    def run(optimizer):
        return jt.Fit("bptt", max_steps=2).run(Linear(lambda: optimizer), lines(), batch_first=None)

    advice = r"return the optimizer alone, with a schedule as its learning rate: optax.adam\(optax.cosine_decay"
    rate = optax.cosine_decay_schedule(1e-3, 1000)
    wrong = {"optimizer": optax.adam(1e-3), "lr_scheduler": rate}
    followed(lambda: run(wrong), advice, lambda: run(optax.adam(rate)))


def test_a_class_in_place_of_an_object():
    made = lambda *callbacks: jt.Fit("bptt", max_steps=1, callbacks=callbacks)  # noqa: E731
    followed(
        lambda: made(jt.callbacks.ProgressBar),
        r"did you mean ProgressBar\(\)\?$",
        lambda: made(jt.callbacks.ProgressBar()),
    )
    followed(
        lambda: made().run(Linear, lines()),  # pyright: ignore
        r"did you mean Linear\(\)\?$",
        lambda: made().run(Linear(), lines()),
    )
