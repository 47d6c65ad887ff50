"""``jaxtrain compare``: kept trials, rates selected on tuning seeds, a table that shows every trial, figures."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxtrain.callbacks.early_stopping import Monitor
from jaxtrain.commands.compare import figures, plan, runner, table
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.main import tool
from jaxtrain.commands.strategies_option import parse_strategies
from jaxtrain.utils.files import RunLock
from tests.kit import forks

RECIPE = str(Path(__file__).parents[1] / "recipes/copy_lru.py")
TINY = ["--hidden", "6", "--width", "6", "--time-lag", "2", "--digits", "1", "--batch-size", "8", "--val-batches", "1",
        "--validate-every", "5", "--log-every", "5"]  # fmt: skip


KEPT = ["--seeds", "1", "--vary", "cell=lru,vanilla", "--target", "0.05", "--stop-at", "none"]


@pytest.fixture(scope="module", autouse=True)
def trials_are_forked():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "subprocess", forks)
        yield


def run(out, *argv):
    return tool(["compare", RECIPE, "--seeds", "0,1", "--steps", "10", "--out", str(out), *TINY, *argv])


def results(out):
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Strategies that learn and one that cannot run, on two cells; one seed, since each trial is a process."""
    out = tmp_path_factory.mktemp("compare") / "out"
    assert run(out, "--strategies", "three_factor", *KEPT) == 0
    return out


@pytest.mark.full
def test_every_trial_is_a_row(done):
    rows = json.loads((done / "compare.json").read_text())["table"]
    assert [(row["variant"], row["strategy"]) for row in rows] == [
        (cell, rule) for cell in ("lru", "vanilla") for rule in ("three_factor", "readout_only", "bptt")
    ]
    by_rule = {row["strategy"]: row for row in rows if row["variant"] == "lru"}
    assert by_rule["bptt"]["done"] == 1 and by_rule["bptt"]["failed"] == []
    assert by_rule["three_factor"]["done"] == 0 and "reward" in by_rule["three_factor"]["failed"][0]
    text = (done / "compare.md").read_text()
    assert "| chance |" in text and "0.125" in text and text.count("failed: ") == 2
    assert "jaxtrain compare" in text and "over seeds 1." in text
    assert (done / "compare.png").stat().st_size > 10_000


