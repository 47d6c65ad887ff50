"""The programs in the pages run as they stand, and their tables are complete. tests/test_site.py checks links."""

import ast
import dataclasses
import gzip
import inspect
import re
from pathlib import Path

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxtrain
from jaxtrain import cli
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.datasets import ArrayDataset
from jaxtrain.strategies import registry
from jaxtrain.utils.fields import options, summary
from tests.small import Linear, Lines

ROOT = Path(__file__).parent.parent


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def execute(program, page, variables=None):
    variables = {"__name__": "page"} if variables is None else variables
    exec(compile(program, page, "exec"), variables)
    return variables


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.quick
def test_the_example_runs_and_resumes(tmp_path, capsys, caplog):
    program = blocks("README.md")[0].replace("max_epochs=5", "max_epochs=2")
    execute(program, "README.md")
    assert "(40, 16, 1)" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "checkpoints/integrator/checkpoints").iterdir())
    rows = (tmp_path / "checkpoints/integrator/metrics.jsonl").read_text()
    assert '"lr"' in rows and '"throughput/steps_per_s"' in rows
    execute(program, "README.md")
    assert "already stopped at step 100 (good enough); pass resume=100 to continue training" in caplog.text


@pytest.mark.quick
def test_the_spiking_example_learns(capsys):
    page = None
    for program in blocks("docs/spiking.md"):
        page = execute(program, "docs/spiking.md", page)
    assert min(map(float, capsys.readouterr().out.split()[-2:])) > 0.9
    assert page["recorded"]["neurons.spike"].shape == (20, 32, 50)


@pytest.mark.full
def test_the_recording_page_runs(capsys, tmp_path):
    page = {"__name__": "page"}
    for program in blocks("docs/recording.md"):
        execute(program, "docs/recording.md", page)
    shape, unit, rate, right = capsys.readouterr().out.split("\n")[-5:-1]
    assert (shape, unit) == ("(20, 16, 16)", "mV") and abs(float(rate) - 0.1) < 0.05 and float(right) > 0.9
    data, fit = page["data"].val_data(), page["fit"]
    rates = [fit.record(page[name], data, ["neurons.spike"], batch_first=False) for name in ("module", "each")]
    population, each = (np.abs(one["neurons.spike"].mean((0, 1)) - 0.1).max() for one in rates)
    assert each < 0.15 and each < population / 2, "a rate of every neuron"
    np.testing.assert_allclose(page["out"], fit.predict(page["module"], data, batch_first=False), atol=1e-5)
    assert len([*(tmp_path / "checkpoints/spiking/figures").iterdir()]) == 3


@pytest.mark.full
def test_the_example_of_a_projection_learns(capsys):
    (program,) = blocks("docs/modules.md")
    execute(program, "docs/modules.md")
    dale, no_loops, accuracy = capsys.readouterr().out.split()[-3:]
    assert (dale, no_loops) == ("True", "True") and float(accuracy) > 0.8


@pytest.mark.full
def test_the_metrics_page_runs(capsys):
    page = None
    for program in blocks("docs/metrics.md"):
        page = execute(program, "docs/metrics.md", page)
    first, *matrix, last, largest = capsys.readouterr().out.strip().split("\n")
    clean, noisy = map(float, first.split())
    assert clean > 0.85 and noisy < clean - 0.1 and float(last) > 0.9 and float(largest) > 0.8
    assert np.sum(eval("".join(matrix))) == 300


