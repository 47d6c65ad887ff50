"""States that continue: sequences of a stream, checkpoints, and the same names in another process."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.checkpoint.store import Store
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import is_key
from jaxtrain.engine.program import Program
from jaxtrain.strategies import DNI, UORO, EProp, PPProp, ReadoutOnly
from tests.kit.tiers import longer
from tests.small import At, kill, leaves, result_of, rows, same

pytestmark = pytest.mark.full

RULES = {
    "drtrl": DRTRL(stateful=True),
    "drtrl-vmap": DRTRL(stateful=True, batching="vmap"),
    "drtrl-window": DRTRL(stateful=True, window=2),
    "pp_prop": PPProp(stateful=True),
    "eprop-kappa": EProp(stateful=True, kappa=0.8),
    "readout_only": ReadoutOnly(stateful=True),
    "tbptt": TBPTT(stateful=True, window=2),
}


def halves(lab, **kwargs):
    whole = lab.sequences(warm=0, time=2 * lab.LEARN, **kwargs)
    return whole, [jax.tree.map(lambda leaf, part=part: leaf[part], whole) for part in (slice(0, 4), slice(4, 8))]


SHORT = ("drtrl", "pp_prop", "tbptt")


@pytest.mark.parametrize("name", [*SHORT, *longer(*(name for name in RULES if name not in SHORT))])
def test_a_reset_between_batches_is_one_reset_within_a_longer_sequence(lab, name):
    """Sequence 1 is reset where the second batch begins, sequence 2 in the middle of it; the others continue."""
    reset = jnp.zeros((8, lab.B), bool).at[4, 1].set(True).at[6, 2].set(True)
    whole, parts = halves(lab, reset=reset)
    drive = lab.Drive(RULES[name], lab.task(), parts[0])
    got = jax.tree.map(jnp.add, *(drive.grads(part) for part in parts))
    lab.same(got, lab.learn(replace(RULES[name], stateful=False), lab.task(), whole))
    never = lab.learn(replace(RULES[name], stateful=False), lab.task(), replace(whole, reset=jnp.zeros_like(reset)))
    assert lab.cosine(got, never) < 0.9999, "negative control: the resets matter"


def test_the_warm_up_of_a_stateful_sequence_continues_too(lab):
    """Sequences with a warm-up: everything is one stream, of which some time steps are not scored."""
    whole = lab.sequences(warm=0, time=10)
    weights = jnp.ones((10, lab.B)).at[5:7].set(0)
    parts = [Phases(whole.inputs[:2], whole.inputs[2:5], whole.targets[2:5]),
             Phases(whole.inputs[5:7], whole.inputs[7:], whole.targets[7:])]  # fmt: skip
    drive = lab.Drive(DRTRL(stateful=True), lab.task(), parts[0])
    got = jax.tree.map(jnp.add, *(drive.grads(part) for part in parts))
    lab.same(got, lab.learn(DRTRL(), lab.task(), replace(whole, weights=weights.at[:2].set(0))))


@pytest.mark.parametrize("strategy", [UORO(stateful=True), DNI(stateful=True, fit_epochs=2)], ids=["uoro", "dni"])
def test_a_second_sequence_is_not_the_first_again(lab, strategy):
    drive, phases = lab.Drive(strategy, lab.task(), lab.sequences(warm=0)), lab.sequences(warm=0)
    first, second = drive.grads(phases), drive.grads(phases)
    assert lab.cosine(first, second) < 0.9999
    again = lab.Drive(strategy, lab.task(), phases)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.grads(phases), first))


# ------------------------------------------------------------------------------------------------- the optimizer


def scheduled(lab):
    task = lab.task()
    rate = braintools.optim.StepLR(0.02, step_size=2, gamma=0.5)
    task.configure_optimizer = lambda: braintools.optim.SGD(rate)
    return task


@pytest.mark.parametrize("strategy", [DRTRL(update_every=1), TBPTT(window=1, update_every=1)], ids=["drtrl", "tbptt"])
def test_schedules_advance_with_every_update(lab, strategy):
    """Five scored time steps, one of which weighs nothing: four updates, at .02 .02 .01 .01; the next is at .005."""
    phases = lab.sequences(warm=2, time=5, weights=jnp.ones((5, lab.B)).at[1].set(0))
    host = jax.tree.map(np.asarray, phases)
    program = Program(
        scheduled(lab), strategy, lambda x: x, host, seed=0, clip=None, accumulate=1, nonfinite="raise", chunk=1
    )
    program.prepare()
    first = program.train([host], 0).fetch()
    assert int(program.values["optimizer/updates"]) == 4
    assert first["grad_norm"].weight[0] == 4, "a mean over updates"
    # One value per batch, also for the one that made no update.
    assert first["lr"].weight[0] == 5 and first["lr"].num[0] == pytest.approx(0.02 + 0.02 + 0.02 + 0.01 + 0.01)
    second = program.train([host], 1).fetch()
    assert int(program.values["optimizer/updates"]) == 8
    assert second["lr"].num[0] == pytest.approx(0.005 + 0.005 + 0.005 + 0.0025 + 0.0025)


def test_tbptt_with_a_last_piece_that_is_shorter(lab):
    phases = lab.sequences(warm=0, time=5)
    host = jax.tree.map(np.asarray, phases)
    options = dict(seed=0, clip=None, accumulate=1, nonfinite="raise", chunk=1)
    program = Program(scheduled(lab), TBPTT(window=2, update_every=2), lambda x: x, host, **options)
    program.prepare()
    metrics = program.train([host], 0).fetch()
    assert int(program.values["optimizer/updates"]) == 3
    assert metrics["loss"].weight[0] == 5 * lab.B


# ---------------------------------------------------------------------------------------------------- checkpoints


class Stream:
    """Batch ``step`` of a stream; every sequence is another one."""

    def __init__(self, lab):
        self.lab = lab

    def batch(self, step):
        return jax.tree.map(np.asarray, self.lab.sequences(step, warm=0))


STREAMS = {
    "drtrl": DRTRL(stateful=True, update_every=1),
    "pp_prop": PPProp(stateful=True, update_every=2),
    "uoro": UORO(stateful=True, update_every=2),
    "dni": DNI(stateful=True, update_every=2, fit_epochs=2),
    "tbptt": TBPTT(stateful=True, window=2, update_every=2),
}


def stream(lab, strategy, path, steps, *more, resume="never"):
    task = scheduled(lab)
    kept = jt.Checkpoint(every=2, monitor=None, keep_last=5)
    fit = jt.Fit(
        strategy, max_steps=steps, chunk=2, log_every=1, callbacks=[kept, jt.loggers.JSONL(), *more], run_dir=path
    )
    return fit.run(task, jt.DataModule(Stream(lab)), resume=resume), task


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "drtrl" else [pytest.mark.long]) for name in STREAMS],
)
def test_a_stream_that_is_terminated_goes_on_bit_for_bit(lab, tmp_path, name):
    """A signal in the third step; resumed, everything equals the uninterrupted stream."""
    whole, straight = stream(lab, STREAMS[name], tmp_path / "whole", 8)
    interrupted, _ = stream(lab, STREAMS[name], tmp_path / "parts", 8, At("on_chunk_start", 2, kill))
    assert interrupted.status == "terminated" and 0 < interrupted.step < 8
    resumed, task = stream(lab, STREAMS[name], tmp_path / "parts", 8, resume="last")
    assert resumed.digest == whole.digest == result_of(tmp_path / "parts")["digest"]
    assert same(leaves(task), leaves(straight)) and rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_checkpoint_holds_the_states_that_continue(lab, tmp_path):
    stream(lab, STREAMS["drtrl"], tmp_path / "run", 2)
    saved = Store(tmp_path / "run" / "checkpoints", read_only=True).latest_readable()
    assert saved is not None
    kept = {name: leaf for name, leaf in saved.train.items() if name.startswith("learner/")}
    assert kept["learner/hidden.rnn.h"].any() and kept["learner/hidden.rnn.h"].shape == (lab.B, lab.N)
    traces = {name for name in kept if name.startswith("learner/influence")}
    assert traces and all(kept[name].any() for name in traces)


NAMES = """
import json, os, sys
sys.path.insert(0, {root!r})
import numpy as np
junk = [np.zeros(1) for _ in range(int(sys.argv[1]))]  # other addresses
from tests.strategies import conftest as lab
from tests.strategies.test_stateful import STREAMS, RULES
from jaxtrain.core.objective import Objective
found = {{}}
for name, strategy in {{**RULES, **STREAMS}}.items():
    for cell in ("gru", "lstm"):
        bound = strategy.bind(Objective(lab.task(cell), lambda x: x), lab.sequences(warm=0))
        found[name + cell] = list(bound.states())
