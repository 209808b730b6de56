"""How well U-LiRA tells unlearned from never learnt: accuracy, AUC, TPR, the worst example.

Every cell (model k, target x) has a log likelihood ratio by models other than k (`lira`) and a
truth, member[k, x]: k unlearned x, or never saw it. Then

    accuracy(x) = 1/2 [ mean_{k in U(x)} 1[LR > 0] + mean_{k in O(x)} 1[LR < 0] ]       ties 1/2
    AUC, TPR    of all cells pooled: one threshold for all targets

Two designs:

    unlearned_lira   every model is of world U for some targets and of O for others (random forget
                     sets): one set of K models serves many targets
    world_lira       one forget set: N unlearned models against M retrained ones

1/2 is the value of perfect unlearning. The floor beside it, from two halves of the oracles, says
how far single examples are from 1/2 by sampling alone: the worst of many examples always is.

Intervals leave out an eighth of the models (of either world) at a time, fit and score again, and
take the spread (`jackknife`). They cover the expected value in 93 % to 100 % of simulated runs: 8
to 64 models, models that are better or worse as a whole, no effect to large ones; under the null
nearly always. A bootstrap of the scored models, without fitting again, covers 71 % to 94 %.

The attack treats the two worlds differently, so its numbers are no input for a test that relabels
models: for that, give the margins themselves to `vector_distances`.

Sources: J. Hayes et al. (2024), arXiv:2403.01218 (*reconstruction*); N. Carlini et al. (2022),
arXiv:2112.03570, for TPR at low FPR.

| input                                     | result                                         |
|-------------------------------------------|------------------------------------------------|
| fewer than 3 models in a world            | TooFew                                         |
| fewer than 1/FPR cells of world O         | None for that TPR: undefined, not 0            |
| a model with NaN margins, a rare target   | NaN there; the rest as if it were absent       |
| unequal worlds                            | each counts one half                           |
| fewer than 4 models in a world            | an interval with NaN ends                      |
| every group of models says the same       | an interval of width 0                         |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .agreement import halves
from .errors import TooFew
from .intervals import Interval
from .jackknife import jackknife_ends
from .lira import pair_left_out, pooling
from .roc import auc, tpr_at_fpr

GROUPS = 8  # of models, of which one is left out at a time


class LiraEvaluation(NamedTuple):
    """The attack by U-LiRA on K models and n targets."""

    scores: np.ndarray  # (K, n) log likelihood ratio, nats; positive = unlearned
    examples: np.ndarray  # (n,) balanced accuracy for each target, in [0, 1]
    models: np.ndarray  # (K,) share of right calls among the targets, for each model
    totals: np.ndarray  # (K,) sum of the log ratios: what is known of a whole world, nats
    accuracy: Interval  # mean of `examples`
    auc: Interval  # of all cells
    tpr: dict[float, Interval | None]  # FPR -> TPR of all cells
    worst: int  # the target with the largest accuracy


def unlearned_lira(
    phi: ArrayLike,
    member: ArrayLike,
    *,
    pooled: str | None = None,
    fprs: tuple[float, ...] = (0.001, 0.01, 0.1),
    rng: np.random.Generator,
    level: float = 0.95,
) -> LiraEvaluation:
    """U-LiRA over models that each unlearned a set of their own.

        accuracy(x) = 1/2 [ Pr(LR(phi_k; x) > 0 | k unlearned x) + Pr(LR < 0 | k never saw x) ]

    Args:
        phi: (K, n) margins of K models on n targets, clipped at +-100.
        member: (K, n) bool: model k was trained on x and unlearned it; otherwise it never saw x.
            A model that was trained on x and kept it belongs to neither: do not judge it on x.
        pooled: variances, see `lira`; by the typical number of models in the smaller world.
        fprs: false positive rates, in (0, 1).
        rng: a NumPy generator that draws the groups of the jackknife; consumed.
        level: coverage of the intervals, in (0, 1).

    Returns:
        `LiraEvaluation`. For the curve: `roc_curve(scores[member], scores[~member])`.

    Raises:
        TooFew: no target with three models in both worlds. TypeError: `member` is not boolean.
        ValueError: shapes, rates.

    Cost: nine fits, O(K n) each, and sorts of the cells; some thirty arrays of the size of phi.

    Source: J. Hayes et al. (2024), arXiv:2403.01218.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> member = np.arange(12)[:, None] % 2 == np.arange(20) % 2
        >>> found = unlearned_lira(rng.normal(size=(12, 20)) + 8 * member, member, rng=rng)
        >>> found.accuracy.value, found.tpr[0.001] is None
        (1.0, True)
    """
    phi, member = np.asarray(phi, np.float64), np.asarray(member)
    if member.dtype != bool:
        raise TypeError(
            "unlearned_lira: `member` must say True (unlearned) or False (never seen) for every "
            f"model and target, got dtype {member.dtype}."
        )
    if phi.shape != member.shape:
        raise ValueError(
            "unlearned_lira: expected phi and member of one shape (models, targets), got "
            f"{phi.shape} and {member.shape}."
        )
    groups = rng.permutation(len(phi)) % GROUPS
    return _evaluate(phi, member, groups, pooled, fprs, level, "unlearned_lira")


def world_lira(
    phi_unlearned: ArrayLike,
    phi_oracle: ArrayLike,
    *,
    pooled: str | None = None,
    fprs: tuple[float, ...] = (0.001, 0.01, 0.1),
    rng: np.random.Generator,
    level: float = 0.95,
) -> LiraEvaluation:
    """U-LiRA for one forget set: unlearned models against retrained ones, a pair left out.

    Args:
        phi_unlearned: (N, n) margins of N >= 3 unlearned models. phi_oracle: (M, n) of M >= 3
            retrained ones, on the same examples (forgotten ones, or retained: their privacy).
        pooled, fprs, rng, level: as `unlearned_lira`.

    Returns:
        `LiraEvaluation` of the N unlearned models, then the M oracles.

    Raises:
        TooFew: fewer than three models in a world. ValueError: other examples on the two sides.

    Cost, Source: as `unlearned_lira`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> u, o = rng.normal(9.0, 1.0, size=(8, 5)), rng.normal(size=(6, 5))
        >>> world_lira(u, o, rng=rng).examples
        array([1., 1., 1., 1., 1.])
    """
    u, o = np.asarray(phi_unlearned, np.float64), np.asarray(phi_oracle, np.float64)
    if u.ndim != 2 or o.ndim != 2 or u.shape[1] != o.shape[1]:
        raise ValueError(
            "world_lira: expected margins (models, n) of the same examples in both worlds, got "
            f"{u.shape} and {o.shape}."
        )
    phi = np.concatenate([u, o])
    member = np.repeat([True, False], [len(u), len(o)])[:, None] & np.ones(phi.shape, bool)
    # the models left out together are of both worlds, or no world would be left by few
    parts = min(GROUPS, max(1, len(u)), max(1, len(o)))
    groups = np.concatenate([rng.permutation(len(side)) % parts for side in (u, o)])
    return _evaluate(phi, member, groups, pooled, fprs, level, "world_lira")


def world_lira_floor(
    phi_oracle: ArrayLike, *, rng: np.random.Generator, pooled: str | None = None
) -> LiraEvaluation:
    """What retrained models score against each other: one half of the oracles for the unlearned.

    Args:
        phi_oracle: (M, n), M >= 6. rng, pooled: as `world_lira`.

    Example:
        >>> import numpy as np
        >>> world_lira_floor(np.ones((8, 3)), rng=np.random.default_rng(0)).examples
        array([0.5, 0.5, 0.5])
    """
    first, second = halves(np.asarray(phi_oracle, np.float64))
    return world_lira(first, second, pooled=pooled, rng=rng)


def _evaluate(
    phi: np.ndarray,
    member: np.ndarray,
    groups: np.ndarray,
    pooled: str | None,
    fprs: tuple[float, ...],
    level: float,
    who: str,
) -> LiraEvaluation:
    """The attack on all models, and its intervals by leaving out each of the `groups` (K,)."""
    if not all(0 < fpr < 1 for fpr in fprs):
        raise ValueError(f"{who}: expected false positive rates strictly in (0, 1), got {fprs}.")
    pooled = pooling(phi, member, pooled, who)  # decided once: a refit has fewer models
    scores = pair_left_out(phi, member, pooled=pooled, who=who)
    right = _right(scores, member)
    examples, numbers = _numbers(scores, member, fprs)
    judged = ~np.isnan(scores)
    without = _without_each(phi, member, groups, pooled, fprs)
    ends = np.clip(jackknife_ends(numbers, without, level=level), 0.0, 1.0)
    count = int(judged.any(axis=1).sum())
    accuracy, area, *rates = (
        Interval(float(value), float(low), float(high), count)
        for value, low, high in zip(numbers, *ends, strict=True)
    )
    share = judged.sum(axis=1)
    return LiraEvaluation(
        scores=scores,
        examples=examples,
        models=np.where(share > 0, np.nansum(right, axis=1) / np.maximum(share, 1), np.nan),
        totals=np.where(share > 0, np.nansum(scores, axis=1), np.nan),
        accuracy=accuracy,
        auc=area,
        tpr={
            fpr: rate if np.isfinite(rate.value) else None
            for fpr, rate in zip(fprs, rates, strict=True)
        },
        worst=int(np.nanargmax(examples)),
    )


def _right(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(K, n): 1 where a cell is called rightly, 1/2 for a ratio of 1, NaN where undefined."""
    return 0.5 + 0.5 * np.sign(scores) * np.where(member, 1, -1)


