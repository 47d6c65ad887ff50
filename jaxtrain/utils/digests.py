"""Digests of arrays and JSON, copies of arrays on the host, and the metadata of a checkpoint."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..distributed import processes

RESERVED = {"digest", "digests", "store"}  # keys of the metadata that Store writes
# Dtypes that TensorStore can write. It would reject others only after save() has returned.
DTYPES = re.compile(
    r"bool|int[24]|u?int(8|16|32|64)|b?float16|float(32|64)|complex(64|128)|float4_e2m1fn|float8_(?!e4m3$)\w+"
)


def digest(arrays: Mapping[str, Any]) -> str:
    """One sha256 over the names and leaf digests (dtype, shape, bytes) of a flat dict of arrays, in sorted order."""
    return json_digest({name: leaf_digest(np.asarray(processes.allgather(array))) for name, array in arrays.items()})


def host(item: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copy arrays to the host, so that buffers may be donated or overwritten. Arrays that span processes are gathered.

    Raises:
        TypeError: A leaf has no name or a dtype that cannot be written.
    """
    for leaf in arrays.values():
        if getattr(leaf, "is_fully_addressable", False):
            leaf.copy_to_host_async()
    host: dict[str, np.ndarray] = {}
    for name, leaf in arrays.items():
        kind = getattr(leaf, "dtype", None)
        is_key = kind is not None and not isinstance(kind, np.dtype)  # typed PRNG keys of JAX
        array = np.array(None if is_key else processes.allgather(leaf), order="C")
        if not isinstance(name, str) or not DTYPES.fullmatch(array.dtype.name) or not array.dtype.isnative:
            given = f"checkpoint: leaf {name!r} of {item} is {kind or type(leaf).__name__}"
            raise TypeError(f"{given}; expected numbers under a name (of a PRNG key: jax.random.key_data(key))")
        host[name] = array
    return host


def describe(step: int, items: dict[str, Any], meta: Mapping[str, Any], score: float | None) -> dict[str, Any]:
    """The metadata as written to disk: the caller's, the dtype and shape of each leaf, and the digests.

    Raises:
        TypeError: ``meta`` is not JSON.
        ValueError: ``meta`` uses a reserved key.
    """
    try:
        record = json.loads(json.dumps(dict(meta)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"checkpoint: the metadata of step {step} is not JSON: {error}") from None
    if taken := RESERVED & record.keys():
        raise ValueError(f"checkpoint: the metadata of step {step} has keys that the store writes: {sorted(taken)}")
    record["store"] = {"step": step, "score": score}
    record["digests"] = {}
    for item, leaves in items.items():
        record["store"][item] = {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in leaves.items()}
        record["digests"][item] = {name: leaf_digest(leaf) for name, leaf in leaves.items()}
    return {**record, "digest": json_digest(record)}


def leaf_digest(leaf: np.ndarray) -> str:
    sha = hashlib.sha256(f"{leaf.dtype.name}{list(leaf.shape)}".encode())
    sha.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
