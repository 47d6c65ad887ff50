"""Every rule's gradient is braintrace's own; what braintrace cannot do is refused, until the day it can."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import DRTRL
from jaxtrain.core.module import Phases
from jaxtrain.core.state import name_of
from jaxtrain.strategies import (
    DNI,
    UORO,
    EProp,
    ETrace,
    OSTLFeedforward,
    OSTLRecurrent,
    PPProp,
    SnAp,
    Strategy,
    ThreeFactor,
)

MULTI, SINGLE = {"vjp_method": "multi-step"}, {"vjp_method": "single-step"}
LEAK = {"temporal_recursion": "scalar_leak", "decay": 0.8}
OTTT: dict[str, Any] = {
    "trace_factorization": "io_factorized", "temporal_recursion": ("scalar_leak", "none"), "decay": (0.8, 0.0)
}  # fmt: skip
KAPPA: dict[str, Any] = {"trace_filter": "kappa", "kappa": 0.8}
SPARSE: dict[str, Any] = {"recurrence_scope": "sparse_n", "sparse_n": 2}


@dataclass
class Case:
    """A strategy, and how braintrace is called for the same rule."""

    strategy: Strategy
    algorithm: Any
    options: dict[str, Any] = field(default_factory=dict)
    vmap: bool = False


CASES = {
    "drtrl": Case(DRTRL(), "d_rtrl", MULTI),
    "drtrl-trace": Case(DRTRL(engine="trace"), "d_rtrl", MULTI),
    "pp_prop": Case(PPProp(), "pp_prop", {"decay_or_rank": 0.9, **MULTI}),
    "pp_prop-single": Case(PPProp(vjp="single-step"), "pp_prop", {"decay_or_rank": 0.9, **SINGLE}),
    "pp_prop-rank": Case(PPProp(rank=4), "pp_prop", {"decay_or_rank": 4, **MULTI}),
    "pp_prop-vmap": Case(PPProp(decay=0.5, batching="vmap"), "pp_prop", {"decay_or_rank": 0.5, **MULTI}, True),
    "eprop": Case(EProp(), "eprop", SINGLE),
    "eprop-random": Case(
        EProp(feedback="random", feedback_seed=3), "eprop",
        {"feedback": "random", "random_feedback_key": jax.random.key(3), **SINGLE},
    ),
    "eprop-kappa": Case(EProp(kappa=0.8), "eprop", {"kappa_filter_decay": 0.8, **SINGLE}),
    "ostl_recurrent": Case(OSTLRecurrent(), "ostl_recurrent", MULTI, True),
    "ostl_feedforward": Case(OSTLFeedforward(), "ostl_feedforward", MULTI),
    "snap": Case(SnAp(n=2), braintrace.SnAp, {"n": 2, **MULTI}, True),
    "uoro": Case(UORO(), "uoro"),
    "three_factor": Case(ThreeFactor(), braintrace.ThreeFactor),
    "dni": Case(DNI(fit_epochs=3), "dni"),
    "dni-vmap": Case(DNI(fit_epochs=3, batching="vmap"), "dni", vmap=True),
    "etrace-leak": Case(ETrace(**LEAK), braintrace.ETraceConfig(**LEAK), MULTI),
    "etrace-ottt": Case(ETrace(**OTTT), braintrace.ETraceConfig(**OTTT), MULTI),
    "etrace-random": Case(
        ETrace(learning_signal="random_feedback", feedback_seed=3),
        braintrace.ETraceConfig(learning_signal="random_feedback"),
        {"random_feedback_key": jax.random.key(3), **MULTI},
    ),
    "etrace-kappa": Case(ETrace(**KAPPA), braintrace.ETraceConfig(**KAPPA), MULTI),
    "etrace-sparse": Case(ETrace(**SPARSE), braintrace.ETraceConfig(**SPARSE), MULTI, True),
}  # fmt: skip


@contextmanager
def at_work(module):
    with warnings.catch_warnings(), brainstate.environ.context(**module.environ, fit=True):
        warnings.simplefilter("ignore")  # braintrace names the weights without a trace
        yield


def compiled(module, x, case: Case, **more):
    with at_work(module):
        return braintrace.compile(
            module.model, case.algorithm, x, batch_size=len(x), vmap=case.vmap, **{**case.options, **more}
        )


class Loop:
    """braintrace driven by hand: compile, ``etrace_evolve``, ``etrace_grad``, a new learner for every sequence."""

    def __init__(self, lab, module, case: Case, window: int | None = None, prepare: Callable = lambda learner: None):
        self.lab, self.module, self.case, self.window, self.prepare = lab, module, case, window, prepare
        self.outside: Any = None
        if case.algorithm == "uoro":  # which braintrace cannot construct in a compiled function
            self.outside = compiled(module, jnp.zeros((lab.B, lab.N_IN)), case)
            states = brainstate.graph.states(self.outside).values()
            self.begin = [(s, s.value) for s in states if not isinstance(s, brainstate.ParamState)]
        self._run = brainstate.transform.jit(self.run)

    def __call__(self, phases: Phases) -> dict[str, Any]:
        with at_work(self.module):
            return self._run(phases)

    def learner(self, x):
        if self.outside is None:
            return compiled(self.module, x, self.case)
        for state, value in self.begin:
            state.value = value
        brainstate.random.DEFAULT.value = self.lab.KEY
        self.outside.projection_rng.value = jax.random.fold_in(self.lab.KEY, 0)
        return self.outside

    def run(self, phases: Phases) -> dict[str, Any]:
        learner, squared = self.learner(phases.inputs[0]), self.lab.squared
        self.prepare(learner)
        if self.case.algorithm is braintrace.ThreeFactor:
            brainstate.transform.for_loop(lambda x: learner(x, modulator=0.0), phases.warmup)
            reward = phases.weights * phases.extras["reward"]  # it stands where a loss's gradient does
            data = (phases.inputs, phases.targets, reward[..., None, None])  # one number per sequence
            step = lambda x, y, m: squared(learner(x, modulator=m), y).sum(-1)  # noqa: E731
        else:
            learner.etrace_evolve(phases.warmup)
            data = (phases.inputs, phases.targets, phases.weights)
            many = (lambda x: x) if self.window is None else braintrace.MultiStepData
            step = lambda x, y, w: (w * squared(learner(many(x)), y)).sum(-1)  # noqa: E731
        grads = learner.etrace_grad(*data, step_fn=step, chunk_size=self.window, reduction="sum")
        return {name_of(path): grad for path, grad in grads.items()}


def three_sequences(lab, case: Case, **kwargs) -> list[Phases]:
    """With one weight per sequence and time step, a third of them zero."""
    made = [lab.sequences(seed, **kwargs) for seed in range(3)]
    for i, phases in enumerate(made):
        w = np.random.default_rng((7, i)).uniform(-0.5, 1, phases.sizes[1:]).clip(0)
        made[i] = replace(phases, weights=jnp.asarray(w, jnp.float32))
    if not isinstance(case.strategy, ThreeFactor):
        return made
    rng = np.random.default_rng(5)
    rewards = [jnp.asarray(rng.standard_normal(phases.sizes[1:]), jnp.float32) for phases in made]
    return [replace(phases, extras={"reward": reward}) for phases, reward in zip(made, rewards, strict=True)]


def rewarded(module):
    """The same task where the batch holds a reward that the loss does not look at."""

    class Rewarded(type(module)):
        def learning_step(self, forward, x, y, reward=None):
            return super().learning_step(forward, x, y)

    module.__class__ = Rewarded
    return module


def synthesiser_of(learner) -> Callable:
    """Gives braintrace's learner the synthesiser that the strategy has fitted."""
    fitted = {name.split("synthesizer.")[-1]: state.value for name, state in learner.states().items()}

    def attach(mine):
        mine = mine.module if isinstance(mine, brainstate.nn.Vmap) else mine
        synthesiser = braintrace.SyntheticGradient(mine.group_signal_shapes())
        for path, state in brainstate.graph.states(synthesiser).items():
            state.value = fitted[name_of(path)]
        mine.attach_synthesizer(synthesiser)

    return attach


