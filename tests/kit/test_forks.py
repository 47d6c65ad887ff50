"""A forked process ends, fails, is interrupted and is killed as one that an interpreter starts."""

import os
import signal
import subprocess
import sys

import pytest

from tests.kit import forks

PROGRAMS = {
    "arguments": ("import sys; print(sys.argv); sys.exit(3)", 3),
    "an error": ("import sys; print('out'); print('err', file=sys.stderr); raise ValueError('no')", 1),
    "a message": ("import sys; sys.exit('bad')", 1),
    "atexit": ("import atexit; atexit.register(print, 'last'); print('first')", 0),
    "an interrupt": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
    "a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "a thread": ("import threading; threading.Timer(0.1, print, ['late']).start()", 0),
}


@pytest.mark.full
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_ends_as_a_process_of_its_own(name):
    code, status = PROGRAMS[name]
    command = [sys.executable, "-c", code, "a", "--b"]
    ours, theirs = (start.run(command, capture_output=True, text=True) for start in (forks, subprocess))
    assert ours.returncode == theirs.returncode == status
    assert ours.stdout == theirs.stdout
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


@pytest.mark.full
def test_it_has_no_backend_no_thread_and_the_environment_that_it_is_given(tmp_path):
    code = """
import os, jax
from jax._src import xla_bridge
state = len(xla_bridge._backends), len(os.listdir("/proc/self/task")), os.getcwd() == os.environ["HERE"]
print(*state, jax.device_count())
"""
    environ = {**os.environ, "HERE": str(tmp_path), "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = forks.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environ)
    assert done.stdout == "0 1 True 3\n", done.stderr
    with pytest.raises(ValueError, match="JAX_ENABLE_X64.*: JAX has read them before the fork"):
        forks.run([sys.executable, "-c", ""], env={**environ, "JAX_ENABLE_X64": "1"})


@pytest.mark.full
def test_it_can_be_killed_and_waited_for():
    code = "import signal; print('up', flush=True); signal.pause()"
    process = forks.Popen([sys.executable, "-c", code], stdout=forks.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    with pytest.raises(forks.TimeoutExpired):
        forks.run([sys.executable, "-c", "import signal; signal.pause()"], timeout=0.2)
    process.kill()
    assert process.wait() == -signal.SIGKILL and process.poll() == -signal.SIGKILL