print(json.dumps(found))
"""


@pytest.mark.long
def test_names_are_the_same_in_another_process():
    root = str(Path(__file__).parents[2])
    outputs = []
    for junk in ("0", "9999"):
        done = subprocess.run(
            [sys.executable, "-c", NAMES.format(root=root), junk], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1]))
    assert outputs[0] == outputs[1] and all(outputs[0].values())


def test_uoro_clears_the_hidden_side_of_a_lane(lab):
    """All sequences share the parameter side: a sequence whose hidden side is zero has an estimate of zero."""
    mask = jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool).at[lab.WARM + 1, 1].set(True)
    reset, plain = (lab.learn(UORO(), lab.task(), lab.sequences(reset=m)) for m in (mask, None))
    assert all(np.isfinite(leaf).all() for leaf in lab.flat(reset).values())
    assert not np.allclose(lab.flat(reset)["rnn.Wh.weight['weight']"], lab.flat(plain)["rnn.Wh.weight['weight']"])
    phases = lab.sequences()
    learner = UORO(engine="trace").bind(Objective(lab.task(), lambda x: x), phases)
    for state in learner.own.values():
        state.value = jax.tree.map(lambda leaf: leaf if is_key(leaf) else jnp.ones_like(leaf), state.value)
    learner._reset_with_traces(jnp.arange(lab.B) == 1)
    for name, state in learner.own.items():
        if name.startswith("etrace_s."):
            assert not state.value[1].any() and state.value[0].all() and state.value[2:].all()
        elif name.startswith("etrace_theta"):
            assert all(leaf.all() for leaf in jax.tree.leaves(state.value))


@pytest.mark.long
def test_uoro_is_unbiased_in_a_stream_whose_sequences_are_reset(lab):
    """The mean over draws of two stateful batches, one sequence of which is reset in the second, becomes D-RTRL's
    gradient on an LRU, which is BPTT's; without the reset it is another one."""

    reset = jnp.zeros((8, lab.B), bool).at[5, 1].set(True)
    weights = jnp.zeros((8, lab.B)).at[6:, 1].set(1.0)
    whole, parts = halves(lab, reset=reset, weights=weights)

    drive = lab.Drawing(UORO(stateful=True), lab.Drawn(lab.task("lru").model), lab.drawn(parts[0], 0))
    begin, total = dict(drive._values), None
    for i in range(1500):
        drive._values = dict(begin)
        drive.grads(lab.drawn(parts[0], i))
        grads = drive.grads(lab.drawn(parts[1], i))
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    of = lambda grads: {name: grad for name, grad in grads.items() if name.startswith("rnn.B")}  # noqa: E731
    exact, never = (
        of(lab.learn(BPTT(), lab.task("lru"), replace(whole, reset=mask))) for mask in (reset, jnp.zeros_like(reset))
    )
    assert lab.cosine(of(total), exact) > 0.97 and lab.cosine(of(total), never) < 0.92
    norms = [np.sqrt(sum((leaf**2).sum() for leaf in lab.flat(grads).values())) for grads in (of(total), exact)]
    assert norms[0] / 1500 / norms[1] == pytest.approx(1, abs=0.15)


def test_uoro_leaves_the_model_its_random_numbers(lab):
    phases = lab.sequences()
    learner = UORO().bind(Objective(lab.task(), lambda x: x), phases)
    drawn = []
    for seed in (0, 0, 1):
        brainstate.random.DEFAULT.value = jax.random.key(seed)
        learner.restart(lab.B)
        assert (jax.random.key_data(brainstate.random.DEFAULT.value) == jax.random.key_data(jax.random.key(seed))).all()
        drawn.append(np.asarray(jax.random.key_data(learner.own["projection_rng"].value)))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