def _numbers(
    scores: np.ndarray, member: np.ndarray, fprs: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) accuracies and the numbers that have intervals: mean accuracy, AUC, TPRs."""
    right, judged = _right(scores, member), ~np.isnan(scores)
    sides = []
    for side in (member & judged, ~member & judged):
        share = np.where(side, right, 0.0).sum(axis=0) / np.maximum(side.sum(axis=0), 1)
        sides.append(np.where(side.any(axis=0), share, np.nan))
    examples = (sides[0] + sides[1]) / 2
    cells = scores[member & judged], scores[~member & judged]
    rates = [float(tpr_at_fpr(*cells, fpr=fpr)) for fpr in fprs]
    return examples, np.array([np.nanmean(examples), auc(*cells), *rates])


def _without_each(
    phi: np.ndarray, member: np.ndarray, groups: np.ndarray, pooled: str, fprs: tuple[float, ...]
) -> np.ndarray:
    """(G, numbers) with each group of models left out; no row where too few models remain."""
    without = []
    for group in np.unique(groups):
        kept = groups != group
        try:
            scores = pair_left_out(phi[kept], member[kept], pooled=pooled, who="jackknife")
        except TooFew:
            return np.empty((0, 2 + len(fprs)))
        without.append(_numbers(scores, member[kept], fprs)[1])
    return np.array(without)
