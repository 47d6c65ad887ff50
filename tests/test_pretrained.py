"""Parameters of other runs: what fits is loaded, the rest is reported; safetensors files, read by their own library."""

import json

import brainstate
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import saiunit as u

import jaxtrain as jt
from jaxtrain import pretrained
from tests.small import Linear, leaves, lines, same
from tests.test_loading import Running, mean

stf = pytest.importorskip("safetensors.numpy", reason="the extra dev is not installed")


class Parts(jt.Module):
    """Parameters without a task: what loading sees."""

    def __init__(self, fill: float = 0.0, **shapes: tuple[int, ...]):
        self.fill, self.shapes = fill, shapes or {"a": (2, 3), "b": (3,)}

    def build(self):
        class Part(brainstate.nn.Module):
            def __init__(self, shapes, fill):
                super().__init__()
                for number, (name, shape) in enumerate(shapes.items()):
                    setattr(self, name, brainstate.ParamState({"weight": jnp.full(shape, fill + number)}))

        class Net(brainstate.nn.Module):
            def __init__(self, shapes, fill):
                super().__init__()
                self.trunk, self.head = Part(shapes, fill), Part(shapes, fill + 10)

        return Net(self.shapes, self.fill)

    def learning_step(self, forward, x, y):
        raise NotImplementedError

    def configure_optimizer(self):
        raise NotImplementedError


NAMES = ["head.a.weight", "head.b.weight", "trunk.a.weight", "trunk.b.weight"]


def built(module):
    module.model = module.build()
    return module


@pytest.fixture
def file(tmp_path):
    """A file that another library wrote: every value is its number."""
    values = {name: np.full((2, 3) if ".a." in name else (3,), i + 1.0, np.float32) for i, name in enumerate(NAMES)}
    stf.save_file(values, tmp_path / "other.safetensors")
    return tmp_path / "other.safetensors"


def firsts(module):
    return {name: float(value.ravel()[0]) for name, value in leaves(module).items()}


AS_BUILT = {"head.a.weight": 10.0, "head.b.weight": 11.0, "trunk.a.weight": 0.0, "trunk.b.weight": 1.0}


@pytest.mark.parametrize(
    "only, chosen",
    [
        (None, NAMES),
        ("trunk", NAMES[2:]),
        ("trunk.b.weight", NAMES[3:]),
        ("*.b.*", [NAMES[1], NAMES[3]]),
        (["head.a", "*.b.weight"], [NAMES[0], NAMES[1], NAMES[3]]),
        (lambda name: name.endswith("a.weight"), [NAMES[0], NAMES[2]]),
    ],
)
def test_only_selects_names_prefixes_and_globs(file, only, chosen, caplog):
    module = Parts()
    report = pretrained.load(file, module, only=only)
    assert firsts(module) == AS_BUILT | {name: NAMES.index(name) + 1.0 for name in chosen}
    assert report.module is module and report.loaded == {name: name for name in chosen}
    assert report.skipped == {name: "not selected" for name in NAMES if name not in chosen}
    assert sorted(report.as_built) == [name for name in NAMES if name not in chosen]
    assert str(report) in caplog.text and len(str(report).splitlines()) <= 3


def test_prefixes_are_renamed_the_longest_first(file):
    module = Parts()
    report = pretrained.load(file, module, rename={"head": "trunk", "trunk": "old", "trunk.a": "head.a"})
    assert firsts(module) == {**AS_BUILT, "trunk.a.weight": 1.0, "trunk.b.weight": 2.0, "head.a.weight": 3.0}
    assert report.loaded["head.a.weight"] == "trunk.a.weight"
    assert report.skipped == {"trunk.b.weight": "missing in the module"} and report.as_built == ("head.b.weight",)


def test_the_prefix_of_all_names_is_added_and_removed(tmp_path):
    stf.save_file({"a.weight": np.full((2, 3), 5, np.float32)}, tmp_path / "x.safetensors")
    module = Parts()
    pretrained.load(tmp_path / "x.safetensors", module, rename={"": "trunk"})
    assert firsts(module)["trunk.a.weight"] == 5
    stf.save_file({"net.trunk.a.weight": np.full((2, 3), 6, np.float32)}, tmp_path / "y.safetensors")
    pretrained.load(tmp_path / "y.safetensors", module, rename={"net": ""})
    assert firsts(module)["trunk.a.weight"] == 6


def test_other_shapes_and_dtypes_are_skipped_with_the_reason(file):
    module = Parts(a=(2, 4), b=(3,))
    report = pretrained.load(file, module, only="trunk")
    assert report.skipped["trunk.a.weight"] == "shape [2, 3], in the module [2, 4]"
    stf.save_file({"trunk.b.weight": np.ones(3, np.int32), "head.b.weight": np.ones(3, np.float16)}, file)
    report = pretrained.load(file, module)
    assert report.skipped == {"trunk.b.weight": "dtype int32[3], in the module float32[3]"}
    assert leaves(module)["head.b.weight"].dtype == np.float32 and firsts(module)["head.b.weight"] == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"only": "tail"}, "only='tail' selects nothing; the module's names are 4: .*trunk.a.weight"),
        ({"rename": {"tail": "x"}}, r"rename: no name in the source begins with \['tail'\]; its names are 4: "),
        ({"rename": {"head": "trunk"}}, "'head.a.weight' and 'trunk.a.weight' would both be 'trunk.a.weight'"),
        ({"rename": {"": "x"}}, r"nothing of .* was loaded into Parts(.|\n)*skipped \(missing in the module\) 4: "),
        ({"seed": 3}, "seed=3: a safetensors file holds the values of one seed"),
    ],
)
def test_what_applies_to_nothing_is_refused_and_changes_nothing(file, options, message):
    module = Parts()
    with pytest.raises(ValueError, match=message):
        pretrained.load(file, module, **options)
    assert module.model is None or firsts(module) == AS_BUILT


