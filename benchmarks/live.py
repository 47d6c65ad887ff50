"""Time of one time step of an online session, which predicts and learns: D-RTRL of a GRU with 64 units, one sequence.

python benchmarks/live.py
python benchmarks/live.py --rounds 100 --json live.json

* session: ``live.step(x, target)`` of ``Fit.online``, until the prediction is on the host, without saves;
* by hand: the same compiled program in a bare loop, which keeps the values and waits for the prediction.

Both take turns. The process uses one core, the last one that it may use, which should be idle. CPU time, that of all
threads, is affected less if it is not.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import common

ROUNDS, STEPS, WARM = 50, 200, 20
MOST_MS, MOST_RATIO = 1.0, 1.5
SESSION, HAND = "session", "by hand"


def make_session(hidden: int) -> Any:
    """The context of a session, and 1000 values of a noisy sine."""
    import braintools
    import jax.numpy as jnp
    import numpy as np

    import jaxtrain as jt
    from jaxtrain.nn import Network

    class Next(jt.Module):
        def build(self):
            return Network(1, 1, cell="gru", hidden=hidden)

        def learning_step(self, forward, x, y):
            return jnp.square(forward(x) - y).mean(-1)

        def configure_optimizer(self):
            return braintools.optim.Adam(1e-3)

    noise = np.random.default_rng(0).normal(size=1000)
    values = (np.sin(0.3 * np.arange(1000)) + 0.1 * noise).astype(np.float32).reshape(-1, 1, 1)
    return jt.Fit(jt.DRTRL(update_every=1)).online(Next(), (values[0], values[1])), values


def by_hand(live: Any, x: Any, target: Any) -> Callable[[], None]:
    """One step by the compiled program of a session, with values of its own."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    stream, batch = live._stream, live._time_steps.batch(x, target)
    program, root = stream._programs._learn.program, stream._root
    values = jax.tree.map(jnp.array, stream.program.values)
    number = np.int32(0)

    def step() -> None:
        nonlocal values
        values, _, y = program(values, root, number, batch)
        np.asarray(y)

    return step


def timed(step: Callable[[int], object], steps: int) -> list[tuple[float, float]]:
    """Wall-clock and CPU seconds of each step, after some that warm the caches."""
    seconds = []
    for number in range(steps + WARM):
        started, cpu = time.perf_counter(), time.process_time()
        step(number)
        seconds.append((time.perf_counter() - started, time.process_time() - cpu))
    return seconds[WARM:]


def measure(hidden: int, rounds: int, steps: int) -> dict[str, list[list[tuple[float, float]]]]:
    """Wall-clock and CPU seconds of each step, by contender and round."""
    context, values = make_session(hidden)
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    with context as live:
        hand = by_hand(live, values[0], values[1])
        turns = {
            SESSION: lambda i: live.step(values[i % 999], values[i % 999 + 1]),
            HAND: lambda i: hand(),
        }
        seconds: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in turns}
        for number in range(rounds + 1):
            for name in turns if number % 2 == 0 else reversed(turns):
                seconds[name].append(timed(turns[name], steps))
    return {name: each[1:] for name, each in seconds.items()}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each")
    parser.add_argument("--steps", type=int, default=STEPS, help="time steps per turn")
    parser.add_argument("--smoke", action="store_true", help="test run with tiny sizes")
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps must be 1 or more")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX makes its threads

    import numpy as np

    hidden = 4 if options.smoke else 64
    seconds = measure(hidden, options.rounds, options.steps)
    wall = {name: np.array(each)[..., 0] for name, each in seconds.items()}
    median = {name: np.median(each, axis=1) for name, each in wall.items()}
    worst = {name: float(np.percentile(each, 99)) for name, each in wall.items()}
    ratio = float(np.median(median[SESSION] / median[HAND]))
    head = ["", "median of a time step, ms (quartiles of rounds)", "99th percentile, ms", "99th percentile of CPU time"]
    rows = []
    for name, each in median.items():
        low, middle, high = (1e3 * value for value in common.quartiles(each.tolist()))
        cpu = 1e3 * np.percentile(np.array(seconds[name])[..., 1], 99)
        rows.append([name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{1e3 * worst[name]:.3f}", f"{cpu:.3f}"])
    goals = [
        common.Goal("99th percentile of a time step, ms", 1e3 * worst[SESSION], MOST_MS),
        common.Goal("median of session / by hand", ratio, MOST_RATIO),
    ]
    title = f"GRU, hidden {hidden}, batch 1, drtrl, update_every=1, one core"
    sections = {title: common.table(head, rows), "Goals": common.goals_table(goals)}
    print(f"{options.rounds} rounds of {options.steps} time steps; {common.machine()}")
    common.show(sections)
    if options.json:
        numbers = {name: {"medians": median[name].tolist(), "99th percentile": worst[name]} for name in wall}
        common.save("live", sections, numbers, options.json, goals)


if __name__ == "__main__":
    main()
