"""A rule of one's own that breaks the contract of ``Learner`` gets one line, which names it and says what to do."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

import jaxtrain as jt
from jaxtrain.core.state import State
from jaxtrain.strategies import SteppedRule, Strategy
from jaxtrain.strategies.base import Network, ParameterReport, choose_batching, input_of
from jaxtrain.strategies.bptt import BPTTLearner
from tests.small import Linear, Lines


class Mine(BPTTLearner):
    """BPTT, with what ``change`` makes of its gradients, and of what ``learn`` and ``report`` return."""

    change = result = reported = staticmethod(lambda value: value)

    def learn(self, phases, update):
        return self.result(super().learn(phases, lambda grads, *more: update(*self.change((grads, *more)))))

    def report(self, phases):
        return self.reported(super().report(phases))


class Silent(BPTTLearner):
    def learn(self, phases, update):
        return super().learn(phases, lambda grads, weight, metrics: metrics)


@dataclass(frozen=True)
class Rule(Strategy):
    name: ClassVar[str] = "mine"
    learner: ClassVar[type] = Mine

    def bind(self, objective, example):
        x, batch_size = input_of(objective, example), example.sizes[2]
        return self.learner(
            objective, Network(objective.model, choose_batching("auto", objective.model, x, batch_size))
        )


def train(learner):
    rule = type("Rule", (Rule,), {"learner": learner})()
    return jt.Fit(rule, max_steps=2, chunk=1).run(Linear(), Lines(), batch_first=False)


def mine(**changes):
    return type("Mine", (Mine,), {name: staticmethod(change) for name, change in changes.items()})


def of(name, value):
    """The gradient of one parameter replaced, or left out if ``value`` is None."""

    def change(given):
        grads = {**given[0], name: value}
        return ({key: grads[key] for key in grads if grads[key] is not None}, *given[1:])

    return mine(change=change)


def test_what_a_learner_passes_to_update():
    wrong = {
        r"^Mine passed a gradient of 'b' to update that is float32\[1\]; expected .* parameter, float32\[3\]": (
            of("b", jnp.ones(1))  # would be broadcast
        ),
        r"^Mine passed a gradient of 'b' to update that is a float; expected .*float32\[3\]": of("b", 0.5),
        r"^Mine passed a gradient of 'b' to update that is int32\[3\]; expected .*float32\[3\]": (
            of("b", jnp.ones(3, int))
        ),
        r"^Mine passed a gradient of 'b' to update that is complex64\[3\]; expected": of("b", jnp.ones(3, "complex64")),
        r"^Mine passed a gradient of 'c' to update; expected b or w": of("c", jnp.ones(3)),
        r"^Mine passed no gradient of 'b' to update: pass one, or let Mine\.report return ParameterReport\('b', ": (
            of("b", None)
        ),
        r"^Mine passed a list to update; expected a dict of gradients": (
            mine(change=lambda given: (list(given[0].values()), *given[1:]))
        ),
        r"^Mine passed the weight float32\[2\] to update; expected one number": (
            mine(change=lambda given: (given[0], jnp.ones(2), given[2]))
        ),
        r"^Mine passed invalid metrics to update; expected those that score\(\) returns, with 'loss'": (
            mine(change=lambda given: (*given[:2], {}))
        ),
    }
    for message, learner in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            train(learner)


def test_what_learn_returns():
    with pytest.raises(TypeError, match=r"^Mine\.learn returned None; expected .*: end learn with `return update\("):
        train(mine(result=lambda metrics: None))
    with pytest.raises(
        TypeError, match=r"^Mine\.learn returned a dict without 'grad_norm'; expected the metrics that update returned"
    ):
        train(mine(result=lambda metrics: {"loss": metrics["loss"]}))
    stacked = lambda metrics: jax.tree.map(lambda leaf: leaf[None], metrics)  # noqa: E731
    with pytest.raises(
        TypeError, match=r"^Mine\.learn returned stacked metrics; .* the sum of what several calls returned"
    ):
        train(mine(result=stacked))
    with pytest.raises(ValueError, match=r"^Silent\.learn did not call update, so it trains nothing: end learn with"):
        train(Silent)


def test_what_report_returns():
    wrong = {
        r"^Mine\.report names 'v'; expected b or w$": lambda rows: [replace(rows[0], name="v"), rows[1]],
        r"^Mine\.report names 'w' not at all; expected one ParameterReport for each of \['b', 'w'\]$": lambda rows: (
            rows[:1]
        ),
        r"^Mine\.report names 'b' twice": lambda rows: [*rows, rows[0]],
        r"^Mine\.report returned a NoneType; expected a list of ParameterReport": lambda rows: None,
        r"^Mine\.report returned a list; expected a list of ParameterReport": lambda rows: [row.name for row in rows],
    }
    for message, reported in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            train(mine(reported=reported))


def test_what_the_rule_of_braintrace_returns():
    """A ``vjp`` that does not reach braintrace would do nothing."""
    for result, message in (
        ("d_rtrl", r"^Stepped\.rule\(\) returned 'd_rtrl'; expected \(algorithm, options of braintrace.compile\)"),
        (("d_rtrl", {}), r"^Stepped\.rule\(\) ignores the field vjp='multi-step': add \{'vjp_method': self\.vjp\}"),
        (("d_rtrl", {"vjp_method": "single-step"}), r"^Stepped\.rule\(\) ignores the field vjp='multi-step'"),
    ):
        rule = type("Stepped", (SteppedRule,), {"name": "stepped", "rule": lambda self, result=result: result})()
        with pytest.raises((TypeError, ValueError), match=message):
            jt.Fit(rule, max_steps=1).run(Linear(), Lines(), batch_first=False)


def test_a_state_of_the_rule_that_nothing_holds():
    class Counts(Mine):
        def __init__(self, *args):
            super().__init__(*args)
            self.count = State(jnp.int32(0))

        def learn(self, phases, update):
            self.count.value = self.count.value + 1
            return super().learn(phases, update)

    with pytest.raises(ValueError, match=r"or return it from Learner\.states\(\)"):
        train(Counts)
    train(type("Counts", (Counts,), {"states": lambda self: {"count": self.count}}))


def test_a_gradient_that_the_optimizer_does_not_hold_may_be_left_out():
    """It belongs to a parameter that the report excludes."""
    excluded = lambda rows: [ParameterReport("b", "no", "on purpose"), rows[1]]  # noqa: E731
    learner = mine(change=of("b", None).change, reported=excluded)
    assert train(learner).step == 2