@pytest.mark.full
def test_a_trial_is_the_recipe_by_itself(done):
    """Its log equals that of `python recipes/copy_lru.py` with the same options, and its result agrees with the log."""
    import importlib.util

    trial = next(trial for trial in results(done) if trial["name"] == "lru-bptt-seed1")
    rows = [json.loads(line) for line in (done / "runs/lru-bptt-seed1/metrics.jsonl").read_text().splitlines()]
    assert [[step, value] for step, _, value in trial["curve"]] == [[r["step"], r["val/accuracy"]] for r in rows]
    assert trial["steps"] == 10 and trial["value"] == rows[-1]["val/accuracy"] and trial["peak_mb"] > 50
    seconds = [seconds for _, seconds, _ in trial["curve"]]
    assert seconds == sorted(seconds) and 0 < seconds[-1] <= trial["seconds"]
    spec = importlib.util.spec_from_file_location("by_itself", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    fit, module, data = recipe.make(recipe.Config(
        strategy="bptt", cell="lru", hidden=6, width=6, time_lag=2, digits=1, batch_size=8, val_batches=1, seed=1,
        validate_every=5, log_every=5, max_steps=10, stop_at=None, progress=False,
    ))  # fmt: skip
    by_itself = fit.run(module, data).history
    assert [row["val/accuracy"] for row in by_itself] == [row["val/accuracy"] for row in rows]
    assert [row["train/loss"] for row in by_itself] == [row["train/loss"] for row in rows]


@pytest.mark.full
def test_what_was_done_is_kept(done, tmp_path, capsys):
    done = shutil.copytree(done, tmp_path / "out")
    before = (done / "trials.jsonl").read_bytes()
    seconds = {trial["name"]: trial["total_seconds"] for trial in results(done)}
    assert run(done, "--strategies", "bptt", *KEPT) == 0
    assert "4 of 4 trials were done before" in capsys.readouterr().out
    assert {trial["name"]: trial["total_seconds"] for trial in results(done)} == seconds
    assert run(done, "--strategies", "bptt", *KEPT, "--lr", "0.1") == 2, "another rate under the same name"
    error = capsys.readouterr().err
    assert "config.lr: 0.02 before, 0.1 now" in error and "choose another --out" in error and error.count("\n") == 1
    assert (done / "trials.jsonl").read_bytes() == before


@pytest.mark.full
def test_kept_trials_are_compared_with_a_new_target(done, tmp_path):
    """Another target or mode needs no new trials, unless a trial ends at the target."""
    done = shutil.copytree(done, tmp_path / "out")
    argv = ["--seeds", "1", "--vary", "cell=lru,vanilla", "--stop-at", "none", "--strategies", "bptt"]
    for more, there in (["--target", "0"], 1), (["--target", "1"], 0), (["--target", "1", "--mode", "min"], 1):
        assert run(done, *argv, *more) == 0
        rows = json.loads((done / "compare.json").read_text())["table"]
        assert [row["reached"] for row in rows] == [there] * 4


@pytest.mark.full
def test_an_option_that_a_recipe_has_since_then_had_its_default(done, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    before = (done / "trials.jsonl").read_text()
    (out / "trials.jsonl").write_text(before.replace('"mlp": 0, ', ""))
    assert (out / "trials.jsonl").read_text() != before
    assert run(out, "--strategies", "bptt", *KEPT) == 0
    assert "4 of 4 trials were done before" in capsys.readouterr().out
    assert run(out, "--strategies", "bptt", *KEPT, "--mlp", "3") == 2
    assert "config.mlp: 0 before, 3 now" in capsys.readouterr().err


@pytest.mark.long
def test_an_interrupted_trial_starts_from_scratch(tmp_path):
    """A kill leaves a directory without a result."""
    out = tmp_path / "out"
    left = out / "runs" / "lru-bptt-seed0"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    (out / "trials.jsonl").write_text("")
    assert run(out, "--seeds", "0", "--vary", "cell=lru", "--strategies", "bptt", "--target", "0", "--stop") == 0
    first = results(out)[0]
    assert not first["failed"] and first["steps"] == 5, "it ends at the first validation, where the target is met"
    assert first["reached"][0] == 5


def untrained(monkeypatch, result):
    """Replace the training of a trial: its result is ``result(trial, request)``."""

    def one(self, asked, request):
        known = {**trial(), **asked.describe(), "name": asked.name, "request": request, "total_seconds": 0.0}
        return known | result(asked, request)

    monkeypatch.setattr(runner.Comparison, "_train", one)


def test_a_rule_without_fields_is_as_the_recipe_has_it(tmp_path, monkeypatch):
    asked = {}

    def result(wanted, request):
        asked[wanted.strategy.text] = request["config"]["strategy_fields"]
        return {}

    untrained(monkeypatch, result)
    recipe = RECIPE.replace("copy_lru", "copy_gru")
    argv = ["compare", recipe, "--strategies", "drtrl,drtrl:vjp=single-step", "--seeds", "0", "--out"]
    assert tool([*argv, str(tmp_path / "own")]) == 0
    assert asked["drtrl"]["window"] == 10 and asked["drtrl:vjp=single-step"]["window"] == 1
    assert tool([*argv, str(tmp_path / "preset"), "--preset", "short"]) == 0
    assert asked["drtrl"]["window"] == 1 and asked["drtrl:vjp=single-step"]["vjp"] == "single-step"


def trial(rule="drtrl", variant="", lr=None, seed=0, value=0.5, reached=None, failed="", curve=(), options=()):
    return {"strategy": rule, "variant": variant, "lr": lr, "seed": seed, "value": value, "reached": reached,
            "failed": failed, "steps": 100, "seconds": 2.0, "peak_mb": 300.0, "compile_seconds": 1.0,
            "curve": list(curve), "options": dict(options), "tuning": False}  # fmt: skip


GOAL = runner.Goal(Monitor("val/accuracy", "max"), 0.99, 100, None, False)


def test_a_line_is_median_least_and_most():
    found = [trial(value=v, reached=[s, s / 50, v] if s else None) for v, s in ((0.99, 50), (0.2, 0), (1.0, 70))]
    found[1]["seed"], found[2]["seed"] = 1, 2
    (row,) = table.rows(found, GOAL, 0.125)
    assert table.cells(row)[3:] == [
        "0.99 [0.2, 1]", "-", "100 [100, 100]", "2 of 3", "60 [50, 70]", "1.2 [1.0, 1.4]", "20 [20, 20]",
        "1.0 [1.0, 1.0]", "300 [300, 300]",
    ]  # fmt: skip


@pytest.mark.parametrize("value,at_chance", [(0.125, True), (0.16, True), (0.2, False), (0.05, True), (0.99, False)])
def test_a_result_near_chance_is_marked(value, at_chance):
    (row,) = table.rows([trial(value=value)], GOAL, 0.125)
    assert ("(chance)" in table.cells(row)[3]) is at_chance
    down = runner.Goal(Monitor("val/mse", "min"), 0.0, 100, None, False)
    (row,) = table.rows([trial(value=1 - value)], down, 1 - 0.125)
    assert ("(chance)" in table.cells(row)[3]) is (value < 0.125 + 0.05 * 0.875)


def test_a_seed_that_fails_is_shown_beside_the_others():
    found = [trial(value=0.7), trial(seed=1, value=math.nan, failed="FloatingPointError: the loss is not finite")]
    (row,) = table.rows(found, GOAL, None)
    assert table.cells(row)[3] == "0.7 failed (1 of 2): FloatingPointError: the loss is not finite"


def test_rates_are_chosen_by_the_tuning_seeds_alone(tmp_path, monkeypatch):
    """The other seeds would select 0.3; their results must not count."""

    def result(asked, request):
        best = 0.1 if asked.seed >= 100 else 0.3
        return {"value": 1.0 if request["config"]["lr"] == best else 0.2}

    untrained(monkeypatch, result)
    assert run(tmp_path / "out", "--lrs", "0.1,0.3", "--tune-seeds", "100,101") == 0
    rows = json.loads((tmp_path / "out/compare.json").read_text())["table"]
    assert [(row["strategy"], row["lr"], row["value"]) for row in rows] == [
        (rule, 0.1, [0.2, 0.2]) for rule in ("drtrl", "readout_only", "bptt")
    ]
    text = (tmp_path / "out/compare.md").read_text()
    assert "selected on these trials of seeds 100, 101, which are not used above" in text and text.count("| 0.3 |") == 3


def test_the_test_data_is_scored_for_the_reported_seeds_alone(tmp_path, monkeypatch):
    asked = {}

    def result(trial, request):
        asked[trial.name] = (trial.tuning, request["config"]["test"])
        return {"test": {"accuracy": trial.seed / 10} if request["config"]["test"] else {}}

    untrained(monkeypatch, result)
    assert run(tmp_path / "out", "--test", "--lrs", "0.1,0.3", "--tune-seeds", "100") == 0
    assert len(asked) == 12 and all(tuning is not test for tuning, test in asked.values())
    report, tuning = (tmp_path / "out/compare.md").read_text().split("were selected on")
    assert "| test/accuracy |" in report and report.count("| 0.05 [0, 0.1] |") == 3
    (chance,) = [line for line in report.splitlines() if "| chance |" in line]
    assert [cell for cell in chance.split(" | ") if cell.strip("| ")] == ["chance", "0.125"], "none of the test"
    assert "test/accuracy" not in tuning
    without = tmp_path / "without"
    assert run(without) == 0
    assert "test/accuracy" not in (without / "compare.md").read_text()


@pytest.mark.full
def test_a_trial_scores_the_test_data(tmp_path):
    out = tmp_path / "out"
    assert run(out, "--seeds", "0", "--vary", "cell=lru", "--strategies", "bptt", "--test", "--stop-at", "none") == 0
    first = results(out)[0]
    recorded = json.loads((out / "runs" / first["name"] / "result.json").read_text())
    assert first["test"] == recorded["test"] and 0 <= first["test"]["accuracy"] <= 1


def test_a_trial_kept_is_what_it_is_asked_for_now(tmp_path, monkeypatch):
    """A result that only selects a rate in a later comparison is not in its table."""

    untrained(monkeypatch, lambda asked, request: {})
    out = tmp_path / "out"
    assert run(out, "--seeds", "0,1", "--lrs", "0.1") == 0
    assert run(out, "--seeds", "7", "--lrs", "0.1,0.2", "--tune-seeds", "0,1") == 0
    rows = json.loads((out / "compare.json").read_text())["table"]
    assert {tuple(row["seeds"]) for row in rows} == {(7,)}


def test_ctrl_c_leaves_a_table_of_what_is_there(tmp_path, monkeypatch, capsys):
    def result(asked, request):
        if (asked.strategy.name, asked.seed) == ("readout_only", 1):
            raise KeyboardInterrupt
        return {}

    untrained(monkeypatch, result)
    out = tmp_path / "out"
    assert run(out) == 130
    text = (out / "compare.md").read_text()
    assert "**Incomplete: 3 trials are missing.**" in text and text in capsys.readouterr().out
    page = json.loads((out / "compare.json").read_text())
    assert page["missing"] == 3
    assert [(row["strategy"], row["seeds"]) for row in page["table"]] == [("drtrl", [0, 1]), ("readout_only", [0])]
    untrained(monkeypatch, lambda asked, request: {})
    assert run(out) == 0
    assert "Incomplete" not in (out / "compare.md").read_text()


def test_the_options_of_compare_end_a_trial(tmp_path, monkeypatch):
    """The recipe's own stopping criterion is off unless it is given."""
    asked = []
    untrained(monkeypatch, lambda trial, request: asked.append(request["config"]["stop_at"]) or {})
    assert run(tmp_path / "a", "--seeds", "0") == 0 and set(asked) == {None}
    asked.clear()
    assert run(tmp_path / "b", "--seeds", "0", "--stop-at", "0.9", "--seconds", "5") == 0 and set(asked) == {0.9}
    assert "--max-steps" not in (tmp_path / "b/compare.md").read_text(), "--steps was given"


def test_a_trial_that_failed_may_be_asked_for_otherwise(tmp_path, monkeypatch):
    untrained(monkeypatch, lambda trial, request: {"failed": "no log entry has 'accuracy'", "value": math.nan})
    assert run(tmp_path / "out", "--metric", "accuracy") == 1
    untrained(monkeypatch, lambda trial, request: {})
    assert run(tmp_path / "out") == 0
    assert "failed:" not in (tmp_path / "out/compare.md").read_text()


@pytest.mark.parametrize("ending", [{"status": "interrupted"}, {"status": "terminated"}, None])
def test_an_interrupted_trial_is_missing(ending, tmp_path, monkeypatch):
    """With or without a result file."""

    def ended(command, **_):
        if ending is not None:
            Path(command[-1]).write_text(json.dumps({**ending, "failed": "at step 3", "curve": []}))
        return SimpleNamespace(returncode=0 if ending else -signal.SIGINT, communicate=lambda: ("", ""))

    monkeypatch.setattr(runner.subprocess, "Popen", ended)
    goal = runner.Goal(Monitor("val/accuracy", "max"), None, None, None, False)
    trials = runner.Comparison(Path(RECIPE), load_recipe(Path(RECIPE)).Config(), {}, goal, tmp_path, 1)
    trials.run({"": {}}, parse_strategies("drtrl,bptt"), [0], [], [])
    assert trials.results() == [] and len(trials.trials) == 2 and not (tmp_path / "trials.jsonl").exists()


@pytest.mark.full
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_comparison_alone_ends_its_trials(number, code, tmp_path):
    command = [sys.executable, "-m", "jaxtrain", "compare", RECIPE, "--steps", "100000", "--out", str(tmp_path / "out")]
    with forks.Popen([*command, *TINY, "--seeds", "0-3", "--jobs", "1"]) as process:
        end = time.monotonic() + 200
        while not [*(tmp_path / "out/runs").glob("*/metrics.jsonl")]:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(100) == code
    (run_dir,) = (path for path in (tmp_path / "out/runs").iterdir() if path.is_dir())  # no other trial has started
    with RunLock(run_dir):  # nobody holds it
        assert json.loads((run_dir / "result.json").read_text())["status"] == "terminated"
    assert not (tmp_path / "out/trials.jsonl").exists()


def test_results_are_sorted_by_steps_to_the_target_then_value():
    ordered = [trial(reached=[5, 1, 1], value=0.5), trial(reached=[9, 1, 1], value=1.0), trial(value=0.9),
               trial(value=0.1), trial(value=math.nan), trial(reached=[1, 1, 1], value=1.0, failed="x")]  # fmt: skip
    assert sorted([*ordered[3:], *ordered[:3]], key=GOAL.key) == ordered


def test_a_process_that_dies_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "subprocess", subprocess)
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    assert run(tmp_path / "out", "--seeds", "0") == 1, "every trial failed"
    assert {entry["failed"] for entry in results(tmp_path / "out")} == {"exit code 1: it printed nothing"}


@pytest.mark.long
def test_a_trial_that_is_given_up_is_a_row(tmp_path, capsys):
    recipe = tmp_path / "hangs.py"
    recipe.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(RECIPE).parent)!r})\n"
        "import copy_lru\n"
        "from jaxtrain.callbacks.base import Callback\nfrom jaxtrain.callbacks.dispatch import Callbacks\n"
        "class Hangs(Callback):\n"
        "    rank = 'persist'\n"
        "    def on_chunk_start(self, run):\n"
        "        time.sleep(600)\n"
        "Config = copy_lru.Config\n"
        "def make(config):\n"
        "    fit, module, data = copy_lru.make(config)\n"
        "    fit.callbacks = Callbacks([*fit.callbacks, Hangs()])\n"
        "    return fit, module, data\n"
    )
    argv = ["--strategies", "bptt", "--seeds", "0", "--seconds", "0.5", "--out", str(tmp_path / "out")]
    assert tool(["compare", str(recipe), *argv, *TINY]) == 1
    assert capsys.readouterr().out.count("| failed: did not fit: no val/accuracy after 1 s and 0 steps;") == 2


