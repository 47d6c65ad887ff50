"""Every other recipe, from its flags to its files: it runs, resumes, and its options have an effect."""

import gzip
import json
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxtrain
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.core.state import parameters
from tests.kit.scores import write_chorales
from tests.kit.tiers import longer
from tests.recordings import write_spikes

RECIPES = Path(__file__).parents[2] / "recipes"
QUICK = ["--log-every", "2", "--checkpoint-every", "4", "--no-progress", "--hidden", "6", "--batch-size", "4"]
STREAM = ["--unroll", "6", "--chunk", "2"]
TINY = {
    "copy_lru": "--time-lag 4 --digits 2 --validate-every 4",
    "copy_curriculum": "--validate-every 4 --lags 0 1 --digits 2 --threshold 0.0 --over 5 --chunk 2",
    "copy_curriculum-digits": "--task digits --validate-every 4 --most-digits 3 --threshold 0.0 --over 5 --chunk 2",
    "copy_curriculum-lru": "--preset lru --unroll 6 --chunk 2 --bits 9 --width 5 --mlp 4",
    "copy_curriculum-gru": "--preset gru --decay constant --unroll 6 --chunk 2 --bits 9",
    "copy_stream": "--unroll 6 --chunk 2 --digits 1 --delay 2 --width 5 --mlp 4",
    "copy_stream-adding": "--task adding --unroll 6 --chunk 2 --length 5 --width 5 --val-steps 9 --validate-every 4",
    "copy_stream-anbn": "--task anbn --unroll 6 --chunk 2 --most 3 --width 5 --mlp 4",
    "integrator": "--time 8 --validate-every 4 --decay constant",
    "mnist_1d": "--taps 3 --width 4 --mlp 0 --validate-every 4 --decay constant --warmup 0",
    "vowels": "--data vowels --validate-every 4 --decay constant",
    "chorales": "--data chorales --width 5 --mlp 4 --validate-every 4 --decay constant",
    "digits": "--data digits.csv.gz --validate-every 4 --decay constant --time 5",
    "shd": "--data shd_train.h5 --validate-every 4 --time 6 --dt 200 --pool 100 --neuron alif",
    "cogtask": "--task ImmediateDirectionClassification --dt 50 --val-trials 8 --validate-every 4",
}

TIERS = {
    "copy_lru": pytest.mark.quick,
    "copy_stream": pytest.mark.full,
    "vowels": pytest.mark.full,
    "chorales": pytest.mark.full,
    "shd": pytest.mark.full,
}
"""A recipe of each kind of data; the other recipes, tasks and presets are long."""


STANDS_IN = """
import numpy as np

def get_dataset_args():
    return 5000

def make_dataset(count):
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=count)
    x = np.sin(np.arange(40) * (1 + y[:, None] / 5)) + 0.1 * rng.normal(size=(count, 40))
    return {"x": x[:4000], "y": y[:4000], "x_test": x[4000:], "y_test": y[4000:]}
"""
"""``mnist1d.data``, with sines instead of digits."""


def write_vowels(folder):
    """Files in the format of the Japanese vowels: 12 features of 7 to 29 frames, which tell the speaker."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, count in (("TRAIN", 45), ("TEST", 9)):
        lines = ["#made up", "@dimensions 12", "@data"]
        for i in range(count):
            series = i % 9 + 0.1 * rng.normal(size=(12, rng.integers(7, 30)))
            lines.append(":".join([*(",".join(f"{value:.4f}" for value in one) for one in series), str(i % 9 + 1)]))
        (folder / f"JapaneseVowels_{part}.ts").write_text("\n".join(lines) + "\n")


def write_digits(path):
    """A file in the format of scikit-learn's digits: 64 values from 0 to 16, which tell the digit."""
    rng = np.random.default_rng(0)
    digit = np.arange(60) % 10
    pixels = np.clip(rng.integers(0, 5, (60, 64)) + 12 * (np.arange(64) % 10 == digit[:, None]), 0, 16)
    path.write_bytes(gzip.compress("\n".join(",".join(map(str, row)) for row in np.c_[pixels, digit]).encode()))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """`call("copy_lru", "--lr", 1)` -> (exit code, stdout, stderr), in an empty directory."""
    (tmp_path / "mnist1d").mkdir()
    (tmp_path / "mnist1d" / "__init__.py").touch()
    (tmp_path / "mnist1d" / "data.py").write_text(STANDS_IN)
    monkeypatch.syspath_prepend(tmp_path)
    write_vowels(tmp_path / "vowels")
    write_chorales(tmp_path / "chorales")
    write_digits(tmp_path / "digits.csv.gz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXTRAIN_TRACEBACK", raising=False)

    def run(name, *argv):
        recipe = load_recipe(RECIPES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [f"{name}.py"])
        options = {"presets": getattr(recipe, "PRESETS", None), "chance": getattr(recipe, "CHANCE", None)}
        code = jaxtrain.cli.main(recipe.Config, recipe.make, argv=[*map(str, argv)], **options)
        return code, *capsys.readouterr()

    return run


