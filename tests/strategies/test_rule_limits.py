"""What a rule refuses, says and keeps: wrong fields, models it cannot follow, narrow numbers, bytes of traces."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import (
    BPTT,
    DNI,
    DRTRL,
    TBPTT,
    UORO,
    EProp,
    ETrace,
    OSTLFeedforward,
    OSTLRecurrent,
    PPProp,
    ReadoutOnly,
    SnAp,
    ThreeFactor,
)
from jaxtrain.cli import guarded
from jaxtrain.module import Objective
from jaxtrain.state import parameters
from jaxtrain.strategies import names, register
from jaxtrain.strategies import rule as rules_of
from tests.strategies.test_rules import CASES, LEAK, at_work, compiled, rewarded, three_sequences


def bind(lab, strategy, model=None, phases=None):
    return strategy.bind(Objective(lab.Task(model or lab.task().model), lambda x: x), phases or lab.sequences())


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


def test_coordinates_with_recurrent_mixing_are_mapped(lab):
    coupled = ETrace(recurrence_scope="coupled")
    lab.same(lab.learn(coupled, lab.task(), lab.sequences()), lab.learn(OSTLRecurrent(), lab.task(), lab.sequences()))
    with pytest.raises(ValueError, match=r"^ETrace\(batching='batched'\): this rule needs 'vmap', .*'coupled'\)$"):
        replace(coupled, batching="batched")


def test_three_factor_needs_its_reward(lab):
    with pytest.raises(ValueError, match=r"^ThreeFactor\(modulator='reward'\): Phases.extras holds \[\]; give it the"):
        bind(lab, ThreeFactor())


@pytest.mark.parametrize("shape", ["(T, B)", "(T, B, 1)", "(T, B, N)"])
def test_a_reward_may_be_a_number_a_lane_or_a_unit(lab, shape):
    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    reward = phases.extras["reward"]
    given = {"(T, B)": reward, "(T, B, 1)": reward[..., None], "(T, B, N)": jnp.repeat(reward[..., None], lab.N, -1)}
    grads = lab.learn(ThreeFactor(), rewarded(lab.task()), replace(phases, extras={"reward": given[shape]}))
    lab.same(grads, lab.learn(ThreeFactor(), rewarded(lab.task()), phases))
    assert lab.flat(grads)["rnn.Wh.weight['weight']"].any()
    none = lab.learn(ThreeFactor(), rewarded(lab.task()), replace(phases, extras={"reward": 0 * reward}))
    assert not any(leaf.any() for leaf in lab.flat(none).values())


def test_a_reward_stands_where_the_gradient_of_a_loss_would(lab):
    """Of the loss sum(number * hidden state): the rule's gradient is D-RTRL's, whatever its own module's loss is."""

    class Summed(lab.Task):
        def learning_step(self, forward, x, y, reward):
            return (reward * forward(x)[1]).sum(-1)

    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    rng = np.random.default_rng(3)
    phases = replace(phases, extras={"reward": jnp.asarray(rng.normal(size=(lab.LEARN, lab.B, lab.N)), jnp.float32)})
    got = lab.learn(ThreeFactor(), rewarded(lab.task()), phases)
    wanted = lab.learn(DRTRL(vjp="single-step"), Summed(lab.task(states=True).model), phases)
    traced = ("rnn.Wz.weight", "rnn.Wh.weight")
    lab.same({name: got[name] for name in traced}, {name: wanted[name] for name in traced})


def test_a_model_without_a_recurrence_is_refused(lab):
    for strategy in (PPProp(), EProp(), UORO(), SnAp()):
        with pytest.raises(ValueError, match="no weight of Linear reaches a hidden state through a braintrace op"):
            bind(lab, strategy, braintrace.nn.Linear(lab.N_IN, lab.N_OUT))


def test_a_filtered_trace_stays_batched_where_lanes_would_be_faster(lab, monkeypatch):
    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    for strategy in (EProp(kappa=0.8), ETrace(trace_filter="kappa", kappa=0.8)):
        assert bind(lab, strategy).resolved() == {"batching": "batched"}


def test_why_a_model_is_not_mapped_over_lanes_is_said(lab, monkeypatch):
    """States made in __init__ take a batch alone; mapping would only have been faster."""

    class Made(type(lab.task().model)):
        def __init__(self):
            super().__init__("gru")
            self.last = brainstate.HiddenState(jnp.zeros((lab.B, lab.N_OUT)))

        def update(self, x):
            self.last.value = super().update(x)
            return self.last.value

    monkeypatch.setattr(rules_of, "VMAP_FROM", 1)
    learner = bind(lab, PPProp(), Made())
    assert learner.resolved() == {"batching": "batched"}
    (note,) = learner.notes
    assert note.startswith("batching: batched, since the model cannot be mapped over lanes (") and len(note) > 70
    assert bind(lab, PPProp()).notes == []


