"""Record the golden runs: ``python -m tests.golden``. Only for a change that is meant to change their numbers."""

import json
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # as the tests compile

from tests.golden.runs import RUNS, machine, observe

recorded = {}
for name in RUNS:
    with tempfile.TemporaryDirectory() as folder:
        recorded[name] = observe(name, Path(folder) / "run")
text = json.dumps({"machine": machine(), "runs": recorded}, indent=1)
Path(__file__).with_name("recorded.json").write_text(text + "\n")
