"""Intervals of an AUC and of true positive rates: by loop, by SciPy, at the edges, coverage."""

import numpy as np
import pytest
from scipy.stats import beta, binomtest, norm

from jaxunlearn.audit import TooFew, auc, auc_interval, operating_points, tpr_at_fpr


def test_the_auc_interval_is_that_of_delong_by_pairs():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(1, 1, 12).round(1), rng.normal(size=9).round(1)
    pairs = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    value = pairs.mean()
    variance = pairs.mean(1).var(ddof=1) / 12 + pairs.mean(0).var(ddof=1) / 9
    half = norm.ppf(0.95) * np.sqrt(variance) / (value * (1 - value))
    ends = [1 / (1 + np.exp(-(np.log(value / (1 - value)) + side * half))) for side in (-1, 1)]
    found = auc_interval(members, nonmembers, confidence=0.9)
    assert found.value == pytest.approx(value)
    assert [found.low, found.high] == pytest.approx(ends)
    halved = auc_interval(members, nonmembers, confidence=0.5)
    assert found.low < halved.low < value < halved.high < found.high


def test_perfect_separation_and_constant_signals_keep_an_interval_of_their_own():
    up = auc_interval(np.arange(10.0) + 100, np.arange(10.0))
    down = auc_interval(np.arange(10.0), np.arange(10.0) + 100)
    assert (up.value, up.high, down.value, down.low) == (1, 1, 0, 0)
    assert 0.7 < up.low < 0.9 and down.high == pytest.approx(1 - up.low)
    flat = auc_interval(np.ones(8), np.ones(8))
    assert flat.value == 0.5 and flat.low < 0.3 and flat.high == pytest.approx(1 - flat.low)
    # Newcombe's equation: the end is where the distance is z deviations at the end itself
    t, m, k = float(up.low), 10, 10
    h = (m + k) / 2 - 1
    v = t * (1 - t) * (1 + h * ((1 - t) / (2 - t) + t / (1 + t))) / (m * k)
    assert 1 - t == pytest.approx(norm.ppf(0.975) * np.sqrt(v), rel=1e-6)


def test_swapped_kinds_mirror_the_interval_and_a_broken_model_has_none():
    rng = np.random.default_rng(1)
    members, nonmembers = rng.normal(1, 1, (3, 20)), rng.normal(size=(3, 15))
    members[2, 3] = np.nan
    found, swapped = auc_interval(members, nonmembers), auc_interval(nonmembers, members)
    np.testing.assert_allclose(swapped.low, 1 - found.high)
    np.testing.assert_allclose(swapped.high, 1 - found.low)
    assert all(np.isnan(field).tolist() == [False, False, True] for field in found)
    np.testing.assert_array_equal(found.value, auc(members, nonmembers))


@pytest.mark.parametrize(
    ("shift", "spread", "m", "k"), [(0, 1, 40, 40), (1, 1, 20, 60), (0, 3, 20, 80), (2, 1, 12, 12)]
)
def test_the_auc_interval_covers_what_it_says_where_a_narrower_one_does_not(shift, spread, m, k):
    rng = np.random.default_rng(2)
    members, nonmembers = rng.normal(shift, spread, (600, m)), rng.normal(size=(600, k))
    truth = norm.cdf(shift / np.sqrt(1 + spread**2))
    found = auc_interval(members, nonmembers)
    assert 0.92 <= ((found.low <= truth) & (truth <= found.high)).mean() <= 0.99
    half = 0.6 * (found.high - found.low) / 2  # a variance forgotten to 0.36 of itself
    centre = (found.high + found.low) / 2
    assert (abs(truth - centre) <= half).mean() < 0.88


def test_low_rates_have_the_intervals_of_scipy_and_say_what_is_resolved():
    rng = np.random.default_rng(3)
    members, nonmembers = rng.normal(1.5, 1, (2, 40)), rng.normal(size=(2, 250))
    found = operating_points(members, nonmembers)
    assert found.smallest == 1 / 250
    assert np.isnan(found.tpr[:, 0]).all() and np.isnan(found.low[:, 0]).all()
    assert np.isnan(found.high[:, 0]).all() and np.isnan(found.fpr_high[0])
    for m in range(2):
        for column, fpr in ((1, 0.01), (2, 0.1)):
            rate = tpr_at_fpr(members, nonmembers, fpr=fpr)[m]
            expected = binomtest(round(rate * 40), 40).proportion_ci(method="exact")
            assert found.tpr[m, column] == rate
            assert (found.low[m, column], found.high[m, column]) == pytest.approx(expected)
            allowed = {0.01: 2, 0.1: 25}[fpr]
            ends = beta.ppf([0.025, 0.975], allowed + 1, 250 - allowed)
            assert (found.fpr_low[column], found.fpr_high[column]) == pytest.approx(tuple(ends))


def test_the_true_false_positive_rate_is_covered_and_one_count_off_is_noticed():
    rng = np.random.default_rng(4)
    nonmembers = rng.normal(size=(4000, 50))
    barrier = np.sort(nonmembers, axis=1)[:, 50 - 1 - 5]  # what FPR 0.1 of 50 allows
    rates = norm.sf(barrier)
    found = operating_points(np.zeros(3), nonmembers[0], fprs=(0.1,))
    assert ((found.fpr_low <= rates) & (rates <= found.fpr_high)).mean() == pytest.approx(
        0.95, abs=0.012
    )
    wrong = beta.ppf([0.025, 0.975], 5, 50 - 5 + 1)
    assert abs(((wrong[0] <= rates) & (rates <= wrong[1])).mean() - 0.95) > 0.012


def test_a_rate_of_one_and_of_zero_and_broken_models():
    members = np.array([[3.0, 2.0], [np.nan, 1.0]])
    found = operating_points(members, np.zeros((2, 5)), fprs=(0.0, 0.5, 1.0))
    np.testing.assert_array_equal(found.tpr, [[1, 1, 1], [np.nan] * 3])
    assert found.high[0, 0] == 1 and 0.1 < found.low[0, 0] < 0.2
    assert found.fpr_low[2] == 1 == found.fpr_high[2] and found.fpr_high[0] < 0.6


def test_too_few_examples_and_bad_confidences_are_refused():
    with pytest.raises(TooFew, match="auc_interval: 1 members, needs at least 2 to tell a spread"):
        auc_interval([1.0], [1.0, 2.0])
    with pytest.raises(TooFew, match="one class only: there are no non-members"):
        operating_points([1.0], [])
    for call in (auc_interval, operating_points):
        with pytest.raises(ValueError, match="confidence strictly between 0 and 1, got 1"):
            call([1.0, 2.0], [1.0, 2.0], confidence=1)
