"""Detached steps: the models they fit, the messages if they do not, and what is read from braintrace's graph."""

import warnings

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import DRTRL
from jaxtrain.core.objective import Objective
from jaxtrain.strategies.reverse.detached_step import DetachedStep
from jaxtrain.strategies.reverse.learner import ReverseLearner


class Mixed(brainstate.nn.Module):
    """What happens between the traced weight and the hidden state is ``between``; ``old`` is the hidden state's own
    way on."""

    def __init__(self, lab, between, old=lambda h: 0.5 * h):
        super().__init__()
        self.width, self.between, self.old = lab.N, between, old
        self.mix = braintrace.nn.Linear(lab.N_IN + lab.N, lab.N)
        self.out = braintrace.nn.Linear(lab.N, lab.N_OUT)

    def init_state(self, batch_size=None, **kwargs):
        shape = (self.width,) if batch_size is None else (batch_size, self.width)
        self.h = brainstate.HiddenState(jnp.zeros(shape))

    def update(self, x):
        h = self.h.value
        self.h.value = self.between(self.mix(jnp.concatenate([x, h], -1))) + self.old(h)
        return self.out(self.h.value)


MATRIX = jnp.asarray(np.random.default_rng(0).standard_normal((6, 6)), jnp.float32)
AWKWARD = {
    "normalised": (lambda y: y - y.mean(-1, keepdims=True), lambda h: 0.5 * h),
    "rolled": (lambda y: jnp.roll(y, 1, -1), lambda h: 0.5 * h),
    "a matrix of its own": (jnp.tanh, lambda h: h @ MATRIX),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_positions_that_are_mixed(lab, name):
    """The detached step's derivative would be right, and another than braintrace's."""
    task = lab.Task(Mixed(lab, *AWKWARD[name]))
    with pytest.raises(ValueError, match=r"^DRTRL\(engine='reverse'\) does not fit Mixed: .* mixes positions"):
        DRTRL(engine="reverse").bind(Objective(task, lambda x: x), lab.sequences())


def test_auto_falls_back_and_says_so(lab):
    task = lab.Task(Mixed(lab, jnp.tanh, lambda h: h @ MATRIX))
    learner = DRTRL().bind(Objective(task, lambda x: x), lab.sequences())
    assert not isinstance(learner, ReverseLearner) and "engine" not in learner.resolved()
    assert learner.notes == ["engine: a trace, since dot_general mixes positions between a weight or a hidden "
                             "state and the next one"]  # fmt: skip
    grads = lab.learn(DRTRL(), task, lab.sequences())
    again = lab.learn(DRTRL(engine="trace"), lab.Task(Mixed(lab, jnp.tanh, lambda h: h @ MATRIX)), lab.sequences())
    assert grads.keys() == again.keys()


def test_groups_that_touch_without_a_weight(lab):
    class Two(Mixed):
        def init_state(self, batch_size=None, **kwargs):
            super().init_state(batch_size)
            self.slow = brainstate.HiddenState(jnp.zeros_like(self.h.value))

        def update(self, x):
            out = super().update(x)
            self.slow.value = 0.9 * self.slow.value + self.mix(jnp.concatenate([x, self.slow.value], -1))
            self.h.value = self.h.value + 0.1 * self.slow.value
            return out

    objective = Objective(lab.Task(Two(lab, jnp.tanh)), lambda x: x)
    learner = DRTRL().bind(objective, lab.sequences())
    if isinstance(learner, ReverseLearner):  # one group for braintrace as well
        assert len(learner.step.groups) == 1
    else:
        assert learner.notes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "fast"}, r"^DRTRL\(engine='fast'\): expected 'auto' or 'reverse' or 'trace'$"),
        ({"segment": 0}, r"^DRTRL\(segment=0\): expected 'auto', 'sequence' or a number of time steps, 1 or more$"),
        ({"segment": True}, r"^DRTRL\(segment=True\): expected"),
        ({"engine": "trace", "segment": 5}, r"a trace has no segments; drop one$"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DRTRL(**fields)


def test_what_is_resolved_is_what_was_taken(lab):
    def resolved(strategy, **kwargs):
        return strategy.bind(Objective(lab.task(), lambda x: x), lab.sequences(**kwargs)).resolved()

    taken = resolved(DRTRL())
    assert taken == {"batching": "batched", "engine": "reverse", "segment": "sequence"}
    assert resolved(DRTRL().resolve(taken)) == taken
    assert resolved(DRTRL(segment=5))["segment"] == 5
    assert resolved(DRTRL(segment=50))["segment"] == "sequence", "the whole sequence is shorter"
    assert resolved(DRTRL(update_every=2))["segment"] == 120
    assert resolved(DRTRL(), warm=600)["segment"] == 120


def test_shape_of_braintraces_graph(lab):
    """What ``detached_step.py`` reads; if upstream changes one of these, a test fails here."""
    phases, task = lab.sequences(), lab.task()
    learner = DRTRL().bind(Objective(task, lambda x: x), phases)
    assert isinstance(learner, ReverseLearner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about Wr
        graph = braintrace.compile_etrace_graph(task.model, phases.inputs[0], include_hidden_perturb=False)
    info = graph.module_info
    assert info.num_var_out == 1 and info.num_var_state == len(
        jax.tree.leaves([s.value for s in info.compiled_model_states])
    )
    assert set(info.state_id_to_path) >= {id(state) for state in info.compiled_model_states}
    for relation in graph.hidden_param_op_relations:
        assert relation.primitive.name == "etp_mm" and relation.control_flow_context is None
        (equation,) = [e for e in info.closed_jaxpr.jaxpr.eqns if e.outvars[0] is relation.y_var]
        assert equation.invars[0] is relation.x_var
        assert all(var in equation.invars for var in relation.trainable_vars.values())
    assert [r.paths for r in learner.step.relations] == [{"rnn.Wz.weight"}, {"rnn.Wh.weight"}]
    assert isinstance(learner.step, DetachedStep)
    assert {row.name: row.trains for row in learner.report(phases)} == {
        "rnn.Wz.weight": "yes", "rnn.Wr.weight": "in part", "rnn.Wh.weight": "yes", "out.weight": "yes"
    }  # fmt: skip
