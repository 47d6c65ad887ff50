"""The objects of training/, each with what it keeps true."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxtrain as jt
from jaxtrain.callbacks.run import Requests
from jaxtrain.period import Period
from jaxtrain.training.control import Control
from jaxtrain.training.pipeline import Pipeline
from jaxtrain.training.progress import Ending, Progress
from jaxtrain.training.schedule import Schedule

FOLDER = Path(__file__).parents[1] / "jaxtrain" / "training"


def test_one_file_deals_with_processes():
    users = set()
    for path in FOLDER.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        if any("distributed" in (node.module or "") for node in nodes):
            users.add(path.name)
    assert users == {"control.py"}


class Source:
    """Ten batches, and then an error."""

    def __init__(self):
        self.taken, self.ready, self.made = 0, 0, []

    def take(self, n):
        if self.taken + n > 10:
            self.ready = 10 - self.taken
            raise ValueError("the data ends")
        self.taken += n
        return list(range(self.taken - n, self.taken))

    def prefetch(self, n):
        self.made.append(n)


def pipeline(keep=None):
    program = SimpleNamespace(train=lambda batches, first: (first, len(batches)))
    progress = Progress()
    return Pipeline(SimpleNamespace(program=program, iterator=Source()), progress, keep), progress


def test_a_chunk_is_handed_on_while_the_next_one_is_under_way():
    flow, progress = pipeline()
    flow.dispatch(3)
    assert flow.previous() is None and progress.dispatched == 3
    flow.dispatch(3)
    first = flow.previous()
    assert first.metrics == (0, 3) and first.batches == [0, 1, 2] and flow.previous() is None
    assert flow.drain().metrics == (3, 3) and flow.drain() is None and progress.dispatched == 6


def test_the_steps_before_an_error_of_the_data_are_dispatched():
    kept = []
    flow, progress = pipeline(lambda: kept.append(progress.dispatched))
    flow.dispatch(8)
    flow.dispatch(8)
    assert str(flow.failure) == "the data ends" and progress.dispatched == 10 and kept == [0, 8]
    assert flow.previous().metrics == (0, 8) and flow.drain().metrics == (8, 2)
    flow.dispatch(1)
    assert flow.previous() is flow.drain() is None and kept == [0, 8], "nothing was dispatched"


@pytest.fixture
def control():
    schedule = Schedule(
        chunk=5, total=20, max_time=None, validate_every=Period.of(10), epoch_length=None, boundaries=()
    )
    return Control(schedule, SimpleNamespace(received=None), SimpleNamespace(requests=Requests(), step=0))


def test_what_is_due(control):
    assert control.poll(5) is None
    assert control.poll(10) == "boundary"
    control._signals.received = "SIGTERM"
    assert control.poll(5) == "signal"
    control._run.requests.save = True
    assert control.poll(5) == "boundary", "asked for before the signal was noticed"


def test_why_a_run_ends(control):
    assert control.ending(10) is None and control.ending(20) == Ending("finished", complete=True)
    control._run.requests.stop = "enough"
    assert control.ending(20) == Ending("stopped", "enough", complete=True)
    control._run.requests.stop, control.schedule.out_of_time = None, True
    assert control.ending(10) == Ending("stopped", "max_time reached")


def test_requests_are_taken_once_and_those_for_later_stay(control):
    control._run.requests = Requests(save=True, validate=True, stop="late", task={"lag": 3})
    requests, ending = control.take(None)
    assert requests.save and requests.task == {"lag": 3} and ending is None
    assert control._run.requests == Requests(validate=True, stop="late")
    requests, ending = control.take(Ending("stopped", "max_time reached"))
    assert ending == Ending("stopped", "max_time reached", complete=True) and not requests.save
    assert control._run.requests == Requests(validate=True)
    assert control.take_validation(5) and not control.take_validation(5) and control.take_validation(10)


def test_a_checkpoint_says_how_far_a_run_is():
    progress = Progress(dispatched=4, stage="validation", ending=Ending("interrupted", "SIGINT"))
    assert progress.state() == {"stage": "validation", "ending": None}
    again = Progress()
    again.load_state({**progress.state(), "step": 4})
    assert again == Progress(dispatched=4, stage="validation", restored_stage="validation")
    assert Progress(ending=Ending("finished", complete=True)).state() == {
        "stage": "between steps",
        "ending": ["finished", None],
    }


def test_settings_can_be_read_from_a_fit_and_not_set():
    fit = jt.Fit("bptt", max_steps=3, clip=1)
    assert (fit.max_steps, fit.clip, fit.accumulate, fit.run_dir) == (3, 1.0, 1, None)
    given = {name: value for name, value in vars(fit.settings).items() if name != "why_devices"}  # not an argument
    assert all(getattr(fit, name) == value for name, value in given.items())
    with pytest.raises(AttributeError):
        fit.max_steps = 4  # type: ignore
