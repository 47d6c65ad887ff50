"""Values that might be accepted silently or end in a traceback: each gives an error of one line."""

import pytest

import jaxtrain as jt
from jaxtrain import cli
from jaxtrain.cli import parse
from jaxtrain.cli.options import NetworkOptions, TrainingOptions, check_options
from jaxtrain.commands.compare import plan
from jaxtrain.errors import ConfigError
from tests.small import Linear, lines


def test_no_update_would_be_made():
    with pytest.raises(ValueError, match=r"Fit\(accumulate=10, max_steps=3\): there would be no update"):
        jt.Fit("bptt", accumulate=10, max_steps=3)


def test_more_steps_than_are_counted():
    with pytest.raises(ValueError, match=r"max_steps=2147483648\): expected a whole number, below 2\*\*31"):
        jt.Fit("bptt", max_steps=2**31)


def test_trainable_says_yes_or_no():
    class Odd(Linear):
        def trainable(self, name):
            return "no"

    with pytest.raises(TypeError, match=r"Odd.trainable\('.*'\) returned 'no'; expected a bool"):
        jt.Fit("bptt", max_steps=1).run(Odd(), lines())


def test_a_callback_that_is_given_twice():
    watch = jt.callbacks.Throughput()
    with pytest.raises(ValueError, match="callbacks contains one object twice"):
        jt.Fit("bptt", max_steps=1, callbacks=[watch, watch])


@pytest.mark.parametrize(
    ("Kind", "values", "text"),
    [
        (NetworkOptions, {"mlp": -1}, "--mlp -1: expected 0 or more"),
        (TrainingOptions, {"lr": float("inf")}, "--lr inf: expected a positive number"),
        (TrainingOptions, {"max_steps": 10**20}, "--max-steps 100000000000000000000: expected a whole"),
        (TrainingOptions, {"batch_size": 2**31}, "--batch-size 2147483648: expected a whole number, below 2**31"),
    ],
)  # fmt: skip
def test_options(Kind, values, text):
    with pytest.raises(ConfigError) as caught:
        check_options(Kind(**values), counts=("max_steps",) if "max_steps" in values else ())
    assert str(caught.value).startswith(text)


def test_an_empty_run_dir_is_no_directory(capsys):
    with pytest.raises(ConfigError, match="--run-dir '': expected a directory"):
        parse.find_start("last", "", None)


def test_memory_that_runs_out_is_one_line(capsys):
    def work():
        raise MemoryError("Unable to allocate 7 TiB")

    assert cli.guarded(work) == 1
    assert capsys.readouterr().err == "error: not enough memory: Unable to allocate 7 TiB\n"


def test_a_value_that_is_varied_twice():
    with pytest.raises(ConfigError, match="--vary hidden=8,8: a value is given twice"):
        plan.parse_variants(NetworkOptions(), ["hidden=8,8"])