def test_a_table_lists_the_environments_of_kept_trials(tmp_path):
    made = [{"date": date, "machine": "x86_64", "cores": 2, "trials at once": 1, "jax": jax}
            for date, jax in (("2026-11-28", "0.12.0"), ("2026-11-24", "0.11.0"))]  # fmt: skip
    found = [trial(seed=i) | {"environment": one} for i, one in enumerate(made)] + [trial(seed=2)]
    text = table.write(tmp_path, found, GOAL, None, "jaxtrain compare", notes=["A note."])
    assert (
        "date 2026-11-24 / 2026-11-28 / unknown, machine unknown / x86_64, cores 2 / unknown, trials at once 1 / "
        in text
    )
    assert ", jax 0.11.0 / 0.12.0 / unknown." in text
    assert "\nA note.\n" in text


def test_of_two_tuning_seeds_the_worse_one_counts(tmp_path, monkeypatch):
    """0.2 is better on one of them, and fails on the other."""

    def result(asked, request):
        if request["config"]["lr"] == 0.2 and asked.seed == 101:
            return {"failed": "NonFiniteError", "value": math.nan}
        return {"value": 0.91 if request["config"]["lr"] == 0.2 else 0.9}

    untrained(monkeypatch, result)
    assert run(tmp_path / "out", "--lrs", "0.1,0.2", "--tune-seeds", "100,101") == 0
    rows = json.loads((tmp_path / "out/compare.json").read_text())["table"]
    assert {row["lr"] for row in rows} == {0.1}


