"""What is known before step 0: work, memory, and what the rule does to every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.engine import report as preflight
from tests.small import CopyGRU, copies

N, T, B = 8, 11, 4


def scanned(w, xs):
    return jax.lax.scan(lambda h, x: (h @ w + x, None), jnp.zeros((B, N)), xs)[0]


def unrolled(w, xs):
    h = jnp.zeros((B, N))
    for x in xs:
        h = h @ w + x
    return h


def arguments():
    return jnp.ones((N, N)), jnp.ones((T, B, N))


def test_flops_of_a_scan_by_hand():
    counted = preflight.flops(jax.make_jaxpr(scanned)(*arguments()))
    product, addition = 2 * B * N * N, B * N
    assert counted == pytest.approx(T * (product + addition) + B * N, abs=2 * T)


def test_flops_against_the_compiler_where_nothing_is_a_loop():
    jaxpr = jax.make_jaxpr(jax.grad(lambda w, xs: jnp.square(unrolled(w, xs)).sum()))(*arguments())
    analysis = jax.jit(jax.grad(lambda w, xs: jnp.square(unrolled(w, xs)).sum())).lower(*arguments()).cost_analysis()
    assert preflight.flops(jaxpr) == pytest.approx(analysis["flops"], rel=0.15)
    loop = jax.jit(scanned).lower(*arguments()).cost_analysis()["flops"]
    assert preflight.flops(jax.make_jaxpr(scanned)(*arguments())) > 5 * loop, "XLA takes a loop's body once"


def test_flops_go_into_calls_and_take_the_larger_branch():
    w = jnp.ones((N, N))

    def branches(flag, x):
        return jax.lax.cond(flag, lambda x: x @ w @ w, lambda x: x, x)

    def called(x):
        return jax.jit(lambda x: jax.checkpoint(lambda x: x @ w)(x))(x)

    product = 2 * N**3
    assert preflight.flops(jax.make_jaxpr(branches)(True, w)) == pytest.approx(2 * product, rel=0.05)
    assert preflight.flops(jax.make_jaxpr(called)(w)) == pytest.approx(product, rel=0.1)


def test_flops_of_a_convolution():
    image, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
    jaxpr = jax.make_jaxpr(lambda i, k: jax.lax.conv(i, k, (1, 1), "VALID"))(image, kernel)
    assert preflight.flops(jaxpr) == 2 * (5 * 7 * 7) * (3 * 2 * 2)


@pytest.mark.parametrize("vjp,word", [("multi-step", "in part"), ("single-step", "no")])
def test_the_report_names_what_drtrl_cannot_train(vjp, word):
    fit = jt.Fit(jt.DRTRL(vjp=vjp, engine="trace"), max_steps=3)
    report = fit.run(CopyGRU(), copies(), dry_run=True).report
    table = report["parameters"]
    assert {name: entry["trains"] for name, entry in table.items() if entry["trains"] != "yes"} == {
        "rnn.layers.0.Wr.weight": word
    }
    assert table["rnn.layers.0.Wh.weight"]["trace_bytes"] > 0 and table["readout.weight"]["trace_bytes"] == 0
    assert sum(entry["count"] for entry in table.values()) == 376
    text = preflight.lines(report)
    where = next(i for i, line in enumerate(text) if "Wr" in line)
    assert f"trained: {word}" in text[where] and "only through another weight" in text[where + 1]
    assert text[0] == (
        f"strategy   drtrl (update_every=sequence, stateful=False, batching=auto, vjp={vjp}, window=1, engine=trace, "
        "segment=auto, readout_memory=False)"
    )
    assert report["trace_bytes"] and any(line.startswith("traces ") for line in text)
    assert text[1] == "sequence   5 warm-up + 2 scored time steps, 4 sequences"
    assert text[2] == "parameters 376 (1.5 KiB)"
    assert any(line.startswith("resolved   chunk=50, batching=batched") for line in text)
    assert report["flops"] > 0 and report["memory"]["peak_bytes"] > 0 and report["compile_seconds"] > 0


def test_bptt_trains_all_of_it():
    report = jt.Fit("bptt", max_steps=3).run(CopyGRU(), copies(), dry_run=True).report
    assert {entry["trains"] for entry in report["parameters"].values()} == {"yes"}
    assert not any("trained:" in line for line in preflight.lines(report))


def test_a_frozen_parameter_is_reported():
    class Frozen(CopyGRU):
        def trainable(self, name):
            return not name.startswith("readout")

    report = jt.Fit("bptt", max_steps=3).run(Frozen(), copies(), dry_run=True).report
    assert report["parameters"]["readout.weight"]["trains"] == "no"
    assert report["parameters"]["readout.weight"]["why"] == "excluded by Module.trainable"


def test_what_a_person_should_know_is_a_line_each():
    """pp_prop speaks of resets where a batch has them; traces of frozen weights are named with their size."""

    class Reset(CopyGRU):
        def trainable(self, name):
            return "Wh" not in name

        def phases(self, batch):
            made = super().phases(batch)
            return dataclasses.replace(made, reset=np.zeros((sum(made.sizes[:2]), made.sizes[2]), bool))

    report = jt.Fit(jt.strategies.PPProp(engine="trace"), max_steps=3).run(Reset(), copies(), dry_run=True).report
    traces, resets = report["notes"]
    assert "of rnn.layers.0.Wh.weight, which Module.trainable excludes" in traces
    assert resets == "pp_prop: after a sequence is reset, its gradient is too small for about 10 time steps"
    assert [line.split(maxsplit=1)[1] for line in preflight.lines(report)[-2:]] == [traces, resets]
    rows = sum(entry["trace_bytes"] for entry in report["parameters"].values())
    assert report["trace_bytes"] == rows + int(traces.split()[1].replace(",", ""))
    assert (
        jt.Fit(jt.strategies.PPProp(engine="trace"), max_steps=3).run(CopyGRU(), copies(), dry_run=True).report["notes"]
        == []
    )
