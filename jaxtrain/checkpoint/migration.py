"""Reads what earlier releases wrote: schema 1, of jaxtrain 0.1.0. Imports no JAX."""

from __future__ import annotations

from typing import Any

SCHEMA = 2
"""Version of the metadata that a checkpoint holds."""
READABLE = (1, SCHEMA)
_RENAMED = {"feed": "position", "over": "ending"}
_KEPT = {"last": "keep_last", "best": "keep_best"}
_WITHOUT_ENGINE = ("pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "uoro", "three_factor", "dni")
_WITHOUT_MEMORY = ("uoro", "three_factor", "dni")
_REVERSE = {"engine": "trace", "segment": "auto", "readout_memory": False}
"""Strategies that had only braintrace's trace, those of them without ``readout_memory``, and the values of the fields
that choose another engine."""
_STREAM = {"lanes": "batch_size", "piece": "unroll"}


def upgrade_config(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return config.json as this release would have written it; None if there is none."""
    if config is None:
        return None
    config = _upgraded(config)
    if isinstance(kept := config["fit"].get("checkpoint"), dict):
        kept = {_KEPT.get(key, key): value for key, value in kept.items()}
        config["fit"] = {**config["fit"], "checkpoint": kept}
    return config


def upgrade_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's options as this release would have written them."""
    options = {"unroll" if name == "piece" else name: value for name, value in options.items()}
    fields = options.get("strategy_fields")
    return {**options, "strategy_fields": _stateful(fields)} if isinstance(fields, dict) else options


def upgrade_metadata(meta: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's metadata as this release would have written it."""
    if meta["schema"] == SCHEMA:
        return meta
    meta = {_RENAMED.get(key, key): value for key, value in _upgraded(meta).items()}
    stage = "validation" if meta.pop("cut") else "between steps"
    recorder = dict(meta["recorder"])
    recorder |= {"entries": [upgrade_names(entry) for entry in recorder.pop("rows")]}
    recorder |= {key: upgrade_names(recorder[key]) for key in ("sums", "logged")}
    named = {key: upgrade_names(meta[key]) for key in ("metrics", "optimizer")}
    return {**meta, **named, "schema": SCHEMA, "stage": stage, "recorder": recorder}


def upgrade_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by name, with the prefix of single seeds that this release uses."""
    old, new = "lanes/", "seeds/"
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in values.items()}


def as_written(config: dict[str, Any]) -> dict[str, Any]:
    """Return the strategy and data of config.json as schema 1 wrote them, whichever release wrote the file last."""
    strategy, data = dict(config["strategy"]), dict(config["data"])
    if "stateful" in strategy:
        strategy["carry"] = "carry" if strategy.pop("stateful") else "reset"
    if strategy["name"] in _WITHOUT_ENGINE:
        strategy = {name: value for name, value in strategy.items() if name not in _REVERSE}
    if data.get("class") == "StreamDataModule":
        back = {new: old for old, new in _STREAM.items()}
        data = {back.get(name, name): value for name, value in data.items()}
    return {**config, "strategy": strategy, "data": data}


def _upgraded(config: dict[str, Any]) -> dict[str, Any]:
    data = config["data"]
    if data.get("class") == "StreamDataModule":
        data = {_STREAM.get(name, name): value for name, value in data.items()}
    strategy = _stateful(config["strategy"])
    if strategy["name"] in _WITHOUT_ENGINE:
        strategy = {**_REVERSE, **strategy}
    if strategy["name"] in _WITHOUT_MEMORY:
        del strategy["readout_memory"]
    return {**config, "strategy": strategy, "data": data}


def _stateful(fields: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in fields.items() if name != "carry"}
    return {**kept, "stateful": fields["carry"] == "carry"} if "carry" in fields else kept