@pytest.mark.quick
@pytest.mark.cover
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cell", ["gru", "lstm", "minigru", "lru", "lif"])
def test_gradient_is_braintraces_over_three_sequences(lab, cell, name):
    case = CASES[name]
    sequences = three_sequences(lab, case)
    drive = lab.Drive(case.strategy, rewarded(lab.task(cell)), sequences[0])
    prepare = synthesiser_of(drive.learner) if name.startswith("dni") else lambda learner: None
    loop = Loop(lab, lab.task(cell), case, prepare=prepare)
    seen = []
    for phases in sequences:
        grads, wanted = drive.grads(phases), loop(phases)
        lab.same(grads, wanted)
        assert all(lab.cosine(grads, other) < 0.999 for other in seen), "another sequence, another gradient"
        seen.append(grads)
    alive = {name.partition("[")[0] for grads in seen for name, leaf in lab.flat(grads).items() if leaf.any()}
    dead = seen[0].keys() - alive
    with brainstate.environ.context(**lab.task(cell).environ, fit=True):
        rows = drive.learner.report(sequences[0])
    assert dead == {row.name for row in rows if row.trains == "no"}
    resolved = drive.learner.resolved()
    mapped = case.strategy.batching == "vmap" if resolved.get("engine") == "reverse" else case.vmap
    assert resolved["batching"] == ("vmap" if mapped else "batched")


