"""Small models, each with its own path from a weight to the loss; every model's own units are diagonal.

``MODELS[name]``: the model, and for each parameter what D-RTRL with one-step windows makes of it: "yes", "no", or the
states in which credit is lost, "in part" or (``NONE``) all of it.
"""

from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

IN, UNITS, OUT, DELAY = 3, 4, 2, 2
NONE = "none"
Expected = dict[str, str | tuple[str, ...]]


class Model(brainstate.nn.Module):
    """``states``: name -> (kind, shape) beside the hidden state ``h``; ``layers``: name -> (inputs, outputs)."""

    def __init__(self, step: Callable, states: dict[str, Any], layers: dict[str, tuple[int, int]]):
        super().__init__()
        self.step, self.made = step, states
        for name, (inputs, outputs) in {"inp": (IN, UNITS), "out": (UNITS, OUT), **layers}.items():
            setattr(self, name, braintrace.nn.Linear(inputs, outputs))
        self.a = brainstate.ParamState(jnp.linspace(0.5, 0.9, UNITS))
        self.start = brainstate.ParamState(jnp.linspace(-0.5, 0.5, UNITS))
        self.free = brainstate.ParamState(jnp.linspace(-1.0, 1.0, IN * UNITS).reshape(IN, UNITS))

    def init_state(self, batch_size=None, **_):
        lead = () if batch_size is None else (batch_size,)
        for name, (kind, value) in {"h": (brainstate.HiddenState, units), **self.made}.items():
            setattr(self, name, kind(value(self, lead)))

    def update(self, x):
        return self.step(self, x)


def units(model, lead):
    return jnp.full((*lead, UNITS), 0.1)


def learned(model, lead):
    return jnp.broadcast_to(model.start.value, (*lead, UNITS))


def scores(model, lead):
    return jnp.zeros((*lead, OUT))


def line(size):
    return lambda model, lead: jnp.zeros((*lead, DELAY, size))


def integer(model, lead):
    return jnp.zeros(lead, "int32")


def number(model, lead):
    return jnp.zeros((*lead, 1))


def stop(value):
    return jax.lax.stop_gradient(value)


@jax.custom_jvp
def spike(x):
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _surrogate(primals, tangents):
    (x,), (dx,) = primals, tangents
    return spike(x), dx / (1 + x * x)


SHORT, HIDDEN = brainstate.ShortTermState, brainstate.HiddenState


def leak(m, drive):
    m.h.value = 0.8 * m.h.value + drive
    return jnp.tanh(m.h.value)


def shift(buffer, new):
    """The oldest entry of a delay line, which takes a new one."""
    old = buffer.value[..., 0, :]
    buffer.value = jnp.concatenate([buffer.value[..., 1:, :], new[..., None, :]], -2)
    return old


def plain(m, x):
    return m.out(leak(m, m.inp(x)))


def delayed(m, x):
    return m.out(shift(m.line, leak(m, m.inp(x))))


def delayed_and_direct(m, x):
    h = leak(m, m.inp(x))
    return m.out(h + shift(m.line, h))


def delayed_input(m, x):
    return m.out(leak(m, m.inp(shift(m.line, x))))


def delayed_drive(m, x):
    return m.out(leak(m, shift(m.line, m.inp(x)) + m.mid(x)))


def ring(m, x):
    h = leak(m, m.inp(x))
    here = (m.at.value[..., None, None] % DELAY) == jnp.arange(DELAY)[:, None]
    old = jnp.sum(jnp.where(here, m.line.value, 0), -2)
    m.line.value = jnp.where(here, h[..., None, :], m.line.value)
    m.at.value = m.at.value + 1
    return m.out(old)


def counted(m, x):
    m.n.value = m.n.value + 1
    return m.out(leak(m, m.inp(x))) / m.n.value[..., None]


def clock(m, x):
    m.n.value = m.n.value + 1.0
    return m.out(leak(m, m.inp(x))) / m.n.value


def readout(m, x):
    m.r.value = 0.9 * m.r.value + m.out(leak(m, m.inp(x)))
    return m.r.value


def copied(m, x):
    old = m.c.value
    m.c.value = leak(m, m.inp(x))
    return m.out(old)


def copied_and_direct(m, x):
    old = m.c.value
    m.c.value = leak(m, m.inp(x))
    return m.out(m.c.value + old)


