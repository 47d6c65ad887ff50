"""Exports spiking networks to the Neuromorphic Intermediate Representation (NIR).

NIR describes a network as a graph of differential equations. A model's ``update`` is Python code, so the graph is found
by calling it once with layers that only record which layer receives the output of which.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import brainpy.state
import brainstate
import braintrace
import numpy as np
import saiunit as u

from ..core.module import Module
from ..core.ownership import alone
from ..core.state import attributes_kept, name_of
from ..utils.extras import needed
from ..utils.files import write_atomic
from ..utils.logging import log, one_line
from .tensors import states_of_model

type Nodes = dict[str, Any]


@alone("jaxtrain.pretrained.save_nir")
def save_nir(module: Module, path: str | Path) -> Path:
    """Write a module's network as a NIR graph (HDF5).

    The model's ``update`` must pass the output of one layer to the next: ``Linear``, ``brainpy.state.LIF`` and
    ``braintrace.nn.LeakyRateReadout``. A linear layer becomes ``Affine`` or ``Linear``, a LIF layer ``LIF``, a readout
    ``Linear`` and ``LI``, whose ``r`` depends on the module's ``dt``. Quantities are written in seconds, volts, amperes
    and ohms.

    Args:
        module: A module with a model.
        path: The file; an existing one is replaced.

    Returns:
        The path.

    Raises:
        ValueError: The module has no model, or its model is more than a chain of these layers.
        ModuleNotFoundError: The package nir is not installed.
        RuntimeError: A run in progress trains this module.

    >>> path = jaxtrain.pretrained.save_nir(spiking, "trained.nir")
    """
    nir, path = needed("nir", "nir"), Path(path)
    states_of_model(module, "save_nir")
    with brainstate.environ.context(**module.environ, fit=False):
        chain = _chain(module.model)
        nodes: Nodes = {}
        for name, layer in chain.items():
            nodes |= EXPORTS[type(layer)](nir, name, layer)
    layers = list(chain.values())
    first, last = (np.array([int(np.prod(size))]) for size in (layers[0].in_size, layers[-1].out_size))
    nodes = {"input": nir.Input({"input": first}), **nodes, "output": nir.Output({"output": last})}
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(pairwise(names)), metadata={})
    content = io.BytesIO()
    nir.write(content, graph)
    write_atomic(path, content.getvalue())
    soft = [name for name, layer in chain.items() if getattr(layer, "spk_reset", "hard") == "soft"]
    if soft:
        log.warning(
            "%s: %s: NIR's LIF resets to v_reset; the soft reset is only in the node's metadata (spk_reset), which "
            "other libraries may ignore. LIF(spk_reset='hard') needs no metadata", path, ", ".join(soft),
        )  # fmt: skip
    return path


# ------------------------------------------------------------------------------------------------- the graph


class _Signal:
    """The output of a layer while the chain is recorded. Any operation on it is an error."""


def _chain(model: Any) -> dict[str, Any]:
    """The layers of a model by name, in the order in which each receives the output of the one before."""
    nodes: Any = brainstate.graph.nodes(model)
    chain: dict[str, Any] = {}
    signal, problems = [_Signal()], []

    def record(name: str, layer: Any) -> Callable:
        def update(*inputs: Any) -> _Signal:
            if type(layer) not in EXPORTS:
                problems.append(_other_layer(name, layer))
            elif name in chain:
                problems.append(f"the layer {name!r} is called twice in one time step")
            elif len(inputs) != 1 or inputs[0] is not signal[-1]:
                problems.append(f"the layer {name!r} receives something other than {_last(chain)}; {CHAIN}")
            if problems:
                raise ValueError(problems[0])
            chain[name] = layer
            signal.append(_Signal())
            return signal[-1]

        return update

    with attributes_kept(model):
        for path, node in nodes.items():
            name = name_of(path)
            own_call = type(node).__call__ is not brainstate.nn.Module.__call__  # a Dropout never calls its update
            if own_call and type(node) not in EXPORTS:
                problems.append(_other_layer(name, node))
            elif name and not _is_container(node):
                vars(node)["update"] = record(name, node)
        try:
            if problems:
                raise ValueError(problems[0])
            output = model(signal[0])
        except Exception as error:
            why = problems[0] if problems else f"what receives {_last(chain)} is no layer ({one_line(error)}); {CHAIN}"
            raise ValueError(f"{type(model).__name__} has no NIR graph: {why}") from error
    if not chain or output is not signal[-1]:
        raise ValueError(f"{type(model).__name__} has no NIR graph: it does not return {_last(chain)}; {CHAIN}")
    return chain


def _other_layer(name: str, layer: Any) -> str:
    return (
        f"the layer {name!r} has the type {type(layer).__name__}; supported are Linear, brainpy.state.LIF and "
        "braintrace.nn.LeakyRateReadout"
    )


def _last(chain: dict[str, Any]) -> str:
    return f"the output of {list(chain)[-1]!r}" if chain else "the input"


def _is_container(node: Any) -> bool:
    """A Sequential, or a module of the user's that has layers. The update of any other node is replaced."""
    if isinstance(node, brainstate.nn.Sequential):
        return True
    if type(node) in EXPORTS or type(node).__module__.partition(".")[0] in ("brainstate", "braintrace", "brainpy"):
        return False
    return len(brainstate.graph.nodes(node)) > 1


