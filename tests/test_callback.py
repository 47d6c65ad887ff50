"""The base class and the dispatch of events."""

import errno
import socket
import ssl
import sys
import urllib.error
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar

import pytest

from jaxtrain.callbacks.base import EVENTS, Callback
from jaxtrain.callbacks.dispatch import Callbacks
from jaxtrain.callbacks.foreign_names import FOREIGN_NAMES
from jaxtrain.period import Period


class Fails(Callback):
    def __init__(self, text):
        self.text = text

    def on_exception(self, run, error):
        raise ValueError(self.text)

    def on_fit_end(self, run, status):
        raise ValueError(self.text)


class Notes(Callback):
    def __init__(self):
        self.heard = []

    def on_exception(self, run, error):
        self.heard.append(error)

    def on_fit_end(self, run, status):
        self.heard.append(status)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("on_train_end", "use on_fit_end"),
        ("on_train_batch_end", "use on_chunk_end, which gets an array with one value per step"),
        ("on_test_begin", "use on_validation_start"),
        ("state_dict", r"define state\(\)"),
        ("on_chunk_ends", "did you mean on_chunk_end"),
        ("on_zebra", "rename it without on_"),
    ],
)
def test_a_method_that_is_no_event_is_named(name, hint):
    with pytest.warns(UserWarning, match=f"Mine.{name} is never called: jaxtrain has no such event; {hint}") as caught:
        type("Mine", (Callback,), {name: lambda self, run: None})
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_key_that_an_event_does_not_have():
    """The error of a misspelled metric lists the metrics that there are."""

    class Mine(Callback):
        def on_chunk_end(self, run, metrics):
            metrics["los"]

    with pytest.raises(KeyError) as caught:
        Callbacks([Mine()])("on_chunk_end", None, {"loss": 1.0, "lr": 0.1})
    assert caught.value.__notes__ == ["jaxtrain: in Mine.on_chunk_end, whose dict has the keys loss, lr"]


def test_events_and_helpers_are_no_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Mine", (Callback,), dict.fromkeys([*EVENTS, "helper", "_on_its_own", "setup"], lambda self: None))
    assert not set(FOREIGN_NAMES) & set(EVENTS)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"probe_every": "10min"}, r'Mine.probe_every is "600s"; expected steps \(200\) or epochs \("1ep"\), not'),
        ({"probe_every": "soon"}, "Mine.probe_every: period: 'soon' is not understood"),
        (
            {"boundaries": lambda self: (Period.of(5), Period.of("2h"))},
            r'Mine.boundaries\(\) is "7200s"; expected steps',
        ),
    ],
)
def test_a_period_that_never_comes_due_is_refused(members, message):
    mine = type("Mine", (Callback,), members)
    with pytest.raises(ValueError, match=message):
        Callbacks([mine()])


def test_a_boundary_that_is_no_period_is_refused():
    mine = type("Mine", (Callback,), {"boundaries": lambda self: (10,)})
    with pytest.raises(TypeError, match=r"Mine.boundaries\(\) gives 10; expected jaxtrain.period.Period objects"):
        Callbacks([mine()])


def test_an_error_in_on_exception_is_a_note_of_the_one_that_ended_the_run():
    notes, original = Notes(), RuntimeError("original")
    Callbacks([Fails("a"), notes, Fails("b")])("on_exception", None, original)
    assert notes.heard == [original]
    expected = [f"jaxtrain: Fails.on_exception failed, too: ValueError: {text}" for text in "ab"]
    assert original.__notes__ == expected


def test_every_callback_hears_the_end_and_then_the_first_error_is_raised():
    notes = Notes()
    with pytest.raises(ValueError, match="a") as caught:
        Callbacks([Fails("a"), notes, Fails("b")])("on_fit_end", None, "finished")
    assert notes.heard == ["finished"]
    assert caught.value.__notes__ == ["jaxtrain: Fails.on_fit_end failed, too: ValueError: b"]


