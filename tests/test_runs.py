"""`jaxtrain runs` and `jaxtrain info`: what they say about runs of every status, as text and as JSON."""

import inspect
import json
import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

import jaxtrain
from jaxtrain.commands.info import DEFAULTS
from jaxtrain.commands.main import tool
from jaxtrain.commands.output import age, sparkline
from jaxtrain.utils.files import RunLock
from tests.small import Linear, LinesOf

FIT = {"max_steps": 100, "checkpoint": {"monitor": "val/accuracy", "mode": "max"}}
KEYS = """
    run status process step max_steps rule best reason digest saved seeds seconds steps_per_second train val test
    checkpoints changed parent
""".split()


def begin(path, rule="drtrl", scores=(), result=None, written=None, **config):
    path.mkdir(parents=True)
    config = {"fit": FIT, "strategy": {"name": rule, "window": 1}, "config": {"lr": 3e-3}, **config}
    (path / "config.json").write_text(json.dumps(config))
    lines = [{"step": 10 * (i + 1), "train/loss": 1 / (i + 1), "val/accuracy": s} for i, s in enumerate(scores)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    for name in os.listdir(path) if written else ():
        os.utime(path / name, (written, written))
    return path


@pytest.fixture
def runs(tmp_path):
    """Three runs, of which one is killed and one has ended; the third is for the test to lock."""
    root = tmp_path / "checkpoints"
    begin(root / "a" / "0001-drtrl", scores=[0.2, 0.9, 0.5], written=3000)
    best = {"monitor": "val/accuracy", "score": 0.95, "step": 60}
    ended = {"status": "finished", "step": 100, "best": best, "val": {"accuracy": 0.9}, "digest": "ab"}
    begin(root / "b" / "0001-bptt", "bptt", [0.1, 0.3], ended, written=1000)
    (root / "b" / "0001-bptt" / "checkpoints" / "00000100").mkdir(parents=True)
    os.utime(root / "b" / "0001-bptt" / "checkpoints", (1000, 1000))
    begin(root / "c", "uoro", written=2000)
    return root


def rows(out):
    head, *lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert head == ["run", "rule", "steps", "best", "status", "age"]
    return lines


def test_the_table_has_runs_of_every_status(runs, capsys):
    with RunLock(runs / "c"):
        os.utime(runs / "c" / "config.json", (2000, 2000))
        assert tool(["runs", str(runs)]) == 0
    out, err = capsys.readouterr()
    assert not err and [row[:-1] for row in rows(out)] == [
        ["a/0001-drtrl", "drtrl", "30/100", "val/accuracy 0.9", "killed"],
        ["b/0001-bptt", "bptt", "100/100", "val/accuracy 0.95", "finished"],
        ["c", "uoro", "0/100", "-", f"running ({os.getpid()})"],
    ]


@pytest.mark.parametrize(
    "sort, order",
    [("run", "abc"), ("best", "bac"), ("age", "acb"), ("steps", "bac"), ("rule", "bac"), ("status", "bac")],
)
def test_the_order_of_the_table(runs, capsys, sort, order):
    assert tool(["runs", str(runs), "--sort", sort]) == 0
    assert "".join(row[0][0] for row in rows(capsys.readouterr().out)) == order


def test_json_has_the_keys_of_the_page(runs, capsys):
    assert tool(["runs", str(runs), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [sorted(run) for run in listed] == [sorted(KEYS)] * 3
    assert listed[0]["best"] == {"monitor": "val/accuracy", "score": 0.9, "step": 20}
    assert (listed[1]["step"], listed[1]["checkpoints"], listed[1]["changed"]) == (100, [100], 1000)
    assert tool(["info", str(runs / "a" / "0001-drtrl"), "--json"]) == 0
    run = json.loads(capsys.readouterr().out)
    more = ["strategy", "config", "fit", "data", "command", "versions", "last_entry", "curves"]
    assert sorted(run) == sorted([*KEYS, *more]) and {name: run[name] for name in KEYS} == listed[0]
    assert run["curves"]["val/accuracy"] == [[10, 0.2], [20, 0.9], [30, 0.5]] and run["last_entry"]["step"] == 30
    page = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text()
    table = re.findall(r"^\| ((?:`\w+`\*?(?:, )?)+) \|", page, re.M)
    keys = {key: bool(star) for row in table for key, star in re.findall(r"`(\w+)`(\*?)", row)}
    assert {key for key in run if key not in keys} == set()
    assert {key for key in run if keys[key]} == {*more}


def test_what_cannot_be_read_is_named_and_the_rest_is_listed(runs, capsys, monkeypatch):
    (runs / "a" / "0001-drtrl" / "config.json").write_text("{")
    begin(runs / "d" / "deep" / "run", "dni")
    scandir = os.scandir

    def denied(path):
        if str(path) == str(runs / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert tool(["runs", str(runs)]) == 1
    out, err = capsys.readouterr()
    assert [row[0] for row in rows(out)] == ["c", "d/deep/run"]
    assert f"error: {runs}/b: Permission denied\n" in err
    assert f"error: cannot read {runs}/a/0001-drtrl/config.json" in err and len(err.splitlines()) == 2


@pytest.mark.parametrize("damage", [{"step": "x"}, {"step": None}, {"best": {"score": "low"}}], ids=str)
def test_a_damaged_result_is_named_and_the_rest_is_listed(runs, capsys, damage):
    path = runs / "b" / "0001-bptt" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    for sort in ("steps", "best"):
        assert tool(["runs", str(runs), "--sort", sort]) == 1
        out, err = capsys.readouterr()
        assert {row[0] for row in rows(out)} == {"a/0001-drtrl", "c"}
        assert err.startswith(f"error: {path} is damaged: ") and len(err.splitlines()) == 1


def test_no_runs(tmp_path, capsys):
    assert tool(["runs", str(tmp_path)]) == 0 and capsys.readouterr().out == f"no runs below {tmp_path}\n"
    assert tool(["runs", str(tmp_path), "--json"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert tool(["runs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: runs {tmp_path}/none: expected a directory that holds runs\n"


def test_info_shows_options_that_differ_from_the_defaults(tmp_path, capsys):
    options = {"lr": 3e-3, "hidden": 7, "cell": "gru", "time_lag": 20, "strategy": "drtrl", "strategy_fields": {}}
    begin(
        tmp_path / "run",
        config=options,
        scores=[0.5, 0.25],
        command=["task.py", "--hidden", "7"],
        strategy={"name": "drtrl", "window": 4, "vjp": "multi-step"},
    )
    assert tool(["info", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert titles[:3] == ["run", "result", "curves"] and titles[4:] == ["checkpoints"]
    shown = text.split(titles[3])[1].split("\n\n")[0].split()
    assert shown == ["strategy", "drtrl", "strategy.window", "4", "hidden", "7", "time_lag", "20"]
    assert "0.5 to 0.25" in text and "stopped unexpectedly after step 20 of 100\n" in text
    assert f"  resume     python task.py --run-dir {tmp_path}/run --resume last\n" in text
    assert tool(["info", str(tmp_path / "run"), "--all"]) == 0
    text = capsys.readouterr().out
    assert "strategy.window" not in text and "lr" in text and "last log entry" in text


def test_a_run_of_a_program_shows_what_differs_and_how_a_failure_continues(tmp_path, capsys):
    class Ends(jaxtrain.Callback):
        def on_chunk_end(self, run, metrics):
            if run.step >= 4:
                raise KeyError("recall")

    def train(name, **options):
        fit = jaxtrain.Fit("bptt", chunk=1, run_dir=tmp_path / name, **options)
        with suppress(KeyError):
            fit.run(Linear(), jaxtrain.DataModule(LinesOf(2)))
        capsys.readouterr()
        assert tool(["info", str(tmp_path / name)]) == 0
        return fit, capsys.readouterr().out

    saves = jaxtrain.Checkpoint(every="1ep")
    _, text = train("failed", max_epochs=5, callbacks=[Ends(), saves])
    assert "  status     failed at step 4 of 10 (KeyError: 'recall')\n" in text
    assert '  resume     fit.run(..., resume="last")\n' in text
    options = text.split("--all: every option)\n")[1].split("\n\n")[0].split("\n")
    assert [line.split(maxsplit=1) for line in options] == [
        ["strategy", "bptt"],
        ["fit.max_epochs", "5"],
        ["fit.chunk", "1"],
        ["fit.callbacks", "[Ends.0]"],
        ["fit.periods", "[Checkpoint.0 every 1ep]"],
    ]
    assert tool(["runs", str(tmp_path)]) == 0 and rows(capsys.readouterr().out)[0][2] == "4/10"
    fit, text = train("plain", max_steps=1)
    assert "fit.max_steps  1\n  fit.chunk      1\n\n" in text and "resume" not in text
    defaults = {name: default.default for name, default in inspect.signature(jaxtrain.Fit).parameters.items()}
    known = {"checkpoint", "callbacks", "periods"}
    assert {name: DEFAULTS[name] for name in DEFAULTS.keys() - known} == {
        name: defaults[name] for name in fit.settings.as_json().keys() - known
    }


def test_a_curve_in_one_line(monkeypatch):
    class Stream:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Stream())
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "_.-=+*%#"
    assert sparkline([0, None, 7]) == "_ #" and sparkline([3.0, 3.0]) == "__" and sparkline([None]) == " "
    Stream.encoding = "utf-8"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0] * 50 + [1.0] * 50, width=4) == "▁▁██" and len(sparkline([1.0] * 100)) == 40


def test_ages():
    assert [age(s) for s in (-1, 12.4, 59, 60, 3600 * 5, 86400 * 2.2)] == ["0 s", "12 s", "59 s", "1 min", "5 h", "2 d"]
