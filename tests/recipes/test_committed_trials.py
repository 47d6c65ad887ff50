"""The trials in docs/results/data: the commands on the pages accept them as done and print the tables of the pages."""

import json
import re
import shlex
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxtrain.commands.compare import runner
from jaxtrain.commands.main import tool

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs/results").glob("*.md"))
COMMANDS = [
    (page, command)
    for page in PAGES
    for command in re.findall(r"`\s*(jaxtrain compare [^`]*--out\s+docs/results/data/[^`]*)`", page.read_text())
]


def folder(command):
    return re.search(r"--out\s+(\S+)", command)[1]


def test_kept_trials_have_commands():
    kept = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "docs/results/data").glob("*/trials.jsonl")}
    commands = {folder(command) for _, command in COMMANDS}
    assert kept and kept <= commands


KEPT = [(page, command) for page, command in COMMANDS if (ROOT / folder(command) / "trials.jsonl").exists()]


@pytest.mark.parametrize(("page", "command"), KEPT, ids=[folder(command) for _, command in KEPT])
def test_committed_trials_are_accepted(page, command, tmp_path, monkeypatch):
    asked = []

    def interrupted(command, **_):
        asked.append(Path(command[-1]).name.removesuffix(".result"))
        return SimpleNamespace(returncode=-signal.SIGINT, communicate=lambda: ("", ""))

    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=interrupted, PIPE=None))
    monkeypatch.chdir(ROOT)
    words = shlex.split(" ".join(command.split()))[1:]
    out = words.index("--out") + 1
    shutil.copytree(words[out], tmp_path / "data")
    kept = (tmp_path / "data/trials.jsonl").read_text()
    assert not re.search(r"/(home|root|tmp|work)/", kept), "a path of a machine"
    words[out] = str(tmp_path / "data")
    assert tool(words) == 0
    done = {json.loads(line)["name"] for line in kept.splitlines()}
    assert done and not done & {*asked}, "trials are trained again"
    assert (tmp_path / "data/trials.jsonl").read_text() == kept
    text = page.read_text()
    for line in (tmp_path / "data/compare.md").read_text().splitlines():
        assert not line.startswith("| ") or line in text, line
