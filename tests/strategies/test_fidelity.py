"""GradientFidelity in a run: exact rules report 1, what they leave out shows, and nothing else changes."""

import dataclasses
import logging

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import jaxtrain as jt
from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.callbacks import GradientFidelity
from jaxtrain.core.state import parameters
from jaxtrain.strategies import UORO, PPProp
from jaxtrain.strategies.fidelity import _compare
from tests.kit.tiers import longer
from tests.small import leaves, same

pytestmark = pytest.mark.full


class Sequences:
    """Batch ``step``: five time steps of warm-up and four scored ones."""

    batch_first = False

    def __init__(self, lab, **kwargs):
        self.lab, self.kwargs = lab, kwargs

    def batch(self, step):
        phases = self.lab.sequences(step, **self.kwargs)
        given = {name: value for name, value in vars(phases).items() if value is not None}
        return {name: np.asarray(value) for name, value in given.items()}


def task_of(lab, cell="gru"):
    task = lab.task(cell)
    task.configure_optimizer = lambda: optax.adam(0.02)
    task.phases = lambda batch: jt.Phases(**{"warmup": None, **batch})
    return task


def run(lab, strategy, cell="gru", every: int | None = 2, steps=4, callbacks=(), task=None, data=None, **options):
    """The module after a run, and its rows."""
    task, probes = task or task_of(lab, cell), [] if every is None else [GradientFidelity(every, **options)]
    fit = jt.Fit(strategy, max_steps=steps, chunk=2, log_every=2, callbacks=[*probes, *callbacks])
    result = fit.run(task, data or Sequences(lab))
    return task, {row["step"]: row for row in result.history}


def cosines(row):
    return {tag.removeprefix("fidelity/cosine"): x for tag, x in row.items() if tag.startswith("fidelity/cosine")}


@pytest.mark.parametrize(
    "cell,strategy",
    [("gru", TBPTT(window=9)), ("lru", DRTRL()), *longer(("gru", BPTT()), ("lru", DRTRL(batching="vmap")))],
    ids=["tbptt", "lru", "bptt", "lru-vmap"],
)
def test_an_exact_rule_reports_one(lab, cell, strategy):
    task, rows = run(lab, strategy, cell)
    assert list(rows) == [2, 4]
    for row in rows.values():
        found = cosines(row)
        assert found.keys() == {"", *(f"/{name}" for name in parameters(task.model))}
        np.testing.assert_allclose(list(found.values()), 1.0, atol=2e-5)
        np.testing.assert_allclose(row["fidelity/norm_ratio"], 1.0, atol=2e-4)
        assert row["fidelity/sign_agreement"] > 0.98


@pytest.mark.long
def test_what_a_rule_leaves_out_shows(lab):
    rows = run(lab, DRTRL(vjp="single-step"))[1]
    for row in rows.values():
        found = cosines(row)
        assert found["/rnn.Wr.weight"] == row["fidelity/norm_ratio/rnn.Wr.weight"] == 0
        assert found["/out.weight"] == pytest.approx(1, abs=1e-5)
        assert 0.3 < found[""] < 0.999
    short = run(lab, TBPTT(window=1))[1]
    assert all(cosines(row)[""] < 0.999 for row in short.values())