class Counting(brainstate.nn.Module):
    """A network with a hidden state that is no number to differentiate."""

    def __init__(self, lab):
        super().__init__()
        self.net = lab.task().model

    def init_state(self, batch_size=None, **kwargs):
        self.count = brainstate.HiddenState(jnp.zeros((batch_size,), jnp.int32))

    def update(self, x):
        self.count.value = self.count.value + 1
        return self.net(x)


def test_a_hidden_state_of_whole_numbers_is_not_differentiated(lab):
    strategy = DRTRL(window=2, engine="trace")
    got = lab.learn(strategy, lab.Task(Counting(lab)), lab.sequences())
    lab.same({n.removeprefix("net."): g for n, g in got.items()}, lab.learn(strategy, lab.task(), lab.sequences()))


# --------------------------------------------------------------------------------------------------- narrow numbers

NARROW = [DRTRL(engine="trace"), PPProp(), EProp(), OSTLFeedforward(), SnAp(), DNI(fit_epochs=1), ETrace(**LEAK)]


def halved(lab):
    task, phases = lab.task(), lab.sequences()
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)  # noqa: E731
    for state in parameters(task.model).values():
        state.value = half(state.value)
    return task, replace(phases, warmup=half(phases.warmup), inputs=half(phases.inputs))


@pytest.mark.parametrize("strategy", NARROW, ids=lambda strategy: strategy.name)
def test_below_32_bits_is_refused(lab, strategy):
    task, phases = halved(lab)
    with pytest.raises(ValueError, match=rf"^strategy '{strategy.name}': the recurrence of Net runs in bfloat16, and "):
        bind(lab, strategy, task.model, phases)


@pytest.mark.parametrize("strategy", [OSTLRecurrent(), UORO()], ids=lambda strategy: strategy.name)
def test_below_32_bits_where_braintrace_can(lab, strategy):
    task, phases = halved(lab)
    assert all(np.isfinite(leaf).all() for leaf in lab.flat(lab.learn(strategy, task, phases)).values())


@pytest.mark.parametrize(
    "name",
    ["drtrl-trace", "pp_prop", "eprop", "ostl_feedforward", "snap", "three_factor", "dni", "etrace-leak"],
)
def test_upstream_a_trace_is_float32_and_its_model_must_be(lab, name):
    """Where this fails, upstream has mended it: the rule's ``narrow`` may be true."""
    task, phases = halved(lab)
    learner = compiled(task, phases.inputs[0], CASES[name])
    if name == "dni":
        learner.attach_synthesizer(braintrace.SyntheticGradient(learner.group_signal_shapes()))
    reward = {"modulator": jnp.ones((1, 1))} if name == "three_factor" else {}

    def step(x, y):
        return lab.squared(learner(x, **reward), y).sum(-1)

    with at_work(task), pytest.raises((ValueError, TypeError), match="(?s)float32.*bfloat16|bfloat16.*float32"):
        learner.etrace_grad(phases.inputs, phases.targets, step_fn=step, reduction="sum")


# ------------------------------------------------------------------------------------------------------ trace bytes


@pytest.mark.parametrize("cell,name", [("gru", "uoro"), ("lstm", "pp_prop"), ("gru", "eprop-kappa"), ("gru", "snap")])
def test_rows_add_up_to_the_traces(lab, cell, name):
    """A trace that several parameters share is counted once; random numbers and counters are no traces."""
    learner = CASES[name].strategy.bind(Objective(lab.task(cell), lambda x: x), lab.sequences())
    total = sum(row.bytes for row in learner.report())
    assert (
        total
        == learner.trace_bytes()
        == sum(
            leaf.nbytes
            for state in learner.own.values()
            if isinstance(state, brainstate.ShortTermState)
            for leaf in jax.tree.leaves(state.value)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        )
    )
    # UORO: the hidden side, and (weights and bias) of two gates. pp-prop: the inputs once, outputs of four gates.
    wanted = {"uoro": 4 * (lab.B * lab.N + 2 * 60), "pp_prop": 4 * lab.B * (9 + 4 * 2 * lab.N)}
    assert total == wanted.get(name, total) > 0


def test_readout_only_keeps_no_trace(lab):
    learner = bind(lab, ReadoutOnly())
    assert learner.trace_bytes() == 0 and not hasattr(learner, "rule") and not hasattr(learner, "inner")


# -------------------------------------------------------------------------------------------- types, words, coordinates


