"""Contenders that take the same train steps: hand-written loops as in braintrace's tutorial, and programs of Fit.

All start from the same initial values, see the same batches of a setting and use the same optimizer, so that their
results can be compared: ``first_moment`` is that of Adam, which after one step is the gradient times a constant.
Data is prepared before the timed steps; ``overhead.py`` measures what ``Fit`` needs for data and callbacks.
"""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
from copy_task import LR, Copy, Setting, cross_entropy

import jaxtrain as jt
from jaxtrain.checkpoint.load import build_each
from jaxtrain.core.state import drop_weak_types, flatten, parameters, states_of
from jaxtrain.engine.auto_devices import work_of
from jaxtrain.engine.program import Program

# ------------------------------------------------------------------------------------------ hand-written loops


class ByHand:
    """A loop with one jitted call per batch, in the style of braintrace's tutorial on the copying task.

    Args:
        setting: Network and batches.
        rule: One of

            * "drtrl": D-RTRL of the tutorial: the learner is created inside the call and mapped over the sequences of
              the batch; the single-step rule, one gradient per scored time step.
            * "online": the same with one update per scored time step; states and traces continue from call to call.
            * "bptt": BPTT of the tutorial.
            * "best": the fastest D-RTRL that braintrace provides: batched, windows of ten time steps, long windows for
              the warm-up.
    """

    def __init__(self, setting: Setting, rule: str):
        self.setting, self.model = setting, setting.model()
        self.weights: dict[str, Any] = {**parameters(self.model)}
        self.optimizer = braintools.optim.Adam(LR)
        self.optimizer.register_trainable_weights(self.weights)
        # With weak types the second step would compile the same program again.
        drop_weak_types([*self.weights.values(), *states_of(self.optimizer).values()])
        self.batches = [self.place(*batch) for batch in setting.batches(4)]
        rules = {"drtrl": self._drtrl, "online": self._online, "bptt": self._bptt, "best": self._best}
        self.step: Any = brainstate.transform.jit(rules[rule])
        if rule == "online":
            with setting.context(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # braintrace lists weights without a trace
                self.learner = self._mapped(self.batches[0][0])
        self.taken = 0
        self.factor = 1 / setting.scored if rule == "drtrl" else 1.0  # the tutorial sums gradients, others average

    def place(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[jax.Array, jax.Array]:
        return self.setting.encode(inputs), jnp.asarray(targets, jnp.int32)

    def _mapped(self, inputs):
        """The rule with fresh states, mapped over the sequences of a batch."""
        rule = braintrace.D_RTRL(self.model)

        @brainstate.transform.vmap_new_states(state_tag="new", axis_size=inputs.shape[1])
        def init():
            brainstate.nn.init_all_states(self.model)
            rule.compile_graph(inputs[0, 0])

        init()
        return brainstate.nn.Vmap(rule, vmap_states="new")

    def _online(self, inputs, targets):
        gradient: Any = brainstate.transform.grad(
            lambda x, y: cross_entropy(self.learner(x), y).mean(), self.weights, return_value=True
        )

        def step(x, y):
            grads, value = gradient(x, y)
            self.optimizer.update(grads)
            return value

        return brainstate.transform.for_loop(step, inputs, targets).mean()

    def _drtrl(self, inputs, targets):
        learner = self._mapped(inputs)
        warm = inputs.shape[0] - targets.shape[0]

        def loss(x, y):
            return cross_entropy(learner(x), y).mean()

        gradient: Any = brainstate.transform.grad(loss, self.weights, return_value=True)

        def step(total, xs):
            grads, value = gradient(*xs)
            return jax.tree.map(jnp.add, total, grads), value

        if warm:
            brainstate.transform.for_loop(learner, inputs[:warm])
        zeros = jax.tree.map(jnp.zeros_like, {key: state.value for key, state in self.weights.items()})
        grads, losses = brainstate.transform.scan(step, zeros, (inputs[warm:], targets))
        self.optimizer.update(grads)
        return losses.mean()

    def _bptt(self, inputs, targets):
        @brainstate.transform.vmap_new_states(state_tag="new", axis_size=inputs.shape[1])
        def init():
            brainstate.nn.init_all_states(self.model)

        init()
        network = brainstate.nn.Vmap(self.model, vmap_states="new")
        warm = inputs.shape[0] - targets.shape[0]

        def loss():
            if warm:
                brainstate.transform.for_loop(network, inputs[:warm])
            step = lambda x, y: cross_entropy(network(x), y).mean()  # noqa: E731
            return brainstate.transform.for_loop(step, inputs[warm:], targets).mean()

        gradient: Any = brainstate.transform.grad(loss, self.weights, return_value=True)
        grads, value = gradient()
        self.optimizer.update(grads)
        return value

    def _best(self, inputs, targets):
        warm, window = inputs.shape[0] - targets.shape[0], _divisor(targets.shape[0], 10)
        learner: Any = braintrace.compile(
            self.model, "d_rtrl", inputs[0], batch_size=inputs.shape[1], vjp_method="multi-step"
        )
        if warm:
            learner.etrace_evolve(inputs[:warm], chunk_size=_divisor(warm, 60))

        def step(x, y):
            return cross_entropy(learner(braintrace.MultiStepData(x)), y).mean(-1)

        grads, losses = learner.etrace_grad(
            inputs[warm:], targets, step_fn=step, chunk_size=window, weights=self.weights, return_value=True
        )
        self.optimizer.update(grads)
        return losses.mean()

    def __call__(self, steps: int) -> None:
        with self.setting.context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # braintrace warns that Wr gets no gradient
            for _ in range(steps):
                self.loss = self.step(*self.batches[self.taken % len(self.batches)])
                self.taken += 1
            jax.block_until_ready([state.value for state in self.weights.values()])

    def first_moment(self) -> dict[str, np.ndarray]:
        values = flatten({name: state.value for name, state in states_of(self.optimizer).items()})
        return _moments(values, self.factor)


def _divisor(n: int, most: int) -> int:
    """The largest divisor of ``n`` that is at most ``most``."""
    return max(k for k in range(1, min(n, most) + 1) if n % k == 0)


# ------------------------------------------------------------------------------------------------------- Fit's


class FitSteps:
    """The train program of ``Fit``: one dispatch per chunk of steps, metrics are fetched one chunk later.

    Args:
        setting: Network and batches.
        strategy: A strategy.
        chunk: Steps per dispatch.
        devices: Number of devices.
        seed: A seed, or several that are trained side by side.
        clip: Largest global norm of a gradient.
        module: Class of the module.
    """

    def __init__(self, setting: Setting, strategy: jt.strategies.Strategy, chunk: Any = "auto", devices: int = 1,
                 seed: int | tuple[int, ...] = 0, clip: float | None = None, module: type[Copy] = Copy):  # fmt: skip
        self.module = module(setting)
        several = isinstance(seed, tuple)
        models = build_each(self.module, seed if several else (seed,), several=several, resumed=False)
        self.batches = setting.batches(4)
        self.program = Program(
            self.module, strategy, setting.encode, self.batches[0], seed=seed, clip=clip, accumulate=1,
            nonfinite="raise", chunk=chunk, models=models, devices=devices,
        )  # fmt: skip
        self.program.prepare()
        self.taken = 0

    def __call__(self, steps: int) -> None:
        late = None
        while steps:
            n = min(steps, self.program.chunk)
            batches = [self.batches[(self.taken + i) % len(self.batches)] for i in range(n)]
            pending = self.program.train(batches, self.taken)
            self.taken, steps = self.taken + n, steps - n
            if late is not None:
                late.fetch()
            late = pending
        if late is not None:
            self.metrics = late.fetch()
            self.last = n - 1
        jax.block_until_ready(self.program.values)

    @property
    def unit(self) -> int:
        """Steps of a chunk. A turn consists of whole chunks, because each dispatch has a fixed cost."""
        return self.program.chunk

    @property
    def work(self) -> float:
        """Estimate of the multiply-adds of a time step on one device, as ``Fit(devices="auto")`` makes it."""
        return work_of(self.module, self.program.phases.sizes[2]) / self.program.devices.count

    @property
    def loss(self) -> float:
        mean = self.metrics["loss"]
        return float(mean.num[self.last] / mean.weight[self.last])

    @property
    def engine(self) -> str:
        return self.program.learner.resolved().get("engine", "trace")

    def first_moment(self) -> dict[str, np.ndarray]:
        return _moments(flatten(self.program.values))


def _moments(flat: dict[str, Any], factor: float = 1.0) -> dict[str, np.ndarray]:
    """Adam's first moments times a factor, by name of the parameter leaf."""
    return {name.partition(".mu.")[2]: factor * np.asarray(leaf) for name, leaf in flat.items() if ".mu." in name}


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Norm of the difference divided by the norm of ``other``. A parameter missing in one of them counts as 0."""
    zero = np.zeros(())
    squares = sum(np.sum(np.square(one.get(name, zero) - other.get(name, zero))) for name in {**one, **other})
    return float(np.sqrt(squares / sum(np.sum(np.square(leaf)) for leaf in other.values())))