def test_an_error_at_the_end_does_not_hide_what_ended_the_run():
    callbacks = Callbacks([Fails("a"), Fails("b")])
    with pytest.raises(RuntimeError, match="original") as caught:
        try:
            raise RuntimeError("original")
        finally:
            callbacks("on_fit_end", None, "failed")
    assert len(caught.value.__notes__) == 2 and sys.exception() is None


def test_an_error_in_any_other_event_is_raised_at_once():
    class Breaks(Notes):
        def on_epoch_end(self, run):
            raise ValueError("at once")

    class After(Notes):
        def on_epoch_end(self, run):
            self.heard.append("epoch")

    after = After()
    with pytest.raises(ValueError, match="at once"):
        Callbacks([Breaks(), after])("on_epoch_end", None)
    assert after.heard == []


# ---------------------------------------------------------------------------------------- loggers that fail


class Logger(Callback):
    """A logger that keeps rows, unless there is something to raise."""

    rank = "record"

    def __init__(self, error=None):
        self.error, self.rows, self.ended = error, [], 0

    def on_log(self, run, row):
        if self.error is not None:
            raise self.error
        self.rows.append(row["step"])

    def on_fit_end(self, run, status):
        self.ended += 1


FULL = OSError(28, "No space left on device")


def at(step):
    return SimpleNamespace(step=step, metrics={"train/loss": float(step)})


def tell(callbacks, *steps):
    for step in steps:
        callbacks("on_log", at(step), {"step": step})


def test_a_logger_that_raises_is_dropped_with_one_warning(caplog):
    broken, whole = Logger(ValueError("no such column")), Logger()
    callbacks = Callbacks([broken, whole])
    callbacks("on_fit_start", None)
    tell(callbacks, 1, 2, 3)
    callbacks("on_fit_end", None, "finished")
    assert [r.getMessage() for r in caplog.records] == [
        "Logger.0.on_log failed and is disabled for the rest of this run: ValueError: no such column"
    ]
    assert callbacks.dropped == {"Logger.0": "ValueError: no such column"}
    assert whole.rows == [1, 2, 3] and broken.ended == 1, "it may still close what it opened"
    broken.error = None
    callbacks("on_fit_start", None)
    tell(callbacks, 4)
    assert broken.rows == [4] and callbacks.dropped == {}, "another run is another chance"


def test_rows_wait_for_a_logger_whose_disk_is_full(caplog):
    logger = Logger(OSError(28, "No space left on device"))
    callbacks = Callbacks([logger])
    tell(callbacks, 1, 2, 3)
    assert len(caplog.records) == 1 and "pending events are queued" in caplog.text and callbacks.dropped == {}
    logger.error = None
    tell(callbacks, 4)
    assert logger.rows == [1, 2, 3, 4]
    logger.error = OSError(28, "No space left on device")
    tell(callbacks, 5)
    with pytest.raises(OSError, match="No space left"):
        callbacks("on_fit_end", None, "finished")
    assert logger.ended == 1
    logger.error = None
    callbacks("on_fit_end", None, "finished")
    assert logger.rows == [1, 2, 3, 4, 5]


def test_no_more_rows_wait_than_may(caplog, monkeypatch):
    monkeypatch.setattr("jaxtrain.callbacks.late.MOST_LATE", 2)
    logger = Logger(OSError(28, "No space left on device"))
    callbacks = Callbacks([logger])
    tell(callbacks, 1, 2)
    assert callbacks.dropped == {}
    tell(callbacks, 3, 4)
    assert "Logger.0" in callbacks.dropped and len(caplog.records) == 2


@pytest.mark.parametrize("event", ["on_fit_start", "on_restore"])
def test_at_the_start_of_a_run_a_logger_may_refuse_it(event):
    class Refuses(Callback):
        rank = "record"

        def on_fit_start(self, run):
            raise ValueError("no run directory")

        def on_restore(self, run):
            raise ValueError("no run directory")

    with pytest.raises(ValueError, match="no run directory"):
        Callbacks([Refuses()])(event, None)