def rows(run_dir):
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    timed = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(timed)} for line in lines]


@pytest.mark.parametrize(
    "which",
    [pytest.param(which, marks=TIERS.get(which, pytest.mark.long)) for which in TINY],
)
def test_a_run_and_its_second_half(call, which):
    name = which.partition("-")[0]
    if name == "shd":
        pytest.importorskip("h5py", reason="the extra dev is not installed")
        write_spikes("shd_train.h5")
    argv = [*QUICK, *TINY[which].split()]
    code, out, err = call(name, *argv, "--max-steps", 12, "--run-dir", "whole")
    assert (code, err) == (0, ""), err
    assert "at step 12" in out and "strategy drtrl" in out
    record = rows("whole")
    assert record[-1]["step"] == 12 and record[-1]["grad_norm"] >= 0 and record[0]["train/loss"] > 0
    assert call(name, *argv, "--max-steps", 8, "--run-dir", "parts")[0] == 0
    code, out, err = call(name, "--run-dir", "parts", "--resume", "last", "--max-steps", 12, "--no-progress")
    assert (code, err) == (0, ""), err
    assert rows("parts") == record
    digest = lambda path: json.loads((Path(path) / "result.json").read_text())["digest"]  # noqa: E731
    assert digest("parts") == digest("whole")
    if "curriculum" in which:
        task = [row for row in record if any(tag.startswith("task/") for tag in row)]
        stages = {json.dumps({k: v for k, v in row.items() if k.startswith("task/")}) for row in task}
        assert len(stages) >= 2, "the task went on"


def test_the_streams_say_when_they_are_given_a_rule_that_forgets(call):
    for name in ("copy_stream", "copy_curriculum"):
        preset = [] if name == "copy_stream" else ["--preset", "lru"]
        code, _, err = call(name, *QUICK, *STREAM, *preset, "--strategy", "bptt", "--run-dir", "x")
        assert code == 2 and err == (
            "error: --strategy bptt starts from fresh states with every segment of the stream; use tbptt instead\n"
        )


def test_update_every_of_a_stream(call):
    recipe = load_recipe(RECIPES / "copy_stream.py")
    made = lambda **options: recipe.make(recipe.Config(**options))[0].strategy  # noqa: E731
    assert made() == jaxtrain.DRTRL(update_every=1, stateful=True)
    assert made(strategy_fields={"window": 5}) == jaxtrain.DRTRL(window=5, update_every=5, stateful=True)
    given = {"update_every": 4, "window": 2}
    assert made(strategy_fields=given) == jaxtrain.DRTRL(window=2, update_every=4, stateful=True)


