"""What every strategy shares: weights, resets, extras, batching, encoding, and the errors of a learning step."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain
from jaxtrain import BPTT, DRTRL
from jaxtrain.module import Objective, Phases

STRATEGIES = {
    "bptt": BPTT(batching="batched"), "bptt-vmap": BPTT(batching="vmap"), "bptt-remat": BPTT(remat=True),
    "drtrl": DRTRL(batching="batched"), "drtrl-vmap": DRTRL(batching="vmap"),
    "drtrl-single": DRTRL(vjp="single-step"), "drtrl-window": DRTRL(window=2), "drtrl-window-3": DRTRL(window=3),
}  # fmt: skip
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
some_strategies = pytest.mark.parametrize("strategy", [BPTT(), DRTRL(), DRTRL(window=3)], ids=lambda s: repr(s))


def bind(strategy, module, phases):
    return strategy.bind(Objective(module, lambda x: x), phases)


# ------------------------------------------------------------------------------------------------ weights and resets


@pytest.mark.parametrize("vjp,window", [("multi-step", None), ("single-step", None), ("multi-step", 2)])
@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=["a time step", "a lane"])
def test_weights_are_the_reference_loops(lab, shape, vjp, window):
    phases = lab.sequences(weights=jnp.asarray(np.random.default_rng(7).uniform(size=shape), jnp.float32))
    wanted = lab.by_hand(lab.task().model, phases, lab.squared, vjp=vjp, window=window)
    lab.same(lab.learn(DRTRL(vjp=vjp, window=window or 1), lab.task(), phases), wanted)


@every_strategy
def test_zero_weights_and_resets(lab, strategy):
    """One program, three truths.

    What weighs nothing contributes nothing, whatever its target; a reset that resets nothing changes nothing; and a
    lane reset before time step t has the gradient of its steps before t, plus that of its rest from a fresh state.
    """
    lane, none = 1, jnp.zeros((lab.WARM + lab.LEARN, lab.B), bool)
    phases = lab.sequences(weights=jnp.ones((lab.LEARN, lab.B)), reset=none)
    drive = lab.Drive(strategy, lab.task(), phases)

    def grads(weights=phases.weights, reset=none, targets=phases.targets):
        return drive.grads(Phases(phases.warmup, phases.inputs, targets, weights, reset))

    plain = lab.grads_of(strategy)
    lab.same(grads(), plain)

    for late in (lab.WARM + 1, lab.WARM + 2, 3):  # inside a window, at a window's entry, in the warm-up
        scored = max(late - lab.WARM, 0)
        before = phases.weights.at[scored:, lane].set(0)
        prefix = grads(before)
        other = phases.targets.at[scored:, lane].set(99.0)
        lab.same(grads(before, targets=other), prefix)

        x = jnp.concatenate([phases.warmup, phases.inputs])[late:, lane : lane + 1]
        rest = Phases(x[: -lab.LEARN] if late < lab.WARM else None, x[-lab.LEARN :], phases.targets[scored:, [lane]])
        # A window's tiling starts at the first scored time step: the same here only where the reset is on its grid.
        if isinstance(strategy, DRTRL) and scored % strategy.window:
            shorter = DRTRL(window=1)
            if strategy.window == 3:
                continue
            suffix = by_windows(lab, strategy, rest)
            del shorter
        else:
            suffix = lab.learn(fit(strategy, rest), lab.task(), rest)
        both = jax.tree.map(jnp.add, prefix, suffix)
        lab.same(grads(reset=none.at[late, lane].set(True)), both)


def fit(strategy, phases):
    return strategy


def by_windows(lab, strategy, rest):
    return lab.learn(strategy, lab.task(), rest)
