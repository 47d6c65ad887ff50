"""The T-maze: its rewards by hand, its gradients by two engines, and what remembers the cue."""

import dataclasses
from pathlib import Path

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.core.state import create_hidden, seeded
from tests.small import leaves, same

RECIPE = load_recipe(Path(__file__).parents[2] / "recipes" / "tmaze.py")
FORWARD, LEFT = 0, 1
SMALL = RECIPE.Config(corridor=3, time=9, hidden=6, batch_size=16, progress=False, devices=1)


def walk(cue, actions, corridor):
    """One episode by hand: what each action earns, whether it turns, and whether it turns to the right side."""
    cell, over, rewards, turns, right = 0, False, [], [], []
    for action in actions:
        turn = not over and cell == corridor and action != FORWARD
        correct = turn and (action == LEFT) == (cue == 1)
        moves = not over and cell < corridor and action == FORWARD
        rewards.append(0.0 if over or moves else (1.0 if correct else -1.0) if turn else -0.1)
        turns.append(turn)
        right.append(correct)
        cell, over = cell + moves, over or turn
    return rewards, turns, right


def test_the_maze_pays_what_it_pays_by_hand():
    _, module, data = RECIPE.make(SMALL)
    x, _ = data.train_data().batch(0)
    with brainstate.environ.context(fit=True), seeded(0):
        module.model = module.build()
        create_hidden(module.model, SMALL.batch_size, False)
        seen = brainstate.transform.for_loop(module.model, jnp.asarray(x))
    seen = {name: np.asarray(value) for name, value in seen.items()}
    assert seen["turned"].sum() > 4 and (seen["turned"].sum(0) <= 1).all() and len(np.unique(seen["action"])) == 3
    for i in range(SMALL.batch_size):
        rewards, turns, right = walk(x[0, i, 0], seen["action"][:, i], SMALL.corridor)
        np.testing.assert_allclose(seen["reward"][:, i], rewards, atol=1e-6)
        np.testing.assert_array_equal(seen["turned"][:, i], turns)
        np.testing.assert_array_equal(seen["correct"][:, i], right)


def trained(steps, run_dir=None, resume="never", **changes):
    fit, module, data = RECIPE.make(dataclasses.replace(SMALL, max_steps=steps, run_dir=run_dir, **changes))
    return fit.run(module, data, resume=resume), leaves(module)


@pytest.mark.full
def test_both_engines_learn_the_same_in_the_closed_loop():
    fields = [{"engine": engine} for engine in ("trace", "reverse")]
    trace, reverse = (trained(3, strategy="drtrl", strategy_fields=each)[1] for each in fields)
    start = trained(1, strategy="drtrl", strategy_fields=fields[0])[1]
    for name, value in trace.items():
        assert np.abs(value - start[name]).max() > 1e-4
        np.testing.assert_allclose(value, reverse[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.full
def test_a_run_is_resumed_exactly(tmp_path):
    _, whole = trained(4)
    trained(2, str(tmp_path / "run"))
    _, resumed = trained(4, str(tmp_path / "run"), "last")
    assert same(whole, resumed)


@pytest.mark.long
def test_only_a_network_with_memory_learns_to_turn():
    """Five seeds each; a corridor of ten cells, as by default."""
    for memory in (True, False):
        config = RECIPE.Config(memory=memory, max_steps=400, seeds=5, progress=False, devices=1)
        fit, module, data = RECIPE.make(config)
        metrics = fit.run(module, data).metrics
        scores = metrics["seeds/val/correct"]
        assert metrics["val/turns"] > 0.99, "all reach the junction in time"
        assert min(scores) > 0.99 if memory else max(np.abs(np.array(scores) - 0.5)) < 0.1, (memory, scores)


def test_an_episode_must_be_long_enough():
    with pytest.raises(ValueError, match="--time 11: expected at least 12, for a corridor of 10 cells and a turn"):
        RECIPE.Config(time=11)
    assert isinstance(RECIPE.Config(time=12).make_strategy(), jt.DRTRL)
