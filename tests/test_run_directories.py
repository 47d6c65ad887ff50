"""Run directories that were modified, belong to another run, are in use or oddly placed: no loss, no wrong number."""

import json
import shutil
import subprocess
import sys

import pytest

import jaxtrain as jt
from jaxtrain.commands.info import describe_run
from jaxtrain.commands.run_facts import facts
from jaxtrain.utils.files import RunLock
from tests.small import CopyGRU, Linear, Lines, LinesOf, copies, tree_bytes


class Data(jt.DataModule):
    """Data whose identity is ``kind``."""

    def __init__(self, kind: str = "plain"):
        super().__init__(Lines(), LinesOf(2))
        self._kind = kind

    def identity(self):
        return {"kind": self._kind}


def run(folder, steps=4, *, seed=0, kind="plain", resume="never"):
    callbacks = [jt.loggers.JSONL(), jt.Checkpoint(every=2)]
    fit = jt.Fit("bptt", max_steps=steps, seed=seed, run_dir=folder, callbacks=callbacks, loggers=())
    return fit.run(Linear(), Data(kind), resume=resume)


def refused(folder, text, error=(ValueError, OSError, RuntimeError), **options):
    """A resume is refused with a message that matches, and nothing is changed."""
    before = tree_bytes(folder)
    with pytest.raises(error, match=text):
        run(folder, 8, resume="last", **options)
    assert {**tree_bytes(folder), folder / ".lock": b""}.keys() - before.keys() <= {folder / ".lock"}
    assert all(tree_bytes(folder)[name] == data for name, data in before.items() if not name.endswith(".lock"))


def test_a_directory_among_checkpoints_is_refused(tmp_path):
    run(tmp_path / "run")
    for inside in (tmp_path / "run" / "checkpoints", tmp_path / "run" / "checkpoints" / "00000004" / "fork"):
        with pytest.raises(ValueError, match="lies among the checkpoints of the run .*run; choose another"):
            run(inside)
        with pytest.raises(ValueError, match="lies among the checkpoints"):
            jt.Fit("bptt", max_steps=9, run_dir=inside).run(
                Linear(), Data(), resume=tmp_path / "run" / "checkpoints" / "00000004"
            )
    assert run(tmp_path / "run", 8, resume="last").step == 8
    run(tmp_path / "checkpoints" / "plain")  # a folder of that name that belongs to no run


def test_checkpoints_that_are_gone_though_they_were_saved_are_missed(tmp_path):
    run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    refused(tmp_path / "run", "has no checkpoint, and its result.json says that step 4 was saved")
    (tmp_path / "run" / "result.json").unlink()
    assert run(tmp_path / "run", 8, resume="last").step == 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", "is a folder, and a run keeps a file there: move it away"),
        ("result.json", "is a folder, and a run keeps a file there"),
        ("tensorboard", "is a file, and a run keeps a folder there"),
        ("figures", "is a file, and a run keeps a folder there"),
    ],
)
def test_what_is_in_the_way_is_said_before_anything_is_changed(name, text, tmp_path):
    run(tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    path.mkdir() if "folder, and" in text else path.write_text("")
    refused(tmp_path / "run", text)


@pytest.mark.parametrize("other", [{"seed": 7}, {"kind": "other"}])
def test_a_step_of_another_run_is_never_loaded(other, tmp_path):
    """The checkpoint is complete and the model the same, but it belongs to another run."""
    run(tmp_path / "run")
    run(tmp_path / "other", **other)
    step = tmp_path / "run" / "checkpoints" / "00000004"
    shutil.rmtree(step)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "00000004", step)
    refused(tmp_path / "run", "the checkpoint of step 4 in .*run is of another run than config.json there")
    for where in (tmp_path / "run", step):
        with pytest.raises(ValueError, match="is of another run"):
            jt.load(where, Linear())
    jt.load(tmp_path / "other", Linear())


def test_links_in_a_circle(tmp_path):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    # Python 3.13 resolves such a path without an error; then the directory cannot be created.
    with pytest.raises((ValueError, OSError), match="cannot be followed|cannot write the run directory"):
        run(tmp_path / "round")


@pytest.mark.parametrize("damage", [{"fit": 3}, {"strategy": [1]}, {"data": None}])
def test_a_damaged_config_is_one_line(damage, tmp_path):
    run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    refused(tmp_path / "run", rf"config.json is damaged: it has no table '{next(iter(damage))}'")
    assert "bptt" in describe_run(facts(tmp_path / "run"), everything=True) or "strategy" in damage


def test_info_of_a_damaged_result(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(json.dumps({"status": 3, "best": "x", "train": 5}))
    assert "damaged x" in describe_run(facts(tmp_path / "run"), everything=True)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "run"
    jt.Fit("bptt", max_steps=2, callbacks=[jt.loggers.JSONL()], run_dir=path).run(CopyGRU(), copies())
    return path


def test_a_run_directory_with_another_models_checkpoint(other_run, tmp_path):
    shutil.copytree(other_run, tmp_path / "run")
    before = tree_bytes(tmp_path / "run")
    fit = jt.Fit("bptt", max_steps=4, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="of (another model|other data): .* in the checkpoint, .* now"):
        fit.run(Linear(), Lines(), resume="last")
    with pytest.raises(ValueError, match=r"of another model: readout.weight.weight.*'float32\[6, 10\]' in the .* now"):
        fit.run(CopyGRU(hidden=5), copies(), resume="last")
    with pytest.raises(ValueError, match="of other data: batch_size: 4 in the checkpoint, 5 now"):
        fit.run(CopyGRU(), copies(batch_size=5), resume="last")
    with pytest.raises(ValueError, match="of another strategy: .*'bptt' in the checkpoint, 'drtrl' now"):
        jt.Fit("drtrl", max_steps=4, run_dir=tmp_path / "run").run(CopyGRU(), copies(), resume="last")
    assert tree_bytes(tmp_path / "run") == before


def test_a_run_directory_that_is_a_file(tmp_path):
    path = tmp_path / "run"
    path.write_text("a note")
    for resume in ("never", "last"):
        with pytest.raises(OSError, match="cannot write the run directory .*run"):
            jt.Fit("bptt", max_steps=2, run_dir=path).run(Linear(), Lines(), resume=resume)
    with pytest.raises(OSError, match="cannot write the run directory"):
        jt.Fit("bptt", max_steps=2, run_dir=path / "below").run(Linear(), Lines())
    assert path.read_text() == "a note"


def test_a_run_directory_in_use(tmp_path):
    """By another process: the error names its pid, and the directory is not changed."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom jaxtrain.utils.files import RunLock\n"
        "with RunLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"in use by process {process.pid}: wait for it, or choose another"):
            jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run").run(Linear(), Lines())
        assert tree_bytes(tmp_path / "run") == {}
        process.stdin.close()
        process.wait()
    with RunLock(tmp_path / "run"):
        pass
