"""The simple membership attack: can one number per example tell forgotten from never seen?

An attacker computes one signal per example from outputs and label, larger = "looks like a member"
(`signals`). Members are the forgotten *training* examples, non-members held-out examples of the
same class distribution (or else the attack learns the class). Reported, for every model:

    auc         Pr(member signal > non-member signal) + 1/2 Pr(equal), by ranks
    accuracy    of a logistic regression on the signal, balanced, cross-validated in 5 folds
    tpr         largest true positive rate at a false positive rate of at most 0.1, 0.01, 0.001

None of them has a target of 1/2 in itself: what matters is the distance to the value of *retrained*
models under the same attack, on either side (an AUC far below 1/2 is a leak as well). The privacy
of the retained data is the same attack with retained examples for members: forgetting some can
expose others.

Sources: logistic regression on losses, M. Kurmanji et al. (2023), arXiv:2302.09880. Departure: the
larger kind is subsampled, so that guessing scores 1/2.

| input                                 | result                                             |
|---------------------------------------|----------------------------------------------------|
| no members, or no non-members         | `attack`: None; `attack_accuracy`: TooFew          |
| fewer than `folds` examples of a kind | TooFew                                             |
| fewer than 1/FPR non-members          | that tpr is NaN: undefined, not 0                  |
| all signals equal                     | auc 1/2, accuracy 1/2, tpr 0                       |
| a model with non-finite outputs       | NaN for that model                                 |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .roc import as_signals, auc, tpr_at_fpr
from .signals import attack_signal


class Attack(NamedTuple):
    """One attack on M models."""

    auc: np.ndarray  # (M,) float64 in [0, 1]
    accuracy: np.ndarray  # (M,) float64 in [0, 1]
    tpr: np.ndarray  # (M,) float64 in [0, 1], at FPR <= 0.1; NaN below 10 non-members
    tpr_at_percent: np.ndarray  # (M,) at FPR <= 0.01; NaN below 100 non-members
    tpr_at_permille: np.ndarray  # (M,) at FPR <= 0.001; NaN below 1000 non-members


def fit_logistic(x: np.ndarray, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of the ridge logistic regression above, one per leading axis of x.

    Newton's method with steps no longer than 1; the objective is strictly convex, and 50 steps from
    (0, 0) reach the optimum to rounding for a standardised signal.

    Args:
        x: (..., n) signals, standardised. sign: (n,) of +1 and -1.

    Returns:
        (...,) slope and (...,) intercept.
    """
    w, b = np.zeros(x.shape[:-1]), np.zeros(x.shape[:-1])
    for _ in range(50):
        activation = np.clip(sign * (w[..., None] * x + b[..., None]), -500, 500)
        miss = 1 / (1 + np.exp(activation))
        pull, curve = -sign * miss, miss * (1 - miss)
        g_w, g_b = (pull * x).sum(-1) + w, pull.sum(-1)
        h_ww, h_wb, h_bb = (curve * x * x).sum(-1) + 1, (curve * x).sum(-1), curve.sum(-1)
        determinant = np.maximum(h_ww * h_bb - h_wb**2, 1e-12)
        step_w = (h_bb * g_w - h_wb * g_b) / determinant
        step_b = (h_ww * g_b - h_wb * g_w) / determinant
        shorter = 1 / np.maximum(1.0, np.hypot(step_w, step_b))
        w, b = w - shorter * step_w, b - shorter * step_b
    return w, b


