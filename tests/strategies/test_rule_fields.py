"""What the fields of a rule may hold: values, types, and what else is refused in one line."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from jaxtrain import BPTT, DRTRL, TBPTT
from jaxtrain.cli.recipe import guarded
from jaxtrain.strategies import DNI, UORO, EProp, ETrace, PPProp, ReadoutOnly, SnAp, ThreeFactor, register, registry
from jaxtrain.utils.fields import options

pytestmark = pytest.mark.full


def test_wrong_fields_are_refused():
    for make, message in (
        (lambda: PPProp(decay=1.0), r"^PPProp\(decay=1.0\): expected a number in \[0, 1\)$"),
        (lambda: PPProp(rank=0), r"^PPProp\(rank=0\): expected a whole number of time steps, at least 1$"),
        (lambda: PPProp(decay=0.5, rank=4), r"^PPProp\(decay=0.5, rank=4\): a rank replaces the decay; drop one$"),
        (lambda: EProp(vjp="bogus"), r"^EProp\(vjp='bogus'\): expected 'multi-step' or 'single-step'$"),  # type: ignore
        (lambda: EProp(feedback_seed=9), r"^EProp\(feedback_seed=9\): the feedback is not random, so nothing is drawn"),
        (lambda: ETrace(feedback_seed=9), r"^ETrace\(feedback_seed=9\): the feedback is not random"),
        (lambda: EProp(feedback="none"), r"^EProp\(feedback='none'\): expected 'symmetric' or 'random'$"),  # type: ignore
        (lambda: EProp(kappa=-0.1), r"^EProp\(kappa=-0.1\): expected a number in \[0, 1\)$"),
        (lambda: EProp(kappa=0.9, readout_memory=True), r"^EProp\(kappa=0.9\): expected 0 with readout_memory=True"),
        (lambda: SnAp(n=0), r"^SnAp\(n=0\): expected a whole number of time steps, at least 1$"),
        (lambda: DNI(fit_epochs=0), r"^DNI\(fit_epochs=0\): expected a whole number, at least 1$"),
        (lambda: DNI(fit_lr=0.0), r"^DNI\(fit_lr=0.0\): expected a positive rate$"),
        (lambda: ETrace(temporal_recursion="none", decay=0.8), r"discards the previous trace entirely"),
        (lambda: ETrace(learning_signal="telepathy"), r"learning_signal"),  # type: ignore
        (lambda: ETrace(learning_signal="modulatory"), r"^ETrace\(learning_signal='modulatory'\): this is strategy "),  # type: ignore
        (lambda: ETrace(trace_factorization="random_projection"), r"this is strategy 'uoro'; use it$"),  # type: ignore
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_fields_of_a_wrong_type_are_refused():
    for make, message in (
        (lambda: PPProp(decay="0.9"), r"^PPProp\(decay='0.9'\): expected float or None$"),
        (lambda: BPTT(remat="yes"), r"^BPTT\(remat='yes'\): expected true or false$"),
        (lambda: BPTT(remat=1), r"^BPTT\(remat=1\): expected true or false$"),
        (lambda: EProp(feedback_seed="a"), r"^EProp\(feedback_seed='a'\): expected int$"),
        (lambda: TBPTT(window=None), r"^TBPTT\(window=None\): expected int$"),
        (lambda: SnAp(n=2.0), r"^SnAp\(n=2.0\): expected int$"),
        (lambda: DRTRL(update_every="step"), r"^DRTRL\(update_every='step'\): expected 'sequence' or int$"),
        (lambda: ReadoutOnly(stateful=1.5), r"^ReadoutOnly\(stateful=1.5\): expected true or false$"),
        (lambda: UORO(batching="rows"), r"^UORO\(batching='rows'\): expected 'auto' or 'batched' or 'vmap'$"),
        (lambda: ThreeFactor(modulator=3), r"^ThreeFactor\(modulator=3\): expected text$"),
        (lambda: DNI(fit_lr="fast"), r"^DNI\(fit_lr='fast'\): expected float$"),
        (lambda: DNI(fit_lr=float("inf")), r"^DNI\(fit_lr=inf\): expected a positive rate$"),
        (lambda: ETrace(decay=(0.1,)), r"^ETrace\(decay=\(0.1,\)\): expected float or \(float, float\) or None$"),  # type: ignore
        (lambda: ETrace(decay="half"), r"^ETrace\(decay='half'\): expected float or \(float, float\) or None$"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    assert PPProp(decay=0) == PPProp(decay=0.0) and type(PPProp(decay=0).decay) is float
    listed: Any = {"temporal_recursion": ["scalar_leak", "none"], "decay": [0.8, 0]}
    pair = ETrace(trace_factorization="io_factorized", **listed)
    assert pair.temporal_recursion == ("scalar_leak", "none") and pair.decay == (0.8, 0.0) and hash(pair)


def test_a_field_of_a_type_of_ones_own_is_not_judged():
    @dataclass(frozen=True)
    class Own(BPTT):
        scale: Callable | None = None
        size: int = 1

    assert Own(scale=abs).scale is abs
    with pytest.raises(ValueError, match=r"^Own\(size='a'\): expected int$"):
        Own(size="a")  # type: ignore[arg-type]


LIGHTNING_METHODS = """
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jaxtrain import BPTT

