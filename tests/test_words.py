"""Option values on a command line: valid ones, and errors for invalid ones."""

import math

import pytest

from tests.commands import ROOT


@pytest.mark.parametrize("argv", [("--clip", "none"), ("--clip=none",), ("--clip", "None")])
def test_none_is_spelled_either_way(fit, call, argv):
    assert call(*argv)[0] == 0 and fit.config.clip is None
    assert call("--strategy", "pp_prop", "--strategy.rank", "none")[0] == 0
    assert fit.config.strategy_fields["rank"] is None
    assert call("--batch-size", "none")[0] == 2


def test_values_that_options_hold(fit, call):
    pair = "--strategy etrace --strategy.trace-factorization io_factorized --strategy.decay 0.5 0 --lr=-1e-3 --clip inf"
    assert call(*pair.split())[0] == 0
    assert fit.config.strategy_fields["decay"] == (0.5, 0.0) and (fit.config.lr, fit.config.clip) == (-1e-3, math.inf)
    assert call("--strategy", "etrace", "--strategy.decay", "none", "--strategy.trace-filter", "none")[0] == 0
    assert fit.config.strategy_fields["decay"] is None and fit.config.strategy_fields["trace_filter"] == "none"


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--lr x", "--lr = 'x' is text; expected float"),
        ("--lr=x", "--lr = 'x' is text; expected float"),
        ("--lr", "--lr: no value; expected float"),
        ("--batch_size --lr 1", "--batch_size: no value; expected int"),
        ("--max-steps 2.5", "--max-steps = 2.5 is float; expected int"),
        ("--clip x", "--clip = 'x' is text; expected float or None"),
        ("--resume", "--resume: no value; expected text"),
        ("--strategy.vjp both", "--strategy.vjp = 'both': expected multi-step or single-step"),
        (
            "--strategy.vjp multi",
            "--strategy.vjp = 'multi': expected multi-step or single-step; did you mean 'multi-step'?",
        ),
        ("--strategy.update-every often", "--strategy.update-every = 'often' is text; expected 'sequence' or int"),
        ("--strategy pp_prop --strategy.rank a", "--strategy.rank = 'a' is text; expected int or None"),
        (
            "--strategy etrace --strategy.decay 0.1 x",
            "--strategy.decay = [0.1, 'x'] is a list; expected float or (float, float) or None",
        ),
        ("--strategy etrace --strategy.kappa x --help", None),
    ],
)
def test_a_value_that_its_option_cannot_hold_is_one_line(fit, call, argv, message):
    code, out, err = call(*argv.split())
    if message is None:
        assert code == 0 and out and not err, "--help lists the valid values"
    else:
        assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not ROOT.exists()
