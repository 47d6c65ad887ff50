"""TensorBoard in a real browser: what docs/tensorboard.md says about the tabs, and its figures.

SCREENSHOTS=docs/figures python -m pytest tests/test_tensorboard_browser.py    # takes the figures again

Needs the Debian package `chromium` and the Python package `tensorboard`. Where one is missing, the tests fail, or are
skipped if SKIP_SYSTEM=1.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.kit import forks
from tests.kit.browser import Browser
from tests.test_readme import blocks

pytestmark = pytest.mark.long
RULES = ["bptt", "pp_prop"]
RUNS = [f"{rule}/tensorboard" for rule in RULES]


@pytest.fixture(scope="module")
def needed():
    for found, name in (
        (shutil.which("chromium"), "the Debian package `chromium` (apt-get install chromium)"),
        (find_spec("tensorboard"), "the Python package `tensorboard` (pip install '.[dev]')"),
    ):
        if not found:
            (pytest.skip if os.environ.get("SKIP_SYSTEM") == "1" else pytest.fail)(f"missing: {name}")


@pytest.fixture(scope="module")
def runs(needed, tmp_path_factory):
    """The folder of the two runs of docs/tensorboard.md."""
    folder = tmp_path_factory.mktemp("tensorboard")
    (folder / "watch.py").write_text(blocks("docs/spiking.md")[0] + "\n" + blocks("docs/tensorboard.md")[0])
    done = forks.run([sys.executable, "watch.py"], cwd=folder, stderr=forks.PIPE, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs):
    """The address of a TensorBoard that shows them, at a port of its own choice."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--host", "127.0.0.1", "--port", "0"]
    command.append("--load_fast=false")  # all in one process
    with subprocess.Popen(command, cwd=runs.parent, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            for line in server.stderr:
                if " at http" in line:
                    yield line.split(" at ")[1].split()[0]
                    break
            else:
                pytest.fail(f"tensorboard ended with exit code {server.wait()}")
        finally:
            server.kill()


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium"), size=(1300, 800)) as browser:
        yield browser


@pytest.fixture
def save(browser, tmp_path):
    """Save a screenshot of the page, and return it."""

    def screenshot(name: str) -> Image.Image:
        path = Path(os.environ.get("SCREENSHOTS") or tmp_path) / f"tensorboard-{name}.png"
        browser.screenshot(path)
        with Image.open(path) as image:
            assert image.size == (1300, 800)
            return image.convert("RGB")

    return screenshot


def last(runs: Path, rule: str) -> dict[str, float]:
    """The last log entry of a run, which has a validation."""
    return json.loads((runs / rule / "metrics.jsonl").read_text().splitlines()[-1])


def texts(selector: str) -> str:
    """JavaScript for the texts of all elements that match a selector."""
    return f"find('{selector}').map(text)"


CHART = """(({left, top, right, bottom}) => [left, top, right, bottom])(
  find('scalar-card line-chart')[1].getBoundingClientRect())"""
"""Where the chart of the firing rate is."""


def colours(image: Image.Image, box: tuple[float, ...]) -> list[tuple[int, ...]]:
    """The colours of more than 50 pixels within a part of a screenshot, without grey. The most frequent comes first."""
    counts = sorted(image.crop(tuple(map(int, box))).getcolors(1 << 24), reverse=True)
    return [colour for count, colour in counts if count > 50 and max(colour) - min(colour) > 20]


TABLE = """(() => {
  const place = cell => cell.closest('vaadin-grid-cell-content')?.assignedSlot?.parentNode;
  const left = cell => place(cell).getBoundingClientRect().left;
  const cells = find('.table-cell').filter(cell => text(cell) && place(cell));
  const rows = [...new Set(cells.map(cell => place(cell).closest('tr')))];
  return rows.map(row => cells.filter(cell => row.contains(place(cell))).sort((a, b) => left(a) - left(b)).map(text));
})()"""
"""The rows of the table of the tab HParams as they are placed on the page. The document has another order."""


def test_scalars_of_two_runs_are_in_one_chart(browser, address, runs, save):
    browser.open(f"{address}?tagFilter=val/&smoothing=0#timeseries")
    browser.until(f"{texts('scalar-card')}.length == 3 && {texts('scalar-card')}.every(card => /^200$/m.test(card))")
    cards = {"".join(card.split("\n")[:2]): card.split() for card in browser.evaluate(texts("scalar-card"))}
    for tag in ("accuracy", "firing_rate", "loss"):
        words = cards[f"val/{tag}"]
        for rule, run in zip(RULES, RUNS, strict=True):
            value = float(words[words.index(run) + 1])
            assert value == pytest.approx(last(runs, rule)[f"val/{tag}"], abs=1e-4), (tag, rule)
    browser.evaluate(
        "find('button').filter(button => text(button).includes('Settings')).map(panel => panel.click()).length"
    )
    browser.until("!find('settings-view').length")
    circles = (190, 165, 221, 255)  # in the list of runs
    end = time.monotonic() + browser.patience
    while True:  # the charts are drawn again after a change of size
        image = save("scalars")
        drawn = set(colours(image, browser.evaluate(CHART)))
        if len(wanted := colours(image, circles)[:2]) == 2 and drawn.issuperset(wanted):
            return
        assert time.monotonic() < end, f"the chart has {drawn}, the list of runs {wanted}"


def test_hparams_have_the_metric_of_the_module(browser, address, runs, save):
    browser.open(f"{address}#hparams")
    unticked = "find('paper-checkbox').filter(box => ['fit.clip', 'strategy'].includes(text(box)))"
    browser.until(f"{unticked}.length == 2 && {TABLE}.length == 3")
    ticked = "find('paper-checkbox').filter(box => box.checked && /^data[.]|^train/.test(text(box)))"
    browser.evaluate(f"[...{ticked}, ...{unticked}].map(box => box.click()).length")
    columns = ["Trial ID", "fit.clip", "strategy", "val/loss", "val/accuracy", "val/firing_rate"]
    browser.until(f"{TABLE}.length == 3 && {TABLE}[0].length == {len(columns) + 1}")
    header, *shown = browser.evaluate(TABLE)
    header.remove("Show Metrics")  # a column of boxes
    assert header == columns
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in shown}
    assert sorted(rows) == RUNS
    for rule, run in zip(RULES, RUNS, strict=True):
        assert rows[run]["strategy"] == rule and float(rows[run]["fit.clip"]) == 1.0
        for tag in ("val/firing_rate", "val/loss", "val/accuracy"):
            assert float(rows[run][tag]) == pytest.approx(last(runs, rule)[tag], rel=1e-3), (tag, rule)
    save("hparams")