@pytest.mark.full
def test_a_trial_that_still_trains_is_left_alone(tmp_path):
    with RunLock(tmp_path / "out/runs/lru-bptt-seed0"):
        assert run(tmp_path / "out", "--seeds", "0", "--strategies", "bptt") == 1


def test_a_figure_over_a_number_that_varies():
    found = [
        trial(rule, str(lag), seed=seed, reached=[10 * lag, 1.0, 1.0], options={"time_lag": lag}, curve=[[1, 0.1, 0.2]])
        for rule in ("drtrl", "bptt") for lag in (5, 50) for seed in (0, 1)
    ]  # fmt: skip
    assert figures.numeric_axis(found) == "time_lag"
    axes = figures.reach(found, table.rows(found, GOAL, None), "time_lag", GOAL).axes[0]
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert drawn["drtrl"] == [(5, 50), (50, 500)]
    assert figures.numeric_axis([trial(options={"cell": "gru"}), trial(options={"cell": "lru"})]) is None


def test_a_missed_target_is_no_point_of_the_line():
    missed = [trial("readout_only", str(lag), options={"time_lag": lag}) for lag in (5, 50)]
    partly = [trial("drtrl", "5", seed=0, reached=[30, 1, 1], options={"time_lag": 5}),
              trial("drtrl", "5", seed=1, options={"time_lag": 5}),
              trial("drtrl", "50", seed=0, options={"time_lag": 50})]  # fmt: skip
    found = [*missed, *partly]
    lines = figures.reach(found, table.rows(found, GOAL, None), "time_lag", GOAL).axes[0].lines
    drawn = {line.get_label(): np.asarray(line.get_ydata(), float) for line in lines}
    assert np.isnan(drawn["readout_only"]).all()
    np.testing.assert_array_equal(drawn["drtrl"], [30, math.nan])
    assert len([line for line in lines if "arrow" in str(line.get_marker())]) == 3
    assert [line.get_markerfacecolor() for line in lines if line.get_marker() == "o"] == ["none"]


