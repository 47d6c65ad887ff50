"""Cosine and norm ratio to BPTT's gradient for models with memory behind, before or above the traced layer.

python benchmarks/credit.py

Random inputs and targets, 16 sequences of 50 time steps, one gradient at initialisation. Each row gives the gradient of
one weight.
"""

from __future__ import annotations

import logging

import common

UNITS, TIME, BATCH, INPUTS, OUTPUTS, DELAY = 32, 50, 16, 8, 4, 5
MODELS = {  # model -> (its parts, the weight whose gradient is compared)
    "leaky units, leaky readout": ("units", "leak", "inp.weight"),
    "leaky units, scores summed, loss at the end": ("units", "sum", "inp.weight"),
    "leaky units, axonal delay": ("units", "delay", "inp.weight"),
    "leaky units, learned initial state": ("units", "none", "start"),
    "GRU, leaky readout": ("gru", "leak", "gru.Wh.weight"),
    "GRU, scores summed, loss at the end": ("gru", "sum", "gru.Wh.weight"),
    "GRU, axonal delay": ("gru", "delay", "gru.Wh.weight"),
    "GRU above a GRU: the lower one": ("two", "none", "gru.Wh.weight"),
    "GRU above a GRU: the upper one": ("two", "none", "upper.Wh.weight"),
}


def measure(parts: tuple[str, str, str], **fields) -> tuple[float, float]:
    """The cosine and the norm ratio of one weight's gradient."""
    import brainstate
    import braintrace
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxtrain as jt

    layer, memory, weight = parts

    class Net(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            if layer == "units":
                self.inp = braintrace.nn.Linear(INPUTS, UNITS)
                self.start = brainstate.ParamState(jnp.linspace(-0.5, 0.5, UNITS))
            else:
                self.gru = braintrace.nn.GRUCell(INPUTS, UNITS)
            if layer == "two":
                self.upper = braintrace.nn.GRUCell(UNITS, UNITS)
            self.out = braintrace.nn.Linear(UNITS, OUTPUTS)

        def init_state(self, batch_size=None, **_):
            lead = () if batch_size is None else (batch_size,)
            if layer == "units":
                self.h = brainstate.HiddenState(jnp.broadcast_to(self.start.value, (*lead, UNITS)))
            if memory == "delay":
                self.line = brainstate.ShortTermState(jnp.zeros((*lead, DELAY, UNITS)))
            elif memory != "none":
                self.memory = brainstate.ShortTermState(jnp.zeros((*lead, OUTPUTS)))

        def update(self, x):
            if layer == "units":
                self.h.value = 0.9 * self.h.value + self.inp(x)
                h = jnp.tanh(self.h.value)
            else:
                h = self.gru(x)
            if layer == "two":
                h = self.upper(h)
            if memory == "none":
                return self.out(h)
            if memory == "delay":
                line = self.line.value
                self.line.value = jnp.concatenate([line[..., 1:, :], h[..., None, :]], -2)
                return self.out(line[..., 0, :])
            self.memory.value = (0.9 if memory == "leak" else 1.0) * self.memory.value + self.out(h)
            return self.memory.value

    class Task(jt.Module):
        def build(self):
            return Net()

        def learning_step(self, forward, x, y):
            return optax.softmax_cross_entropy_with_integer_labels(forward(x), y)

        def configure_optimizer(self):
            return optax.sgd(0.0)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(TIME, BATCH, INPUTS)).astype("float32")
    y = rng.integers(0, OUTPUTS, (1 if memory == "sum" else TIME, BATCH)).astype("int32")
    probe = jt.GradientFidelity(every=1)
    fit = jt.Fit(jt.DRTRL(window=1, **fields), max_steps=1, callbacks=[probe], seed=0)
    result = fit.run(Task(), [(x, y)], batch_first=False)
    return result.metrics[f"fidelity/cosine/{weight}"], result.metrics[f"fidelity/norm_ratio/{weight}"]


def goals(found: dict[str, dict[str, tuple[float, float]]]) -> list[common.Goal]:
    """Units that do not mix: with readout memory, D-RTRL's gradient is BPTT's."""
    exact = {name: both["readout_memory"] for name, both in found.items() if MODELS[name][0] == "units"}
    made = []
    for name, (cosine, norm) in exact.items():
        made += [
            common.Goal(f"{name}: cosine", cosine, 0.999, least=True),
            common.Goal(f"{name}: distance of the norm ratio from 1", abs(norm - 1), 0.01),
        ]
    return made


def main() -> None:
    options = common.parser(__doc__).parse_args()
    logging.disable(logging.WARNING)  # the reports of the runs
    found = {
        name: {"drtrl": measure(parts), "readout_memory": measure(parts, readout_memory=True)}
        for name, parts in MODELS.items()
    }
    rows = [
        [name, f"`{MODELS[name][-1]}`", *(f"{cosine:.3f}, {norm:.2f}" for cosine, norm in both.values())]
        for name, both in found.items()
    ]
    head = ["model", "weight", "`drtrl`: cosine, norm", "`readout_memory=True`: cosine, norm"]
    judged = goals(found)
    told = {"Cosine and norm ratio to BPTT": common.table(head, rows), "Judged": common.goals_table(judged)}
    common.tell(told)
    if options.json:
        common.keep("credit", told, found, options.json, judged)


if __name__ == "__main__":
    main()
