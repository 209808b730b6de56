"""Transport on a line: against every pairing, against SciPy, and with rows that do not count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxunlearn.transport import wasserstein1, wasserstein2

RNG = np.random.default_rng(5)
LENGTHS = pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (4, 7)])


def test_it_is_the_cheapest_of_all_pairings(x64):
    a, b = RNG.normal(size=5), RNG.normal(size=5)
    pairings = [np.asarray(p) for p in itertools.permutations(b)]
    squares = [np.mean((a - p) ** 2) for p in pairings]
    sizes = [np.mean(abs(a - p)) for p in pairings]
    np.testing.assert_allclose(wasserstein2(a, b), min(squares), rtol=1e-12)
    np.testing.assert_allclose(wasserstein1(a, b), min(sizes), rtol=1e-12)
    assert np.mean((a - b) ** 2) > min(squares)  # without sorting it is larger


@LENGTHS
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_it_is_scipys_distance(n, m, weighted, x64):
    a, b = RNG.normal(size=n), RNG.normal(size=m)
    weights = (RNG.integers(1, 5, n) * 1.0, RNG.integers(1, 5, m) * 1.0) if weighted else ()
    expected = scipy.stats.wasserstein_distance(a, b, *weights)
    np.testing.assert_allclose(
        wasserstein1(a, b, *map(jnp.asarray, weights)), expected, rtol=1e-9, atol=1e-12
    )


def test_weights_are_repeats(x64):
    """The squared distance of weighted rows is that of rows written out as often."""
    a, b = RNG.normal(size=3), RNG.normal(size=4)
    v, w = np.array([1, 3, 2]), np.array([1, 1, 0, 4])
    ours = wasserstein2(jnp.asarray(a), jnp.asarray(b), jnp.asarray(v * 1.0), jnp.asarray(w * 0.5))
    written = wasserstein2(jnp.asarray(np.repeat(a, v)), jnp.asarray(np.repeat(b, w)))
    np.testing.assert_allclose(ours, written, rtol=1e-12)


def test_order_does_not_matter_and_a_shift_is_its_size(x64):
    a, b = jnp.asarray(RNG.normal(size=6)), jnp.asarray(RNG.normal(size=6))
    np.testing.assert_allclose(wasserstein2(a[::-1], jnp.roll(b, 2)), wasserstein2(a, b))
    np.testing.assert_allclose(wasserstein2(a, a[::-1] - 0.7), 0.49, rtol=1e-12)
    np.testing.assert_allclose(wasserstein1(a, a[::-1] - 0.7), 0.7, rtol=1e-12)


def test_rows_of_weight_zero_count_nothing_not_even_nan():
    """Value and gradient, bit by bit those of the rows that count."""
    a, b = (
        jnp.asarray(RNG.normal(size=4), jnp.float32),
        jnp.asarray(RNG.normal(size=4), jnp.float32),
    )
    more_a = jnp.concatenate([a, jnp.array([jnp.nan, 9.0])])
    more_b = jnp.concatenate([b, jnp.array([-9.0, jnp.inf])])
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])
    both = jax.value_and_grad(wasserstein2)
    value, slope = both(a, b)
    padded, padded_slope = both(more_a, more_b, weight, weight)
    np.testing.assert_array_equal(padded, value)
    np.testing.assert_array_equal(padded_slope, np.append(slope, [0, 0]))
    for distance in (wasserstein1, wasserstein2):
        assert jax.grad(distance)(more_a, more_b, 0 * weight, weight).tolist() == [0.0] * 6
        assert distance(more_a, more_b, weight, 0 * weight) == 0


def test_a_sample_is_at_zero_from_itself_with_no_slope():
    a, weight = jnp.asarray(RNG.normal(size=5), jnp.float32), jnp.array([1.0, 0, 3, 1, 1])
    for weights in ((), (weight, weight)):
        value, slope = jax.value_and_grad(wasserstein2)(a, a, *weights)
        assert value == 0 and not np.any(slope)


def test_its_gradient_moves_each_value_to_its_own_rank(x64):
    a, b = jnp.array([3.0, 1.0, 2.0]), jnp.array([10.0, 30.0, 20.0])
    slope = jax.grad(wasserstein2)(a, b)
    np.testing.assert_allclose(slope, 2 / 3 * (np.array([3.0, 1, 2]) - np.array([30.0, 10, 20])))
    step = 1e-6
    for i in range(3):
        ends = [wasserstein2(a.at[i].add(s * step), b) for s in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope[i], rtol=1e-6)


def test_half_precision_is_compared_in_single():
    a = jnp.array([1.0, 2.0, 3.0], jnp.bfloat16)
    assert wasserstein2(a, a + 1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("a", "weight"),
    [(jnp.ones((2, 2)), None), (jnp.ones(2), jnp.ones(3))],
    ids=["matrix", "weight"],
)
def test_other_shapes_are_refused(a, weight):
    with pytest.raises(ValueError, match="a and its weights must be vectors of one length, got"):
        wasserstein2(a, jnp.ones(2), weight)
