"""The documentation site: links and programs of its pages, and, as a long test, the built site."""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtrain
from jaxtrain import metrics
from tests.test_docstrings import NAMES, UNDOCUMENTED
from tests.test_readme import blocks, execute

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "checkpoints/README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(DOCS.rglob("*.md"))]
CONFIG = (ROOT / "mkdocs.yml").read_text()

# ------------------------------------------------------------------------------------------------------- links


def prose(page: str) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.S)


def links(page: str) -> list[tuple[str, str]]:
    """Path and section of every link and figure that leads to a file of the repository."""
    found = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", prose(page))
    return found + [(path, "") for path in re.findall(r'(?:src|srcset|href)="(?!https?:)([^"#]+)"', prose(page))]


def sections(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, section in links(page):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not section or section in sections(path), f"{page} links to {target}#{section}"


@pytest.mark.parametrize("page", PAGES)
def test_references_name_public_objects(page):
    known = {*NAMES, *UNDOCUMENTED, "jaxtrain.errors", "jaxtrain.period.Period"}
    for name in re.findall(r"\]\[(jaxtrain[\w.]*)\]", (ROOT / page).read_text()):
        assert name in known, f"{page} refers to {name}"


def test_every_page_is_in_the_navigation_once():
    entries = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)", CONFIG.split("\nnav:\n")[1], re.M)
    generated = set(re.findall(r'"(\w+\.md)",$', (DOCS / "theme/hooks.py").read_text(), re.M))
    generated |= {f"notebooks/{path.stem}.md" for path in (DOCS / "notebooks").glob("*.ipynb")}
    listed = [page for page in entries if "*" not in page]
    patterns = [entry for entry in entries if "*" in entry]
    found = {path.relative_to(DOCS).as_posix() for pattern in patterns for path in DOCS.glob(pattern)}
    assert len(listed) == len(set(listed))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "data" not in path.parts}
    assert {*listed, *found} - {path for path in found if not path.endswith(".md")} == generated | pages


def test_a_figure_for_light_pages_has_one_for_dark_pages():
    names = {path.name for path in (DOCS / "figures").glob("*.png")}
    single = {name for name in names if "-light" not in name and "-dark" not in name and "tensorboard" not in name}
    assert single == {"chorales.png", "cogtask.png"}, "only what programs of users draw and screenshots are single"
    assert not [*(DOCS / "results").glob("*.png")]
    drawn = {f"{name}-light.png" for name in json.loads((DOCS / "figures/data.json").read_text())}
    assert drawn <= names
    assert {name.replace("-light", "-dark") for name in names if "-light" in name} <= names
    for page in PAGES:
        figures = [Path(target).name for target, _ in links(page) if "-light" in target or "-dark" in target]
        assert {name.replace("-light", "-dark") for name in figures} <= set(figures), page


def test_every_recipe_is_in_the_gallery():
    gallery = (DOCS / "gallery.md").read_text()
    for recipe in sorted((ROOT / "recipes").glob("*.py")):
        assert f"python recipes/{recipe.name}" in gallery, "add command, minutes, result, chance, control, figure"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# ---------------------------------------------------------------------------------------------------- programs

RUN_ELSEWHERE = {
    "README.md": 1, "CONTRIBUTING.md": 3, "docs/cognitive_tasks.md": 3, "docs/loggers.md": 1, "docs/metrics.md": 3,
    "docs/modules.md": 1, "docs/online.md": 3, "docs/pretrained.md": 4, "docs/recipes.md": 1, "docs/recording.md": 7,
    "docs/search.md": 1, "docs/spiking.md": 2, "docs/strategies.md": 3, "docs/tensorboard.md": 1,
    "docs/your_model.md": 2,
}  # fmt: skip
"""Python blocks that test_readme, test_pages, test_online, test_contributing, test_cogtask and test_tensorboard_browser
run."""
RUN_HERE = {"docs/callbacks.md": 3, "docs/coming_from.md": 6, "docs/data.md": 7, "docs/getting_started.md": 6,
            "docs/index.md": 1, "docs/scaling.md": 1}  # fmt: skip


