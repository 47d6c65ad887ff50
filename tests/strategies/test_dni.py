"""DNI's synthesiser: what its fit needs, and what it says where it comes to nothing."""

import logging

import braintrace
import numpy as np
import pytest

from jaxtrain.strategies import DNI
from tests.strategies.test_rule_limits import Counting, bind
from tests.strategies.test_rules import CASES, at_work, compiled

pytestmark = pytest.mark.full


def test_dni_refuses_a_hidden_state_of_whole_numbers(lab):
    """braintrace adds a synthetic gradient to the gradient of every hidden state."""
    with pytest.raises(ValueError, match=r"^dni: the hidden state 'count' is int32, which has no gradient"):
        bind(lab, DNI(fit_epochs=2), Counting(lab))


def test_upstream_dni_takes_no_hidden_state_of_whole_numbers(lab):
    """Where this fails, upstream has mended it: DNI need not refuse one."""
    task, phases = lab.Task(Counting(lab)), lab.sequences()
    learner = compiled(task, phases.inputs[0], CASES["dni"])
    learner.attach_synthesizer(braintrace.SyntheticGradient(learner.group_signal_shapes()))
    step = lambda x, y: lab.squared(learner(x), y).sum(-1)  # noqa: E731
    with at_work(task), pytest.raises(TypeError, match="float0"):
        learner.etrace_grad(phases.inputs, phases.targets, step_fn=step, reduction="sum")


def test_a_synthesiser_whose_fit_diverges_is_refused(lab):
    for fields in ({"fit_lr": 1e6}, {"fit_lr": 1e38, "fit_epochs": 1}):
        with pytest.raises(ValueError, match=r"fit of the synthesiser diverged, its errors were .*a smaller fit_lr$"):
            bind(lab, DNI(**fields))


def test_the_fit_lowers_its_error(lab, caplog):
    """And more of it lowers it more; the same fit gives the same synthesiser."""
    found, logger = [], logging.getLogger("jaxtrain")
    logger.addHandler(caplog.handler)
    try:
        for epochs in (2, 60, 60):
            learner = bind(lab, DNI(fit_epochs=epochs, fit_lr=0.1))
            said = caplog.records[-1].args
            assert isinstance(said, tuple) and said[2] == epochs
            found.append((said[:2], {name: np.asarray(state.value) for name, state in learner.states().items()}))
    finally:
        logger.removeHandler(caplog.handler)
    (short, _), (long, first), (_, again) = found
    assert short[0] == long[0] > short[1] > long[1] and long[1] < 0.8 * long[0]
    assert first.keys() == again.keys() and all((first[name] == again[name]).all() for name in first)
    assert any(value.any() for value in first.values())
