"""Values from files, checked against a dataclass."""

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from jaxtrain.errors import ConfigError
from jaxtrain.utils.coerce import coerce, did_you_mean, field_types, is_plain, overlay, read_config


@dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclass(frozen=True)
class Config:
    batch_size: int = 4
    lr: float = 0.1
    clip: float | None = 1.0
    chunk: Literal["auto"] | int = "auto"
    every: int | str = 5
    name: str = "a"
    flag: bool = False
    sizes: tuple[int, ...] = (1,)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "value, annotation, expected",
    [
        (3, float, 3.0),
        (3, int, 3),
        ("x", str, "x"),
        (True, bool, True),
        (None, float | None, None),
        ("None", float | None, None),
        (2, float | None, 2.0),
        ("auto", Literal["auto"] | int, "auto"),
        (8, Literal["auto"] | int, 8),
        (5, int | str, 5),
        ("1ep", int | str, "1ep"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 0.5], tuple[int, float], (1, 0.5)),
        (["a", 2], tuple[str, float], ("a", 2.0)),
        (np.float32(0.5), float, 0.5),
        (Fraction(1, 4), float | None, 0.25),
        (np.int64(3), int, 3),
        (np.int64(3), Literal["auto", 3], 3),
        (np.uint8(3), float, 3.0),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ("p", Path, Path("p")),
        (1, Annotated[int, "note"], 1),
        ([None], Any, [None]),
    ],
)
def test_coerce(value, annotation, expected):
    found = coerce(value, annotation, "x")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "value, annotation",
    [
        ("3e-4", float),
        (2.0, int),
        (True, int),
        (True, float),
        (1, bool),
        (1, Literal[True]),
        ("auto", int),
        (None, int),
        (1.5, int | str),
        ([1, "2"], list[int]),
        ("12", tuple[int, ...]),
        ([1], tuple[int, float]),
        ([1, 2.0, 3], tuple[int, float]),
        ([0.5, 1], tuple[int, float]),
        (np.float32(2), int),
        (np.bool_(True), int),
        (np.bool_(True), float),
        (np.int64(1), bool),
        (np.int64(1), Literal[True]),
    ],
)
def test_coerce_does_not_guess(value, annotation):
    with pytest.raises(ConfigError, match="^here"):
        coerce(value, annotation, "here")


def test_messages_say_what_is_wrong_and_what_was_expected():
    with pytest.raises(ConfigError, match=r"^f.toml: unknown key 'batchsize'; .* mean 'batch_size'\?$"):
        overlay(Config(), {"batchsize": 3}, "f.toml")
    with pytest.raises(ConfigError, match=r"^f.toml: clip = 'big' is text; expected float or None$"):
        overlay(Config(), {"clip": "big"}, "f.toml")
    with pytest.raises(ConfigError, match=r"^f.toml: inner: unknown key 'widht'; .*did you mean 'width'"):
        overlay(Config(), {"inner": {"widht": 3}}, "f.toml")
    with pytest.raises(ConfigError, match=r"^x = 'alto': expected auto; did you mean 'auto'"):
        coerce("alto", Literal["auto"], "x")
    for annotation, spelled in ((tuple[int, float], "(int, float)"), (tuple[int, ...], "a list of int")):
        with pytest.raises(ConfigError) as raised:
            coerce(3, annotation, "x")
        assert str(raised.value) == f"x = 3 is int; expected {spelled}"


def test_types_of_fields_are_looked_up_one_by_one():
    @dataclass
    class Base:
        far: "NotHere" = None  # pyright: ignore[reportUndefinedVariable] # noqa: F821
        near: "int | None" = None
        set: "int" = 3  # the name of a type that an annotation below means
        counted: int = field(init=False, default=0)

    @dataclass
    class Sub(Base):
        also: "set[int]" = field(default_factory=lambda: {1})
        local: "Base | None" = None

    assert field_types(Sub) == {"near": int | None, "set": int, "also": set[int]}


def test_overlay():
    changed = overlay(Config(), {"batch-size": 8, "inner": {"width": 5}}, "f")
    assert changed == Config(batch_size=8, inner=Inner(5))
    assert Config() == Config(batch_size=4)  # the old one is as it was


def test_did_you_mean():
    assert did_you_mean("drtl", ["bptt", "drtrl"]) == "expected bptt or drtrl; did you mean 'drtrl'?"
    assert did_you_mean("TIME-LAG", ["time_lag"]).endswith("did you mean 'time_lag'?")
    assert did_you_mean("tut", ["tutorial", "b", "c"]) == "expected tutorial, b or c; did you mean 'tutorial'?"
    assert did_you_mean("zzz", ["a"]) == "expected a"
    assert did_you_mean("a", []) == "expected nothing"


def test_read_config(tmp_path):
    (tmp_path / "a.toml").write_text("lr = 0.5\n[drtrl]\nwindow = 2\n")
    (tmp_path / "b.json").write_text('{"lr": 0.5}')
    (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "config": {"lr": 2}, "fit": {}}))
    assert read_config(tmp_path / "a.toml") == {"lr": 0.5, "drtrl": {"window": 2}}
    assert read_config(tmp_path / "b.json") == {"lr": 0.5}
    assert read_config(tmp_path / "config.json") == read_config(tmp_path) == {"lr": 2}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.toml", "lr = ", "x.toml: is not valid TOML"),
        ("x.json", "{", "x.json: is not valid JSON"),
        ("x.json", "[1]", "expected a table"),
        ("config.json", '{"config": null}', "expected a table"),
        ("x.yaml", "lr: 1", "expected a .json or .toml file"),
        ("x.json", None, "x.json: No such file"),
    ],
)
def test_read_config_refuses(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / name)


def test_which_types_can_be_judged():
    for known in (int, str, bool, Path, None | float, Literal["a"] | int, tuple[int, ...], dict[str, float], list[int]):
        assert is_plain(known), known
    assert is_plain(Annotated[int, object()])
    for unknown in (Any, object, Inner, Inner | None, list[Inner], Annotated[Inner, 3], dict):
        assert not is_plain(unknown), unknown
