"""Time of one program that trains several seeds, compared with one run per seed.

python benchmarks/seeds.py
python benchmarks/seeds.py --vmap
python benchmarks/seeds.py --seeds 4 --only small --json seeds.json

A step of "one program" trains all seeds at once. A step of "runs" trains one seed after the other, in the programs that
``Fit`` compiles for a single seed. Compile seconds add up all programs. If steps are short, one program saves the
overhead of the other programs; if a step uses all cores, it only saves compilation.
"""

from __future__ import annotations

import logging
from typing import Any

import common

ROUNDS, TURN = 8, 0.5
POINTS: dict[str, dict[str, Any]] = {
    "smallest": {"hidden": 1, "time": 3, "batch": 1, "scored": 1},
    "small": {"hidden": 16, "batch": 16},
    "gru": {},
}
STRATEGIES = ("drtrl", "bptt")


def make_contenders(setting: Any, strategy: str, seeds: int) -> dict[str, Any]:
    """The program of all seeds and the runs of one seed each, compiled, after their parameters were compared."""
    import jax
    from contenders import FitSteps

    from jaxtrain.strategies.registry import make_strategy

    class OneProgram(FitSteps):
        def __init__(self, seed: int | tuple[int, ...]):
            super().__init__(setting, make_strategy(strategy), seed=seed, clip=1.0)
            self.compile_seconds = self.program.compile_seconds

    class Runs:
        def __init__(self) -> None:
            self.runs = [OneProgram(seed) for seed in range(seeds)]
            self.unit = self.runs[0].unit
            self.compile_seconds = sum(run.compile_seconds for run in self.runs)

        def __call__(self, steps: int) -> None:
            for run in self.runs:
                run(steps)

    one, runs = OneProgram(tuple(range(seeds))), Runs()
    one(3)
    runs(3)
    for seed, run in enumerate(runs.runs):
        for name in run.program.parameters:
            ours, theirs = one.program.values[name], run.program.values[name]
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                if not abs(a[seed] - b).max() <= 1e-3 * abs(b).max():
                    raise RuntimeError(f"seed {seed}: {name} in the program of all seeds differs from that of its run")
    return {"one program": one, "runs": runs}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"points to measure: {', '.join(POINTS)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--vmap", action="store_true", help="vectorise over seeds on CPU too, as on an accelerator")
    options = parser.parse_args()
    if options.seeds < 2 or options.rounds < 1:
        parser.error("--seeds must be 2 or more, and --rounds 1 or more")

    from copy_task import Setting

    if options.vmap:
        from jaxtrain.engine.seeds import SeedAxis

        setattr(SeedAxis, "one_by_one", property(lambda axis: False, lambda axis, value: None))  # noqa: B010
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    print(f"{common.machine()}; {options.seeds} seeds, {options.rounds} rounds")
    rows, numbers = [], {}
    for point in options.only or POINTS:
        setting = Setting(**POINTS[point])
        for strategy in STRATEGIES:
            contenders = make_contenders(setting, strategy, options.seeds)
            timing = common.by_turns(contenders, options.rounds, TURN)
            one, runs = (1e3 * timing.median(name) for name in ("one program", "runs"))
            low, median, high = common.quartiles(timing.ratios("one program", "runs"))
            compiled = [contender.compile_seconds for contender in contenders.values()]
            rows.append([
                f"{point}: hidden {setting.hidden}, {setting.time} time steps, batch {setting.batch}", strategy,
                f"{one:.3g}", f"{runs:.3g}", f"{median:.2f} ({low:.2f} to {high:.2f})", *(f"{s:.1f}" for s in compiled),
            ])  # fmt: skip
            numbers[f"{point} {strategy}"] = {"seconds": timing.seconds, "compile_seconds": compiled}
            print(rows[-1], flush=True)
    head = ["", "strategy", "one program, ms per step of all seeds", "runs, ms", "ratio, median (quartiles)",
            "one program, compile s", "runs, compile s"]  # fmt: skip
    sections = {f"{options.seeds} seeds in one program, compared with {options.seeds} runs": common.table(head, rows)}
    common.show(sections)
    if options.json:
        common.save("seeds", sections, numbers, options.json)


if __name__ == "__main__":
    main()
