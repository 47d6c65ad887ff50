"""``jaxtrain fidelity RECIPE``: cells by rules, how far each rule's gradient is from BPTT's, and what it costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from ..callbacks import GradientFidelity
from ..checkpoint.load import build
from ..cli.made import RecipeError, make_run
from ..cli.recipe import Options
from ..core.ownership import alone
from ..data.datamodule import as_data, set_up, warn_of_layout
from ..data.iterator import DataIterator
from ..engine.program import Program
from ..errors import ConfigError
from ..strategies import registry
from ..training.workload import make_program
from ..utils.coerce import coerce
from ..utils.fields import options
from ..utils.logging import log, one_line
from .fidelity_table import HEAD, Cell, line, reasons

ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Rule:
    """A strategy with fields of its own, and how it was spelled."""

    spelled: str
    name: str
    fields: Mapping[str, Any]

    def all_fields(self, recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """``recipes``: by strategy, the fields that a recipe sets; they hold where the rule was spelled without any."""
        plain = {name: option.default for name, option in options(registry.lookup(self.name)).items()}
        return plain | dict(self.fields or recipes.get(self.name, {}))


def parse_rules(text: str) -> list[Rule]:
    """Rules by commas, each with its fields: ``"drtrl:window=5,vjp=multi-step,pp_prop"``.

    A value is read as a number, true or false (True, False) where it is one; words by spaces are a pair. Raises
    ConfigError for an unknown name or field, or a value of the wrong type.
    """
    found: list[tuple[str, list[str]]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, first = part.partition(":")
        if not colon and "=" in part:  # one more field of the rule before
            if not found:
                raise ConfigError(f"--strategies {text!r}: {part!r} stands before any rule; expected NAME:FIELD=VALUE")
            found[-1][1].append(part)
        else:
            found.append((name.strip(), [first] if colon else []))
    if not found:
        raise ConfigError(f"--strategies {text!r}: expected names of strategies, by commas")
    return [_rule(name, given) for name, given in found]


def _rule(name: str, given: list[str]) -> Rule:
    where, fields = f"--strategies {name}", {}
    for item in given:
        field, equals, value = (part.strip() for part in item.partition("="))
        if not (field and equals and value):
            raise ConfigError(f"{where}: {item!r}; expected FIELD=VALUE")
        fields[field.replace("-", "_")] = _value(value)
    strategy = registry.lookup(name)
    checked = registry.check(strategy, fields, where)
    try:
        strategy(**checked)
    except ValueError as error:  # says now what does not go together
        raise ConfigError(f"{where}: {error}") from None
    return Rule(f"{name}:{','.join(given)}" if given else name, strategy.name, checked)


def _value(text: str) -> Any:
    def one(word: str) -> Any:
        try:
            value = json.loads({"True": "true", "False": "false"}.get(word, word))
        except ValueError:
            return word
        return value if isinstance(value, bool | int | float) else word

    words = [one(word) for word in text.split()]
    return words[0] if len(words) == 1 else words


@alone("jaxtrain fidelity")
def measure(module: Any, config: Any, rules: Sequence[Rule], cells: Sequence[str], steps: int) -> list[Cell]:
    """The table: every rule on every cell of a recipe, trained for ``steps`` steps in between.

    ``module``: the recipe (its ``make``); ``config``: its options; ``cells``: values of its option ``cell``, or none.
    What cannot be measured is an entry that says why.
    """
    check_cells(config, cells)
    table = []
    log.info("%s", "\n".join(HEAD))
    for cell in cells or [getattr(config, "cell", "model")]:
        chosen = dataclasses.replace(config, cell=cell) if cells else config
        truth, failed, untimed = None, "", ""
        try:
            truth = _program(module, Rule("bptt", "bptt", {}), chosen)
        except RecipeError:
            raise
        except ConfigError as error:  # a recipe that does not train by BPTT, as of a stream: its gradient is there
            untimed = one_line(error)
        except Exception as error:  # a cell that BPTT cannot train, either
            failed = f"bptt: {one_line(error)}"
        for rule in rules:
            entry = Cell(cell, rule.spelled, failed=failed, untimed=untimed)
            try:
                if not failed:
                    _fill(entry, module, rule, chosen, truth, steps)
            except RecipeError:
                raise
            except Exception as error:  # a rule that cannot run on a cell is a result, and is printed as one
                entry.failed = one_line(error)
            table.append(entry)
            log.info("%s", line(entry, reasons(table)))
    return table


def check_cells(config: Any, cells: Sequence[str]) -> None:
    """Raises ConfigError where the recipe's option ``cell`` does not take these values, or there is none."""
    if cells and not hasattr(config, "cell"):
        raise ConfigError("this recipe has no option --cell: leave --cells out")
    for cell in cells:
        coerce(cell, get_type_hints(type(config), include_extras=True)["cell"], "--cells")