# ----------------------------------------------------------------------------------------------- the layers


def _linear(nir: Any, name: str, layer: Any) -> Nodes:
    value = layer.weight.value
    weight = value["weight"] if layer.w_mask is None else value["weight"] * layer.w_mask
    if "bias" not in value:
        return {name: nir.Linear(_si(weight).T)}
    return {name: nir.Affine(_si(weight).T, _si(value["bias"]))}


def _lif(nir: Any, name: str, layer: Any) -> Nodes:
    if layer.current_inputs or layer.delta_inputs:
        raise ValueError(f"the layer {name!r} has registered inputs (add_current_input, add_delta_input); {CHAIN}")
    names = {"tau": "tau", "r": "R", "v_leak": "V_rest", "v_threshold": "V_th", "v_reset": "V_reset"}
    values = {key: _per_unit(getattr(layer, own), layer.out_size) for key, own in names.items()}
    return {name: nir.LIF(**values, metadata={"spk_reset": layer.spk_reset})}


def _readout(nir: Any, name: str, layer: Any) -> Nodes:
    # r = decay r + W x. Over dt, tau dv/dt = -v + R I becomes v = decay v + (1 - decay) R I, so R = 1 / (1 - decay).
    decay = _per_unit(layer.decay, layer.out_size)
    leak = nir.LI(_per_unit(layer.tau, layer.out_size), 1 / (1 - decay), np.zeros_like(decay))
    return {f"{name}.W": nir.Linear(_si(layer.W.value).T), name: leak}


def _si(value: Any) -> np.ndarray:
    """The numbers of a quantity in units without a prefix: seconds, volts, amperes, ohms."""
    value = value.value if isinstance(value, brainstate.State) else value  # a trained time constant
    unit = u.get_unit(value)
    return np.asarray(u.get_mantissa(value), np.float64) * float(unit.magnitude)


def _per_unit(value: Any, size: Any) -> np.ndarray:
    return np.broadcast_to(_si(value), size).reshape(-1).copy()


EXPORTS: dict[type, Callable[[Any, str, Any], Nodes]] = {
    braintrace.nn.Linear: _linear,
    brainstate.nn.Linear: _linear,
    brainpy.state.LIF: _lif,
    braintrace.nn.LeakyRateReadout: _readout,
}
"""How each layer becomes nodes; a subclass may compute something else, so it is not listed."""

CHAIN = "supported is a chain of layers, each of which receives the output of the one before"