if TYPE_CHECKING:
    from elsewhere import Scale


@dataclass(frozen=True)
class Foreign(BPTT):
    name: ClassVar[str] = "foreign"
    scale: Scale | None = None
    pair: tuple[int, float] = (1, 0.5)
    rate: float = 0.1
    made: int = field(init=False, default="set later")

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "made", self.pair[0] + 1)


@dataclass(frozen=True)
class Unset(BPTT):
    made: int = field(init=False)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "made", 3)
"""


def test_a_class_of_somebody_else_is_judged_as_far_as_its_annotations_go(tmp_path, monkeypatch):
    (tmp_path / "foreign_rule.py").write_text(LIGHTNING_METHODS)
    monkeypatch.syspath_prepend(tmp_path)
    foreign: Any = importlib.import_module("foreign_rule")
    made = foreign.Foreign(scale=abs)
    assert made.scale is abs and made.made == 2 and foreign.Unset().made == 3
    given = foreign.Foreign(pair=[np.int32(3), 1], rate=np.float32(0.5))
    assert given.pair == (3, 1.0) and [type(value) for value in given.pair] == [int, float]
    for fields, message in (
        ({"pair": (0.5, 1)}, r"^Foreign\(pair=\(0.5, 1\)\): expected \(int, float\)$"),
        ({"rate": True}, r"^Foreign\(rate=True\): expected float$"),
    ):
        with pytest.raises(ValueError, match=message):
            foreign.Foreign(**fields)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    assert set(options(register(foreign.Foreign))) == {"remat", "batching", "pair", "rate"}
    assert registry.make_strategy("foreign", rate=1) == foreign.Foreign(rate=1.0)
    with pytest.raises(ValueError, match="no field 'made'"):
        registry.make_strategy("foreign", made=3)


def test_numbers_of_other_libraries_are_kept_as_json_has_them():
    given: dict[str, Any] = {"decay": np.float32(0.9), "window": np.int64(3), "update_every": np.int16(5)}
    made = [PPProp(decay=given["decay"]), DRTRL(window=given["window"]), DRTRL(update_every=given["update_every"])]
    assert json.loads(json.dumps([one.config() for one in made])) == [one.config() for one in made]
    assert made[1:] == [DRTRL(window=3), DRTRL(update_every=5)]


@pytest.mark.parametrize(
    "fields,what",
    [
        ({"decay": 1.5}, r"decay must be a float in \[0, 1\), got 1.5"),
        ({"decay": (0.1, 0.2)}, "may only be a pair under"),
        ({"kappa": 0.5}, "`trace_filter` is 'none'"),
        ({"sparse_n": 0}, "must be at least 1, got 0"),
        ({"recurrence_scope": "sparse_n"}, "`sparse_n` is required"),
        ({"trace_factorization": "io_factorized"}, "the x-side decay is required"),
    ],
)
def test_coordinates_that_do_not_exist_are_named_in_one_line(fields, what):
    with pytest.raises(ValueError, match=what) as raised:
        ETrace(**fields)
    given = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    assert str(raised.value).startswith(f"ETrace({given}): ") and "\n" not in str(raised.value)
    assert guarded(lambda: (ETrace(**fields), 0)[1]) == 1, "no traceback at the command line"