def test_values_are_those_of_the_gradients(lab):
    """The comparison at step 2, worked out from the weights at step 2 and the first batch."""

    _, rows = run(lab, DRTRL(), every=2, steps=2)
    task = run(lab, DRTRL(), every=None, steps=2)[0]  # the same weights: a probe changes nothing
    values = {name: state.value for name, state in parameters(task.model).items()}
    made = []
    for strategy in (DRTRL(), BPTT()):
        twin = lab.task()
        for name, state in parameters(twin.model).items():
            state.value = values[name]
        made.append(lab.learn(strategy, twin, lab.sequences(0)))
    ours, truth = made
    row = rows[2]
    assert row["fidelity/cosine"] == pytest.approx(lab.cosine(ours, truth), abs=1e-5)
    for name in truth:
        a, b = ({name: grads[name]} for grads in made)
        assert row[f"fidelity/cosine/{name}"] == pytest.approx(lab.cosine(a, b), abs=1e-5)
        flat = [np.concatenate([leaf.ravel() for leaf in lab.flat(g).values()]) for g in (a, b)]
        ratio = np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
        assert row[f"fidelity/norm_ratio/{name}"] == pytest.approx(ratio, rel=1e-4)
        agreement = (np.sign(flat[0]) == np.sign(flat[1])).mean()
        assert row[f"fidelity/sign_agreement/{name}"] == pytest.approx(agreement, abs=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [PPProp(update_every=2, stateful=True), *longer(DRTRL(), UORO(), TBPTT(window=2, stateful=True))],
    ids=["pp_prop-stateful", "drtrl", "uoro", "tbptt-stateful"],
)
def test_weights_are_bitwise_the_same_with_it_and_without_it(lab, strategy):
    data = Sequences(lab, warm=0)
    with_it, rows = run(lab, strategy, every=1, data=data)
    without, bare = run(lab, strategy, every=None, data=data)
    assert same(leaves(with_it), leaves(without))
    assert all(np.isfinite(row["fidelity/cosine"]) for row in rows.values())
    assert not any(tag.startswith("fidelity") for row in bare.values() for tag in row)
    for step, row in bare.items():
        assert {tag: value for tag, value in rows[step].items() if not tag.startswith("fidelity")} == row


def test_totals_alone(lab):
    rows = run(lab, DRTRL(), per_parameter=False)[1]
    tags = {tag for row in rows.values() for tag in row if tag.startswith("fidelity")}
    assert tags == {"fidelity/cosine", "fidelity/norm_ratio", "fidelity/sign_agreement"}


@pytest.mark.long
def test_a_stateful_stream_is_compared_from_fresh_states(lab):
    """Both gradients start from initial states: on an LRU they agree, as they do with stateful=False."""
    data = Sequences(lab, warm=0)
    rows = run(lab, DRTRL(stateful=True), "lru", data=data)[1]
    np.testing.assert_allclose([row["fidelity/cosine"] for row in rows.values()], 1.0, atol=2e-5)
    first = {
        stateful: run(lab, DRTRL(stateful=stateful), every=1, steps=1, data=data)[1][1] for stateful in (True, False)
    }
    assert cosines(first[True]) == pytest.approx(cosines(first[False]), abs=1e-6)


# -------------------------------------------------------------------------------- both gradients of the same function


class Noisy(brainstate.nn.Module):
    """Noise on the input, from the step's random numbers or from a state of its own; running means, or none."""

    def __init__(self, lab, own: bool = False, running: bool = False):
        super().__init__()
        self.net = lab.task("lru").model
        self.rng = brainstate.random.RandomState(3) if own else None
        self.mean = brainstate.LongTermState(jnp.zeros(lab.N_IN)) if running else None
        self.noisy = not running

    def update(self, x):
        if self.noisy:
            x = x + (self.rng or brainstate.random).randn(*x.shape)
        if self.mean is not None:
            self.mean.value = 0.5 * self.mean.value + 0.5 * x.mean(0)
            x = x - self.mean.value
        return self.net(x)


@pytest.mark.cover
@pytest.mark.parametrize(
    "options", [{"running": True}, *longer({}, {"own": True})], ids=["running means", "noise", "own noise"]
)
@pytest.mark.parametrize("strategy", [DRTRL(), *longer(BPTT(), DRTRL(engine="trace"))], ids=["drtrl", "bptt", "trace"])
def test_noise_and_running_statistics_are_the_same_for_both(lab, strategy, options):
    """On an LRU D-RTRL is exact, so anything below 1 would be another noise, or means that have moved on."""
    task = task_of(lab)
    task.model = Noisy(lab, **options)
    for row in run(lab, strategy, task=task)[1].values():
        np.testing.assert_allclose(list(cosines(row).values()), 1.0, atol=2e-5)