def test_figures_of_callbacks_are_images(browser, address, runs, save):
    browser.open(f"{address}#images")
    images = "find('tf-image-loader').flatMap(loader => find('img', loader.shadowRoot))"
    browser.until(f"{images}.length == 2 && {images}.every(image => image.naturalWidth > 0)")
    browser.until(f"{texts('tf-image-loader')}.every(label => /^200$/m.test(label))")
    shown = browser.evaluate(f"{images}.map(image => [image.naturalWidth, image.naturalHeight])")
    for rule, size in zip(RULES, shown, strict=True):
        files = sorted((runs / rule / "figures").glob("spikes-*.png"))
        with Image.open(files[-1]) as image:
            assert len(files) == 2 and tuple(size) == image.size
    labels = browser.evaluate(texts("tf-image-loader"))
    for run, label in zip(RUNS, labels, strict=True):
        assert {"spikes", run, "200"} <= {*label.split("\n")}
    save("images")


def test_histograms_have_one_line_per_validation(browser, address, save):
    browser.open(f"{address}#histograms")
    lines = "find('vz-histogram-timeseries').map(chart => find('.histogram', chart.shadowRoot).length)"
    browser.until(f"String({lines}) == '10,10,10,10'")
    tags = [label.split("\n")[0] for label in browser.evaluate(texts("tf-histogram-loader"))]
    assert tags == ["weights/current.weight"] * 2 + ["weights/readout.weight"] * 2
    save("histograms")


def test_the_configuration_is_text(browser, address, runs, save):
    browser.open(f"{address}#text")
    browser.until(f"{texts('tf-text-loader')}.length == 2 && {texts('tf-text-loader')}.every(t => t.endsWith('}}'))")
    for rule, run, shown in zip(RULES, RUNS, browser.evaluate(texts("tf-text-loader")), strict=True):
        assert {run, "watch.py"} <= {*shown.split("\n")}
        assert json.loads(shown[shown.index("{") :]) == json.loads((runs / rule / "config.json").read_text())
    save("text")
