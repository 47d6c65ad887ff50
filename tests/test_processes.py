"""Several processes, compared with one process that has as many devices, and with an uninterrupted run."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from jaxtrain.cli.run_dirs import saved_steps
from jaxtrain.distributed import ending, processes
from jaxtrain.errors import ProcessEnded, ProcessError, SaveFailed
from tests.kit import forks
from tests.kit.tiers import longer
from tests.together import ROOT, Group, free_port, running, started

pytestmark = pytest.mark.full

ENDED = "another process has ended (at step 100 of 600): start all processes again with --resume last"
COPY = ROOT / "recipes" / "copy_gru.py"
STREAM = ROOT / "recipes" / "copy_stream.py"
SMALL = [
    "--decay",
    "constant",
    "--warmup",
    "0",
    "--time-lag",
    "5",
    "--hidden",
    "8",
    "--batch-size",
    "8",
    "--validate-every",
    "20",
]
RUNS = {
    "sequences": (COPY, ["--strategy", "bptt", *SMALL, "--chunk", "5", "--checkpoint-every", "20"]),
    "stream": (STREAM, ["--strategy", "drtrl", "--hidden", "8", "--batch-size", "4", "--checkpoint-every", "20"]),
}


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def digest(run_dir: Path) -> str:
    return json.loads((run_dir / "result.json").read_text())["digest"]


def alone(recipe: Path, flags: list[str], folder: Path) -> str:
    command = [sys.executable, str(recipe), "--no-progress", *flags]
    done = forks.run(command, capture_output=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def both(recipe: Path, flags: list[str], folder: Path, codes: tuple[int, ...] = (0, 0)) -> Group:
    with started(recipe, [flags, flags], folder) as group:
        assert tuple(group.wait()) == codes, group.texts
        return group


# --------------------------------------------------------------------------------------------------- one process


def test_one_process_is_the_first_of_one():
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.broadcast({"a": 1}) == {"a": 1}
    assert processes.gather(3) == [3]
    assert processes.barrier_within("somewhere", 0.01)
    processes.barrier()
    with pytest.raises(KeyError), processes.report_failures():
        raise KeyError
    assert ending.run(lambda: 1) == 1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((0, None, None, 9), "--processes 0: expected a whole number, 1 or more, or auto"),
        ((2, None, "a:1", 9), "--processes 2 needs --process 0 or 1 and --coordinator HOST:PORT"),
        ((3, 0, None, 9), "--processes 3 needs --process 0 to 2 and --coordinator HOST:PORT"),
        ((2, 2, "a:1", 9), "--processes 2 --process 2: expected 0 to 1"),
        ((2, 0, "host", 9), "--coordinator host: expected HOST:PORT"),
        ((1, 1, None, 9), "--process 1: expected --processes N with it"),
        (("auto", 0, None, 9), "--processes auto takes the process and the coordinator from the job"),
        ((2, 0, "a:1", 0), "--process-timeout 0: expected seconds, 1 or more"),
    ],
)
def test_what_cannot_be_a_group_is_refused(given, text):
    with pytest.raises(ValueError) as caught:
        processes.check(*given)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("error", "reported", "text"),
    [
        (JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), None, ENDED),
        (JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited"), None, ENDED),
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), None, ENDED),
        (SaveFailed("the checkpoint of step 3: JaxRuntimeError: INTERNAL: Barrier failed"), None, ENDED),
        (ProcessEnded(), None, ENDED),
        (JaxRuntimeError("UNAVAILABLE: Socket closed"), ProcessError("process 1 failed: no disk"), "process 1 failed"),
        (JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory, op_name="jit(step)/connection/dot"'), None, None),
        (JaxRuntimeError("INTERNAL: NCCL operation failed: out of memory"), None, None),
        (JaxRuntimeError("INVALID_ARGUMENT: opt-barrier operand"), None, None),
        (JaxRuntimeError("INTERNAL: a kernel failed\nin jit(connection)/socket"), None, None),
        (RuntimeError("DATABASE: connection refused"), None, None),
        (RuntimeError("Connection reset by peer"), None, None),  # of the user's own code
    ],
)
def test_an_error_that_the_end_of_another_process_causes_says_so(error, reported, text, monkeypatch):
    monkeypatch.setattr(ending, "reported", lambda: reported)
    for processes_, expected in ((2, text), (1, None)):
        monkeypatch.setattr(ending, "count", lambda count=processes_: count)
        kind = type(error) if expected is None else ProcessError
        with pytest.raises(kind) as caught, ending.explain_lost(lambda: "step 100 of 600"):
            raise error
        assert caught.value is error if expected is None else str(caught.value).startswith(expected)
        if expected == ENDED:
            assert caught.value.exit_code == 75


def test_auto_without_a_job_says_so(monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "PMIX_ID", "KUBERNETES_SERVICE_HOST", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, str(COPY), "--processes", "auto", "--process-timeout", "20"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "JAX finds no SLURM, Open MPI or Kubernetes job" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------- together


@pytest.mark.parametrize("name", ["sequences", *longer("stream")])
def test_two_processes_train_as_two_devices_of_one_and_each_goes_on_with_the_others_checkpoint(name, tmp_path):
    recipe, flags = RUNS[name]
    alone(recipe, [*flags, "--devices", "2", "--max-steps", "40", "--run-dir", "devices"], tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    group = both(recipe, [*flags, "--max-steps", "40", "--run-dir", "whole"], tmp_path)
    assert "finished at step 40" in group.texts[0] and "step" not in group.texts[1]
    truth, found = rows(tmp_path / "devices"), rows(whole)
    assert [row["step"] for row in found] == [row["step"] for row in truth] and len(truth) >= 1
    for row, other in zip(truth, found, strict=True):
        for tag in ("train/loss", "val/loss", "train/grad_norm"):
            if tag in row:
                np.testing.assert_allclose(other[tag], row[tag], rtol=1e-5)

    # Resumed at half: two processes give the same bits, one agrees up to rounding.
    both(recipe, [*flags, "--max-steps", "20", "--run-dir", "parts"], tmp_path)
    written = {path.name for path in (parts / "checkpoints" / "00000020").rglob("ocdbt.process_*")}
    assert written == ({"ocdbt.process_0", "ocdbt.process_1"} if name == "stream" else {"ocdbt.process_0"})
    subprocess.run(["cp", "-r", "parts", "other"], cwd=tmp_path, check=True)
    both(recipe, ["--max-steps", "40", "--run-dir", "parts", "--resume", "last"], tmp_path)
    assert digest(parts) == digest(whole)
    said = alone(recipe, ["--max-steps", "40", "--run-dir", "other", "--resume", "last"], tmp_path)
    assert "the run used 2 before and now uses 1" in said and "as at the start of the run" not in said
    np.testing.assert_allclose(rows(tmp_path / "other")[-1]["train/loss"], rows(parts)[-1]["train/loss"], rtol=1e-4)


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_other_and_the_same_command_goes_on(tmp_path):
    recipe, flags = RUNS["sequences"]
    flags = [*flags, "--max-steps", "400"]
    both(recipe, [*flags, "--run-dir", "whole"], tmp_path)
    rng, again = random.Random(0), [*flags, "--run-dir", "parts", "--resume", "last"]
    for victim in (1, 0):
        before = max(saved_steps(tmp_path / "parts"), default=0)
        with started(recipe, [again, again], tmp_path) as group:
            until = time.monotonic() + 120
            while time.monotonic() < until and max(saved_steps(tmp_path / "parts"), default=0) <= before:
                time.sleep(0.05)
            time.sleep(rng.random() / 2)
            assert [process.poll() for process in group.processes] == [None, None], group.texts
            group.processes[victim].kill()
            codes = group.wait(120)
            # JAX ends the others with SIGABRT if the first process, which coordinates them, is gone.
            assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (75, -signal.SIGABRT), group.texts
            if victim == 1:
                result = json.loads((tmp_path / "parts" / "result.json").read_text())
                why = "another process has ended (at step {step} of 400): start all processes again with --resume last"
                assert codes[0] == 75 and group.errors()[0] == [f"process 0: error: {result['reason']}"]
                assert result["status"] == "failed" and result["reason"] == why.format(**result)
                assert "Traceback" not in group.texts[0]
    group = both(recipe, again, tmp_path)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    untimed = [{k: v for k, v in row.items() if k.split("/")[0] not in ("throughput", "time", "memory")}
               for row in rows(tmp_path / "parts")]  # fmt: skip
    truth = [{k: row[k] for k in own} for own, row in zip(untimed, rows(tmp_path / "whole"), strict=True)]
    assert untimed == truth


@pytest.mark.long
def test_sigterm_to_one_ends_both_with_a_checkpoint(tmp_path):
    recipe, flags = RUNS["sequences"]
    flags = [*flags, "--checkpoint-every", "100000"]
    with started(recipe, [[*flags, "--max-steps", "100000", "--run-dir", "parts"]] * 2, tmp_path) as group:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (tmp_path / "parts" / "metrics.jsonl").exists():
            time.sleep(0.05)
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.wait(120) == [143, 143], group.texts
    result = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert result["status"] == "terminated" and result["saved"]
    end = str(result["step"] + 10)
    both(recipe, [*flags, "--max-steps", end, "--run-dir", "parts", "--resume", "last"], tmp_path)
    both(recipe, [*flags, "--max-steps", end, "--run-dir", "whole"], tmp_path)
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.long
def test_a_program_of_ones_own(tmp_path):
    """tests/two_processes.py: loggers, requests, forks, reading, caught errors, refusals."""
    port = str(free_port())
    each = [["-m", "tests.two_processes", port, rank, str(tmp_path)] for rank in "01"]
    with running(each, tmp_path) as group:
        assert group.wait(200) == [0, 0], group.texts
        assert all("fine" in text for text in group.texts)


@pytest.mark.long
def test_a_curriculum_in_a_fresh_directory(tmp_path):
    flags = ["--task", "digits", "--hidden", "8", "--batch-size", "8", "--threshold", "0", "--over", "2", "--max-steps",
             "12", "--validate-every", "6"]  # fmt: skip
    both(ROOT / "recipes" / "copy_curriculum.py", flags, tmp_path)
    runs = list((tmp_path / "checkpoints" / "copy_curriculum").iterdir())
    assert len(runs) == 1 and json.loads((runs[0] / "result.json").read_text())["step"] == 12
    alone(ROOT / "recipes" / "copy_curriculum.py", [*flags, "--devices", "2", "--run-dir", "truth"], tmp_path)
    np.testing.assert_allclose(rows(runs[0])[-1]["train/loss"], rows(tmp_path / "truth")[-1]["train/loss"], rtol=1e-5)


# ------------------------------------------------------------------------------------------------- what is wrong

ALONE = """
import sys
from dataclasses import dataclass
import jaxtrain.cli
from jaxtrain.distributed import ending, processes
sys.path.insert(0, {root!r})


