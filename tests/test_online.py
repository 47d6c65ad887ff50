"""The online session: it predicts, learns and saves as the same stream does in a run."""

import contextlib
import dataclasses
import io
import shutil
import time

import brainstate
import braintools
import braintrace
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.errors import NonFiniteError
from tests.kit.tiers import longer
from tests.small import Linear, leaves, steps_of
from tests.test_readme import blocks, execute

TIME, BATCH = 18, 2


class Net(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = braintrace.nn.GRUCell(2, 4)
        self.readout = braintrace.nn.Linear(4, 3)

    def update(self, x):
        return self.readout(self.rnn(x))


class Small(Linear):
    """A GRU on the arrays of ``Linear``."""

    def __init__(self):
        super().__init__(lambda: braintools.optim.Adam(0.02))

    def build(self):
        return Net()


RNG = np.random.default_rng(5)
X = RNG.normal(size=(TIME, BATCH, 2)).astype(np.float32)
Y = RNG.normal(size=(TIME, BATCH, 3)).astype(np.float32)
GIVEN = np.ones(TIME, np.float32)
GIVEN[[2, 6, 7, 8]] = 0  # a missing target, and three, which are a whole interval of three time steps
RESET = np.zeros((TIME, BATCH), bool)
RESET[5, 1] = RESET[12, 0] = True
EXAMPLE, WITH_RESET = (X[0], Y[0]), (X[0], Y[0], RESET[0])


def feed(live, first=0, last=TIME, resets=False):
    """Feed the stream from ``first`` to ``last``. Returns the outputs."""
    resets = [{"reset": RESET[t]} if resets else {} for t in range(TIME)]
    return [live.step(X[t], Y[t] if GIVEN[t] else None, **resets[t]) for t in range(first, last)]


def by_run(strategy, module, segment=6, **options):
    """Train on the stream with ``Fit.run``, in segments of several updates."""
    cut = [slice(t, t + segment) for t in range(0, TIME, segment)]
    batches = [jt.Phases(None, X[c], Y[c], GIVEN[c], RESET[c]) for c in cut]
    jt.Fit(strategy, max_steps=len(batches), progress=False, **options).run(module, batches)
    return leaves(module)


RULES = [
    jt.DRTRL(update_every=1, stateful=True),
    jt.DRTRL(window=3, update_every=3, stateful=True, batching="batched"),
    jt.strategies.PPProp(update_every=1, stateful=True),
    jt.strategies.SnAp(update_every=3, stateful=True),
    jt.TBPTT(window=3, update_every=3, stateful=True),
    *longer(
        jt.DRTRL(update_every=3, stateful=True),
        jt.strategies.EProp(update_every=1, stateful=True),
        jt.strategies.OSTLRecurrent(update_every=1, stateful=True),
        jt.strategies.OSTLFeedforward(update_every=1, stateful=True),
        jt.TBPTT(window=1, update_every=1, stateful=True),
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("strategy", RULES, ids=repr)
def test_a_session_learns_what_a_run_learns_from_the_stream(strategy):
    trained = by_run(strategy, Small(), clip=0.5)
    module = Small()
    with jt.Fit(strategy, clip=0.5).online(module, WITH_RESET) as live:
        feed(live, resets=True)
    ours = leaves(module)
    assert trained.keys() == ours.keys()
    for name, value in trained.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def by_hand(every):
    """The stream through ``Linear`` under truncated BPTT with one window per update, in numpy."""
    w, b, h, outputs = np.full((2, 3), 0.1), np.zeros(3), np.zeros((BATCH, 3)), []
    for start in range(0, TIME, every):
        dw, db, weight, hw, hb = np.zeros((2, 3)), np.zeros(3), 0.0, np.zeros((BATCH, 2)), 0.0
        for t in range(start, start + every):
            h = 0.5 * h + X[t] @ w + b
            hw, hb = 0.5 * hw + X[t], 0.5 * hb + 1.0  # derivatives of h, within the window
            outputs.append(h)
            error = GIVEN[t] * 2 / 3 * (h - Y[t])
            dw, db, weight = dw + hw.T @ error, db + hb * error.sum(0), weight + GIVEN[t] * BATCH
        if weight:
            w, b = w - 0.05 * dw / weight, b - 0.05 * db / weight
    return outputs, {"w": w, "b": b}


@pytest.fixture(scope="module", params=[1, 3])
def whole(request, tmp_path_factory):
    """An uninterrupted session, which saves after 7 time steps: its strategy, outputs, values and folders."""
    strategy, module = jt.TBPTT(window=request.param, update_every=request.param), Linear()
    root = tmp_path_factory.mktemp("whole")
    checkpoint = jt.Checkpoint(every=5, keep_last=9, monitor=None)
    fit = jt.Fit(strategy, callbacks=[checkpoint], run_dir=root / "run")
    with fit.online(module, EXAMPLE) as live:
        outputs = feed(live, 0, 7)
        assert live.save() and steps_of(root / "run") == [5, 7]
        shutil.copytree(root / "run", root / "killed")
        outputs += feed(live, 7)
        metrics = live.metrics
    return strategy, outputs, leaves(module), root, metrics


def test_outputs_and_values_are_those_by_hand(whole):
    strategy, outputs, values, _, metrics = whole
    expected, trained = by_hand(strategy.window)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    for name, value in trained.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6)
    errors = [np.square(expected[t] - Y[t]).mean() for t in range(TIME - strategy.window, TIME)]
    assert metrics["train/loss"] == pytest.approx(np.mean(errors), rel=1e-5)


def test_a_session_continues_bit_for_bit(whole):
    strategy, outputs, values, root, _ = whole
    fit, module = jt.Fit(strategy, run_dir=root / "killed"), Linear()
    with fit.online(module, EXAMPLE, resume="last") as live:
        assert live.steps == 7  # with 3 time steps per update, one waits
        again = feed(live, 7)
    np.testing.assert_array_equal(again, outputs[7:])
    for name, value in values.items():
        np.testing.assert_array_equal(leaves(module)[name], value)
    assert max(steps_of(root / "killed")) == TIME


def test_another_reader_finds_the_values(whole, capsys):
    from jaxtrain.commands.info import describe_run
    from jaxtrain.commands.run_facts import facts

    strategy, _, values, root, _ = whole
    assert steps_of(root / "run") == [5, 7, 10, 15, TIME]
    module = jt.load(root / "run", Linear())
    for name, value in values.items():
        np.testing.assert_array_equal(leaves(module)[name], value)
    module = Linear()
    outputs = jt.Fit(strategy).predict(module, [X], checkpoint=root / "run", batch_first=False)
    h = np.zeros((BATCH, 3))
    for x, y in zip(X, outputs, strict=True):
        h = 0.5 * h + x @ values["w"] + values["b"]
        np.testing.assert_allclose(y, h, rtol=1e-5, atol=1e-6)
    module, fit = jt.load(root / "run", Linear()), jt.Fit(strategy)  # a new session, from its parameters
    with fit.online(module, EXAMPLE) as live:
        assert live.steps == 0
        np.testing.assert_allclose(live.step(X[0]), X[0] @ values["w"] + values["b"], rtol=1e-5, atol=1e-6)
    text = describe_run(facts(root / "run"), everything=True)
    assert f"finished at step {TIME}" in text and "Fit.online" in text


def test_other_runs_and_sessions_are_refused(whole):
    strategy, _, _, root, _ = whole
    stream = dataclasses.replace(strategy, stateful=True)  # as a session makes it
    fit = jt.Fit(stream, run_dir=root / "run", max_steps=1)
    with pytest.raises(ValueError, match="is of other data"):
        fit.run(Linear(), [(X, Y)], resume="last")
    fit = jt.Fit(strategy, run_dir=root / "run")
    with pytest.raises(FileExistsError, match="holds a run"), fit.online(Linear(), EXAMPLE):
        pass
    with pytest.raises(ValueError, match="is of other data"), fit.online(Linear(), WITH_RESET, resume="last"):
        pass


TBPTT1 = jt.TBPTT(window=1, update_every=1)


def test_a_session_holds_its_module_and_reads_it():
    module = Linear()
    fit = jt.Fit(TBPTT1)
    with fit.online(module, EXAMPLE) as live:
        feed(live, 0, 3)
        for refused in (lambda: fit.online(module, EXAMPLE).__enter__(), lambda: fit.run(module, [(X, Y)])):
            with pytest.raises(RuntimeError, match="an online session, at time step 3, trains Linear"):
                refused()
        again = [live.predict(X[3]), live.predict(X[3]), live.step(X[3], Y[3])]
        np.testing.assert_allclose(again[0], again[2], rtol=1e-6)
        np.testing.assert_array_equal(again[0], again[1])
        assert live.steps == 4
        now = fit.predict(module, [X[:1]], batch_first=False)[0]
    np.testing.assert_allclose(now, X[0] @ leaves(module)["w"] + leaves(module)["b"], rtol=1e-5)
    with pytest.raises(RuntimeError, match="the session is over"):
        live.step(X[0], Y[0])


def test_a_nonfinite_update_ends_the_session(tmp_path):
    module, fit = Linear(), jt.Fit(TBPTT1, run_dir=tmp_path / "run")
    message = r"live.step number 2: target is NaN or infinite in 6 of 6 values; train/loss is not finite; check inputs"
    with pytest.raises(NonFiniteError, match=message), fit.online(module, EXAMPLE) as live:
        feed(live, 0, 2)
        live.save()
        live.step(X[2], Y[2] * np.nan)
    assert steps_of(tmp_path / "run") == [2]
    with pytest.raises(RuntimeError, match="over; open it again with resume='last'"):
        live.step(X[2], Y[2])
    with fit.online(Linear(), EXAMPLE, resume="last") as live:
        assert live.steps == 2


def with_nan(t):
    """The inputs of time step t, of which one is NaN."""
    x = X[t].copy()
    x[0, 0] = np.nan
    return x


def test_a_nonfinite_update_of_several_time_steps_names_the_one():
    module, strategy = Linear(), jt.TBPTT(window=3, update_every=3)
    message = "live.step number 4: x is NaN or infinite in 1 of 4 values; train/loss is not finite; check inputs"
    with pytest.raises(NonFiniteError, match=message), jt.Fit(strategy).online(module, EXAMPLE) as live:
        feed(live, 0, 4)
        live.step(with_nan(4), Y[4])
        live.step(X[5], Y[5])
    with pytest.raises(RuntimeError, match="over; open another one"):
        live.step(X[5], Y[5])


def test_a_nonfinite_update_is_skipped(caplog):
    modules = [Linear(), Linear()]
    for module, bad in zip(modules, (False, True), strict=True):
        with jt.Fit(TBPTT1, nonfinite="skip").online(module, EXAMPLE) as live:
            live.step(X[0], Y[0])
            if bad:
                assert np.isnan(live.step(with_nan(1), Y[1])).any()
                assert live.metrics == {"skipped_fraction": 1}
                live.step(X[1], Y[1] * np.nan)
            last = live.step(X[2], Y[2])  # as if nothing had happened
            assert np.isfinite(last).all() and "train/loss" in live.metrics
    for name, value in leaves(modules[0]).items():
        np.testing.assert_array_equal(leaves(modules[1])[name], value)
    for number, name, share in ((1, "x", "1 of 4"), (2, "target", "6 of 6")):
        message = f"live.step number {number}: {name} is NaN or infinite in {share} values; train/loss is not finite"
        assert f"{message}; skipped" in caplog.text


def test_a_nonfinite_update_with_finite_data():
    module = Linear(lambda: braintools.optim.SGD(1e30))
    message = "is not finite, but x and target are; lower the learning rate, clip gradients, or use Fit"
    with pytest.raises(NonFiniteError, match=message), jt.Fit(TBPTT1).online(module, EXAMPLE) as live:
        feed(live)


def test_a_nonfinite_update_is_made_with_a_warning(caplog):
    with jt.Fit(TBPTT1, nonfinite="warn").online(Linear(), EXAMPLE) as live:
        live.step(with_nan(0), Y[0])
        assert np.isnan(live.step(X[1], Y[1])).all() and np.isnan(live.metrics["train/loss"])
    assert "number 0: x is NaN or infinite in 1 of 4 values; train/loss is not finite\n" in caplog.text


def test_an_example_without_a_batch_axis_is_explained():
    for module in (Small(), Linear()):
        with pytest.raises((TypeError, ValueError)) as found:
            jt.Fit(jt.DRTRL(update_every=1)).online(module, (X[0, 0], Y[0, 0, :2])).__enter__()
        assert any("is the batch axis missing? expected (B, features)" in note for note in found.value.__notes__)


class Noisy(Linear):
    """``Linear`` with inputs in a dict, and noise on its outputs."""

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x["a"]) + brainstate.random.randn(BATCH, 3) - y).mean(-1)

    def predict_step(self, forward, x):
        return {"b": forward(x["a"]) + brainstate.random.randn(BATCH, 3)}