def _fill(
    entry: Cell, module: Any, rule: Rule, config: Any, truth: tuple[Program, DataIterator] | None, steps: int
) -> None:
    program, iterator = _program(module, rule, config)
    entry.cosine, entry.norm_ratio, entry.sign_agreement = _compare(program)
    entry.trace_bytes = program.learner.trace_bytes()
    entry.loss = _train(program, iterator, steps)
    entry.trained_cosine, entry.trained_norm_ratio, _ = _compare(program)
    if truth is not None:
        entry.time = _relative_time((program, iterator), truth)


def _train(program: Program, iterator: DataIterator, steps: int) -> float:
    """The loss of the last step in which anything was scored."""
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
    total = program.probe(_PROBE, program.example, 0).fetch()[""]
    return float(total["cosine"]), float(total["norm_ratio"]), float(total["sign_agreement"])


_PROBE = GradientFidelity(every=1)


def _relative_time(ours: tuple[Program, DataIterator], theirs: tuple[Program, DataIterator]) -> float:
    """Median over rounds of the time of a step over that of the other program, one after the other; both train on."""

    def step(program: Program, iterator: DataIterator) -> float:
        batches = iterator.take(program.chunk)
        started = time.perf_counter()
        program.train(batches, iterator.taken).fetch()
        return (time.perf_counter() - started) / program.chunk

    ratios = [step(*ours) / step(*theirs) for _ in range(ROUNDS + 1)]
    return statistics.median(ratios[1:])  # the first round warms up


def _program(module: Any, rule: Rule, config: Any) -> tuple[Program, DataIterator]:
    fields = rule.all_fields(config.checked_defaults())
    chosen = dataclasses.replace(config, strategy=rule.name, strategy_fields=fields, run_dir=None, progress=False)
    fit, trained, data = make_run(module.make, chosen)
    data = as_data(data)
    set_up(data)
    iterator = DataIterator(data.train_data(), "train", data.batch_first)
    warn_of_layout(data, iterator.example(), iterator.batch_first)
    build(trained, fit.seed)
    program = make_program(fit.settings, trained, data, iterator.example())
    program.prepare()
    return program, iterator


def load_recipe(path: Path) -> Any:
    """A recipe as a module. Raises ConfigError where there is none, or it defines no ``Config`` or ``make``."""
    if path.suffix != ".py":
        raise ConfigError(f"{path} is no recipe: expected a .py file with Config and make")
    if not path.is_file():
        raise ConfigError(f"there is no recipe {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    sys.path.insert(0, str(path.resolve().parent))  # what lies beside it is found, as by `python RECIPE`
    spec.loader.exec_module(module)
    missing = [name for name in ("Config", "make") if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"{path} is no recipe: it defines no {' and no '.join(missing)}")
    Config = module.Config
    if not (isinstance(Config, type) and issubclass(Config, Options) and dataclasses.is_dataclass(Config)):
        raise ConfigError(f"{path} is no recipe: its Config is no dataclass that extends jaxtrain.cli.Options")
    return module


# ---------------------------------------------------------------------------------------------------- output
