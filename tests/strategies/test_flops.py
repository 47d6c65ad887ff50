"""What a rule spends: floating-point operations of matrix products, and the sizes of its arrays."""

import math

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from jaxtrain import BPTT, DRTRL
from jaxtrain.core.functional import pure
from jaxtrain.core.module import Phases
from jaxtrain.core.objective import Objective, check_phases
from jaxtrain.strategies import EProp, OSTLFeedforward, PPProp

I, H, O = 12, 8, 3  # noqa: E741


class Elman(brainstate.nn.Module):
    """``h = tanh([x, h] W + b)`` and a linear readout."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = braintrace.nn.Linear(I + H, H), braintrace.nn.Linear(H, O)

    def init_state(self, batch_size=None, **_):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, H) if batch_size else (H,)))

    def update(self, x):
        self.h.value = jnp.tanh(self.rnn(jnp.concatenate([x, self.h.value], -1)))
        return self.out(self.h.value)


def is_jaxpr(value) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def bodies_of(equation):
    """The jaxprs of a loop, a call or a condition."""
    inner = jax.tree.leaves([*equation.params.values()], is_leaf=is_jaxpr)
    return [getattr(each, "jaxpr", each) for each in inner if is_jaxpr(each)]


def product_flops(jaxpr) -> int:
    """Multiplications and additions of all products; a loop counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        name, times = equation.primitive.name, equation.params.get("length", 1)
        assert name != "while", "a loop of unknown length"
        if name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            width = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * width * math.prod(equation.outvars[0].aval.shape)
        elif name.startswith("etp_mm"):
            total += 2 * equation.invars[0].aval.shape[-1] * math.prod(equation.outvars[0].aval.shape)
        else:
            assert not name.startswith(("etp_", "conv_general"))
            total += times * sum(map(product_flops, bodies_of(equation)))
    return total


def largest(jaxpr) -> int:
    """The size of the largest array that is computed."""
    own = [var.aval.size for equation in jaxpr.eqns for var in equation.outvars if hasattr(var.aval, "size")]
    return max([0, *own, *(largest(body) for equation in jaxpr.eqns for body in bodies_of(equation))])


def gradient_jaxpr(lab, strategy, phases):
    """The equations that the gradients need, of one sequence."""
    with brainstate.random.seed_context(0):
        module = lab.Task(Elman())
    learner = strategy.bind(Objective(module, lambda x: x), check_phases(phases))

    def step(phases):
        found = []
        learner.learn(phases, lambda grads, weight, metrics: found.append(grads) or metrics)
        return found[0]

    states, call = pure(step, phases)
    closed = jax.make_jaxpr(lambda values: call(values, phases))([state.value for state in states])
    return partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[0]


@pytest.mark.parametrize("time", [4, 12])
@pytest.mark.parametrize(
    ("strategy", "through_recurrence"),
    [(DRTRL(), True), (DRTRL(window=3), True), (DRTRL(vjp="single-step"), False), (EProp(), False), (PPProp(), True)],
    ids=["drtrl", "window 3", "single-step", "eprop", "pp_prop"],
)
def test_products_are_computed_once(lab, strategy, through_recurrence, time):
    """One forward product, one product for the gradient of each weight, and the windows' way back."""
    n, warm = time * lab.B, 2 * lab.B
    x, y = jnp.zeros((time + 2, lab.B, I)), jnp.zeros((time, lab.B, O))
    phases = Phases(warmup=x[:2], inputs=x[2:], targets=y)
    forward = 2 * (n + warm) * (I + H) * H + 2 * n * H * O
    warm_readout = 2 * warm * H * O
    back = 2 * n * H * O + (2 * n * H * H if through_recurrence else 0)
    count, wanted = product_flops(gradient_jaxpr(lab, strategy, phases)), 2 * forward + warm_readout + back
    assert count <= 1.15 * wanted


def test_bptt_sends_nothing_to_the_inputs(lab):
    n = 6 * lab.B
    phases = lab.sequences(warm=0).__class__(
        warmup=None, inputs=jnp.zeros((6, lab.B, I)), targets=jnp.zeros((6, lab.B, O))
    )
    forward = 2 * n * ((I + H) * H + H * O)
    count, wanted = product_flops(gradient_jaxpr(lab, BPTT(), phases)), 2 * forward + 2 * n * (H * H + H * O)
    assert count <= 1.02 * wanted


@pytest.mark.parametrize(("rule", "touches"), [(PPProp, False), (OSTLFeedforward, False), (DRTRL, True), (EProp, True)])
def test_arrays_of_batch_times_parameters_in_a_stream(lab, rule, touches):
    """An update at every time step of a stream: where the trace is factored, no array has that size."""
    phases = Phases(warmup=None, inputs=jnp.zeros((1, lab.B, I)), targets=jnp.zeros((1, lab.B, O)))
    size = largest(gradient_jaxpr(lab, rule(stateful=True, update_every=1), phases))
    assert (size >= lab.B * (I + H) * H) == touches
