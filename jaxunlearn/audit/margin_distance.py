"""How far apart are the margins of two ensembles? Wasserstein and energy distance, per example.

For an example x let F be the law of the margin g(x) over oracles and G that over models of the
method (margins clipped to [-100, 100]):

    wasserstein  W(x) = integral_0^1 |F^-1(u) - G^-1(u)| du                     quantile coupling
    energy       E(x) = 2 E|X - Y| - E|X - X'| - E|Y - Y'| = 2 integral (F - G)^2 dt

with X, X' ~ F and Y, Y' ~ G, all independent. Both are 0 exactly when F = G, both need no bins and
saturate nowhere before the clip. They differ in what finite ensembles make of them:

    W  of the two empirical laws is *biased*: under F = G it is positive, near
       1.2 sqrt(1/N + 1/M) deviations (Gaussian). Never read it without its floor (`margin_floor`,
       `margin_null`).
    E  is a U-statistic over distinct pairs: under F = G its mean is *exactly 0* for any N, M and
       any law, so an average over many examples needs no floor; single values may be negative.

In closed form: between consecutive points of {i/N} and {j/M} both quantile functions are
constant, so W is a fixed weighted sum of |x_(i) - y_(j)|; for N = M it is the mean difference of
sorted margins. And sum_{i<j} |z_i - z_j| = sum_k (2k - T - 1) z_(k), k = 1..T, gives E by sorting.

Between two models there is D_ij = mean_x |g_i(x) - g_j(x)| (`margin_matrix`), whose energy is the
mean of E(x) over examples.

Unit "margin" is log-odds (nats); unit "deviation" divides each example by the standard deviation of
the margins of all N + M models (`pooled_deviation`), which does not ask which model is whose.

Sources: quantile coupling, S. S. Vallender (1974), Theory Prob. Appl. 18; energy distance,
G. J. Székely, M. L. Rizzo (2013), J. Stat. Plan. Inference 143 (2 x the squared Cramér distance);
margins of ensembles as the object to compare, K. Georgiev et al. (2025), arXiv:2410.23232.
Departures: 1. U-statistic in place of the V-statistic.

| input                                     | result                                          |
|-------------------------------------------|-------------------------------------------------|
| the same margins on both sides            | W exactly 0, E <= 0                             |
| two constants at distance c               | W = c, E = 2 c; at most 200                     |
| all N + M margins equal                   | exactly 0 in either unit                        |
| fewer than 2 models on a side             | TooFew                                          |
| margins of +-Inf; NaN; no example         | clipped; ValueError; None                       |
| any `chunk`                               | the same bits                                   |
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .agreement import halves
from .intervals import Seed
from .margin_pairs import ExampleSummary, as_margins, as_pair, over_examples, pair_blocks

UNITS = ("margin", "deviation")


class MarginDistance(NamedTuple):
    """Both distances, per example."""

    wasserstein: np.ndarray  # (n,) float64 >= 0, biased upwards
    energy: np.ndarray  # (n,) float64, mean 0 for equal laws, may be negative


class MarginSummary(NamedTuple):
    """Both distances over the examples of a part."""

    wasserstein: ExampleSummary
    energy: ExampleSummary


def _quantile_coupling(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of [0, 1] on which both quantile functions are constant: lengths and ranks."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    starts = np.concatenate([[0], ends[:-1]])
    return (ends - starts) / (n * m), starts // m, starts // n


def _pair_sum(z: np.ndarray) -> np.ndarray:
    """(c, T) sorted rows -> (c,) sum of |z_i - z_j| over the T (T - 1) / 2 pairs."""
    T = z.shape[1]
    return (z * np.arange(1 - T, T, 2)).sum(axis=1)


def _distances_of_block(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(c, N) and (c, M) margins -> (c,) Wasserstein and (c,) energy."""
    n, m = x.shape[1], y.shape[1]
    # |x - y| does not see a shift, and equal margins become exact zeros
    centre = np.minimum(x.min(axis=1), y.min(axis=1))[:, None]
    x, y = np.sort(x - centre, axis=1), np.sort(y - centre, axis=1)
    width, i, j = _quantile_coupling(n, m)
    # take and not x[:, i]: its rows are contiguous, each is summed in one and the same order
    wasserstein = (width * np.abs(x.take(i, axis=1) - y.take(j, axis=1))).sum(axis=1)
    within_x, within_y = _pair_sum(x), _pair_sum(y)
    across = _pair_sum(np.sort(np.concatenate([x, y], axis=1), axis=1)) - within_x - within_y
    energy = 2 * (across / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1)))
    return wasserstein, energy


