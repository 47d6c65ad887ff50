"""What another Python or another version of a dependency breaks first: imports, a run per strategy, an exact resume."""

import importlib
import pkgutil
from dataclasses import replace

import jax.numpy as jnp
import pytest

import jaxtrain as jt
from jaxtrain.strategies import registry
from tests.small import At, CopyGRU, copies, kill, leaves, result_of, rows, same

STRATEGIES = list(registry.REGISTRY)
FIELDS = {"tbptt": {"window": 2}, "dni": {"fit_epochs": 1}}


def strategy_of(name: str) -> jt.strategies.Strategy:
    return registry.make_strategy(name, **FIELDS.get(name, {}))


def test_every_module_and_name_can_be_imported():
    for module in pkgutil.walk_packages(jt.__path__, "jaxtrain."):
        importlib.import_module(module.name)
    for name in jt.__all__:
        assert getattr(jt, name) is not None


class Rewarded(CopyGRU):
    """`three_factor` needs a reward, and the other rules do not mind one."""

    def phases(self, batch):
        phases = super().phases(batch)
        return replace(phases, extras={"reward": jnp.ones(phases.sizes[1:])})

    def learning_step(self, forward, x, y, reward):
        return super().learning_step(forward, x, y)


@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains(name):
    module = Rewarded()
    fit = jt.Fit(strategy_of(name), max_steps=4, chunk=2, log_every=2, validate_every=4)
    result = fit.run(module, copies())
    assert (result.status, result.step) == ("finished", 4)
    assert result.metrics["grad_norm"] > 0 and result.metrics["val/loss"] > 0
    assert all(jnp.isfinite(leaf).all() for leaf in leaves(module).values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("bptt", marks=pytest.mark.quick),
        pytest.param("drtrl", marks=pytest.mark.quick),
        pytest.param("tbptt", marks=pytest.mark.full),
        pytest.param("pp_prop", marks=pytest.mark.full),
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, name):
    def run(where, *callbacks):
        module = CopyGRU(noise=0.2)
        callbacks = [jt.loggers.JSONL(), jt.Checkpoint(every=3), *callbacks]
        fit = jt.Fit(strategy_of(name), max_steps=7, chunk=2, log_every=2, validate_every=5, callbacks=callbacks,
                     run_dir=tmp_path / where)  # fmt: skip
        return fit.run(module, copies(), resume="last"), leaves(module)

    whole, weights = run("whole")
    assert run("parts", At("on_checkpoint", 3, kill))[0].status == "terminated"
    result, resumed = run("parts")
    assert result.digest == whole.digest and same(resumed, weights)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert result_of(tmp_path / "parts")["best"] == result_of(tmp_path / "whole")["best"]
