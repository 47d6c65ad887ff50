"""The base class and the dispatch of events."""

import sys
import warnings

import pytest

from jaxtrain.callback import EVENTS, FOREIGN, Callback, Callbacks
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
        ("on_train_batch_end", "use on_chunk_end, which gets an array with a value a step"),
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


def test_events_and_helpers_are_no_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Mine", (Callback,), dict.fromkeys([*EVENTS, "helper", "_on_its_own", "setup"], lambda self: None))
    assert not set(FOREIGN) & set(EVENTS)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"probe_every": "10min"}, r'Mine.probe_every is "600s"; expected steps \(200\) or epochs \("1ep"\), not'),
        ({"probe_every": "soon"}, "Mine.probe_every: period: 'soon' is not understood"),
        ({"edges": lambda self: (Period.of(5), Period.of("2h"))}, r'Mine.edges\(\) is "7200s"; expected steps'),
    ],
)
def test_a_period_that_never_comes_due_is_refused(members, message):
    mine = type("Mine", (Callback,), members)
    with pytest.raises(ValueError, match=message):
        Callbacks([mine()])


def test_an_edge_that_is_no_period_is_refused():
    mine = type("Mine", (Callback,), {"edges": lambda self: (10,)})
    with pytest.raises(TypeError, match=r"Mine.edges\(\) gives 10; expected jaxtrain.Period objects"):
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

    def on_row(self, run, row):
        if self.error is not None:
            raise self.error
        self.rows.append(row["step"])

    def on_fit_end(self, run, status):
        self.ended += 1


def tell(callbacks, *steps):
    for step in steps:
        callbacks("on_row", None, {"step": step})


def test_a_logger_that_raises_is_dropped_with_one_warning(caplog):
    broken, whole = Logger(ValueError("no such column")), Logger()
    callbacks = Callbacks([broken, whole])
    callbacks("on_fit_start", None)
    tell(callbacks, 1, 2, 3)
    callbacks("on_fit_end", None, "finished")
    assert [r.getMessage() for r in caplog.records] == [
        "Logger.0.on_row failed, and gets no more of this run: ValueError: no such column"
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
    assert len(caplog.records) == 1 and "its rows wait" in caplog.text and callbacks.dropped == {}
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
    monkeypatch.setattr("jaxtrain.callback.MOST_LATE", 2)
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
