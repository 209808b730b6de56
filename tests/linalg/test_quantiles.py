"""Quantiles of a tree: NumPy's on the concatenated entries, bit for bit, and every edge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.linalg import quantiles
from jaxunlearn.linalg.quantiles import tree_quantile

quantile = jax.jit(tree_quantile)
LEVELS = (0.0, 0.1, 0.5, 0.93, 0.9931, 1.0)


def tree(seed, spread=1.0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(60) * np.exp(spread * rng.standard_normal(60))
    return {"a": values[:47].astype(dtype), "b": (values[47:].astype(dtype).reshape(13, 1),)}


def pooled(leaves):
    values = np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(leaves)])
    return values[np.isfinite(values)]


@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_it_is_the_quantile_of_all_entries_pooled(spread):
    for seed in range(4):
        leaves = tree(seed, spread)
        for q in LEVELS:
            expected = np.quantile(pooled(leaves), q)
            np.testing.assert_allclose(quantile(leaves, q), expected, rtol=1e-4, atol=1e-30)


def test_in_double_precision_too(x64):
    leaves = tree(0, 5.0, np.float64)
    for q in LEVELS:
        got = tree_quantile(leaves, q)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, np.quantile(pooled(leaves), q), rtol=1e-13)


def test_at_a_rank_it_is_that_entry_bit_for_bit():
    values = np.float32([3.0, -1e-30, 7.5, -2e30, 0.1, 3.0, 1e30, -0.25, 5e-5])
    ordered = np.sort(values)
    for k in range(9):
        np.testing.assert_array_equal(quantile({"a": values}, np.float32(k / 8)), ordered[k])


@pytest.mark.parametrize("extreme", [3.4028235e38, -3.4028235e38, 1.1754944e-38, 0.0, -0.0, -1.0])
def test_the_ends_of_the_number_line_are_found(extreme):
    assert float(quantile({"a": np.full(5, extreme, np.float32)}, 0.5)) == np.float32(extreme)


def test_ties_are_each_counted():
    values = np.float32([1, 1, 1, 2, 2, 9])
    for q in (0.3, 0.4, 0.5, 0.7, 0.8, 0.9):
        np.testing.assert_allclose(quantile({"a": values}, q), np.quantile(values, q), rtol=1e-6)


def test_what_is_not_finite_is_not_counted():
    values = np.float32([np.nan, np.inf, 4.0, -np.inf, 1.0, np.nan, 2.0])
    for q in LEVELS:
        np.testing.assert_allclose(quantile({"a": values}, q), np.quantile([1.0, 2, 4], q), 1e-6)


def test_no_finite_entry_gives_nan():
    assert np.isnan(quantile({"a": np.float32([np.nan, np.inf])}, 0.5))
    assert np.isnan(tree_quantile({"a": jnp.zeros(0)}, 0.5))


def test_one_entry_is_every_quantile():
    for q in LEVELS:
        assert float(quantile({"a": jnp.asarray(-3.5)}, q)) == -3.5


def test_half_precision_leaves_are_compared_as_they_are():
    values = jnp.arange(5.0, dtype=jnp.bfloat16)
    got = tree_quantile([values, jnp.asarray([100.0])], 0.9)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.quantile([0, 1, 2, 3, 4, 100], 0.9), rtol=1e-6)


def test_vmap_equals_a_loop():
    leaves = jax.tree.map(lambda *x: np.stack(x), tree(0), tree(1), tree(2))
    levels = jnp.asarray([0.2, 0.5, 0.99])
    together = jax.vmap(tree_quantile)(leaves, levels)
    for i in range(3):
        np.testing.assert_allclose(together[i], quantile(tree(i), levels[i]), rtol=1e-6)


def test_sharded_leaves_stay_where_they_are():
    """The compiled program exchanges sums, minima and maxima only: nothing is gathered."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    leaf = jax.device_put(values, NamedSharding(mesh, PartitionSpec("d")))
    program = quantile.lower([leaf], 0.9).compile()
    assert "all-reduce" in program.as_text() and "all-gather" not in program.as_text()
    np.testing.assert_array_equal(program([leaf], 0.9), quantile([values], 0.9))


def test_a_traced_level_is_clipped_and_a_written_one_refused():
    values = [jnp.arange(3.0)]
    np.testing.assert_array_equal(quantile(values, 7.0), 2.0)
    for q in (-0.1, 1.5, 99, float("nan")):
        with pytest.raises(ValueError, match=r"q must lie in \[0, 1\], got .* percentage"):
            tree_quantile(values, q)


def test_more_entries_than_can_be_counted_are_refused(monkeypatch):
    monkeypatch.setattr(quantiles, "_MOST", 4)
    with pytest.raises(ValueError, match="up to 4 entries, got 5"):
        jax.eval_shape(partial(tree_quantile, q=0.5), [jnp.zeros(5)])
