"""One thread at a time: a second one is refused in one line, before anything is written, and disturbs nothing."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import brainstate
import braintools
import pytest

import jaxtrain as jt
from tests.kit import forks
from tests.small import At, Linear, line, lines


class Background:
    """A run in a thread that stands still at its first validation until it is told to go on."""

    def __init__(self):
        self.there, self.go_on = threading.Event(), threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        stands = At("on_validation_end", 2, self.stand)
        self.fit = jt.Fit("bptt", max_steps=4, callbacks=[stands], validate_every=2)
        self.thread = threading.Thread(target=self.train, name="search-1")

    def stand(self, run):
        self.run = run
        self.there.set()
        assert self.go_on.wait(60)

    def train(self):
        try:
            self.result = self.fit.run(Linear(), lines())
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        assert self.there.wait(60)
        return self

    def __exit__(self, *exc):
        self.go_on.set()
        self.thread.join(60)


def test_every_way_in_is_refused_while_another_thread_is_at_work(tmp_path):
    whole = jt.Fit("bptt", max_steps=4, validate_every=2).run(Linear(), lines())
    fit, module = jt.Fit("bptt", max_steps=1, run_dir=tmp_path / "run"), Linear()
    with Background() as background:
        for name, call in {
            "Fit.run": lambda: fit.run(module, lines()),
            "Fit.validate": lambda: fit.validate(module, [line(0)]),
            "Fit.test": lambda: fit.test(module, [line(0)]),
            "Fit.predict": lambda: fit.predict(module, [line(0)]),
            "jaxtrain.load": lambda: jt.load(tmp_path, module),
            "run.params": lambda: background.run.params(),
            "run.module": lambda: background.run.module,
        }.items():
            with pytest.raises(RuntimeError) as caught:
                call()
            start = f"{name}: Fit.run in thread 'search-1' is running, and models are traced with state that all"
            assert str(caught.value).startswith(start) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and module.model is None
    assert background.error is None and background.result.digest == whole.digest
    assert fit.run(module, lines()).step == 1, "one after the other, as it says"


def test_a_thread_that_dies_frees_it():
    class Fails(jt.Callback):
        def on_validation_end(self, run, metrics):
            raise SystemExit

    def dies():
        with suppress(SystemExit):
            jt.Fit("bptt", max_steps=1, callbacks=[Fails()]).run(Linear(), lines())

    thread = threading.Thread(target=dies)
    thread.start()
    thread.join()
    assert jt.Fit("bptt", max_steps=1).run(Linear(), lines()).step == 1


def test_a_callback_may_start_a_run_of_its_own():
    inner = []

    class Nested(jt.Callback):
        def on_validation_end(self, run, metrics):
            brainstate.random.seed(run.step)
            inner.append(jt.Fit("drtrl", max_steps=3, seed=4).run(Linear(), lines()).digest)

    def outer(*callbacks):
        return jt.Fit("bptt", max_steps=4, validate_every=2, chunk=2, callbacks=callbacks).run(Linear(), lines())

    whole, watched = outer(), outer(Nested())
    assert watched.digest == whole.digest and watched.history == whole.history
    assert inner == [jt.Fit("drtrl", max_steps=3, seed=4).run(Linear(), lines()).digest] * 2


SEARCH = """
import sys
import braintools
import jaxtrain as jt
from tests.small import Linear, lines
seed = int(sys.argv[1])
module = Linear(lambda: braintools.optim.SGD(0.01 + 0.01 * seed))
print(jt.Fit("bptt", max_steps=3, seed=seed).run(module, lines()).digest)
"""


def trial(seed):
    try:
        module = Linear(lambda: braintools.optim.SGD(0.01 + 0.01 * seed))
        return jt.Fit("bptt", max_steps=3, seed=seed).run(module, lines()).digest
    except RuntimeError as error:
        assert "is running, and" in str(error)
        return None


@pytest.mark.full
def test_a_search_in_two_threads_is_as_alone_or_refused():
    expected = [trial(seed) for seed in range(20)]
    assert None not in expected and len(set(expected)) == 20
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(trial, range(20)))
    assert all(found in (digest, None) for found, digest in zip(together, expected, strict=True))
    assert set(together) != {None}


@pytest.mark.full
def test_processes_of_their_own_are_as_alone():
    started = [forks.Popen([sys.executable, "-c", SEARCH, str(seed)], stdout=forks.PIPE) for seed in range(2)]
    digests = [process.communicate(timeout=120)[0].split()[-1] for process in started]
    assert digests == [trial(0), trial(1)]
