"""Two-sample tests: on which examples do two ensembles differ? Can a classifier tell them apart?

Per example x, the Kolmogorov-Smirnov statistic of the margins of N oracles and M models,

    D(x) = sup_t |F_x(t) - G_x(t)|

with its exact p-value for that example alone. Over n examples there are n such tests, as dependent
as examples of one model are. The correction of Westfall and Young needs no assumption on that: the
*models* are relabelled B times, all examples together, and

    adjusted p(x) = #{b = 0..B : max_x' D_b(x') >= D(x)} / (1 + B),     b = 0 the observed labels.

The chance that any example is rejected wrongly is at most the level, exactly, for any dependence,
and also when other examples do differ (the maximum over the equal ones is at most that over all).

One number for all examples at once is the classifier two-sample test: models are points z in R^n
(margins, each example standardised over all models), a ridge classifier is trained to tell method
from oracle with one model of each kind left out, and

    AUC = mean_{i in method, j in oracles} 1[f_-ij(z_i) > f_-ij(z_j)],     ties 1/2

As i and j play the same part in f_-ij, the mean over relabellings is *exactly* 1/2. (Leaving out
one model at a time puts it below: the left-out model's own kind is then the rarer one.) The f are
never trained: with H = 1 1'/T + K (K + lambda I)^-1 the fit and r = y - H y its residuals,

    f_-ij(z_i) - f_-ij(z_j) = (y_i - y_j) - (e_i - e_j),    e = (I - H)_ij^-1 r_ij    (2 x 2)

and H does not depend on the labels, so that all relabellings share it.

Sources: P. H. Westfall, S. S. Young (1993), "Resampling-based multiple testing"; D. Lopez-Paz,
M. Oquab (2017), "Revisiting classifier two-sample tests", arXiv:1610.06545; leave-pair-out AUC,
A. Airola et al. (2011), Comput. Stat. Data Anal. 55. Departures: 1. single-step maximum, as all D
have one null law; 2. leave-pair-out in place of a train and a test half, p-value by relabelling.

| input                                    | result                                           |
|------------------------------------------|--------------------------------------------------|
| the same margins on both sides           | D = 0, p = 1                                     |
| all margins of an example equal          | D = 0, p = 1; no part in the classifier          |
| all margins of all examples equal        | AUC 1/2, p = 1                                   |
| ties                                     | D as defined; its own p-value is conservative    |
| margins of +-Inf; NaN; no example        | clipped; ValueError; None                        |
| fewer than 2 models on a side            | TooFew                                           |
| any `chunk`                              | the same bits                                    |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from .energy import relabellings, tail_share
from .intervals import Seed
from .margin_pairs import CLIP, as_pair, pair_blocks

_TIE = 1e-9  # two scores nearer than this are the same number; labels are 0 and 1


class KsTests(NamedTuple):
    """One test per example, and what is left after correction."""

    statistic: np.ndarray  # (n,) float64 in [0, 1], D
    p_value: np.ndarray  # (n,) float64, of that example alone: not corrected
    adjusted: np.ndarray  # (n,) float64, Westfall-Young
    rejected: float  # share of the examples with adjusted <= level
    any_p_value: float  # the smallest adjusted: a test that no example differs


class ClassifierTest(NamedTuple):
    """Can the two kinds of models be told apart?"""

    auc: float  # leave-pair-out, in [0, 1]; 1/2 on average for equal laws, exactly
    p_value: float  # share of relabellings with an AUC at least as large
    null_quantile: float  # 95 % quantile of the AUC over the relabellings
    wins: np.ndarray  # (N + M,) share of its pairs that each model was ranked rightly in


def ks_tests(
    oracle_margins: ArrayLike,
    method_margins: ArrayLike,
    *,
    level: float = 0.05,
    permutations: int = 999,
    seed: Seed,
    chunk: int | None = None,
) -> KsTests | None:
    """Kolmogorov-Smirnov test of every example, corrected for their number.

        D(x) = sup_t |F_x(t) - G_x(t)|,   adjusted p(x) = share of relabellings with max D >= D(x)

    Args:
        oracle_margins: (N, n) margins of N >= 2 oracles (see `margins`).
        method_margins: (M, n) margins of M >= 2 models of the method, the same examples.
        level: largest chance of any wrong rejection, in (0, 1).
        permutations: number B of random relabellings; adjusted is never below 1/(1 + B), nor
            below what so few models can give (`smallest_p_value`).
        seed: seed of the relabellings (or a NumPy generator).
        chunk: examples handled at once; None keeps a block near 16 MiB.

    Returns:
        `KsTests`, or None for n = 0. Any increasing map of the (clipped) margins changes nothing.

    Raises:
        TooFew, ValueError: see the table of the module; level outside (0, 1).

    Cost: B (N + M) n additions of small integers (for n = 10000 and 128 + 128 models a few
    seconds); memory that of a block and B (N + M).

    Example:
        >>> import numpy as np
        >>> oracle = np.random.default_rng(0).normal(size=(16, 3))
        >>> found = ks_tests(oracle, oracle + [0.0, 0.0, 9.0], seed=0)
        >>> found.statistic.tolist(), found.adjusted.tolist()
        ([0.0, 0.0, 1.0], [1.0, 1.0, 0.001])
    """
    if not 0 < level < 1:
        raise ValueError(f"ks_tests: expected level strictly between 0 and 1, got {level}.")
    oracle, method = as_pair(oracle_margins, method_margins, "ks_tests")
    if oracle.shape[1] == 0:
        return None
    n, m = len(oracle), len(method)
    labels = relabellings(np.random.default_rng(seed), m, n, permutations)
    # walking up the sorted margins: +n for a model of the method, -m for an oracle; D n m is the
    # farthest that the walk gets from 0, a whole number
    kind = np.int16 if n * m < 2**15 else np.int64
    steps = np.where(labels > 0, n, -m).astype(kind).T.copy()
    found = []
    largest = np.zeros(len(labels), dtype=kind)
    for y, x in pair_blocks(oracle, method, "ks_tests", chunk=chunk, entries=len(labels)):
        farthest = _farthest(np.concatenate([x, y], axis=1), steps)
        found.append(farthest[:, 0].astype(np.int64))
        largest = np.maximum(largest, farthest.max(axis=0))
    whole = np.concatenate(found)
    reached = len(largest) - np.searchsorted(np.sort(largest), whole, side="left")
    adjusted = reached / len(largest)
    # the exact p-value depends on D alone: SciPy is asked once for each value that occurs
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    pairs = zip(*(np.clip(side[:, first], -CLIP, CLIP).T for side in (method, oracle)), strict=True)
    alone = np.array([ks_2samp(x, y, method="exact")[1] for x, y in pairs])
    return KsTests(
        statistic=whole / (n * m),
        p_value=alone[which],
        adjusted=adjusted,
        rejected=float((adjusted <= level).mean()),
        any_p_value=float(adjusted.min()),
    )


def classifier_test(
    oracle_margins: ArrayLike,
    method_margins: ArrayLike,
    *,
    permutations: int = 999,
    seed: Seed,
) -> ClassifierTest | None:
    """Leave-pair-out AUC of a ridge classifier of models, with its exact permutation test.

        AUC = mean_{i in method, j in oracles} 1[f_-ij(z_i) > f_-ij(z_j)],   ties 1/2

    Args:
        oracle_margins: (N, n), N >= 2. method_margins: (M, n), M >= 2, the same examples.
        permutations: number B of random relabellings; p is never below 1/(1 + B).
        seed: seed of the relabellings (or a NumPy generator).

    Returns:
        `ClassifierTest`, or None for n = 0; `wins` holds the models of the method first. An AUC
        below 1/2 is chance: the classifier has already been told which way round.

    Raises:
        TooFew, ValueError: see the table of the module.

    The penalty lambda is the mean eigenvalue of K (1 if K = 0): known without the labels, and of
    the size of the signal, which a tuned one would have to learn from a handful of models.

    Cost: (N + M)^2 n + (N + M)^3 + B N M; memory a block of examples (their number is not a
    choice: K is a sum over all of them), (N + M)^2 and B (N + M).

    Example:
        >>> import numpy as np
        >>> oracle = np.random.default_rng(0).normal(size=(12, 3))
        >>> classifier_test(oracle, oracle + 9.0, seed=0).auc
        1.0
    """
    oracle, method = as_pair(oracle_margins, method_margins, "classifier_test")
    if oracle.shape[1] == 0:
        return None
    H = _hat_matrix(oracle, method)
    labels = relabellings(np.random.default_rng(seed), len(method), len(oracle), permutations)
    aucs = np.array([_ranked_rightly(H, y).mean() for y in labels])
    right = _ranked_rightly(H, labels[0])
    return ClassifierTest(
        auc=float(aucs[0]),
        p_value=float(tail_share(aucs)),
        null_quantile=float(np.quantile(aucs, 0.95)),
        wins=np.concatenate([right.mean(axis=1), right.mean(axis=0)]),
    )


def _farthest(rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(c, T) margins and (T, B) steps -> (c, B) largest |height| of the walks up the margins."""
    order = np.argsort(rows, axis=1)
    line = np.take_along_axis(rows, order, axis=1)
    seen = np.ones(rows.shape, dtype=bool)
    seen[:, :-1] = line[:, 1:] > line[:, :-1]  # equal margins: only the height after all of them
    height = np.zeros((len(rows), steps.shape[1]), dtype=steps.dtype)
    farthest = np.zeros_like(height)
    for t in range(rows.shape[1]):
        height += steps[order[:, t]]
        if seen[:, t].all():
            np.maximum(farthest, np.abs(height), out=farthest)
        else:
            here = seen[:, t]
            farthest[here] = np.maximum(farthest[here], np.abs(height[here]))
    return farthest


