"""Ready projections against numpy, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

from jaxtrain import projections as p

W = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
"""Three inputs and four recurrent units."""
SIGNS = np.array([1, -1, 1, -1])
MASK = np.random.default_rng(1).random((4, 4)) < 0.5
REST = slice(3, None)
LIMIT = float(np.median(np.linalg.norm(W[3:], axis=0)))


def columns(block, limit):
    """Loop over columns, in float64."""
    block = block.astype(float)
    for j in range(block.shape[1]):
        block[:, j] *= min(1.0, limit / np.sqrt((block[:, j] ** 2).sum()))
    return block


CASES = {
    "dale": (p.dale(SIGNS, rows=REST), lambda w: np.stack([np.maximum(w[i] * s, 0) * s for i, s in enumerate(SIGNS)])),
    "sparse": (p.sparse(MASK, rows=REST), lambda w: w * MASK),
    "non_negative": (p.non_negative(rows=REST), lambda w: np.maximum(w, 0)),
    "max_norm": (p.max_norm(LIMIT, rows=REST), lambda w: columns(w, LIMIT)),
    "zero_diagonal": (p.zero_diagonal(rows=REST), lambda w: w - np.diag(np.diag(w))),
    "clip": (p.clip(-0.5, 0.25, rows=REST), lambda w: np.minimum(np.maximum(w, -0.5), 0.25)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_of_rows_equals_numpy(name):
    project, truth = CASES[name]
    expected = np.concatenate([W[:3], truth(W[3:])])
    assert (expected[3:] != W[3:]).any() and (expected[3:] == W[3:]).any()
    for run in (project, jax.jit(project)):
        found = run(jnp.asarray(W))
        assert found.dtype == np.float32 and not found.weak_type
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0)
    again = np.asarray(project(found))
    np.testing.assert_allclose(again, found, rtol=2e-7 if name == "max_norm" else 0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_a_narrow_dtype_is_kept(name, dtype):
    project, truth = CASES[name]
    array = jnp.asarray(W, dtype)
    found = project(array)
    assert found.dtype == array.dtype
    expected = truth(np.asarray(array[3:], np.float64))
    np.testing.assert_allclose(np.asarray(found[3:], float), expected, rtol=1e-2, atol=0)


def test_the_whole_array_without_rows():
    square = jnp.asarray(W[:4])
    np.testing.assert_array_equal(p.non_negative()(jnp.asarray(W[0])), np.maximum(W[0], 0))
    np.testing.assert_array_equal(p.zero_diagonal()(square), W[:4] * ~np.eye(4, dtype=bool))
    np.testing.assert_allclose(p.max_norm(1.0)(jnp.asarray(W)), columns(W, 1.0), rtol=1e-6)
    kernel = jnp.asarray(W).reshape(1, 7, 2, 2)
    flat = columns(np.asarray(kernel).reshape(14, 2), 1.0)
    np.testing.assert_allclose(p.max_norm(1.0)(kernel).reshape(14, 2), flat, rtol=1e-6)


def test_projections_are_composed_by_calls():
    both = p.zero_diagonal()(p.dale(SIGNS)(jnp.asarray(W[:4])))
    np.testing.assert_array_equal(both, CASES["dale"][1](W[:4]) * ~np.eye(4, dtype=bool))


@pytest.mark.parametrize("name", CASES)
def test_a_nan_stays(name):
    broken = jnp.asarray(np.where(np.arange(28).reshape(7, 4) == 17, np.nan, W))  # the connection from 1 to 1
    hidden = {"sparse": not MASK[1, 1], "zero_diagonal": True}.get(name, False)
    assert bool(jnp.isnan(CASES[name][0](broken)).any()) is not hidden


def test_quantities_keep_their_unit():
    weight = u.Quantity(jnp.asarray(W), unit=u.mA)
    limits = {
        "max_norm": p.max_norm(1000 * LIMIT * u.uA, rows=REST),
        "clip": p.clip(-0.5 * u.mA, 250.0 * u.uA, rows=REST),
    }
    for name, (project, truth) in CASES.items():
        found = limits.get(name, project)(weight)
        assert jax.tree.structure(found) == jax.tree.structure(weight), name
        np.testing.assert_allclose(found.mantissa[3:], truth(W[3:]), rtol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match=r"clip: limits \(-0.5, 0.25\) for a weight in mA; expected the same unit"):
        CASES["clip"][0](weight)
    with pytest.raises(ValueError, match=r"max_norm: limits .* for a weight in 1; expected the same unit"):
        limits["max_norm"](jnp.asarray(W))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: p.dale([1, 0]), r"dale: signs must hold -1 and 1 only"),
        (lambda: p.dale([[1, -1]]), r"dale: signs have shape \(1, 2\); expected one sign per row"),
        (lambda: p.sparse([[0.5]]), r"sparse: the mask must hold 0 and 1 only"),
        (lambda: p.max_norm(0), r"max_norm: limit=0; expected a positive number"),
        (lambda: p.max_norm([1.0]), r"max_norm: limit=\[1.0\]; expected a number"),
        (lambda: p.max_norm(np.nan), r"max_norm: limit=nan; expected a number"),
        (lambda: p.clip(1, -1), r"clip: low=1, high=-1; expected low <= high, in the same unit"),
        (lambda: p.clip(0, "x"), r"clip: high='x'; expected a number"),
        (lambda: p.clip(0 * u.mA, 1 * u.mV), r"clip: .*expected low <= high, in the same unit"),
        (lambda: p.clip(0, 1, rows=3), r"clip: rows=3; expected a slice"),  # type: ignore[arg-type]
        (lambda: p.dale([1, -1])(W), r"dale: 2 signs for a weight \(7, 4\); expected one sign per row; rows=slice"),
        (lambda: p.sparse(MASK)(W), r"sparse: a mask \(4, 4\) for a weight \(7, 4\); expected the same shape; rows="),
        (lambda: p.zero_diagonal()(W), r"zero_diagonal: a weight \(7, 4\); expected a square matrix; rows=slice"),
        (lambda: p.max_norm(1)(W[0]), r"max_norm: a weight of shape \(4,\); expected columns"),
        (lambda: p.clip(0, 1, rows=slice(9, None))(W), r"clip: slice\(9, None, None\) selects no rows of a weight"),
        (lambda: p.non_negative()({"weight": W}), r"non_negative: expected an array .* got a dict with \['weight'\]"),
        (lambda: p.non_negative()(None), r"non_negative: expected an array or a quantity, got NoneType"),
        (lambda: p.non_negative()(W.astype(complex)), r"non_negative: a weight of dtype complex64; expected real"),
    ],
)
def test_errors_say_what_was_expected(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
