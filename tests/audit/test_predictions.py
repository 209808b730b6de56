"""Errors of regressions and distances of their predictions: against sums written out."""

import numpy as np
import pytest

from jaxunlearn import audit

RNG = np.random.default_rng(0)


def test_the_mean_absolute_error_is_that_and_not_the_root_of_squares():
    f, y = RNG.standard_normal((3, 7)), RNG.standard_normal(7)
    expected = [sum(abs(a - b) for a, b in zip(row, y, strict=True)) / 7 for row in f]
    np.testing.assert_allclose(audit.mae(f, y), expected, rtol=1e-14)
    assert (audit.mae(f, y) < audit.rmse(f, y)).all()


def test_w1_is_the_area_between_the_distribution_functions():
    f, oracles = RNG.standard_normal((2, 9)), RNG.standard_normal((3, 9)) + 0.5
    grid = np.linspace(-6, 6, 120_001)
    step = grid[1] - grid[0]

    def cdf(values):
        return (values[:, None] <= grid[None]).mean(axis=0)

    expected = [np.mean([abs(cdf(a) - cdf(b)).sum() * step for b in oracles]) for a in f]
    np.testing.assert_allclose(audit.wasserstein(f, oracles), expected, atol=1e-3)


def test_w1_does_not_see_which_example_and_the_distance_does():
    f = RNG.standard_normal((1, 30))
    shuffled = RNG.permuted(f, axis=1)
    assert audit.wasserstein(f, shuffled)[0] < 1e-14
    distance = audit.prediction_distance(f, shuffled)
    np.testing.assert_allclose(distance, np.sqrt(((f - shuffled) ** 2).mean(axis=1)))
    assert distance[0] > 0.5


def test_a_shift_moves_both_by_itself():
    f = RNG.standard_normal((1, 30))
    for measure in (audit.wasserstein, audit.prediction_distance):
        np.testing.assert_allclose(measure(f + 2.5, f), [2.5])


@pytest.mark.parametrize("measure", [audit.wasserstein, audit.prediction_distance])
def test_what_is_not_finite_is_undefined_and_nothing_is_none(measure):
    f, oracles = np.zeros((2, 3)), np.zeros((2, 3))
    f[0, 1] = np.inf
    assert np.isnan(measure(f, oracles)).tolist() == [True, False]
    oracles[1, 0] = np.nan
    assert np.isnan(measure(f, oracles)).all()
    assert measure(np.zeros((2, 0)), np.zeros((2, 0))) is None
    assert np.isnan(audit.mae(f, np.zeros(3))).tolist() == [True, False]
    assert audit.mae(np.zeros((2, 0)), np.zeros(0)) is None
    with pytest.raises(audit.TooFew, match="no oracle to compare with"):
        measure(f, np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"for the same examples, got \(2, 3\) and \(2, 4\)"):
        measure(f, np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"mae: expected predictions \(models, n\)"):
        audit.mae(f, np.zeros(4))
