"""What callbacks read of a run: its module, parameters and predictions are those of ``run.step``, and reading them
changes nothing."""

import inspect

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.callbacks.base import EVENTS
from jaxtrain.engine.program import Program
from tests.small import Linear, Lines, LinesOf, count_compiles, leaves, line, lines, same

VAL = [line(1000), line(1001)]
TOLD = [name for name in EVENTS if name not in ("flush", "on_figure", "on_histogram")]


def outputs(params, x):
    """By hand, in numpy: a leaky sum, ``(T, B, 2) -> (T, B, 3)``."""
    h, seen = np.zeros((x.shape[1], 3)), []
    for step in x:
        h = 0.5 * h + step @ params["w"] + params["b"]
        seen.append(h)
    return np.stack(seen)


def score(params):
    return np.mean([(outputs(params, x) - y) ** 2 for x, y in VAL])


def trained(steps, rate=0.05):
    """The parameters after every step, by a loop over ``jax.grad``."""

    def loss(params, x, y):
        h, total = jnp.zeros((x.shape[1], 3)), 0.0
        for step, target in zip(x, y, strict=True):
            h = 0.5 * h + step @ params["w"] + params["b"]
            total = total + jnp.square(h - target).mean()
        return total / len(x)

    params = {"w": jnp.full((2, 3), 0.1), "b": jnp.zeros(3)}
    seen = [params]
    for step in range(steps):
        grads = jax.grad(loss)(params, *line(step))
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        seen.append(params)
    return [jax.tree.map(np.asarray, params) for params in seen]


class Every(jt.Callback):
    """Calls ``look(run)`` in every event."""

    def __init__(self, look):
        self.look = look


for _event in TOLD:
    setattr(Every, _event, lambda self, run, *args, event=_event: self.look(event, run))


class Reads(Every):
    reads_model = True


def test_in_every_event_the_values_are_those_of_the_step():
    truth, seen = trained(9), []

    def look(event, run):
        held = leaves(run.module)
        for name, leaf in run.params().items():
            np.testing.assert_array_equal(leaf, held[name], err_msg=event)
            np.testing.assert_allclose(leaf, truth[run.step][name], rtol=1e-5, err_msg=f"{event} {run.step}")
        found, wanted = run.predict([line(50)[0]]), outputs(truth[run.step], line(50)[0])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6, err_msg=event)
        assert run.validate(VAL)["val/loss"] == pytest.approx(score(truth[run.step]), rel=1e-5), event
        seen.append((event, run.step))

    fit = jt.Fit("bptt", max_steps=9, chunk=2, validate_every=3, log_every=1, callbacks=[Reads(look)])
    fit.run(Linear(), jt.DataModule(LinesOf(5), VAL))
    assert {event for event, _ in seen} == {*TOLD} - {"on_probe", "on_restore", "on_checkpoint", "on_exception"}
    assert {step for event, step in seen if event == "on_chunk_end"} == {2, 3, 4, 5, 6, 8, 9}


def test_the_chunk_in_flight_is_refused_and_the_advice_works():
    said, seen = [], []

    def look(event, run):
        if event in ("on_chunk_start", "on_chunk_end") and run.step == 4:
            for read in (lambda: run.module, run.params, lambda: run.predict(VAL), lambda: run.validate(VAL)):
                with pytest.raises(RuntimeError) as caught:
                    read()
                said.append(str(caught.value))
        elif event == "on_validation_end":
            seen.append(run.params()["w"][0, 0])

    jt.Fit("bptt", max_steps=12, chunk=4, validate_every=12, callbacks=[Every(look)]).run(Linear(), lines())
    assert len(said) == 8 and len(seen) == 1 and "\n" not in said[0]
    assert said[0].startswith("the model's values at step 4 are overwritten: the program has those of step 8. Set ")

    class Edges(Every):
        def boundaries(self):
            return (jt.period.Period.of(4),)

    for callback in (Reads, Edges):
        found = []

        def advised(event, run, found=found):
            if event == "on_chunk_end":
                found.append(run.params())

        advised = callback(advised)
        jt.Fit("bptt", max_steps=12, chunk=4, callbacks=[advised]).run(Linear(), lines())
        assert len(found) == 3
        np.testing.assert_allclose(found[0]["w"], trained(4)[4]["w"], rtol=1e-5)


