"""Several devices: in a process of its own, since JAX is told how many before it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxtrain as jt

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
                   "weigh_differently or refusals", XLA_FLAGS="--xla_force_host_platform_device_count=4")  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("devices", [0, -1, True, 1.0, "some", None, [2]])
def test_what_is_no_number_of_devices(devices):
    with pytest.raises(ValueError, match="Fit\\(devices=.*expected a whole number, 1 or more, or 'all'"):
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
