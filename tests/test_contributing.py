"""The examples of CONTRIBUTING.md work as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxtrain
from jaxtrain.strategies import registry
from tests.small import Linear, Lines

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def example(heading):
    section = TEXT.split(f"### {heading}\n")[1].split("\n### ")[0]
    names = {"__name__": "contributing"}
    exec(compile(re.findall(r"```python\n(.*?)```", section, re.S)[0], heading, "exec"), names)
    return names


@pytest.mark.full
def test_the_rule_trains(monkeypatch):
    rule = example("A learning rule")["Leaky"]
    monkeypatch.setitem(registry.REGISTRY, "leaky", rule)
    result = jaxtrain.Fit("leaky", max_steps=2).run(Recurrent(), [ones(5)], batch_first=False)
    assert result.step == 2 and np.isfinite(result.metrics["train/loss"])
    assert registry.lookup("leaky")(decay=0.5).decay == 0.5


class Recurrent(Linear):
    def build(self):
        return jaxtrain.nn.Network(2, 3, cell="mini_gru", hidden=4)


def ones(time):
    return np.ones((time, 2, 2), "f"), np.ones((time, 2, 3), "f")


def test_the_callback_resumes(tmp_path):
    callback = example("A callback")["LeastLoss"]

    def train(steps, folder):
        data = jaxtrain.DataModule(Lines(), val=[Lines().batch(9)], batch_first=False)
        fit = jaxtrain.Fit("bptt", max_steps=steps, validate_every=1, run_dir=folder, callbacks=[callback()])
        return fit.run(Linear(), data, resume="last")

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "parts")
    parts = train(4, tmp_path / "parts")
    least = [entry["val/least_loss"] for entry in whole.history]
    assert least == sorted(least, reverse=True) and len(least) == 4
    assert parts.digest == whole.digest and parts.metrics["val/least_loss"] == least[-1]


def test_the_data_set_is_a_function_of_seed_split_and_step():
    data = example("A data set")["RunningSum"]
    first, again = data(5, 2).batch(3), data(5, 2).batch(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (data(5, 2, seed=1).batch(3), data(5, 2, split="val").batch(3), data(5, 2).batch(4)):
        assert not np.array_equal(first[0], other[0])
    assert first[1].shape == (5, 2, 1) and first[1][-1] == pytest.approx(first[0].sum(0) / 10, rel=1e-5)
