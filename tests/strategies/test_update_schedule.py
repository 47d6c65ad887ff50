"""When gradients become updates, and which states continue from one sequence to the next."""

import warnings

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain as jt
from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import name_of, parameters
from jaxtrain.engine.program import Program
from jaxtrain.strategies import OSTLFeedforward, PPProp, ReadoutOnly
from tests.kit.tiers import longer
from tests.small import leaves, same

pytestmark = pytest.mark.full

T = 6


def trained_task(lab, cell="gru"):
    task = lab.task(cell)
    task.configure_optimizer = lambda: optax.adam(0.02)
    return task


def host(phases: Phases) -> Phases:
    return jax.tree.map(np.asarray, phases)


def program_of(lab, strategy, phases, cell="gru", **options) -> Program:
    options = {**dict(seed=0, clip=None, accumulate=1, nonfinite="raise", chunk=1), **options}
    return Program(trained_task(lab, cell), strategy, lambda x: x, host(phases), **options)


def trained(program: Program, *sequences: Phases):
    """Parameters and the number of updates after some sequences."""
    program.prepare()
    for step, phases in enumerate(sequences):
        program.train([host(phases)], step)
    return {n: program.values[n] for n in program.parameters}, int(program.values["optimizer/updates"])


def by_hand(lab, cell, phases, every, algorithm, options, window=None):
    """braintrace's own driver, with the optimizer inside the loop over intervals of ``every`` time steps."""
    model, tx = lab.task(cell).model, optax.adam(0.02)
    params = parameters(model)
    weights = jnp.ones((phases.sizes[1], lab.B)) if phases.weights is None else phases.weights

    def run(phases, weights):
        learner = braintrace.compile(model, algorithm, phases.inputs[0], batch_size=lab.B, **options)
        if phases.warmup is not None:
            learner.etrace_evolve(phases.warmup)
        state = tx.init({n: s.value for n, s in params.items()})

        def loss(x, y, w):
            out = learner(x if window is None else braintrace.MultiStepData(x))
            return (w * lab.squared(out, y)).sum(-1)

        for start in range(0, phases.sizes[1], every):
            now = slice(start, start + every)
            grads = learner.etrace_grad(
                phases.inputs[now], phases.targets[now], weights[now], step_fn=loss, chunk_size=window, reduction="sum"
            )
            total = weights[now].sum()
            grads = {name_of(path): jax.tree.map(lambda leaf: leaf / total, grad) for path, grad in grads.items()}  # noqa: B023
            values = {n: s.value for n, s in params.items()}
            updates, state = tx.update({n: grads[n] for n in values}, state, values)
            for name, value in optax.apply_updates(values, updates).items():
                params[name].value = value
        return {n: s.value for n, s in params.items()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return brainstate.transform.jit(run)(phases, weights)


MULTI = {"vjp_method": "multi-step"}


@pytest.mark.cover
@pytest.mark.parametrize("every", [1, 4, *longer(2, 6)])  # 4: the last interval is shorter
@pytest.mark.parametrize(
    "cell,strategy,algorithm,options",
    [
        ("gru", DRTRL, "d_rtrl", MULTI),
        ("gru", PPProp, "pp_prop", {"decay_or_rank": 0.9, **MULTI}),
        *longer(("lru", DRTRL, "d_rtrl", MULTI), ("gru", OSTLFeedforward, "ostl_feedforward", MULTI)),
    ],
    ids=["drtrl", "pp_prop", "drtrl-lru", "ostl_feedforward"],
)
def test_updates_within_a_sequence_are_a_loop_by_hand(lab, cell, strategy, algorithm, options, every):
    phases = lab.sequences(time=T)
    got, updates = trained(program_of(lab, strategy(update_every=every, batching="batched"), phases, cell), phases)
    lab.same(got, by_hand(lab, cell, phases, every, algorithm, options))
    assert updates == -(-T // every)


def test_windows_within_an_update(lab):
    phases = lab.sequences(time=8)
    got, updates = trained(program_of(lab, DRTRL(window=2, update_every=4), phases), phases)
    lab.same(got, by_hand(lab, "gru", phases, 4, "d_rtrl", MULTI, window=2))
    assert updates == 2


def test_tbptt_updates_are_one_window_after_another(lab):
    """With updates in between and states that continue: the same as sequences of one window each."""
    phases = lab.sequences(warm=4, time=T)
    got, updates = trained(program_of(lab, TBPTT(window=2, update_every=2), phases), phases)
    first = Phases(phases.warmup, phases.inputs[:2], phases.targets[:2])
    rest = [Phases(None, phases.inputs[i : i + 2], phases.targets[i : i + 2]) for i in (2, 4)]
    one = program_of(lab, TBPTT(window=2, stateful=True), first)
    one.prepare()
    one.train([host(first)], 0)
    two = program_of(lab, TBPTT(window=2, stateful=True), rest[0])
    two.prepare()
    two.values = {name: one.values[name] for name in two.values}
    for i, part in enumerate(rest):
        two.train([host(part)], 1 + i)
    lab.same(got, {name: two.values[name] for name in two.parameters}, 1e-6)
    assert updates == 3


@pytest.mark.parametrize("strategy", [DRTRL(update_every=2), *longer(TBPTT(window=2, update_every=2), ReadoutOnly(2))])
def test_what_weighs_nothing_makes_no_update(lab, strategy):
    weights = jnp.ones((T, lab.B)).at[2:4].set(0)
    phases = lab.sequences(warm=4, time=T, weights=weights)
    program = program_of(lab, strategy, phases)
    got, updates = trained(program, phases)
    assert updates == 2 and int(program.values["optimizer/state"][0].count) == 2
    nonsense = Phases(phases.warmup, phases.inputs, phases.targets.at[2:4].set(99.0), weights)
    again, _ = trained(program_of(lab, strategy, phases), nonsense)
    lab.same(again, got, 1e-6)
    silent = program_of(lab, strategy, phases)
    before = jax.device_get({n: silent.values[n] for n in silent.parameters})
    after, updates = trained(silent, Phases(phases.warmup, phases.inputs, phases.targets, 0 * weights))
    assert updates == 0 and jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))


