"""Endless streams: contents of episodes, sequences of consecutive whole episodes, and exact resume."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain
from jaxtrain.data.iterator import DataIterator
from jaxtrain.datasets import Adding, AnBn, BinaryCopy, Episodes, EpisodeStream, StreamCopy, StreamDataModule
from jaxtrain.nn import networks as nn
from tests.kit.tiers import longer

TASKS = [StreamCopy(3, 4), Adding(7), AnBn(4), BinaryCopy(lambda: 6)]


def sequence_of(stream: EpisodeStream, which: int, segments: int):
    """Inputs, targets, weights and resets of one sequence, over some segments."""
    batches = [next(stream) for _ in range(segments)]
    parts = ([b.inputs for b in batches], [b.targets for b in batches], [b.reset for b in batches])
    return [np.concatenate(part)[:, which] for part in parts]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_copy():
    inputs, targets, weights = StreamCopy(5, 40).make(rng(), 5)
    assert len(inputs) == 50 and weights.sum() == 5
    np.testing.assert_array_equal(targets[weights == 1], inputs[:5])
    assert (inputs[5:45] == 8).all() and (inputs[45:] == 9).all() and inputs[:5].max() <= 7


def test_adding():
    for seed in range(20):
        inputs, targets, weights = Adding(100).make(rng(seed), 100)
        marked = np.flatnonzero(inputs[:, 1])
        assert len(marked) == 2 and marked[0] < 50 <= marked[1]
        assert targets[-1, 0] == pytest.approx(inputs[marked, 0].sum()) and weights.tolist() == [0] * 99 + [1]


def test_anbn():
    inputs, targets, weights = AnBn().make(rng(), 3)
    assert inputs.tolist() == [0, 0, 0, 1, 1, 1, 2] and targets.tolist() == [0, 0, 1, 1, 1, 2, 2] and weights is None
    assert {AnBn(4).size(rng(seed)) for seed in range(50)} == {1, 2, 3, 4}


def test_binary_copy():
    inputs, targets, weights = BinaryCopy(lambda: 9).make(rng(), 5)
    assert len(inputs) == 2 * 5 + 2 and weights is None
    assert inputs[0] == 2 and (inputs[6:] == 3).all() and set(inputs[1:6]) <= {0, 1}
    assert (targets[:6] == 3).all()
    np.testing.assert_array_equal(targets[6:], inputs[:6])
    assert {BinaryCopy(lambda: 9).size(rng(seed)) for seed in range(50)} == {5, 6, 7, 8, 9}
    assert {BinaryCopy(lambda: 2).size(rng(seed)) for seed in range(50)} == {1, 2}


@pytest.mark.parametrize("episodes", TASKS, ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("spread", [True, False])
def test_sequences_are_whole_episodes_on_end(episodes, spread):
    inputs, targets, reset = sequence_of(EpisodeStream(episodes, 3, 5, seed=1, spread=spread), 2, 20)
    starts = np.flatnonzero(reset)
    assert len(starts) > 3 and (spread or starts[0] == 0)
    for number, (start, end) in enumerate(itertools.pairwise(starts), 1 if starts[0] else 0):
        drawn = np.random.default_rng((1, 0, 2, number))
        episode = episodes.make(drawn, episodes.size(drawn))
        np.testing.assert_array_equal(inputs[start:end], episode.inputs)
        np.testing.assert_array_equal(targets[start:end], episode.targets)


def test_sequences_are_spread():
    stream = EpisodeStream(StreamCopy(5, 40), 16, 50, seed=0)
    assert len(set(next(stream).reset.argmax(0).tolist())) > 10


@pytest.mark.parametrize("episodes", TASKS, ids=lambda task: type(task).__name__)
def test_a_stream_goes_on_exactly(episodes):
    make = lambda: EpisodeStream(episodes, 3, 4, seed=2)  # noqa: E731
    iterator = DataIterator(make())
    iterator.take(5)
    iterator.prefetch(3)
    state = json.loads(json.dumps(iterator.state()))
    again = DataIterator(make())
    again.restore(state)
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, iterator.take(1), again.take(1))


def test_a_longer_task_begins_with_episodes_that_begin_later_and_reaches_what_was_prefetched():
    data = StreamDataModule(lambda module: BinaryCopy(lambda: module.task["length"]), 2, 4, length=5)
    iterator = DataIterator(data.train_data())
    iterator.take(3)
    iterator.prefetch(50)
    open_sizes = iterator.state()["state"]
    data.task["length"] = 100
    iterator.clear()
    assert iterator.state()["state"] == open_sizes, "episodes that are under way keep their length"
    reset = np.concatenate([batch.reset for batch in iterator.take(60)])
    for sequence in reset.T:
        first, *later = np.flatnonzero(sequence)
        assert first <= 12 and all(second - first >= 2 * 96 + 2 for second in later)


def test_the_module():
    data = StreamDataModule(StreamCopy(2, 3), batch_size=3, unroll=5, seed=4, val_steps=14)
    held_out, train = data.val_data(), next(data.train_data())
    assert held_out is not None and held_out[0].inputs.shape == (14, 3) and train.inputs.shape == (5, 3)
    assert held_out[0].reset[[0, 7]].all() and held_out[0].reset.sum() == 6
    assert (held_out[0].inputs[:2] != next(data.train_data()).inputs[:2]).any()
    assert data.encode(np.array([9])).tolist() == [[0.0] * 9 + [1.0]]
    assert StreamDataModule(Adding()).encode("x") == "x" and StreamDataModule(Adding()).val_data() is None
    identity = data.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["delay"] == 3 and identity["episodes"] == "StreamCopy"
    for change in (dict(batch_size=2), dict(unroll=4), dict(seed=3), dict(spread=False)):
        assert (
            StreamDataModule(StreamCopy(2, 3), **{**dict(batch_size=3, unroll=5, seed=4), **change}).identity()
            != identity
        )


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("every", [1, 3, *longer(5)])
@pytest.mark.parametrize("episodes", [StreamCopy(1, 6), Adding(9), AnBn(3)], ids=lambda task: type(task).__name__)
def test_updates_are_those_that_a_run_makes(episodes, every):
    """So a schedule that spans them is at its end when the run is."""
    data = StreamDataModule(episodes, 2, 5, length=1)

    class Counting(jaxtrain.Module):
        def build(self):
            return nn.Network(episodes.n_in, episodes.n_out, cell="mini_gru", hidden=3)

        def learning_step(self, forward, x, y):
            return jnp.tanh(forward(x)).mean(-1)

        def configure_optimizer(self):  # every update adds one
            return optax.stateless(lambda grads, _: jax.tree.map(jnp.ones_like, grads))

    module = Counting()
    jaxtrain.Fit(jaxtrain.DRTRL(update_every=every, stateful=True), max_steps=12).run(module, data)
    bias = np.asarray(module.model.readout.weight.value["bias"])  # which was zero
    assert (bias == data.updates(12, every)).all() and 0 < bias[0] <= 12 * -(-5 // every)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StreamCopy(0),
        lambda: Adding(1),
        lambda: AnBn(0),
        lambda: StreamDataModule(StreamCopy(), batch_size=0),
        lambda: StreamDataModule(StreamCopy(), unroll=0),
        lambda: BinaryCopy(lambda: 0).size(rng()),
    ],
)
def test_bad_sizes(make):
    with pytest.raises(ValueError, match="expected an integer >= "):
        make()


def test_every_task_says_what_it_feeds():
    for task in TASKS:
        assert isinstance(task, Episodes)
        episode = task.make(rng(), task.size(rng()))
        width = episode.inputs.shape[-1] if task.depth is None else task.depth
        assert width == task.n_in and (episode.weights is None) == task.scores_all
        assert task.depth is None or (episode.inputs.max() < task.depth and episode.targets.max() < task.n_out)
