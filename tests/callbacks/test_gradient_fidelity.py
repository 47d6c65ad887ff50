import jax.numpy as jnp
import pytest

import jaxtrain as jt
from jaxtrain.callbacks import GradientFidelity
from jaxtrain.period import Period
from tests.small import CopyGRU, copies, rows

pytestmark = pytest.mark.full

VALUES = {
    "": {"cosine": 0.9, "norm_ratio": 0.5, "sign_agreement": 0.75},
    "rnn.Wh.weight": {"cosine": 0.8, "norm_ratio": 0.4, "sign_agreement": 0.5},
}


@pytest.mark.parametrize("per_parameter", [True, False])
def test_a_comparison_joins_the_row_of_its_step(make_run, per_parameter):
    callback = GradientFidelity("1ep", per_parameter)
    assert callback.probe_every == Period(1, "epoch")
    run = make_run(callback)
    callback.on_probe(run, VALUES)
    run.recorder.force(0, {})
    (row,) = run.recorder.take()
    total = {"fidelity/cosine": 0.9, "fidelity/norm_ratio": 0.5, "fidelity/sign_agreement": 0.75}
    each = {f"fidelity/{key}/rnn.Wh.weight": value for key, value in VALUES["rnn.Wh.weight"].items()}
    assert row == {"step": 0, **total, **(each if per_parameter else {})}


class Stepped(jt.Callback):
    """A probe that logs, or (``quiet``) only looks."""

    def __init__(self, every, quiet=False):
        self.probe_every, self.quiet = every, quiet

    def probe(self, module, learner, phases):
        return jnp.float32(1)

    def on_probe(self, run, values):
        if not self.quiet:
            run.log({"probed": run.step})


def test_values_stand_in_a_row_of_their_own_step(tmp_path):
    """Also where no row is due: neither lost where the next probe comes before the next row, nor put on a later one."""

    def fidelities(name, log_every, *callbacks):
        fit = jt.Fit(
            jt.DRTRL(engine="trace"), max_steps=8, log_every=log_every, run_dir=tmp_path / name,
            callbacks=[GradientFidelity(2, per_parameter=False), jt.loggers.JSONL(), *callbacks],
        )  # fmt: skip
        fit.run(CopyGRU(), copies())
        return rows(tmp_path / name)

    each = {row["step"]: row for row in fidelities("each", 1)}
    seldom = fidelities("seldom", 5, Stepped(3), Stepped(7, quiet=True))
    assert [row["step"] for row in seldom] == [2, 3, 4, 5, 6, 8], "no row for a probe that logs nothing"
    for row in seldom:
        has = {key for key in row if key.startswith("fidelity/")}
        assert len(has) == (3 if row["step"] % 2 == 0 else 0)
        assert all(row[key] == each[row["step"]][key] for key in has)
        assert row.get("probed") == (row["step"] if row["step"] % 3 == 0 else None)
    assert len({row["fidelity/cosine"] for row in seldom if "fidelity/cosine" in row}) == 4
    mean = lambda *steps: pytest.approx(sum(each[step]["train/loss"] for step in steps) / len(steps))  # noqa: E731
    means = {row["step"]: row["train/loss"] for row in seldom if "train/loss" in row}
    assert means == {5: mean(1, 2, 3, 4, 5), 8: mean(6, 7, 8)}, "those of a run without probes"


@pytest.mark.parametrize("every", [None, "10min", 0])
def test_bad_arguments_are_one_clear_line(every):
    with pytest.raises(ValueError, match=r"GradientFidelity\(every="):
        GradientFidelity(every)  # pyright: ignore[reportArgumentType]