def test_controls_have_the_same_color_in_every_figure():
    few = figures._colors([trial("drtrl"), trial("readout_only"), trial("bptt")])
    many = figures._colors([trial("bptt"), *(trial(f"r{i}") for i in range(8)), trial("readout_only")])
    assert all(few[rule] == many[rule] for rule in plan.CONTROLS) and len(set(many.values())) == 10


@pytest.mark.parametrize(
    "argv,what",
    [
        (["--strategies", "drtl"], "unknown strategy 'drtl'"),
        (["--strategies", "bptt,bptt"], "a strategy is given twice"),
        (["--vary", "cell"], "expected OPTION=VALUE,VALUE"),
        (["--vary", "hiden=1"], "has no option --hiden that can be varied"),
        (["--vary", "hidden=1,two"], "--vary hidden = 'two' is text; expected int"),
        (["--seeds", "4-0"], "expected seeds, as 0-4 or 0,1,2"),
        (["--seeds", "1,1"], "a seed is given twice"),
        (["--lrs", "0.1,x"], "expected positive numbers separated by commas"),
        (["--lrs", "0.1,0.2", "--tune-seeds", "1-2"], "seed 1 is also one of --seeds"),
        (["--metric", "task/passed"], "say whether less or more of it is better with --mode min or --mode max"),
        (["--metric", "seeds/val/loss"], "has one number per seed; expected one number"),
        (["--lrs", "0.1,0.2", "--tune-seeds", ""], "expected the seeds that select the learning rate"),
        (["--lrs", "0.1", "--lr", "0.2"], "--lr has no effect here; use --lrs"),
        (["--lrs", "0.1", "--vary", "lr=0.1,0.2"], "--lrs has no effect with --vary lr; leave one of them out"),
        (["--vary", "max_steps=1,2"], "--steps has no effect with --vary max_steps; leave one of them out"),
        (["--vary", "seed=1,2"], "has no option --seed that can be varied"),
        (["--vary", "hidden=8", "--vary", "hidden=9"], "hidden is varied twice; give all its values in one --vary"),
        (["--stop"], "set the value to reach with --target"),
        (["--target", "99"], "compare --target 99: val/accuracy is at most 1; use 0.99 for 99 %"),
        (["--vary", "cell=gru,lru", "--chrono", "9"], "--chrono: cell 'lru' has no gates"),
        (["--jobs", "0"], "compare --jobs 0: expected a positive number"),
        (["--seconds", "-1"], "compare --seconds -1: expected a positive number"),
        (["--seed", "3"], "--seed has no effect here; use --seeds"),
        (["--strategy", "drtrl"], "--strategy has no effect here; use --strategies"),
        (["--preset", "tutorial"], "unknown preset 'tutorial'"),
        (["--hiden", "3"], "neither compare nor the recipe has an option --hiden"),
    ],
)
def test_mistakes_are_one_line(argv, what, tmp_path, capsys):
    assert run(tmp_path / "out", *argv) == 2
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