def watched(m, x):
    h = leak(m, m.inp(x))
    m.r.value = 0.9 * m.r.value + stop(h)
    return m.out(h + m.r.value)


def watching(m, x):
    m.r.value = 0.9 * m.r.value + m.extra(stop(m.h.value))
    return m.out(leak(m, m.inp(x)) + stop(m.r.value))


def compared(m, x):
    return m.out((leak(m, m.inp(x)) > 0).astype(x.dtype))


def rounded(m, x):
    return m.out(jnp.floor(4 * leak(m, m.inp(x))))


def as_integers(m, x):
    return m.out((4 * leak(m, m.inp(x))).astype("int32").astype(x.dtype))


def straight_through(m, x):
    h = leak(m, m.inp(x))
    return m.out(h + stop(jnp.round(h) - h))


def spiking(m, x):
    return m.out(spike(leak(m, m.inp(x))))


def started(m, x):
    return m.out(leak(m, m.inp(x) + m.start.value * 0.1))


def acting(m, x):
    """An environment: the action moves a position, which is part of the next input."""
    seen = jnp.concatenate([x[..., 1:], m.e.value], -1)
    y = m.out(leak(m, m.inp(seen)))
    m.e.value = 0.5 * m.e.value + jnp.sign(y[..., :1])
    return y


def moving(m, x):
    """The same, but the position has a derivative with respect to the action."""
    seen = jnp.concatenate([x[..., 1:], m.e.value], -1)
    y = m.out(leak(m, m.inp(seen)))
    m.e.value = 0.5 * m.e.value + jnp.tanh(y[..., :1])
    return y


def in_series(m, x):
    h = leak(m, m.inp(x))
    m.g.value = 0.7 * m.g.value + m.mid(h)
    return m.out(jnp.tanh(m.g.value))


def in_series_and_direct(m, x):
    h = leak(m, m.inp(x))
    m.g.value = 0.7 * m.g.value + m.mid(h)
    return m.out(jnp.tanh(m.g.value) + h)


def side_by_side(m, x):
    h = leak(m, m.inp(x))
    m.g.value = 0.7 * m.g.value + m.extra(x)
    return m.out(jnp.tanh(m.g.value) + h)


def masked(m, x):
    return m.out(leak(m, m.inp(x)) * m.mask.value)


def flagged(m, x):
    m.n.value = 1.0 - m.n.value
    return m.out(leak(m, m.inp(x)) * m.n.value)


def skipping(m, x):
    return m.out(leak(m, m.inp(x))) + m.extra(x)


def chained(m, x):
    return m.out(leak(m, m.mid(jnp.tanh(m.inp(x)))))


def chained_and_direct(m, x):
    e = jnp.tanh(m.inp(x))
    return m.out(leak(m, m.mid(e)) + e)


def elementwise(m, x):
    m.h.value = braintrace.element_wise(m.a.value) * m.h.value + m.inp(x)
    return m.out(jnp.tanh(m.h.value))


def untraced(m, x):
    return m.out(leak(m, m.inp(x) + x @ m.free.value))


def branching(m, x):
    h = leak(m, m.inp(x))
    return m.out(jax.lax.cond(jnp.sum(x) > 0, lambda h: h, lambda h: stop(h), h))


def jitted(m, x):
    return m.out(jax.jit(lambda h: jnp.tanh(h * stop(h)))(leak(m, m.inp(x))))


def lost(*names: str) -> tuple[str, ...]:
    return names


def none(*names: str) -> tuple[str, ...]:
    return (NONE, *names)