class Begun(Noisy):
    """Hidden states that begin at random."""

    def init_state(self, batch_size=None, **_):
        self.u = brainstate.HiddenState(brainstate.random.randn(batch_size, 3))

    def update(self, x):
        self.u.value = 0.9 * self.u.value
        return super().update(x + self.u.value)


@pytest.mark.cover
@pytest.mark.parametrize("stateful", [True, *longer(False)])
@pytest.mark.parametrize(
    "strategy", [DRTRL(), *longer(DRTRL(engine="trace"), TBPTT(window=4))], ids=["drtrl", "trace", "tbptt"]
)
def test_a_random_beginning_is_the_same_for_both(lab, strategy, stateful):
    """And so is the noise that is drawn after it."""
    task = task_of(lab)
    task.model = Begun(lab)
    rows = run(lab, dataclasses.replace(strategy, stateful=stateful), task=task, data=Sequences(lab, warm=0))[1]
    for row in rows.values():
        np.testing.assert_allclose(list(cosines(row).values()), 1.0, atol=2e-5)


def test_frozen_parameters_are_not_compared(lab):
    task = task_of(lab)
    task.trainable = lambda name: "Wz" not in name
    found = cosines(run(lab, DRTRL(), task=task)[1][2])
    assert "/rnn.Wh.weight" in found and "/rnn.Wz.weight" not in found


def test_comparison_of_numbers():
    """(cosine, norm ratio, agreement of signs) of a rule's gradient against the truth."""
    nan, inf = float("nan"), float("inf")
    for ours, truth, wanted in (
        ([1.0, 2.0], [2.0, 4.0], (1, 0.5, 1)),
        ([1.0, 0.0], [-1.0, 0.0], (-1, 1, 0)),  # an entry that is zero in both has no sign to agree on
        ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0], (0.5**0.5, 0.5**0.5, 0.5)),
        ([1e-20, 2e-20], [1e-20, 2e-20], (1, 1, 1)),
        ([1e-20, 2e-20], [1e15, 2e15], (1, 1e-35, 1)),
        ([1e30, 2e30], [1e30, 2e30], (1, 1, 1)),
        ([0.0, 0.0], [0.0, 0.0], (1, 1, 1)),
        ([0.0, 0.0], [1.0, 0.0], (0, 0, 0)),
        ([1.0, 0.0], [0.0, 0.0], (0, nan, 0)),
        ([nan, 1.0], [1.0, 1.0], (nan, nan, nan)),
        ([1.0, 1.0], [inf, 1.0], (nan, nan, nan)),
    ):
        found = _compare(jnp.asarray(ours), jnp.asarray(truth))
        got = [float(found[key]) for key in ("cosine", "norm_ratio", "sign_agreement")]
        np.testing.assert_allclose(got, wanted, rtol=1e-6, err_msg=f"{ours} against {truth}")


# ------------------------------------------------------------------------------------- exact zeros after step 1


class Dead(brainstate.nn.Module):
    """A network with a second readout whose units never fire."""

    def __init__(self, lab):
        super().__init__()
        self.net = lab.task().model
        self.gate = brainstate.ParamState(jnp.full((lab.N_OUT,), -1.0))

    def update(self, x):
        return self.net(x) + jnp.maximum(self.gate.value, 0.0)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "exactly zero" in record.getMessage()]


@pytest.mark.parametrize("strategy", [DRTRL(update_every=2), *longer(BPTT(), DRTRL())], ids=["online", "bptt", "drtrl"])
def test_an_unexpected_zero_is_named_after_the_first_update(lab, caplog, strategy):
    task = task_of(lab)
    task.model = Dead(lab)
    with caplog.at_level(logging.WARNING, logger="jaxtrain"):
        run(lab, strategy, every=None, task=task)
    (text,) = warnings_of(caplog)
    assert text.startswith("step 1: the gradient of gate is exactly zero")


@pytest.mark.parametrize("strategy", [DRTRL(), *longer(BPTT(), PPProp(), DRTRL(update_every=2))])
def test_a_healthy_model_draws_no_warning(lab, caplog, strategy):
    with caplog.at_level(logging.WARNING, logger="jaxtrain"):
        run(lab, strategy, every=None)
    assert not caplog.records


