"""Are two groups of models from the same law? The energy distance and exact tests.

    E(P, Q) = 2 E d(X, Y) - E d(X, X') - E d(Y, Y'),   X, X' ~ P,   Y, Y' ~ Q,  all independent

is zero exactly when P = Q (d Euclidean), else positive. A group of n models estimates the
expectations by averages over distinct pairs (a U-statistic), hence without bias: under P = Q the
estimate is zero on average, and negative more often than not.

The test asks nothing of the distance. If the models of both groups are exchangeable, every
relabelling of the pooled models was equally likely; the share of relabellings whose statistic is at
least the observed one is a p-value whose level is exact in finite samples. Relabelling only
re-indexes the matrix of distances: with A the (B+1, N) matrix of 0/1 labels, all statistics follow
from one product A D.

Over several parts (forget, retain, ...) the statistic is the largest *standardised* energy. The
mean and the deviation used to standardise are taken over all relabellings, the observed one among
them, so that they are the same whichever labelling happened to be observed: the level stays exact.

Source: G. J. Székely, M. L. Rizzo (2013), "Energy statistics", J. Stat. Plan. Inference 143;
randomisation p-value (1 + #)/(1 + B): B. Phipson, G. K. Smyth (2010), arXiv:1603.05766.
Departures: 1. U-statistic where Székely and Rizzo use the V-statistic, which is positive under the
null. 2. No square root (`scipy.stats.energy_distance` takes one, of the V-statistic).

NumPy float64 on the host throughout.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .groups import as_stack
from .intervals import Seed

_TIE = 1e-9  # two standardised statistics nearer than this are the same number


class PermutationTest(NamedTuple):
    """Result of `permutation_test`."""

    p_value: float  # (1 + #{relabellings at least as large}) / (1 + B), in (0, 1]
    largest: str  # the part with the largest standardised energy
    energies: dict[str, float]  # energy distance of the two groups, per part
    standardised: dict[str, float]  # the same in deviations of its relabellings
    null_quantiles: dict[str, float]  # 95 % quantile of the energy over the relabellings


class RankTest(NamedTuple):
    """Result of `rank_of_one`."""

    p_value: float  # (number of the N + 1 models at least as far out) / (N + 1)
    largest: str  # the part on which the model stands out most
    distances: dict[str, float]  # mean distance of the model to the oracles, per part
    standardised: dict[str, float]  # the same in deviations over the N + 1 models


def energy(D: ArrayLike, a: ArrayLike, b: ArrayLike) -> float:
    """U-statistic energy distance of the groups `a` and `b`.

        2 mean_{i in a, j in b} D_ij - mean_{i != i' in a} D_ii' - mean_{j != j' in b} D_jj'

    Args:
        D: (M, M) distances between all models: symmetric, zero diagonal, unit of the distance.
        a, b: integer indices of the models of each group; disjoint, at least two each.

    Returns:
        A float, in the unit of D. Unbiased, so it may be negative.

    Raises:
        TooFew: a group of fewer than two models has no distance within.
        ValueError: groups that overlap, indices out of range, NaN distances.

    Example:
        >>> import numpy as np
        >>> x = np.array([0.0, 1.0, 10.0, 11.0])
        >>> energy(abs(x[:, None] - x), [0, 1], [2, 3])
        18.0
    """
    stack, (a, b) = as_stack({"": D}, "energy", a=a, b=b)
    return float(weighted_energy(stack[0], a, b, equal_weights(a), equal_weights(b))[0])


def weighted_energy(
    D: np.ndarray, a: np.ndarray, b: np.ndarray, weights_a: ArrayLike, weights_b: ArrayLike
) -> np.ndarray:
    """Energy distance of reweighted groups, many at once: the bootstrap of `energy`.

        2 u'D_ab v - u'D_aa u / (1 - sum u^2) - v'D_bb v / (1 - sum v^2)

    The denominators leave out the pairs of a model with itself; with u = 1/n they turn the sum
    into the mean over distinct pairs, and a model drawn twice is not taken for two near models.

    Args:
        D: (M, M) distances.
        a, b: indices of the groups.
        weights_a: (B, |a|), rows sum to 1 (see `bootstrap_weights`).
        weights_b: (B, |b|), rows sum to 1.

    Returns:
        (B,) float64; NaN where all the weight of a group fell on one model.

    Example:
        >>> import numpy as np
        >>> x = np.array([0.0, 1.0, 10.0, 11.0])
        >>> D = abs(x[:, None] - x)
        >>> a, b = np.array([0, 1]), np.array([2, 3])
        >>> weighted_energy(D, a, b, [[0.5, 0.5], [1, 0]], [[0.5, 0.5]])
        array([18., nan])
    """
    u = np.asarray(weights_a, dtype=np.float64)
    v = np.asarray(weights_b, dtype=np.float64)
    return 2 * cross_mean(D, a, b, u, v) - within_mean(D, a, u) - within_mean(D, b, v)


def equal_weights(group: np.ndarray) -> np.ndarray:
    """(1, n) weights 1/n: the group as it is, in the form of one resample."""
    return np.full((1, group.size), 1.0 / max(1, group.size))


def cross_mean(
    D: np.ndarray, a: np.ndarray, b: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """u' D_ab v for each row of the weights u (B, |a|) and v (B, |b|): (B,)."""
    return ((u @ D[np.ix_(a, b)]) * v).sum(axis=1)


def within_mean(D: np.ndarray, a: np.ndarray, u: np.ndarray) -> np.ndarray:
    """u' D_aa u / (1 - sum u^2): mean over distinct pairs, NaN where there is none: (B,)."""
    distinct = 1 - (u**2).sum(axis=1)
    total = ((u @ D[np.ix_(a, a)]) * u).sum(axis=1)
    safe = np.where(distinct > 1e-12, distinct, np.nan)
    return total / safe


def permutation_test(
    matrices: Mapping[str, ArrayLike],
    a: ArrayLike,
    b: ArrayLike,
    *,
    permutations: int = 999,
    seed: Seed,
) -> PermutationTest:
    """Exact test that the models of `a` and `b` are exchangeable, over all parts at once.

        T(labels) = max_part (E_part(labels) - mean_part) / sd_part
        p = (1 + #{b: T_b >= T_0}) / (1 + B)

    Args:
        matrices: {part: (M, M) distances}, the same models in each.
        a, b: integer indices of the two groups; disjoint, at least two models each.
        permutations: number B of random relabellings; p is never below 1/(1 + B).
        seed: seed of the relabellings (or a NumPy generator).

    Returns:
        `PermutationTest`. `null_quantiles` is the 95 % quantile of each energy over relabellings:
        what sampling alone gives for groups of these sizes.

    Raises:
        TooFew, ValueError: as `energy`; no part at all; parts of different sizes.

    | case                                | result                                              |
    |-------------------------------------|-----------------------------------------------------|
    | all distances of a part equal       | that part standardises to 0 and decides nothing     |
    | all distances of all parts equal    | p = 1                                               |
    | groups so small that few labellings | p cannot be small: see `smallest_p_value`           |

    Cost: one (B+1, N) x (N, N) product per part, N = |a| + |b|.

    Example:
        >>> import numpy as np
        >>> x = np.concatenate([np.zeros(6), np.ones(8)]) + 0.01 * np.arange(14)
        >>> test = permutation_test({"forget": abs(x[:, None] - x)}, range(6), range(6, 14), seed=0)
        >>> test.p_value, test.largest
        (0.001, 'forget')
    """
    stack, (a, b) = as_stack(matrices, "permutation_test", a=a, b=b)
    pool = np.concatenate([a, b])
    labels = relabellings(np.random.default_rng(seed), a.size, b.size, permutations)
    energies = relabelled_energies(stack[:, pool[:, None], pool], labels)
    z = standardise(energies, stack)
    p_value = float(tail_share(z.max(axis=0)))
    parts = list(matrices)
    return PermutationTest(
        p_value=p_value,
        largest=parts[int(z[:, 0].argmax())],
        energies=dict(zip(parts, energies[:, 0].tolist(), strict=True)),
        standardised=dict(zip(parts, z[:, 0].tolist(), strict=True)),
        null_quantiles=dict(zip(parts, np.quantile(energies, 0.95, axis=1).tolist(), strict=True)),
    )


def rank_of_one(matrices: Mapping[str, ArrayLike], model: int, oracle: ArrayLike) -> RankTest:
    """Is one model alone like the oracles? The rank of its mean distance to them.

        s_j = mean distance of model j to the N others of {model} + oracles
        p = #{j: s_j >= s_model} / (N + 1)

    The oracles' leave-one-out distances are taken among all N + 1 models, the judged one included;
    then all N + 1 numbers are the same function of exchangeable models and the level is exact
    (among the N oracles alone it would be only nearly so). Over several parts the s are
    standardised over the N + 1 models and the largest counts, as in `permutation_test`.

    Args:
        matrices: {part: (M, M) distances}.
        model: index of the one model.
        oracle: indices of the N >= 2 oracles.

    Returns:
        `RankTest`. p is never below 1/(N+1): 19 oracles are the fewest that can reject at 5 %.

    Raises:
        TooFew: fewer than two oracles. ValueError: as `energy`.

    Example:
        >>> import numpy as np
        >>> x = np.append(np.linspace(0, 1, 19), 7.0)
        >>> rank_of_one({"forget": abs(x[:, None] - x)}, 19, range(19)).p_value
        0.05
    """
    stack, (one, oracle) = as_stack(matrices, "rank_of_one", least=1, model=[model], oracle=oracle)
    if oracle.size < 2:
        raise TooFew(f"rank_of_one: group 'oracle' has {oracle.size} model(s), needs at least 2.")
    pool = np.concatenate([one, oracle])
    outlying = stack[:, pool[:, None], pool].sum(axis=2) / oracle.size
    z = standardise(outlying, stack)
    parts = list(matrices)
    return RankTest(
        p_value=float(tail_share(z.max(axis=0))),
        largest=parts[int(z[:, 0].argmax())],
        distances=dict(zip(parts, outlying[:, 0].tolist(), strict=True)),
        standardised=dict(zip(parts, z[:, 0].tolist(), strict=True)),
    )


def relabellings(
    rng: np.random.Generator, size_a: int, size_b: int, permutations: int
) -> np.ndarray:
    """(B+1, size_a + size_b) float64 labels, 1 = first group; row 0 is the observed labelling."""
    if permutations < 1:
        raise ValueError(f"permutations: expected at least 1, got {permutations}.")
    observed = np.repeat([1.0, 0.0], [size_a, size_b])
    labels = np.tile(observed, (permutations + 1, 1))
    labels[1:] = rng.permuted(labels[1:], axis=1)
    return labels


def relabelled_energies(D: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Energy of each labelling: D (..., N, N) and labels (B, N) -> (..., B).

    With s = D 1 and t = 1'D 1:  ab = a's - a'Da,  bb = t - 2 a's + a'Da.
    """
    n_a = labels[0].sum()
    n_b = labels.shape[1] - n_a
    product = labels @ D
    aa = (product * labels).sum(axis=-1)
    rows = product.sum(axis=-1)
    total = D.sum(axis=(-2, -1))[..., None]
    return (
        2 * (rows - aa) / (n_a * n_b)
        - aa / (n_a * (n_a - 1))
        - (total - 2 * rows + aa) / (n_b * (n_b - 1))
    )


def tail_share(statistics: np.ndarray) -> np.ndarray:
    """Share of the last axis at least as large as its first entry, ties counted: a p-value."""
    return (statistics >= statistics[..., :1] - _TIE).mean(axis=-1)


def standardise(values: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Last axis of `values` (parts, ..., B) to mean 0 and deviation 1.

    Where all the values are equal up to the rounding of the distances `D` (parts, ..., N, N) they
    carry no information and become 0.
    """
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = centred.std(axis=-1, keepdims=True)
    constant = deviation <= 1e-12 * D.max(axis=(-2, -1))[..., None]
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, deviation))


def smallest_p_value(size_a: int, size_b: int) -> float:
    """The smallest p-value that relabelling groups of these sizes can give.

    There are C(a+b, a) labellings, all equally likely; swapping the names of two groups of equal
    size changes no energy, so the observed one then has a twin. A group of one is judged by rank.

    Example:
        >>> smallest_p_value(3, 3), smallest_p_value(1, 19)
        (0.1, 0.05)
    """
    ways = math.comb(size_a + size_b, size_a)
    return (2 if size_a == size_b and size_a > 1 else 1) / ways
