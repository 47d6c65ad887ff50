"""The registry says what the classes are."""

import dataclasses
from typing import get_type_hints

import pytest

from jaxtrain.config import ConfigError
from jaxtrain.strategies import names


@pytest.mark.parametrize("name", names.REGISTRY)
def test_an_entry_matches_its_class(name):
    entry, strategy = names.lookup(name), names.make_strategy(name)
    hints = get_type_hints(type(strategy))
    live = {field.name: (hints[field.name], field.default) for field in dataclasses.fields(strategy)}
    assert live == {name: (field.type, field.default) for name, field in entry.fields.items()}
    assert type(strategy).__name__ == entry.cls and strategy.name == name


def test_make_strategy():
    assert names.make_strategy("drtrl", window=3).window == 3
    with pytest.raises(ValueError, match=r"^unknown strategy 'drtl'; expected .*did you mean 'drtrl'\?$"):
        names.make_strategy("drtl")
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': no field 'windw'; .*did you mean 'window'\?$"):
        names.make_strategy("drtrl", windw=3)
    with pytest.raises(ValueError, match=r"^strategy 'bptt': no field 'update_every'; strategy 'tbptt' \(truncated BP"):
        names.make_strategy("bptt", update_every=5)
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': window = '3' is text; expected int$"):
        names.make_strategy("drtrl", window="3")
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': vjp = 'single_step': .*did you mean 'single-step'"):
        names.make_strategy("drtrl", vjp="single_step")


def test_none_is_a_word_where_it_is_a_coordinate():
    """And None elsewhere; pairs come as lists from a file."""
    assert names.make_strategy("etrace", temporal_recursion="none").temporal_recursion == "none"
    assert names.make_strategy("etrace", trace_filter="none", kappa="none").kappa is None
    pairs = {"trace_factorization": "io_factorized", "temporal_recursion": ["scalar_leak", "none"], "decay": [0.8, 0]}
    made = names.make_strategy("etrace", **pairs)
    assert made.temporal_recursion == ("scalar_leak", "none") and made.decay == (0.8, 0.0)
    with pytest.raises(ConfigError, match=r"temporal_recursion = 'leak' is text; expected 'jacobian' or 'scalar_leak'"):
        names.make_strategy("etrace", temporal_recursion="leak")
