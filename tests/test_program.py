"""Programs: one for every number of steps up to a chunk, random numbers by step, states that keep their form."""

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.core.metrics import Pending
from jaxtrain.core.state import long_term_states
from jaxtrain.engine import chunks
from jaxtrain.engine.binding import environ
from jaxtrain.engine.program import Program
from jaxtrain.engine.steps import Steps
from jaxtrain.strategies.registry import make_strategy
from tests.small import CopyGRU, Linear, Lines, copies, leaves, line


def make(module, example, strategy="bptt", encode=lambda x: x, **changes):
    from jaxtrain.checkpoint.load import build

    build(module, 0)
    options = {**dict(seed=0, clip=None, accumulate=1, nonfinite="raise", chunk=4), **changes}
    return Program(module, make_strategy(strategy), encode, example, **options)


def test_any_number_of_steps_up_to_a_chunk_is_the_same_program(no_compilation_cache):
    program = make(Linear(), line(0))
    program.prepare(evaluate=[line(0)])
    first = program._train
    for n, start in ((4, 0), (1, 4), (3, 5)):
        metrics = program.train([line(start + i) for i in range(n)], start).fetch()
        assert metrics["loss"].num.shape == (4,) and (metrics["loss"].weight[:n] == 6).all()
        assert (metrics["loss"].weight[n:] == 0).all(), "what was not run weighs nothing"
    assert program._train is first


def test_random_numbers_depend_on_the_seed_and_the_step_alone():
    module = CopyGRU(noise=1.0)
    data = copies()
    batch = data.train_data().batch(0)
    program = make(module, batch, encode=data.encode)
    same = program.evaluate(batch, 3).fetch()["loss"].num
    assert program.evaluate(batch, 3).fetch()["loss"].num == same != program.evaluate(batch, 4).fetch()["loss"].num
    other = make(module, batch, encode=data.encode, seed=1)
    assert other.evaluate(batch, 3).fetch()["loss"].num != same


def test_every_step_of_a_chunk_draws_its_own_numbers():
    module = CopyGRU(lambda: braintools.optim.SGD(0.0), noise=1.0)
    data = copies()
    batch = data.train_data().batch(0)
    losses = {}
    for start in (0, 2):
        program = make(module, batch, encode=data.encode)
        program.prepare()
        losses[start] = list(program.train([batch] * 4, start).fetch()["loss"].num)
    assert len(set(losses[0])) == 4, "the same batch and parameters, other noise"
    assert losses[2][:2] == losses[0][2:], "which depends on the step alone"


def test_chunk_auto_is_a_rule_over_work(monkeypatch):
    assert make(Linear(), line(0), chunk="auto").chunk == chunks.CAP
    monkeypatch.setattr("jaxtrain.engine.chunks.FLOPS", 1.0)
    assert make(Linear(), line(0), chunk="auto").chunk == 1


def test_a_state_that_changes_its_form_is_named():
    class Grows(Linear):
        class Net(Linear.Net):
            def __init__(self):
                super().__init__()
                self.count = brainstate.LongTermState(jnp.zeros((2,), jnp.float32))

        def phases(self, batch):
            count = self.model.count
            count.value = count.value.astype(jnp.int32 if count.value.dtype == jnp.float32 else jnp.float32)
            return super().phases(batch)

    with pytest.raises(ValueError, match=r"state 'model/count' changes from \S+\[2\] to \S+\[2\] within a step"):
        make(Grows(), line(0)).prepare()


def test_a_state_of_nobody_is_named():
    stray = brainstate.LongTermState(jnp.zeros((7,), jnp.float32))

    class Strays(Linear):
        def learning_step(self, forward, x, y):
            return super().learning_step(forward, x, y) + stray.value.sum()

    with pytest.raises(ValueError, match=r"touches a LongTermState that belongs neither .*make it an attribute"):
        make(Strays(), line(0)).prepare()


def test_a_lasting_state_is_trained_with_and_saved(tmp_path):
    class Counts(Linear):
        class Net(Linear.Net):
            def __init__(self):
                super().__init__()
                self.count = brainstate.LongTermState(0)  # a Python number, weakly typed

            def update(self, x):
                self.count.value = self.count.value + 1
                return super().update(x)

    module = Counts()
    jt.Fit("bptt", max_steps=5, chunk=2, run_dir=tmp_path).run(module, Lines())
    assert int(long_term_states(module.model)["count"].value) == 5 * 3
    again = Counts()
    jt.Fit("bptt", max_steps=7, chunk=2, run_dir=tmp_path).run(again, Lines(), resume="last")
    assert int(long_term_states(again.model)["count"].value) == 7 * 3


def test_evaluation_changes_nothing_and_knows_that_it_is_one():
    class Fits(Linear):
        def learning_step(self, forward, x, y):
            fit = float(brainstate.environ.get("fit"))
            return super().learning_step(forward, x, y) * 0 + fit

        def evaluation_step(self, forward, x, y):
            return self.learning_step(forward, x, y)

    module = Fits()
    program = make(module, line(0))
    program.prepare(evaluate=[line(0)])
    before = {name: np.asarray(value) for name, value in program.values.items()}
    loss = program.evaluate(line(0), 0).fetch()["loss"]
    assert loss.num == 0 and program.train([line(0)], 0).fetch()["loss"].num[0] == 6
    assert before.keys() == program.values.keys()


def test_state_and_load(tmp_path):
    program = make(Linear(), line(0), accumulate=2)
    program.prepare()
    program.train([line(i) for i in range(3)], 0)
    params, train = program.state()
    assert set(params) == {"w", "b"} and {"rng", "optimizer/updates", "optimizer/accumulated.w"} <= train.keys()
    held = [{name: np.array(value) for name, value in part.items()} for part in (params, train)]
    other = make(Linear(), line(0), accumulate=2, seed=9)
    other.load(*held, program.optimizer.settings())
    other.prepare()
    for one in (program, other):
        one.train([line(3), line(4)], 3)
        one.write_back()
    a, b = program.state(), other.state()
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys() and all(np.asarray(x[n]).tobytes() == np.asarray(y[n]).tobytes() for n in x)
    assert leaves(program.module).keys() == {"w", "b"}


def test_only_pending_fetches_and_it_counts():
    before = Pending.fetches
    tree = Pending({"a": jnp.arange(3), "b": (jnp.float32(1),)}).fetch()
    assert Pending.fetches == before + 1
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("strategy", ["bptt", "drtrl", "pp_prop"])
def test_tracing_changes_no_object_of_the_trainer(strategy):
    """A trace may be made again, or not at all if its program is cached: nothing may depend on when it happens."""
    module, data = CopyGRU(), copies()
    batch = data.train_data().batch(0)
    program = make(module, batch, strategy, encode=data.encode)
    program.prepare(evaluate=[batch])
    binding = program.binding
    objects = [program, program.devices, binding, program.learner, program.learner.network, binding.optimizer,
               binding.objective, module]  # fmt: skip
    before = [dict(vars(each)) for each in objects]
    steps = Steps(binding, program.devices.collectives)
    for step, fit in ((steps.train, True), (steps.evaluate, False)):
        with environ(module, fit=fit):
            steps.functional(step, jnp.int32(0), batch, fresh=not fit)
    program._lower_train(program.example, program.chunk)
    for each, held in zip(objects, before, strict=True):
        now = vars(each)
        assert now.keys() == held.keys() and all(now[name] is held[name] for name in held), type(each).__name__
