"""A run that cannot fit is refused with both numbers before the memory is allocated, and following the advice helps."""

import braintrace
import jax
import jax.numpy as jnp
import pytest

import jaxtrain as jt
from jaxtrain.errors import InsufficientMemory
from jaxtrain.strategies import registry
from jaxtrain.utils import memory
from tests.small import CopyGRU, copies

MIB = 2**20


@pytest.fixture
def limit(monkeypatch):
    """Sets the bytes that can still be allocated."""

    def to(free):
        monkeypatch.setattr(memory, "available", lambda: free)

    return to


def peak(strategy="bptt", data=None, **options) -> int:
    """Bytes that the compiler reports for a train step."""
    report = jt.Fit(strategy, max_steps=1, **options).run(CopyGRU(), data or copies(), dry_run=True).report
    return report["memory"]["peak_bytes"]


def refused(strategy="bptt", data=None, **options) -> InsufficientMemory:
    with pytest.raises(InsufficientMemory) as caught:
        jt.Fit(strategy, max_steps=1, **options).run(CopyGRU(), data or copies())
    assert "\n" not in str(caught.value) and caught.value.needed > caught.value.available
    return caught.value


# ------------------------------------------------------------------------------------------------- the train step


@pytest.mark.full
def test_a_train_step_that_does_not_fit_is_refused_with_both_numbers(limit, tmp_path):
    limit(1000)
    error = refused("drtrl", run_dir=tmp_path / "run")
    assert error.needed == peak("drtrl") and 1000 <= error.available < error.needed
    assert str(error).startswith(f"a train step of strategy 'drtrl' needs {memory.shown(error.needed)} at once, and ")
    assert f"this machine has {memory.shown(error.available)}: use a smaller batch" in str(error)
    assert not (tmp_path / "run").exists()
    limit(None)
    assert jt.Fit("drtrl", max_steps=1).run(CopyGRU(), copies()).step == 1


@pytest.mark.long
def test_what_the_program_holds_already_counts_as_available(limit):
    """Parameters and optimizer are part of the program's memory, but they need not be allocated again."""
    needed = peak()
    limit(needed)
    held = jt.Fit("bptt", max_steps=1).run(CopyGRU(), copies())
    assert held.step == 1
    limit(0)
    known = refused().available
    assert 0 < known < needed
    limit(needed - known)
    assert jt.Fit("bptt", max_steps=1).run(CopyGRU(), copies()).step == 1
    limit(needed - known - 1)
    refused()


