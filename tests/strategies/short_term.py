"""Models with short-term states of many kinds, with a batch axis and without."""

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

SHORT, HIDDEN = brainstate.ShortTermState, brainstate.HiddenState
N = 3
"""As many units as ``lab.B`` has sequences, so that a shared state may look like one with a batch axis."""


def per_sequence(batch: int, *shape: int):
    """Other values for each sequence."""
    return 0.2 + 0.8 * jnp.cos(1.0 + jnp.arange(batch * int(np.prod(shape)), dtype=jnp.float32)).reshape(batch, *shape)


# Of each kind: how the state begins, and what it does before and after the recurrence, given x (B, N) and h (B, N).
# A step gives the factor of the recurrence, and what is added to the output.


class Mask:
    begin = staticmethod(lambda batch: per_sequence(batch, N))
    before = staticmethod(lambda value, x: (value, value))


class RandomMask(Mask):
    begin = staticmethod(lambda batch: brainstate.random.rand(batch, N))


class Flag:
    """Whether a sequence has begun: the first time step is another one."""

    begin = staticmethod(lambda batch: jnp.ones((batch, 1), bool))
    before = staticmethod(lambda value, x: (jnp.where(value, 0.3, 1.0), jnp.zeros_like(value)))


class Counter:
    """Counts another thing in each sequence."""

    begin = staticmethod(lambda batch: jnp.arange(batch, dtype=jnp.int32))
    before = staticmethod(lambda value, x: (1.0 / (1 + value[..., None]), value + (x[..., 0] > 0).astype(jnp.int32)))


class Buffer:
    """Old inputs, with the batch axis behind time."""

    begin = staticmethod(lambda batch: jnp.ones((2, batch, N)))
    before = staticmethod(lambda value, x: (jax.nn.sigmoid(value[0]), jnp.stack([value[1], x])))


class Copy:
    """The units of the time step before, for a difference."""

    begin = staticmethod(lambda batch: per_sequence(batch, N))
    after = staticmethod(lambda value, h: (h - value, h))


class Environment:
    """A position that units move and a clock of each sequence, in one state."""

    begin = staticmethod(lambda batch: {"at": per_sequence(batch, 1), "clock": jnp.zeros(batch, jnp.int32)})
    after = staticmethod(
        lambda value, h: (
            value["at"] * (value["clock"][..., None] % 3),
            {"at": 0.9 * value["at"] + 0.1 * h.sum(-1, keepdims=True), "clock": value["clock"] + 1},
        )
    )


class Shared:
    """Read by all sequences; as long as the batch."""

    begin = staticmethod(lambda batch: jnp.asarray([0.9, 0.4, 0.6]))
    before = staticmethod(lambda value, x: (value, value))


class Clock:
    """Written for all sequences at once."""

    begin = staticmethod(lambda batch: jnp.zeros((), jnp.float32))
    before = staticmethod(lambda value, x: (1.0 / (1.0 + value % 4), value + 1))


KINDS = {cls.__name__: cls for cls in (Mask, RandomMask, Flag, Counter, Buffer, Copy, Environment, Shared, Clock)}


class Net(brainstate.nn.Module):
    """Units with a leak that is learned, an element-wise weight, and states of ``kinds`` before and after them."""

    def __init__(self, n_in: int, n_out: int, kinds: tuple[str, ...], elementwise: bool = True, hidden: bool = False):
        super().__init__()
        self.kinds, self.elementwise = kinds, elementwise
        self.make = HIDDEN if hidden else SHORT
        self.inp, self.mix = braintrace.nn.Linear(n_in, N), braintrace.nn.Linear(N, N)
        self.out = braintrace.nn.Linear(N, n_out)
        if elementwise:
            self.leak = brainstate.ParamState(jnp.linspace(0.3, 0.8, N))

    def init_state(self, batch_size: int, **_):
        self.h = HIDDEN(jnp.zeros((batch_size, N)))
        for kind in self.kinds:
            setattr(self, kind.lower(), self.make(KINDS[kind].begin(batch_size)))

    def _through(self, place: str, given):
        factors = []
        for kind in self.kinds:
            step = getattr(KINDS[kind], place, None)
            if step is not None:
                state = getattr(self, kind.lower())
                factor, state.value = step(state.value, given)
                factors.append(factor)
        return factors

    def update(self, x):
        old = self.h.value
        for factor in self._through("before", jax.nn.tanh(x[..., :N])):
            old = old * factor
        leak = braintrace.element_wise(self.leak.value) if self.elementwise else 0.6
        self.h.value = jnp.tanh(leak * old + self.inp(x) + 0.3 * self.mix(self.h.value))
        return self.out(self.h.value) + sum(
            more.sum(-1, keepdims=True) for more in self._through("after", self.h.value)
        )