@dataclass
class Data(Callback):
    """Equal to every other of its kind with the same fields, and so not hashable."""

    rank: ClassVar[str] = "record"
    error: Exception | None = None
    heard: list[int] = field(default_factory=list, compare=False)

    def on_log(self, run, row):
        if self.error is not None:
            raise self.error
        self.heard.append(row["step"])


def test_a_callback_need_not_be_hashable_and_may_equal_another(caplog):
    first, second = Data(FULL), Data(FULL)
    callbacks = Callbacks([first, second])
    tell(callbacks, 1)
    first.error = None
    tell(callbacks, 2)
    assert (first.heard, second.heard) == ([1, 2], []) and callbacks.dropped == {}
    first.error = second.error = ValueError("no")
    first.error = None
    tell(callbacks, 3)
    assert (first.heard, [*callbacks.dropped]) == ([1, 2, 3], ["Data.1"]) and callbacks.alive()[0] is first


class Everything(Callback):
    """A logger that notes every event with the run's step, unless its disk is full."""

    rank = "record"

    def __init__(self):
        self.full, self.heard = True, []

    def note(self, event, run, *args):
        if self.full:
            raise FULL
        self.heard.append((event, run.step, run.metrics["train/loss"], *args))

    def flush(self):
        if self.full:
            raise FULL
        self.heard.append("flush")


for _event in EVENTS:
    if _event not in ("flush", "on_fit_start", "on_restore", "on_exception", "on_fit_end"):
        setattr(Everything, _event, lambda self, run, *args, event=_event: self.note(event, run, *args))


def test_every_event_waits_for_a_full_disk_with_one_warning_a_run(caplog):
    logger = Everything()
    callbacks = Callbacks([logger])
    callbacks("on_fit_start", None)
    told = []
    for step, (event, *args) in enumerate(
        [("on_chunk_end", {"loss": 1.0}), ("on_figure", "curve", "figure"), ("on_validation_end", {"val/loss": 2.0}),
         ("on_probe", 3), ("on_log", {"step": 5}), ("on_checkpoint", "path"), ("on_epoch_end",)], 1,
    ):  # fmt: skip
        run = at(step)
        callbacks(event, run, *args)
        run.step, run.metrics["train/loss"] = 100, 0.0  # the run goes on
        told.append((event, step, float(step), *args))
        callbacks("flush")
    assert logger.heard == [] and callbacks.dropped == {}
    assert [r.getMessage() for r in caplog.records] == [
        "Everything.0.on_chunk_end failed: OSError: [Errno 28] No space left on device; pending events are queued and "
        "will be retried"
    ]
    logger.full = False
    callbacks("flush")
    assert logger.heard == [*told, "flush"], "all, in their order, with the run as it was"
    logger.full = True
    tell(callbacks, 9)
    assert len(caplog.records) == 1, "one warning a run"
    logger.full = False
    callbacks("on_fit_end", at(10), "finished")
    assert logger.heard[-1] == ("on_log", 9, 9.0, {"step": 9})


def test_a_flush_that_fails_is_one_warning(caplog):
    logger = Everything()
    callbacks = Callbacks([logger])
    for _ in range(6):
        callbacks("flush")
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["Everything.0.flush failed"]
    callbacks("on_fit_end", at(1), "finished")


@pytest.mark.parametrize("when", ["a later row", "the end"])
def test_a_row_that_waits_and_then_fails_for_another_reason_ends_no_run(caplog, when):
    logger = Logger(FULL)
    callbacks = Callbacks([logger])
    tell(callbacks, 1)
    logger.error = ValueError("no such column")
    if when == "a later row":
        tell(callbacks, 2)
        assert callbacks.dropped == {"Logger.0": "ValueError: no such column"}
    callbacks("on_fit_end", at(2), "finished")
    assert callbacks.dropped == {"Logger.0": "ValueError: no such column"} and logger.ended == 1
    assert len(caplog.records) == 2


