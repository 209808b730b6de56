"""Wasserstein and energy distance of margins: SciPy, loops over pairs, bias, invariance, chunks."""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxunlearn.audit import TooFew, energy
from jaxunlearn.audit.margin_distance import (
    margin_distance,
    margin_floor,
    margin_null,
    margin_summary,
    pooled_deviation,
)
from jaxunlearn.audit.margin_matrix import margin_matrix


def loop_energy(x, y, distinct=True):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over pairs; `distinct=False` keeps a model's own pair."""

    def within(z):
        pairs = itertools.permutations(z, 2) if distinct else itertools.product(z, z)
        return np.mean([abs(a - b) for a, b in pairs])

    return 2 * np.mean([abs(a - b) for a in x for b in y]) - within(x) - within(y)


@pytest.fixture
def ensembles():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 9)), rng.normal(0.7, 1.5, size=(8, 9))


@pytest.mark.parametrize("sizes", [(7, 7), (12, 8), (5, 13), (2, 3)])
def test_the_quantile_coupling_is_scipys_wasserstein_distance_at_any_sizes(sizes):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(sizes[0], 6)), rng.normal(1, 2, size=(sizes[1], 6)).round(1)
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(margin_distance(x, y).wasserstein, expected, atol=1e-13)


def test_for_equal_sizes_it_is_the_mean_difference_of_sorted_margins():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 4))
    expected = np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean(axis=0)
    np.testing.assert_allclose(margin_distance(x, y).wasserstein, expected, atol=1e-14)


def test_the_energy_is_the_loop_over_distinct_pairs_and_twice_the_cramer_distance(ensembles):
    x, y = ensembles
    found = margin_distance(x, y).energy
    expected = [loop_energy(a, b) for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-13)
    # scipy's is the root of the V-statistic, 2 integral (F - G)^2, self-pairs included
    biased = [loop_energy(a, b, distinct=False) for a, b in zip(x.T, y.T, strict=True)]
    theirs = [scipy.stats.energy_distance(a, b) ** 2 for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(biased, theirs, atol=1e-13)
    assert (np.array(biased) > found).all()


def test_the_mean_over_examples_is_the_energy_of_the_matrix_of_models(ensembles):
    x, y = ensembles
    D = margin_matrix(np.concatenate([x, y]))
    np.testing.assert_array_equal(D, D.T)
    assert D[2, 15] == pytest.approx(np.abs(x[2] - y[3]).mean())
    expected = energy(D, range(12), range(12, 20))
    assert margin_distance(x, y).energy.mean() == pytest.approx(expected, abs=1e-13)
    scaled = margin_matrix(np.concatenate([x, y]), scale=pooled_deviation(x, y))
    found = margin_distance(x, y, unit="deviation").energy.mean()
    assert found == pytest.approx(energy(scaled, range(12), range(12, 20)), abs=1e-13)


@pytest.mark.parametrize("law", ["normal", "exponential", "standard_cauchy"])
def test_under_equal_laws_the_energy_averages_to_zero_and_the_biased_versions_do_not(law):
    rng = np.random.default_rng(3)
    x, y = (np.clip(getattr(rng, law)(size=(models, 4000)), -100, 100) for models in (5, 9))
    found = margin_distance(x, y)
    error = found.energy.std() / np.sqrt(4000)
    assert abs(found.energy.mean()) < 3.5 * error
    # mutants that must be noticed: self-pairs kept, Wasserstein read as if it had no bias
    spread = margin_distance(x, x).energy.mean() + margin_distance(y, y).energy.mean()
    kept = found.energy.mean() - spread / 2
    assert abs(kept) > 10 * error and found.wasserstein.mean() > 10 * error


def test_a_shift_is_the_wasserstein_distance_and_the_energy_of_gaussians_has_its_closed_form():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 60))
    np.testing.assert_allclose(margin_distance(x, x + 3).wasserstein, 3, atol=1e-12)
    # E|N(d, 2)| = 2/sqrt(pi) exp(-d^2/4) + d erf(d/2)
    d = 1.3
    across = 2 / np.sqrt(np.pi) * np.exp(-(d**2) / 4) + d * scipy.special.erf(d / 2)
    expected = 2 * across - 4 / np.sqrt(np.pi)
    found = margin_distance(x, rng.normal(d, 1, size=(300, 60))).energy.mean()
    assert found == pytest.approx(expected, abs=0.03)


def test_an_affine_map_scales_the_margin_unit_and_leaves_the_deviation_unit_alone(ensembles):
    x, y = ensembles
    plain, mapped = margin_distance(x, y), margin_distance(-3 * x + 7, -3 * y + 7)
    np.testing.assert_allclose(mapped, 3 * np.array(plain), atol=1e-12)
    before = margin_distance(x, y, unit="deviation")
    np.testing.assert_allclose(
        margin_distance(-3 * x + 7, -3 * y + 7, unit="deviation"), before, atol=1e-12
    )
    np.testing.assert_allclose(
        before.wasserstein, plain.wasserstein / np.concatenate([x, y]).std(axis=0), atol=1e-12
    )


def test_swapping_the_groups_or_the_models_of_a_group_changes_nothing(ensembles):
    x, y = ensembles
    np.testing.assert_allclose(margin_distance(y, x), margin_distance(x, y), atol=1e-13)
    np.testing.assert_allclose(margin_distance(x[::-1], y[::-1]), margin_distance(x, y), atol=1e-13)
    # the deviation is that of all models: a relabelling leaves it alone to the bit
    pool = np.concatenate([x, y])[::-1]
    np.testing.assert_array_equal(pooled_deviation(pool[:5], pool[5:]), pooled_deviation(x, y))
    # mutant: one example swapped for another is noticed
    assert not np.allclose(margin_distance(x[:, ::-1], y).energy, margin_distance(x, y).energy)


