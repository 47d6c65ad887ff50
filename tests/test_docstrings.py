"""Every public name is documented: its parameters, what it returns and raises, and an example that runs.

The names are those of tests/api.txt. An example is the indented code after ``Example::``, or lines that begin with
``>>>``. ``python tests/test_docstrings.py`` prints what is missing.
"""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import brainpy.state
import brainstate
import braintools
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import jaxtrain
from jaxtrain.strategies import registry
from tests.test_api import NAMESPACES, PARTS

UNDOCUMENTED = {"jaxtrain.__version__", "jaxtrain.cli.StrategyName", "jaxtrain.nn.CellName"}
"""Names of values, which cannot hold a docstring. docs/api says what they are."""

SKIPPED_PARAMETERS = {"self", "cls", "args", "kwargs", "_"}


class Public(NamedTuple):
    name: str
    value: Any
    owner: type | None
    """The class of a method."""
    namespace: str

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.value) or ""

    @property
    def function(self) -> Any:
        return inspect.unwrap(self.value)


def public() -> Iterator[Public]:
    """The names of tests/api.txt, without those of values."""
    seen: set[int] = set()
    for namespace in NAMESPACES:
        module: Any = importlib.import_module(".".join(filter(None, ("jaxtrain", namespace))))
        for own in sorted(getattr(module, "__all__", ())):
            value, name = getattr(module, own), f"{module.__name__}.{own}"
            if inspect.ismodule(value) or id(value) in seen or name in UNDOCUMENTED:
                continue
            seen.add(id(value))
            yield Public(name, value, None, namespace)
            if inspect.isclass(value):
                parts = [base for base in value.__mro__ if base is value or base.__name__ in PARTS]
                for method in sorted({method for part in parts for method in vars(part)}):
                    found = inspect.getattr_static(value, method)
                    if not method.startswith("_") and (
                        isinstance(found, property | staticmethod | classmethod) or inspect.isfunction(found)
                    ):
                        yield Public(f"{name}.{method}", getattr(value, method), value, namespace)


NAMES = {each.name: each for each in public()}


def section(doc: str, title: str) -> str:
    found = re.search(rf"^{title}:\n((?:(?: +.*)?\n?)+)", doc, re.M)
    return found[1] if found else ""


def documented_parameters(each: Public) -> str:
    """Text in which a parameter may be described: its docstring and, of a method, that of its class."""
    text = each.doc
    classes = [each.value] if inspect.isclass(each.value) else []
    if each.owner is not None:
        classes += [base for base in each.owner.__mro__ if each.name.rpartition(".")[2] in vars(base)]
        text += "".join(base.__doc__ or "" for base in classes)
    for cls in classes:
        for base in cls.__mro__:  # a docstring under a field; the Args of a base class
            if base.__module__.startswith("jaxtrain"):
                text += "\n" + (inspect.getdoc(base) or "") if base is not cls else ""
                text += "".join(f"\n  {name}: {doc}" for name, doc in field_docs(base).items())
    return text


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstrings under the fields of a class."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body)
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def missing_parameters(each: Public) -> list[str]:
    if isinstance(each.value, property):
        return []
    try:
        parameters = inspect.signature(each.value).parameters
    except (TypeError, ValueError):
        return []
    text = documented_parameters(each)
    names = [name for name in parameters if name not in SKIPPED_PARAMETERS and not name.startswith("_")]
    return [name for name in names if not re.search(rf"^ +(?:\w+, )*\**{name}(?:, \w+)*: |`{name}`", text, re.M)]


def lacks_returns(each: Public) -> bool:
    if inspect.isclass(each.value) or isinstance(each.value, property):
        return False
    returns = inspect.signature(each.value).return_annotation
    return returns not in (None, "None", inspect.Signature.empty) and not re.search(r"^Returns?\b", each.doc, re.M)


