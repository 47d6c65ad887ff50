"""Inputs that nobody thought of: each works, or gets one clear line."""

import dataclasses
import json
import string
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxtrain as jt
from jaxtrain import cli
from jaxtrain.cli import failures
from jaxtrain.engine import optimizer
from jaxtrain.training.result import Result
from tests import small
from tests.small import Linear

numbers = st.one_of(st.integers(-5, 5), st.sampled_from([0, 1, 2**31, 2**32, 2**63, -(2**63)]), st.floats())
words = st.text(string.ascii_letters + string.digits + "-_=./~:, \t\n\0'\"{}[]é中\u202e", max_size=12)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))

# ---------------------------------------------------------------------------------- command lines and config files


@dataclass(frozen=True)
class Config(cli.Options):
    """A recipe."""

    hidden: int = 4
    lr: float = 3e-3
    clip: float | None = 1.0
    cell: str = "gru"
    seed: int = 0
    validate_every: int | str = 200

    def __post_init__(self):
        cli.check_options(self, counts=("hidden",), periods=("validate_every",))


PRESETS = {"small": {"lr": 1e-3, "drtrl": {"window": 2}}}
FLAGS = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Config)]
FLAGS += [
    "--resume",
    "--config",
    "--preset",
    "--dry-run",
    "--strategy.window",
    "--strategy.vjp",
    "--help",
    "--no-progress",
]
GOOD = [
    "drtrl",
    "bptt",
    "3",
    "1e-3",
    "none",
    "None",
    "last",
    "best",
    "never",
    "small",
    "1ep",
    "10min",
    "5",
    "file.json",
]


class Notes:
    """Stands for Fit, which is another test's."""

    def __init__(self, config):
        self.config = config

    def run(self, module, data, *, resume, config, dry_run, test):
        json.dumps(config)  # it is written to config.json
        return Result("finished", 1, run_dir=Path(self.config.run_dir))


def call(argv, capsys) -> tuple[int, str]:
    code = cli.main(Config, lambda config: (Notes(config), None, None), presets=PRESETS, argv=argv)
    return code, capsys.readouterr().err


def clear(code: int, err: str, what) -> None:
    """Exit code 0; or an error that is one line of ours, or the usage of the command line."""
    assert code in (0, 1, 2), what
    assert "Traceback" not in err, what
    if code:
        ours = err.startswith("error: ") and len(err.splitlines()) == 1
        assert ours or (code == 2 and "--help" in err), (what, err)


tokens = st.one_of(st.sampled_from(FLAGS), st.sampled_from(GOOD), words, numbers.map(str))
pairs = st.tuples(st.sampled_from(FLAGS), st.one_of(st.sampled_from(GOOD), words, numbers.map(str))).map(list)
lines = st.one_of(
    st.lists(tokens, max_size=6),
    st.lists(pairs, max_size=4).map(lambda found: [word for pair in found for word in pair]),
    st.lists(pairs, max_size=4).map(lambda found: ["=".join(pair) for pair in found]),
)
OPTIONS = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAXTRAIN_TRACEBACK", raising=False)
    return tmp_path


@pytest.mark.long
@OPTIONS
@given(argv=lines)
def test_any_command_line(here, capsys, argv):
    clear(*call([word.replace("/", "") for word in argv], capsys), argv)


@pytest.mark.long
@OPTIONS
@given(
    content=st.one_of(
        st.dictionaries(
            st.one_of(st.sampled_from([f.name for f in dataclasses.fields(Config)]), words), values, max_size=4
        ),
        st.fixed_dictionaries({"config": values}),
        values,
    ),
    toml=st.booleans(),
    length=st.one_of(st.none(), st.integers(0, 40)),
)
def test_any_config_file(here, capsys, content, toml, length):
    if toml and isinstance(content, dict):
        text = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in content.items())
    else:
        text = json.dumps(content)
    if "run_dir" in text:  # a file may say where; elsewhere is for another test
        return
    path = here / ("file.toml" if toml else "file.json")
    path.write_bytes(text.encode()[:length])
    clear(*call(["--config", str(path)], capsys), text[:length])


@pytest.mark.long
@OPTIONS
@given(data=st.binary(max_size=60), name=st.sampled_from(["file.json", "file.toml", "file", "file.yaml"]))
def test_any_bytes_as_a_config_file(here, capsys, data, name):
    (here / name).write_bytes(data)
    clear(*call(["--config", name], capsys), data)


# ------------------------------------------------------------------------------------------------ the API

NAMES = ["max_steps", "max_epochs", "max_time", "clip", "accumulate", "seed", "chunk", "validate_every", "log_every"]
NAMES += ["nonfinite", "callbacks", "seeds"]
OURS = (ValueError, TypeError, RuntimeError, LookupError, OSError)