def _deviation_of_block(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(c,) standard deviation of all margins of an example; 1 where they are all equal."""
    pool = np.sort(np.concatenate([x, y], axis=1), axis=1)  # sorted: any labelling, the same bits
    deviation = (pool - pool[:, :1]).std(axis=1)  # equal margins become exact zeros
    return np.where(deviation > 0, deviation, 1.0)


def margin_distance(
    oracle_margins: ArrayLike,
    method_margins: ArrayLike,
    *,
    unit: str = "margin",
    chunk: int | None = None,
) -> MarginDistance | None:
    """Wasserstein and energy distance of the margins of two ensembles, per example.

        W(x) = integral_0^1 |F^-1 - G^-1| du,      E(x) = 2 integral (F - G)^2 dt, unbiased

    Args:
        oracle_margins: (N, n) margins of N >= 2 oracles (see `margins`).
        method_margins: (M, n) margins of M >= 2 models of the method, the same examples.
        unit: "margin" (nats of log-odds) or "deviation" (of all N + M margins of the example).
        chunk: examples handled at once; None keeps a block near 16 MiB.

    Returns:
        `MarginDistance`, or None for n = 0. Swapping the two sides changes nothing.

    Raises:
        TooFew, ValueError: see the table of the module; unknown unit; unequal examples.

    Cost: a sort of N + M numbers per example; memory that of a block.

    Example:
        >>> import numpy as np
        >>> found = margin_distance(np.zeros((4, 1)), np.ones((3, 1)))
        >>> found.wasserstein, found.energy
        (array([1.]), array([2.]))
    """
    if unit not in UNITS:
        raise ValueError(f"margin_distance: unit must be one of {UNITS}, got {unit!r}.")
    oracle, method = as_pair(oracle_margins, method_margins, "margin_distance")
    if oracle.shape[1] == 0:
        return None
    found = []
    entries = 6 * (len(oracle) + len(method))
    for x, y in pair_blocks(oracle, method, "margin_distance", chunk=chunk, entries=entries):
        distances = np.stack(_distances_of_block(x, y))
        found.append(distances / _deviation_of_block(x, y) if unit == "deviation" else distances)
    return MarginDistance(*np.concatenate(found, axis=1))


def margin_summary(found: MarginDistance | None) -> MarginSummary | None:
    """Mean, 95th percentile and worst example of both distances; None stays None.

    Example:
        >>> import numpy as np
        >>> margin_summary(margin_distance(np.zeros((2, 3)), np.ones((2, 3)))).energy.mean
        2.0
    """
    if found is None:
        return None
    wasserstein, energy = (over_examples(values) for values in found)
    if wasserstein is None or energy is None:
        return None
    return MarginSummary(wasserstein, energy)


def margin_floor(
    oracle_margins: ArrayLike, *, unit: str = "margin", chunk: int | None = None
) -> MarginDistance | None:
    """Both distances between two disjoint halves of the oracles, per example.

    The halves have half the models, so the Wasserstein floor is on the high side for a method
    compared with all N, by sqrt(2) where M = N; the energy has mean 0 at any size.

    Args:
        oracle_margins: (N, n), N >= 4; the first N // 2 stand in for the method.
        unit, chunk: as `margin_distance`.

    Example:
        >>> import numpy as np
        >>> margin_floor(np.ones((4, 2))).wasserstein
        array([0., 0.])
    """
    first, second = halves(as_margins(oracle_margins, "oracle_margins", "margin_floor", least=4))
    return margin_distance(second, first, unit=unit, chunk=chunk)


def margin_null(
    num_oracles: int, num_methods: int, *, examples: int = 1000, seed: Seed
) -> MarginSummary:
    """What ensembles of these sizes score, in deviations, when both are drawn from one Gaussian.

    In unit "deviation" neither distance changes under a common affine map of the margins, so one
    Gaussian stands for all; for other laws see `margin_floor`.

    Args:
        num_oracles, num_methods: models on each side, at least 2.
        examples: simulated examples, at least 1.
        seed: seed (or a NumPy generator).

    Example:
        >>> null = margin_null(16, 16, seed=0)
        >>> 0.40 < null.wasserstein.mean < 0.45, abs(null.energy.mean) < 0.01
        (True, True)
    """
    rng = np.random.default_rng(seed)
    oracle = rng.standard_normal((num_oracles, examples))
    method = rng.standard_normal((num_methods, examples))
    summary = margin_summary(margin_distance(oracle, method, unit="deviation"))
    if summary is None:
        raise ValueError(f"margin_null: expected examples >= 1, got {examples}.")
    return summary


def pooled_deviation(oracle_margins: ArrayLike, method_margins: ArrayLike) -> np.ndarray | None:
    """Standard deviation of the margins of all N + M models, per example; 1 where all are equal.

    Args:
        oracle_margins: (N, n). method_margins: (M, n). Shapes and errors as `margin_distance`.

    Returns:
        (n,) float64 > 0, or None for n = 0; divisor N + M.

    Example:
        >>> pooled_deviation([[0.0, 5.0], [0.0, 5.0]], [[2.0, 5.0], [2.0, 5.0]])
        array([1., 1.])
    """
    oracle, method = as_pair(oracle_margins, method_margins, "pooled_deviation")
    if oracle.shape[1] == 0:
        return None
    blocks = pair_blocks(oracle, method, "pooled_deviation", chunk=None)
    return np.concatenate([_deviation_of_block(x, y) for x, y in blocks])
