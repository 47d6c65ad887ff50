import pytest

from jaxtrain.callbacks import GradientFidelity
from jaxtrain.period import Period

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


@pytest.mark.parametrize("every", [None, "10min", 0])
def test_bad_arguments_are_one_clear_line(every):
    with pytest.raises(ValueError, match=r"GradientFidelity\(every="):
        GradientFidelity(every)  # pyright: ignore[reportArgumentType]