# ---------------------------------------------------------------------------------------------------------- windows

WINDOWS = {
    "ostl_feedforward": replace(CASES["ostl_feedforward"], strategy=OSTLFeedforward(window=2)),
    "etrace-leak": replace(CASES["etrace-leak"], strategy=ETrace(**LEAK, window=2)),
    "etrace-ottt": replace(CASES["etrace-ottt"], strategy=ETrace(**OTTT, window=2)),
}


@pytest.mark.full
@pytest.mark.cover
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("cell", ["gru", "lru", "lif"])
def test_a_window_is_braintraces(lab, cell, name):
    case = WINDOWS[name]
    sequences = three_sequences(lab, case)
    drive, loop = lab.Drive(case.strategy, lab.task(cell), sequences[0]), Loop(lab, lab.task(cell), case, window=2)
    for phases in sequences:
        lab.same(drive.grads(phases), loop(phases))


@pytest.mark.full
@pytest.mark.parametrize("cell", ["gru", pytest.param("lif", marks=pytest.mark.long)])
def test_a_window_of_pp_prop_is_braintraces_with_its_counter_put_right(lab, cell):
    """pp-prop's trace is a mean that begins at zero, and is divided by 1 - decay^n after n time steps. braintrace
    counts its calls instead (its limitation F-30), and one too many where it contracts the trace at a window's entry;
    here n is the number of time steps that the trace has seen. With its counter set so, braintrace's gradient is ours;
    as it comes it is off by some per cent. Where this test fails, upstream has mended one of the two."""
    case, phases, window = CASES["pp_prop"], lab.sequences(), 2
    ours = lab.learn(PPProp(window=window), lab.task(cell), phases)

    def by_hand(mend: bool):
        module = lab.task(cell)

        def run(phases):
            learner, total = compiled(module, phases.inputs[0], case), None
            learner.etrace_evolve(phases.warmup)
            for start in range(0, lab.LEARN, window):
                if mend:
                    learner.running_index.value = jnp.int32(lab.WARM + start - 1)  # it adds one before it is used
                step = lambda x, y: lab.squared(learner(braintrace.MultiStepData(x)), y).sum(-1)  # noqa: E731
                now = slice(start, start + window)
                grads = learner.etrace_grad(
                    phases.inputs[now], phases.targets[now], step_fn=step, chunk_size=window, reduction="sum"
                )
                total = grads if total is None else jax.tree.map(jnp.add, total, grads)
            return {name_of(path): grad for path, grad in total.items()}

        with at_work(module):
            return brainstate.transform.jit(run)(phases)

    lab.same(ours, by_hand(mend=True))
    as_it_comes = by_hand(mend=False)
    assert lab.cosine(ours, as_it_comes) > 0.99
    lab.same(ours, as_it_comes, tolerance=0.1)
    with pytest.raises(AssertionError, match="off by"):
        lab.same(ours, as_it_comes, tolerance=1e-3)


# ------------------------------------------------------------ what upstream cannot do, noticed when it has mended it


def upstream(lab, algorithm, options=MULTI, vmap=False, window=None):
    """Drives braintrace on the GRU; raises what it raises."""
    case = Case(DRTRL(), algorithm, dict(options), vmap)
    return Loop(lab, lab.task(), case, window=window)(three_sequences(lab, Case(ThreeFactor(), None))[0])


