"""Steps of a module that compute the model's input from more than the batch, or call the model in their own way."""

import brainstate
import jax.numpy as jnp
import pytest

from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.core.objective import Objective
from jaxtrain.strategies import OSTLRecurrent, PPProp
from jaxtrain.strategies.reverse.learner import ReverseLearner
from tests.strategies import conftest


class Noisy(conftest.Task):
    """Noise on the input, drawn in ``learning_step``."""

    def learning_step(self, forward, x, y):
        return super().learning_step(lambda u: forward(u + brainstate.random.randn(*u.shape)), x, y)


class Twice(conftest.Task):
    """The warm-up runs the model twice per time step."""

    def warmup_step(self, forward, x):
        forward(x)
        forward(0.5 * x)


class Assigns(conftest.Task):
    """``learning_step`` itself changes the hidden state."""

    def learning_step(self, forward, x, y):
        result = super().learning_step(forward, x, y)
        self.model.rnn.h.value = 0.9 * self.model.rnn.h.value
        return result


def of(lab, kind):
    return kind(lab.task().model)


@pytest.mark.full
@pytest.mark.parametrize("kind", [Noisy, Twice, Assigns])
def test_bptt_is_the_same_with_products_inside_the_loop(lab, kind):
    phases = lab.sequences()
    wanted = lab.learn(BPTT(remat=True), of(lab, kind), phases)
    lab.same(lab.learn(BPTT(), of(lab, kind), phases), wanted)
    lab.same(lab.learn(TBPTT(window=lab.WARM + lab.LEARN), of(lab, kind), phases), wanted)
    assert lab.cosine(wanted, lab.learn(BPTT(), lab.task(), phases)) < 0.9999, "it differs from the plain module"


@pytest.mark.full
@pytest.mark.parametrize("kind", [Noisy, Twice, Assigns])
@pytest.mark.parametrize("strategy", [DRTRL, PPProp, OSTLRecurrent])
def test_auto_gives_the_gradient_of_the_trace(lab, strategy, kind):
    if (strategy, kind) == (OSTLRecurrent, Assigns):
        pytest.skip("braintrace maps the model over sequences, whose states learning_step cannot see")
    phases = lab.sequences()
    learner = strategy().bind(Objective(of(lab, kind), lambda x: x), phases)
    in_reverse = kind is Noisy and strategy is not OSTLRecurrent
    assert isinstance(learner, ReverseLearner) == in_reverse
    assert in_reverse or any(note.startswith("engine: a trace, since a step of the module") for note in learner.notes)
    grads = lab.learn(strategy(), of(lab, kind), phases)
    lab.same(grads, lab.learn(strategy(engine="trace"), of(lab, kind), phases))
    assert all(jnp.isfinite(leaf).all() for leaf in lab.flat(grads).values())
