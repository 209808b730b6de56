"""How far a rate is known from a count: Clopper-Pearson bounds, and bands that hold everywhere.

k successes in n independent trials of unknown probability p. The exact one-sided bounds

    lower(k) = the p at which Pr(k or more)  = alpha  =  quantile of Beta(k, n - k + 1) at alpha
    upper(k) = the p at which Pr(k or fewer) = alpha  =  quantile of Beta(k + 1, n - k) at 1 - alpha

miss p with probability at most alpha each, whatever p and n. The two-sided interval takes alpha / 2
on either side.

An auditor looks at *every* threshold of a sample of n numbers before it speaks. The bound must then
hold for all counts k = 0..n at once, with probability 1 - alpha:

    exact        upper(k) at the one level beta for all k that gives 1 - alpha together
    bonferroni   upper(k) at the level alpha / n
    dkw          k / n + sqrt(log(1 / alpha) / (2 n))

For a threshold between the k-th and the (k + 1)-th smallest number, the rate below it is at most
the rate below the (k + 1)-th, and that is Beta(k + 1, n - k) distributed where the law is
continuous (smaller where it has atoms): a bound for each of the n order statistics covers all
thresholds, those chosen by looking at the data too. The events overlap so much that alpha / n each
is far more than is owed; beta is found by following the count of uniform numbers across all n
boundaries. For 95 % it is 4 times alpha / n at n = 64, 20 times at n = 1000. "dkw" is narrower in
the middle, and wide near 0 and 1, where audits live.

Sources: C. J. Clopper, E. S. Pearson (1934), Biometrika 26; R. H. Berk, D. H. Jones (1979), Z.
Wahrscheinlichkeitstheorie 47, for equal levels; crossing probabilities after A. Moscovich, B.
Nadler (2017), arXiv:1503.04363; P. Massart (1990), "The tight constant in the
Dvoretzky-Kiefer-Wolfowitz inequality", Annals of Probability 18.

| input               | result                                                |
|---------------------|-------------------------------------------------------|
| k = 0               | lower end exactly 0                                   |
| k = n               | upper end exactly 1                                   |
| n = 0               | [0, 1]: nothing is known                              |
| k or n not a count  | ValueError                                            |
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import betainccinv, betaincinv
from scipy.stats import poisson

SIDES = ("both", "lower", "upper")
BANDS = ("exact", "bonferroni", "dkw")
_STEPS = 64  # terms kept of a Poisson law of mean about 1; the rest is below 1e-40


class RateInterval(NamedTuple):
    """Where a rate lies, element by element."""

    low: np.ndarray  # (...) float64 in [0, 1]
    high: np.ndarray  # (...) float64 in [0, 1], low <= k / n <= high


def clopper_pearson(
    successes: ArrayLike, trials: ArrayLike, *, confidence: float = 0.95, side: str = "both"
) -> RateInterval:
    """Exact bounds on a rate.

        Pr(low <= p <= high) >= confidence    for every p and every number of trials

    Args:
        successes: (...) integers k in [0, n].
        trials: (...) integers n >= 0; broadcasts against `successes`.
        confidence: in (0, 1).
        side: "both"; "lower" (then high = 1) or "upper" (then low = 0), which spend the whole
            1 - confidence on one side.

    Returns:
        `RateInterval` of float64 arrays of the common shape.

    Raises:
        ValueError: counts out of range or not whole, an unknown side, a bad confidence.

    Cost: an inverse incomplete beta function per element and side, vectorised.

    Source: C. J. Clopper, E. S. Pearson (1934).

    Example:
        >>> found = clopper_pearson(0, 16, confidence=0.975, side="upper")
        >>> found.low.item(), round(found.high.item(), 4)
        (0.0, 0.2059)
    """
    check_confidence(confidence, "clopper_pearson")
    if side not in SIDES:
        raise ValueError(f"clopper_pearson: side must be one of {SIDES}, got {side!r}.")
    k, n = np.broadcast_arrays(_as_counts(successes, "successes"), _as_counts(trials, "trials"))
    if (k > n).any():
        worst = int(np.argmax(k - n))
        raise ValueError(
            f"clopper_pearson: {k.ravel()[worst]:g} successes in {n.ravel()[worst]:g} trials. "
            "Pass counts, not rates."
        )
    alpha = (1 - confidence) / (2 if side == "both" else 1)
    low, high = np.zeros(k.shape), np.ones(k.shape)
    if side != "upper":
        inner = k > 0
        low[inner] = betaincinv(k[inner], n[inner] - k[inner] + 1, alpha)
    if side != "lower":
        inner = k < n
        high[inner] = betainccinv(k[inner] + 1, n[inner] - k[inner], alpha)
    return RateInterval(low, high)


def upper_band(trials: int, *, confidence: float, how: str = "exact") -> np.ndarray:
    """Upper bounds on a rate for every count at once (see the module).

        Pr( for all thresholds t:  F(t) <= band[ #{x_i <= t} ] ) >= confidence

    Args:
        trials: n >= 1, size of the sample x_1..x_n.
        confidence: in (0, 1); of "dkw" at least 1/2, where its inequality begins to hold.
        how: "exact", "bonferroni" or "dkw".

    Returns:
        (n + 1,) float64, non-decreasing: entry k bounds the rate of which k of n were seen.

    Raises:
        ValueError: an unknown kind, no trial, a confidence out of range.

    Cost: "exact" follows n counts across n boundaries, ten times (n = 1000: a tenth of a second),
        and is remembered; the others are elementwise.

    Source: R. H. Berk, D. H. Jones (1979); P. Massart (1990).

    Example:
        >>> [round(upper_band(16, confidence=0.95, how=how)[0].item(), 3) for how in BANDS]
        [0.274, 0.303, 0.306]
    """
    check_confidence(confidence, "upper_band")
    if how not in BANDS:
        raise ValueError(f"upper_band: how must be one of {BANDS}, got {how!r}.")
    if trials < 1:
        raise ValueError(f"upper_band: expected at least 1 trial, got {trials}.")
    k = np.arange(trials + 1)
    if how != "dkw":
        alpha = 1 - confidence
        each = alpha / trials if how == "bonferroni" else local_level(trials, alpha)
        return clopper_pearson(k, trials, confidence=1 - each, side="upper").high
    if confidence < 0.5:
        raise ValueError(f"upper_band: dkw holds from confidence 1/2 on, got {confidence}.")
    return np.minimum(1.0, k / trials + np.sqrt(-np.log(1 - confidence) / (2 * trials)))


@functools.lru_cache(maxsize=256)
def local_level(trials: int, alpha: float) -> float:
    """The level beta of every single bound at which all n of them hold with 1 - alpha.

        Pr( U_(k) >= quantile of Beta(k, n - k + 1) at beta, for k = 1..n ) = 1 - alpha

    Args:
        trials: n >= 1 uniform numbers, U_(k) the k-th smallest.
        alpha: in (0, 1).

    Returns:
        beta in [alpha / n, alpha].

    Example:
        >>> round(local_level(1, 0.05), 6), round(local_level(64, 0.05) / (0.05 / 64), 1)
        (0.05, 3.8)
    """
    if trials == 1:
        return alpha

    def excess(log_level: float) -> float:
        return 1 - _stays_above(trials, np.exp(log_level)) - alpha

    low, high = np.log(alpha / trials), np.log(alpha)
    return float(np.exp(np.asarray(brentq(excess, low, high, xtol=1e-9))))


def _stays_above(n: int, level: float) -> float:
    """Pr(U_(k) >= b_k for all k), b_k the quantile of its law at `level`.

    That is #{U <= b_k} < k for all k. The count is followed as a Poisson process of rate n, and
    conditioned at the end on having made n steps: every term is positive, nothing cancels.
    """
    k = np.arange(1, n + 1)
    boundary = betaincinv(k, n - k + 1, level)
    means = n * np.diff(boundary, prepend=0.0)
    steps = poisson.pmf(np.arange(min(_STEPS, n)), means[:, None])
    count = np.ones(1)
    for i in range(n):
        count = np.convolve(count, steps[i])[: i + 1]
    rest = poisson.pmf(n - np.arange(n), n * (1 - boundary[-1]))
    return float(count @ rest[: count.size] / poisson.pmf(n, n))


def check_confidence(confidence: float, caller: str) -> None:
    """Raises ValueError unless 0 < confidence < 1."""
    if not 0 < confidence < 1:
        raise ValueError(
            f"{caller}: expected a confidence strictly between 0 and 1, got {confidence}."
        )


def _as_counts(values: ArrayLike, name: str) -> np.ndarray:
    counts = np.asarray(values, dtype=np.float64)
    if not ((counts >= 0) & (counts == np.rint(counts))).all():
        raise ValueError(
            f"clopper_pearson: {name} must be whole numbers of at least 0, got {values!r}."
        )
    return counts
