"""The simple membership attack: can one number per example tell forgotten from never seen?

An attacker who sees the outputs p of the model and the label y computes one signal per example,
larger = "looks like a member":

    loss                -(-log p_y)
    confidence          p_y
    entropy             -H(p),   H(p) = -sum_c p_c log p_c
    modified_entropy    -[ -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c) ]

Members are the forgotten *training* examples, non-members held-out examples of the same class
distribution (or else the attack learns the class). Reported, for every model:

    auc        Pr(member signal > non-member signal) + 1/2 Pr(equal), by ranks
    accuracy   of a logistic regression on the signal, balanced, cross-validated in 5 folds
    tpr        largest true positive rate at a false positive rate of at most 0.1

None of them has a target of 1/2 in itself: what matters is the distance to the value of *retrained*
models under the same attack, on either side (an AUC far below 1/2 is a leak as well).

Sources: modified entropy, L. Song, P. Mittal (2021), arXiv:2003.10595, Eq. 8; logistic regression
on losses, M. Kurmanji et al. (2023), arXiv:2302.09880. Departures: 1. the published code of a
popular benchmark takes log p for log(1 - p) and overwrites the columns of all labels in the batch;
here the equation is what is computed; 2. log probabilities are clipped at -100 nats.

| input                                 | result                                             |
|---------------------------------------|----------------------------------------------------|
| no members, or no non-members         | `attack`: None; `auc`: TooFew (one class only)     |
| fewer than `folds` examples of a kind | TooFew                                             |
| all signals equal                     | auc 1/2, accuracy 1/2, tpr 0                       |
| a model with non-finite outputs       | NaN for that model                                 |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax
from scipy.stats import rankdata

from .accuracy import as_outputs
from .errors import TooFew

SCORES = ("loss", "confidence", "entropy", "modified_entropy")
_LOG_FLOOR = -100.0  # nats


class Attack(NamedTuple):
    """One attack on M models."""

    auc: np.ndarray  # (M,) float64 in [0, 1]
    accuracy: np.ndarray  # (M,) float64 in [0, 1]
    tpr: np.ndarray  # (M,) float64 in [0, 1], at FPR <= 0.1


class RocCurve(NamedTuple):
    """Operating points of the attack, from (0, 0) to (1, 1)."""

    fpr: np.ndarray  # (K,) non-decreasing
    tpr: np.ndarray  # (K,) non-decreasing


def attack_signal(logits: ArrayLike, labels: ArrayLike, *, score: str) -> np.ndarray:
    """The attacker's number for every model and example; larger = more like a member.

    Args:
        logits: (M, n, C).
        labels: (n,) integers in [0, C).
        score: "loss", "confidence", "entropy" or "modified_entropy".

    Returns:
        (M, n) float64 (nats, except confidence in [0, 1]); NaN for a model with any non-finite
        distribution.

    Example:
        >>> import numpy as np
        >>> attack_signal(np.log([[[0.75, 0.25]]]), [0], score="confidence").round(3)
        array([[0.75]])
    """
    if score not in SCORES:
        raise ValueError(f"attack_signal: score must be one of {SCORES}, got {score!r}.")
    z, y = as_outputs(logits, labels, "attack_signal")
    valid = np.isfinite(z.max(axis=-1, initial=-np.inf)).all(axis=tuple(range(1, z.ndim - 1)))
    z = np.where(valid.reshape(-1, *[1] * (z.ndim - 1)), z, 0.0)
    logp = np.maximum(log_softmax(z, axis=-1), _LOG_FLOOR)
    p = np.exp(logp)
    index = np.broadcast_to(y[None, ..., None], (*z.shape[:-1], 1))
    logp_y = np.take_along_axis(logp, index, axis=-1)[..., 0]
    if score == "loss":
        signal = logp_y
    elif score == "confidence":
        signal = np.exp(logp_y)
    elif score == "entropy":
        signal = (p * logp).sum(axis=-1)
    else:
        with np.errstate(divide="ignore"):
            others = p * np.maximum(np.log1p(-np.minimum(p, 1.0)), _LOG_FLOOR)
        np.put_along_axis(others, index, 0.0, axis=-1)
        signal = -np.expm1(logp_y) * logp_y + others.sum(axis=-1)
    return np.where(valid.reshape(-1, *[1] * (signal.ndim - 1)), signal, np.nan)


def auc(members: ArrayLike, nonmembers: ArrayLike) -> np.ndarray:
    """Area under the ROC curve by ranks (Mann-Whitney), ties counted one half.

    Args:
        members: (M, m) signals of m >= 1 members, or (m,).
        nonmembers: (M, k) signals of k >= 1 non-members, or (k,).

    Returns:
        (M,) float64 (or a scalar array) in [0, 1]; NaN where a signal is NaN.

    Raises:
        TooFew: one class only.

    Cost: a sort of m + k numbers for each model.

    Example:
        >>> auc([1.0, 2.0], [0.0, 1.0]).item()
        0.875
    """
    members, nonmembers = _as_signals(members, nonmembers, "auc")
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

    Example:
        >>> roc_curve([2.0, 1.0], [1.0, 0.0]).tpr.tolist()
        [0.0, 0.5, 1.0, 1.0]
    """
    members, nonmembers = _as_signals(members, nonmembers, "roc_curve")
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
        fpr: in [0, 1].

    Returns:
        (M,) float64 in [0, 1]; NaN where a signal is NaN. No interpolation between thresholds.

    Example:
        >>> tpr_at_fpr([3.0, 2.0, 0.0], [1.0] * 10).round(3).item()
        0.667
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"tpr_at_fpr: expected fpr in [0, 1], got {fpr}.")
    members, nonmembers = _as_signals(members, nonmembers, "tpr_at_fpr")
    k = nonmembers.shape[-1]
    allowed = int(np.floor(fpr * k + 1e-9))
    if allowed >= k:
        rate = np.ones(members.shape[:-1])
    else:
        # all members strictly above the first non-member that may no longer be called one
        barrier = np.sort(nonmembers, axis=-1)[..., k - 1 - allowed]
        rate = (members > barrier[..., None]).mean(axis=-1)
    undefined = np.isnan(members).any(axis=-1) | np.isnan(nonmembers).any(axis=-1)
    return np.where(undefined, np.nan, rate)


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
    members, nonmembers = _as_signals(members, nonmembers, "attack_accuracy")
    if folds < 2:
        raise ValueError(f"attack_accuracy: expected at least 2 folds, got {folds}.")
    size = min(members.shape[-1], nonmembers.shape[-1])
    if size < folds:
        raise TooFew(
            f"attack_accuracy: {size} examples of one kind for {folds} folds. "
            "Use fewer folds or more examples."
        )
    chosen = members[..., rng.permutation(members.shape[-1])[:size]]
    others = nonmembers[..., rng.permutation(nonmembers.shape[-1])[:size]]
    x = np.concatenate([chosen, others], axis=-1)
    sign = np.repeat([1.0, -1.0], size)
    fold = np.tile(np.arange(size) % folds, 2)
    undefined = np.asarray(np.isnan(x).any(axis=-1))
    x = np.where(undefined[..., None], 0.0, x)
    hits = []
    for held_out in range(folds):
        train = fold != held_out
        centre = x[..., train].mean(axis=-1, keepdims=True)
        spread = x[..., train].std(axis=-1, keepdims=True)
        scaled = (x - centre) / np.where(spread > 0, spread, 1.0)
        w, b = fit_logistic(scaled[..., train], sign[train])
        side = np.sign(w[..., None] * scaled[..., ~train] + b[..., None]) * sign[~train]
        hits.append(((side + 1) / 2).mean(axis=-1))
    return np.where(undefined, np.nan, np.mean(hits, axis=0))


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
    """The attack on M models: AUC, balanced accuracy and TPR at FPR 0.1.

    Args:
        member_logits: (M, m, C) on the forgotten training examples.
        member_labels: (m,).
        nonmember_logits: (M, k, C) on held-out examples of the same class distribution.
        nonmember_labels: (k,).
        score: see `attack_signal`.
        folds, rng: see `attack_accuracy`.

    Returns:
        `Attack`, or None without members or without non-members.

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
        tpr_at_fpr(members, nonmembers),
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


def _as_signals(members: ArrayLike, nonmembers: ArrayLike, who: str):
    members = np.asarray(members, dtype=np.float64)
    nonmembers = np.asarray(nonmembers, dtype=np.float64)
    if members.ndim not in (1, 2) or members.shape[:-1] != nonmembers.shape[:-1]:
        raise ValueError(
            f"{who}: expected signals (models, examples) of the same models, got "
            f"{members.shape} and {nonmembers.shape}."
        )
    if members.shape[-1] == 0 or nonmembers.shape[-1] == 0:
        missing = "members" if members.shape[-1] == 0 else "non-members"
        raise TooFew(f"{who}: one class only: there are no {missing}.")
    return members, nonmembers