def balanced_signals(
    members: np.ndarray, nonmembers: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """As many of each kind, drawn without replacement: (..., 2 size) signals, (2 size,) signs."""
    size = min(members.shape[-1], nonmembers.shape[-1])
    chosen = members[..., rng.permutation(members.shape[-1])[:size]]
    others = nonmembers[..., rng.permutation(nonmembers.shape[-1])[:size]]
    return np.concatenate([chosen, others], axis=-1), np.repeat([1.0, -1.0], size)


def logistic_side(x: np.ndarray, sign: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """+1, 0 or -1 for (..., t) targets, by the logistic regression on (..., n) signals."""
    centre = x.mean(axis=-1, keepdims=True)
    spread = x.std(axis=-1, keepdims=True)
    spread = np.where(spread > 0, spread, 1.0)
    w, b = fit_logistic((x - centre) / spread, sign)
    return np.sign(w[..., None] * ((targets - centre) / spread) + b[..., None])


def attack_accuracy(
    members: ArrayLike,
    nonmembers: ArrayLike,
    *,
    folds: int = 5,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cross-validated accuracy of a logistic regression on the signal, for every model.

        min_{w,b}  sum_i log(1 + exp(-s_i (w x_i + b))) + w^2 / 2,   s_i = +1 member, -1 non-member

    with x the signal standardised on the training folds. The larger kind is subsampled so that both
    have equally many; every fold holds equally many of both. All models share the folds.

    Args:
        members: (M, m) signals, or (m,).
        nonmembers: (M, k) signals, or (k,).
        folds: number of folds, at least 2.
        rng: a NumPy generator that draws the subsample and the folds.

    Returns:
        (M,) float64 in [0, 1], the mean over the folds; NaN where a signal is NaN. A prediction
        exactly on the boundary counts one half.

    Raises:
        TooFew: one class only, or fewer examples of a kind than folds.

    Cost: 50 Newton steps on (M, examples) per fold, on two unknowns.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> attack_accuracy(np.arange(10.0) + 20, np.arange(10.0), rng=rng).item()
        1.0
    """
    members, nonmembers = as_signals(members, nonmembers, "attack_accuracy")
    if folds < 2:
        raise ValueError(f"attack_accuracy: expected at least 2 folds, got {folds}.")
    size = min(members.shape[-1], nonmembers.shape[-1])
    if size < folds:
        raise TooFew(
            f"attack_accuracy: {size} examples of one kind for {folds} folds. "
            "Use fewer folds or more examples."
        )
    x, sign = balanced_signals(members, nonmembers, rng)
    fold = np.tile(np.arange(size) % folds, 2)
    undefined = np.asarray(np.isnan(x).any(axis=-1))
    x = np.where(undefined[..., None], 0.0, x)
    hits = []
    for held_out in range(folds):
        train = fold != held_out
        side = logistic_side(x[..., train], sign[train], x[..., ~train]) * sign[~train]
        hits.append(((side + 1) / 2).mean(axis=-1))
    return np.where(undefined, np.nan, np.mean(hits, axis=0))


def attack(
    member_logits: ArrayLike,
    member_labels: ArrayLike,
    nonmember_logits: ArrayLike,
    nonmember_labels: ArrayLike,
    *,
    score: str = "loss",
    folds: int = 5,
    rng: np.random.Generator,
) -> Attack | None:
    """The attack on M models: AUC, balanced accuracy, and TPR at FPR 0.1, 0.01 and 0.001.

    Args:
        member_logits: (M, m, C) on the forgotten training examples (or retained ones).
        member_labels: (m,).
        nonmember_logits: (M, k, C) on held-out examples of the same class distribution.
        nonmember_labels: (k,).
        score: see `attack_signal`.
        folds, rng: see `attack_accuracy`.

    Returns:
        `Attack`, or None without members or without non-members. For the intervals of one model
        see `auc_interval` and `operating_points`.

    Raises:
        TooFew: fewer examples of a kind than folds.

    Example:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(2, 20, 3))
        >>> y = np.zeros(20, int)
        >>> attack(z, y, z, y, rng=np.random.default_rng(1)).auc
        array([0.5, 0.5])
    """
    members = attack_signal(member_logits, member_labels, score=score)
    nonmembers = attack_signal(nonmember_logits, nonmember_labels, score=score)
    if members.shape[-1] == 0 or nonmembers.shape[-1] == 0:
        return None
    return Attack(
        auc(members, nonmembers),
        attack_accuracy(members, nonmembers, folds=folds, rng=rng),
        *(tpr_at_fpr(members, nonmembers, fpr=fpr) for fpr in (0.1, 0.01, 0.001)),
    )


def distance_from_oracle(values: ArrayLike, oracle_values: ArrayLike) -> np.ndarray:
    """Two-sided distance of each model's value (an AUC, an accuracy) from the oracles' mean.

        |v_i - mean_o v_o|

    The floor is the same with one half of the oracles in place of the models (see `halves`).

    Args:
        values: (M,). oracle_values: (N,), N >= 1; oracles with NaN are left out.

    Example:
        >>> distance_from_oracle([0.25, 0.75], [0.5, 0.5])
        array([0.25, 0.25])
    """
    oracles = np.asarray(oracle_values, dtype=np.float64)
    oracles = oracles[np.isfinite(oracles)]
    if oracles.size == 0:
        raise TooFew("distance_from_oracle: no oracle with a finite value.")
    return np.abs(np.asarray(values, dtype=np.float64) - oracles.mean())