def one_line(error: BaseException, what) -> None:
    assert isinstance(error, OURS), what
    text = str(error)
    assert text and "\n" not in text.strip() and len(text) < 600, (what, text)
    assert failures.is_deliberate(error), (what, text)  # raised on purpose, not stumbled over


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    strategy=st.one_of(st.just("bptt"), scalars), options=st.dictionaries(st.sampled_from(NAMES), scalars, max_size=4)
)
def test_any_configuration_of_a_fit(strategy, options):
    try:
        jt.Fit(strategy, **options)
    except Exception as error:
        one_line(error, (strategy, options))


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(["Checkpoint", "EarlyStopping", "GradientFidelity", "TensorBoard", "ProgressBar"]),
       given_=st.lists(scalars, max_size=3))  # fmt: skip
def test_any_arguments_of_a_callback(name, given_):
    import inspect

    make = getattr(jt, name)
    most = len(inspect.signature(make).parameters)
    if not given_ or len(given_) > most:
        return
    try:
        make(*given_)
    except Exception as error:
        one_line(error, (name, given_))


shapes = st.sampled_from(
    [(), (3,), (3, 2), (3, 2, 2), (3, 2, 3), (2, 2, 3), (4, 2, 3), (3, 1, 3), (3, 2, 0), (0, 2, 2)]
)
dtypes = st.sampled_from(["float32", "float64", "float16", "int32", "int8", "uint8", "bool", "complex64", "U3", "O"])
masks = st.sampled_from([None, (3,), (2,), (3, 2), (2, 3), (3, 2, 1), ()])


@st.composite
def array(draw, usual):
    shape, dtype = draw(st.one_of(st.just(usual), shapes)), draw(st.one_of(st.just("float32"), dtypes))
    if dtype in ("U3", "O"):
        return np.full(shape, "a" if dtype == "U3" else None, dtype=dtype)
    fill = draw(st.sampled_from([0.0, 1.0, np.nan, np.inf])) if dtype.startswith("float") else 1
    return np.full(shape, fill, dtype=dtype)


class Masked(Linear):
    """``Linear`` with weights of its own."""

    weights, reset = None, None

    def phases(self, batch):
        return dataclasses.replace(super().phases(batch), weights=self.weights, reset=self.reset)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(
    x=array((3, 2, 2)),
    y=array((3, 2, 3)),
    mask=st.one_of(st.none(), masks),
    kind=st.sampled_from(["float32", "bool", "int32"]),
    reset=st.sampled_from([None, (3, 2), (2,)]),
)
def test_any_batch(x, y, mask, kind, reset, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("any") / "run"
    module = Masked()
    module.weights = None if mask is None else np.ones(mask, kind)
    module.reset = None if reset is None else np.zeros(reset, bool)
    what = (x.shape, x.dtype, y.shape, y.dtype, mask, kind, reset)
    try:
        result = jt.Fit("bptt", max_steps=2, chunk=1, run_dir=run_dir).run(module, [(x, y)])
    except jt.errors.NonFiniteError as error:
        assert "not finite" in str(error), what
        return
    except Exception as error:
        one_line_or_shapes(error, what)
        assert not run_dir.exists(), what
        return
    assert result.step == 2 and np.isfinite(result.metrics["train/loss"]), what


def of_the_model(error: BaseException) -> bool:
    """Whether it was raised on the way through the module of these tests, and not in an ``update`` of ours."""
    users = {Path(small.__file__), Path(__file__)}
    return any(
        frame.name in ("update", "learning_step") and Path(frame.filename) in users
        for frame in traceback.extract_tb(error.__traceback__)
    )


def one_line_or_shapes(error: Exception, what) -> None:
    """An operation of the user's model may not take the shapes: then its own error tells it."""
    try:
        one_line(error, what)
    except AssertionError:
        assert isinstance(error, TypeError | ValueError) and of_the_model(error), (what, repr(error))


def test_an_error_within_our_own_update_is_not_the_models(monkeypatch):
    """The check of ``test_any_batch`` sees a stumble in ``Optimizer.update``, and lets pass one of the model."""

    def stumble(self, *args):
        return [] + 1  # type: ignore[operator]

    def run(module):
        return jt.Fit("bptt", max_steps=1).run(module, [(np.zeros((3, 2, 2), "f"), np.zeros((3, 2, 3), "f"))])

    class Stumbles(Linear):
        def learning_step(self, forward, x, y):
            return stumble(self)

    with pytest.raises(TypeError) as of_the_users:
        run(Stumbles())
    one_line_or_shapes(of_the_users.value, "the model's")
    source = Path(optimizer.__file__).read_text()
    namespace = {**vars(optimizer)}
    marked = source.replace("def update(", "def update(*_):\n        return [] + 1\n\n    def _before(", 1)
    exec(compile(marked, optimizer.__file__, "exec"), namespace)
    monkeypatch.setattr(optimizer.Optimizer, "update", namespace["Optimizer"].update)
    with pytest.raises(TypeError) as ours:
        run(Linear())
    with pytest.raises(AssertionError, match="ours"):
        one_line_or_shapes(ours.value, "ours")