def raises_an_error(function: Any) -> bool:
    """Whether the body of a function raises. A method that only raises is one for a subclass to define."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, TypeError):  # a class without a constructor of its own
        return False
    body = [node for node in definition.body if not isinstance(node, ast.Expr)]
    return not (body and isinstance(body[0], ast.Raise)) and any(
        isinstance(node, ast.Raise) and node.exc is not None for statement in body for node in ast.walk(statement)
    )


def lacks_raises(each: Public) -> bool:
    functions = [each.value]
    if inspect.isclass(each.value):
        functions = [vars(each.value)[name] for name in ("__init__", "__post_init__") if name in vars(each.value)]
    elif isinstance(each.value, property):
        functions = [each.value.fget]
    text = each.doc + (inspect.getdoc(each.owner) or "" if each.owner else "")
    return any(map(raises_an_error, functions)) and not re.search(r"\bRaises?\b", text)


def blocks(each: Public) -> list[str]:
    """The code after every ``Example::``."""
    return [textwrap.dedent(code) for code in re.findall(r"^Example::\n\n((?:(?: +.*)?\n?)+)", each.doc, re.M)]


def lacks(each: Public) -> list[str]:
    """What the documentation of a name lacks."""
    found = [] if each.doc else ["a docstring"]
    found += [f"parameter {name}" for name in missing_parameters(each)]
    found += ["Returns"] if lacks_returns(each) else []
    found += ["Raises"] if lacks_raises(each) else []
    return found + ([] if each.owner or blocks(each) or ">>> " in each.doc else ["an example"])


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name):
    assert not lacks(NAMES[name])


class _Undocumented:
    """A class for the test of the tests."""

    def find(self, what: str, where: int) -> str:
        """Look for ``what``."""
        if where < 0:
            raise ValueError
        return what


def test_a_gap_is_found():
    method = Public("x.find", _Undocumented.find, _Undocumented, "")
    assert lacks(method) == ["parameter where", "Returns", "Raises"]
    assert lacks(Public("x", _Undocumented, None, "")) == ["an example"]


@pytest.fixture(scope="module")
def surroundings():
    """What an example may use without an import: the usual packages, all public names, a module and its data."""
    x = np.random.default_rng(0).normal(size=(6, 8, 2)).astype("float32")
    batches = [(x, (x[..., 0].sum(0) > 0).astype("int32")[None])]

    class MyModule(jaxtrain.Module):
        def build(self):
            return jaxtrain.nn.Network(2, 2, cell="mini_gru", hidden=8)

        def learning_step(self, forward, x, y):
            logits = forward(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y), {"accuracy": logits.argmax(-1) == y}

        def configure_optimizer(self):
            return optax.adam(1e-3)

    class Spiking(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            kaiming = braintools.init.KaimingNormal(unit=u.mA)
            self.inputs = braintrace.nn.Linear(2, 4, w_init=kaiming, b_init=braintools.init.ZeroInit(unit=u.mA))
            self.neurons = brainpy.state.LIF(4, tau=10.0 * u.ms)

        def update(self, x):
            return self.neurons(self.inputs(x))

    module, spiking = MyModule(), MyModule()
    brainstate.random.seed(0)
    module.model, spiking.model = module.build(), Spiking()
    spiking.environ = {"dt": 1.0 * u.ms}
    own = {name.rpartition(".")[2]: each.value for name, each in NAMES.items() if each.owner is None}
    usual = {"jaxtrain": jaxtrain, "np": np, "jax": jax, "jnp": jnp, "optax": optax, "u": u, "brainstate": brainstate,
             "braintrace": braintrace, "sys": sys, "dataclass": dataclass, "ClassVar": ClassVar}  # fmt: skip
    return own | usual | {
        "MyModule": MyModule, "module": module, "spiking": spiking,
        "data": jaxtrain.DataModule(batches, val=batches, predict=batches, batch_first=False),
        "rng": np.random.default_rng(0), "key": jax.random.key(0), "images": np.zeros((256, 784)),
        "labels": np.arange(256) % 10, "logits": jnp.asarray(x[0]), "x": x[0], "y": batches[0][1][0],
        "target": batches[0][1][0], "outputs": x[0], "targets": x[1],
    }  # fmt: skip


TRAINS = {"Fit", "Result", "load", "Fit.online", "Fit.predict_batches", "pretrained.load"}
"""Names whose examples compile a model."""
NEEDS = {"jaxtrain.loggers.WandB": "wandb", "jaxtrain.pretrained.save_nir": "nir",
         "jaxtrain.pretrained.save_safetensors": "safetensors", "jaxtrain.pretrained.load": "safetensors"}  # fmt: skip
"""Packages of extras."""
WITH_EXAMPLES = [
    pytest.param(name, marks=[pytest.mark.full] if name.removeprefix("jaxtrain.") in TRAINS else [])
    for name, each in NAMES.items()
    if blocks(each) or ">>> " in each.doc
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_docstring_run(name, surroundings, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason="an extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    each = NAMES[name]
    fit = jaxtrain.Fit("drtrl", max_steps=2, run_dir="runs/demo", progress=False)
    names = vars(inspect.getmodule(each.function)) | surroundings | {"fit": fit, "__name__": __name__}
    names[name.rpartition(".")[2]] = each.value  # load is the name of two functions
    for code in blocks(each):
        exec(compile(code, name, "exec"), names)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(doctest.DocTestParser().get_doctest(each.doc, names, name, None, None), out=report.append)
    assert not runner.failures, "".join(report)


if __name__ == "__main__":
    for each in NAMES.values():
        if found := lacks(each):
            print(f"{each.name}: {', '.join(found)}")
