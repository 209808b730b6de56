"""The mechanism whose epsilon is known: its curve by other roads, and its noise checked."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxunlearn.audit import TooFew, gaussian_delta, gaussian_epsilon, noise_p_value


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (1.0, 1.0), (0.5, 0.3), (4.0, 2.5)])
def test_delta_is_the_mass_beyond_e_to_the_epsilon(epsilon, mu):
    """By integration of the definition: sup over events of Pr_in(A) - e^eps Pr_out(A)."""
    norm = scipy.stats.norm

    def excess(x):
        return max(norm.pdf(x - mu) - np.exp(epsilon) * norm.pdf(x), 0.0)

    edge = epsilon / mu + mu / 2
    mass, _ = scipy.integrate.quad(excess, edge, edge + 12, limit=200)
    assert gaussian_delta(epsilon, mu) == pytest.approx(mass, rel=1e-6)


def test_epsilon_and_delta_are_inverse_to_each_other():
    mu, delta = np.array([[0.1], [1.0], [6.0]]), np.array([[1e-9, 1e-5, 1e-2]])
    epsilon = gaussian_epsilon(mu, delta)
    assert epsilon.shape == (3, 3)
    np.testing.assert_allclose(
        gaussian_delta(epsilon, mu), np.broadcast_to(delta, (3, 3)), rtol=1e-5
    )
    assert (np.diff(epsilon, axis=0) > 0).all() and (np.diff(epsilon, axis=1) < 0).all()


def test_the_curve_agrees_with_the_accountant():
    accounting = pytest.importorskip("dp_accounting")
    for epsilon, delta in ((1.0, 1e-5), (0.1, 1e-3), (8.0, 1e-6)):
        sigma = accounting.get_sigma_gaussian(epsilon, delta)
        assert gaussian_epsilon(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-4)


def test_the_edges_of_the_curve():
    assert gaussian_delta(0.5, 0.0) == 0 and gaussian_epsilon(0.0, 0.0) == 0
    assert gaussian_epsilon(1.0, 0.0) == np.inf
    assert gaussian_epsilon(1.0, 0.5) == 0  # delta(0) = 0.38
    assert 0 <= gaussian_delta(1e4, 1.0) < 1e-300  # nothing overflows


def test_the_right_noise_passes_and_a_wrong_scale_is_rejected():
    noise = np.random.default_rng(0).normal(0, 2.0, size=(300, 600))
    right = noise_p_value(noise, scale=2.0)
    assert right.shape == (300,)
    assert (right <= 0.05).mean() == pytest.approx(0.05, abs=0.035)  # a level, not a guess
    assert noise_p_value(noise * 2 / 3, scale=2.0).max() < 0.01
    assert noise_p_value(noise * 3 / 2, scale=2.0).max() < 0.01
    assert noise_p_value(noise + 1.0, scale=2.0).max() < 0.01  # a bias is noticed as well


def test_the_p_value_is_that_of_the_definition():
    x = np.array([-0.3, 0.1, 1.2])
    cdf = scipy.stats.norm.cdf(np.sort(x) / 1.5)
    distance = max((np.arange(1, 4) / 3 - cdf).max(), (cdf - np.arange(3) / 3).max())
    assert noise_p_value(x, scale=1.5) == pytest.approx(scipy.stats.kstwo.sf(distance, 3))
    assert np.isnan(noise_p_value([[1.0, np.inf], [0.5, 1.0]], scale=1.0)).tolist() == [True, False]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        gaussian_delta(-1.0, 1.0)
    with pytest.raises(ValueError, match="mu .* must be finite and at least 0"):
        gaussian_delta(1.0, np.inf)
    with pytest.raises(ValueError, match=r"delta must be in \[0, 1\]"):
        gaussian_epsilon(1.0, 2.0)
    with pytest.raises(ValueError, match="expected a positive scale, got 0"):
        noise_p_value([1.0], scale=0)
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 1\)"):
        noise_p_value([[[1.0]]], scale=1)
    with pytest.raises(TooFew, match="there is no number to test"):
        noise_p_value([], scale=1)
