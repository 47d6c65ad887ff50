"""Where two JSON values differ, and what several processes must have alike before they train together."""

from __future__ import annotations

from typing import Any

from . import processes
from .files import jsonable


def first_difference(saved: Any, live: Any, where: str = "",
                     which: tuple[str, str] = ("in the checkpoint", "now")) -> str | None:  # fmt: skip
    """The first entry in which two JSON values differ, as ``name: 1 in the checkpoint, 2 now``."""
    if isinstance(saved, dict) and isinstance(live, dict):
        # A name comes first, then what both have: that another rule has other fields says less than its name.
        for key in sorted({*saved, *live}, key=lambda key: (key != "name", not (key in saved and key in live), key)):
            name = f"{where}.{key}" if where else str(key)
            difference = first_difference(saved.get(key), live.get(key), name, which)
            if difference:
                return difference
        return None
    return None if saved == live else f"{where}: {saved!r} {which[0]}, {live!r} {which[1]}"


def refuse_unlike(own: dict[str, Any], advice: str = "start all with the same options") -> None:
    """Raise ValueError in every process where what one of them gives here differs from the first one's."""
    own = jsonable(own)
    for number, other in enumerate(processes.to_first(own)):
        difference = first_difference(own, other, which=("in process 0", f"in process {number}"))
        if difference:
            raise ValueError(f"the processes disagree: {difference}; {advice}")
    processes.from_first()


def refuse_unlike_runs(record: dict[str, Any], callbacks: Any, program: Any, feed: Any, val: Any) -> None:
    """Raise ValueError where several processes would not train the same: what is recorded of the run, its data, and the
    values that it begins with. (A bar or a log may be the first one's alone.)"""
    if processes.count() == 1:
        return
    from .digests import digest

    watching = [name for name, callback in callbacks.keys().items() if callback.rank != "record"]
    own = {key: value for key, value in record.items() if key != "command"}
    params, train = program.signature()
    shapes = [] if val is None else [_shapes(batch) for batch in val.examples]
    refuse_unlike(
        {
            **own,
            "fit": {**own["fit"], "callbacks": watching},
            "model": params,
            "optimizer": train,
            "data": {**own["data"], "epoch": feed.length, "first batch": digest(_leaves(program.example))},
            "val data": {"batches": None if val is None else val.length, "shapes": shapes},
        }
    )
    params, train = program.state()  # which may be gathered from all: not before their shapes agree
    refuse_unlike({"initial values": digest({**params, **train})})


def _leaves(batch: Any) -> dict[str, Any]:
    import jax  # not before it is needed: the command line is to be quick

    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}


def _shapes(batch: Any) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _leaves(batch).items()}
