"""Runs in the format of jaxtrain 0.1.0, written by this release and rewritten: they resume, also after a failure."""

import json

import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.checkpoint.migration import upgrade_config, upgrade_metadata, upgrade_options
from jaxtrain.checkpoint.run_directory import run_key
from jaxtrain.strategies import DNI, UORO, PPProp, ThreeFactor
from jaxtrain.utils.digests import json_digest
from tests.small import At, Linear, lines

STRATEGY = jt.TBPTT(window=3, stateful=True)
REVERSE = ("engine", "segment", "readout_memory")


def fit(run_dir, steps, **options):
    kept = jt.Checkpoint(every=2, monitor=None, keep_last=9)
    more = options.pop("more", [])
    return jt.Fit(
        options.pop("strategy", STRATEGY), max_steps=steps, chunk=2, log_every=2, run_dir=run_dir, progress=False,
        callbacks=[kept, *more], **options,
    )  # fmt: skip


def old_names(values):
    return {name.replace("seeds/", "lanes/"): value for name, value in values.items()}


def as_in_0_1_0(run_dir):
    """Rewrite config.json and all metadata in schema 1."""
    path = run_dir / "config.json"
    config = json.loads(path.read_text())

    def with_carry(strategy):
        kept = {name: value for name, value in strategy.items() if name != "stateful"}
        return {**kept, "carry": "carry" if strategy["stateful"] else "reset"} if "stateful" in strategy else kept

    config["strategy"] = with_carry(config["strategy"])
    path.write_text(json.dumps(config))
    key = json_digest(
        {"seeds": [config["fit"]["seed"], config["fit"]["seeds"]], **{n: config[n] for n in ("strategy", "data")}}
    )
    for path in run_dir.glob("checkpoints/*/meta/metadata"):
        meta = json.loads(path.read_text())
        recorder = meta["recorder"]
        meta |= {
            "schema": 1, "strategy": with_carry(meta["strategy"]), "feed": meta.pop("position"), "run": key,
            "over": meta.pop("ending"), "cut": meta.pop("stage") == "validation", "metrics": old_names(meta["metrics"]),
            "recorder": {"sums": old_names(recorder["sums"]), "logged": {}, "rows": recorder["entries"]},
        }  # fmt: skip
        meta["digest"] = json_digest({name: value for name, value in meta.items() if name != "digest"})
        path.write_text(json.dumps(meta))


def stop(run):
    raise RuntimeError("died")


@pytest.mark.full
def test_a_stateful_run_resumes_also_after_a_failure_that_left_a_new_config(tmp_path):
    whole = fit(tmp_path / "whole", 8).run(Linear(), lines())
    fit(tmp_path / "run", 4).run(Linear(), lines())
    as_in_0_1_0(tmp_path / "run")
    with pytest.raises(RuntimeError, match="died"):
        fit(tmp_path / "run", 8, more=[At("on_chunk_start", 4, stop)]).run(Linear(), lines(), resume="last")
    assert "stateful" in json.loads((tmp_path / "run/config.json").read_text())["strategy"], "the file is new by now"
    result = fit(tmp_path / "run", 8).run(Linear(), lines(), resume="last")
    assert result.digest == whole.digest
    for step in (2, 4, 8):  # the old checkpoints beside the new ones
        jt.load(tmp_path / f"run/checkpoints/{step}", Linear())


def test_another_strategy_is_another_run():
    config = {"fit": {"seed": 0}, "data": {}, "strategy": {"name": "tbptt", "stateful": True}}
    reset = {**config, "strategy": {"name": "tbptt", "carry": "reset"}}
    carried = {**config, "strategy": {"name": "tbptt", "carry": "carry"}}
    assert run_key(config) == run_key(carried) != run_key(reset)
    assert run_key(config, 1) == run_key(carried, 1) != run_key(reset, 1)


@pytest.mark.parametrize(
    "strategy",
    [PPProp(engine="trace"), UORO(engine="trace"), ThreeFactor(engine="trace"), DNI(engine="trace", fit_epochs=1)],
    ids=lambda strategy: strategy.name,
)
def test_a_rule_that_had_only_a_trace_keeps_it(strategy):
    """The fields of the reverse engine are those of a trace; a run has the key that 0.1.0 gave it."""
    new = {"fit": {"seed": 0}, "data": {}, "strategy": strategy.config()}
    fields = {name: value for name, value in strategy.config().items() if name not in REVERSE and name != "stateful"}
    old = {**new, "strategy": {**fields, "carry": "reset"}}
    assert upgrade_config(old) == new
    assert run_key(new, 1) == run_key(old, 1)


def test_names_of_seeds_streams_and_options():
    data = {"class": "StreamDataModule", "lanes": 4, "piece": 20}
    meta = {
        "schema": 1, "strategy": {"name": "drtrl", "carry": "reset"}, "data": data, "feed": {"n": 3}, "over": None,
        "cut": True, "metrics": {"lanes/val/loss": [1.0], "val/loss": 1.0}, "optimizer": {"lanes/live": "bool[1]"},
        "recorder": {"sums": {"lanes/loss": [[1.0], [1.0]]}, "logged": {}, "rows": [{"step": 1, "lanes/lr": [2.0]}]},
    }  # fmt: skip
    new = upgrade_metadata(meta)
    assert new["strategy"] == {"name": "drtrl", "stateful": False} and new["stage"] == "validation"
    assert new["data"] == {"class": "StreamDataModule", "batch_size": 4, "unroll": 20} and new["position"] == {"n": 3}
    assert [*new["metrics"]] == ["seeds/val/loss", "val/loss"] and [*new["optimizer"]] == ["seeds/live"]
    assert [*new["recorder"]["sums"]] == ["seeds/loss"] and [*new["recorder"]["entries"][0]] == [
        "step",
        "seeds/lr",
    ]
    assert upgrade_metadata(new) == new
    options = {"piece": 5, "lr": 0.1, "strategy_fields": {"carry": "carry", "window": 2}}
    assert upgrade_options(options) == {"unroll": 5, "lr": 0.1, "strategy_fields": {"window": 2, "stateful": True}}


def test_resume_by_path_keeps_the_defaults_of_a_run_directory(tmp_path):
    """``Fit`` without a run directory learns of it from the path."""
    options = dict(chunk=3, validate_every=3, log_every=3, progress=False)
    jt.Fit("bptt", max_steps=6, run_dir=tmp_path / "run", **options).run(Linear(), lines())
    best = json.loads((tmp_path / "run/result.json").read_text())["best"]["step"]
    again = jt.Fit("bptt", max_steps=9, **options)
    again.run(Linear(), lines(), resume=tmp_path / "run/checkpoints/6")
    steps = [int(path.name) for path in (tmp_path / "run/checkpoints").glob("0*")]
    entries = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 9 in steps and entries == [3, 6, 9]
    assert best in steps or json.loads((tmp_path / "run/result.json").read_text())["best"]["step"] in steps
    assert np.isfinite(jt.load(tmp_path / "run", Linear()).model.w.value).all()
