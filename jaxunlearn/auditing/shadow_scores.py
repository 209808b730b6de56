"""How well twins are told apart: U-LiRA on pairs of shadow models, and an exact test beside it.

Twins 2k and 2k + 1 share out the targets: what one of them unlearned, the other one never saw. The
attack (`jaxunlearn.audit.lira_evaluation`) scores each by Gaussians that were fitted on the other
pairs. If unlearning is retraining, twins are exchangeable: which half was whose cannot be seen in
what they say. So swap the halves of the twins of some pairs, fit and score all anew:

    accuracy(swaps) = share of right calls,     p = share of swaps with accuracy >= the observed one

over all 2^K choices of pairs, or over B random ones and the observed one. The level is exact for
any number of pairs and however the targets depend on each other, which no interval can claim.
Swapping every pair exchanges the two worlds and changes no call, so half of the choices are enough.

Sources: the attack, J. Hayes et al. (2024), arXiv:2403.01218 (*reconstruction*); tests by
relabelling, E. J. G. Pitman (1937). The test of the attack by swapping twins is this project's own.

| input                                    | result                                              |
|------------------------------------------|-----------------------------------------------------|
| a model that is not finite               | its pair is left out of every number; `pairs` says  |
| fewer than four pairs are left           | every number None, p_value None                     |
| all margins alike                        | accuracy and AUC 1/2, p = 1                         |
| fewer than 1/FPR cells of "never seen"   | None for that TPR                                   |
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxunlearn import audit
from jaxunlearn.audit.intervals import Interval
from jaxunlearn.audit.lira import pair_left_out, pooling
from jaxunlearn.audit.roc import RocCurve

LEAST_PAIRS = 4  # one is left out, and three have a spread
FPRS = (0.001, 0.01, 0.1)
_RATES = np.union1d(np.linspace(0, 1, 101), np.geomspace(1e-4, 1, 61))  # where a curve is kept


class Shadowed(NamedTuple):
    """What the attack says of one row; undefined numbers are None."""

    label: str
    pairs: int  # whose models are all finite
    accuracy: Interval | None  # mean over targets; 1/2 is guessing
    auc: Interval | None  # of all cells
    tpr: dict[str, Interval | None]  # "0.01" -> true positive rate at that false positive rate
    p_value: float | None  # of "no more than guessing", in (0, 1]
    worst: float | None  # the largest of `examples`
    examples: np.ndarray | None  # (n,) balanced accuracy for each target
    roc: RocCurve | None  # of all cells, at fixed false positive rates
    seconds: dict[str, float]  # "compile", "run"


def scored(
    label: str,
    phi: ArrayLike,
    member: ArrayLike,
    *,
    relabellings: int = 999,
    rng: np.random.Generator,
    seconds: dict[str, float] | None = None,
) -> Shadowed:
    """The attack on K pairs of models, twins next to each other.

        accuracy = mean over x of 1/2 [ Pr(LR > 0 | x unlearned) + Pr(LR < 0 | x never seen) ]

    Args:
      label: of the row.
      phi: (2K, n) margins; NaN for what is undefined.
      member: (2K, n) bool: model k unlearned x; otherwise it never saw x. Rows 2k and 2k + 1 are
        each other's opposite.
      relabellings: of `swap_test`, >= 1.
      rng: a NumPy generator; consumed.
      seconds: for the record.

    Returns:
      `Shadowed`; see the table of the module.

    Raises:
      ValueError: shapes, twins that are not opposite.

    Cost: nine fits for the intervals and one for each relabelling, O(K n) each.

    Source: J. Hayes et al. (2024), arXiv:2403.01218.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> half = rng.permuted(np.arange(20) < 10 + np.zeros((6, 1), int), axis=1)
      >>> member = np.stack([half, ~half], axis=1).reshape(12, 20)
      >>> found = scored("kept", rng.normal(size=(12, 20)) + 9 * member, member, rng=rng)
      >>> found.accuracy.value, found.p_value         # 2^5 choices of pairs, up to the mirror image
      (1.0, 0.03125)
    """
    phi, member = _as_pairs(phi, member, "scored")
    whole = np.repeat(np.isfinite(phi).reshape(len(phi) // 2, -1).all(axis=1), 2)
    phi, member = phi[whole], member[whole]
    pairs = len(phi) // 2
    seconds = dict(seconds or {})
    if pairs < LEAST_PAIRS:
        none = dict.fromkeys(f"{fpr:g}" for fpr in FPRS)
        return Shadowed(label, pairs, None, None, none, None, None, None, None, seconds)
    found = audit.unlearned_lira(phi, member, fprs=FPRS, rng=rng)
    curve = audit.roc_curve(found.scores[member], found.scores[~member])
    return Shadowed(
        label,
        pairs,
        found.accuracy,
        found.auc,
        {f"{fpr:g}": rate for fpr, rate in found.tpr.items()},
        swap_test(phi, member, relabellings=relabellings, rng=rng),
        float(found.examples[found.worst]),
        found.examples,
        _thinned(curve, int((~member).sum())),
        seconds,
    )


def swap_test(
    phi: ArrayLike, member: ArrayLike, *, relabellings: int = 999, rng: np.random.Generator
) -> float:
    """p-value of "twins are exchangeable" against "they are told apart more often than by chance".

        p = #{swaps : accuracy(swaps) >= accuracy} / #swaps          the observed one among them

    Args:
      phi: (2K, n) finite margins, K >= 4. member: (2K, n) bool, as for `scored`.
      relabellings: random choices of pairs; where there are no more than these, all 2^(K-1).
      rng: a NumPy generator; consumed.

    Returns:
      p in (0, 1]: at most alpha with probability at most alpha, if twins are exchangeable.

    Raises:
      TooFew: fewer than four pairs. ValueError: shapes, twins that are not opposite.

    Cost: one fit for each relabelling.

    Source: this project; the attack, arXiv:2403.01218.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> member = np.tile([[True, False], [False, True]], (4, 1))
      >>> swap_test(np.zeros((8, 2)), member, rng=rng)
      1.0
    """
    phi, member = _as_pairs(phi, member, "swap_test")
    pairs = len(phi) // 2
    if pairs < LEAST_PAIRS:
        raise audit.TooFew(f"swap_test: expected at least {LEAST_PAIRS} pairs, got {pairs}.")
    how = pooling(phi, member, None, "swap_test")

    def accuracy(swapped: np.ndarray) -> float:
        truth = member ^ np.repeat(swapped, 2)[:, None]
        scores = pair_left_out(phi, truth, pooled=how, who="swap_test")
        return float(np.mean(0.5 + 0.5 * np.sign(scores) * np.where(truth, 1, -1)))

    if pairs - 1 < 64 and 2 ** (pairs - 1) <= relabellings + 1:
        choices = itertools.product([False], *[[False, True]] * (pairs - 1))
        found = [accuracy(np.array(choice)) for choice in choices]  # the first swaps no pair
    else:
        found = [accuracy(np.zeros(pairs, bool))]
        found += [accuracy(rng.random(pairs) < 0.5) for _ in range(relabellings)]
    return float(np.mean(np.array(found) >= found[0] - 1e-9))


def _as_pairs(phi: ArrayLike, member: ArrayLike, who: str) -> tuple[np.ndarray, np.ndarray]:
    phi, member = np.asarray(phi, np.float64), np.asarray(member)
    if phi.ndim != 2 or phi.shape != member.shape or len(phi) % 2 or phi.shape[1] == 0:
        raise ValueError(
            f"{who}: expected phi and member (2 x pairs, targets), got {phi.shape} and "
            f"{member.shape}."
        )
    if member.dtype != bool or (member[::2] == member[1::2]).any():
        raise ValueError(
            f"{who}: twins must be each other's opposite: member[2 k] = ~member[2 k + 1], bool. "
            "Put the two models of a pair next to each other."
        )
    return phi, member


def _thinned(curve: RocCurve, nonmembers: int) -> RocCurve:
    """The curve at some false positive rates: there the largest true positive rate at most that."""
    rates = _RATES[(_RATES == 0) | (_RATES * nonmembers >= 1)]
    places = np.searchsorted(curve.fpr, rates + 1e-12, side="right") - 1
    return RocCurve(rates, curve.tpr[places])
