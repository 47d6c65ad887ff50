"""``jaxtrain fidelity``: a table, its JSON and its figure."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jaxtrain import cli
from jaxtrain.commands.fidelity import measure, table
from jaxtrain.commands.load_recipe import load_recipe
from jaxtrain.commands.main import tool
from jaxtrain.commands.strategies_option import parse_strategies

pytestmark = pytest.mark.full

RECIPE = str(Path(__file__).parents[1] / "recipes/copy_gru.py")
TINY = ["--hidden", "6", "--time-lag", "3", "--digits", "2", "--batch-size", "4"]


def test_a_table_of_cells_by_rules(tmp_path, capsys, caplog):
    out = tmp_path / "out"
    rules, sizes = (
        ["--strategies", "drtrl:engine=trace,three_factor"],
        ["--cells", "lru", "--steps", "4", "--out", str(out)],
    )
    assert tool(["fidelity", RECIPE, *rules, *sizes, *TINY]) == 0
    drtrl, reward = json.loads((out / "fidelity.json").read_text())["table"]
    assert drtrl["cell"] == "lru" and drtrl["strategy"] == "drtrl:engine=trace" and not drtrl["failed"]
    assert drtrl["cosine"] > 0.9999 and drtrl["trained_cosine"] > 0.9999, "D-RTRL is exact on an LRU"
    assert abs(drtrl["norm_ratio"] - 1) < 1e-3 and drtrl["trace_bytes"] > 0 and drtrl["time"] > 0 and drtrl["loss"] > 0
    assert "reward" in reward["failed"] and reward["cosine"] is None, "a rule that cannot run is a row, not a crash"
    text = (out / "fidelity.md").read_text()
    assert "jaxtrain fidelity" in text and text.count("| lru |") == 2
    assert (out / "fidelity.png").stat().st_size > 5000
    said = "\n".join([*(record.message for record in caplog.records), capsys.readouterr().out])
    assert said.count("| lru | drtrl:engine=trace | 1.000 |") == said.count("| cell | strategy |") == 1, "each row once"
    assert "| lru | three_factor | cannot run (1) |" in said and "| lru | three_factor | cannot run (1) |" in text
    for page in (said, text):
        assert page.count(f"\n(1) {reward['failed']}\n") == 1, "the reason is too long for a cell"


@pytest.mark.long
def test_a_stream_has_the_gradient_of_bptt_but_not_its_time(tmp_path, capsys):
    """Its recipe cannot train by BPTT, but the gradient of a batch with fixed weights can be compared with BPTT's."""
    recipe = RECIPE.replace("copy_gru", "copy_stream")
    sizes = ["--digits", "1", "--delay", "2", "--unroll", "12", "--hidden", "6", "--width", "none", "--mlp", "0",
             "--batch-size", "4"]  # fmt: skip
    argv = ["--strategies", "drtrl,readout_only,bptt", "--steps", "3", "--out", str(tmp_path)]
    assert tool(["fidelity", recipe, *argv, *sizes]) == 0
    drtrl, control, bptt = json.loads((tmp_path / "fidelity.json").read_text())["table"]
    assert drtrl["cosine"] > 0.9999 and drtrl["trained_cosine"] > 0.9999 and abs(drtrl["norm_ratio"] - 1) < 1e-3
    assert control["cosine"] < 0.99 and drtrl["time"] is control["time"] is None and drtrl["loss"] > 0
    text = (tmp_path / "fidelity.md").read_text()
    assert "| - (1) |" in text and "| lru | bptt | cannot run (1) |" in text and bptt["failed"]
    assert text.count("(1) ConfigError: --strategy bptt starts from fresh states with every segment of the stream") == 1


@pytest.mark.long
@pytest.mark.parametrize("options", [[], ["--recurrent"]], ids=str)
def test_credit_through_a_leaky_readout(tmp_path, options):
    recipe = str(Path(__file__).with_name("spiking.py"))
    argv = ["--strategies", "drtrl:window=1,drtrl:readout_memory=True", "--steps", "1", "--out", str(tmp_path)]
    assert tool(["fidelity", recipe, *argv, "--batch-size", "4", "--time", "20", *options]) == 0
    without, through = json.loads((tmp_path / "fidelity.json").read_text())["table"]
    assert without["cosine"] < through["cosine"] and without["trained_cosine"] < through["trained_cosine"]
    if not options:
        assert through["cosine"] > 0.999 and through["trained_cosine"] > 0.999
        assert abs(through["norm_ratio"] - 1) < 0.001 < abs(without["norm_ratio"] - 1)


