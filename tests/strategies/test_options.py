"""The options of every strategy: their checks, and their table in the docs."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import jaxtrain as jt
from jaxtrain.errors import ConfigError
from jaxtrain.strategies import registry
from jaxtrain.utils.fields import Option, options, summary


@pytest.mark.parametrize("name", registry.REGISTRY)
def test_every_option_has_a_type_a_default_and_help(name):
    cls = registry.lookup(name)
    assert cls.name == name and summary(cls)
    assert list(options(cls)) == [field.name for field in dataclasses.fields(cls)]
    for option in options(cls).values():
        assert option.default is not dataclasses.MISSING and option.help and not option.help.endswith(".")


def test_no_strategy_needs_jax_to_be_described():
    code = """
import sys
from jaxtrain.strategies import registry
from jaxtrain.utils.fields import Option, options, summary
from jaxtrain.utils.fields import options
for name in registry.REGISTRY:
    assert options(registry.lookup(name))
    if name != "etrace":  # its coordinates are checked by braintrace
        registry.make_strategy(name).config()
assert not {"jax", "numpy", "brainstate", "braintrace"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=PAGE.parents[1], check=True)


@dataclass(frozen=True)
class Documented(jt.BPTT):
    """Extends BPTT."""

    remat: bool = True
    plain: int = 1
    scale: float = field(default=2.0)
    """a factor
    of the gradient

    More of it.
    """


def test_help_is_the_first_paragraph_under_a_field():
    found = options(Documented)
    assert found["remat"].help == options(jt.BPTT)["remat"].help and found["remat"].default is True
    assert found["plain"].help == "" and found["scale"] == Option(float, 2.0, "a factor of the gradient")


def test_a_class_without_source_has_no_help():
    body = {"__annotations__": {"size": int}, "size": 3, "__module__": "nowhere"}
    made = dataclass(frozen=True)(type("Made", (jt.BPTT,), body))
    assert options(made)["size"] == Option(int, 3, "") and options(made)["remat"].help


def test_make_strategy():
    assert registry.make_strategy("drtrl", window=3).window == 3
    with pytest.raises(ValueError, match=r"^unknown strategy 'drtl'; expected .*did you mean 'drtrl'\?; import"):
        registry.make_strategy("drtl")
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': no field 'windw'; .*did you mean 'window'\?$"):
        registry.make_strategy("drtrl", windw=3)
    with pytest.raises(ValueError, match=r"^strategy 'bptt': no field 'update_every'; strategy 'tbptt' \(truncated BP"):
        registry.make_strategy("bptt", update_every=5)
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': window = '3' is text; expected int$"):
        registry.make_strategy("drtrl", window="3")
    with pytest.raises(ValueError, match=r"^strategy 'drtrl': vjp = 'single_step': .*did you mean 'single-step'"):
        registry.make_strategy("drtrl", vjp="single_step")


def test_none_is_a_word_where_it_is_a_coordinate():
    """And None elsewhere; pairs come as lists from a file."""
    assert registry.make_strategy("etrace", temporal_recursion="none").temporal_recursion == "none"
    assert registry.make_strategy("etrace", trace_filter="none", kappa="none").kappa is None
    pairs = {"trace_factorization": "io_factorized", "temporal_recursion": ["scalar_leak", "none"], "decay": [0.8, 0]}
    made = registry.make_strategy("etrace", **pairs)
    assert made.temporal_recursion == ("scalar_leak", "none") and made.decay == (0.8, 0.0)
    with pytest.raises(ConfigError, match=r"temporal_recursion = 'leak' is text; expected 'jacobian' or 'scalar_leak'"):
        registry.make_strategy("etrace", temporal_recursion="leak")


PAGE = Path(__file__).parents[2] / "docs/strategies.md"


def words(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return {f"`{word}`" for word in get_args(annotation)}
    return set().union(*(words(member) for member in get_args(annotation)))


def test_the_table_of_fields_is_that_of_the_classes():
    lines = PAGE.read_text().split("| field | values |")[1].split("\n\n")[0].splitlines()[2:]
    table: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        field, values, default, of, what = (cell.strip() for cell in line.strip("|").split(" | "))
        for name in registry.REGISTRY:
            if f"`{name}`" in of if not of.startswith("all") else f"`{name}`" not in of:
                assert (name, field) not in table, "listed once"
                table[name, field] = [values, default, what]
    known = {name: options(registry.lookup(name)) for name in registry.REGISTRY}
    assert table.keys() == {(name, f"`{field}`") for name, own in known.items() for field in own}
    for (name, field), (values, default, what) in table.items():
        option = known[name][field.strip("`")]
        assert default == ("-" if option.default is None else f"`{option.default}`"), (name, field)
        assert words(option.type) <= {word.strip(" ,") for word in values.replace(",", " ").split()}, (name, field)
        assert what == option.help, (name, field)
