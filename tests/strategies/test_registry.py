"""Strategies by name: the built-in ones, those of other packages, and a user's own rule trained through Fit."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain as jt
from jaxtrain.strategies import Strategy, register, registry
from jaxtrain.strategies.base import Batching, Network, choose_batching, input_of
from jaxtrain.strategies.bptt import BPTTLearner
from jaxtrain.utils.fields import options, summary
from tests.small import Linear, Lines, leaves, same

pytestmark = pytest.mark.full

ALL = {
    "bptt", "tbptt", "drtrl", "pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "snap", "uoro", "three_factor",
    "dni", "etrace", "readout_only",
}  # fmt: skip


@pytest.fixture(autouse=True)
def a_copy(monkeypatch):
    """A copy: what a test registers is gone after it."""
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


def test_every_name_makes_a_strategy():
    assert set(registry.available()) == set(registry.REGISTRY) == ALL
    for name in ALL:
        strategy = registry.make_strategy(name)
        assert isinstance(strategy, Strategy) and strategy.config()["name"] == name
        assert jt.Fit(name, max_steps=1).strategy == strategy == type(strategy)()
        assert getattr(jt.strategies, type(strategy).__name__) is type(strategy)
        assert hash(strategy) == hash(type(strategy)())


def test_an_alias_is_the_same_strategy():
    assert registry.make_strategy("es_drtrl", decay=0.5) == jt.strategies.PPProp(decay=0.5)
    assert registry.lookup("es_drtrl") is registry.lookup("pp_prop")
    assert jt.Fit("es_drtrl", max_steps=1).strategy == jt.Fit("pp_prop", max_steps=1).strategy


def sign_bptt():
    """A rule of one's own: the signs of BPTT's gradient, ``scale`` times."""

    class Learner(BPTTLearner):
        scale: float

        def learn(self, phases, update):
            def signs(grads, weight, metrics):
                return update(jax.tree.map(lambda leaf: weight * self.scale * jnp.sign(leaf), grads), weight, metrics)

            return super().learn(phases, signs)

    @dataclass(frozen=True)
    class SignBPTT(Strategy):
        """The signs of BPTT's gradient.

        More of it.
        """

        name: ClassVar[str] = "sign_bptt"
        scale: float = 1.0
        batching: Batching = "auto"

        def bind(self, objective, example):
            x, batch_size = input_of(objective, example), example.sizes[2]
            learner = Learner(
                objective, Network(objective.model, choose_batching(self.batching, objective.model, x, batch_size))
            )
            learner.scale = self.scale
            return learner

    return SignBPTT


def test_a_rule_of_ones_own_trains_by_its_name():
    cls = register(sign_bptt())
    assert registry.lookup("sign_bptt") is cls and "sign_bptt" in registry.available()
    assert summary(cls) == "The signs of BPTT's gradient"
    assert {name: (option.type, option.default) for name, option in options(cls).items()} == {
        "scale": (float, 1.0), "batching": (Literal["auto", "batched", "vmap"], "auto"),
    }  # fmt: skip
    assert registry.make_strategy("sign_bptt", scale=0.5) == cls(scale=0.5)
    with pytest.raises(ValueError, match=r"^strategy 'sign_bptt': no field 'scal'; .*did you mean 'scale'\?$"):
        registry.make_strategy("sign_bptt", scal=0.5)

    ones, named = Linear(), Linear()
    jt.Fit(cls(), max_steps=3).run(ones, Lines())
    jt.Fit("sign_bptt", max_steps=3).run(named, Lines())
    assert same(leaves(ones), leaves(named))
    start = Linear()
    start.model = start.build()
    moved = np.abs(leaves(named)["w"] - leaves(start)["w"]) / 0.05  # a sign each time: whole numbers of steps
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-4)
    assert moved.any() and moved.max() <= 3 + 1e-4


def test_what_cannot_be_registered():
    cls = register(sign_bptt())
    assert register(cls) is cls, "twice the same is nothing new"
    again = sign_bptt()
    assert register(again) is again, "defined again, as a cell of a notebook that runs twice does"
    other = sign_bptt()
    other.__qualname__ = "Other"
    with pytest.raises(ValueError, match=r"^register\(SignBPTT\): the name 'sign_bptt' is taken; choose another$"):
        register(other)
    alias = sign_bptt()
    alias.name = "es_drtrl"
    with pytest.raises(ValueError, match=r"the name 'es_drtrl' is taken"):
        register(alias)
    taken = sign_bptt()
    taken.name = "drtrl"
    with pytest.raises(ValueError, match=r"the name 'drtrl' is taken"):
        register(taken)
    thawed = dataclass(type("Thawed", (), {"name": "thawed", "bind": None}))
    for wrong in (
        type("Plain", (), {"name": "plain"}),
        thawed,
        dataclass(frozen=True)(type("Other", (), {"name": "o"})),
    ):
        with pytest.raises(
            TypeError, match=r"expected a frozen dataclass that extends Strategy, with a class attribute"
        ):
            register(wrong)


def test_a_class_that_inherits_its_dataclass():
    """Its fields would not become options, and its name would become one."""
    plain = type("Plain", (jt.BPTT,), {"name": "plain", "size": 3, "__annotations__": {"size": int}})
    with pytest.raises(
        TypeError, match=r"expected a frozen dataclass .*; put @dataclass\(frozen=True\) below @register$"
    ):
        register(plain)

    @dataclass(frozen=True)
    class Named(jt.BPTT):
        name: str = "named"  # type: ignore

    with pytest.raises(TypeError, match=r"^register\(Named\): name is a field; write name: ClassVar\[str\] = 'named'$"):
        register(Named)


def test_fields_with_a_factory_and_without_a_default():
    @dataclass(frozen=True)
    class Made(jt.BPTT):
        name: ClassVar[str] = "made"
        sizes: tuple[int, ...] = field(default_factory=lambda: (1, 2))

    register(Made)
    assert options(registry.lookup("made"))["sizes"].default == (1, 2) == registry.make_strategy("made").sizes  # type: ignore

    @dataclass(frozen=True, kw_only=True)
    class Bare(jt.BPTT):
        name: ClassVar[str] = "bare"
        size: int

    with pytest.raises(ValueError, match=r"^register\(Bare\): the field 'size' has no default"):
        register(Bare)


def test_every_strategy_is_exported():
    classes = [registry.lookup(name) for name in registry.REGISTRY]
    assert [cls.name for cls in classes] == list(registry.REGISTRY)
    names = [cls.__name__ for cls in classes]
    for cls in (*names, "Strategy", "Learner", "OnlineRule", "SteppedRule", "WindowedRule", "register"):
        assert cls in jt.strategies.__all__ and hasattr(jt.strategies, cls)


def test_an_entry_point_has_the_name_of_its_class(monkeypatch):
    point = SimpleNamespace(name="other_name", load=sign_bptt)
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group, name=None: [point] if name in (None, point.name) else []
    )
    with pytest.raises(
        ValueError, match=r"^strategy 'other_name': its entry point loads SignBPTT, whose name is 'sign"
    ):
        registry.lookup("other_name")


def test_entry_points_of_other_packages(monkeypatch):
    cls, loaded = sign_bptt(), []
    point = SimpleNamespace(name="sign_bptt", load=lambda: (loaded.append(1), cls)[1])

    def entry_points(*, group, name=None):
        assert group == "jaxtrain.strategies"
        return [point] if name in (None, point.name) else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert registry.available()[-1] == "sign_bptt" and not loaded, "listed without an import"
    with pytest.raises(
        ValueError,
        match=r"^unknown strategy 'sign_bpt'; .*did you mean 'sign_bptt'\?; import the file that registers a rule",
    ):
        registry.lookup("sign_bpt")
    assert not loaded
    assert (
        jt.Fit("sign_bptt", max_steps=1).strategy == cls() and registry.make_strategy("sign_bptt", scale=2.0).scale == 2
    )
    assert loaded == [1] and registry.available().count("sign_bptt") == 1
