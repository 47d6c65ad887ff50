"""Several devices: in a process of its own, since JAX is told how many before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.load import build_each
from jaxtrain.engine import auto_devices
from tests.kit import forks

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[1]


def process(*command, **env):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )


@pytest.mark.long
def test_on_four_devices():
    flags = "--xla_force_host_platform_device_count=4"
    done = process("-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "on_four_devices.py",
                   XLA_FLAGS=flags)  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def test_two_devices_come_to_what_one_does():
    """The rest, on four, is slow."""
    done = process("-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "on_four_devices.py", "-k",
                   "weigh_differently or refusals or projected or no_means or loss_of_a_sequence",
                   XLA_FLAGS="--xla_force_host_platform_device_count=4")  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("devices", [0, -1, True, 1.0, "some", None, [2]])
def test_what_is_no_number_of_devices(devices):
    with pytest.raises(ValueError, match="Fit\\(devices=.*expected a whole number, 1 or more, 'all' or 'auto'"):
        jt.Fit("bptt", max_steps=1, devices=devices)


@pytest.mark.long
def test_a_recipe_makes_its_devices(tmp_path):
    recipe = [ROOT / "recipes" / "copy_gru.py", "--strategy", "bptt", "--hidden", "4", "--time-lag", "3", "--digits"]
    recipe += ["2", "--max-steps", "2", "--no-progress", "--run-dir", tmp_path, "--warmup", "0"]
    done = process(*recipe, "--batch-size", "4", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert "devices    2, 2 sequences each" in done.stdout + done.stderr
    assert json.loads((tmp_path / "config.json").read_text())["fit"]["devices"] == 2
    done = process(*recipe, "--batch-size", "3", "--devices", "2", "--run-dir", tmp_path / "odd")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert "a batch of 3 sequences does not divide over 2 devices" in line and line.startswith("error: ")
    done = process(*recipe, "--devices", "2", "--run-dir", tmp_path / "few",
                   XLA_FLAGS="--xla_force_host_platform_device_count=1")  # fmt: skip
    assert done.returncode == 2
    assert "error: Fit(devices=2): JAX has 1 on cpu; ask for at most 1" in done.stderr


class Wide(jt.Module):
    """`weights` parameters."""

    def __init__(self, weights):
        self.weights = weights

    def build(self):
        import brainstate

        model: Any = brainstate.nn.Module()
        model.w = brainstate.ParamState(np.zeros(self.weights, np.float32))
        return model


@pytest.mark.parametrize(
    ("sizes", "seeds", "machine", "count", "why"),
    [
        ((64, 100_000), None, (4, 4, "cpu"), 4, "one per core"),
        ((63, 100_000), None, (4, 4, "cpu"), 3, "63 sequences do not divide over 4 cores"),
        ((61, 100_000), None, (4, 4, "cpu"), 1, "61 sequences do not divide over 4 cores"),
        ((64, 46_875), None, (4, 4, "cpu"), 2, "a share of 750,000 multiply-adds per time step is too small"),
        ((64, 31_249), None, (4, 4, "cpu"), 1, "a share of 999,968 multiply-adds per time step is too small"),
        ((64, 31_250), None, (4, 4, "cpu"), 2, "a share of 500,000 multiply-adds per time step is too small"),
        ((64, 100_000), None, (4, 2, "cpu"), 2, "one per core"),
        ((64, 100_000), None, (1, 4, "cpu"), 1, "there is one"),
        ((1, 1_000_000), 6, (4, 4, "cpu"), 3, "6 seeds do not divide over 4 cores"),
        ((64, 100_000), 5, (4, 4, "cpu"), 1, "5 seeds do not divide over 4 cores"),
        ((64, 100_000), None, (4, 8, "gpu"), 1, "one gpu; --devices all uses each"),
    ],
)
def test_what_auto_chooses(monkeypatch, sizes, seeds, machine, count, why):
    batch, weights = sizes
    monkeypatch.setattr(auto_devices, "cores", lambda: machine[0])
    monkeypatch.setattr(auto_devices.jax, "local_device_count", lambda: machine[1])
    monkeypatch.setattr(auto_devices.jax, "default_backend", lambda: machine[2])
    module = Wide(weights)
    build_each(module, (0,), several=False, resumed=False)
    x = np.zeros((3, batch, 1), np.float32)
    assert auto_devices.LEAST_WORK == 1_000_000
    found, reason = auto_devices.choose(module, (x, x), seeds)
    assert found == count and reason.startswith(why), reason


def test_a_resumed_run_keeps_the_number_of_auto(monkeypatch):
    monkeypatch.setattr(auto_devices.jax, "local_device_count", lambda: 2)
    assert auto_devices.again(2) == (2, "as at the start of the run") and auto_devices.again(1)[0] == 1
    with pytest.raises(ValueError, match="was started on 3 devices and JAX has 2 on cpu; set jax_num_cpu_devices=3"):
        auto_devices.again(3)
    monkeypatch.setattr(auto_devices.jax, "default_backend", lambda: "gpu")
    assert auto_devices.again(3)[0] == 2


RECIPE = """
import os, sys
from dataclasses import dataclass
from jaxtrain import cli
from jaxtrain.engine import auto_devices, sharding

count = int(os.environ["CORES"])
sharding.cores = auto_devices.cores = lambda: count
auto_devices.LEAST_WORK = 12  # two of the eight sequences have 18

@dataclass(frozen=True)
class Config(cli.TrainingOptions):
    validate_every: int | str | None = None

def make(config):
    import jaxtrain as jt
    from tests.small import Linear, line, lines

    data = lines(change=lambda step, batch: line(step, batch=8))
    return jt.Fit(config.make_strategy(), **config.fit_options()), Linear(), data

sys.exit(cli.main(Config, make))
"""


def on_cores(count, run_dir, *options):
    """A recipe on a machine that seems to have `count` cores; returns what it printed, config.json and the digest."""
    recipe = run_dir.parent / "recipe.py"
    recipe.write_text(RECIPE)
    command = [sys.executable, recipe, "--run-dir", run_dir, "--no-progress", "--strategy", "bptt", *options]
    env = {**os.environ, "CORES": str(count), "PYTHONPATH": str(ROOT)}
    done = forks.run(command, capture_output=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    read = lambda name: json.loads((run_dir / name).read_text())  # noqa: E731
    return done.stdout + done.stderr, read("config.json"), read("result.json")["digest"]


def test_auto_is_resolved_once_and_a_resume_on_other_cores_is_exact(tmp_path):
    text, config, digest = on_cores(4, tmp_path / "whole", "--max-steps", "6")
    assert "devices    4, 2 sequences each; memory is per device (auto: one per core)" in text
    assert config["fit"]["devices"] == 4 and config["config"]["devices"] == "auto"
    (rule,) = [line for line in text.splitlines() if line.startswith("strategy")]
    on_cores(4, tmp_path / "parts", "--max-steps", "3")
    text, config, resumed = on_cores(1, tmp_path / "parts", "--resume", "last", "--max-steps", "6")
    assert "devices    4, 2 sequences each; memory is per device (auto: as at the start of the run)" in text
    assert config["fit"]["devices"] == 4 and "rounding" not in text
    assert "batching=auto" in rule and rule in text.splitlines(), "the options as they were asked for, in every start"
    assert resumed == digest
    text, config, other = on_cores(1, tmp_path / "one", "--max-steps", "6")
    assert "devices    1 (auto: there is one)" in text and config["fit"]["devices"] == 1
    assert other != digest, "the number of devices shows in the last bits"