def test_help_shows_defaults(capsys):
    assert tool(["fidelity", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "(default: 200)" in said
        and "(default: fidelity)" in said
        and "(default:bptt,tbptt,drtrl," in said.replace(" ", "")
    )


@pytest.mark.parametrize(
    "argv,what,code",
    [
        (["nowhere.py"], "there is no recipe nowhere.py", 2),
        ([RECIPE, "--strategies", "drtl"], "unknown strategy 'drtl'", 2),
        ([RECIPE, "--strategies", "drtrl:windw=3"], "--strategies drtrl: no field 'windw'", 2),
        ([RECIPE, "--strategies", "drtrl:window=two"], "--strategies drtrl: window = 'two' is text; expected int", 2),
        ([RECIPE, "--strategies", "window=2"], "'window=2' precedes any strategy", 2),
        ([RECIPE, "--strategies", "drtrl:window="], "expected FIELD=VALUE", 2),
        ([RECIPE, "--strategies", ","], "expected names of strategies", 2),
        ([RECIPE, "--steps", "0"], "expected a positive number", 2),
        ([__file__], "is not a recipe: it does not define Config or make", 2),
        (["README.md"], "README.md is not a recipe: expected a .py file with Config and make", 2),
        ([RECIPE, "--cells", "lru,lrv"], "--cells = 'lrv': expected gru, mgu, mini_gru, minimal_rnn, cfn,", 2),
        ([RECIPE, "--strategy", "pp_prop"], "--strategy has no effect here; use --strategies", 2),
        ([RECIPE, "--strategy.window=3"], "--strategy.window has no effect here; use --strategies", 2),
        ([RECIPE, "--max_steps", "3"], "--max_steps has no effect here; use --steps", 2),
        ([RECIPE, "--run-dir", "x"], "--run-dir has no effect here; use --out", 2),
        ([RECIPE, "--hiden", "3"], "neither fidelity nor the recipe has an option --hiden", 2),
        ([RECIPE, "--out", RECIPE], "expected a directory", 2),
        ([RECIPE, "--strategies", "pp_prop:decay=2"], "PPProp(decay=2.0): expected a number in [0, 1)", 2),
        ([RECIPE, "--strategies", "etrace:kappa=0.5"], "ETrace(kappa=0.5): `kappa=0.5` is set but", 2),
    ],
)
def test_mistakes_are_one_line(argv, what, code, capsys):
    assert tool(["fidelity", *argv]) == code
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1


def test_a_recipe_without_cells(tmp_path):
    class Config:
        pass

    with pytest.raises(ValueError, match="no option --cell"):
        measure.measure(None, Config(), parse_strategies("drtrl"), ["gru"], 1)


def test_a_config_that_is_no_dataclass(tmp_path):
    (tmp_path / "bare.py").write_text("class Config:\n    pass\n\ndef make(config):\n    pass\n")
    with pytest.raises(
        ValueError, match=r"bare.py is not a recipe: its Config is not a dataclass that extends jaxtrain.cli"
    ):
        load_recipe(tmp_path / "bare.py")


def test_a_table_of_failures_alone_is_no_success(tmp_path, capsys):
    assert (
        tool(["fidelity", RECIPE, "--strategies", "three_factor", "--steps", "1", "--out", str(tmp_path), *TINY]) == 1
    )
    assert "give it the reward as a sequence" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_figure_with_long_names_and_one_that_failed(tmp_path):
    """The size of the cells does not depend on the names, and matplotlib does not warn about the layout."""
    rule = "etrace:trace_factorization=io_factorized,temporal_recursion=scalar_leak none,decay=0.8 0"
    sizes = []
    for name in ("etrace", rule):
        entries = [table.Entry("gru", name, cosine=0.5, trained_cosine=0.7), table.Entry("gru", "snap", failed="no")]
        figure = table._figure(entries)
        table.write(entries, tmp_path / name[:6], "command")
        sizes.append([tuple(axes.get_window_extent().bounds) for axes in figure.axes])
        assert (tmp_path / name[:6] / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    assert sizes[0] == sizes[1]


def test_rules_carry_their_fields():
    """Commas separate fields as well as strategies; words separated by spaces are a list."""
    pair = "etrace:trace_factorization=io_factorized,temporal_recursion=scalar_leak none,decay=0.8 0"
    window, eprop, etrace = parse_strategies(f"drtrl:window=5,vjp=multi-step, eprop,{pair}")
    assert (window.text, window.name) == ("drtrl:window=5,vjp=multi-step", "drtrl")
    assert window.fields == {"window": 5, "vjp": "multi-step"} and (eprop.text, eprop.fields) == ("eprop", {})
    assert etrace.fields["temporal_recursion"] == ("scalar_leak", "none") and etrace.fields["decay"] == (0.8, 0.0)
    assert parse_strategies("es_drtrl")[0].name == "pp_prop"


class Broken:
    """A recipe whose every strategy fails in its own way."""

    @staticmethod
    def make(config):
        raise {"bptt": ValueError(), "drtrl": KeyError("a | b")}.get(config.strategy, RuntimeError("never reached"))


@dataclass(frozen=True)
class Options(cli.Options):
    strategy: str = "drtrl"
    strategy_fields: Any = None
    run_dir: str | None = None
    progress: bool = False


def test_a_cell_that_fails_is_a_row_and_an_empty_message_is_one(monkeypatch):
    """Also if BPTT itself fails, or its message is empty. A bar in a message does not start a column."""
    (entry,) = measure.measure(Broken, Options(), parse_strategies("drtrl"), [], 1)
    assert entry.failed == "bptt: ValueError"
    monkeypatch.setattr(Broken, "make", staticmethod(lambda config: (_ for _ in ()).throw(ValueError("a | b"))))
    (entry,) = measure.measure(Broken, Options(), parse_strategies("drtrl"), [], 1)
    assert entry.failed == "bptt: ValueError: a | b"
    assert table.row(entry, table.reasons([entry]))[2:] == ["cannot run (1)", *[""] * (len(table.COLUMNS) - 3)]
    assert table.notes([entry, entry]) == "\n(1) bptt: ValueError: a | b\n"
