"""A run whose loggers fail: it goes on, says so, and comes to the same numbers."""

import pytest

import jaxtrain as jt
from tests.faults.tiny import Noisy, fit
from tests.small import lines, result_of, rows


class Breaks(jt.Callback):
    """A logger that has had enough at step 3."""

    rank = "record"
    heard = 0

    def __init__(self, error):
        self.error = error

    def on_row(self, run, row):
        if row["step"] == 3 and self.error is not None:
            raise self.error
        self.heard += 1


def test_a_logger_that_raises_ends_no_run(tmp_path, caplog):
    whole = fit(tmp_path / "whole", 8).run(Noisy(), lines())
    broken = Breaks(KeyError("column"))
    result = fit(tmp_path / "run", 8, broken).run(Noisy(), lines())
    assert (result.status, result.exit_code, result.digest) == ("finished", 0, whole.digest)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole") and broken.heard == 2
    assert caplog.text.count("Breaks.0.on_row failed, and gets no more of this run: KeyError: 'column'") == 1
    again = fit(tmp_path / "again", 8, Breaks(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):  # its row waits to the end, and is lost there
        again.run(Noisy(), lines())
    assert rows(tmp_path / "again") == rows(tmp_path / "whole")


def test_a_logger_that_was_dropped_is_named_in_the_result(tmp_path):
    fit(tmp_path / "run", 4, Breaks(KeyError("column"))).run(Noisy(), lines())
    assert result_of(tmp_path / "run")["dropped"] == {"Breaks.0": "KeyError: 'column'"}