def test_random_numbers_are_those_of_a_run_and_continue(tmp_path):
    trained, strategy = Noisy(), jt.TBPTT(window=3, update_every=3, stateful=True)
    batches = [({"a": X[t : t + 3]}, Y[t : t + 3]) for t in range(0, TIME, 3)]
    jt.Fit(strategy, max_steps=6, progress=False, seed=4).run(trained, jt.DataModule(batches, batch_first=False))
    module, outputs = Noisy(), {}
    fit = jt.Fit(strategy, seed=4, run_dir=tmp_path / "run", callbacks=[jt.Checkpoint(every="1h", monitor=None)])
    with pytest.raises(KeyboardInterrupt), fit.online(module, ({"a": X[0]}, Y[0])) as live:
        for t in range(10):
            outputs[t] = live.step({"a": X[t]}, Y[t])["b"]
            if t == 7:
                live.save()
                shutil.copytree(tmp_path / "run", tmp_path / "killed")
        raise KeyboardInterrupt
    assert steps_of(tmp_path / "run") == [10]
    for name in ("run", "killed"):
        module = Noisy()
        with jt.Fit(strategy, seed=4, run_dir=tmp_path / name).online(
            module, ({"a": X[0]}, Y[0]), resume="last"
        ) as live:
            for t in range(live.steps, TIME):
                y = live.step({"a": X[t]}, Y[t])["b"]
                np.testing.assert_array_equal(y, outputs.setdefault(t, y))
        for key, value in leaves(trained).items():
            np.testing.assert_allclose(leaves(module)[key], value, rtol=1e-5, atol=1e-6)
    assert not np.allclose(outputs[0], outputs[1])
    with pytest.raises(ValueError, match="is of another seed"):
        jt.Fit(strategy, run_dir=tmp_path / "run").online(Noisy(), ({"a": X[0]}, Y[0]), resume="last").__enter__()