def test_a_checkpoint_is_a_source_with_its_running_statistics(tmp_path):
    module = Running()
    jt.Fit("bptt", max_steps=2, chunk=2, run_dir=tmp_path / "run").run(module, lines())
    other = Running()
    report = pretrained.load(tmp_path / "run", other, only=["w", "mean"])
    assert (mean(other) == mean(module)).all() and (leaves(other)["w"] == leaves(module)["w"]).all()
    assert report.as_built == ("b",) and (leaves(other)["b"] == 0).all()
    path = pretrained.save_safetensors(module, tmp_path / "own.safetensors")
    read = stf.load_file(path)
    assert same({name: read[name] for name in leaves(module)}, leaves(module)) and (read["mean"] == mean(module)).all()
    again = Running()
    assert not pretrained.load(path, again).skipped
    assert same(leaves(again), leaves(module)) and (mean(again) == mean(module)).all()


def test_states_that_init_state_creates_are_loaded(tmp_path):
    class Counted(Linear):
        class Net(Linear.Net):
            def init_state(self, batch_size=None, **options):
                super().init_state(batch_size, **options)
                if not hasattr(self, "count"):
                    self.count = brainstate.LongTermState(jnp.zeros(()))

            def update(self, x):
                self.count.value = self.count.value + 1
                return super().update(x)

    module, other = Counted(), Counted()
    jt.Fit("bptt", max_steps=2, run_dir=tmp_path / "run", loggers=()).run(module, lines())
    assert not pretrained.load(tmp_path / "run", other).skipped
    assert other.model.count.value == module.model.count.value > 0


def test_a_run_starts_from_what_was_loaded(tmp_path):
    """One SGD step by hand from the loaded values."""
    values = {"w": np.full((2, 3), 0.3, np.float32), "b": np.full(3, -0.2, np.float32)}
    stf.save_file(values, tmp_path / "x.safetensors")
    module = Linear()
    pretrained.load(tmp_path / "x.safetensors", module, only="w")
    x, y = lines().train_data().batch(0)
    jt.Fit("bptt", max_steps=1).run(module, lines())
    h, memory, grad = np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 3))
    for xt, yt in zip(x, y, strict=True):
        memory, h = 0.5 * memory + xt, 0.5 * h + xt @ values["w"]
        grad += memory.T @ (2 / 3 * (h - yt))
    np.testing.assert_allclose(leaves(module)["w"], values["w"] - 0.05 * grad / 6, rtol=1e-5)


# ----------------------------------------------------------------------------------------- safetensors


class Physical(Parts):
    def __init__(self, unit=u.mA):
        super().__init__()
        self.unit = unit

    def build(self):
        net = super().build()
        net.trunk.a.value = {"weight": jnp.full((2, 3), 2.0) * self.unit}
        net.trunk.b.value = {"weight": jnp.full((3,), 1.5, jnp.bfloat16)}
        return net


def test_units_and_bfloat16_are_kept(tmp_path):
    path = pretrained.save_safetensors(built(Physical()), tmp_path / "x.safetensors")
    values = stf.load_file(path)
    from safetensors import safe_open

    with safe_open(path, "numpy") as opened:
        units = json.loads(opened.metadata()["units"])
    (name,) = units
    assert units[name] == "mA" and (values[name] == 2).all()
    assert values["trunk.b.weight"].dtype == ml_dtypes.bfloat16 and (values["trunk.b.weight"] == 1.5).all()
    same_units, other_units = Physical(), Physical(u.uA)
    assert not pretrained.load(path, same_units).skipped
    assert same_units.model.trunk.b.value["weight"].dtype == jnp.bfloat16
    assert pretrained.load(path, other_units).skipped == {name: "unit mA, in the module uA"}
    plain = Parts()
    pretrained.load(path, plain, only="trunk.b")
    assert firsts(plain)["trunk.b.weight"] == 1.5 and leaves(plain)["trunk.b.weight"].dtype == np.float32


def test_bad_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Parts has no model yet: train it, or load it"):
        pretrained.save_safetensors(Parts(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        pretrained.save_safetensors(built(Parts()), tmp_path / "x.bin")
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no readable safetensors file"):
        pretrained.load(tmp_path / "x.safetensors", Parts())
    with pytest.raises(FileNotFoundError):
        pretrained.load(tmp_path / "none.safetensors", Parts())
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs the package safetensors: pip install .jaxtrain\[s"):
        pretrained.load(tmp_path / "x.safetensors", Parts())