def test_constants_and_saturated_margins_have_finite_distances():
    zeros, ones = np.zeros((4, 2)), np.ones((3, 2))
    assert np.array(margin_distance(zeros, ones)).tolist() == [[1, 1], [2, 2]]
    for unit in ("margin", "deviation"):
        assert not np.any(margin_distance(ones, np.ones((5, 2)), unit=unit))
    up, down = np.full((4, 1), np.inf), np.full((4, 1), -150.0)
    assert margin_distance(up, down).wasserstein == 200
    assert margin_distance(up, down, unit="deviation").wasserstein == pytest.approx(2)
    x = np.random.default_rng(0).normal(size=(6, 3))
    same = margin_distance(x, x[::-1])
    assert (same.wasserstein == 0).all() and (same.energy < 0).all()


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
@pytest.mark.parametrize("unit", ["margin", "deviation"])
def test_any_chunk_gives_the_same_bits(ensembles, chunk, unit):
    x, y = (side.astype(np.float32) for side in ensembles)
    whole, parts = (margin_distance(x, y, unit=unit, chunk=c) for c in (None, chunk))
    np.testing.assert_array_equal(parts, whole)


def test_the_null_of_the_energy_is_zero_and_that_of_wasserstein_shrinks_with_the_root():
    nulls = {n: margin_null(n, n, seed=0) for n in (16, 64)}
    assert nulls[16].wasserstein.mean == pytest.approx(0.43, rel=0.03)
    assert nulls[64].wasserstein.mean == pytest.approx(nulls[16].wasserstein.mean / 2, rel=0.06)
    for null in nulls.values():
        assert abs(null.energy.mean) < 0.1 * null.energy.quantile95
    assert margin_null(16, 16, seed=0) == nulls[16] != margin_null(16, 16, seed=1)
    # one model fewer is another null
    assert margin_null(16, 15, seed=0).wasserstein.mean != nulls[16].wasserstein.mean


def test_the_floor_compares_two_halves_of_the_oracles(ensembles):
    x = ensembles[0]
    np.testing.assert_array_equal(margin_floor(x), margin_distance(x[6:], x[:6]))
    np.testing.assert_array_equal(
        margin_floor(x, unit="deviation", chunk=2),
        margin_distance(x[6:], x[:6], unit="deviation"),
    )


def test_the_summary_is_mean_percentile_and_worst(ensembles):
    found = margin_distance(*ensembles)
    summary = margin_summary(found)
    assert summary.energy.mean == found.energy.mean()
    assert summary.wasserstein.worst == found.wasserstein.max()
    assert summary.wasserstein.quantile95 == np.quantile(found.wasserstein, 0.95)
    assert margin_summary(None) is None
    assert margin_summary(margin_distance(np.zeros((2, 0)), np.zeros((2, 0)))) is None


def test_a_broken_model_has_no_distance_in_the_matrix():
    D = margin_matrix([[np.nan, 0.0], [1.0, 2.0], [-np.inf, 2.0]])
    np.testing.assert_array_equal(D, [[0, np.nan, np.nan], [np.nan, 0, 50.5], [np.nan, 50.5, 0]])
    assert margin_matrix(np.zeros((3, 0))) is None
    assert margin_matrix([[1.0, 2.0]]).tolist() == [[0.0]]


def test_the_matrix_of_many_examples_is_that_of_its_blocks():
    rng = np.random.default_rng(5)
    g = rng.normal(size=(3, 9001))
    expected = np.abs(g[:, None] - g[None]).mean(axis=2)
    np.testing.assert_allclose(margin_matrix(g), expected, atol=1e-13)


def test_nothing_is_undefined_and_bad_input_is_refused(ensembles):
    x, y = ensembles
    assert margin_distance(x[:, :0], y[:, :0]) is None
    assert pooled_deviation(x[:, :0], y[:, :0]) is None
    with pytest.raises(TooFew, match=r"margin_distance: method_margins holds 1 model\(s\)"):
        margin_distance(x, y[:1])
    with pytest.raises(TooFew, match=r"margin_floor: .* needs at least 4"):
        margin_floor(x[:3])
    with pytest.raises(ValueError, match="same examples on both sides, got 9 and 8"):
        margin_distance(x, y[:, :8])
    with pytest.raises(ValueError, match=r"unit must be one of .* got 'sd'"):
        margin_distance(x, y, unit="sd")
    with pytest.raises(ValueError, match=r"oracle_margins of shape \(models, n\), got \(12,\)"):
        margin_distance(x[:, 0], y)
    with pytest.raises(ValueError, match="chunk >= 1 examples, or None, got 0"):
        margin_distance(x, y, chunk=0)
    broken = y.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"method_margins is NaN for models \[3\]"):
        margin_distance(x, broken)
    with pytest.raises(ValueError, match="examples >= 1, got 0"):
        margin_null(5, 5, examples=0, seed=0)
    with pytest.raises(ValueError, match=r"margin_matrix: expected margins .* got \(9,\)"):
        margin_matrix(x[0])
    with pytest.raises(ValueError, match=r"scale of shape \(9,\), finite and > 0, .* smallest 0"):
        margin_matrix(x, scale=np.zeros(9))
    with pytest.raises(ValueError, match=r"scale of shape \(9,\).* got shape \(1,\)"):
        margin_matrix(x, scale=[1.0])
