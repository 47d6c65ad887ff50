"""Cosine and norm ratio to BPTT's gradient for models with memory behind, before or above the traced layer.

python benchmarks/credit.py

Random inputs and targets, 16 sequences of 50 time steps, one gradient at initialisation. Each row of the table shows
the gradient of one weight.
"""

from __future__ import annotations

import logging

import common

UNITS, TIME, BATCH, INPUTS, OUTPUTS, DELAY = 32, 50, 16, 8, 4, 5
MODELS = {  # model -> (layer, memory, weight whose gradient is compared)
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
    """Cosine and norm ratio of the gradient of one weight to that of BPTT.

    Args:
        parts: Layer, memory and weight, see ``MODELS``.
        **fields: Options of ``DRTRL``.
    """
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
    strategy = jt.DRTRL(window=1, **fields)
    fit = jt.Fit(strategy, max_steps=1, callbacks=[probe], seed=0, loggers=(), progress=False)
    result = fit.run(Task(), [(x, y)], batch_first=False)
    return result.metrics[f"fidelity/cosine/{weight}"], result.metrics[f"fidelity/norm_ratio/{weight}"]


def make_goals(measured: dict[str, dict[str, tuple[float, float]]]) -> list[common.Goal]:
    """For units that are not connected, D-RTRL with readout memory must have the gradient of BPTT."""
    exact = {name: both["readout_memory"] for name, both in measured.items() if MODELS[name][0] == "units"}
    goals = []
    for name, (cosine, norm) in exact.items():
        goals += [
            common.Goal(f"{name}: cosine", cosine, 0.999, at_least=True),
            common.Goal(f"{name}: distance of the norm ratio from 1", abs(norm - 1), 0.01),
        ]
    return goals


def main() -> None:
    options = common.parser(__doc__).parse_args()
    logging.disable(logging.WARNING)  # no report before step 0
    measured = {
        name: {"drtrl": measure(parts), "readout_memory": measure(parts, readout_memory=True)}
        for name, parts in MODELS.items()
    }
    rows = [
        [name, f"`{MODELS[name][-1]}`", *(f"{cosine:.3f}, {norm:.2f}" for cosine, norm in both.values())]
        for name, both in measured.items()
    ]
    head = ["model", "weight", "`drtrl`: cosine, norm", "`readout_memory=True`: cosine, norm"]
    goals = make_goals(measured)
    sections = {"Cosine and norm ratio to BPTT": common.table(head, rows), "Goals": common.goals_table(goals)}
    common.show(sections)
    if options.json:
        common.save("credit", sections, measured, options.json, goals)


if __name__ == "__main__":
    main()