def test_every_python_block_is_run():
    counts = {page: len(blocks(page)) for page in PAGES if blocks(page)}
    assert counts == RUN_ELSEWHERE | RUN_HERE, "run the blocks of a new page, and list it here"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.full
def test_getting_started():
    page = None
    for program in blocks("docs/getting_started.md"):
        page = execute(program, "docs/getting_started.md", page)
    for result in (page["online"], page["exact"]):
        assert result.metrics["val/accuracy"] > 0.95
    assert Path("getting-started.png").stat().st_size > 10_000 and page["result"].step == 40


def test_the_example_of_the_home_page():
    program = blocks("docs/index.md")[0]
    assert len(program.split("\n\n\n", 1)[1].splitlines()) <= 16 and "max_steps=2000" in program
    small = program.replace("max_steps=2000", "max_steps=2").replace("hidden=128", "hidden=4")
    execute(small.replace("time_lag=20", "time_lag=2, batch_size=2"), "docs/index.md")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # those of the other libraries
def test_coming_from_another_trainer():
    shared, theirs, ours, _, loop, online = blocks("docs/coming_from.md")
    page = execute(shared, "docs/coming_from.md")
    for program in (theirs, ours, loop, online):
        execute(program, "docs/coming_from.md", page)
    assert page["trainer"].global_step == page["result"].step == page["learned"].step == 40
    fresh = {name: np.asarray(value) for name, value in leaves(page["Net"]()).items()}
    for trained in (page["model"].net, page["module"].model, page["net"]):
        assert any((np.asarray(value) != fresh[name]).any() for name, value in leaves(trained).items())
    assert page["result"].metrics["train/loss"] < 0.2 and page["learned"].metrics["train/loss"] < 0.2


@pytest.mark.filterwarnings("ignore")  # those of the other libraries
@pytest.mark.parametrize(("name", "reset"), [("Leaky", "hard"), ("Leaky", "soft"), ("Synaptic", "hard")])
def test_the_neurons_of_the_page_follow_the_equations_of_snntorch(name, reset):
    import brainstate
    import saiunit as u

    shared, _, _, neurons, *_ = blocks("docs/coming_from.md")
    page = execute(neurons, "docs/coming_from.md", execute(shared, "docs/coming_from.md"))
    x = np.random.default_rng(0).normal(size=(60, 4, 3)).astype("float32")
    with brainstate.environ.context(dt=1.0 * u.ms):
        layer = page[name](3, 5, reset=reset)
        brainstate.nn.init_all_states(layer, batch_size=4)
        found = np.asarray(brainstate.transform.for_loop(layer, x))
        current = np.asarray(brainstate.transform.for_loop(layer.current, x))
    mem = synapse = spike = np.zeros((4, 5))
    spikes = []
    for now in current:
        synapse = (0.8 * synapse if name == "Synaptic" else 0.0) + now
        kept = mem * (1 - spike) if reset == "hard" else mem - spike  # snnTorch's "subtract" has 0.9 * mem - spike
        mem = 0.9 * kept + synapse
        spike = (mem > 1).astype(float)
        spikes.append(spike)
    assert 50 < np.sum(spikes) < 1100
    np.testing.assert_array_equal(found, spikes)


def leaves(model):
    import brainstate

    return {
        f"{'.'.join(map(str, name))}.{part}": value
        for name, state in model.states(brainstate.ParamState).items()
        for part, value in state.value.items()
    }


class Small(jaxtrain.Module):
    def build(self):
        return jaxtrain.nn.Network(10, 10, hidden=4)

    def learning_step(self, forward, x, y):
        import optax

        logits = forward(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y), {"accuracy": logits.argmax(-1) == y}

    def configure_optimizer(self):
        import optax

        return optax.adam(1e-3)


