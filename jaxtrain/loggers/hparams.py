"""Converts a run's configuration for TensorBoard's HPARAMS page."""

from __future__ import annotations

import json
import math
from typing import Any


def hparams(config: dict[str, Any]) -> dict[str, bool | float | str]:
    """Flat values for the HPARAMS page, from the content of config.json.

    The keys come from the recipe's config, or from Fit and the data if there is none. They do not depend on the values
    (None becomes "null"; the fields of a strategy become one text), because TensorBoard shows the columns of one run.
    """
    strategy = dict(config.get("strategy") or {})
    flat = {"module": config.get("module"), "strategy": strategy.pop("name", None), "strategy.fields": strategy}
    source = config.get("config") or {"fit": config.get("fit") or {}, "data": config.get("data") or {}}
    return {name: _hparam(value) for name, value in {**flat, **_flatten(source)}.items()}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _hparam(value: Any) -> bool | float | str:
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return json.dumps(value, default=str)
