"""How far rules are from the truth, with negative controls: a comparison that everything passes says nothing."""

from dataclasses import replace

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain as jt
from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.core.state import parameters
from jaxtrain.strategies import EProp, OSTLFeedforward, ReadoutOnly, SnAp
from tests.kit.tiers import longer
from tests.small import leaves

pytestmark = pytest.mark.full


def delayed(lab, lag: int):
    """Five inputs, then ``lag`` time steps of silence, then four that are scored."""
    phases = lab.sequences(warm=5 + lag)
    return replace(phases, warmup=phases.warmup.at[5:].set(0.0), inputs=jnp.zeros_like(phases.inputs))


def recurrent(grads):
    return {name: grad for name, grad in grads.items() if name.startswith("rnn.")}


def cosine(lab, strategy, cell, phases, **kwargs):
    truth = lab.learn(BPTT(), lab.task(cell, **kwargs), phases)
    return lab.cosine(recurrent(lab.learn(strategy, lab.task(cell, **kwargs), phases)), recurrent(truth))


@pytest.mark.parametrize("lag", [10, *longer(0, 50)])
def test_drtrl_is_exact_on_a_diagonal_recurrence_and_only_there(lab, lag):
    phases = delayed(lab, lag)
    truth = lab.learn(BPTT(), lab.task("lru"), phases)
    grads = lab.learn(DRTRL(), lab.task("lru"), phases)
    assert lab.cosine(grads, truth) > 0.99995, "1.0000"
    for name, grad in recurrent(truth).items():
        if np.any(jax.tree.leaves(grad)[0]):  # D passes the input on, which is silent while it is scored
            assert lab.cosine({name: grads[name]}, {name: truth[name]}) > 0.99995, name
    if lag:
        short = lab.learn(OSTLFeedforward(), lab.task("lru"), phases)
        assert lab.cosine(recurrent(short), recurrent(truth)) < 0.9, "the test sees credit across time"
    assert cosine(lab, DRTRL(), "vanilla", phases) < 0.99


def test_truncation_loses_what_lies_before_the_window(lab):
    phases = delayed(lab, 10)
    assert cosine(lab, TBPTT(window=phases.sizes[0] + lab.LEARN), "lru", phases) > 0.999999
    assert cosine(lab, TBPTT(window=2), "lru", phases) < 0.9


@pytest.mark.parametrize("cell", ["gru", *longer("vanilla")])
def test_random_feedback_is_far_below_symmetric(lab, cell):
    phases = lab.sequences(time=8)
    symmetric = cosine(lab, EProp(), cell, phases)
    random = [cosine(lab, EProp(feedback="random", feedback_seed=seed), cell, phases) for seed in range(6)]
    assert symmetric > 0.5 and np.mean(random) < symmetric - 0.4
    assert abs(np.mean(random)) < 0.3, "near none on the average"


def test_snap_becomes_rtrl(lab):
    """On a vanilla RNN, where a weight reaches every unit in two time steps, and D-RTRL is not exact."""
    phases = lab.sequences(warm=10)
    reached = [cosine(lab, SnAp(n=n), "vanilla", phases) for n in (1, 2, 12)]
    assert reached[2] >= 0.999 and reached[0] < 0.99 and reached[0] < reached[2]


def adamw_registered(task):
    """braintools' AdamW, which the user gives every parameter to."""
    made = braintools.optim.AdamW(0.01, weight_decay=0.5)
    made.register_trainable_weights(parameters(task.model))
    return made


OPTIMIZERS = {
    "adam": lambda task: optax.adam(0.01),
    "adamw": lambda task: optax.adamw(0.01, weight_decay=0.5),
    "braintools": lambda task: braintools.optim.AdamW(0.01, weight_decay=0.5),
    "registered": adamw_registered,
    "groups": lambda task: {"rnn": optax.adamw(0.01, weight_decay=0.5), "out": optax.adamw(0.01, weight_decay=0.5)},
}


def batch_of(phases):
    return tuple(np.asarray(part) for part in (jnp.concatenate([phases.warmup, phases.inputs]), phases.targets))


def moved(lab, task, strategy, optimizer, batches) -> set[str]:
    """The leaves that four steps change."""
    task.configure_optimizer, task.group = lambda: OPTIMIZERS[optimizer](task), lambda name: name.split(".")[0]
    before = leaves(task)
    jt.Fit(strategy, max_steps=4).run(task, batches)
    after = leaves(task)
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


@pytest.mark.parametrize("optimizer", ["adamw", "groups", *longer("braintools", "registered")])
def test_weight_decay_leaves_alone_what_a_rule_does_not_train(lab, optimizer):
    """The control's recurrence, the reset gate under a single-step rule, three_factor's readout."""
    batches = [batch_of(lab.sequences(seed)) for seed in range(4)]
    assert moved(lab, lab.task(), "readout_only", optimizer, batches) == {"out.weight.weight", "out.weight.bias"}
    single = moved(lab, lab.task(), DRTRL(vjp="single-step"), optimizer, batches)
    assert single == {name for name in leaves(lab.task()) if "Wr" not in name}

    class Rewarded(lab.Task):
        def phases(self, batch):
            made = super().phases(batch)
            return replace(made, extras={"reward": jnp.ones(made.sizes[1:])})

        def learning_step(self, forward, x, y, reward):
            return super().learning_step(forward, x, y)

    rewarded = moved(lab, Rewarded(lab.task().model), "three_factor", optimizer, batches)
    assert rewarded == {name for name in leaves(lab.task()) if "Wz" in name or "Wh" in name}


def test_a_parameter_that_only_the_loss_reads_is_trained(lab):
    """It is no part of the model's call, and every rule has its gradient."""

    class Scaled(lab.Task):
        def learning_step(self, forward, x, y):
            return lab.squared(forward(x) * self.model.scale.value, y)

    for strategy in (BPTT(), DRTRL(), DRTRL(engine="trace", vjp="single-step")):
        task = Scaled(lab.task().model)
        task.model.scale = brainstate.ParamState(jnp.full((lab.N_OUT,), 0.5))
        assert "scale" in moved(lab, task, strategy, "adam", [batch_of(lab.sequences(seed)) for seed in range(4)])


@pytest.mark.cover
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("cell", ["gru", "lru"])
def test_readout_only_trains_only_the_readout(lab, cell, optimizer):
    before = leaves(lab.task(cell))
    changed = moved(
        lab, lab.task(cell), "readout_only", optimizer, [batch_of(lab.sequences(seed)) for seed in range(4)]
    )
    # An LRU reads its own hidden state out with C, and passes the input by it with D.
    read = {name for name in before if name.startswith(("out.", "rnn.C_", "rnn.D"))}
    assert changed == read and read < before.keys()
    truth, grads = lab.grads_of(BPTT(), cell), lab.grads_of(ReadoutOnly(), cell)
    lab.same({"out": grads["out.weight"]}, {"out": truth["out.weight"]})