@pytest.mark.full
def test_the_callbacks_of_the_page():
    data = jaxtrain.datasets.CopyDataModule(time_lag=2, num_digits=2, batch_size=4, val_batches=1)
    inputs, labels = data.val_data().batch(0)
    page = {"jaxtrain": jaxtrain, "module": Small(), "batches": [(inputs, labels)], "labels": labels,
            "auroc": lambda outputs, labels: float((outputs.argmax(-1) == labels).mean())}  # fmt: skip
    stop, auroc, curriculum = blocks("docs/callbacks.md")
    for program in (stop, auroc):
        execute(program, "docs/callbacks.md", page)
    callbacks = [page["StopOnRecall"](), page["Auroc"]()]
    result = jaxtrain.Fit("bptt", max_steps=2, callbacks=callbacks).run(Small(), data)
    assert 0 <= result.metrics["val/auroc"] <= 1 and result.status == "finished"
    assert "max_steps=6000" in curriculum
    execute(
        curriculum.replace("max_steps=6000", "max_steps=2").replace("chunk=25", "chunk=2"), "docs/callbacks.md", page
    )


def test_the_devices_of_the_page():
    (program,) = blocks("docs/scaling.md")
    program = f"import jaxtrain\n{program}\nprint(fit.devices)"  # the devices are created before JAX starts
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_the_fragments_of_the_page_on_data():
    page = {"jaxtrain": jaxtrain, "jnp": jnp, "metrics": metrics}
    (phases,) = [block for block in blocks("docs/data.md") if block.startswith("def phases")]
    (returned,) = [block for block in blocks("docs/data.md") if block.startswith("return loss")]
    execute(phases, "docs/data.md", page)
    y = np.where(np.arange(6).reshape(3, 2, 1) == 4, np.nan, 1.0)
    assert page["phases"](None, (np.zeros((3, 2, 1)), y)).weights.tolist() == [[1, 1], [1, 1], [0, 1]]
    execute("def step(loss, logits, y):\n" + textwrap.indent(returned, "    "), "docs/data.md", page)
    _, found = page["step"](0.0, np.eye(3), {"class": np.array([0, 1, 1]), "end": True})
    assert found["accuracy"][0].tolist() == [True, True, False] and found["accuracy"][1] is True


# ----------------------------------------------------------------------------------------------- the built site

PACKAGES = {"mkdocs": "mkdocs", "material": "mkdocs-material", "mkdocstrings": "mkdocstrings",
            "mkdocstrings_handlers": "mkdocstrings-python",
            "griffe_inherited_docstrings": "griffe-inherited-docstrings"}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        advice = f"not installed: {', '.join(missing)}; pip install -e '.[docs]'"
        pytest.skip(advice) if os.environ.get("SKIP_SYSTEM") == "1" else pytest.fail(advice)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
def test_the_site_has_every_page(site):
    for path in DOCS.rglob("*.md"):
        if "data" in path.parts:  # tables of single comparisons
            continue
        page = path.relative_to(DOCS).with_suffix(".html").as_posix()
        assert (site / page.replace("README.html", "index.html")).stat().st_size > 1000, page
    for page in ("changelog", "contributing", "run_directories"):
        assert "<h1" in (site / f"{page}.html").read_text()
    assert (site / "search").is_dir()


@pytest.mark.long
def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\b(?:src|srcset)=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link[^>]*\bhref=[\"']?([^\"' >]+)", text)
        assert not [url for url in loaded if re.match(r"(?:https?:)?//", url)], path
        for url in loaded if path.name != "404.html" else ():  # every page works as a file; a server sends that one
            assert url.startswith("data:") or (path.parent / re.sub("[?#].*", "", url)).exists(), (path, url)


@pytest.mark.long
def test_the_api_reference_has_every_public_name(site):
    pages = {path.stem: html.unescape(path.read_text()) for path in (site / "api").glob("*.html")}
    text = "\n".join(pages.values())
    anchors = set(re.findall(r'\bid="(jaxtrain[\w.]*)"', text))
    listed = {line.split("(")[0] for line in (ROOT / "tests/api.txt").read_text().splitlines()}
    settings = {f"jaxtrain.Fit.{name}" for name in ("strategy", *NAMES["jaxtrain.Fit"].value.__init__.__kwdefaults__)}
    for name in sorted(listed - anchors):
        assert name in settings | UNDOCUMENTED, f"{name} is not in the API reference"
        assert name in text or f"<code>{name.rpartition('.')[2]}</code>" in pages["jaxtrain"], name