@pytest.mark.full
def test_an_lru_gets_its_poles_by_the_lag(call):
    recipe = load_recipe(RECIPES / "copy_lru.py")

    def radii(**options):
        fit, module, data = recipe.make(recipe.Config(hidden=200, width=4, **options))
        from jaxtrain.checkpoint.load import build_each

        build_each(module, (0,), several=False, resumed=False)
        found = {name: np.asarray(jax.tree.leaves(state.value)[0]) for name, state in parameters(module.model).items()}
        radius = np.exp(-np.exp(found["rnn.layers.0.nu_log"]))
        return radius.min(), radius.max()

    assert radii(time_lag=50)[0] > 0.98 and radii(time_lag=50)[1] < 0.999
    assert radii(time_lag=5000)[0] > 0.9995
    assert radii(time_lag=50, r_min=0.5, r_max=0.6)[1] < 0.6


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("copy_lru", "--hidden 0", "--hidden 0: expected a whole number, 1 or more"),
        ("copy_lru", "--lr 0", "--lr 0.0: expected a positive number"),
        ("copy_lru", "--pole-rate -1", "--pole-rate -1.0: expected a positive number"),
        ("copy_lru", "--stop-at 99", "--stop-at 99: expected a part of 1, as 0.99 for 99 %, or none"),
        ("copy_lru", "--preset short", "unknown preset 'short'; this recipe has none"),
        ("copy_lru", "--cell gru --r-min 0.5", "--r-min sets an LRU's poles and has no effect with --cell gru"),
        ("copy_stream", "--warmup 20000", "--warmup 20000: expected a whole number below the 20000 updates of"),
        ("copy_lru", "--weight-decay -1", "--weight-decay -1.0: expected 0 or more"),
        ("copy_lru", "--warmup 9 --max-steps 9", "--warmup 9: expected a whole number below --max-steps 9"),
        ("copy_lru", "--warmup 1.5", "--warmup 1.5: expected a whole number below --max-steps 400, or a fraction"),
        ("copy_lru", "--batch-size 0", "--batch-size 0: expected a whole number, 1 or more"),
        ("copy_lru", "--validate-every soon", "--validate-every soon"),
        ("copy_lru", "--chrono 20", "cell 'lru' has no gates and no recurrent matrix, so chrono does not apply"),
        ("copy_curriculum", "--over 0", "--over 0: expected a whole number, 1 or more"),
        ("copy_stream", "--unroll 0", "--unroll 0: expected a whole number, 1 or more"),
        ("mnist_1d", "--taps 0", "--taps 0: expected a whole number, 1 or more"),
        ("vowels", "--offset -1", "--offset -1.0: expected 0 or more"),
        (
            "vowels",
            "--data nowhere",
            "--data: nowhere/JapaneseVowels_TRAIN.ts cannot be read: No such file or directory",
        ),
        ("digits", "--time 0", "--time 0: expected a whole number, 1 or more"),
        ("digits", "--data nowhere", "--data: nowhere cannot be read: No such file or directory"),
        (
            "digits",
            "--data vowels/JapaneseVowels_TRAIN.ts",
            "JapaneseVowels_TRAIN.ts cannot be read: Not a gzipped file",
        ),
        ("digits", "--pole-rate 0.1", "--pole-rate sets an LRU's poles and has no effect in this network, which has"),
        ("shd", "--dt 0", "--dt 0.0: expected a positive number of milliseconds"),
        ("shd", "--tau-a 90", "--tau-a 90.0: lif neurons have no threshold that adapts; add --neuron alif"),
        ("mnist_1d", "--pole-rate 0.1", "--pole-rate sets an LRU's poles and has no effect with --cell mini_gru"),
        ("integrator", "--time 0", "--time 0: expected a whole number, 1 or more"),
        ("integrator", "--cell lru --r-min 0.9 --r-max 0.8", "LRU: r_min=0.9, r_max=0.8; expected 0 <= r_min"),
    ],
)
def test_a_mistake_is_one_line(call, name, argv, said):
    code, _, err = call(name, *argv.split(), "--no-progress")
    assert code in (1, 2) and said in err and len(err.splitlines()) == 1, err


SHORT = [
    {"lr": 1e-2},
    {"decay": "constant"},
    {"weight_decay": 0.5},
    {"learned_state": True},
    {"width": 5, "nonlinear": True},
    {"layers": 2},
    {"cell": "lru", "pole_rate": 1e-3},
]
OPTIONS = [
    *SHORT,
    {"warmup": 2},
    {"clip": 0.01},
    {"chrono": 20.0},
    {"orthogonal": True},
    {"width": 5},
    {"mlp": 5},
    {"cell": "lru"},
    {"cell": "lru", "r_min": 0.1},
    {"cell": "lru", "max_phase": 0.1},
]


@pytest.mark.full
@pytest.mark.parametrize("options", [*SHORT, *longer(*OPTIONS[len(SHORT) :])], ids=str)
def test_every_option_has_an_effect(options):
    without = {key: value for key, value in options.items() if key == "cell" and len(options) > 1}
    without |= {"width": 5} if "nonlinear" in options else {}
    assert digest_of(**options) != digest_of(**without)


@pytest.mark.long
@pytest.mark.parametrize("options", [{"width": 5, "mlp": 5, "layers": 2}, *longer(*OPTIONS)], ids=str)
def test_the_same_options_have_the_same_effect(options):
    assert trained(**options) == trained(**options)


