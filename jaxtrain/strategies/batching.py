"""The choice between a model with batched states and a model that is mapped over the sequences of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import brainstate
import jax
import jax.numpy as jnp

from ..core.objective import axis_advice, environ_explained
from ..core.state import create_hidden, long_term_states, short_term
from .network import model_over_batch
from .specs.base import Batching


def choose_batching(wanted: Batching, model, u: Any, batch_size: int) -> Literal["batched", "vmap"]:
    """Choose how a model processes a batch, and create its hidden states.

    Args:
        wanted: "batched", "vmap", or "auto": batched if the model accepts a batch and returns one, else mapped over
            sequences.
        model: The model.
        u: Shapes and dtypes of its input in one time step, ``(B, ...)``; see ``input_of``.
        batch_size: The batch size B.

    Raises:
        ValueError: ``wanted`` is another word, the model reads the time of the environment, or sequences would share
            its running statistics.
        Exception: The model's own exception, if it runs in neither mode.
    """
    try:
        with environ_explained(f"the model {type(model).__name__}"):
            chosen = _choose(wanted, model, u, batch_size)
        if not _reads_time(model_over_batch(model, chosen), u):
            return chosen
    except KeyError as error:
        if "'t' not found" not in str(error):
            raise
    raise ValueError(
        f"{type(model).__name__} reads the time 't' of brainstate.environ, which is the same at every time step "
        "of a program: let the model count its time steps in a State, and set 't' itself"
    )


def _reads_time(call: Callable, u: Any) -> bool:
    """Whether a call depends on the environment's ``t``; raises KeyError if it does and there is none."""

    def at(t: Any, u: Any) -> Any:
        with brainstate.environ.context(**({} if t is None else {"t": t})):
            return call(u)

    t = brainstate.environ.get("t", None)
    jaxpr: Any = brainstate.transform.StatefulFunction(at).make_jaxpr(t, u).get_jaxpr(t, u)
    own = {id(var) for var in jaxpr.jaxpr.invars[: len(jax.tree.leaves(t))]}
    return any(id(var) in own for equation in jaxpr.jaxpr.eqns for var in equation.invars)


def _choose(wanted: Batching, model, u: Any, batch_size: int) -> Literal["batched", "vmap"]:
    if wanted not in ("auto", "batched", "vmap"):
        raise ValueError(f"batching must be 'auto', 'batched' or 'vmap', got {wanted!r}")
    if wanted == "vmap":
        _check_not_shared(model)
        create_hidden(model, batch_size, True)
        _check_not_shared(model)  # again, because init_state may have created states
        return "vmap"
    try:
        create_hidden(model, batch_size, False)
        out = brainstate.transform.StatefulFunction(model).make_jaxpr(u).get_out_shapes(u)[0]
        wrong = [leaf.shape for leaf in jax.tree.leaves(out) if leaf.shape[:1] != (batch_size,)]
        if not wrong:
            return "batched"
        problem: Exception = ValueError(f"outputs of shape {wrong[0]} have no batch axis of size {batch_size}")
    except Exception as error:
        problem = error
    if wanted == "auto" and not long_term_states(model):
        try:
            create_hidden(model, batch_size, True)
            brainstate.transform.StatefulFunction(model_over_batch(model, "vmap")).make_jaxpr(u)
            return "vmap"
        except Exception:  # the error to report is that of the batched model, which is raised below
            pass
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), u)
    hidden = [(name, jnp.shape(leaf)) for name, s in short_term(model).items() for leaf in jax.tree.leaves(s.value)]
    alone = next((f"{name!r} has shape {shape}" for name, shape in hidden if shape and batch_size not in shape), "")
    note = f"jaxtrain: the model was called with an input of shape {shapes}, (B, ...), one time step{axis_advice(u)}"
    if all(leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(u)):
        note += "; integers are symbols: make them one-hot in encode(x) of the data, or use braintrace.nn.Embedding"
    if alone:
        note += f"; the hidden state {alone}, without a batch axis: make it in init_state(self, batch_size=None, **_)"
    problem.add_note(note)
    raise problem


def _check_not_shared(model) -> None:
    """Raise ValueError if the model has running statistics, which mapped sequences would share."""
    running = [name for name, s in long_term_states(model).items() if not isinstance(s, brainstate.random.RandomState)]
    if running:
        raise ValueError(
            f"batching='vmap': all sequences would share the states {running} of {type(model).__name__}; use 'batched'"
        )
