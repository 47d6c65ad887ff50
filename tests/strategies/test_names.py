"""The registry says what the classes are."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from jaxtrain.errors import ConfigError
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


PAGE = Path(__file__).parents[2] / "docs/strategies.md"


def words(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return {f"`{word}`" for word in get_args(annotation)}
    return set().union(*(words(member) for member in get_args(annotation)))


def test_the_table_of_fields_is_that_of_the_registry():
    lines = PAGE.read_text().split("| field | values |")[1].split("\n\n")[0].splitlines()[2:]
    table: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        field, values, default, of, what = (cell.strip() for cell in line.strip("|").split(" | "))
        for name in names.REGISTRY:
            if f"`{name}`" in of if not of.startswith("all") else f"`{name}`" not in of:
                assert (name, field) not in table, "told once"
                table[name, field] = [values, default, what]
    assert table.keys() == {(name, f"`{field}`") for name, entry in names.REGISTRY.items() for field in entry.fields}
    for (name, field), (values, default, what) in table.items():
        known = names.REGISTRY[name].fields[field.strip("`")]
        assert default == ("-" if known.default is None else f"`{known.default}`"), (name, field)
        assert words(known.type) <= {word.strip(" ,") for word in values.replace(",", " ").split()}, (name, field)
        assert what == known.help or (what == "a coordinate" and name == "etrace"), (name, field)
