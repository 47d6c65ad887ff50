"""Reads what earlier releases wrote: schema 1 of the metadata, written by jaxtrain 0.1.0."""

from __future__ import annotations

from typing import Any

SCHEMA = 2
"""Version of the metadata that a checkpoint holds."""
READABLE = (1, SCHEMA)
_RENAMED = {"feed": "position", "over": "ending"}
_KEPT = {"last": "keep_last", "best": "keep_best"}


def upgrade_config(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return config.json as this release would have written it; None if there is none."""
    if config is None:
        return None
    config = _with_stateful(config)
    if isinstance(kept := config["fit"].get("checkpoint"), dict):
        kept = {_KEPT.get(key, key): value for key, value in kept.items()}
        config["fit"] = {**config["fit"], "checkpoint": kept}
    return config


def _with_stateful(config: dict[str, Any]) -> dict[str, Any]:
    strategy = dict(config["strategy"])
    if "carry" in strategy:
        strategy["stateful"] = strategy.pop("carry") == "carry"
    return {**config, "strategy": strategy}


def upgrade_metadata(meta: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's metadata as this release would have written it."""
    if meta["schema"] == SCHEMA:
        return meta
    meta = {_RENAMED.get(key, key): value for key, value in _with_stateful(meta).items()}
    stage = "validation" if meta.pop("cut") else "between steps"
    recorder = dict(meta["recorder"])
    return {**meta, "schema": SCHEMA, "stage": stage, "recorder": {**recorder, "entries": recorder.pop("rows")}}
