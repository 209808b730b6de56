"""Forgetting rate: of the examples an attacker recognised before, how many are gone after?

    FR = (AF - BF) / BT

BT and BF count the forget examples that the attack calls members and non-members on the model
before, AF those that it calls non-members after. BT + BF = AF + AT, so that FR = 1 - AT / BT: 1
when none is called a member any more, 0 when nothing changed, negative when the forget set has
become easier to recognise.

The attack is the same before and after, which is also its weakness: a threshold learnt on the
original model is no evidence about another model. A method that makes forget examples *too*
uncertain reaches FR = 1 and is recognised by an attack the other way round (AUC below 1/2, see
`membership`). Read it beside the same number for retrained models.

Source: Ma et al. (2022), "Learn to Forget: Machine Unlearning via Neuron Masking",
arXiv:2003.10933. *Reconstruction* of the metric from secondary descriptions; the threshold is ours.

| input                              | result                          |
|------------------------------------|---------------------------------|
| nobody is called a member before   | NaN: there is nothing to forget |
| a model with NaN signals           | NaN for that model              |
| no forget examples                 | NaN                             |
"""

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew


def forgetting_rate(before: ArrayLike, after: ArrayLike) -> np.ndarray:
    """FR = (AF - BF) / BT for every model.

    Args:
        before: (M, n) or (n,) bool: whether the attack calls the forget example a member, on the
            models before.
        after: the same examples on the models after, of the same shape.

    Returns:
        (M,) float64 (or a scalar array) in (-inf, 1]; NaN where BT = 0.

    Raises:
        ValueError: the shapes differ. TypeError: not booleans.

    Example:
        >>> forgetting_rate([True, True, False, True], [False, True, False, False]).round(3).item()
        0.667
    """
    before, after = np.asarray(before), np.asarray(after)
    for what, judged in (("before", before), ("after", after)):
        if judged.dtype != bool and judged.size:
            raise TypeError(
                f"forgetting_rate: `{what}` must say True (member) or False of every example, got "
                f"dtype {judged.dtype}. Compare signals with membership_threshold(...)."
            )
    if before.shape != after.shape or before.ndim not in (1, 2):
        raise ValueError(
            "forgetting_rate: expected (models, examples) of the same models and examples, got "
            f"{before.shape} and {after.shape}."
        )
    was_member = before.sum(axis=-1, dtype=np.float64)
    newly = (~after.astype(bool)).sum(axis=-1) - (~before.astype(bool)).sum(axis=-1)
    return np.where(was_member > 0, newly / np.maximum(was_member, 1), np.nan)


def membership_threshold(members: ArrayLike, nonmembers: ArrayLike) -> np.ndarray:
    """The signal from which on an example is best called a member, for every model.

        argmax_t  Pr(member signal >= t) - Pr(non-member signal >= t)

    Args:
        members: (M, m) or (m,) signals of members (see `attack_signal`), m >= 1.
        nonmembers: (M, k) or (k,) signals of non-members, k >= 1.

    Returns:
        (M,) float64 (or a scalar array), one of the signals: the largest of those that are equally
        good; NaN where a signal is NaN.

    Raises:
        TooFew: one class only. ValueError: the shapes do not fit.

    Cost: a sort of m + k numbers for each model.

    Example:
        >>> membership_threshold([3.0, 2.0, 0.0], [1.0, -1.0]).item()
        2.0
    """
    members, nonmembers = np.asarray(members, np.float64), np.asarray(nonmembers, np.float64)
    if members.ndim not in (1, 2) or members.shape[:-1] != nonmembers.shape[:-1]:
        raise ValueError(
            "membership_threshold: expected signals (models, examples) of the same models, got "
            f"{members.shape} and {nonmembers.shape}."
        )
    m, k = members.shape[-1], nonmembers.shape[-1]
    if m == 0 or k == 0:
        missing = "members" if m == 0 else "non-members"
        raise TooFew(f"membership_threshold: one class only: there are no {missing}.")
    signals = np.concatenate([members, nonmembers], axis=-1)
    gain = np.concatenate([np.full(m, 1 / m), np.full(k, -1 / k)])
    order = np.argsort(-signals, axis=-1, kind="stable")
    falling = np.take_along_axis(signals, order, axis=-1)
    advantage = np.cumsum(gain[order], axis=-1)
    # equal signals pass the threshold together: only the last of them stands for a threshold
    last = np.concatenate(
        [falling[..., 1:] < falling[..., :-1], np.ones((*falling.shape[:-1], 1), bool)], axis=-1
    )
    best = np.argmax(np.where(last, np.round(advantage, 12), -np.inf), axis=-1)
    chosen = np.take_along_axis(falling, best[..., None], axis=-1)[..., 0]
    return np.where(np.isnan(signals).any(axis=-1), np.nan, chosen)