def trained(**changes):
    """The digest of a small run."""
    recipe = load_recipe(RECIPES / "copy_gru.py")
    # The last of three steps: a schedule and weight decay show in what came before.
    small = dict(strategy="bptt", hidden=6, batch_size=4, time_lag=3, digits=2, max_steps=3, validate_every=None)
    fit, module, data = recipe.make(recipe.Config(**small, **changes))
    return fit.run(module, data).digest


digest_of = cache(trained)


@pytest.mark.long
@pytest.mark.parametrize("name,sizes", [
    ("copy_gru", dict(hidden=6, batch_size=4, time_lag=3, digits=2)),
    *longer(("copy_stream", dict(hidden=6, width=5, mlp=4, batch_size=4, unroll=6))),
])  # fmt: skip
def test_every_rule_begins_with_the_same_values_and_batches(name, sizes):
    recipe, begun = load_recipe(RECIPES / f"{name}.py"), []

    class Look(jaxtrain.Callback):
        def on_fit_start(self, run):
            begun.append(jax.tree.leaves(run.params()))

    for strategy in ("drtrl", "pp_prop", "readout_only", "tbptt"):
        fields = {"window": 2} if strategy == "tbptt" else {}
        config = recipe.Config(strategy=strategy, strategy_fields=fields, max_steps=1, validate_every=None, **sizes)
        fit, module, data = recipe.make(config)
        fit.callbacks = Callbacks([*fit.callbacks, Look()])
        fit.run(module, data)
        source = data.train_data()
        begun[-1] += jax.tree.leaves(next(iter(source)) if name == "copy_stream" else source.batch(0))
    assert len(begun) == 4
    for other in begun[1:]:
        for ours, theirs in zip(begun[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
def test_an_lru_solves_the_copying_task(call):
    """With as many units as learning needs, a random recurrence falls behind, also in ten times the steps."""
    solve = lambda *argv: call("copy_lru", "--no-progress", "--seed", 100, *argv)[0]  # noqa: E731
    outcome = lambda path: json.loads(Path(path, "result.json").read_text())  # noqa: E731
    assert solve("--run-dir", "run") == 0
    assert outcome("run")["status"] == "stopped" and outcome("run")["step"] <= 200
    assert outcome("run")["val"]["accuracy"] >= 0.99
    assert solve("--strategy", "bptt", "--run-dir", "exact") == 0
    assert outcome("exact")["step"] == outcome("run")["step"], "D-RTRL's gradient is that of BPTT here"
    control = ["--strategy", "readout_only", "--max-steps", 10 * outcome("run")["step"]]
    assert solve(*control, "--run-dir", "control") == 0
    assert outcome("control")["val"]["accuracy"] < 0.98


REAL = {
    # The largest shortfall of five seeds in docs/results/quick.md, and a margin.
    "digits": ("sklearn", "scikit-learn", ["--strategy", "pp_prop"], 0.9),
    "mnist_1d": ("mnist1d", "mnist1d", [], 0.9),
    "vowels": ("aeon", "aeon", ["--all-data"], 0.9),
}


@pytest.mark.long
@pytest.mark.parametrize("name", REAL)
def test_real_data_is_learned_by_an_online_rule(name, tmp_path, capsys):
    """Without the fixture ``call``, whose stand-ins hide the packages."""
    package, installed, options, least = REAL[name]
    if find_spec(package) is None:
        message = f"the package {installed} is not installed: install it, or set SKIP_SYSTEM=1"
        (pytest.skip if os.environ.get("SKIP_SYSTEM") == "1" else pytest.fail)(message)
    recipe = load_recipe(RECIPES / f"{name}.py")
    argv = [*options, "--seed", "100", "--test", "--no-progress", "--run-dir", str(tmp_path / "run")]
    assert jaxtrain.cli.main(recipe.Config, recipe.make, argv=argv) == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["test"]["accuracy"] >= least


@pytest.mark.long
def test_bits_grow_longer(call):
    argv = ["--preset", "lru", "--no-progress", "--seed", "100", "--max-steps", "600", "--run-dir", "run"]
    assert call("copy_curriculum", *argv)[0] == 0
    assert rows("run")[-1]["task/length"] >= 6


@pytest.mark.long
def test_an_integrator_is_learned(call):
    assert call("integrator", *["--no-progress", "--seed", "100", "--max-steps", "400", "--run-dir", "run"])[0] == 0
    assert json.loads(Path("run/result.json").read_text())["val"]["loss"] < 0.05
