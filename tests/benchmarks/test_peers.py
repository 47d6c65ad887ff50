"""benchmarks/peers.py: the loop of PyTorch, with substitutes for torch's objects."""

from types import SimpleNamespace

import peers
import pytest


class Part:
    """A tensor whose uses are recorded."""

    def __init__(self, name):
        self.name = name

    def to(self, device):
        assert device == "cpu"
        return self


def test_the_loop_does_every_part_of_a_step_and_does_not_count_the_first(monkeypatch):
    done, clock = [], [0.0]

    def record(what, seconds=0.0):
        done.append(what)
        clock[0] += seconds

    class Network:
        def to(self, device):
            return self

        def parameters(self):
            return ["w"]

        def __call__(self, ids, targets):
            record(f"loss of {ids.name}, {targets.name}", 100.0 if len(done) == 2 else 1.0)  # the first is slow
            return SimpleNamespace(backward=lambda: record("backward", 2.0))

    def adam(parameters, lr):
        record(f"Adam({parameters}, {lr})")
        return SimpleNamespace(zero_grad=lambda: record("zero_grad"), step=lambda: record("step", 0.5))

    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False), optim=SimpleNamespace(Adam=adam))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: clock[0])
    batches = [(Part(f"x{i}"), Part(f"y{i}")) for i in range(2)]
    assert peers.loop_run(torch, Network(), batches)(2) == pytest.approx(3.5)
    step = lambda i: ["zero_grad", f"loss of x{i}, y{i}", "backward", "step"]  # noqa: E731
    assert done == ["Adam(['w'], 0.001)", *step(0), *step(1), *step(0)]
