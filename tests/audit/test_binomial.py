"""Clopper-Pearson bounds and bands: SciPy, closed forms, coverage; and what would be wrong."""

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.audit import clopper_pearson, upper_band
from jaxunlearn.audit.binomial import BANDS, local_level


def coverage(p, n, interval):
    """Exact probability that the interval of the count holds p: no simulation."""
    k = np.arange(n + 1)
    low, high = interval(k, n)
    return scipy.stats.binom.pmf(k, n, p)[(low <= p) & (p <= high)].sum()


def wald(k, n):
    half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
    return k / n - half, k / n + half


@pytest.mark.parametrize(("side", "alternative"), [("both", "two-sided"), ("upper", "less"),
                                                  ("lower", "greater")])  # fmt: skip
def test_the_bounds_are_those_of_scipy(side, alternative):
    found = clopper_pearson([[0, 3], [11, 12]], 12, confidence=0.9, side=side)
    assert found.low.shape == found.high.shape == (2, 2)
    for i, k in np.ndenumerate([[0, 3], [11, 12]]):
        theirs = scipy.stats.binomtest(int(k), 12, alternative=alternative)
        low, high = theirs.proportion_ci(0.9, method="exact")
        assert (found.low[i], found.high[i]) == pytest.approx((low, high), abs=1e-12)


def test_nothing_seen_has_a_closed_form():
    high = clopper_pearson(0, 16, confidence=0.95, side="upper").high
    assert high == pytest.approx(1 - 0.05 ** (1 / 16), rel=1e-12)
    assert clopper_pearson(0, 16).low == 0 and clopper_pearson(16, 16).high == 1
    assert clopper_pearson(0, 0) == (0, 1)


def test_the_interval_covers_every_rate_and_the_textbook_one_does_not():
    rates = np.linspace(0.01, 0.99, 50)
    exact = [coverage(p, 20, lambda k, n: clopper_pearson(k, n)) for p in rates]
    assert min(exact) >= 0.95 and np.mean(exact) < 0.99
    assert min(coverage(p, 20, wald) for p in rates) < 0.5
    one_sided = [coverage(p, 20, lambda k, n: clopper_pearson(k, n, side="upper")) for p in rates]
    assert min(one_sided) >= 0.95


def test_a_wrong_tail_would_be_noticed():
    """The bound of one success fewer, or of alpha twice as large, no longer covers."""
    rates = np.linspace(0.02, 0.6, 40)

    def fewer(k, n):
        return 0 * k, clopper_pearson(np.maximum(k - 1, 0), n, side="upper").high

    def halved(k, n):
        return clopper_pearson(k, n, confidence=0.9)

    assert min(coverage(p, 20, fewer) for p in rates) < 0.9
    assert min(coverage(p, 20, halved) for p in rates) < 0.95


@pytest.mark.parametrize("how", BANDS)
def test_a_band_holds_at_all_thresholds_at_once(how):
    sample = np.sort(np.random.default_rng(0).random((20_000, 24)), axis=1)
    band = upper_band(24, confidence=0.8, how=how)
    # just below the (k + 1)-th smallest number, k are seen and the rate is the number itself
    missed = (sample > band[:24]).any(axis=1).mean()
    assert missed <= 0.2 + 0.01
    if how == "exact":
        assert missed == pytest.approx(0.2, abs=0.01)
    assert (np.diff(band) >= 0).all() and band[-1] == 1
    single = clopper_pearson(np.arange(25), 24, confidence=0.8, side="upper").high
    assert (sample > single[:24]).any(axis=1).mean() > 0.4  # a bound for one threshold is no band


def test_the_level_of_the_exact_band_is_right_for_two_numbers():
    level = local_level(2, 0.1)
    first, second = scipy.stats.beta.ppf(level, [1, 2], [2, 1])
    # both above the first, less both between the two
    assert (1 - first) ** 2 - (second - first) ** 2 == pytest.approx(0.9, abs=1e-9)
    assert local_level(1, 0.3) == 0.3


@pytest.mark.parametrize("n", [3, 40, 900])
def test_the_exact_band_lies_between_its_neighbours(n):
    single = clopper_pearson(np.arange(n + 1), n, confidence=0.95, side="upper").high
    exact, bonferroni = (upper_band(n, confidence=0.95, how=h) for h in ("exact", "bonferroni"))
    assert (single <= exact).all() and (exact <= bonferroni).all()
    assert (exact[:-1] < bonferroni[:-1]).all()


def test_the_uniform_width_of_dkw_is_massarts():
    band = upper_band(200, confidence=0.95, how="dkw")
    assert band[50] - 0.25 == pytest.approx(np.sqrt(np.log(20) / 400))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"successes must be whole numbers .* got 0\.5"):
        clopper_pearson(0.5, 10)
    with pytest.raises(ValueError, match="trials must be whole numbers of at least 0, got -1"):
        clopper_pearson(0, -1)
    with pytest.raises(ValueError, match="12 successes in 10 trials. Pass counts, not rates"):
        clopper_pearson([3, 12], 10)
    with pytest.raises(ValueError, match=r"side must be one of .* got 'left'"):
        clopper_pearson(1, 2, side="left")
    with pytest.raises(ValueError, match=r"clopper_pearson: expected a confidence .* got 95"):
        clopper_pearson(1, 2, confidence=95)
    with pytest.raises(ValueError, match=r"how must be one of .* got 'simes'"):
        upper_band(5, confidence=0.9, how="simes")
    with pytest.raises(ValueError, match="expected at least 1 trial, got 0"):
        upper_band(0, confidence=0.9)
    with pytest.raises(ValueError, match=r"dkw holds from confidence 1/2 on, got 0\.3"):
        upper_band(5, confidence=0.3, how="dkw")
