"""Cuts through two samples of scores: counts on either side, and the best cut for an epsilon.

    called a member:  score >= t        FP = #{non-members called},  FN = #{members not called}

Upper bounds on both rates are tables by count, so that every cut of every column costs a look-up.
Ties move together: no cut lies within them. All arrays are (models, columns).
"""

from collections.abc import Sequence

import numpy as np

from .binomial import BANDS, clopper_pearson, upper_band


def region(fpr: np.ndarray, fnr: np.ndarray, delta: float) -> np.ndarray:
    """What a cut with these rates says of epsilon.

        max( log((1 - delta - FPR) / FNR),  log((1 - delta - FNR) / FPR) )

    Args:
        fpr, fnr: (...) in (0, 1]. delta: in [0, 1).

    Returns:
        (...) float64; at most 0 (down to -inf) where nothing can be said.

    Example:
        >>> region(np.array(0.1), np.array(0.3), 0.0).round(4).item()
        1.9459
    """
    room = np.maximum(1 - delta - np.stack([fpr, fnr]), 0.0)
    with np.errstate(divide="ignore"):
        return (np.log(room) - np.log(np.stack([fnr, fpr]))).max(axis=0)


def rate_tables(runs: Sequence[int], *, confidence: float, how: str) -> list[np.ndarray]:
    """Upper bounds on a rate by count, one table (n + 1,) per number of runs n.

    Args:
        runs: numbers of runs.
        confidence: of each table.
        how: "exact", "bonferroni" and "dkw" hold for all cuts at once; anything else is
            Clopper-Pearson, for a cut that was chosen elsewhere.

    Example:
        >>> rate_tables([1], confidence=0.9, how="given")[0].round(3).tolist()
        [0.9, 1.0]
    """
    if how in BANDS:
        return [upper_band(n, confidence=confidence, how=how) for n in runs]
    return [
        clopper_pearson(np.arange(n + 1), n, confidence=confidence, side="upper").high for n in runs
    ]


def value_at(
    members: np.ndarray,
    nonmembers: np.ndarray,
    cut: np.ndarray,
    tables: Sequence[np.ndarray],
    delta: float,
) -> np.ndarray:
    """The region at one cut per column, counted on these scores.

    Args:
        members: (N, k). nonmembers: (K, k). cut: (k,) or ().
        tables: bounds by count, of false positives (K + 1,) and false negatives (N + 1,).
        delta: in [0, 1).

    Returns:
        (k,) float64.
    """
    alarms, misses = (nonmembers >= cut).sum(axis=0), (members < cut).sum(axis=0)
    return region(tables[0][alarms], tables[1][misses], delta)


def best_cut(
    members: np.ndarray, nonmembers: np.ndarray, tables: Sequence[np.ndarray], delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The cut with the largest region, for each column: (value (k,), cut (k,)).

    The cut is half-way between the smallest score that is called and the largest that is not.
    Arguments as for `value_at`. Cost: a sort.

    Example:
        >>> tables = rate_tables([2, 2], confidence=0.5, how="given")
        >>> best_cut(np.array([[3.0], [4.0]]), np.array([[0.0], [1.0]]), tables, 0.0)[1]
        array([2.])
    """
    both = np.concatenate([members, nonmembers])
    order = np.argsort(-both, axis=0, kind="stable")
    score = np.take_along_axis(both, order, axis=0)
    hits = np.cumsum(order < len(members), axis=0)  # members among the first 1, 2, ...
    alarms = np.arange(1, len(both) + 1)[:, None] - hits
    value = region(tables[0][alarms], tables[1][len(members) - hits], delta)
    value[:-1][score[:-1] == score[1:]] = -np.inf
    best = value.argmax(axis=0)[None]
    after = np.minimum(best + 1, len(both) - 1)
    above, below = (np.take_along_axis(score, i, axis=0)[0] for i in (best, after))
    return np.take_along_axis(value, best, axis=0)[0], 0.5 * above + 0.5 * below


def better_of(
    tried: Sequence[tuple[np.ndarray, np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best of (value (k,), cut (k,), sign) for each column; the first of equals.

    Example:
        >>> zero, one = np.zeros(1), np.ones(1)
        >>> better_of([(zero, zero, 1), (one, one, -1)])
        (array([1.]), array([1.]), array([-1]))
    """
    value, cut = tried[0][:2]
    sign = np.full(value.shape, tried[0][2])
    for other, other_cut, other_sign in tried[1:]:
        better = other > value
        value, cut = np.where(better, other, value), np.where(better, other_cut, cut)
        sign = np.where(better, other_sign, sign)
    return value, cut, sign
