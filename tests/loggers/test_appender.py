"""What a full disk does to a file that only grows: nothing."""

import errno
import json
import os
from pathlib import Path

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
    first, second = said(caplog)
    assert "No space left on device; writes are buffered" in first and "nothing was lost" in second


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


@pytest.fixture
def failing(monkeypatch):
    """A disk whose fsync fails while ``failing.now``, and which then lets go of what it had not written yet, as Linux
    may do; ``failing.holds(path)``: what is on it."""
    write, fsync = os.write, os.fsync
    images: dict[Path, bytearray] = {}
    dirty: list[tuple[Path, int, bytes]] = []

    class Failing:
        now = False

        @staticmethod
        def holds(path):
            return bytes(images.get(path, b""))

    def path_of(file):
        return Path(f"/proc/self/fd/{file}").readlink()

    def tracked(file, data):
        n = write(file, data)
        dirty.append((path_of(file), os.lseek(file, 0, os.SEEK_CUR) - n, bytes(data)[:n]))
        return n

    def failing_fsync(file):
        mine = [entry for entry in dirty if entry[0] == path_of(file)]
        dirty[:] = [entry for entry in dirty if entry not in mine]
        if Failing.now:
            raise OSError(errno.EIO, "Input/output error")
        fsync(file)
        for path, begin, data in mine:
            image = images.setdefault(path, bytearray())
            image.extend(bytes(max(0, begin + len(data) - len(image))))
            image[begin : begin + len(data)] = data

    monkeypatch.setattr(os, "write", tracked)
    monkeypatch.setattr(os, "fsync", failing_fsync)
    return Failing


def said(caplog):
    return [record.getMessage().split(": ", 1)[1] for record in caplog.records]


def test_what_a_failed_fsync_let_go_of_is_written_again(tmp_path, failing, caplog):
    path = tmp_path / "file"
    path.write_bytes(b"older;")
    file = Appender(path)
    file.write(b"one;")
    assert file.flush() and file.unsynced == b"one;", "in the file is not on the disk"
    failing.now = True
    assert file.flush(sync=True) is False and file.unsynced == file.waiting == b"one;"
    file.write(b"two;")
    assert file.flush() is False, "no success while nothing can be synced"
    assert said(caplog) == ["Input/output error; writes are buffered and will be retried"]
    failing.now = False
    file.write(b"three;")
    assert file.flush() and not file.unsynced, "the flush after a failure is a barrier"
    assert said(caplog)[1:] == ["can be written again; nothing was lost"]
    assert path.read_bytes() == b"older;one;two;three;" and failing.holds(path)[6:] == b"one;two;three;"
    failing.now = True
    file.write(b"four;")
    with pytest.raises(OSError, match="5 bytes are not written .Input/output error"):
        file.close()


def test_what_is_not_on_the_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(appender, "SYNC", 10)
    file = Appender(tmp_path / "file")
    for on_disk in (False, False, True, False):
        file.write(b"1234;")
        assert file.flush() and (not file.unsynced) is on_disk
    file.close()
    assert not file.unsynced


def test_rows_that_were_not_synced_are_in_the_checkpoint(make_run, tmp_path, failing):
    run = start(make_run)
    rows(run, 1)
    logger = next(c for c in run.callbacks if isinstance(c, JSONL))
    assert logger.state() == {}
    failing.now = True
    rows(run, 2, 3)
    assert [row["step"] for row in logger.state()["waiting"]] == [2, 3]
    run.step = 4
    run.callbacks("on_log", run, {"step": 4})
    assert [row["step"] for row in logger.state()["waiting"]] == [2, 3, 4]
    failing.now = False
    run.callbacks("flush")
    assert logger.state() == {}
    on_disk = failing.holds(tmp_path / "metrics.jsonl")
    assert [json.loads(line)["step"] for line in on_disk.splitlines()] == [1, 2, 3, 4]


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


@pytest.mark.parametrize("board_first", [False, True])
@pytest.mark.parametrize("still_full", [False, True])
def test_rows_that_wait_are_in_the_checkpoint(make_run, tmp_path, disk, board_first, still_full):
    """The disk is full, a checkpoint gets through all the same, the process is killed: no row is lost, in whichever
    order the loggers stand, and though rows still wait when the run goes on."""
    run = start(make_run)
    rows(run, 1, 2)
    disk.left = 30  # of row 3 a part
    rows(run, 3, 4)
    logger = next(c for c in run.callbacks if isinstance(c, JSONL))
    state = logger.state()
    assert [row["step"] for row in state["waiting"]] == [3, 4]
    disk.left = 0 if still_full else None
    later = JSONL()
    again = make_run(*([TensorBoard(), later] if board_first else [later, TensorBoard()]), restored=4)
    later.reset()
    later.load_state(state)
    again.callbacks("on_fit_start", again)
    again.callbacks("on_restore", again)
    disk.left = None
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
