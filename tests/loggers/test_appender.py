"""What a full disk does to a file that only grows: nothing."""

import errno
import os

import pytest

from jaxtrain.loggers import JSONL, TensorBoard, appender
from jaxtrain.loggers.appender import Appender
from tests.loggers.test_tensorboard import expected, figure, points, read, rows
from tests.small import rows as rows_of


@pytest.fixture
def disk(monkeypatch):
    """``disk.left``: bytes that the disk still takes; a write that does not fit is cut, as the system does it."""
    real = os.write

    class Disk:
        left: int | None = None

    def write(file, data):
        if Disk.left is None:
            return real(file, data)
        if Disk.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = real(file, bytes(data)[: Disk.left])
        Disk.left -= n
        return n

    monkeypatch.setattr(os, "write", write)
    return Disk


def test_what_does_not_fit_waits_and_is_written_once(tmp_path, disk, caplog):
    file = Appender(tmp_path / "file")
    expected = b""
    for number, left in enumerate([None, 5, 0, 3, 0, None, None]):
        disk.left = left
        file.write(b"row %d;" % number)
        expected += b"row %d;" % number
        assert file.flush() is (left is None)
        assert (tmp_path / "file").read_bytes() + file.waiting == expected
    file.close()
    assert (tmp_path / "file").read_bytes() == expected
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "No space left on device; what is to be written waits" in said[0]
    assert "nothing is missing" in said[1]


def test_what_waits_is_bounded(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(appender, "LIMIT", 100)
    file = Appender(tmp_path / "file")
    disk.left = 0
    file.write(b"x" * 60)
    file.flush()
    with pytest.raises(RuntimeError, match="No space left on device, and more than 0 MiB wait"):
        file.write(b"x" * 60)
    with pytest.raises(OSError, match="60 bytes are not written"):
        file.close()


def test_no_link_is_followed(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):
        Appender(tmp_path / "file")
    assert (tmp_path / "outside").read_text() == "mine"


def start(make_run, **options):
    run = make_run(JSONL(), TensorBoard(), **options)
    run.callbacks("on_fit_start", run)
    return run


def test_both_loggers_show_every_row_once_space_returns(make_run, tmp_path, disk, monkeypatch):
    run = start(make_run)
    rows(run, 1, 2)
    disk.left = 30
    rows(run, 3, 4)
    with monkeypatch.context() as patch:  # files written whole do not fit either
        patch.setattr("jaxtrain.loggers.tensorboard.write_atomic", no_space)
        run.figure("curve", figure())
    rows(run, 5)
    disk.left = None
    rows(run, 6)
    run.callbacks("on_fit_end", run, "finished")
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert points(tmp_path) == expected(1, 2, 3, 4, 5, 6)
    assert [event.step for event in read(tmp_path).Images("curve")] == [4]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curve-00000004.png"]


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_rows_that_wait_are_in_the_checkpoint(make_run, tmp_path, disk):
    """The disk is full, a checkpoint gets through all the same, the process is killed: no row is lost."""
    run = start(make_run)
    rows(run, 1, 2)
    disk.left = 30  # of row 3 a part
    rows(run, 3, 4)
    logger = next(c for c in run.callbacks if isinstance(c, JSONL))
    state = logger.state()
    assert [row["step"] for row in state["waiting"]] == [3, 4]
    disk.left = None
    later = JSONL()
    again = make_run(later, TensorBoard(), restored=4)
    later.reset()
    later.load_state(state)
    again.callbacks("on_fit_start", again)
    again.callbacks("on_restore", again)
    rows(again, 5)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert points(tmp_path) == expected(1, 2, 3, 4, 5)
    assert logger.state() == state and later.state() == {}


def test_rows_that_are_lost_at_the_end_are_an_error(make_run, disk):
    run = start(make_run)
    disk.left = 0
    rows(run, 1)
    with pytest.raises(OSError, match="bytes are not written"):
        run.callbacks("on_fit_end", run, "finished")
    disk.left = None