@pytest.mark.full
def test_the_strategies_page_runs(capsys, monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    programs = blocks("docs/strategies.md")
    assert len(programs) == 3
    for program in programs:  # each stands alone
        execute(program, "docs/strategies.md")
    rewarded, stream, perturbed = map(float, capsys.readouterr().out.split()[-3:])
    assert rewarded < -20 and stream < 0.02 and perturbed > 0
    text = summary(registry.lookup("weight_perturbation"))
    assert text == "how the loss responds to a random perturbation of all weights"


@pytest.mark.full
def test_the_recipe_of_the_page_is_a_recipe(capsys):
    Path("task.py").write_text(blocks("docs/recipes.md")[0])
    recipe = load_recipe(Path("task.py"))
    argv = ["--hidden", "4", "--time-lag", "2", "--batch-size", "2", "--max-steps", "2", "--strategy.window", "3"]
    assert cli.main(recipe.Config, recipe.make, argv=argv) == 0
    assert "finished at step 2, strategy drtrl" in capsys.readouterr().out
    assert Path("checkpoints/task/0001-drtrl-seed0/checkpoints/00000002").is_dir()


def test_a_rule_of_ones_own_is_short():
    rule = blocks("docs/strategies.md")[2].split("@jaxtrain.register")[1].split("\nresult = ")[0]
    assert len([line for line in rule.splitlines() if line]) <= 30


@pytest.mark.parametrize("page", ["docs/which_rule.md", "docs/strategies.md"])
def test_every_strategy_is_in_the_table(page):
    table = "\n".join(line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `"))
    for name in registry.REGISTRY:
        assert f"`{name}`" in table
        cls = registry.lookup(name)
        fields = [field for field in options(cls) if field not in ("update_every", "stateful", "batching")]
        if page != "docs/which_rule.md" and name != "etrace":
            row = next(line for line in table.splitlines() if line.startswith(f"| `{name}`"))
            assert cls.__name__ in row and [field for field in fields if field in row] == fields


EXPORTS = [getattr(jaxtrain, name) for name in jaxtrain.__all__ if name != "Callback"]
CALLBACKS = [value for value in EXPORTS if isinstance(value, type) and issubclass(value, jaxtrain.Callback)]


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda callback: callback.__name__)
def test_every_argument_of_a_callback_is_in_the_table(callback):
    page = (ROOT / "docs/callbacks.md").read_text()
    rows = re.findall(rf"^\| `{callback.__name__}` \| `(\w+)` \| (.+?) \| .{{10,}} \|$", page, re.M)
    taken = {} if callback.__init__ is object.__init__ else inspect.signature(callback).parameters
    expected = [(name, "-" if p.default is p.empty else f"`{p.default!r}`") for name, p in taken.items()]
    assert rows == expected
    assert rows or f"`{callback.__name__}()`" in page


def test_every_folder_and_path_of_the_architecture_exists():
    page = (ROOT / "docs/architecture.md").read_text()
    folders = {path.name for path in (ROOT / "jaxtrain").iterdir() if (path / "__init__.py").exists()}
    picture = page.split("```")[1]
    assert folders <= set(re.findall(r"(\w+)/", picture))
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", page):
        assert any((ROOT / where / name).exists() for where in ("jaxtrain", ".")), name


def test_the_citation_names_the_version():
    assert f"\nversion: {jaxtrain.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_argument_of_fit_and_attribute_of_a_result_is_in_the_table():
    page = (ROOT / "docs/fit.md").read_text()
    arguments, attributes = page.split("## Attributes of `Result`")
    expected = [
        (n, "-" if p.default is p.empty else f"`{p.default!r}`")
        for n, p in inspect.signature(jaxtrain.Fit).parameters.items()
    ]
    assert re.findall(r"^\| `(\w+)` \| (.+?) \| .{5,} \|$", arguments, re.M) == expected
    named = [field.name for field in dataclasses.fields(jaxtrain.Result)] + ["exit_code"]
    assert re.findall(r"^\| `(\w+)` \| .{5,} \|$", attributes, re.M) == named


@pytest.mark.parametrize("strategy", ["drtrl", jaxtrain.DRTRL(engine="trace")])
def test_the_cell_of_the_page_has_a_trace_of_all(strategy):
    names = None
    for program in blocks("docs/your_model.md"):
        names = execute(program, "docs/your_model.md", names)
    net = names["Leaky"]
    module = Linear()
    module.build = lambda: net(2, 3)
    report = jaxtrain.Fit(strategy, max_steps=1).run(module, Lines(), batch_first=False, dry_run=True).report
    assert {name: entry["trains"] for name, entry in report["parameters"].items()} == {
        "leak": "yes",
        "mix.weight": "yes",
    }


# ------------------------------------------------------------------------------------------------ docs/data.md


class Scores(Linear):
    """A score for each sequence, from three inputs."""

    class Net(Linear.Net):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.full((3, 3), 0.1, jnp.float32))

    def learning_step(self, forward, x, y):
        return jnp.square(forward(x).sum(-1) - y)


def data_block(text):
    (found,) = [block for block in blocks("docs/data.md") if text in block]
    return found


def test_the_arrays_of_the_page_train():
    page = execute(data_block("x.npy"), "docs/data.md")
    module, fit = Scores(), jaxtrain.Fit("drtrl", max_epochs=1)
    result = fit.run(module, jaxtrain.DataModule(page["train"], page["val"]))
    assert result.step == 1000 // 32 and result.report["warmup"] == 15 and "val/loss" in result.metrics
    assert fit.predict(module, page["val"]).shape == (100, 5, 3)


@pytest.mark.full
def test_the_sequences_of_the_page_train():
    page = execute(data_block("import bucket"), "docs/data.md")
    module, fit = Scores(), jaxtrain.Fit("bptt", max_epochs=1)
    result = fit.run(module, page["data"])
    assert result.step == sum(page["data"].train_data()._counts()[i] // 16 for i in range(3))
    outputs = fit.predict(module, page["data"].val_data())
    assert [len(out) for out in outputs] == [len(x) for x in page["x"][:50]]


@pytest.mark.full
def test_the_images_of_the_page_are_decided_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60, np.uint8)
    for name, content in (
        ("images-idx3", bytes(16) + rng.integers(0, 256, (60, 784), np.uint8).tobytes()),
        ("labels-idx1", bytes(8) + labels.tobytes()),
    ):
        with gzip.open(tmp_path / f"train-{name}-ubyte.gz", "wb") as file:
            file.write(content)
    program = data_block("fashion-mnist").replace("/usr/share/datasets/fashion-mnist", str(tmp_path))
    for large, small in (("5000", "20"), ("128", "8"), ("n=256", "n=8")):
        program = program.replace(large, small)
    page = execute(program, "docs/data.md")
    logits = page["fit"].predict(page["module"], page["val"])
    assert logits.shape == (20, 10, 10)
    decided = (logits.sum(axis=1).argmax(-1) == labels[:20]).mean()
    assert float(capsys.readouterr().out) == pytest.approx(decided)


def test_the_images_of_the_page_need_few_statements():
    nodes = [node for node in ast.walk(ast.parse(data_block("fashion-mnist"))) if isinstance(node, ast.stmt)]
    assert len([node for node in nodes if not isinstance(node, ast.Import | ast.ImportFrom)]) <= 25


def test_the_events_of_the_page_are_counted():
    page = execute(data_block("def counts"), "docs/data.md")
    t, x, y, p = page["recording"](5)
    expected = np.zeros((100, 2, 17, 17), "uint8")
    np.add.at(expected, ((t - t.min()) // 3000, p, y // 2, x // 2), 1)
    np.testing.assert_array_equal(page["x"][5], expected.reshape(100, -1))
    assert page["x"].shape == (32, 100, 578) and len(page["events"]) == 4


class Classes(Scores):
    def learning_step(self, forward, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(forward(x), y)


@pytest.mark.full
def test_spikes_and_labels_of_small_dtypes_train_as_floats_and_int32():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (8, 5, 3)), rng.integers(0, 3, 8)
    losses = set()
    for spikes, labels in (("float32", "int32"), ("uint8", "uint8"), ("bool", "int64")):
        data = ArrayDataset(x.astype(spikes), y.astype(labels), batch_size=8, batch_first=True)
        losses.add(jaxtrain.Fit("drtrl", max_steps=1).run(Classes(), data).metrics["train/loss"])
    assert len(losses) == 1


def test_the_source_of_the_page_is_a_source():
    page = execute(data_block("class Sines"), "docs/data.md")
    inputs, targets = page["Sines"]().batch(3)
    assert inputs.shape == targets.shape == (16, 20, 1)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
