"""The state of a user's source (``state_dict``) as JSON, for checkpoints."""

import base64
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DataError


def to_json(value: Any, where: str) -> Any:
    """Convert a source's state to JSON. Types that JSON lacks become ``{"~kind": ...}``.

    Args:
        value: The state: numbers, text, bytes, arrays, and lists, tuples and dicts of them.
        where: What the value is, for messages.

    Raises:
        DataError: The state contains another type.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {"~bytes": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        items = [to_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"~tuple": items}
    if isinstance(value, Mapping):
        items = [(to_json(k, where), to_json(v, f"{where}[{k!r}]")) for k, v in value.items()]
        if all(isinstance(k, str) and not k.startswith("~") for k, _ in items):
            return dict(items)
        return {"~dict": [list(item) for item in items]}
    torch = sys.modules.get("torch")  # a torch tensor exists only if torch is imported
    if torch is not None and isinstance(value, torch.Tensor):
        return {"~tensor": to_json(value.numpy(), where)}
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        data = base64.b64encode(value.tobytes()).decode()
        return {"~array": data, "dtype": value.dtype.str, "shape": [*value.shape]}
    raise DataError(f"{where} is a {type(value).__name__} and cannot be saved; expected numbers, text, bytes or arrays")


def from_json(value: Any) -> Any:
    """The inverse of ``to_json``."""
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "~bytes" in value:
        return base64.b64decode(value["~bytes"])
    if "~tuple" in value:
        return tuple(from_json(v) for v in value["~tuple"])
    if "~dict" in value:
        return {from_json(k): from_json(v) for k, v in value["~dict"]}
    if "~tensor" in value:
        import torch  # pyright: ignore[reportMissingImports]

        return torch.from_numpy(from_json(value["~tensor"]))
    if "~array" in value:
        flat = np.frombuffer(base64.b64decode(value["~array"]), np.dtype(value["dtype"]))
        return flat.reshape(value["shape"]).copy()
    return {k: from_json(v) for k, v in value.items()}
