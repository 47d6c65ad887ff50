"""Numbers merge as weighted means, and reach the host in one place."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxtrain.core.metrics import Mean, Pending, add, sum_over_time

parts = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e3)), min_size=1, max_size=8)


@given(parts, st.randoms())
def test_means_merge_in_any_order(pairs, random):
    """The merged mean is the weighted mean of all values, however they are grouped."""
    means = [Mean(np.float64(value * weight), np.float64(weight)) for value, weight in pairs]
    shuffled = random.sample(means, len(means))
    merged = means[0]
    for mean in means[1:]:
        merged = merged.merge(mean)
    other = shuffled[-1]
    for mean in shuffled[:-1]:
        other = mean.merge(other)
    np.testing.assert_allclose(merged, other, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(merged.num, sum(v * w for v, w in pairs), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(merged.weight, sum(w for _, w in pairs), rtol=1e-9, atol=1e-9)


def test_sum_over_time_and_add():
    steps = {"loss": Mean(jnp.arange(4.0), jnp.ones(4)), "hit": Mean(jnp.array([0.0, 1, 0, 1]), jnp.full(4, 0.5))}
    total = sum_over_time(steps)
    assert jax.tree.map(float, total) == {"loss": Mean(6.0, 4.0), "hit": Mean(2.0, 2.0)}
    assert jax.tree.map(float, add(total, total)) == {"loss": Mean(12.0, 8.0), "hit": Mean(4.0, 4.0)}
    assert isinstance(total["loss"], Mean)


def test_a_mean_of_steps_is_the_sum_of_parts():
    steps = {"loss": Mean(jnp.arange(5.0), jnp.ones(5))}
    head, tail = (jax.tree.map(lambda leaf, s=s: leaf[s], steps) for s in (slice(0, 2), slice(2, 5)))
    assert jax.tree.map(float, add(sum_over_time(head), sum_over_time(tail))) == jax.tree.map(
        float, sum_over_time(steps)
    )


def test_a_mean_is_a_pytree_that_scans():
    out = jax.lax.scan(lambda c, x: (c.merge(Mean(x, 1.0)), None), Mean(0.0, 0.0), jnp.arange(3.0))[0]
    assert (float(out.num), float(out.weight)) == (3.0, 3.0)


def test_pending_fetches_the_same_tree_as_numpy_and_counts():
    before = Pending.fetches
    pending = Pending({"loss": Mean(jnp.arange(3), jnp.ones(3)), "rest": [jnp.float32(2)]})
    assert Pending.fetches == before
    got = pending.fetch()
    assert Pending.fetches == before + 1
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(got))
    assert isinstance(got["loss"], Mean) and got["loss"].num.tolist() == [0, 1, 2] and got["rest"][0] == 2