class Meddles(Reads):
    """Reads all it can in every event, and does to the model and to the random numbers what it should not."""

    def __init__(self):
        super().__init__(self.meddle)

    def meddle(self, event, run):
        if not hasattr(self, "handle"):
            self.handle = run.module
        fit = jt.Fit("bptt", max_steps=1)
        # By a handle of an earlier event: it is read as it is now.
        assert fit.validate(self.handle, VAL) == run.validate(VAL)
        np.testing.assert_array_equal(fit.predict(self.handle, VAL), run.predict(VAL))
        run.predict([line(3, batch=3)[0]])
        if event == "on_fit_end":
            return  # the module is its owner's again
        brainstate.nn.init_all_states(run.module.model, 5)
        brainstate.random.seed(run.step)
        run.module.model.w.value = run.module.model.w.value * jnp.nan
        run.params()["w"][:] = 0


FULL = pytest.mark.full


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"seeds": 2}, marks=FULL), pytest.param({"accumulate": 2}, marks=FULL)]
)
def test_training_is_bitwise_the_same_whatever_is_read(options):
    def run(*callbacks):
        module = Linear()
        fit = jt.Fit("drtrl", max_steps=7, chunk=2, validate_every=3, log_every=2, callbacks=callbacks, **options)
        return fit.run(module, lines()), leaves(module)

    (alone, module), (read, watched) = run(), run(Meddles())
    assert read.digest == alone.digest and read.history == alone.history
    assert same(watched, module)


def test_a_read_leaves_the_callers_random_numbers():
    before = []

    def look(event, run):
        if event == "on_validation_end":
            brainstate.random.seed(7)
            key = brainstate.random.DEFAULT.value
            run.predict([line(3, batch=run.step)[0]])
            assert brainstate.random.DEFAULT.value is key
            before.append(run.step)

    jt.Fit("bptt", max_steps=2, validate_every=1, callbacks=[Every(look)]).run(Linear(), lines())
    assert before == [1, 2]


@pytest.mark.usefixtures("no_compilation_cache")
def test_programs_are_made_once_a_run():
    compiles, numbers = [], []

    def look(event, run):
        if event == "on_validation_end":
            run.predict([line(3)[0]])
            run.validate(VAL)
            run.params(), run.module
            numbers.append(len(compiles))

    compiles, end = count_compiles()
    try:
        fit = jt.Fit("bptt", max_steps=6, validate_every=2, callbacks=[Every(look)])
        fit.run(Linear(), jt.DataModule(Lines(), VAL))
    finally:
        end()
    assert numbers[0] == numbers[-1] and len(numbers) == 3
    assert numbers[0] <= 4, "to train, to look at the loss, to validate, to predict"


@FULL
def test_several_seeds():
    """A prediction is the first seed's, a validation of all."""

    def look(event, run):
        if event == "on_validation_end":
            params = run.params()
            np.testing.assert_array_equal(run.module.model.w.value, params["w"][0])
            first = {name: leaf[0] for name, leaf in params.items()}
            np.testing.assert_allclose(run.predict([line(50)[0]]), outputs(first, line(50)[0]), rtol=1e-4, atol=1e-6)
            both = [score({name: leaf[seed] for name, leaf in params.items()}) for seed in range(2)]
            found = run.validate(VAL)
            np.testing.assert_allclose(found["seeds/val/loss"], both, rtol=1e-5)
            assert found["val/loss"] == pytest.approx(np.mean(both), rel=1e-5)

    class Random(Linear):
        def build(self):
            net = self.Net()
            net.w.value = 0.1 * brainstate.random.randn(2, 3)
            return net

    fit = jt.Fit("bptt", seeds=2, max_steps=4, validate_every=2, callbacks=[Every(look)])
    fit.run(Random(), lines())


class Once(jt.Callback):
    def __init__(self, look):
        self.look = look

    def on_validation_end(self, run, metrics):
        self.look(run)


def during(look, data=None, **options):
    return jt.Fit("bptt", max_steps=2, callbacks=[Once(look)], **options).run(Linear(), data or lines())


@pytest.mark.parametrize(
    "use",
    [
        lambda module, path: jt.Fit("bptt", max_steps=1).run(module, lines()),
        lambda module, path: jt.load(path, module),
        lambda module, path: jt.Fit("bptt", max_steps=1).predict(module, VAL, checkpoint=path),
    ],
    ids=["run", "load", "checkpoint"],
)
def test_a_module_in_use_is_refused_elsewhere(use, tmp_path):
    jt.Fit("bptt", max_steps=1, run_dir=tmp_path / "old").run(Linear(), lines())
    path = tmp_path / "old" / "checkpoints" / "00000001"
    handles = []

    def look(run):
        handles.append(run.module)
        with pytest.raises(RuntimeError, match="in progress, at step 2, trains Linear: wait for its end, or use a new"):
            use(run.module, path)
        use(built(), path)  # as it says

    assert during(look).step == 2
    use(handles[0], path)  # and so is this


