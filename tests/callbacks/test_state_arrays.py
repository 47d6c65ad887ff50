"""Callbacks whose state holds arrays."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.callbacks.state_arrays import joined, split
from jaxtrain.checkpoint.run_directory import read_checkpoint
from tests.small import At, Linear, Lines, kill, leaves, same

PAGE = (Path(__file__).parents[2] / "docs/recording.md").read_text()
EXAMPLE: dict = {"jaxtrain": jt, "jax": jax}
exec(next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Average" in block), EXAMPLE)
Average = EXAMPLE["Average"]


def test_arrays_of_any_kind_are_restored_bit_for_bit():
    nan = np.array([np.nan, -0.0, 1e-45], np.float32)
    state = {"a": {"b": [nan, (np.int8(3) + np.zeros((0, 2), np.int8),)]}, "n": 1, "__array__": "text", "empty": {}}
    plain, arrays = split({"Own.0": state, "Other.0": {"x": np.array(2.0)}})
    assert [*arrays] == ["callbacks/Own.0/0", "callbacks/Own.0/1", "callbacks/Other.0/0"]
    back = joined(plain, arrays)
    assert back["Own.0"]["a"]["b"][0].tobytes() == nan.tobytes() and back["Own.0"]["a"]["b"][0] is not nan
    assert back["Own.0"]["a"]["b"][1][0].shape == (0, 2) and back["Own.0"]["__array__"] == "text"
    assert back["Other.0"]["x"].shape == () and back["Other.0"]["x"].dtype == np.float64


@pytest.mark.parametrize("seeds", [None, 2])
def test_a_moving_average_survives_a_kill_bit_for_bit(tmp_path, seeds):
    def run(name, steps=(), resume="last"):
        average = Average()
        fit = jt.Fit("bptt", max_steps=12, chunk=2, seeds=seeds, run_dir=tmp_path / name, loggers=(),
                     callbacks=[average, At("on_chunk_end", [*steps], kill)])  # fmt: skip
        result = fit.run(Linear(), Lines(), resume=resume, batch_first=False)
        return result, average.average

    whole, truth = run("whole")
    for _ in range(3):
        stopped, _ = run("killed", steps=(4, 8))
    assert stopped.status == "finished" and stopped.digest == whole.digest
    average = run("killed")[1]
    saved = [read_checkpoint(tmp_path / name) for name in ("whole", "killed")]
    for name, array in truth.items():
        assert array.tobytes() == average[name].tobytes(), name
    assert same(saved[0].train, saved[1].train) and saved[0].meta["callbacks"] == saved[1].meta["callbacks"]
    assert saved[0].train["callbacks/Average.0/0"].tobytes() in (truth["b"].tobytes(), truth["w"].tobytes())
    module = jt.load(tmp_path / "killed", Linear(), seed=None if seeds is None else 1)
    values = read_checkpoint(tmp_path / "whole").params
    assert same(leaves(module), {name: leaf if seeds is None else leaf[1] for name, leaf in values.items()})


def test_what_is_neither_json_nor_an_array_of_numbers_is_refused_and_the_advice_works():
    class Holds(jt.Callback):
        def state(self):
            return {"a": self.value}

    holds = Holds()
    callbacks = Callbacks([holds])
    for value, said in (
        (np.float32(1), "the state of callback Holds.0 is not JSON .*give plain numbers, text, lists, dicts and numpy"),
        (jax.numpy.zeros(2), "not JSON"),
        (np.array(["text"]), "leaf 'callbacks/Holds.0/0' of the state of callback Holds.0 is <U4"),
    ):
        holds.value = value
        with pytest.raises(TypeError, match=said):
            callbacks.states()
    holds.value = np.zeros(2)
    assert callbacks.states()["Holds.0"]["a"].shape == (2,)
    Holds.rank = "record"
    assert Callbacks([holds]).states() == {}


def test_every_array_has_a_digest(tmp_path):
    fit = jt.Fit("bptt", max_steps=2, run_dir=tmp_path, loggers=(), callbacks=[Average()])
    fit.run(Linear(), Lines(), batch_first=False)
    saved = read_checkpoint(tmp_path)
    assert {"callbacks/Average.0/0", "callbacks/Average.0/1"} <= saved.meta["digests"]["train"].keys()
