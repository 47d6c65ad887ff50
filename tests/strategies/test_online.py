"""D-RTRL's gradient is braintrace's own, and says of each parameter what it is."""

import inspect

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from braintrace._algorithm.param_dim_vjp import ParamDimVjpAlgorithm

import jaxtrain
from jaxtrain import BPTT, DRTRL
from jaxtrain.core.objective import Objective
from jaxtrain.core.state import name_of, parameters
from jaxtrain.strategies import bind_rule as rules_of
from tests.kit.tiers import longer

pytestmark = pytest.mark.full

CELLS = ("gru", "lstm", "mgu", "minigru", "lru", "vanilla")


@pytest.fixture(scope="session")
def phases(lab):
    return lab.sequences()


# ------------------------------------------------------------------------------------------ one time step at a time


@pytest.mark.cover
@pytest.mark.parametrize("vjp", ["multi-step", "single-step"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_is_braintraces(lab, phases, cell, vjp):
    wanted = lab.by_hand(lab.task(cell).model, phases, lab.squared, vjp=vjp)
    for batching in ("batched", "vmap"):
        drive = lab.drive_of(DRTRL(vjp=vjp, batching=batching, engine="trace"), cell)
        grads, weight, metrics = drive(phases)
        lab.same(grads, wanted)
        assert drive.learner.resolved() == {"batching": batching}
        assert float(weight) == lab.LEARN * lab.B == float(metrics["loss"].weight)
        if cell == "gru" and vjp == "single-step":
            assert not any(leaf.any() for leaf in lab.flat({"": grads["rnn.Wr.weight"]}).values())
        else:
            assert all(leaf.any() for leaf in lab.flat(grads).values())


@pytest.mark.parametrize("vjp", ["multi-step", "single-step"])
def test_gradient_is_braintraces_under_vmap(lab, phases, vjp):
    wanted = lab.by_hand(lab.task().model, phases, lab.squared, vjp=vjp, vmap=True)
    lab.same(lab.grads_of(DRTRL(vjp=vjp, batching="vmap", engine="trace")), wanted)


def test_loss_is_the_networks_own(lab, phases):
    """What is reported is the loss of the model alone, run step by step."""
    task = lab.task()
    metrics = lab.drive_of(DRTRL())(phases)[2]
    brainstate.nn.init_all_states(task.model, batch_size=lab.B)
    brainstate.transform.for_loop(task.model, phases.warmup)
    losses = lab.squared(brainstate.transform.for_loop(task.model, phases.inputs), phases.targets)
    np.testing.assert_allclose(metrics["loss"].num, losses.sum(), rtol=1e-5)


def test_a_second_sequence_starts_afresh(lab, phases):
    drive = lab.drive_of(DRTRL())
    first = drive.grads(phases)
    drive.grads(lab.sequences(1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, drive.grads(phases)))


# ------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("cell,window", [("gru", 3), ("gru", 4), *longer(("gru", 2), ("lstm", 3), ("minigru", 2))])
def test_window_is_braintraces(lab, phases, cell, window):
    """3 leaves a last window of one time step; 4 spans the learning phase, the warm-up before it is D-RTRL's."""
    wanted = lab.by_hand(lab.task(cell).model, phases, lab.squared, window=window)
    grads, step, bptt = (lab.grads_of(strategy, cell) for strategy in (DRTRL(window=window), DRTRL(), BPTT()))
    lab.same(grads, wanted)
    if cell != "minigru":  # on which D-RTRL is all but exact already
        assert lab.cosine(step, bptt) < lab.cosine(grads, bptt) < 0.9999


def test_window_without_warmup_and_a_longer_rest(lab):
    phases = lab.sequences(warm=0, time=8)
    wanted = lab.by_hand(lab.task().model, phases, lab.squared, window=3)
    lab.same(lab.learn(DRTRL(window=3), lab.task(), phases), wanted)


@pytest.mark.parametrize("engine", ["reverse", "trace"])
def test_a_window_longer_than_the_scored_time_steps_is_one_over_all_of_them(lab, phases, engine):
    longer, all_of_them = (lab.grads_of(DRTRL(window=window, engine=engine)) for window in (9, 4))
    lab.same(longer, all_of_them)
    assert lab.cosine(lab.grads_of(DRTRL(window=3, engine=engine)), longer) < 0.9999


@pytest.mark.parametrize("window", [2, *longer(1)])
def test_learning_step_reads_the_hidden_state_of_its_time_step(lab, phases, window):
    """A regulariser on the state that ``forward`` left equals one on a state that the model gives out."""

    class Regularised(jaxtrain.Module):
        def __init__(self, model):
            self.model = model

        def learning_step(self, forward, x, y):
            y = lab.squared(forward(x), y)
            hidden = self.model.rnn.h.value
            assert hidden.shape == (lab.B, lab.N)
            return y + 0.3 * jnp.square(hidden).sum(-1)

    def loss(out, y):
        return lab.squared(out[0], y) + 0.3 * jnp.square(out[1]).sum(-1)

    wanted = lab.by_hand(lab.task(states=True).model, phases, loss, window=window if window > 1 else None)
    grads = lab.learn(DRTRL(window=window, batching="batched"), Regularised(lab.task().model), phases)
    lab.same(grads, wanted)
    if window == 1:
        lab.same(lab.learn(DRTRL(batching="vmap"), Regularised(lab.task().model), phases), wanted)
    assert lab.cosine(lab.grads_of(DRTRL(window=window)), grads) < 0.99


# ------------------------------------------------------------------------------------------------- other networks


class TwoLayers(brainstate.nn.Module):
    def __init__(self, n_in, n, n_out):
        super().__init__()
        self.layers = brainstate.nn.Sequential(braintrace.nn.GRUCell(n_in, n), braintrace.nn.GRUCell(n, n))
        self.out = braintrace.nn.Linear(n, n_out)

    def update(self, x):
        return self.out(self.layers(x))


@pytest.mark.long
@pytest.mark.parametrize("window", [1, *longer(2)])
def test_two_layers(lab, phases, window):
    def model():
        with brainstate.random.seed_context(0):
            return TwoLayers(lab.N_IN, lab.N, lab.N_OUT)

    wanted = lab.by_hand(model(), phases, lab.squared, window=window if window > 1 else None)
    drive = lab.Drive(DRTRL(window=window, engine="trace"), lab.Task(model()), phases)
    lab.same(drive.grads(phases), wanted)
    assert len(drive.learner.inner.graph.hidden_groups) == 2
    if window == 1:
        lab.same(lab.learn(DRTRL(batching="vmap", engine="trace"), lab.Task(model()), phases), wanted)


def test_spiking_network_with_units(lab, phases):
    environ = lab.task("lif").environ
    wanted = lab.by_hand(lab.task("lif").model, phases, lab.squared, environ=environ)
    assert all(np.abs(leaf).max() > 1e-2 for leaf in lab.flat(wanted).values())
    lab.same(lab.learn(DRTRL(), lab.task("lif"), phases), wanted)
    lab.same(lab.learn(DRTRL(batching="vmap"), lab.task("lif"), phases), wanted)
    window = lab.by_hand(lab.task("lif").model, phases, lab.squared, environ=environ, window=2)
    lab.same(lab.learn(DRTRL(window=2), lab.task("lif"), phases), window)


# ------------------------------------------------------------------------------------------------------ refusals


def test_wrong_fields_are_refused():
    with pytest.raises(ValueError, match=r"^DRTRL\(vjp='two-step'\): expected 'multi-step' or 'single-step'$"):
        DRTRL(vjp="two-step")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^DRTRL\(window=0\): expected a whole number of time steps, at least 1$"):
        DRTRL(window=0)
    with pytest.raises(ValueError, match=r"^DRTRL\(window=2.5\): expected int$"):
        DRTRL(window=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^DRTRL\(window=True\): expected int$"):
        DRTRL(window=True)
    with pytest.raises(
        ValueError, match=r"window=2\): a single-step rule has no window; set window=1, or leave vjp out$"
    ):
        DRTRL(vjp="single-step", window=2)
    with pytest.raises(
        ValueError, match=r"^DRTRL\(window=2\): windows need batched states, and this is mapped over sequences$"
    ):
        DRTRL(window=2, batching="vmap")


def test_windows_that_do_not_fit_are_refused(lab):
    def bind(window, **kwargs):
        return DRTRL(window=window).bind(Objective(lab.task(), lambda x: x), lab.sequences(**kwargs))

    with pytest.raises(
        ValueError,
        match=r"^DRTRL\(window=5\) spans the whole sequence, which is BPTT: use .*'bptt', or a window below the 4",
    ):
        bind(5, warm=0)
    with pytest.raises(
        ValueError,
        match=r"^DRTRL\(window=4\) spans the whole sequence, which is BPTT: use .*'bptt', or a window below the 4",
    ):
        bind(4, warm=0)
    assert bind(1, warm=0, time=1).window == 1


# -------------------------------------------------------------------------------------------------------- report


def test_a_gru_is_reported(lab, phases):
    for vjp, gate in (("single-step", "no"), ("multi-step", "in part")):
        for batching in ("batched", "vmap"):
            learner = DRTRL(vjp=vjp, batching=batching, engine="trace").bind(Objective(lab.task(), lambda x: x), phases)
            rows = {row.name: row for row in learner.report(phases)}
            trains = {name: row.trains for name, row in rows.items()}
            assert trains == {
                "rnn.Wz.weight": "yes", "rnn.Wr.weight": gate, "rnn.Wh.weight": "yes", "out.weight": "yes"
            }  # fmt: skip
            assert rows["rnn.Wz.weight"].bytes == lab.B * (lab.N_IN + lab.N + 1) * lab.N * 4
            assert sum(row.bytes for row in rows.values()) == sum(
                leaf.nbytes
                for trace in learner.own.values()
                if isinstance(trace, braintrace.EligibilityTrace)
                for leaf in jax.tree.leaves(trace.value)
            )
            assert rows["rnn.Wr.weight"].bytes == rows["out.weight"].bytes == 0
            assert ("exactly zero" if gate == "no" else "from one scored time step only (window=1)") in rows[
                "rnn.Wr.weight"
            ].why
            assert "exact at every time step" in rows["out.weight"].why


def test_other_cells_are_reported(lab, phases):
    def trains(cell):
        learner = DRTRL(vjp="single-step").bind(Objective(lab.task(cell), lambda x: x), phases)
        return {row.name: row.trains for row in learner.report(phases)}

    assert trains("mgu") == {"rnn.Wf.weight": "in part", "rnn.Wh.weight": "yes", "out.weight": "yes"}
    for cell in ("minigru", "lstm", "lru", "vanilla"):
        assert set(trains(cell).values()) == {"yes"}, cell


def test_report_holds_what_the_gradient_shows(lab, phases):
    """A parameter reported "no" has a gradient of exact zeros, every other one has not."""
    for cell in CELLS:
        drive = lab.drive_of(DRTRL(vjp="single-step"), cell)
        grads = drive.grads(phases)
        for row in drive.learner.report(phases):
            moves = any(leaf.any() for leaf in lab.flat({"": grads[row.name]}).values())
            assert moves == (row.trains != "no"), (cell, row)


def test_only_trained_parameters_have_gradients_and_rows(lab, phases):
    class Frozen(lab.Task):
        def trainable(self, name):
            return not name.startswith("rnn.W")

    for strategy in (DRTRL(), DRTRL(window=2), BPTT()):
        drive = lab.Drive(strategy, Frozen(lab.task().model), phases)
        assert list(drive.grads(phases)) == ["out.weight"] == [row.name for row in drive.learner.report(phases)]


# ------------------------------------------------------------------------------------------- choices, private parts


def test_auto_maps_lanes_where_the_trace_is_large(lab, phases, monkeypatch):
    def batching(strategy, model):
        return strategy.bind(Objective(lab.Task(model), lambda x: x), phases).resolved()["batching"]

    class Noisy(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = lab.task().model

        def update(self, x):
            return self.net(x + 0.1 * brainstate.random.randn(*x.shape))

    assert batching(DRTRL(engine="trace"), lab.task().model) == "batched"
    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    assert batching(DRTRL(engine="trace"), lab.task().model) == "vmap"
    assert batching(DRTRL(engine="trace", window=2), lab.task().model) == "batched"
    assert batching(DRTRL(engine="trace", batching="batched"), lab.task().model) == "batched"
    assert batching(DRTRL(engine="trace"), Noisy()) == "batched"


def test_private_shape_of_braintrace(lab, phases):
    """OnlineLearner reads these; where upstream changes one of them, it is named here."""
    solve = ParamDimVjpAlgorithm._solve_previous_trace_gradients
    assert list(inspect.signature(solve).parameters) == [
        "self", "running_index", "etrace_h2w_at_t_minus_1", "dl_to_hidden_groups", "weight_vals"
    ]  # fmt: skip
    assert list(inspect.signature(ParamDimVjpAlgorithm._get_etrace_data).parameters) == ["self"]
    inner = DRTRL(engine="trace").bind(Objective(lab.task(), lambda x: x), phases).inner
    assert isinstance(inner, ParamDimVjpAlgorithm) and isinstance(inner.running_index, brainstate.State)
    (group,) = inner.graph.hidden_groups
    assert [name_of(path) for path in group.hidden_paths] == ["rnn.h"]
    assert group.concat_hidden([jnp.zeros((lab.B, lab.N))]).shape == (lab.B, lab.N, 1)
    assert {name_of(path) for path in inner.param_states} == set(parameters(lab.task().model))
    assert set(inner.etrace_bwg) == {
        (id(relation.y_var), group.index)
        for relation in inner.graph.hidden_param_op_relations
        for group in relation.hidden_groups
    }
    assert {name_of(p) for r in inner.graph.hidden_param_op_relations for p in r.trainable_paths.values()} == {
        "rnn.Wz.weight", "rnn.Wh.weight"
    }  # fmt: skip
    assert not inner.other_states and inner.vjp_method == "multi-step"
    assert {name_of(path): why for path, why in inner.report.excluded_weights} == {
        "out.weight": "relation_excluded_non_temporal", "rnn.Wr.weight": "relation_excluded_weight_to_weight"
    }  # fmt: skip
    assert all(hasattr(d, "weight_path") and isinstance(d.kind.value, str) for d in inner.report.diagnostics)
    single = DRTRL(engine="trace", vjp="single-step").bind(Objective(lab.task(), lambda x: x), phases).inner
    assert {name_of(p) for p in single.graph.hidden_perturb.bypass_param_paths} == {"out.weight"}