def test_upstream_a_kappa_filter_cannot_be_mapped(lab):
    with pytest.raises(jax.errors.UnexpectedTracerError):
        upstream(lab, "eprop", {"kappa_filter_decay": 0.8}, vmap=True)
    for strategy in (EProp(kappa=0.8), ETrace(trace_filter="kappa", kappa=0.8)):
        with pytest.raises(ValueError, match=r"\(batching='vmap'\): this rule needs 'batched', .* cannot map"):
            replace(strategy, batching="vmap")
    assert CASES["eprop-kappa"].strategy == EProp(kappa=0.8)  # which is batched, even if mapping would be faster


def test_upstream_uoro_cannot_be_mapped_or_made_within_a_program(lab):
    task = lab.task()
    with pytest.raises(TypeError, match="key<fry>"):
        learner = compiled(lab.task(), jnp.zeros((lab.B, lab.N_IN)), Case(UORO(), "uoro", {}, vmap=True))
        brainstate.transform.jit(lambda x: learner(x))(jnp.ones((lab.B, lab.N_IN)))
    with pytest.raises(jax.errors.ConcretizationTypeError):
        brainstate.transform.jit(lambda x: compiled(task, x, CASES["uoro"])(x))(jnp.ones((lab.B, lab.N_IN)))
    with pytest.raises(ValueError, match=r"^UORO\(batching='vmap'\): this rule needs 'batched', braintrace cannot map"):
        UORO(batching="vmap")


def test_upstream_snap_counts_sequences_as_units(lab):
    """Over a batch its Jacobian is (batch x units) squared; mapped over sequences it is units squared."""
    sizes = {}
    for vmap in (False, True):
        learner = compiled(lab.task(), jnp.zeros((lab.B, lab.N_IN)), replace(CASES["snap"], vmap=vmap))
        (trace, *_) = [
            state.value
            for state in brainstate.graph.states(learner).values()
            if isinstance(state, braintrace.EligibilityTrace)
        ]
        sizes[vmap] = sum(leaf.size for leaf in jax.tree.leaves(trace))
    assert sizes[False] == lab.B * sizes[True], "upstream has mended it: SnAp and OSTLRecurrent may be batched"
    for strategy, options in ((SnAp, {}), (OSTLRecurrent, {"engine": "trace"})):
        with pytest.raises(ValueError, match=r"\(batching='batched'\): this rule needs 'vmap', over a batch"):
            strategy(batching="batched", **options)


def test_upstream_three_factor_takes_one_time_step_and_cannot_be_mapped(lab):
    with pytest.raises(ValueError, match="learning_signal='modulatory' requires vjp_method='single-step'"):
        upstream(lab, braintrace.ThreeFactor, MULTI)
    with pytest.raises(NotImplementedError, match="not supported in brainstate.transform.vmap"):
        upstream(lab, braintrace.ThreeFactor, {}, vmap=True)
    with pytest.raises(ValueError, match=r"^ThreeFactor\(batching='vmap'\): this rule needs 'batched', braintrace"):
        ThreeFactor(batching="vmap")


def test_upstream_windows_cannot_be_mapped(lab):
    with pytest.raises(ValueError, match="not supported under a vmapped learner"):
        upstream(lab, "d_rtrl", vmap=True, window=2)
    for strategy in (SnAp, OSTLRecurrent):
        assert "window" not in strategy().config()
    with pytest.raises(ValueError, match=r"^ETrace\(window=2\): windows need batched states, and this is mapped over"):
        ETrace(recurrence_scope="coupled", window=2)


class Doubled(brainstate.nn.Module):
    """Gives out a value that is on its way into a weight."""

    def __init__(self, lab):
        super().__init__()
        self.rnn = lab.task("minigru").model.rnn

    def update(self, x):
        z = x * 2.0
        self.rnn(z)
        return z


def test_upstream_a_value_that_feeds_a_weight_cannot_be_an_output(lab):
    model, x = Doubled(lab), jnp.ones((lab.B, lab.N_IN))
    learner = compiled(lab.Task(model), x, Case(DRTRL(), "d_rtrl"))
    with pytest.raises(KeyError, match="Var"):
        brainstate.transform.jit(learner)(x)


def test_a_value_that_feeds_a_weight_and_is_an_output_is_refused(lab):
    class Silent(lab.Task):
        def learning_step(self, forward, x, y):
            return jnp.square(forward(x)).mean(-1)

    with pytest.raises(ValueError, match="Doubled"):
        lab.learn(DRTRL(engine="trace"), Silent(Doubled(lab)), lab.sequences())