@pytest.mark.parametrize("strategy", [DRTRL(), *longer(BPTT())])
def test_neurons_that_do_not_spike_are_named(lab, caplog, strategy):
    """Although the bias of the readout learns. With a usual threshold there is no warning."""
    said = []
    for threshold in (1e3, 1.0):
        task = task_of(lab, "lif")
        task.model.neuron.V_th = threshold * u.mV
        with caplog.at_level(logging.WARNING, logger="jaxtrain"):
            run(lab, strategy, every=None, task=task)
        said.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert said[0] == [
        "step 1: neuron emits no spikes, so weights that read only its spikes have no gradient: scale up its input, "
        "or lower its V_th"
    ]
    assert said[1] == []


@pytest.mark.parametrize("name", ["single-step", "three_factor", "readout_only"])
def test_what_was_predicted_is_not_repeated(lab, caplog, name):
    task, data = task_of(lab), Sequences(lab)
    strategy = {"single-step": DRTRL(vjp="single-step")}.get(name, name)
    if name == "three_factor":
        data = Sequences(lab, extras={"reward": jnp.ones((lab.LEARN, lab.B))})
        data.batch = lambda step: {**Sequences(lab).batch(step), "reward": np.ones((lab.LEARN, lab.B), np.float32)}

        def phases(batch):
            plain = {key: value for key, value in batch.items() if key != "reward"}
            return jt.Phases(**plain, extras={"reward": batch["reward"]})

        class Rewarded(type(task)):
            def learning_step(self, forward, x, y, reward):
                return super().learning_step(forward, x, y)

        task.phases, task.__class__ = phases, Rewarded
    with caplog.at_level(logging.INFO, logger="jaxtrain"):
        run(lab, strategy, every=None, task=task, data=data)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "trained: no" in caplog.text, "the report before step 0 said so"


def test_a_step_without_weight_is_not_audited(lab, caplog):
    """The first batch weighs nothing, so it has no update and no zeros worth a word."""

    class Late(Sequences):
        def batch(self, step):
            return {**super().batch(step), "weights": np.full((lab.LEARN,), float(step > 1), np.float32)}

    task = task_of(lab)
    task.model = Dead(lab)
    with caplog.at_level(logging.WARNING, logger="jaxtrain"):
        run(lab, BPTT(), every=None, task=task, data=Late(lab))
    (text,) = warnings_of(caplog)
    assert text.startswith("step 3: the gradient of gate is exactly zero")


class HalfDead(jt.Module):
    """A network with a gate that acts only where ``which`` is not zero."""

    def __init__(self, lab):
        self.model = lab.task().model
        self.model.gates = brainstate.ParamState(jnp.zeros(2))
        self.lab = lab

    def phases(self, batch):
        rest = {key: value for key, value in batch.items() if key != "which"}
        return jt.Phases(**rest, extras={"which": batch["which"]})

    def learning_step(self, forward, x, y, which):
        return self.lab.squared(forward(x), y) + which * self.model.gates.value[0]

    def configure_optimizer(self):
        return optax.adam(0.02)


@pytest.mark.parametrize("alive", [True, False])
def test_what_is_audited_is_what_was_accumulated(lab, caplog, alive):
    """A gate whose gradient is zero in every second batch, not in the sum of two; and one that is dead in both."""

    class Halves(Sequences):
        def batch(self, step):
            which = np.full((lab.LEARN, lab.B), float(alive and step % 2 == 0), np.float32)
            return {**super().batch(step), "which": which}

    with caplog.at_level(logging.WARNING, logger="jaxtrain"):
        fit = jt.Fit(BPTT(), max_steps=4, chunk=2, log_every=2, accumulate=2)
        fit.run(HalfDead(lab), Halves(lab))
    found = [text.partition(" is exactly")[0] for text in warnings_of(caplog)]
    assert found == ([] if alive else ["step 2: the gradient of gates"])
