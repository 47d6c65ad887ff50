"""The run whose directory is kept in ``fixtures``, one a release: python -m tests.faults.release makes this one's.

A release that changes what a checkpoint holds must still go on from these, or say what to do.
"""

import json
import shutil
import sys
from pathlib import Path

import jaxtrain as jt
from tests.faults import tiny
from tests.small import lines, rows

FIXTURES = Path(__file__).parent / "fixtures"
CUT, WHOLE = 4, 8


def main() -> int:
    """A run of 4 steps, to go on from, and what it came to at step 8 when it was made."""
    folder = FIXTURES / jt.__version__
    shutil.rmtree(folder, ignore_errors=True)
    tiny.fit(folder / "run", CUT).run(tiny.Noisy(), lines())
    shutil.rmtree(folder / "run" / "tensorboard")  # its files are named after this machine
    (folder / "run" / ".lock").unlink()
    for path in folder.rglob("commit_success.txt"):  # says where it was saved, and is not needed
        path.unlink()
    config = json.loads((folder / "run" / "config.json").read_text())
    (folder / "run" / "config.json").write_text(json.dumps({**config, "command": ["release.py"]}, indent=2))
    whole = tiny.fit(folder / "whole", WHOLE).run(tiny.Noisy(), lines())
    found = {"digest": whole.digest, "rows": rows(folder / "whole")}
    shutil.rmtree(folder / "whole")
    (folder / "expected.json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
