"""The report before step 0 against the gradient itself: "no" is exactly zero, "yes" is every way, "in part" some."""

import brainstate
import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.strategies import DNI, UORO, EProp, OSTLFeedforward, OSTLRecurrent, PPProp, ReadoutOnly, SnAp
from tests.kit.tiers import longer
from tests.strategies.ways import MODELS, NONE, build, expected

pytestmark = pytest.mark.full

RULES = [
    BPTT(), TBPTT(window=3), DRTRL(), DRTRL(engine="trace"), DRTRL(window=3), DRTRL(vjp="single-step"),
    DRTRL(stateful=True), DRTRL(segment=3), DRTRL(readout_memory=True), PPProp(), EProp(), EProp(vjp="multi-step"),
    EProp(kappa=0.5), EProp(feedback="random"), OSTLRecurrent(), OSTLFeedforward(), SnAp(), UORO(), DNI(fit_epochs=2),
    ReadoutOnly(),
]  # fmt: skip
TIME = 7


@pytest.fixture(scope="module")
def driven(lab):
    """The rows and the gradients of three batches: ``driven(model, strategy)``."""
    batches = [lab.sequences(seed, warm=0, time=TIME) for seed in range(3)]
    known = {}

    def drive(name, strategy):
        if (name, strategy) not in known:
            made = lab.Drive(strategy, lab.Task(build(name)), batches[0])
            rows = {row.name: row for row in made.learner.report(batches[0])}
            known[name, strategy] = rows, [made.grads(phases) for phases in batches]
        return known[name, strategy]

    return drive


def largest(lab, grads, name):
    return max(np.abs(leaf).max() for g in grads for leaf in lab.flat({"": g[name]}).values())


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("strategy", RULES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_no_is_exactly_zero_and_everything_else_is_not(lab, driven, name, strategy):
    if isinstance(strategy, DNI) and name in ("ring", "counter"):
        with pytest.raises(ValueError, match="^dni: the hidden state '[a-z]+' is int32, which has no gradient"):
            driven(name, strategy)
        return
    if strategy == EProp(kappa=0.5) and name == "leaky hidden readout":
        with pytest.raises(
            ValueError, match=r"^EProp\(kappa=0.5\): kappa filters the traces in place of a leaky readout"
        ):
            driven(name, strategy)
        return
    rows, grads = driven(name, strategy)
    assert rows.keys() == grads[0].keys()
    for parameter, row in rows.items():
        assert (largest(lab, grads, parameter) > 0) == (row.trains != "no"), row
        assert row.why or row.trains == "yes"


DIAGONAL = [DRTRL(), *longer(*(DRTRL(vjp=vjp, readout_memory=memory) for vjp, memory in (
    ("single-step", False), ("multi-step", True), ("single-step", True)
)))]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("strategy", DIAGONAL, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_yes_is_all_credit_and_in_part_names_where_it_is_lost(lab, driven, name, strategy):
    """The units are diagonal: where every way is credited, D-RTRL's gradient is BPTT's."""
    rows, (grads, *_) = driven(name, strategy)
    exact = driven(name, BPTT())[1][0]
    for parameter, row in rows.items():
        got, true = ({"": g[parameter]} for g in (grads, exact))
        if row.trains == "in part":
            with pytest.raises(AssertionError):
                lab.same(got, true)
        elif row.trains == "yes":
            lab.same(got, true)
    if strategy != DRTRL():
        return
    for parameter, wanted in expected(name).items():
        row = rows[parameter]
        if isinstance(wanted, str):
            assert row.trains == wanted, row
        else:
            assert row.trains == ("no" if NONE in wanted else "in part"), row
            assert all(state in row.why for state in wanted if state != NONE), row


READOUTS = ["leaky readout", "leaky hidden readout", "delayed", "delayed, hidden", "ring", "copy", "delayed and direct"]


@pytest.mark.full
@pytest.mark.parametrize("name", READOUTS)
def test_readout_memory_recovers_what_is_lost_behind_the_units(driven, name):
    rows, _ = driven(name, DRTRL(readout_memory=True))
    assert {rows[parameter].trains for parameter in ("inp.weight", "out.weight")} == {"yes"}, rows


@pytest.mark.full
def test_memory_in_front_of_the_units_has_the_credit_of_a_window(lab, driven):
    rows, grads = driven("delayed drive", DRTRL(readout_memory=True))
    assert rows["inp.weight"].trains == "in part" and "line" in rows["inp.weight"].why
    assert largest(lab, grads, "inp.weight") > 0


@pytest.mark.full
@pytest.mark.parametrize("name", ["copy", "copy and direct"])
def test_a_hidden_state_that_copies_another_carries_its_credit(lab, driven, name):
    """Under D-RTRL in reverse the copy belongs to the units' group; braintrace's own trace refuses the model."""
    model = build(name)
    model.made = {"c": (brainstate.HiddenState, model.made["c"][1])}
    phases = lab.sequences(0, warm=0, time=TIME)
    made = lab.Drive(DRTRL(), lab.Task(model), phases)
    assert {row.name: row.trains for row in made.learner.report(phases)}["inp.weight"] == "yes"
    lab.same(made.grads(phases), driven(name, BPTT())[1][0])
