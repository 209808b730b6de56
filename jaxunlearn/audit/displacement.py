"""Which way did a method move? The displacement between the oracles and the original.

In the Euclidean space where models are points, with m, o, g the means of the laws of the method's
models, the oracles and the originals:

    t = <m - o, g - o> / |g - o|^2             along the line: 0 = oracles, 1 = original
    s = sqrt( |m - o|^2 / |g - o|^2 - t^2 )    sideways: distance from that line, in the same unit

t > 0: some influence of the forget data is left; t < 0: beyond the oracles, on the far side from
the original. No coordinates are needed. Writing A_uv for the mean squared distance between the
models of two groups and W_u for the mean squared distance between distinct models of one,

    A_uv = |u - v|^2 + Var_u + Var_v,   W_u = 2 Var_u     in expectation, so that without bias
    |u - v|^2         ~  A_uv - W_u / 2 - W_v / 2
    <m - o, g - o>    ~  (A_mo + A_go - A_mg - W_o) / 2

The scatter within groups cancels in the numerator and in the denominator (each is unbiased; their
ratio is consistent). The numerator needs no W_m, so t is defined for a single model.

When the method's model i was made from original i the two are dependent, and the pair (i, i) says
nothing about independent ones: `paired=True` leaves those pairs out of A_mg and resamples the two
groups together.

Source: this project; that D^2 determines inner products is I. J. Schoenberg (1935), "Remarks to
Maurice Fréchet's article", Annals of Mathematics 36.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .energy import cross_mean, equal_weights, within_mean
from .errors import TooFew
from .groups import as_stack
from .intervals import Interval, Seed, bootstrap_weights, percentile_interval


class Displacement(NamedTuple):
    """Where the method's mean lies relative to the line from the oracles to the original."""

    along: Interval  # t, with its bootstrap interval over models
    sideways: float | None  # s >= 0 in units of |g - o|; None for a single model


def displacement(
    D: ArrayLike,
    method: ArrayLike,
    oracle: ArrayLike,
    original: ArrayLike,
    *,
    paired: bool = False,
    level: float = 0.95,
    resamples: int = 1000,
    seed: Seed,
) -> Displacement | None:
    """Displacement of `method` along the line from `oracle` (0) to `original` (1).

    Args:
        D: (M, M) Euclidean distances between models on one part (see `distances`).
        method: indices of the method's models, at least one. May be the same list as `original`
            (then t is exactly 1); otherwise the three groups are disjoint.
        oracle: indices of the oracles, at least two.
        original: indices of the originals, at least two.
        paired: method[i] was made from original[i]; the groups then have equal sizes.
        level: coverage of the interval.
        resamples: bootstrap resamples of every group.
        seed: seed of the bootstrap (or a NumPy generator).

    Returns:
        `Displacement`, or None when the estimate of |g - o|^2 is not positive: the original and the
        oracles have no distance to measure along.

    Raises:
        TooFew: a group too small. ValueError: as `energy`; paired groups of unequal sizes.

    Cost: O(resamples x models^2).

    Example:
        >>> import numpy as np
        >>> x = np.array([0.0, 0.0, 1.0, 1.0, 0.2, 0.3])      # oracles, originals, method
        >>> moved = displacement(abs(x[:, None] - x), [4, 5], [0, 1], [2, 3], seed=0)
        >>> round(moved.along.value, 6)
        0.25
    """
    groups = {"oracle": oracle, "original": original}
    itself = np.array_equal(np.asarray(method), np.asarray(original))
    if not itself:
        groups["method"] = method
    stack, (o, g, *rest) = as_stack({"": D}, "displacement", least=1, **groups)
    m = g if itself else rest[0]
    paired = paired or itself
    for name, group in (("oracle", o), ("original", g)):
        if group.size < 2:
            raise TooFew(f"displacement: group {name!r} has {group.size} model, needs at least 2.")
    if paired and m.size != g.size:
        raise ValueError(
            f"displacement: paired groups must have equal sizes, got {m.size} models of the method "
            f"and {g.size} originals."
        )
    squared = stack[0] ** 2
    here = equal_weights(m), equal_weights(o), equal_weights(g)
    value, sideways = _position(squared, (m, o, g), here, paired)
    if np.isnan(value[0]):
        return None
    rng = np.random.default_rng(seed)
    w_o = bootstrap_weights(rng, o.size, resamples)
    w_g = bootstrap_weights(rng, g.size, resamples)
    w_m = w_g if paired else bootstrap_weights(rng, m.size, resamples)
    replicates, _ = _position(squared, (m, o, g), (w_m, w_o, w_g), paired)
    along = percentile_interval(float(value[0]), replicates, count=m.size, level=level)
    return Displacement(along, None if m.size < 2 else float(sideways[0]))


def _position(
    squared: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray, np.ndarray],
    paired: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """t and s for each row of the weights (B, .): two arrays (B,); NaN where undefined."""
    m, o, g = groups
    w_m, w_o, w_g = weights
    A_mo = cross_mean(squared, m, o, w_m, w_o)
    A_go = cross_mean(squared, g, o, w_g, w_o)
    A_mg = cross_mean(squared, m, g, w_m, w_g)
    if paired:
        own = w_m * w_g
        A_mg = (A_mg - own @ squared[m, g]) / _positive(1 - own.sum(axis=1))
    W_o = within_mean(squared, o, w_o)
    line = _positive(A_go - within_mean(squared, g, w_g) / 2 - W_o / 2)
    t = (A_mo + A_go - A_mg - W_o) / 2 / line
    away = (A_mo - within_mean(squared, m, w_m) / 2 - W_o / 2) / line
    return t, np.sqrt(np.maximum(away - t**2, 0.0))


def _positive(x: np.ndarray) -> np.ndarray:
    return np.where(x > 1e-15, x, np.nan)