def test_saves_by_the_clock(tmp_path):
    fit = jt.Fit(TBPTT1, run_dir=tmp_path / "run", callbacks=[jt.Checkpoint(every="0.001s", keep_last=3, monitor=None)])
    with fit.online(Linear(), EXAMPLE) as live:
        for t in range(2):
            time.sleep(0.002)
            live.step(X[t], Y[t])
        live.save()
        assert steps_of(tmp_path / "run") == [1, 2]


class WithWarmup(Linear):
    def phases(self, batch):
        return dataclasses.replace(batch, warmup=batch.inputs)


def test_a_warmup_is_refused():
    with pytest.raises(ValueError, match="WithWarmup.phases gives a warm-up"):
        jt.Fit(TBPTT1).online(WithWarmup(), EXAMPLE).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "bptt"}, "needs whole sequences; use jaxtrain.DRTRL"),
        ({"strategy": "drtrl"}, r"no end of a sequence; use jaxtrain.DRTRL\(update_every=1\)"),
        ({"strategy": "tbptt"}, r"use jaxtrain.TBPTT\(update_every=10\)"),
        ({"strategy": jt.strategies.ThreeFactor(update_every=1)}, "learns from a reward, and a session has none"),
        ({"max_steps": 3}, "leave max_steps out"),
        ({"seeds": 2}, "leave seeds out"),
        ({"accumulate": 2}, "leave accumulate out"),
        ({"callbacks": [jt.EarlyStopping()]}, "a session calls no EarlyStopping"),
        ({"loggers": [jt.loggers.JSONL()]}, "a session calls no JSONL"),
        ({"callbacks": [jt.Checkpoint(monitor="val/x", mode="min")], "run_dir": "x"}, r"Checkpoint\(monitor=None\)"),
        ({"callbacks": [jt.Checkpoint(every="1ep")], "run_dir": "x"}, "a session has no epochs"),
    ],
)
def test_settings_without_a_meaning_are_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = jt.Fit(**{"strategy": TBPTT1, **options})
    with pytest.raises(ValueError, match=message), fit.online(Linear(), EXAMPLE):
        pass
    assert not list(tmp_path.iterdir())


