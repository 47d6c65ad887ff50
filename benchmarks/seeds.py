"""Seeds side by side: what one program of several seeds costs, against as many runs of one seed each.

python benchmarks/seeds.py
python benchmarks/seeds.py --vmap
python benchmarks/seeds.py --seeds 4 --only small --json seeds.json

A turn of "one program" takes a step of every seed at once; of "runs", a step of each after the other, in the programs
that ``Fit`` compiles for one seed. Compile seconds are those of all programs that it takes. Where steps are short, one
program saves the overhead of the others; where they fill the cores it saves compiling and leaves the rest as it is.
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


def contenders(setting: Any, strategy: str, seeds: int) -> dict[str, Any]:
    import jax
    from contenders import Copy, FitSteps

    from jaxtrain.checkpoint.load import build_each
    from jaxtrain.datasets import CopyDataset
    from jaxtrain.engine.program import Program
    from jaxtrain.strategies.registry import make_strategy

    class Steps(FitSteps):
        """``FitSteps`` of one seed, or of several side by side."""

        def __init__(self, seed: int | tuple[int, ...]):
            self.module, self.taken = Copy(setting), 0
            self.batches = setting.batches(4)
            several = isinstance(seed, tuple)
            models = build_each(self.module, seed if several else (seed,), several=several, resumed=False)
            self.program = Program(
                self.module, make_strategy(strategy), CopyDataset(1, 1, 1).encode, self.batches[0], seed=seed,
                clip=1.0, accumulate=1, nonfinite="raise", chunk="auto", models=models,
            )  # fmt: skip
            self.program.prepare()

    class Runs:
        def __init__(self) -> None:
            self.runs = [Steps(seed) for seed in range(seeds)]
            self.unit = self.runs[0].unit

        def __call__(self, steps: int) -> None:
            for run in self.runs:
                run(steps)

        @property
        def compile_seconds(self) -> float:
            return sum(run.program.compile_seconds for run in self.runs)

    class One(Steps):
        @property
        def compile_seconds(self) -> float:
            return self.program.compile_seconds

    one, runs = One(tuple(range(seeds))), Runs()
    one(3)
    runs(3)
    for lane, run in enumerate(runs.runs):  # the same work, or nothing is compared
        for name in run.program.parameters:
            ours, theirs = one.program.values[name], run.program.values[name]
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                if not abs(a[lane] - b).max() <= 1e-3 * abs(b).max():
                    raise RuntimeError(f"seed {lane}: {name} is not that of the run alone")
    return {"one program": one, "runs": runs}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=list(POINTS), metavar="POINT", help=f"of {', '.join(POINTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--vmap", action="store_true", help="map seeds as on an accelerator, on CPU too")
    options = parser.parse_args()
    if options.seeds < 2 or options.rounds < 1:
        parser.error("--seeds must be 2 or more, and --rounds 1 or more")

    from contenders import Setting

    if options.vmap:
        from jaxtrain.engine.seeds import SeedAxis

        plain = SeedAxis.__init__

        def init(self: Any, seeds: tuple[int, ...]) -> None:
            plain(self, seeds)
            self.one_by_one = False

        SeedAxis.__init__ = init
    logging.getLogger("jaxtrain").setLevel(logging.WARNING)
    print(f"{common.machine()}; {options.seeds} seeds, {options.rounds} rounds")
    rows, numbers = [], {}
    for point in options.only or POINTS:
        setting = Setting(**POINTS[point])
        for strategy in STRATEGIES:
            made = contenders(setting, strategy, options.seeds)
            timing = common.by_turns(made, options.rounds, TURN)
            one, runs = (1e3 * timing.middle(name) for name in ("one program", "runs"))
            low, middle, high = common.quartiles(timing.ratios("one program", "runs"))
            compiled = [made[name].compile_seconds for name in ("one program", "runs")]
            rows.append([
                f"{point}: hidden {setting.hidden}, {setting.time} time steps, batch {setting.batch}", strategy,
                f"{one:.3g}", f"{runs:.3g}", f"{middle:.2f} ({low:.2f} to {high:.2f})", *(f"{s:.1f}" for s in compiled),
            ])  # fmt: skip
            numbers[f"{point} {strategy}"] = {"seconds": timing.seconds, "compile_seconds": compiled}
            print(rows[-1], flush=True)
    head = ["", "strategy", "one program, ms a step of all seeds", "runs, ms", "ratio, median (quartiles)",
            "one program, s to compile", "runs, s"]  # fmt: skip
    told = {f"{options.seeds} seeds in one program against {options.seeds} runs": common.table(head, rows)}
    common.tell(told)
    if options.json:
        common.keep("seeds", told, numbers, options.json)


if __name__ == "__main__":
    main()