@dataclass(frozen=True)
class Config(jaxtrain.cli.Options):
    where: str = "nowhere"


def make(config):
    import jaxtrain
    from tests.small import Linear, lines

    def fail(place):
        if config.where == place and processes.index() == 1:
            raise RuntimeError("the disk of this one is broken")

    class Data(jaxtrain.DataModule):
        def train_data(self):
            return self

        def batch(self, step):
            if step == 7:
                fail("data")
            return lines().train_data().batch(step)

    class Watch(jaxtrain.Callback):
        def on_chunk_end(self, run, metrics):
            fail("callback")

    fail("make")
    fit = jaxtrain.Fit(config.make_strategy(), max_steps=20, chunk=2, callbacks=[Watch()], run_dir=config.run_dir)
    return fit, Linear(), Data()


if __name__ == "__main__":
    sys.exit(jaxtrain.cli.main(Config, make))
"""


@pytest.mark.parametrize("where", ["make", *longer("data", "callback")])
def test_an_error_in_one_process_ends_all_in_time(where, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(ALONE.format(root=str(ROOT)))
    flags = ["--strategy", "bptt", "--where", where, "--run-dir", "run"]
    with started(recipe, [flags, flags], tmp_path) as group:
        codes = group.wait(90)
        assert codes[1] == 1, group.texts
        assert "the disk of this one is broken" in group.texts[1]
        assert codes[0] == 1, "the error would come again"
        assert group.errors()[0] == ["process 0: error: process 1 failed: the disk of this one is broken"]


DISAGREE = "the processes disagree: run directory: "


@pytest.mark.parametrize(
    ("own", "texts"),
    [
        ([["--devices", "3"]] * 2, ["Fit(devices=3): JAX has 1 on cpu in this process; ask for at most 1"] * 2),
        ([["--batch-size", "7"]] * 2, ["Fit(devices=1) in 2 processes: a batch of 7 sequences does not divide"] * 2),
        (
            [["--lr", "0.1"], ["--lr", "0.2"]],
            ["the processes disagree: config.lr: 0.1 in process 0, 0.2 in process 1",
             "process 0 failed: the processes disagree: config.lr: 0.1 in process 0, 0.2 in process 1"],
        ),
        *longer(
            ([["--seeds", "2"]] * 2, ["Fit(seeds=...) in 2 processes: seeds exchange nothing"] * 2),
            (
                [["--run-dir", "a"], ["--run-dir", "b"]],
                [DISAGREE, f"process 0 failed: {DISAGREE}"],
            ),
            (
                [["--run-dir", "a"], []],
                [DISAGREE, f"process 0 failed: {DISAGREE}"],
            ),
            (
                [[], ["--dry-run"]],
                ["the processes disagree: dry run: False in process 0, True in process 1",
                 "process 0 failed: the processes disagree: dry run: False in process 0, True in process 1"],
            ),
            (
                [["--batch-size", "4"], ["--batch-size", "8"]],
                ["the processes disagree: config.batch_size: 4 in process 0, 8 in process 1",
                 "process 0 failed: the processes disagree: config.batch_size: 4 in process 0, 8 in process 1"],
            ),
        ),
    ],
    ids=["devices", "batch", "options", "seeds", "directories", "one-directory", "one-dry", "sizes"],
)  # fmt: skip
def test_what_the_processes_cannot_do_is_one_line_in_each(own, texts, tmp_path):
    recipe, flags = RUNS["stream" if "--batch-size" in own[0] and own[0] != own[1] else "sequences"]
    one = "--xla_force_host_platform_device_count=1"
    with started(recipe, [[*flags, "--max-steps", "9", *some] for some in own], tmp_path, XLA_FLAGS=one) as group:
        assert group.wait(90) in ([1, 1], [2, 2]), group.texts
        for number, (lines, text) in enumerate(zip(group.errors(), texts, strict=True)):
            assert len(lines) == 1 and lines[0].startswith(f"process {number}: error: {text}"), lines
    assert not list(tmp_path.glob("**/config.json"))


def test_a_coordinator_that_is_missing_or_a_port_in_use_is_one_line():
    command = [sys.executable, str(COPY), "--processes", "2", "--process-timeout", "3", "--process"]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for number, text in (("0", f"port {port} cannot be used (Address already in use); choose another"),
                             ("1", "not all joined within 3 s")):  # fmt: skip
            done = subprocess.run([*command, number, "--coordinator", f"127.0.0.1:{port}"], capture_output=True,
                                  text=True, timeout=60)  # fmt: skip
            assert done.returncode == 1 and text in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