def _hat_matrix(oracle: np.ndarray, method: np.ndarray) -> np.ndarray:
    """(T, T) H of the ridge classifier with an intercept on standardised margins, method first."""
    T = len(method) + len(oracle)
    K = np.zeros((T, T))
    for y, x in pair_blocks(oracle, method, "classifier_test"):
        pool = np.concatenate([x, y], axis=1)
        pool = pool - pool.min(axis=1, keepdims=True)  # equal margins become exact zeros
        deviation = pool.std(axis=1, keepdims=True)
        z = (pool - pool.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)
        K += z.T @ z
    values, vectors = np.linalg.eigh(K)
    values = np.maximum(values, 0.0)
    ridge = values.mean() or 1.0
    return 1 / T + (vectors * (values / (values + ridge))) @ vectors.T


def _ranked_rightly(H: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for every pair of a model labelled 1 and one labelled 0: (sum y, sum 1 - y)."""
    i, j = np.flatnonzero(y > 0), np.flatnonzero(y == 0)
    free = 1 - np.diag(H)
    r = y - H @ y
    h = H[np.ix_(i, j)]
    determinant = free[i][:, None] * free[j][None, :] - h**2
    e_i = free[j][None, :] * r[i][:, None] + h * r[j][None, :]
    e_j = free[i][:, None] * r[j][None, :] + h * r[i][:, None]
    ahead = 1 - (e_i - e_j) / determinant  # f_i - f_j, both without i and j; y_i - y_j = 1
    return np.where(np.abs(ahead) <= _TIE, 0.5, ahead > 0)
