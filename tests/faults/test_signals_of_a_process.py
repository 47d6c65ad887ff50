"""Signals to a recipe's process, in every part of its life: saved within a chunk, the exit code, an exact resume."""

import json
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kit import forks
from tests.kit.tiers import longer
from tests.small import result_of, rows

ROOT = Path(__file__).parents[2]
RECIPE = f'''
import sys
from dataclasses import dataclass

sys.path.insert(0, {str(ROOT)!r})
from jaxtrain import cli


@dataclass(frozen=True)
class Config(cli.Options):
    """A recipe that says where it is, and waits there for a signal."""

    strategy: cli.StrategyName = "bptt"
    stop_in: str = ""
    """the part of its life in which it waits"""
    goes_on: str = ""
    """a named pipe: it waits there until somebody writes"""


def make(config):
    import time

    import jaxtrain as jt
    from tests.faults import tiny
    from tests.small import Lines, LinesOf, line

    def here(part):
        if part and config.stop_in == part and part not in seen:
            seen.append(part)
            print(f"now in {{part}}", flush=True)
            if part == "blocked":
                time.sleep(600)
            with open(config.goes_on, "rb", buffering=0) as pipe:
                pipe.read(1)  # until the test has sent its signal

    seen, begun = [], []  # examples of batches are asked for before

    class Train(Lines):
        def batch(self, step):
            here("start-up" if not begun else "training" if step == 3 else "")
            here("blocked" if step == 6 else "")
            return line(step)

    class Val(LinesOf):
        def batch(self, step):
            here("validation" if step == 1 and begun else "")
            return line(step)

    class Says(jt.Callback):
        def on_fit_start(self, run):
            begun.append(run)

        def on_checkpoint(self, run, path):
            here("saving" if run.step == 4 else "")

        def on_exception(self, run, error):
            print(f"told of {{type(error).__name__}}", flush=True)

        def on_fit_end(self, run, status):
            print(f"ended {{status}}", flush=True)

    fit = tiny.fit(config.run_dir, 8, Says(), jt.callbacks.ProgressBar())
    return fit, tiny.Noisy(), jt.DataModule(Train(), Val(2))


if __name__ == "__main__":
    sys.exit(cli.main(Config, make))
'''


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    path.write_text(RECIPE)
    assert ends(run(path, "whole"))[0] == 0
    assert result_of(path.parent / "whole")["status"] == "finished"
    yield path
    while PIPES:
        os.close(PIPES.popitem()[1])


def run(recipe: Path, name: str, stop_in: str = "nothing") -> forks.Popen:
    """``stop_in`` is always given: a resumed run would wait where it did before."""
    command = [sys.executable, "-u", str(recipe), "--run-dir", str(recipe.parent / name), "--resume", "last"]
    pipe = recipe.parent / f"{name}.pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
        PIPES[name] = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # so that the recipe can open it, too
    command += ["--stop-in", stop_in, "--goes-on", str(pipe)]
    return forks.Popen(command, stdout=forks.PIPE, stderr=forks.STDOUT)


PIPES: dict[str, int] = {}


def signalled(process: forks.Popen, name: str, number: int) -> tuple[int, str]:
    """How a process ends that receives a signal while it waits, and may then continue."""
    process.send_signal(number)
    os.write(PIPES[name], b".")
    return ends(process)


def ends(process: forks.Popen) -> tuple[int, str]:
    """Its exit code, and what it said from now on."""
    text = process.communicate(timeout=120)[0]
    assert process.returncode is not None and text is not None
    return process.returncode, text


def until(process: forks.Popen, words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"it never said {words!r}")


TERM, INT = (signal.SIGTERM, "terminated", 143), (signal.SIGINT, "interrupted", 130)
HUP, USR1 = (signal.SIGHUP, "terminated", 129), (signal.SIGUSR1, "terminated", 138)
CASES = [("training", *USR1), ("validation", *TERM), ("saving", *TERM),
         *longer(("training", *TERM), ("training", *INT), ("training", *HUP))]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("part,number,status,code", CASES)
