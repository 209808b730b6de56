"""Canary exposure: how far up the list of all possible secrets did the planted one come?

Secrets are drawn at random from a large space; one of them, the canary, is trained on (and then
unlearned), others are references that no model ever saw. A model ranks all by its loss:

    exposure = log2 |R| - log2 rank                     bits; rank 1 = smallest loss

with |R| the references and the canary itself. Equal losses share their mean rank. Three ways to
take the rank of a loss x among n references:

    rank           1 + #{smaller} + #{equal} / 2        a step function; at most log2(n + 1)
    interpolated   straight lines between the reference losses, the same at each of them
    extrapolated   -log2 F(x), F a skew-normal law fitted to the references: no upper end

For a model that knows nothing of the canary its rank is uniform: Pr(exposure >= e) <= 2^-e, so the
exposure of one canary is -log2 of a p-value, and its mean is not 0 but close to log2 e = 1.44 bits
(`exposure_floor`). Compare with the exposure under the oracles, which never saw the canary either.
The extrapolated number is only as good as the fit in a tail where there is no reference: with few
of them, unknown canaries come out more exposed than they are. Read it beside the oracles'.

Source: N. Carlini, C. Liu, U. Erlingsson, J. Kos, D. Song (2019), "The Secret Sharer", sections 4.2
to 4.4, arXiv:1802.08232. Departures: 1. the canary counts itself, so that exposure is finite and at
least 0; 2. ties are averaged (a canary among equals is not exposed by their order); 3. canaries are
no references of each other; 4. the fit maximises the likelihood less a penalty on the shape,
A. Azzalini, R. Arellano-Valle (2013), "Maximum penalized likelihood estimation for skew-normal and
skew-t distributions": the plain estimate is infinite for some samples, whose law then ends abruptly
and gives a canary just beyond 10^12 bits.

| input                                        | result                              |
|----------------------------------------------|-------------------------------------|
| no canary                                    | None                                |
| no reference; "extrapolated" with fewer than 8 | TooFew                              |
| all losses equal                             | about 1 bit; NaN where extrapolated |
| a NaN among the references of a model        | NaN for that model                  |
| a NaN canary                                 | NaN for that canary                 |
| infinite losses                              | ranked as such; NaN where fitted    |
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_ndtr, logsumexp
from scipy.stats import skewnorm

from .errors import TooFew

WAYS = ("rank", "interpolated", "extrapolated")
_FEWEST = 8  # references for a law of three parameters
_PENALTY = (0.87591, 0.85625)  # of Azzalini and Arellano-Valle
_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(60)


def exposure(canaries: ArrayLike, references: ArrayLike, *, how: str = "rank") -> np.ndarray | None:
    """Exposure of every canary in every model, in bits.

        log2(n + 1) - log2 rank(canary among the n references)

    Args:
        canaries: (M, c) or (c,) losses of the planted secrets; smaller = better known.
        references: (M, n) or (n,) losses of secrets from the same space that were never trained
            on, under the same models.
        how: "rank", "interpolated" or "extrapolated" (see the module).

    Returns:
        (M, c) or (c,) float64: in [0, log2(n + 1)], or at least 0 where extrapolated; None for
        c = 0.

    Raises:
        TooFew: too few references. ValueError: an unknown way, other shapes, unequal models.

    Cost: a sort per model; "extrapolated" fits one law per model (milliseconds).

    Source: arXiv:1802.08232, definitions 4 to 6.

    Example:
        >>> exposure([0.5, 2.5, 9.0], [1.0, 2.0, 3.0]).round(3).tolist()
        [2.0, 0.415, 0.0]
    """
    if how not in WAYS:
        raise ValueError(f"exposure: how must be one of {WAYS}, got {how!r}.")
    c, r = np.asarray(canaries, np.float64), np.asarray(references, np.float64)
    if c.ndim not in (1, 2) or c.shape[:-1] != r.shape[:-1]:
        raise ValueError(
            "exposure: expected losses (models, canaries) and (models, references) of the same "
            f"models, or one model (c,) and (n,), got {c.shape} and {r.shape}."
        )
    if c.shape[-1] == 0:
        return None
    least = _FEWEST if how == "extrapolated" else 1
    if r.shape[-1] < least:
        raise TooFew(
            f"exposure: {r.shape[-1]} references, {how!r} needs at least {least}. "
            "Draw more secrets that are not trained on."
        )
    one = {"rank": _by_rank, "interpolated": _interpolated, "extrapolated": _extrapolated}[how]
    rows = [
        one(x, reference) if not np.isnan(reference).any() else np.full(x.shape, np.nan)
        for x, reference in zip(np.atleast_2d(c), np.sort(np.atleast_2d(r)), strict=True)
    ]
    return np.stack(rows).reshape(c.shape)


def largest_exposure(references: int) -> float:
    """What n references can show at most, in bits: log2(n + 1).

    Example:
        >>> largest_exposure(1023)
        10.0
    """
    return float(np.log2(_at_least_one(references) + 1))


def exposure_floor(references: int) -> float:
    """Mean exposure of a canary that the model knows nothing of, in bits.

        log2(n + 1) - log2((n + 1)!) / (n + 1)         -> log2 e = 1.4427 as n grows

    Args:
        references: n >= 1.

    Example:
        >>> exposure_floor(1), round(exposure_floor(1000), 3)
        (0.5, 1.436)
    """
    n = _at_least_one(references) + 1
    return float(np.log2(n) - np.log2(np.arange(1, n + 1)).mean())


def _at_least_one(references: int) -> int:
    if references < 1:
        raise TooFew(f"exposure: expected at least 1 reference, got {references}.")
    return references


def _by_rank(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    below = np.searchsorted(reference, x, side="left")
    below_or_equal = np.searchsorted(reference, x, side="right")
    return _bits(1 + (below + below_or_equal) / 2, reference.size, x)


def _interpolated(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    known, counts = np.unique(reference, return_counts=True)
    at = 1 + np.cumsum(counts) - counts / 2  # their own ranks, as `_by_rank` has them
    inner = (x >= known[0]) & (x <= known[-1])
    finite = np.clip(known, -1e300, 1e300)
    lines = np.interp(np.clip(x, -1e300, 1e300), finite, at)
    outside = np.where(x < known[0], 1.0, reference.size + 1.0)
    return _bits(np.where(inner, lines, outside), reference.size, x)


def _bits(rank: np.ndarray, references: int, x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), np.nan, np.log2(references + 1) - np.log2(rank))


def _extrapolated(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """-log2 of the fitted law; NaN where no law can be fitted."""
    known = np.isfinite(x)
    if not np.isfinite(reference).all() or reference[0] == reference[-1]:
        return np.full(x.shape, np.nan)
    centre, spread = reference.mean(), reference.std()
    shape, location, scale = fit_skew_normal((reference - centre) / spread)
    z = ((np.where(known, x, centre) - centre) / spread - location) / scale
    return np.where(known, np.maximum(-skew_normal_log_cdf(z, shape) / np.log(2), 0.0), np.nan)


def fit_skew_normal(values: np.ndarray) -> tuple[float, float, float]:
    """Shape, location and scale of a skew-normal law, by penalised maximum likelihood.

        max  sum_i log[ 2 / s phi(z_i) Phi(a z_i) ] - 0.876 log(1 + 0.856 a^2),   z = (x - m) / s

    Args:
        values: (n,) float64, finite, standardised (mean 0, deviation 1), not all equal.

    Returns:
        a, m, s: finite.

    Example:
        >>> a, m, s = fit_skew_normal(np.linspace(-1.7, 1.7, 101))
        >>> abs(round(a, 3)), round(s, 2)
        (0.0, 0.99)
    """
    start = np.asarray(skewnorm.fit(values, method="MM"), np.float64)  # by moments

    def objective(unknowns: np.ndarray) -> tuple[float, np.ndarray]:
        a, m, log_s = unknowns
        z = (values - m) / np.exp(log_s)
        log_mass = log_ndtr(a * z)
        hazard = np.exp(-((a * z) ** 2) / 2 - log_mass) / np.sqrt(2 * np.pi)
        loss = (z**2 / 2 - log_mass + log_s).sum() + _PENALTY[0] * np.log1p(_PENALTY[1] * a**2)
        pull = z - a * hazard
        in_shape = 2 * _PENALTY[0] * _PENALTY[1] * a / (1 + _PENALTY[1] * a**2)
        gradient = [
            in_shape - (hazard * z).sum(),
            -pull.sum() / np.exp(log_s),
            (1 - pull * z).sum(),
        ]
        return float(loss), np.array(gradient)

    first = np.array([np.clip(start[0], -5, 5), start[1], np.log(start[2])])
    a, m, log_s = minimize(objective, first, jac=True, method="BFGS").x
    return float(a), float(m), float(np.exp(log_s))


def skew_normal_log_cdf(z: ArrayLike, shape: float) -> np.ndarray:
    """log F(z) of the standard skew-normal law, right in the far lower tail as well.

        F(z) = integral over s >= 0 of  2 phi(z - s) Phi(shape (z - s))

    Where the density falls faster than e^(s) towards the tail, s = u / rate and Gauss-Laguerre
    nodes in u give it in logarithms; elsewhere F is large and SciPy's is used.

    Args:
        z: (k,) float64, finite.
        shape: skewness parameter; 0 is the normal law.

    Returns:
        (k,) float64, at most 0.

    Example:
        >>> bool(np.isclose(skew_normal_log_cdf([-40.0], 0.0)[0], log_ndtr(-40.0)))
        True
    """
    z = np.asarray(z, np.float64)
    with np.errstate(divide="ignore"):
        near = np.log(np.clip(skewnorm.cdf(z, shape), 0.0, 1.0))
    hazard = np.exp(-(shape**2) * z**2 / 2 - log_ndtr(shape * z)) / np.sqrt(2 * np.pi)
    rate = -z + shape * hazard  # d log density / d z
    tail = rate > 2
    points = z[tail, None] - _NODES / rate[tail, None]
    density = np.log(2 / np.sqrt(2 * np.pi)) - points**2 / 2 + log_ndtr(shape * points)
    far = logsumexp(density + _NODES, axis=1, b=_WEIGHTS) - np.log(rate[tail])
    result = near.copy()
    result[tail] = far
    return result
