"""Entry by entry: do a recommender before and after a deletion tell together what was deleted?

An attacker who holds the model f0 of before and f1 of after computes one number per entry (u, i),
larger = "was deleted":

    change      f0 - f1                     how far the prediction fell
    size        |f0 - f1|                   how far it moved at all
    residual    |r - f1| - |r - f0|         how much worse it fits the rating r
    alone       f1                          f0 is not needed
    misfit      -|r - f1|                   f0 is not needed: the rating is still fitted

Members are the deleted entries; others are entries that never were, or that were kept. The attack
has no target of 1/2: f0 and a true retraining differ too, by their seeds and by the deletion
itself, so that deletion *is* visible to who sees both. What matters is the distance to the value of
retrained models under the same attack, and for the attacks on f1 alone it must be theirs.

Source: Xu et al. (2023), arXiv:2302.06676, propose an evaluation by membership inference of which
only the abstract is known here: this one is a *reconstruction*. The ROC and its area are those of
`membership`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .roc import auc, tpr_at_fpr

ENTRY_SCORES = ("change", "size", "residual", "alone", "misfit")
_NEEDS_RATINGS = ("residual", "misfit")
FPR = 0.01  # at which the true positive rate is told


class EntryAttack(NamedTuple):
    """One attack on M models."""

    auc: np.ndarray  # (M,) float64 in [0, 1]
    tpr: np.ndarray  # (M,) float64 in [0, 1], at FPR <= 0.01


def entry_signal(
    before: ArrayLike, after: ArrayLike, *, score: str, ratings: ArrayLike | None = None
) -> np.ndarray:
    """The attacker's number for every model and entry; larger = more like a deleted entry.

    Args:
        before: (M, n) predictions f0. after: (M, n) predictions f1 of the same entries, paired.
        score: "change", "size", "residual", "alone" or "misfit".
        ratings: (n,) finite; needed for "residual" and "misfit" only.

    Returns:
        (M, n) float64; NaN for a model with any non-finite prediction.

    Raises:
        ValueError: an unknown score, shapes that do not match, no ratings where they are needed.

    Example:
        >>> entry_signal([[4.0, 3.0]], [[3.5, 3.5]], score="residual", ratings=[4.0, 4.0])
        array([[ 0.5, -0.5]])
    """
    if score not in ENTRY_SCORES:
        raise ValueError(f"entry_signal: score must be one of {ENTRY_SCORES}, got {score!r}.")
    f0, f1 = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if f0.ndim != 2 or f0.shape != f1.shape:
        raise ValueError(
            "entry_signal: expected before and after (models, entries) of the same models, got "
            f"{f0.shape} and {f1.shape}."
        )
    r = np.zeros(f0.shape[1]) if ratings is None else np.asarray(ratings, np.float64)
    if r.shape != f0.shape[1:] or (ratings is None and score in _NEEDS_RATINGS):
        raise ValueError(
            f"entry_signal: score {score!r} needs ratings ({f0.shape[1]},), got "
            f"{'none' if ratings is None else r.shape}."
        )
    signal = {
        "change": lambda: f0 - f1,
        "size": lambda: abs(f0 - f1),
        "residual": lambda: abs(r[None] - f1) - abs(r[None] - f0),
        "alone": lambda: f1,
        "misfit": lambda: -abs(r[None] - f1),
    }[score]
    seen = (f1,) if score in ("alone", "misfit") else (f0, f1)
    finite = np.all([np.isfinite(f).all(axis=1) for f in seen], axis=0)
    with np.errstate(invalid="ignore"):  # Inf - Inf, of models that get NaN below
        return np.where(finite[:, None], signal(), np.nan)


def entry_attack(members: ArrayLike, others: ArrayLike) -> EntryAttack | None:
    """AUC, and true positive rate at a false positive rate of at most 1 %, for M models.

    Args:
        members: (M, m) signals of deleted entries. others: (M, k) signals of other entries. With
            k < 100 no false positive at all is allowed.

    Returns:
        `EntryAttack`, or None without members or without others; NaN where a signal is NaN.

    Example:
        >>> entry_attack([[2.0, 3.0]], [[0.0, 2.5]])
        EntryAttack(auc=array([0.75]), tpr=array([0.5]))
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if members.shape[-1] == 0 or others.shape[-1] == 0:
        return None
    resolved = FPR if others.shape[-1] * FPR >= 1 else 0.0
    return EntryAttack(auc(members, others), tpr_at_fpr(members, others, fpr=resolved))
