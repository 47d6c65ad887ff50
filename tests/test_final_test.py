"""``Fit.run(test=True)``: metrics over the test data once the run is over."""

import json

import brainstate
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.errors import DataError
from tests.small import Linear, Lines, LinesOf, count_compiles, kill, result_of, rows, scalars


class Held(LinesOf):
    """Four other batches; ``before`` is called with the number of each one that is read."""

    batch_first = False

    def __init__(self, before=lambda step: None):
        super().__init__(4)
        self.before = before

    def batch(self, step):
        self.before(step)
        return super().batch(50 + step)


def data(**options):
    return jt.DataModule(Lines(), LinesOf(2), Held(**options))


def fit(folder=None, **options):
    return jt.Fit("bptt", **{"max_steps": 4, "validate_every": 2, "log_every": 3, "run_dir": folder, **options})


def test_the_values_are_those_of_fit_test(tmp_path):
    module, marks = Linear(), {}
    seen, stop = count_compiles()

    class Marks(jt.Callback):
        def on_fit_start(self, run):
            marks["start"] = len(seen)

    trainer = fit(tmp_path, callbacks=[Marks()])
    try:
        result = trainer.run(module, data(), test=True)
    finally:
        stop()
    assert len(seen) == marks["start"], "compiled after step 0"
    wanted = trainer.test(module, data())
    assert wanted and {name: result.metrics[name] for name in wanted} == wanted
    assert result.metrics["test/loss"] != result.metrics["val/loss"]
    assert result_of(tmp_path)["test"] == {"loss": wanted["test/loss"]}
    assert rows(tmp_path)[-1] == {"step": 4, **wanted, "lr": pytest.approx(0.05)}
    assert scalars(tmp_path)["test/loss"] == [(4, pytest.approx(wanted["test/loss"]))]
    assert result.report["val"].keys() == {"val", "test"}


def test_training_does_not_depend_on_it(tmp_path):
    with_test = fit(tmp_path / "a").run(Linear(), data(), test=True)
    without = fit(tmp_path / "b").run(Linear(), data())
    assert with_test.digest == without.digest and result_of(tmp_path / "b")["test"] == {}
    assert rows(tmp_path / "a")[:-1] == rows(tmp_path / "b")


def test_each_seed_is_tested():
    class Drawn(Linear):
        def build(self):
            net = self.Net()
            net.w.value = brainstate.random.normal(size=(2, 3))
            return net

    result = fit(seeds=2).run(Drawn(), data(), test=True)
    each = result.summary["per_seed"]["test/loss"]
    assert len(set(each)) == 2 and np.mean(each) == pytest.approx(result.metrics["test/loss"])
    alone = fit(seed=1).run(Drawn(), data(), test=True)
    assert each[1] == pytest.approx(alone.metrics["test/loss"], rel=1e-5)


@pytest.mark.full
def test_a_finished_run_is_tested_on_request(tmp_path):
    fit(tmp_path).run(Linear(), data())
    speed = result_of(tmp_path)["steps_per_second"]
    for _ in range(2):  # it may be repeated
        tested = fit(tmp_path).run(Linear(), data(), resume="last", test=True)
        assert result_of(tmp_path)["test"] == {"loss": tested.metrics["test/loss"]}
        assert result_of(tmp_path)["steps_per_second"] == speed, "the result of the training is kept"
        assert [row["step"] for row in rows(tmp_path) if "test/loss" in row] == [4]
    whole = fit(tmp_path / "whole").run(Linear(), data(), test=True)
    assert whole.metrics["test/loss"] == tested.metrics["test/loss"]


def test_a_signal_ends_the_test_and_a_resumed_run_repeats_it(tmp_path):
    whole = fit(tmp_path / "whole").run(Linear(), data(), test=True)
    asked = []

    def before(step):
        asked.append(step)
        if len(asked) > 4:  # the shapes of the test data were read before step 0
            kill()

    stopped = fit(tmp_path / "parts").run(Linear(), data(before=before), test=True)
    assert (stopped.status, stopped.step, stopped.exit_code) == ("terminated", 4, 143)
    assert "test/loss" not in stopped.metrics
    result = fit(tmp_path / "parts").run(Linear(), data(), resume="last", test=True)
    assert (result.status, result.digest) == ("finished", whole.digest)
    assert result.metrics["test/loss"] == whole.metrics["test/loss"]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_signal_during_training_leaves_the_test_to_the_resumed_run(tmp_path):
    class Stop(jt.Callback):
        def on_chunk_end(self, run, metrics):
            kill()

    stopped = fit(tmp_path, callbacks=[Stop()]).run(Linear(), data(), test=True)
    assert stopped.status == "terminated" and "test/loss" not in stopped.metrics


def test_missing_test_data_is_named_before_the_first_step(tmp_path):
    with pytest.raises(DataError, match="test=True.*has no test data; give jaxtrain.DataModule\\(train, val, test\\)"):
        fit(tmp_path).run(Linear(), jt.DataModule(Lines(), LinesOf(2)), test=True)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_several_sets_of_test_data():
    sets = jt.DataModule(Lines(), None, {"easy": Held(), "hard": LinesOf(3)})
    result = fit(validate_every=None).run(Linear(), sets, test=True)
    assert {"test/easy/loss", "test/hard/loss"} <= result.metrics.keys() and "test/loss" not in result.metrics
    assert json.dumps(result.summary["test"])