ALL: Expected = {"inp.weight": "yes", "out.weight": "yes"}
_READ: Expected = {"out.weight": "yes"}
CHAIN: Expected = {**ALL, "inp.weight": lost("only through another weight"), "mid.weight": "yes"}
_MODELS: dict[str, tuple[Callable, dict[str, Any], dict[str, tuple[int, int]], Expected]] = {
    "plain": (plain, {}, {}, ALL),
    "delayed": (delayed, {"line": (SHORT, line(UNITS))}, {}, {**_READ, "inp.weight": none("line")}),
    "delayed, hidden": (delayed, {"line": (HIDDEN, line(UNITS))}, {}, {**_READ, "inp.weight": none("line")}),
    "delayed and direct": (
        delayed_and_direct, {"line": (SHORT, line(UNITS))}, {}, {**_READ, "inp.weight": lost("line")}
    ),
    "delayed input": (delayed_input, {"line": (SHORT, line(IN))}, {}, ALL),
    "delayed drive": (
        delayed_drive, {"line": (SHORT, line(UNITS))}, {"mid": (IN, UNITS)},
        {**_READ, "inp.weight": none("line"), "mid.weight": "yes"},
    ),
    "ring": (ring, {"line": (SHORT, line(UNITS)), "at": (SHORT, integer)}, {}, {**_READ, "inp.weight": none("line")}),
    "counter": (counted, {"n": (SHORT, integer)}, {}, ALL),
    "clock": (clock, {"n": (SHORT, number)}, {}, ALL),
    "leaky readout": (
        readout, {"r": (SHORT, scores)}, {}, {"inp.weight": lost("r"), "out.weight": lost("r")}
    ),
    "leaky hidden readout": (readout, {"r": (HIDDEN, scores)}, {}, {"inp.weight": lost("r"), "out.weight": "yes"}),
    "copy": (copied, {"c": (SHORT, units)}, {}, {**_READ, "inp.weight": none("c")}),
    "copy and direct": (copied_and_direct, {"c": (SHORT, units)}, {}, {**_READ, "inp.weight": lost("c")}),
    "watcher": (watched, {"r": (SHORT, units)}, {}, ALL),
    "watcher with a weight": (
        watching, {"r": (SHORT, units)}, {"extra": (UNITS, UNITS)}, {**ALL, "extra.weight": "no"}
    ),
    "comparison": (compared, {}, {}, {**_READ, "inp.weight": "no"}),
    "floor": (rounded, {}, {}, {**_READ, "inp.weight": "no"}),
    "integer": (as_integers, {}, {}, {**_READ, "inp.weight": "no"}),
    "straight through": (straight_through, {}, {}, ALL),
    "surrogate": (spiking, {}, {}, ALL),
    "learned start": (plain, {"h": (HIDDEN, learned)}, {}, {**ALL, "start": "yes"}),
    "learned start of a memory": (
        readout, {"r": (SHORT, lambda m, lead: learned(m, lead)[..., :OUT])}, {},
        {"inp.weight": lost("r"), "out.weight": lost("r"), "start": none("r")},
    ),
    "learned start, used too": (started, {"h": (HIDDEN, learned)}, {}, {**ALL, "start": lost("no operation")}),
    "environment": (acting, {"e": (SHORT, number)}, {}, ALL),
    "smooth environment": (moving, {"e": (SHORT, number)}, {}, {"inp.weight": lost("e"), "out.weight": lost("e")}),
    "two memories": (
        in_series, {"g": (HIDDEN, units)}, {"mid": (UNITS, UNITS)},
        {**ALL, "inp.weight": lost("g"), "mid.weight": "yes"},
    ),
    "two memories, both read": (
        in_series_and_direct, {"g": (HIDDEN, units)}, {"mid": (UNITS, UNITS)},
        {**ALL, "inp.weight": lost("g"), "mid.weight": "yes"},
    ),
    "side by side": (side_by_side, {"g": (HIDDEN, units)}, {"extra": (IN, UNITS)}, {**ALL, "extra.weight": "yes"}),
    "mask": (masked, {"mask": (SHORT, units)}, {}, ALL),
    "flag": (flagged, {"n": (SHORT, number)}, {}, ALL),
    "skip": (skipping, {}, {"extra": (IN, OUT)}, {**ALL, "extra.weight": "yes"}),
    "chain": (chained, {}, {"mid": (UNITS, UNITS)}, CHAIN),
    "chain and direct": (chained_and_direct, {}, {"mid": (UNITS, UNITS)}, CHAIN),
    "element-wise": (elementwise, {}, {}, {**ALL, "a": "yes"}),
    "without braintrace": (untraced, {}, {}, {**ALL, "free": lost("through no operation of braintrace")}),
    "branch": (branching, {}, {}, ALL),
    "jitted": (jitted, {}, {}, ALL),
}  # fmt: skip
MODELS = [*_MODELS]


def build(name: str) -> Model:
    step, states, layers, _ = _MODELS[name]
    with brainstate.random.seed_context(1):
        return Model(step, states, layers)


def expected(name: str) -> Expected:
    """Every parameter of the model has an entry."""
    given = _MODELS[name][3]
    return {**dict.fromkeys(("a", "start", "free"), "no"), **given}