def built():
    module = Linear()
    module.model = module.build()
    return module


def test_a_model_in_use_is_refused_under_another_module():
    def look(run):
        other = Linear()
        other.model = run.module.model
        with pytest.raises(RuntimeError, match="and this Linear has its model or a part of it: read it with run"):
            jt.Fit("bptt", max_steps=1).predict(other, VAL)

    during(look)


def test_a_callback_serves_one_run_at_a_time():
    def look(run):
        with pytest.raises(RuntimeError, match="uses this Once: create another Once"):
            jt.Fit("bptt", max_steps=1, callbacks=run.callbacks.all).run(Linear(), lines())
        jt.Fit("bptt", max_steps=1, callbacks=[Once(lambda run: None)]).run(Linear(), lines())

    during(look)


class Stateful:
    """Has one place, which it can tell."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while True:
            self.at += 1
            yield line(self.at)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_the_source_that_the_run_trains_on_is_not_read():
    source = Stateful()

    def look(run):
        with pytest.raises(jt.errors.DataError, match="the run reads this Stateful, and another pass would move"):
            run.validate(source)
        run.validate([line(0)])  # another one that reads the same data

    during(look, jt.DataModule(source, VAL))
    listed = [line(0), line(1)]
    during(lambda run: run.validate(listed), jt.DataModule(listed, VAL))


def test_batches_without_a_data_module_are_encoded_as_those_of_the_run():
    class Doubled(jt.DataModule):
        def encode(self, x):
            return 2 * x

    class Plain(jt.DataModule):
        pass

    def look(run):
        x = line(50)[0]
        params = run.params()
        np.testing.assert_allclose(run.predict([x]), outputs(params, 2 * x), rtol=1e-4, atol=1e-6)
        plain = run.predict(Plain(predict=[x]))
        np.testing.assert_allclose(plain, outputs(params, x), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(run.predict([x]), run.predict(Doubled(predict=[x])))

    during(look, Doubled(Lines(), VAL))


def test_after_the_run_the_module_is_its_owners():
    runs = []
    module = Linear()
    fit = jt.Fit("bptt", max_steps=2, callbacks=[Once(runs.append)])
    fit.run(module, lines())
    held = runs[0].params()["w"]
    np.testing.assert_array_equal(held, module.model.w.value)
    jt.Fit("bptt", max_steps=2).run(module, lines())
    now = np.asarray(module.model.w.value)
    assert runs[0].module is module and not np.array_equal(now, held)
    np.testing.assert_array_equal(module.model.w.value, now)
    np.testing.assert_array_equal(runs[0].predict(VAL), fit.predict(module, VAL))


def test_an_event_that_waited_has_no_values(monkeypatch):
    """A logger whose disk is full is told later, when the model has other values."""
    told = []

    class Full(jt.Callback):
        rank = "record"

        def on_validation_end(self, run, metrics):
            if not told:
                told.append("full")
                raise OSError(28, "No space left on device")
            if len(told) == 1:
                with pytest.raises(RuntimeError, match="in an event of step 2 that was delivered at step 4"):
                    run.params()
            told.append(run.step)

    jt.Fit("bptt", max_steps=4, validate_every=2, callbacks=[Full()]).run(Linear(), lines())
    assert told == ["full", 2, 4]


def test_a_dispatch_that_failed_leaves_no_values(monkeypatch):
    said = []

    def look(event, run):
        if event == "on_exception":
            with pytest.raises(RuntimeError, match="the model's values at step 0 are lost: the run failed") as caught:
                run.params()
            said.append(caught.value)

    def failing(self, batches, first, train=Program.train):  # pyright: ignore
        pending = train(self, batches, first)
        if first == 2:
            jax.tree.map(lambda leaf: leaf.delete(), self.values)
            raise MemoryError("on the device")
        return pending

    monkeypatch.setattr("jaxtrain.engine.program.Program.train", failing)
    with pytest.raises(MemoryError):
        jt.Fit("bptt", max_steps=4, chunk=2, callbacks=[Every(look)]).run(Linear(), lines())
    assert len(said) == 1


def test_validate_without_data_asks_for_one_at_the_boundary():
    asked = []

    class Asks(jt.Callback):
        def on_chunk_end(self, run, metrics):
            if run.step == 2:
                asked.append(run.validate())

        def on_validation_end(self, run, metrics):
            asked.append(run.step)

    jt.Fit("bptt", max_steps=6, chunk=1, callbacks=[Asks()]).run(Linear(), lines())
    assert asked == [None, 3, 6]
    assert inspect.signature(jt.Run.validate).parameters["data"].default is None