def test_bad_arrays_are_refused_and_change_nothing():
    fit, module = jt.Fit(TBPTT1), Linear()
    for example, message in (
        ((X[0],), "got a tuple of 1|is a tuple of 1"),
        ((X[0], None), "expected \\(x, target\\)"),
        ((np.float32(1), Y[0]), r"expected \(B, ...\): of one sequence, \(1, ...\)"),
        ((X[0, :1], Y[0]), r"have \[1, 2\] sequences"),
    ):
        with pytest.raises((TypeError, ValueError), match=message), fit.online(module, example):
            pass
    with fit.online(module, EXAMPLE) as live:
        for arguments, message in (
            ({"x": X[0, :1], "target": Y[0]}, r"x is float32\[1, 2\]; expected float32\[2, 2\]"),
            ({"x": X[0], "target": Y[0] * 1j}, r"target is complex64\[2, 3\]; expected float32"),
            ({"x": X[0], "reset": RESET[0]}, r"opened without resets: Fit.online\(module, \(x, target, numpy.zeros\(2"),
        ):
            with pytest.raises(ValueError, match=message):
                live.step(**arguments)
        with pytest.raises(RuntimeError, match="there is no run directory"):
            live.save()
        assert live.steps == 0 and live.metrics == {}
        live.step(X[0].tolist(), Y[0].astype(np.float64))
    with fit.online(module, (*EXAMPLE, np.zeros(2, bool))) as live:  # the advice
        with pytest.raises(ValueError, match=r"got float32 of shape \(2,\); expected bool"):
            live.step(X[0], reset=RESET[0].astype(np.float32))
        first = live.step(X[0])
        live.step(X[1])
        np.testing.assert_array_equal(live.step(X[0], reset=np.array([True, False]))[0], first[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks of the page define, what they print, and the folder in which they ran."""
    root, printed = tmp_path_factory.mktemp("page"), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(printed):
        names = None
        for block in blocks("docs/online.md"):
            names = execute(block, "docs/online.md", names)
    return names, printed.getvalue(), root


def test_the_example_of_the_page_predicts_better_and_better(page):
    _, printed, root = page
    (steps, loss), (first, last), again = (line.split() for line in printed.splitlines())
    assert int(steps) == int(again[0]) == 1999 and float(loss) < 0.2 and float(last) < 0.5 * float(first)
    assert steps_of(root / "runs/sine") == [1999]


def test_the_journal_of_the_page_continues_bit_for_bit(page, tmp_path, capsys):
    names, lines = page[0], [b"%.9g\n" % value for value in page[0]["sensor"](600)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def arriving():
        for number, line in enumerate(lines):
            if number == 550:  # what a kill leaves: 549 steps, a save of 500, 550 lines
                while not (whole / "checkpoints/00000500").exists():
                    time.sleep(0.01)
                shutil.copytree(whole, killed)
                shutil.copy(tmp_path / "whole.txt", tmp_path / "killed.txt")
            yield line

    names["serve"](arriving(), whole, tmp_path / "whole.txt")
    forecasts = capsys.readouterr().out.split()
    assert len(forecasts) == 600 and (tmp_path / "whole.txt").read_bytes() == b"".join(lines)
    names["serve"](lines[550:], killed, tmp_path / "killed.txt")
    assert capsys.readouterr().out.split() == forecasts[500:]
    assert (tmp_path / "killed.txt").read_bytes() == b"".join(lines)
