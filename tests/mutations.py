"""Faults, at least one per group of modules: does `make test-all` notice each of them?

python -m tests.mutations [--likely] [NAME ...]   # tests a copy of the repository with each fault

The `tests` of all chosen mutations run once without a fault: they must pass. With a fault its own `tests` run first,
since they are the likely ones to fail. If they pass, all of `test-all` runs, unless `--likely` is given. The program
prints one line per fault and exits with 1 if a fault was missed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: str = ""
    """files below tests/ that run first"""

    def files(self) -> list[str]:
        return [f"tests/{name}" for name in self.tests.split()]


MUTATIONS = [
    Mutation("a reverse segment forgets the trace before it", "strategies/reverse/traces.py",
             "* trace[:, j][:, None]", "* (0 * trace[:, j][:, None])",
             "strategies/test_reverse.py"),
    Mutation("a trace is allocated before its size is known", "strategies/online.py",
             "require_room_for_traces(make, objective.model, batch_size)", "pass", "test_memory_limits.py"),
    Mutation("initial values are contracted", "core/one_program.py",
             'inlineable="false"', 'inlineable="true"', "test_one_program.py"),
    Mutation("a reset leaves the trace alone", "strategies/online.py",
             "trace.value = where_sequences(mask, jax.tree.map(jnp.zeros_like, trace.value), trace.value)", "pass",
             "strategies/test_traces.py strategies/test_update_schedule.py"),
    Mutation("a reset leaves hidden states alone", "strategies/network.py",
             "where_sequences(mask, value, held[name], axes[name])", "held[name]",
             "strategies/test_base.py strategies/test_bptt.py"),
    Mutation("a truncated window sees one step of the warm-up less", "strategies/tbptt.py",
             "leaf[: warm - lead], warmup", "leaf[: warm - lead - 1], warmup", "strategies/test_tbptt.py"),
    Mutation("every step draws the random numbers of the first", "engine/steps.py",
             "fold_in(root, TRAIN, index)", "fold_in(root, TRAIN, 0)", "test_program.py test_loop.py test_fit.py"),
    Mutation("a frozen seed goes on", "engine/steps.py", "new[LIVE] = bad == ALL_FINITE", "new[LIVE] = bad == bad",
             "test_seeds.py"),
    Mutation("devices do not add up their gradients", "engine/collectives.py",
             "unravel(jax.lax.psum(vector, AXIS))", "unravel(vector)", "test_devices.py"),
    Mutation("a resumed run chooses its devices by the cores that it finds", "training/prepare.py",
             "if before is not None:\n        count", "if False:\n        count", "test_devices.py"),
    Mutation("the allocator ignores what the user has set", "utils/allocator.py",
             "in SETTINGS.keys() - given", "in SETTINGS", "test_allocator.py"),
    Mutation("an update whose weight is zero is applied", "engine/optimizer.py",
             "full & (self._weight.value > 0)", "full", "test_optimizer.py"),
    Mutation("an update is not projected", "engine/optimizer.py", "        self.project()\n", "", "test_project.py"),
    Mutation("initial values are not projected", "engine/binding.py", "project_initial_values(module, project)", "pass",
             "test_project.py"),
    Mutation("the projections of seeds are not compared", "engine/program.py",
             "time_steps(b.learner, b.phases), b.optimizer.project())", "time_steps(b.learner, b.phases), None)",
             "test_project.py"),
    Mutation("clipping enlarges small gradients", "engine/optimizer.py",
             "jnp.minimum(1.0, self._clip / jnp.maximum(norm, 1e-12))", "self._clip / jnp.maximum(norm, 1e-12)",
             "test_optimizer.py"),
    Mutation("rows ignore weights", "callbacks/recorder.py",
             "total[1] + weights[name][i].astype(np.float64)", "total[1] + (weights[name][i] > 0)", "test_record.py"),
    Mutation("a target that weighs nothing reaches the loss", "strategies/padding.py",
             "if phases.weights is None:", "if True:", "strategies/test_padding.py"),
    Mutation("validation data is read as time-major, whatever its layout", "data/eval_loader.py",
             'EvalLoader(source, "val", data.batch_first)', 'EvalLoader(source, "val", False)', "test_layout.py"),
    Mutation("a replayed source is not advanced", "data/iterator.py",
             'self._skip(position["batch"] - self.taken)', "self._skip(0)", "test_data.py"),
    Mutation("a short last validation batch is left out", "data/eval_loader.py",
             "yield from (reader.read(number) for number in range(_end(reader)))",
             "yield from (reader.read(number) for number in range(max(1, _end(reader) - 1)))", "test_eval_loader.py"),
    Mutation("validation draws the training batches", "datasets/copy.py",
             "(self.seed, SPLITS.index(self.split), ", "(self.seed, 0, ", "datasets"),
    Mutation("every epoch has the order of the first", "datasets/arrays.py",
             "(self.seed, epoch)).permutation(count)", "(self.seed, 0)).permutation(count)", "datasets/test_arrays.py"),
    Mutation("an encoder draws by the place in the batch", "core/arrays.py",
             "fold_in(root, row))(self.row)", "fold_in(root, row))(jnp.arange(self.row.size))",
             "datasets/test_encoders.py"),
    Mutation("a sequence that fills a batch counts", "core/arrays.py",
             "inside = at < self.length", "inside = at <= self.length", "datasets/test_arrays.py"),
    Mutation("predictions are in the order of the batches", "training/predict.py",
             'np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")',
             "np.arange(sum(len(part.rows) for part in parts))", "datasets/test_arrays.py"),
    Mutation("outputs are fetched before the next batch is dispatched", "training/predict.py",
             "        if len(waiting) > 1:\n", "        if waiting:\n", "test_generating.py"),
    Mutation("every generated input has the same key", "strategies/generation.py",
             "jax.random.fold_in(key, t - (time - 1))", "key", "test_generating.py"),
    Mutation("a recording ignores resets", "strategies/recording.py",
             "        learner._reset(reset)\n", "", "test_recording.py"),
    Mutation("arrays of callbacks are not restored from their checkpoint", "callbacks/state_arrays.py",
             "np.array(arrays[value[ARRAY]])", "np.zeros_like(arrays[value[ARRAY]])", "callbacks/test_state_arrays.py"),
    Mutation("a file is not synced before it is renamed", "utils/files.py", "            os.fsync(file.fileno())\n", "",
             "test_files.py faults/test_walk.py"),
    Mutation("a failed sync of a log is called a success at the next try", "loggers/appender.py",
             "            os.lseek(file, self._safe, os.SEEK_SET)\n"
             "            self.waiting, self._unsafe = self._unsafe + self.waiting, bytearray()\n", "",
             "loggers/test_appender.py"),
    Mutation("a leaf that differs from its digest is restored", "checkpoint/reading.py",
             'if leaf_digest(leaf) != meta["digests"][item].get(name):', "if False:",
             "test_checkpoint_damage.py test_checkpoint.py"),
    Mutation("a resumed run may have other data", "training/prepare.py",
             'refuse(saved.meta, described, ("strategy", "data"))', 'refuse(saved.meta, described, ("strategy",))',
             "test_resume.py test_fit.py"),
    Mutation("early stopping forgets on resume how long it has waited", "callbacks/early_stopping.py",
             'self.best_step, self.waited = state["best_step"], state["waited"]',
             'self.best_step, self.waited = state["best_step"], 0', "callbacks/test_early_stopping.py"),
    Mutation("a second signal is ignored", "training/signals.py",
             "if number in ALWAYS:\n            self._restore(number)", "if number in ALWAYS:\n            pass",
             "test_signals.py"),
    Mutation("a callback reads the values of the step in flight", "training/live.py",
             "if step == dispatched and not lost:", "if not lost:", "test_live.py"),
    Mutation("a source that does not repeat itself is believed", "data/iterator.py",
             "self.differs = known and", "self.differs = not known and", "test_data.py"),
    Mutation("a process believes itself instead of the first one", "distributed/processes.py",
             "    return json.loads(_wait(_key(turn)))", "    _wait(_key(turn))\n    return value",
             "test_processes.py"),
    Mutation("verify-resume compares no nested values", "commands/verify_resume.py",
             "_comparable(expected), _comparable(actual)", "repr(type(expected)), repr(type(actual))",
             "faults/test_verify.py"),
    Mutation("rates are chosen by the worst result", "commands/compare/runner.py", "return min(rates, key=median)",
             "return max(rates, key=median)", "test_compare.py"),
]  # fmt: skip


def tree(folder: Path) -> Path:
    """A copy of what git tracks, as it is in the working tree."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def first_failure(folder: Path, chosen: list[str]) -> str | None:
    """The first of the chosen files' tests that fails in this copy of the repository, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "-m", "not long", *chosen]
    done = subprocess.run(command, cwd=folder, env=environ(folder), capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    assert failed or done.returncode == 0, done.stdout + done.stderr
    return failed[0].split(" ")[1] if failed else None


def noticed(mutation: Mutation, folder: Path, likely: bool) -> str | None:
    """The first test that fails with the fault, or None."""
    path = folder / "jaxtrain" / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: found {text.count(mutation.old)} times in {path}"
    changed = text.replace(mutation.old, mutation.new)
    compile(changed, path, "exec")  # a test that cannot import the file notices nothing
    path.write_text(changed)
    try:
        failed = first_failure(folder, mutation.files())
        return failed if failed or likely else first_failure(folder, ["tests"])
    finally:
        path.write_text(text)


def environ(folder: Path) -> dict[str, str]:
    """Import the copy rather than the installed package, and share compiled programs between the runs."""
    return {**os.environ, "PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}


def main(names: list[str]) -> int:
    likely, names = "--likely" in names, [name for name in names if name != "--likely"]
    chosen = [mutation for mutation in MUTATIONS if not names or any(name in mutation.name for name in names)]
    missed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = tree(Path(temporary))
        if failed := first_failure(folder, sorted({name for mutation in chosen for name in mutation.files()})):
            print(f"fails without a fault: {failed}")
            return 1
        for mutation in chosen:
            began = time.monotonic()
            test = noticed(mutation, folder, likely)
            missed += test is None
            print(f"{time.monotonic() - began:4.0f} s  {mutation.name}: {test or 'MISSED'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
