"""Bootstrap intervals over models: how far a number would move with other seeds.

    theta*_b = theta(models drawn with replacement),  b = 1..B
    interval = [quantile_{alpha/2}(theta*), quantile_{1-alpha/2}(theta*)]

The unit that is resampled is always a *model* (a seed), never an example: the question is what
another run of the same pipeline would have given. A resample of n models is stored as its weights
(counts / n), because every statistic of this package is a polynomial in those weights; a thousand
resamples are then one matrix product.

Source: B. Efron (1979), "Bootstrap methods: another look at the jackknife", Annals of Statistics 7.
The plain percentile interval is used: it needs no standard error and respects the range of the
statistic. With fewer than about ten models it is too narrow, as every bootstrap is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# what seeds a NumPy generator: a number, several numbers, or a generator (then consumed)
Seed = int | Sequence[int] | np.random.Generator


class Interval(NamedTuple):
    """A number and where it would have fallen with other seeds."""

    value: float  # the statistic on the models as they are
    low: float  # lower end of the percentile interval
    high: float  # upper end
    count: int  # how many models the value was computed from


def bootstrap_weights(rng: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """Resampling as weights: row b holds (times model i was drawn) / size.

    Args:
        rng: a NumPy generator; consumed.
        size: number of models, at least 1.
        resamples: number of resamples B, at least 1.

    Returns:
        (B, size) float64, each row non-negative with sum 1.

    Example:
        >>> import numpy as np
        >>> w = bootstrap_weights(np.random.default_rng(0), 4, 3)
        >>> w.shape, bool(np.allclose(w.sum(1), 1))
        ((3, 4), True)
    """
    if size < 1 or resamples < 1:
        raise ValueError(
            f"bootstrap_weights: expected size >= 1 and resamples >= 1, got {size} and {resamples}."
        )
    return rng.multinomial(size, np.full(size, 1.0 / size), size=resamples) / size


def percentile_interval(
    value: float, samples: ArrayLike, *, count: int, level: float = 0.95
) -> Interval:
    """The percentile interval of bootstrap `samples` around `value`.

    Args:
        value: the statistic itself.
        samples: (B,) bootstrap replicates. Undefined replicates (NaN: for instance a resample that
            drew the same model every time has no within-group distance) are left out.
        count: number of models behind the value, for the record.
        level: coverage in (0, 1).

    Returns:
        `Interval`; its ends are NaN when no replicate is defined.

    Example:
        >>> percentile_interval(0.5, [0.0, 0.5, 1.0], count=3, level=0.5)
        Interval(value=0.5, low=0.25, high=0.75, count=3)
    """
    _check_level(level)
    samples = np.asarray(samples, dtype=np.float64)
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        return Interval(float(value), float("nan"), float("nan"), count)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), count)


def mean_interval(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1000,
) -> Interval | None:
    """Mean over models with its bootstrap percentile interval.

    Args:
        values: (M,) one number per model. Non-finite entries mean "undefined for this model" and
            are left out; `count` of the result says how many remained.
        rng: a NumPy generator, given explicitly; the same state gives the same interval.
        level: coverage in (0, 1).
        resamples: number of resamples B.

    Returns:
        `Interval`, or None when no value is finite (undefined is never 0).

    | values            | result                                |
    |-------------------|---------------------------------------|
    | empty, all NaN    | None                                  |
    | one model         | low = value = high                    |
    | some NaN          | interval of the others, smaller count |

    Cost: one (B, M) matrix of weights.

    Example:
        >>> import numpy as np
        >>> mean_interval([1.0, 1.0, 1.0], rng=np.random.default_rng(0))
        Interval(value=1.0, low=1.0, high=1.0, count=3)
    """
    _check_level(level)
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"mean_interval: expected one value per model, shape (M,), got {values.shape}. "
            "Average over examples first."
        )
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    replicates = bootstrap_weights(rng, values.size, resamples) @ values
    return percentile_interval(float(values.mean()), replicates, count=values.size, level=level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage strictly between 0 and 1, got {level}.")