@pytest.mark.parametrize("error", [ValueError("at the end"), OSError(5, "at the end")])
@pytest.mark.parametrize("dropped", [False, True])
def test_what_a_logger_raises_at_the_end(caplog, error, dropped):
    """An error only where the disk did not take what a logger still had to write."""

    class Ends(Logger):
        def on_fit_end(self, run, status):
            raise error

    after = Notes()
    callbacks = Callbacks([Ends(ValueError("no") if dropped else None), after])
    callbacks.all.reverse()  # a callback that comes later, whatever its rank
    tell(callbacks, 1)
    if isinstance(error, OSError) and not dropped:
        with pytest.raises(OSError, match="at the end"):
            callbacks("on_fit_end", at(1), "finished")
    else:
        callbacks("on_fit_end", at(1), "finished")
        assert "at the end" in caplog.records[-1].getMessage() and len(caplog.records) == 1 + dropped
        assert [*callbacks.dropped] == ["Ends.0"]
    assert after.heard == ["finished"]


def test_the_state_of_a_logger_that_raises_is_left_out(caplog):
    class Broken(Logger):
        def state(self):
            assert self.error is not None
            raise self.error

    class Whole(Logger):
        def state(self):
            return {"a": 1}

    broken = Broken(OSError(5, "Input/output error"))
    callbacks = Callbacks([broken, Whole()])
    assert callbacks.states() == callbacks.states() == {"Whole.0": {"a": 1}}
    assert len(caplog.records) == 1 and callbacks.dropped == {}
    Whole.state = lambda self: {"a": {1}}
    assert callbacks.states() == callbacks.states() == {} and [*callbacks.dropped] == ["Whole.0"]
    assert len(caplog.records) == 2 and "the state of callback Whole.0" in callbacks.dropped["Whole.0"]
    callbacks = Callbacks([broken])
    broken.error = ValueError("no")
    assert callbacks.states() == callbacks.states() == {}
    assert len(caplog.records) == 3 and [*callbacks.dropped] == ["Broken.0"]
    Broken.rank = "decide"
    with pytest.raises(ValueError, match="no"):
        Callbacks([broken]).states()


class _HTTPError(urllib.error.URLError):
    """As urllib's, whose ``filename`` is the address."""

    def __init__(self, text):
        super().__init__(text)
        self.filename = "https://example.org"


NETWORK = [ConnectionError("no route"), ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError("timed out"),
           OSError(errno.EHOSTUNREACH, "No route to host"), BrokenPipeError(errno.EPIPE, "Broken pipe"),
           socket.gaierror(-2, "Name or service not known"), urllib.error.URLError("refused"), _HTTPError("502"),
           ssl.SSLError(1, "bad certificate"), OSError("RequestException of a library")]  # fmt: skip


@pytest.mark.parametrize("error", NETWORK, ids=lambda error: f"{type(error).__name__}-{error.errno}")
def test_a_logger_whose_network_stays_away_is_dropped_at_once(error, caplog):
    """Every further try would cost a timeout; and a run that is finished and saved has not failed for it."""

    class Remote(Logger):
        def on_fit_end(self, run, status):
            self.ended += 1
            raise error

    calls, remote = [], Remote(error)
    remote.on_log = lambda run, row: calls.append(row) or Remote.on_log(remote, run, row)
    callbacks = Callbacks([remote])
    tell(callbacks, 1, 2, 3)
    assert len(calls) == 1 and [*callbacks.dropped] == ["Remote.0"] and "retried" not in caplog.text
    callbacks("on_fit_end", at(3), "finished")
    assert remote.ended == 1 and len(caplog.records) == 2


FILE = [PermissionError(errno.EACCES, "denied", "/mnt/x"), TimeoutError(errno.ETIMEDOUT, "nfs", "/mnt/x"),
        OSError(errno.EIO, "Input/output error"), OSError(None, "bytes are not written", "/mnt/x")]  # fmt: skip


@pytest.mark.parametrize("error", FILE, ids=lambda error: f"{type(error).__name__}-{error.errno}")
def test_what_fails_on_a_file_is_tried_again(error):
    logger = Logger(error)
    callbacks = Callbacks([logger])
    tell(callbacks, 1, 2)
    logger.error = None
    tell(callbacks, 3)
    assert logger.rows == [1, 2, 3] and callbacks.dropped == {}
