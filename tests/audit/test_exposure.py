"""Canary exposure: ranks by hand, its law under ignorance, the fitted tail against integration."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.special import log_ndtr

from jaxunlearn.audit import TooFew, exposure, exposure_floor, largest_exposure
from jaxunlearn.audit.exposure import fit_skew_normal, skew_normal_log_cdf

WAYS = ("rank", "interpolated", "extrapolated")


def test_exposure_is_worked_by_hand():
    """Seven references: log2 8 - log2 rank; ranks 1, 4 (three below), 3.5 (a tie), 8."""
    references = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    found = exposure([0.5, 3.5, 3.0, 9.0], references)
    np.testing.assert_allclose(found, 3 - np.log2([1, 4, 3.5, 8]))
    assert largest_exposure(7) == 3 == found[0]


def test_exposure_is_one_number_per_model_and_canary():
    rng = np.random.default_rng(0)
    canaries, references = rng.normal(size=(3, 4)), rng.normal(size=(3, 50)).round(1)
    for how in WAYS:
        found = exposure(canaries, references, how=how)
        assert found.shape == (3, 4)
        for m in range(3):
            np.testing.assert_array_equal(exposure(canaries[m], references[m], how=how), found[m])
    for m in range(3):
        for c in range(4):
            below = sum(r < canaries[m, c] for r in references[m])
            equal = sum(r == canaries[m, c] for r in references[m])
            expected = np.log2(51 / (1 + below + equal / 2))
            assert exposure(canaries, references)[m, c] == pytest.approx(expected)


def test_ties_are_averaged_so_that_their_order_exposes_nobody():
    assert exposure([2.0], np.full(15, 2.0))[0] == pytest.approx(np.log2(16 / 8.5))
    low, high = 4 - np.log2(1), 4 - np.log2(16)  # what counting ties as above or below would give
    assert high < exposure([2.0], np.full(15, 2.0))[0] < low


def test_a_canary_that_the_model_does_not_know_has_the_exposure_of_the_floor():
    losses = np.random.default_rng(1).normal(size=(20_000, 32))
    found = exposure(losses[:, :1], losses[:, 1:])[:, 0]
    assert found.mean() == pytest.approx(exposure_floor(31), abs=0.04)
    assert exposure_floor(10**5) == pytest.approx(np.log2(np.e), abs=1e-3)
    for bits in (1, 2, 3, 4):  # -log2 of a p-value
        assert (found >= bits).mean() <= 2.0**-bits + 0.01
    swapped = exposure(-losses[:, :1], losses[:, 1:] - 3)[:, 0]  # a wrong sign is noticed
    assert abs(swapped.mean() - exposure_floor(31)) > 0.5


def test_better_known_canaries_are_more_exposed_in_every_way():
    references = np.random.default_rng(2).gamma(8.0, size=200)
    canaries = np.linspace(references.min() - 1, references.max() + 1, 50)
    for how in WAYS:
        found = exposure(canaries, references, how=how)
        assert (np.diff(found) <= 1e-12).all() and found[0] > found[-1] >= 0
        if how != "extrapolated":
            assert found[0] == largest_exposure(200) and found[-1] == 0


def test_interpolation_meets_the_ranks_at_the_references_and_is_straight_between():
    references = np.array([1.0, 2.0, 2.0, 4.0])
    at = exposure(references, references)
    np.testing.assert_allclose(exposure(references, references, how="interpolated"), at)
    middle = exposure([3.0], references, how="interpolated")[0]
    ranks = 5 / 2.0 ** at[[1, 3]]
    assert middle == pytest.approx(np.log2(5 / ranks.mean()))
    close = exposure([2.999, 3.001], references, how="interpolated")
    assert close[0] - close[1] == pytest.approx(0, abs=1e-2)
    assert exposure([0.5, 5.0], references, how="interpolated").tolist() == [np.log2(5), 0]


def test_extrapolation_agrees_with_ranks_inside_and_goes_on_outside():
    rng = np.random.default_rng(3)
    references = scipy.stats.skewnorm.rvs(3.0, 10, 2, size=4000, random_state=rng)
    inside = np.quantile(references, [0.01, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(exposure(inside, references, how="extrapolated"),
                               exposure(inside, references), atol=0.25)  # fmt: skip
    far = exposure([references.min() - 1.5], references, how="extrapolated")[0]
    assert far > largest_exposure(4000) + 3
    truth = -scipy.stats.skewnorm.logcdf(8.5, 3.0, 10, 2) / np.log(2)
    assert exposure([8.5], references, how="extrapolated")[0] == pytest.approx(truth, rel=0.15)
    moved = exposure(1000 + 50 * inside, 1000 + 50 * references, how="extrapolated")
    np.testing.assert_allclose(moved, exposure(inside, references, how="extrapolated"), rtol=1e-6)


@pytest.mark.parametrize("shape", [-4.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("z", [-12.0, -3.0, -0.5, 1.0])
def test_the_logarithm_of_the_fitted_law_is_right_in_its_tail(shape, z):
    def log_density(t):
        return np.log(2) + scipy.stats.norm.logpdf(t) + log_ndtr(shape * t)

    def relative(t):
        return np.exp(log_density(t) - log_density(z))

    mass = sum(
        scipy.integrate.quad(relative, z - far, z - near, epsabs=0)[0]
        for near, far in ((0, 0.05), (0.05, 0.5), (0.5, 3), (3, 12))
    )
    expected = log_density(z) + np.log(mass)
    assert skew_normal_log_cdf([z], shape)[0] == pytest.approx(expected, rel=1e-8)


def test_undefined_is_nan_where_it_is_and_none_where_nothing_is():
    references = np.random.default_rng(4).normal(size=(2, 20))
    references[1, 3] = np.nan
    for how in WAYS:
        found = exposure([[0.0, np.nan], [0.0, 0.0]], references, how=how)
        assert np.isnan(found).tolist() == [[False, True], [True, True]]
    assert exposure(np.zeros((2, 0)), references) is None
    assert np.isnan(exposure([1.0], np.ones(9), how="extrapolated")).all()
    infinite = np.r_[np.inf, np.arange(8.0)]
    assert exposure([-np.inf, np.inf], infinite).round(2).tolist() == [3.32, 0.07]
    assert exposure([-np.inf, np.inf], infinite, how="interpolated").round(2).tolist() == [
        3.32, 0.07,
    ]  # fmt: skip
    assert np.isnan(exposure([1.0], infinite, how="extrapolated")).all()
    assert np.isnan(exposure([np.inf], np.arange(9.0), how="extrapolated")).all()


def test_bad_input_is_refused():
    with pytest.raises(TooFew, match="0 references, 'rank' needs at least 1"):
        exposure([1.0], [])
    with pytest.raises(TooFew, match="7 references, 'extrapolated' needs at least 8. Draw more"):
        exposure([1.0], np.arange(7.0), how="extrapolated")
    with pytest.raises(ValueError, match=r"how must be one of .* got 'exact'"):
        exposure([1.0], [1.0], how="exact")
    with pytest.raises(ValueError, match=r"of the same models.* got \(2, 1\) and \(3, 5\)"):
        exposure(np.ones((2, 1)), np.ones((3, 5)))
    with pytest.raises(TooFew, match="expected at least 1 reference, got 0"):
        largest_exposure(0)


def test_the_fit_is_the_penalised_maximum_and_near_scipys_where_that_exists():
    x = scipy.stats.skewnorm.rvs(2.0, size=1500, random_state=np.random.default_rng(5))
    x = (x - x.mean()) / x.std()
    found = np.array(fit_skew_normal(x))
    np.testing.assert_allclose(found, scipy.stats.skewnorm.fit(x), rtol=0.1, atol=0.02)

    def objective(a, m, s):
        likelihood = scipy.stats.skewnorm.logpdf(x, a, m, s).sum()
        return likelihood - 0.87591 * np.log1p(0.85625 * a**2)

    best = objective(*found)
    for k in range(3):
        for step in (-1e-3, 1e-3):
            assert objective(*(found + step * (np.arange(3) == k))) < best


def test_a_law_that_ends_abruptly_does_not_expose_its_neighbours():
    """Of exponential losses the plain fit has an edge: a hair beyond it is 10^4 bits or more."""
    references = np.random.default_rng(6).exponential(size=31)
    canary = [references.min() - 0.1 * references.std()]
    shape, location, scale = scipy.stats.skewnorm.fit(references)
    plain = -scipy.stats.skewnorm.logcdf(canary[0], shape, location, scale) / np.log(2)
    assert shape > 1e3 or plain > 100
    assert 3 < exposure(canary, references, how="extrapolated")[0] < 15


@pytest.mark.parametrize("law", ["gumbel", "normal"])
def test_the_extrapolated_floor_is_near_that_of_ranks(law):
    losses = getattr(np.random.default_rng(7), law)(size=(150, 200))
    found = exposure(losses[:, :1], losses[:, 1:], how="extrapolated")
    assert found.mean() == pytest.approx(exposure_floor(199), abs=0.4)