def test_weights_divide_by_the_piece(lab):
    weights = jnp.asarray(np.random.default_rng(3).uniform(0.1, 1, (T, lab.B)), jnp.float32)
    phases = lab.sequences(time=T, weights=weights)
    got, updates = trained(program_of(lab, DRTRL(update_every=4), phases), phases)
    lab.same(got, by_hand(lab, "gru", phases, 4, "d_rtrl", MULTI))
    assert updates == 2


def test_refusals(lab):
    phases = lab.sequences()
    with pytest.raises(ValueError, match=r"^Fit\(accumulate=2\) with update_every=2: a sequence makes several updates"):
        program_of(lab, DRTRL(update_every=2), phases, accumulate=2)
    with pytest.raises(
        ValueError, match=r"^DRTRL\(update_every=5\): the learning phase has only 4 time steps; give 4 or"
    ):
        DRTRL(update_every=5).bind(Objective(lab.task(), lambda x: x), phases)
    with pytest.raises(ValueError, match=r"^DRTRL\(window=2, update_every=3\): an update comes at the end of a window"):
        DRTRL(window=2, update_every=3).bind(Objective(lab.task(), lambda x: x), phases)
    for wrong in (0, True, "step", 1.0):
        with pytest.raises(
            ValueError, match=r"^PPProp\(update_every=.*\): expected 'sequence' or (a number of time steps, 1|int$)"
        ):
            PPProp(update_every=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^PPProp\(stateful='yes'\): expected true or false$"):
        PPProp(stateful="yes")  # type: ignore[arg-type]
    assert "update_every" not in BPTT().config()


# ------------------------------------------------------------------------------------------ states that continue


@pytest.mark.cover
@pytest.mark.parametrize("cell", ["gru", "lru"])
@pytest.mark.parametrize(
    "name,options",
    [
        ("drtrl", {}),
        ("drtrl", {"batching": "vmap"}),
        *longer(("drtrl", {"window": 2}), ("pp_prop", {}), ("tbptt", {"window": 2})),
    ],
    ids=["drtrl", "vmap", "window", "pp_prop", "tbptt"],
)
def test_two_sequences_are_one_of_twice_the_length(lab, cell, name, options):
    whole = lab.sequences(warm=0, time=2 * lab.LEARN)
    half = [Phases(None, whole.inputs[s], whole.targets[s]) for s in (slice(0, lab.LEARN), slice(lab.LEARN, None))]
    make = jt.strategies.registry.make_strategy
    drive = lab.Drive(make(name, stateful=True, **options), lab.task(cell), half[0])
    got = jax.tree.map(jnp.add, drive.grads(half[0]), drive.grads(half[1]))
    lab.same(got, lab.learn(make(name, **options), lab.task(cell), whole))
    reset = lab.Drive(make(name, **options), lab.task(cell), half[0])
    separate = jax.tree.map(jnp.add, reset.grads(half[0]), reset.grads(half[1]))
    assert lab.cosine(got, separate) < 0.9999


def test_a_sequence_that_is_reset_starts_from_initial_states(lab):
    """A stream of unaligned episodes: in the sequence that is reset, nothing is left of the time before."""
    none = jnp.zeros((lab.LEARN, lab.B), bool)
    first, second = (lab.sequences(seed, warm=0, reset=none) for seed in (0, 1))
    only = jnp.zeros((lab.LEARN, lab.B)).at[:, 1].set(1.0)
    ones = Phases(None, first.inputs, first.targets, jnp.ones_like(only), none)
    drive = lab.Drive(DRTRL(stateful=True), lab.task(), ones)
    drive.grads(ones)
    got = drive.grads(Phases(None, second.inputs, second.targets, only, none.at[0, 1].set(True)))
    lab.same(got, lab.learn(DRTRL(), lab.task(), Phases(None, second.inputs, second.targets, only)))


def test_names_of_states_that_continue_are_stable(lab):
    def names(strategy, cell="gru"):
        return list(strategy.bind(Objective(lab.task(cell), lambda x: x), lab.sequences()).states())

    found = names(DRTRL(engine="trace", stateful=True))
    assert found == names(DRTRL(engine="trace", stateful=True))
    assert found[0] == "hidden.rnn.h" and "etrace_bwg.y0.0" in found
    assert not any(part.isdigit() and len(part) > 2 for name in found for part in name.split(".")), "no addresses"
    assert names(DRTRL()) == names(TBPTT(window=2)) == []


class Stream:
    """A stream of unaligned episodes, by number."""

    def __init__(self, lab):
        self.lab = lab

    def batch(self, step):
        reset = np.random.default_rng((1, step)).uniform(size=(4, self.lab.B)) < 0.15
        return host(self.lab.sequences(step, warm=0, reset=jnp.asarray(reset)))


@pytest.mark.parametrize(
    "strategy",
    [
        DRTRL(stateful=True, update_every=1),
        *longer(PPProp(stateful=True, update_every=2), TBPTT(window=2, stateful=True, update_every=2)),
    ],
    ids=["drtrl", "pp_prop", "tbptt"],
)
def test_resumed_in_the_middle_of_a_stream_bit_for_bit(lab, tmp_path, strategy):
    def run(path, steps, resume="never"):
        task, kept = trained_task(lab), jt.Checkpoint(every=1, monitor=None, keep_last=5)
        fit = jt.Fit(strategy, max_steps=steps, chunk=2, callbacks=[kept], run_dir=path)
        fit.run(task, jt.DataModule(Stream(lab)), resume=resume)
        return leaves(task)

    whole = run(tmp_path / "whole", 5)
    part = run(tmp_path / "part", 3)
    resumed = run(tmp_path / "part", 5, "last")
    assert same(resumed, whole) and not same(part, whole)
    fresh = type(strategy)(**{**vars(strategy), "stateful": False})
    task = trained_task(lab)
    jt.Fit(fresh, max_steps=5).run(task, jt.DataModule(Stream(lab)))
    assert not same(leaves(task), whole), "the states that continue matter"
