"""Values that Fit, the copying task or a logger cannot have: one clear line each."""

import copy
import pickle

import braintrace
import pytest

import jaxtrain as jt
from jaxtrain.errors import ConfigError
from tests.small import Linear, Lines

FITS = {
    "zero steps": (dict(max_steps=0), ValueError, r"max_steps=0\): expected a whole number, 1 or more"),
    "negative steps": (dict(max_steps=-5), ValueError, r"max_steps=-5\): expected a whole number"),
    "a float of steps": (dict(max_steps=1e3), ValueError, r"max_steps=1000.0\): expected a whole number"),
    "a bool of steps": (dict(max_steps=True), ValueError, r"max_steps=True\)"),
    "epochs": (dict(max_epochs=0), ValueError, "max_epochs=0"),
    "time": (dict(max_time=20), ValueError, r"max_time=20\): expected a time, as '30min'"),
    "time text": (dict(max_time="soon"), ValueError, "'soon' is not understood"),
    "clip": (dict(max_steps=1, clip=-1.0), ValueError, r"clip=-1.0\): expected a positive norm, or None"),
    "clip nan": (dict(max_steps=1, clip=float("nan")), ValueError, "clip=nan"),
    "clip text": (dict(max_steps=1, clip=""), ValueError, r"clip=''\): expected a positive norm, or None"),
    "clip bool": (dict(max_steps=1, clip=True), ValueError, "clip=True"),
    "accumulate": (dict(max_steps=1, accumulate=0), ValueError, "accumulate=0"),
    "chunk": (dict(max_steps=1, chunk=0), ValueError, "chunk=0"),
    "chunk text": (dict(max_steps=1, chunk="big"), ValueError, "chunk='big'"),
    "log_every": (dict(max_steps=1, log_every=0), ValueError, "log_every=0"),
    "validate_every": (dict(max_steps=1, validate_every=-2), ValueError, "-2 is not positive"),
    "seed": (dict(max_steps=1, seed=-1), ValueError, r"seed=-1\): expected a whole number from 0"),
    "nonfinite": (dict(max_steps=1, nonfinite="ignore"), ValueError, "nonfinite='ignore'.*'raise', 'skip' or 'warn'"),
    "strategy": (
        dict(max_steps=1, strategy="dtrrl"),
        ConfigError,
        "unknown strategy 'dtrrl'; expected bptt.* did you mean 'drtrl'",
    ),
    "an argument of Lightning": (
        dict(gradient_clip_val=1.0),
        TypeError,
        "^Fit has no argument 'gradient_clip_val': use clip$",
    ),
    "strategy class": (
        dict(max_steps=1, strategy=jt.BPTT),
        TypeError,
        r"expected a name or a jaxtrain.strategies.Strategy object; did you mean BPTT\(\)\?$",
    ),
    "a class of braintrace": (
        dict(max_steps=1, strategy=braintrace.D_RTRL),
        TypeError,
        r"object; use 'drtrl' or jaxtrain.strategies.DRTRL\(\)$",
    ),
    "an object of braintrace": (
        dict(max_steps=1, strategy=braintrace.ETraceConfig()),
        TypeError,
        r"object; use 'etrace' or jaxtrain.strategies.ETrace\(\)$",
    ),
    "another name in braintrace": (
        dict(max_steps=1, strategy="ES_D_RTRL"),
        jt.errors.ConfigError,
        "did you mean 'pp_prop'",
    ),
    "callback class": (dict(max_steps=1, callbacks=[jt.loggers.JSONL]), TypeError, "must be jaxtrain.Callback objects"),
    "a checkpoint nowhere": (
        dict(max_steps=1, callbacks=[jt.Checkpoint()]),
        ValueError,
        "Checkpoint needs a run directory",
    ),
    "two checkpoints": (
        dict(max_steps=1, run_dir="x", callbacks=[jt.Checkpoint(), jt.Checkpoint()]),
        ValueError,
        "one Checkpoint callback",
    ),
}


@pytest.mark.parametrize("what", FITS)
def test_a_fit_that_cannot_be(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, error, message = FITS[what]
    with pytest.raises(error, match=message) as caught:
        jt.Fit(**{"strategy": "bptt", **options})
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_arguments_of_other_frameworks():
    for make, message in (
        (lambda: jt.Checkpoint(save_top_k=3), "^Checkpoint has no argument 'save_top_k': use keep_best$"),  # type: ignore
        (lambda: jt.EarlyStopping(stopping_threshold=1), "^EarlyStopping has no argument .*: use threshold$"),  # type: ignore
        (lambda: jt.DRTRL(carry=True), "^DRTRL has no argument 'carry': use stateful$"),  # type: ignore
        (lambda: jt.Fit("bptt", nonsense=1), "unexpected keyword argument 'nonsense'"),  # type: ignore
        (lambda: jt.callbacks.Throughput(5), r"^Throughput\(\) takes no arguments$"),  # type: ignore
    ):
        with pytest.raises(TypeError, match=message):
            make()

    class Mine(jt.EarlyStopping):
        def __init__(self, stopping_threshold):
            super().__init__(threshold=stopping_threshold)

    assert Mine(stopping_threshold=0.5).threshold == 0.5, "a subclass may have such an argument"
    assert copy.copy(jt.DRTRL(window=3)) == pickle.loads(pickle.dumps(jt.DRTRL(window=3))) == jt.DRTRL(window=3)


@pytest.mark.parametrize("name,value", [("time_lag", -1), ("num_digits", -1), ("batch_size", 0), ("val_batches", 0)])
def test_sizes_of_the_copying_task(name, value):
    with pytest.raises(ValueError, match=f"copying task: (length|{name})={value} is too small"):
        jt.datasets.CopyDataModule(**{name: value}).val_data()


@pytest.mark.parametrize("logger", [jt.loggers.JSONL, jt.loggers.TensorBoard])
def test_a_logger_without_a_run_directory(logger):
    with pytest.raises(ValueError, match="needs a run directory"):
        jt.Fit("bptt", max_steps=2, callbacks=[logger()]).run(Linear(), Lines())


@pytest.mark.parametrize("word,meant", [(True, "last"), (False, "never"), (None, "never")])
def test_resume_is_a_word(tmp_path, word, meant):
    with pytest.raises(ValueError, match=f"^resume={word}: expected 'never', 'last', .*; did you mean '{meant}'") as e:
        jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run").run(Linear(), Lines(), resume=word)
    assert len(str(e.value).splitlines()) == 1 and list(tmp_path.iterdir()) == []
