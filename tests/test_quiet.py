"""Orbax's messages do not reach the program that uses a Store, and all other messages do."""

import gc
import logging
import subprocess
import sys

import orbax.checkpoint as ocp
import pytest

from jaxtrain.checkpoint import orbax_noise
from jaxtrain.checkpoint.store import Store
from jaxtrain.errors import CorruptCheckpoint
from tests.stores import put, spoil, tree


def test_absl_is_as_before(tmp_path, monkeypatch):
    from absl import logging as absl_logging

    monkeypatch.setattr(orbax_noise, "_unsuccessful", ())
    orbax_noise.release(monkeypatch)  # removes the filters that failures of earlier tests left
    logger = logging.getLogger("absl")
    before = list(logger.filters), logger.level, absl_logging.get_verbosity()
    line = logging.LogRecord("absl", 40, ocp.__file__, 1, "a line of Orbax", (), None)
    assert logger.filter(line)
    store = Store(tmp_path)
    put(store, 1)
    assert len(logger.filters) == len(before[0]) + 1 and not logger.filter(line)
    store.close()
    assert (list(logger.filters), logger.level, absl_logging.get_verbosity()) == before and logger.filter(line)


def test_what_is_said_of_other_things_is_heard(tmp_path):
    """In a separate process: closing the last store removes hook and filters. After a failed read they stay, and drop
    only messages about that step."""
    code = (
        "import logging, shutil, sys, types, numpy as np\n"
        "from jaxtrain.checkpoint.store import CorruptCheckpoint, Store\n"
        "told, loud = [], logging.getLogger('asyncio')\n"
        "sys.unraisablehook = hook = lambda what: told.append(what.exc_value)\n"
        "heard, loud.propagate = [], False\n"
        "loud.addHandler(types.SimpleNamespace(level=0, handle=lambda record: heard.append(record.getMessage())))\n"
        "where = Store(sys.argv[1]).directory\n"
        "s = Store(where, last=3)\n"
        "for step in range(3):\n"
        "    s.save(step, {'w': np.arange(3.0)}, {}, {}); s.wait()\n"
        "s.restore(1)\n"
        "late = types.SimpleNamespace(exc_value=RuntimeError('Event loop is closed'), object=None)\n"
        "sys.unraisablehook(late)\n"
        "loud.error('task of %s', where / '00000001/params')\n"
        "assert (len(told), len(heard)) == (1, 1), 'nothing is in progress, nothing has failed'\n"
        "s.close()\n"
        "assert sys.unraisablehook is hook and loud.filters == logging.getLogger('absl').filters == []\n"
        "shutil.rmtree(where / '00000001/params')\n"
        "s = Store(where)\n"
        "try: s.restore(1)\n"
        "except CorruptCheckpoint: pass\n"
        "s.close()\n"
        "loud.error('task of %s', where / '00000001/params')\n"
        "sys.unraisablehook(late)\n"
        "assert (len(told), len(heard)) == (1, 1), 'nothing more is reported of the read that failed'\n"
        "loud.error('task of %s', where / '00000002/params')\n"
        "late.object = 'a coroutine'\n"
        "sys.unraisablehook(late)\n"
        "assert (len(told), len(heard)) == (2, 2)\n"
        "theirs = sys.unraisablehook\n"
        "sys.unraisablehook = lambda what: theirs(what)\n"
        "s = Store(where); s.restore(2); sys.unraisablehook(late); s.close()\n"
        "assert len(told) == 3, 'other hooks may be installed before and after'\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0 and run.stderr == "", run.stderr


def test_a_line_that_is_logged_while_a_step_begins_and_ends(tmp_path):
    """As Orbax's threads do: what the filters read never changes while they read it."""

    class Line(logging.LogRecord):
        n = 0

        def getMessage(self):
            for name in ("asyncio", "absl"):  # in the middle of a filter
                Line.n += 1
                orbax_noise.begin(tmp_path / f"{Line.n}-{name}")
                Line.n % 3 and orbax_noise.succeeded(tmp_path / f"{Line.n}-{name}")
            return "a line of something else"

    before = orbax_noise._unsuccessful
    orbax_noise.suppress_while_used(Line)
    try:
        for step in range(5):
            orbax_noise.begin(tmp_path / str(step))
        for name in ("asyncio", "absl"):
            assert logging.getLogger(name).filter(Line(name, 40, "here", 1, "", (), None))
        assert Line.n > 10
    finally:
        orbax_noise.release(Line)
        orbax_noise._unsuccessful = before


@pytest.mark.parametrize("words", ["basic", "none"])
def test_logging_of_the_program_around_it_is_left_alone(tmp_path, words):
    """After Orbax was imported and used, basicConfig still works, and lines are printed once and plain."""
    code = (
        "import logging, sys, numpy as np\n"
        "from jaxtrain.checkpoint.store import Store\n"
        "from jaxtrain.utils.logging import log\n"
        "s = Store(sys.argv[1])\n"
        "s.save(1, {'w': np.arange(3.0)}, {}, {}); s.wait(); s.restore(1)\n"
        "log.info('one line')\n"
        "s.close()\n"
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING\n"
        "if sys.argv[2] == 'basic':\n"
        "    logging.basicConfig(format='theirs: %(message)s', level=logging.INFO, stream=sys.stdout)\n"
        "log.info('another')\n"
        "Store(sys.argv[1]).restore(1)\n"
        "log.info('the last')\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path, words], capture_output=True, text=True, timeout=100)
    theirs = "theirs: " if words == "basic" else ""
    assert run.stderr == "" and run.stdout.splitlines() == ["one line", f"{theirs}another", f"{theirs}the last"]


@pytest.mark.long
def test_what_outlives_a_failed_read_is_silent(tmp_path, opened, caplog, capfd):
    """TensorStore and the garbage collector report at any time: many failed reads, one after the other."""
    for trial in range(60):
        where = tmp_path / str(trial)
        put(opened(where, last=3), 1, 2)
        spoil(where, 2, "data truncated")
        with pytest.raises(CorruptCheckpoint):
            opened(where, last=3).restore(2)
    gc.collect()
    assert caplog.records == [] and capfd.readouterr().err == ""


def test_what_orbax_says_of_a_failed_save_when_all_is_closed_is_silent(tmp_path, monkeypatch, caplog):
    store = Store(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.AsyncCheckpointer, "_save_step_metadata", fail)
    store.save(2, tree(2), {}, {})
    assert store.wait() is False
    store.close()
    caplog.clear()
    late = logging.getLogger("absl")
    late.error("a thread raised an exception: cannot write %s", store.directory / "00000002.orbax-checkpoint-tmp/w")
    assert caplog.records == []
    late.error("of another step: %s", store.directory / "00000003")
    assert len(caplog.records) == 1


def test_a_level_that_the_program_set_stays():
    for lines, level in (("", "INFO"), ("logging.getLogger('jaxtrain').setLevel('ERROR')", "ERROR")):
        shown = "import jaxtrain.utils.logging as ours\nprint(logging.getLevelName(ours.log.level))"
        program = f"import logging\n{lines}\n{shown}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == f"{level}\n"