@pytest.mark.full
@pytest.mark.parametrize(
    "advice, large, small",
    [
        ("a smaller batch", {"batch_size": 64}, {"batch_size": 2}),
        pytest.param("remat=True", {}, {"strategy": jt.BPTT(remat=True)}, marks=pytest.mark.long),
        pytest.param("fewer seeds", {"seeds": 8}, {"seeds": 1}, marks=pytest.mark.long),
        pytest.param(
            "a smaller segment", {"strategy": "drtrl"}, {"strategy": jt.DRTRL(segment=8)}, marks=pytest.mark.long
        ),
        pytest.param("another strategy", {}, {"strategy": "readout_only"}, marks=pytest.mark.long),
    ],
)
def test_the_advice_helps(limit, advice, large, small):
    def parts(batch_size=8, strategy="bptt", **options):
        return strategy, copies(time_lag=60, batch_size=batch_size), options

    (strategy, data, options), (other, smaller, changed) = parts(**large), parts(**small)
    few, many = peak(other, smaller, **changed), peak(strategy, data, **options)
    assert few < many
    limit((few + many) // 2)
    assert advice in str(refused(strategy, data, **options))
    assert jt.Fit(other, max_steps=1, **changed).run(CopyGRU(), smaller).step == 1


@pytest.mark.full
def test_nothing_is_refused_if_the_backend_reports_no_memory(limit, monkeypatch):
    monkeypatch.setattr("jaxtrain.engine.room.compiled_memory", lambda compiled: {})
    limit(1)
    assert jt.Fit("bptt", max_steps=1).run(CopyGRU(), copies()).step == 1


# ------------------------------------------------------------------------------------------ what is allocated before


@pytest.fixture
def compiled(monkeypatch):
    """Whether each call of ``braintrace.compile`` was traced, that is, allocated nothing."""
    calls, compile = [], braintrace.compile

    def spy(*args, **kwargs):
        calls.append(isinstance(jnp.zeros(()), jax.core.Tracer))
        return compile(*args, **kwargs)

    monkeypatch.setattr(braintrace, "compile", spy)
    return calls


@pytest.mark.parametrize("batching", ["batched", "vmap"])
def test_a_trace_is_refused_before_it_is_allocated(limit, compiled, batching):
    strategy = jt.DRTRL(engine="trace", batching=batching)
    report = jt.Fit(strategy, max_steps=1).run(CopyGRU(), copies(), dry_run=True).report
    assert compiled == [False], "small traces need no check"
    largest = max(entry["trace_bytes"] for entry in report["parameters"].values())
    limit(2000)
    error = refused(strategy)
    assert compiled[1:] == [True]
    assert error.needed == pytest.approx(report["trace_bytes"] + largest, abs=100)
    assert str(error).startswith("the trace of the strategy needs ")


@pytest.mark.full
def test_a_trace_of_each_weight_by_each_unit_is_refused_before_it_is_allocated(limit, compiled, monkeypatch):
    """SnAp's trace is larger than batch x parameters."""
    monkeypatch.setattr("jaxtrain.core.allocation.SMALL", 1)
    report = jt.Fit(jt.strategies.SnAp(), max_steps=1).run(CopyGRU(), copies(), dry_run=True).report
    whole = sum(entry["trace_bytes"] for entry in report["parameters"].values())
    limit(whole // 2)
    assert refused(jt.strategies.SnAp()).needed > whole
    assert compiled == [False, True]


@pytest.mark.full
@pytest.mark.parametrize("rule", ["pp_prop", "eprop", "ostl_recurrent", "ostl_feedforward", "dni", "uoro"])
def test_the_trace_of_every_rule_is_refused_with_both_numbers(limit, rule):
    limit(10)
    assert str(refused(registry.make_strategy(rule, engine="trace"))).startswith("the trace of the strategy needs ")


@pytest.mark.full
def test_the_trace_of_the_reverse_engine_is_refused_before_it_is_allocated(limit):
    strategy = jt.DRTRL(segment=4)
    sizes = jt.Fit(strategy, max_steps=1).run(CopyGRU(), copies(), dry_run=True).report
    limit(sizes["trace_bytes"])
    assert refused(strategy).needed > sizes["trace_bytes"]
    assert peak(jt.strategies.PPProp()) > 0, "follows the advice: a strategy without such a trace"


def test_the_state_of_several_seeds_is_refused_before_it_is_allocated(limit):
    limit(20_000)
    error = refused(seeds=64)
    assert str(error).startswith("the state of 64 seeds needs ") and "use fewer seeds" in str(error)


# ------------------------------------------------------------------------------------------- what is available


def machine(tmp_path, monkeypatch, meminfo: str, groups: str = "", **files: str):
    """A machine in a folder; ``files`` maps paths below /sys/fs/cgroup to numbers."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(meminfo)
    (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 1000 kB\nSwapTotal: 50 kB\nSwapFree: 24 kB\n"


def test_what_this_machine_has():
    assert 2**24 < memory.available() < 2**50


@pytest.mark.parametrize(
    "groups, files, free",
    [
        ("", {}, MIB),
        ("0::/a/b\n", {"memory.max": "max", "memory.current": "9"}, MIB),
        ("0::/a/b\n", {"a/memory.max": "5000", "a/memory.current": "2000", "a/memory.stat": "inactive_file 500"}, 3500),
        ("4:memory:/host/path\n3:cpu:/\n", {
            "memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "2000",
            "memory/memory.stat": "cache 1\ntotal_inactive_file 100",
        }, 3100),
    ],
    ids=["machine", "no limit", "limit of a parent", "version 1"],
)  # fmt: skip
def test_what_a_machine_has(tmp_path, monkeypatch, groups, files, free):
    machine(tmp_path, monkeypatch, MEMINFO, groups, **files)
    assert memory.available() == free


def test_unknown_where_no_file_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.available() is None


def test_what_a_device_has(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.available() == 70
