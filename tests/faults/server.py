"""A process that has imported everything, has no thread yet, and forks a child for each run: a start costs nothing.

No backend of JAX has been made in it (asserted), so its children are as good as new processes; each makes its
own. One JSON object a line comes in on stdin and goes out on stdout:
    {"dir": ..., "resume": "last", "fault": null | {"mode", "first", "last", "error", "call", "path"}, "log": FILE}
    {"code": exit code, negative for a signal, "text": what it printed, "came_to": ... | null}
"""

import json
import logging
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads begin at import
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax  # noqa: F401
import matplotlib.figure  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
import tensorboardX.event_file_writer  # noqa: F401
from jax._src import xla_bridge

from jaxtrain import loggers  # noqa: F401
from jaxtrain.cli.recipe import guarded
from tests.faults import tiny
from tests.faults.library import arm

SECONDS = 60  # a run takes less than one


def child(order: dict, text: int, answer: int) -> int:
    os.dup2(text, 1)
    os.dup2(text, 2)
    directory = Path(order["dir"])
    logging.root.handlers.clear()  # TensorBoard's reader, which a run does not import, sets one up
    if order["fault"] is not None:
        arm(directory, order["fault"], os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
    code = guarded(lambda: tiny.train(directory, order["resume"]).exit_code)
    if code == 0:
        os.write(answer, json.dumps(tiny.came_to(directory)).encode())
    return code


def serve(order: dict) -> dict:
    with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as answer:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(order, text.fileno(), answer.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline, done = time.monotonic() + SECONDS, 0
        while not done:
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                if time.monotonic() > deadline:
                    os.kill(pid, 9)
                    _, status = os.waitpid(pid, 0)
                    status = 124 << 8
                    break
                time.sleep(0.002)
        text.seek(0)
        answer.seek(0)
        came_to = answer.read()
        printed = text.read().decode(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "text": printed, "came_to": json.loads(came_to) if came_to else None}


if __name__ == "__main__":
    assert not xla_bridge._backends and len(os.listdir("/proc/self/task")) == 1, "a fork would not be safe"
    out = os.fdopen(os.dup(1), "w")
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=out, flush=True)
