"""A mechanism whose epsilon is known exactly: Gaussian noise, the ruler auditors are held against.

One number is published with noise N(0, s^2); a person's record moves it by at most D. With
mu = D / s the mechanism is (epsilon, delta)-private exactly for

    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

and the worlds N(0, s^2), N(D, s^2) attain it: an auditor that is shown samples of both must stay
below this curve with its stated confidence, and come near it when samples are many.

Source: B. Balle, Y.-X. Wang (2018), "Improving the Gaussian Mechanism for Differential Privacy",
arXiv:1805.06530, Theorem 8.

| input                        | result                                         |
|------------------------------|------------------------------------------------|
| mu = 0                       | delta 0 and epsilon 0: both worlds are equal   |
| delta = 0, mu > 0            | epsilon infinite                               |
| delta >= delta(0)            | epsilon 0                                      |
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr
from scipy.stats import kstest

from .errors import TooFew


def gaussian_delta(epsilon: ArrayLike, mu: ArrayLike) -> np.ndarray:
    """The smallest delta at which Gaussian noise is (epsilon, delta)-private.

        delta = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

    Args:
        epsilon: (...) at least 0.
        mu: (...) sensitivity over deviation of the noise, finite, at least 0; broadcasts.

    Returns:
        (...) float64 in [0, 1), falling in epsilon.

    Raises:
        ValueError: a negative epsilon, or mu out of range.

    Cost: elementwise; exact to about 1e-15 absolute.

    Source: Theorem 8 of arXiv:1805.06530.

    Example:
        >>> gaussian_delta(0.0, 1.0).round(4).item()
        0.3829
    """
    epsilon, mu = np.broadcast_arrays(np.asarray(epsilon, np.float64), _as_mu(mu))
    if not (epsilon >= 0).all():
        raise ValueError("gaussian_delta: epsilon must be at least 0.")
    m = np.where(mu > 0, mu, 1.0)
    with np.errstate(under="ignore"):
        above = np.exp(log_ndtr(m / 2 - epsilon / m))
        below = np.exp(epsilon + log_ndtr(-m / 2 - epsilon / m))
    return np.where(mu > 0, np.maximum(above - below, 0.0), 0.0)


def gaussian_epsilon(mu: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """The smallest epsilon at which Gaussian noise is (epsilon, delta)-private: the truth.

        epsilon = min { e >= 0 : delta(e) <= delta }

    Args:
        mu: (...) sensitivity over deviation of the noise, finite, at least 0.
        delta: (...) in [0, 1]; broadcasts.

    Returns:
        (...) float64, at least 0; see the table of the module.

    Raises:
        ValueError: mu or delta out of range.

    Cost: 100 bisections of the curve, vectorised, from the bracket
        [0, mu^2 / 2 + mu sqrt(2 log(1 / delta))].

    Source: arXiv:1805.06530.

    Example:
        >>> gaussian_epsilon(1.0, 1e-5).round(4).item()
        4.3772
    """
    mu, delta = np.broadcast_arrays(_as_mu(mu), np.asarray(delta, np.float64))
    if not ((delta >= 0) & (delta <= 1)).all():
        raise ValueError("gaussian_epsilon: delta must be in [0, 1].")
    safe = np.where(delta > 0, delta, 1.0)
    low, high = np.zeros(mu.shape), mu**2 / 2 + mu * np.sqrt(-2 * np.log(safe))
    for _ in range(100):
        middle = (low + high) / 2
        private = gaussian_delta(middle, mu) <= delta
        low, high = np.where(private, low, middle), np.where(private, middle, high)
    none = gaussian_delta(0.0, mu) <= delta
    return np.where(none, 0.0, np.where(delta == 0, np.inf, high))


def noise_p_value(noise: ArrayLike, *, scale: float) -> np.ndarray:
    """Is this the noise that was promised? Kolmogorov-Smirnov test against N(0, scale^2).

        sup_x | F_n(x) - Phi(x / scale) |    and its exact p-value

    For a method that claims a certificate because it added Gaussian noise: take what it published
    minus what it would have published without noise, in any number of coordinates.

    Args:
        noise: (n,) or (M, n) numbers, n >= 1, one row per model; rows are tested apart.
        scale: the deviation claimed, above 0.

    Returns:
        () or (M,) float64 in [0, 1]; NaN for a model with a non-finite number. With
        n = 1000 a deviation of 2/3 or 3/2 of the claim gives less than 1e-4 nearly always.

    Raises:
        TooFew: no number. ValueError: a scale that is not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> bool(noise_p_value(rng.normal(0, 3, 1000), scale=3.0) > 0.05)
        True
        >>> bool(noise_p_value(rng.normal(0, 2, 1000), scale=3.0) < 1e-4)
        True
    """
    if not scale > 0:
        raise ValueError(f"noise_p_value: expected a positive scale, got {scale}.")
    x = np.asarray(noise, np.float64)
    if x.ndim not in (1, 2):
        raise ValueError(f"noise_p_value: expected (n,) or (models, n), got shape {x.shape}.")
    if x.shape[-1] == 0:
        raise TooFew("noise_p_value: there is no number to test.")
    rows = np.atleast_2d(x)
    known = np.isfinite(rows).all(axis=-1)
    found = np.full(len(rows), np.nan)
    found[known] = [kstest(row / scale, "norm").pvalue for row in rows[known]]
    return found.reshape(x.shape[:-1])


def _as_mu(mu: ArrayLike) -> np.ndarray:
    values = np.asarray(mu, np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("mu (sensitivity / deviation of the noise) must be finite and at least 0.")
    return values
