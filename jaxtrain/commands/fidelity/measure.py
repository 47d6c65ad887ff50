"""Measures gradients: cosine and norm ratio to BPTT's, before and after training, and the time of a step."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, get_type_hints

import numpy as np

from ...callbacks import GradientFidelity
from ...checkpoint.load import build
from ...cli.make import RecipeError, make_run
from ...core.ownership import alone
from ...data.datamodule import as_data, set_up, warn_of_layout
from ...data.iterator import DataIterator
from ...engine.program import Program
from ...errors import ConfigError
from ...training.workload import make_program
from ...utils.coerce import coerce
from ...utils.logging import log, one_line
from ..output import markdown, markdown_row
from ..strategies_option import StrategySpec
from .table import COLUMNS, Entry, reasons, row

ROUNDS = 5
PROBE = GradientFidelity(every=1)
Training = tuple[Program, DataIterator]


@alone("jaxtrain fidelity")
def measure(
    recipe: Any, config: Any, strategies: Sequence[StrategySpec], cells: Sequence[str], steps: int
) -> list[Entry]:
    """Measure every strategy on every cell, before and after ``steps`` training steps. Logs each row of the table.

    Args:
        recipe: The recipe's module.
        config: Its configuration.
        strategies: The strategies.
        cells: Values of the recipe's option ``cell``; empty for the configured one.
        steps: Number of training steps.

    Returns:
        One entry per cell and strategy. If a strategy cannot be measured, its entry holds the reason.
    """
    check_cells(config, cells)
    table = []
    log.info("%s", markdown(COLUMNS, []).rstrip())
    for cell in cells or [getattr(config, "cell", "model")]:
        own = dataclasses.replace(config, cell=cell) if cells else config
        bptt, failed, untimed = None, "", ""
        try:
            bptt = _prepare(recipe, StrategySpec("bptt", "bptt", {}), own)
        except RecipeError:
            raise
        except ConfigError as error:  # a recipe that cannot train by BPTT, such as a stream; the gradient still exists
            untimed = one_line(error)
        except Exception as error:  # BPTT cannot train this cell either
            failed = f"bptt: {one_line(error)}"
        for strategy in strategies:
            entry = Entry(cell, strategy.text, failed=failed, untimed=untimed)
            try:
                if not failed:
                    _fill(entry, _prepare(recipe, strategy, own), bptt, steps)
            except RecipeError:
                raise
            except Exception as error:  # that a strategy cannot run on a cell is a result
                entry.failed = one_line(error)
            table.append(entry)
            log.info("%s", markdown_row(row(entry, reasons(table))))
    return table


def check_cells(config: Any, cells: Sequence[str]) -> None:
    """Raise ConfigError if the recipe has no option ``cell``, or does not accept these values for it."""
    if cells and not hasattr(config, "cell"):
        raise ConfigError("this recipe has no option --cell: leave --cells out")
    for cell in cells:
        coerce(cell, get_type_hints(type(config), include_extras=True)["cell"], "--cells")


def _fill(entry: Entry, training: Training, bptt: Training | None, steps: int) -> None:
    program, iterator = training
    entry.cosine, entry.norm_ratio, entry.sign_agreement = _compare(program)
    entry.trace_bytes = program.learner.trace_bytes()
    entry.loss = _train(program, iterator, steps)
    entry.trained_cosine, entry.trained_norm_ratio, _ = _compare(program)
    if bptt is not None:
        entry.time = _relative_time(training, bptt)


def _train(program: Program, iterator: DataIterator, steps: int) -> float:
    """Train and return the loss of the last step with a scored time step."""
    done, loss = 0, math.nan
    while done < steps:
        n = min(program.chunk, steps - done)
        mean = program.train(iterator.take(n), done).fetch()["loss"]
        scored = np.flatnonzero(mean.weight[:n])
        if len(scored):
            loss = float(mean.num[scored[-1]] / mean.weight[scored[-1]])
        done += n
    return loss


def _compare(program: Program) -> tuple[float, float, float]:
    total = program.probe(PROBE, program.example, 0).fetch()[""]
    return float(total["cosine"]), float(total["norm_ratio"]), float(total["sign_agreement"])


def _relative_time(ours: Training, theirs: Training) -> float:
    """Time of a step relative to the other program: median over rounds in which both train, one after the other."""

    def step(program: Program, iterator: DataIterator) -> float:
        batches = iterator.take(program.chunk)
        started = time.perf_counter()
        program.train(batches, iterator.taken).fetch()
        return (time.perf_counter() - started) / program.chunk

    ratios = [step(*ours) / step(*theirs) for _ in range(ROUNDS + 1)]
    return statistics.median(ratios[1:])  # the first round warms up


def _prepare(recipe: Any, strategy: StrategySpec, config: Any) -> Training:
    """The compiled program of a strategy and its training data."""
    fields = strategy.all_fields(config.checked_defaults())
    own = dataclasses.replace(config, strategy=strategy.name, strategy_fields=fields, run_dir=None, progress=False)
    fit, module, data = make_run(recipe.make, own)
    data = as_data(data)
    set_up(data)
    iterator = DataIterator(data.train_data(), "train", data.batch_first)
    warn_of_layout(data, iterator.example(), iterator.batch_first)
    build(module, fit.seed)
    examples = iterator.examples()
    program = make_program(fit.settings, module, data, examples[0])
    program.prepare(shapes=examples)
    return program, iterator
