"""The walk over every call that changes a run's directory: a sample of it, and that the library misses no call."""

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.library import Call, Fault, build, missing, server
from tests.faults.walk import attempt, plan, reference

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
SAMPLE = 40


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with server(tmp_path_factory.mktemp("served")) as one:
        yield one


@pytest.fixture(scope="module")
def truth(served, tmp_path_factory):
    return reference(served, tmp_path_factory.mktemp("truth"))


@pytest.mark.long
def test_a_run_broken_at_any_call_loses_nothing(served, truth, tmp_path):
    outcome, calls = truth
    faults = plan(calls)
    sample = [fault for mode in ("kill", "half", "ENOSPC", "EIO") for fault in pick(faults, mode)]
    trials = [attempt(served, tmp_path, fault, outcome) for fault in sample]
    lost = [trial for trial in trials if trial["wrong"]]
    print(f"{len(trials)} of {len(faults)} trials over {len(calls)} calls, {len(lost)} lost")
    assert not lost
    assert len(trials) == SAMPLE


def pick(faults: list[Fault], mode: str) -> list[Fault]:
    """As many of each mode, spread evenly."""
    own = [fault for fault in faults if fault.mode == mode]
    return [own[i * len(own) // (SAMPLE // 4)] for i in range(SAMPLE // 4)]


@pytest.mark.full
def test_the_plan_has_every_call(truth):
    calls = truth[1]
    faults = plan(calls)
    count = Counter(fault.mode for fault in faults)
    assert count["kill"] == len(calls) > 300
    assert count["half"] == sum(call.name in ("write", "writev") for call in calls) > 50
    kinds = {(call.name, call.kind()) for call in calls}
    for error in ("ENOSPC", "EIO"):
        assert {(f.call, f.path) for f in faults if f.mode == error} == kinds
    assert {"open", "write", "writev", "mkdir", "rename", "unlink", "rmdir", "fsync"} <= {call.name for call in calls}


# What a real run opens, writes and moves, in a process of its own: the report of strace is the truth.
STRACE = (
    "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,rename,renameat,"
)
STRACE += "renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat,rmdir,fsync,fdatasync,sendfile,"
STRACE += "copy_file_range,chmod,fchmod,fchmodat"
NAMES = {"openat": "open", "openat2": "open", "creat": "open", "pwrite64": "pwrite", "pwritev2": "pwritev",
         "ftruncate": "truncate", "renameat": "rename", "renameat2": "rename", "linkat": "link", "symlinkat": "symlink",
         "mkdirat": "mkdir", "fdatasync": "fdatasync", "fchmod": "chmod", "fchmodat": "chmod"}  # fmt: skip
RUN = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.faults.library import Fault, arm
from tests.faults import tiny
where = Path(sys.argv[1])
arm(where, Fault("count").order(), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT, 0o644))
tiny.train(where)
os._exit(0)
"""


def traced(log: Path, where: Path) -> Counter:
    """Calls below a directory in what strace wrote, by the library's names."""
    found: Counter = Counter()
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)", line)
        if not match or "resumed>" in line[:40]:
            continue
        name, rest = match.groups()
        if f'"{where}' not in rest and f"<{where}" not in rest:
            continue
        if name in ("open", "openat") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", rest):
            continue
        if name == "unlinkat" and "AT_REMOVEDIR" in rest:
            name = "rmdir"
        found[{**NAMES, "unlinkat": "unlink"}.get(name, name)] += 1
    return found


@pytest.mark.long
def test_the_library_sees_every_call_that_strace_sees(tmp_path):
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    where, report, log = tmp_path / "run", tmp_path / "report", tmp_path / "strace"
    root = str(Path(__file__).parents[2])
    command = ["strace", "-f", "-qq", "-y", "-s", "200", "-e", f"trace={STRACE}", "-o", log, "-E"]
    command += [f"LD_PRELOAD={build(tmp_path)}", sys.executable, "-c", RUN.format(root=root), where, report]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    seen = Counter(line.split(" ", 2)[1] for line in report.read_text().splitlines())
    assert sum(seen.values()) > 300
    assert seen == traced(log, where)


BREAK = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.faults.library import Fault, arm
where = Path(sys.argv[1])
arm(where, Fault(sys.argv[2], int(sys.argv[3]), int(sys.argv[3])).order(), -1)
os.mkdir(where / "a")                                        # 1
file = os.open(where / "a" / "f", os.O_CREAT | os.O_WRONLY)  # 2
os.write(file, b"0123456789")                                # 3
os.writev(file, [b"abc", b"defghij"])                        # 4
os.pwrite(file, b"##########", 0)                            # 5
ctypes.CDLL(None).syscall(ctypes.c_long(1), ctypes.c_long(file), b"last", ctypes.c_long(4))  # 6, x86-64's write
os.rename(where / "a" / "f", where / "g")                    # 7
"""


def broken(tmp_path, mode, n):
    where = tmp_path / f"{mode}{n}"
    where.mkdir()
    library = tmp_path / "faults.so" if (tmp_path / "faults.so").exists() else build(tmp_path)
    command = [sys.executable, "-c", BREAK.format(root=str(Path(__file__).parents[2])), str(where), mode, str(n)]
    done = subprocess.run(
        command, env={"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True
    )
    found = {str(p.relative_to(where)): p.read_bytes() for p in where.rglob("*") if p.is_file()}
    return done.returncode, found, done.stderr.decode()


@pytest.mark.long
def test_the_library_breaks_what_it_is_told_to(tmp_path):
    digits, letters = b"0123456789", b"abcdefghij"
    assert broken(tmp_path, "count", 0)[:2] == (0, {"g": b"#" * 10 + letters + b"last"})
    dead = -signal.SIGKILL
    assert broken(tmp_path, "kill", 2)[:2] == (dead, {})
    assert broken(tmp_path, "kill", 3)[:2] == (dead, {"a/f": b""})
    assert broken(tmp_path, "kill", 7)[:2] == (dead, {"a/f": b"#" * 10 + letters + b"last"})
    assert broken(tmp_path, "half", 3)[:2] == (dead, {"a/f": digits[:5]})
    assert broken(tmp_path, "half", 4)[:2] == (dead, {"a/f": digits + letters[:5]})
    assert broken(tmp_path, "half", 5)[:2] == (dead, {"a/f": b"#" * 5 + digits[5:] + letters})
    assert broken(tmp_path, "half", 6)[:2] == (dead, {"a/f": b"#" * 10 + letters + b"la"})
    code, found, said = broken(tmp_path, "ENOSPC", 4)
    assert (code, found) == (1, {"a/f": digits}) and "[Errno 28] No space left on device" in said
    code, found, said = broken(tmp_path, "EIO", 7)
    assert (code, list(found)) == (1, ["a/f"]) and "[Errno 5] Input/output error" in said


@pytest.mark.full
def test_a_kind_is_a_pattern_for_all_files_of_its_kind():
    name = "917329b3ebb0e7b625fb277c3c8b83a9"
    assert Call("open", f"checkpoints/00000004/params/d/{name}").kind() == "checkpoints/*/params/d/*"
    assert Call("open", "tensorboard/events.out.tfevents.17.vm.1").kind() == "tensorboard/events.out.*"
    assert Call("open", "figures/.tiny-00000008.png.tmp").kind() == "figures/.tiny-*.png.tmp"
