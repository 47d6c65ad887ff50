"""The examples of docs/pretrained.md, docs/search.md and docs/loggers.md run as they stand."""

import json
import signal
import subprocess
import sys

import pytest

import jaxtrain
from tests.small import Linear, Lines, leaves, result_of
from tests.test_readme import blocks, execute


@pytest.mark.full
def test_the_page_on_pretrained_parameters(tmp_path, monkeypatch, capsys):
    for package in ("safetensors", "nir"):
        pytest.importorskip(package, reason="the extra dev is not installed")
    monkeypatch.chdir(tmp_path)
    page = None
    for block in blocks("docs/pretrained.md"):
        page = execute(block, "docs/pretrained.md", page)
    report, module = page["report"], page["module"]
    assert len(report.loaded) == 6 and set(report.skipped.values()) == {"not selected"}
    assert sorted(report.as_built) == ["head.weight.bias", "head.weight.weight"]
    assert page["second_epoch"].step == 40
    first = leaves(page["jaxtrain"].load("checkpoints/sums", page["Sums"]()))
    for name, value in leaves(module).items():
        assert name.startswith("head") or (value == first[name]).all(), "frozen"
    assert "loaded 6: trunk." in capsys.readouterr().out


@pytest.mark.full
def test_the_page_on_search_prunes(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna", reason="the extra dev is not installed")
    monkeypatch.chdir(tmp_path)
    page = execute(blocks("docs/search.md")[0], "docs/search.md")
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=-1.0))
    study.enqueue_trial({"strategy": "drtrl", "cell": "mini_gru", "lr": 1e-3})
    study.optimize(page["objective"], n_trials=1)
    (trial,) = study.trials
    result = result_of(tmp_path / "checkpoints/search/0")
    assert trial.state == optuna.trial.TrialState.PRUNED and list(trial.intermediate_values) == [50]
    assert (result["status"], result["reason"], result["step"]) == ("stopped", "pruned", 50)
    assert trial.intermediate_values[50] == pytest.approx(result["val"]["loss"])

    page["Report"].on_validation_end = lambda *_: signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        study.optimize(page["objective"], n_trials=1)
    assert ended.value.code == 130 and len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 0


@pytest.mark.long
def test_two_workers_of_the_page_on_search_share_a_study(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra dev is not installed")
    program = blocks("docs/search.md")[0]
    for large, small in (("max_steps: int = 300", "max_steps: int = 4"), ("str | None = 50", "str | None = 2")):
        assert large in program
        program = program.replace(large, small)
    (tmp_path / "search.py").write_text(program)
    start = [sys.executable, "search.py", "2"]
    workers = [subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=500)
        assert worker.returncode == 0, errors
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "search.log"))
    study = optuna.load_study(study_name="sum", storage=optuna.storages.JournalStorage(backend))
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE and list(trial.intermediate_values) == [2, 4]
        assert trial.value == result_of(tmp_path / f"checkpoints/search/{trial.number}")["val"]["loss"]
        config = json.loads((tmp_path / f"checkpoints/search/{trial.number}/config.json").read_text())["config"]
        assert {name: config[name] for name in trial.params} == trial.params


def test_the_logger_of_the_page_on_loggers_forgets_what_comes_again(tmp_path):
    """A run that is resumed at its step 6 and one that never stopped have equal tables."""
    CSV = execute(blocks("docs/loggers.md")[0], "docs/loggers.md")["CSV"]

    def fit(name, steps):
        callbacks = [CSV(), jaxtrain.Checkpoint(every=3)]
        options = {"chunk": 1, "log_every": 2, "progress": False, "run_dir": tmp_path / name}
        return jaxtrain.Fit("bptt", max_steps=steps, callbacks=callbacks, **options)

    for name, steps in ("whole", 10), ("twice", 6):
        fit(name, steps).run(Linear(), Lines(), batch_first=False)
    with (tmp_path / "twice" / "losses.csv").open("a") as file:
        file.write("8,0.5,\r\n")  # as a run that was killed later than its last checkpoint
    fit("twice", 10).run(Linear(), Lines(), batch_first=False, resume="last")
    whole, twice = ((tmp_path / name / "losses.csv").read_text() for name in ("whole", "twice"))
    assert whole == twice and [row.split(",")[0] for row in whole.split()] == ["step", "2", "4", "6", "8", "10"]
