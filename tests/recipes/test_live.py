"""The recipe that learns from a stream of numbers: kill it in the middle, restart it, and nothing is lost."""

import math
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.commands.load_recipe import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "live.py"
SMALL = ["--hidden", "4", "--save-every", "8"]
COUNT, KILLED = 40, 21


def sine() -> list[str]:
    noise = random.Random(0)
    return [f"{math.sin(0.3 * i) + 0.1 * noise.gauss(0, 1):.6f}" for i in range(COUNT)]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start("--run-dir", "a")`` -> a process with pipes, in an empty directory. The end of the test ends it."""
    monkeypatch.chdir(tmp_path)
    begun = []

    def begin(*argv):
        pipe = subprocess.PIPE
        command = [sys.executable, RECIPE, *SMALL, *argv]
        begun.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def whole(start, *argv):
    process = start(*argv)
    out, err = process.communicate("\n".join(sine()) + "\n", timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def until_killed(process):
    """Send lines, each after the prediction of the one before; kill the process after ``KILLED`` predictions."""
    out = []
    for line in sine()[:KILLED]:
        process.stdin.write(f"{line}\n")
        out.append(process.stdout.readline().strip())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return out


@pytest.mark.full
def test_a_killed_session_continues_bit_for_bit(start):
    expected = whole(start, "--run-dir", "whole", "--journal", "whole.txt")
    assert [line.split()[0] for line in expected] == [*map(str, range(COUNT))]
    before = until_killed(start("--run-dir", "killed", "--journal", "killed.txt"))
    assert before == expected[:KILLED]
    process = start("--run-dir", "killed", "--journal", "killed.txt")
    out, err = process.communicate("\n".join(sine()[KILLED:]) + "\n", timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines() == expected[16:]  # what came after the last save, again, and the rest
    assert Path("killed.txt").read_text() == Path("whole.txt").read_text()
    from jaxtrain.checkpoint.run_directory import read_checkpoint

    one, other = read_checkpoint("whole"), read_checkpoint("killed")
    assert one.step == other.step == COUNT - 1
    for name, value in {**one.params, **one.train}.items():
        assert ({**other.params, **other.train}[name] == value).all(), name


@pytest.mark.long
def test_lost_lines_are_counted(start):
    until_killed(start("--run-dir", "killed"))
    process = start("--run-dir", "killed")
    out, err = process.communicate("0.5\nx\n0.5 1\nnan\n0.25\n", timeout=120)
    # 21 lines were used, and line 20 as an input of none of the 20 time steps; the last save is after 16 of them.
    assert "5 lines were used after the last save, and are lost" in err
    assert [line.split()[0] for line in out.splitlines()] == ["16", "17"]
    for word in ("'x'", "'0.5 1'", "'nan'"):
        assert f"ignored {word}: expected 1 finite numbers" in err
    process = start("--run-dir", "killed")
    assert "are lost" not in process.communicate("", timeout=120)[1]


@pytest.mark.full
def test_lines_of_a_connection(start):
    process = start("--run-dir", "run", "--listen", "0")
    where = next(line for line in process.stderr if line.startswith("listening on "))
    out = []
    for part in ("0.1\n0.2\n", "0.3\n0.4"):  # the second connection breaks within a line
        with socket.create_connection(("127.0.0.1", int(where.rpartition(":")[2]))) as connection:
            connection.sendall(part.encode())
        out += [process.stdout.readline().split()[0] for _ in range(part.count("\n"))]
    assert out == ["0", "1", "2"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert (Path("run") / "checkpoints" / "00000002").is_dir()


def test_a_journal_of_another_run_is_refused(tmp_path):
    recipe = load_recipe(RECIPE)
    (tmp_path / "j.txt").write_bytes(b"1\n2\n3")
    journal = recipe.Journal(str(tmp_path / "j.txt"))
    assert journal.replayed(1) == ["2"] and (tmp_path / "j.txt").read_bytes() == b"1\n2\n"
    with pytest.raises(ValueError, match="holds 2 lines, and the run has used 3"):
        journal.replayed(3)
    with pytest.raises(ValueError, match="expected a port"):
        recipe.Config(listen=70000)
