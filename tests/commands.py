"""A recipe for tests of the command line, with a Fit that only notes what it was asked."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from jaxtrain import cli
from jaxtrain.training.result import Result


@dataclass(frozen=True)
class Config(cli.Options):
    """A task for tests."""

    batch_size: int = 4
    """sequences in a batch"""
    lr: float = 3e-3
    """learning rate"""
    clip: float | None = 1.0
    """largest norm"""
    max_steps: int = 100
    """steps"""
    seed: int = 0
    """seed"""


PRESETS = {"tutorial": {"lr": 1e-3, "clip": None, "drtrl": {"vjp": "single-step"}}}
ROOT = Path("checkpoints") / Path(__file__).stem
RECIPES = Path(__file__).parents[1] / "recipes"


class Recorder:
    """Stands for Fit: notes what it was asked, and begins a run directory as Fit does."""

    def __init__(self):
        self.result = Result("finished", 100, metrics={"train/loss": 0.51234567, "val/accuracy": 0.75, "lr": 1.0})
        self.error = None
        self.before = None

    def make(self, config):
        self.config, self.strategy, self.run_dir = config, config.make_strategy(), Path(config.run_dir)
        return self, "module", "data"

    def run(self, module, data, *, resume, config, dry_run, test):
        self.asked = {"resume": resume, "config": config, "dry_run": dry_run, "test": test}
        if self.before is not None:
            self.before()
        if not dry_run:
            Path(self.config.run_dir).mkdir(parents=True, exist_ok=True)
            (Path(self.config.run_dir) / "config.json").write_text(json.dumps({"schema": 1, "config": config}))
        return dataclasses.replace(self.result, run_dir=Path(self.config.run_dir))