def test_fields_of_a_wrong_type_are_refused():
    for make, message in (
        (lambda: PPProp(decay="0.9"), r"^PPProp\(decay='0.9'\): expected float or None$"),
        (lambda: BPTT(remat="yes"), r"^BPTT\(remat='yes'\): expected true or false$"),
        (lambda: BPTT(remat=1), r"^BPTT\(remat=1\): expected true or false$"),
        (lambda: EProp(feedback_seed="a"), r"^EProp\(feedback_seed='a'\): expected int$"),
        (lambda: TBPTT(window=None), r"^TBPTT\(window=None\): expected int$"),
        (lambda: SnAp(n=2.0), r"^SnAp\(n=2.0\): expected int$"),
        (lambda: DRTRL(update_every="step"), r"^DRTRL\(update_every='step'\): expected 'sequence' or int$"),
        (lambda: ReadoutOnly(carry=True), r"^ReadoutOnly\(carry=True\): expected 'reset' or 'carry'$"),
        (lambda: UORO(batching="lanes"), r"^UORO\(batching='lanes'\): expected 'auto' or 'batched' or 'vmap'$"),
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


FOREIGN = """
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
    (tmp_path / "foreign_rule.py").write_text(FOREIGN)
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
    monkeypatch.setattr(names, "REGISTRY", dict(names.REGISTRY))
    assert set(register(foreign.Foreign) and names.lookup("foreign").fields) == {"remat", "batching", "pair", "rate"}
    assert names.make_strategy("foreign", rate=1) == foreign.Foreign(rate=1.0)
    with pytest.raises(ValueError, match="no field 'made'"):
        names.make_strategy("foreign", made=3)


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


def test_what_braintrace_refuses_is_a_line_and_what_a_model_raises_is_not(lab, monkeypatch):
    """Its own refusals are for the reader; an error within the model keeps its place and gets a note."""

    compile_rule = rules_of.compile_rule
    for name, more, what in (
        ("no such rule", {}, "no such rule"),
        (None, {"snap_max_jacobian_elements": 9}, "ceiling"),
    ):

        def changed(*args, name=name, more=more, **options):
            *args, algorithm = args
            return compile_rule(*args, name or algorithm, **options, **more)

        monkeypatch.setattr(rules_of, "compile_rule", changed)
        with pytest.raises(ValueError, match=rf"^strategy 'snap' cannot run on Net: .*{what}") as raised:
            bind(lab, SnAp())
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(rules_of, "compile_rule", lambda *args, **kwargs: int("the model's"))
    with pytest.raises(ValueError, match=r"^invalid literal for int") as raised:
        bind(lab, PPProp())
    assert raised.value.__notes__ == ["jaxtrain: strategy 'pp_prop' cannot run on Net"]


# ----------------------------------------------------------------------------------------------- rewards, the control


def test_three_factor_says_where_a_reward_comes_from(lab):
    with pytest.raises(ValueError) as raised:
        bind(lab, ThreeFactor())
    for part in ("Module.phases", "extras={'reward': reward}", "(T_l, B, units)", "by keyword", "recipes have none"):
        assert part in str(raised.value)
    (phases, *_) = three_sequences(lab, CASES["three_factor"])
    for shape in ((lab.LEARN, lab.B, lab.N + 1), (lab.LEARN, lab.B, 1, 1)):
        wrong = replace(phases, extras={"reward": jnp.ones(shape)})
        with pytest.raises(
            ValueError, match=r"\['reward'\] has shape .*expected one of \(4, 3\), \(4, 3, 1\), \(4, 3, 6\)"
        ):
            ThreeFactor().bind(Objective(rewarded(lab.task()), lambda x: x), wrong)


def test_the_control_says_what_it_trains(lab):
    class Frozen(lab.Task):
        def trainable(self, name):
            return name == "rnn.Wh.weight"

    with pytest.raises(ValueError, match=r"^readout_only: rnn.Wh.weight act through the hidden state, and nothing"):
        ReadoutOnly().bind(Objective(Frozen(lab.task().model), lambda x: x), lab.sequences())
    assert bind(lab, ReadoutOnly()).notes == []
    plain = bind(lab, ReadoutOnly(), braintrace.nn.Linear(lab.N_IN, lab.N_OUT))
    assert plain.notes == ["readout_only: Linear has no hidden state, so everything is read out, as in bptt"]
    model = lambda: braintrace.nn.Linear(lab.N_IN, lab.N_OUT)  # noqa: E731
    with brainstate.random.seed_context(0):
        ours = lab.learn(ReadoutOnly(), lab.Task(model()), lab.sequences())
    with brainstate.random.seed_context(0):
        lab.same(ours, lab.learn(BPTT(), lab.Task(model()), lab.sequences()))
