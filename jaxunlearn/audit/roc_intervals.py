"""How far an AUC and a true positive rate are known from the examples of one model.

DeLong's variance of the AUC comes from the *placements* of every signal among those of the other
kind,

    V_i = share of non-members below a_i,   W_j = share of members above b_j     ties 1/2
    var = var(V) / m + var(W) / k

and the interval is made on the logit scale, where it cannot leave [0, 1]. It says nothing where
all placements are equal (perfect separation; constant signals). There the interval of Newcombe is
taken: the values t from which the AUC is no further than z sqrt(v(t)), with

    v(t) = t (1 - t) [1 + h ((1 - t) / (2 - t) + t / (1 + t))] / (m k),   h = (m + k) / 2 - 1

the variance of Hanley and McNeil. (Newcombe's interval alone would be simpler, but covers 84 %
where the two kinds differ in size and spread.) Coverage for Gaussian signals of ten to a hundred
examples a kind, AUC 0.24 to 0.98, unequal spreads and sizes: 92 % to 98 % at a nominal 95 %.

True positive rates have Clopper-Pearson intervals at the threshold that was chosen.

All of these are over *examples*, with the model held fixed. How a number moves with the seed is
told by its spread over models.

Sources: E. DeLong, D. DeLong, D. Clarke-Pearson (1988), Biometrics 44; J. Hanley, B. McNeil (1982),
Radiology 143; R. Newcombe (2006), Statistics in Medicine 25, method 5.

| input                               | result                                       |
|-------------------------------------|----------------------------------------------|
| fewer than two examples of a kind   | `auc_interval`: TooFew                       |
| all signals equal                   | AUC 1/2 with a wide interval                 |
| perfect separation                  | one end at 1 (or 0), the other away from it  |
| a NaN signal                        | NaN for that model                           |
| 0 < fpr < 1/k                       | NaN, with NaN ends                           |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, expit, logit, ndtri
from scipy.stats import rankdata

from .binomial import check_confidence, clopper_pearson
from .roc import allowed_false_positives, as_signals, auc, tpr_at_fpr


class AucInterval(NamedTuple):
    """Where the area under the curve lies, model by model."""

    value: np.ndarray  # (M,) float64 in [0, 1]
    low: np.ndarray  # (M,)
    high: np.ndarray  # (M,)


class OperatingPoints(NamedTuple):
    """True positive rates at low false positive rates, model by model."""

    fpr: np.ndarray  # (F,) asked for
    tpr: np.ndarray  # (M, F); NaN where k non-members do not resolve the rate
    low: np.ndarray  # (M, F) Clopper-Pearson, at the threshold that was chosen
    high: np.ndarray  # (M, F)
    fpr_low: np.ndarray  # (F,) the true FPR of a threshold chosen so: Beta, without ties
    fpr_high: np.ndarray  # (F,)
    smallest: float  # 1/k, the smallest FPR that k non-members resolve


def _newcombe_lower(area: np.ndarray, m: int, k: int, z: float) -> np.ndarray:
    """The smallest t that is not rejected: area - t = z sqrt(v(t)), by bisection on [0, area]."""
    h = (m + k) / 2 - 1
    low, high = np.zeros_like(area), np.array(area, np.float64)
    for _ in range(60):
        t = (low + high) / 2
        v = t * (1 - t) * (1 + h * ((1 - t) / (2 - t) + t / (1 + t))) / (m * k)
        rejected = area - t > z * np.sqrt(v)
        low, high = np.where(rejected, t, low), np.where(rejected, high, t)
    return low


def auc_interval(
    members: ArrayLike, nonmembers: ArrayLike, *, confidence: float = 0.95
) -> AucInterval:
    """The area under the curve and its interval over examples (see the module).

        logit AUC +- z sqrt(var) / (AUC (1 - AUC))            DeLong; Newcombe where var = 0

    Args:
        members: (M, m) signals of m >= 2 members, or (m,). nonmembers: (M, k), or (k,); k >= 2.
        confidence: in (0, 1).

    Returns:
        `AucInterval`, `value` as `auc`; NaN where a signal is NaN.

    Raises:
        TooFew: one class only, or fewer than two of a kind. ValueError: shapes, confidence.

    Cost: three sorts for each model.

    Source: DeLong et al. (1988); Newcombe (2006).

    Example:
        >>> found = auc_interval([1.0, 2.0, 3.0], [-1.0, 0.0, 0.5])
        >>> found.value.item(), round(found.low.item(), 2), found.high.item()
        (1.0, 0.5, 1.0)
    """
    check_confidence(confidence, "auc_interval")
    members, nonmembers = as_signals(members, nonmembers, "auc_interval", least=2)
    m, k = members.shape[-1], nonmembers.shape[-1]
    both = rankdata(np.concatenate([members, nonmembers], axis=-1), axis=-1)
    above = (both[..., :m] - rankdata(members, axis=-1)) / k
    below = 1 - (both[..., m:] - rankdata(nonmembers, axis=-1)) / m
    area = auc(members, nonmembers)
    variance = above.var(axis=-1, ddof=1) / m + below.var(axis=-1, ddof=1) / k
    z = ndtri((1 + confidence) / 2)
    plain = (variance > 1e-15) & (area > 0) & (area < 1)
    a = np.where(plain, area, 0.5)
    half = z * np.sqrt(np.where(plain, variance, 1.0)) / (a * (1 - a))
    low, high = expit(logit(a) - half), expit(logit(a) + half)
    edge = np.where(np.isnan(area), 0.5, area)
    lost = np.where(np.isnan(area), np.nan, 0.0)
    return AucInterval(
        area,
        np.where(plain, low, _newcombe_lower(edge, m, k, z)) + lost,
        np.where(plain, high, 1 - _newcombe_lower(1 - edge, m, k, z)) + lost,
    )


def operating_points(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    fprs: tuple[float, ...] = (0.001, 0.01, 0.1),
    confidence: float = 0.95,
) -> OperatingPoints:
    """`tpr_at_fpr` at several rates, with exact intervals for one model.

        TPR      Clopper-Pearson on the m members, at the threshold chosen
        FPR      of the threshold that j of k non-members pass ~ Beta(j + 1, k - j)

    The two are apart: the first holds for the threshold as it was chosen, the second says how far
    the true false positive rate of such a threshold is from the one that was asked for.

    Args:
        members: (M, m); nonmembers: (M, k); or one-dimensional.
        fprs: rates in [0, 1]. confidence: in (0, 1), of each interval.

    Returns:
        `OperatingPoints`.

    Raises:
        TooFew, ValueError: as `tpr_at_fpr`; confidence out of range.

    Source: N. Carlini et al. (2022), arXiv:2112.03570; C. Clopper, E. Pearson (1934).

    Example:
        >>> found = operating_points([3.0, 2.0, 0.0], [1.0] * 10)
        >>> found.tpr.round(3), found.smallest
        (array([  nan,   nan, 0.667]), 0.1)
    """
    check_confidence(confidence, "operating_points")
    rates = [tpr_at_fpr(members, nonmembers, fpr=fpr) for fpr in fprs]
    members, nonmembers = as_signals(members, nonmembers, "operating_points")
    m, k = members.shape[-1], nonmembers.shape[-1]
    tpr = np.stack(rates, axis=-1)
    defined = np.isfinite(tpr)
    found = clopper_pearson(np.rint(np.where(defined, tpr, 0) * m), m, confidence=confidence)
    low, high = (np.where(defined, each, np.nan) for each in found)
    counts = [allowed_false_positives(fpr, k) for fpr in fprs]
    j = np.array([np.nan if each is None else min(each, k) for each in counts], np.float64)
    tail = (1 - confidence) / 2
    inner = ~(j >= k)  # else every example passes: the true rate is 1
    fpr_low, fpr_high = np.ones(len(j)), np.ones(len(j))
    fpr_low[inner] = betaincinv(j[inner] + 1, k - j[inner], tail)
    fpr_high[inner] = betaincinv(j[inner] + 1, k - j[inner], 1 - tail)
    return OperatingPoints(np.asarray(fprs, np.float64), tpr, low, high, fpr_low, fpr_high, 1 / k)
