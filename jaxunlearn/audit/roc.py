"""ROC curves of a membership attack: the area, and the true positive rate at a low false one.

With signals a_1..a_m of members and b_1..b_k of non-members, larger = more like a member:

    AUC        = Pr(a > b) + 1/2 Pr(a = b)                                       by ranks
    TPR at FPR = share of members above the threshold that at most FPR k non-members pass

k non-members resolve false positive rates of 1/k and more. At a smaller one the true positive rate
is *undefined* (NaN), not 0; at FPR = 0 it means "above every non-member that was seen". Intervals
for these numbers are in `roc_intervals`.

Source: TPR at low FPR, N. Carlini et al. (2022), arXiv:2112.03570.

| input                               | result                                       |
|-------------------------------------|----------------------------------------------|
| no members, or no non-members       | TooFew (one class only)                      |
| all signals equal                   | AUC 1/2, TPR 0                               |
| a NaN signal                        | NaN for that model                           |
| 0 < fpr < 1/k                       | NaN                                          |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from .errors import TooFew


class RocCurve(NamedTuple):
    """Operating points of the attack, from (0, 0) to (1, 1)."""

    fpr: np.ndarray  # (K,) non-decreasing
    tpr: np.ndarray  # (K,) non-decreasing


def auc(members: ArrayLike, nonmembers: ArrayLike) -> np.ndarray:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted one half.

    Args:
        members: (M, m) signals of m >= 1 members, or (m,).
        nonmembers: (M, k) signals of k >= 1 non-members, or (k,).

    Returns:
        (M,) float64 (or a scalar array) in [0, 1]; NaN where a signal is NaN.

    Raises:
        TooFew: one class only. ValueError: the shapes do not fit.

    Cost: a sort of m + k numbers for each model.

    Example:
        >>> auc([1.0, 2.0], [0.0, 1.0]).item()
        0.875
    """
    members, nonmembers = as_signals(members, nonmembers, "auc")
    m, k = members.shape[-1], nonmembers.shape[-1]
    both = np.concatenate([members, nonmembers], axis=-1)
    ranks = rankdata(both, axis=-1, nan_policy="propagate")
    return (ranks[..., :m].sum(axis=-1) - m * (m + 1) / 2) / (m * k)


def roc_curve(members: ArrayLike, nonmembers: ArrayLike) -> RocCurve:
    """True against false positive rate at every threshold, for one model.

    Args:
        members: (m,) signals; nonmembers: (k,) signals. Examples with a signal at least the
            threshold are called members; ties move together.

    Returns:
        `RocCurve` with one point per distinct signal, and (0, 0).

    Raises:
        TooFew: one class only. ValueError: more than one model.

    Example:
        >>> roc_curve([2.0, 1.0], [1.0, 0.0]).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    members, nonmembers = as_signals(members, nonmembers, "roc_curve")
    if members.ndim != 1:
        raise ValueError(f"roc_curve: expected one model, signals (m,), got {members.shape}.")
    thresholds = np.unique(np.concatenate([members, nonmembers]))[::-1]

    def rate(signals):
        below = np.searchsorted(np.sort(signals), thresholds, side="left")
        return np.concatenate([[0.0], 1 - below / signals.size])

    return RocCurve(rate(nonmembers), rate(members))


def tpr_at_fpr(members: ArrayLike, nonmembers: ArrayLike, *, fpr: float = 0.1) -> np.ndarray:
    """Largest true positive rate of a threshold whose false positive rate is at most `fpr`.

    Args:
        members: (M, m); nonmembers: (M, k); or one-dimensional.
        fpr: in [0, 1]; 0 = above every non-member that is there.

    Returns:
        (M,) float64 in [0, 1]; NaN where a signal is NaN, and for all models where 0 < fpr < 1/k.
        No interpolation between thresholds.

    Raises:
        TooFew: one class only. ValueError: fpr out of range, shapes that do not fit.

    Source: N. Carlini et al. (2022), arXiv:2112.03570.

    Example:
        >>> tpr_at_fpr([3.0, 2.0, 0.0], [1.0] * 10).round(3).item()
        0.667
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"tpr_at_fpr: expected fpr in [0, 1], got {fpr}.")
    members, nonmembers = as_signals(members, nonmembers, "tpr_at_fpr")
    k = nonmembers.shape[-1]
    allowed = allowed_false_positives(fpr, k)
    if allowed is None:
        return np.full(members.shape[:-1], np.nan)
    if allowed >= k:
        rate = np.ones(members.shape[:-1])
    else:
        # all members strictly above the first non-member that may no longer be called one
        barrier = np.sort(nonmembers, axis=-1)[..., k - 1 - allowed]
        rate = (members > barrier[..., None]).mean(axis=-1)
    undefined = np.isnan(members).any(axis=-1) | np.isnan(nonmembers).any(axis=-1)
    return np.where(undefined, np.nan, rate)


def allowed_false_positives(fpr: float, nonmembers: int) -> int | None:
    """How many of k non-members may pass at a rate of at most `fpr`; None where 0 < fpr < 1/k.

    Example:
        >>> allowed_false_positives(0.1, 25), allowed_false_positives(0.001, 25)
        (2, None)
    """
    allowed = int(np.floor(fpr * nonmembers + 1e-9))
    return None if allowed == 0 < fpr else allowed


def as_signals(
    members: ArrayLike, nonmembers: ArrayLike, who: str, *, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert the signals of both kinds: (M, m) and (M, k), or (m,) and (k,)."""
    members = np.asarray(members, dtype=np.float64)
    nonmembers = np.asarray(nonmembers, dtype=np.float64)
    if members.ndim not in (1, 2) or members.shape[:-1] != nonmembers.shape[:-1]:
        raise ValueError(
            f"{who}: expected signals (models, examples) of the same models, got "
            f"{members.shape} and {nonmembers.shape}."
        )
    sizes = {"members": members.shape[-1], "non-members": nonmembers.shape[-1]}
    kind = min(sizes, key=sizes.__getitem__)
    if sizes[kind] == 0:
        raise TooFew(f"{who}: one class only: there are no {kind}.")
    if sizes[kind] < least:
        raise TooFew(f"{who}: {sizes[kind]} {kind}, needs at least {least} to tell a spread.")
    return members, nonmembers