def test_a_signal_in_any_part(recipe, part, number, status, code):
    name = f"{part}-{code}"
    process = run(recipe, name, part)
    until(process, f"now in {part}")
    found, text = signalled(process, name, number)
    assert found == code, text
    assert "Traceback" not in text, text
    assert f"ended {status}" in text
    result = result_of(recipe.parent / name)
    assert result["status"] == status and result["reason"] == signal.Signals(number).name
    assert result["step"] <= 4 + 2, "within one chunk"
    saved = [path.name for path in (recipe.parent / name / "checkpoints").iterdir()]
    assert f"{result['step']:08d}" in saved
    assert ends(run(recipe, name))[0] == 0
    same_as_whole(recipe.parent, name)


@pytest.mark.full
@pytest.mark.parametrize("number,code", [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_before_the_run_ends_the_process(recipe, number, code):
    """There is nothing to save yet; of an exit by SIGTERM a shell says 143."""
    process = run(recipe, f"start-{code}", "start-up")
    until(process, "now in start-up")
    found, text = signalled(process, f"start-{code}", number)
    assert found == code and "Traceback" not in text
    assert not (recipe.parent / f"start-{code}" / "config.json").exists()


def same_as_whole(folder: Path, name: str) -> None:
    whole, other = result_of(folder / "whole"), result_of(folder / name)
    assert other["digest"] == whole["digest"] and rows(folder / name) == rows(folder / "whole")


@pytest.mark.full
@pytest.mark.parametrize(
    "part,number,code", [("validation", TERM[0], -15), ("blocked", TERM[0], -15), ("blocked", INT[0], 130)]
)
def test_a_second_signal_ends_at_once(recipe, part, number, code):
    """Also where the data blocks, and the first signal waits to be heard."""
    process = run(recipe, f"twice-{code}-{part}", part)
    until(process, f"now in {part}")
    process.send_signal(number)
    while process.poll() is None:  # a busy machine hears two at once as one
        process.send_signal(number)
        with suppress(forks.TimeoutExpired):
            process.wait(0.1)
    found, text = ends(process)
    assert found in (code, -number), text  # a third one finds no handler any more
    assert ends(run(recipe, f"twice-{code}-{part}"))[0] == 0
    same_as_whole(recipe.parent, f"twice-{code}-{part}")


NOTEBOOK = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import jaxtrain as jt
from tests.faults.tiny import Noisy, fit
from tests.small import At, lines, rows
stop = At("on_chunk_end", 4, lambda run: os.kill(os.getpid(), signal.SIGINT))
before = signal.getsignal(signal.SIGINT)
result = fit("RUN", 8, stop).run(Noisy(), lines())
assert (result.status, result.exit_code, result.saved) == ("interrupted", 130, True), result
assert signal.getsignal(signal.SIGINT) is before
result = fit("RUN", 8).run(Noisy(), lines(), resume="last")
assert (result.status, result.step) == ("finished", 8)
print("digest", result.digest)
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("the notebook's own again")
"""


@pytest.mark.full
def test_ctrl_c_in_a_notebook(recipe):
    """A program with Python's own signal handler executes the cell, which receives a Result; the program continues."""
    cells = NOTEBOOK.replace("RUN", str(recipe.parent / "notebook"))
    program = f"exec(compile({cells!r}, '<cell>', 'exec'), {{}})"
    done = forks.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "the notebook's own again" in done.stdout
    digest = re.search(r"digest (\w+)", done.stdout)
    assert digest is not None and digest[1] == result_of(recipe.parent / "notebook")["digest"]
    assert len(rows(recipe.parent / "notebook")) == 8


@pytest.mark.full
def test_the_same_command_can_be_started_for_ever(recipe):
    """In an empty folder it starts fresh and says so; what is finished is not trained again, and stays as it is."""
    first = run(recipe, "again")
    code, text = ends(first)
    assert code == 0 and "holds no run yet, starting fresh" in text
    before = (recipe.parent / "again" / "result.json").read_bytes()
    for _ in range(2):
        again = run(recipe, "again")
        code, text = ends(again)
        assert code == 0 and "already finished at step 8" in text
        assert (recipe.parent / "again" / "result.json").read_bytes() == before
    assert json.loads(before)["step"] == 8 and os.path.exists(recipe)
