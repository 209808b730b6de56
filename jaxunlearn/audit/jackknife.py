"""Delete-a-group jackknife: how a number that was fitted would move with other models.

The models are split into G groups. With theta_g the statistic when group g is absent altogether,
from what is fitted as well as from what is counted,

    var = (G - 1) / G sum_g (theta_g - mean theta)^2,     theta +- t_{G-1} sqrt(var)

A bootstrap cannot do this for statistics that leave a model out: a model drawn twice would be left
out once and remain once. For statistics that jump (shares of right calls) the variance is too large
rather than too small, the more so the smaller the groups: few groups are taken.

Source: P. Kott (2001), "The delete-a-group jackknife", Journal of Official Statistics 17.

| input                        | result                       |
|------------------------------|------------------------------|
| fewer than two groups        | NaN ends                     |
| all groups say the same      | an interval of width 0       |
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


def jackknife_ends(
    values: ArrayLike, without: ArrayLike, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of an interval around each value.

        value -+ t_{G-1, (1 + level) / 2} sqrt( (G - 1) / G sum_g (without_g - mean)^2 )

    Args:
        values: (F,) statistics of all models.
        without: (G, F) the same with group g left out.
        level: coverage in (0, 1).

    Returns:
        (F,) low and (F,) high, in the unit of the values; NaN where a statistic without some group
        is undefined, or with fewer than two groups.

    Raises:
        ValueError: level out of range, shapes that do not fit.

    Source: P. Kott (2001).

    Example:
        >>> low, high = jackknife_ends([1.0], [[0.5], [1.5]])       # t_1 = 12.7, sd 1/2
        >>> low.round(2), high.round(2)
        (array([-5.35]), array([7.35]))
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage strictly between 0 and 1, got {level}.")
    v, w = np.asarray(values, np.float64), np.asarray(without, np.float64)
    if v.ndim != 1 or w.ndim != 2 or w.shape[1] != v.size:
        raise ValueError(
            f"jackknife_ends: expected values (F,) and without (G, F), got {v.shape} and {w.shape}."
        )
    G = len(w)
    if G < 2:
        return np.full(v.shape, np.nan), np.full(v.shape, np.nan)
    half = stdtrit(G - 1, (1 + level) / 2) * np.sqrt((G - 1) * w.var(axis=0))
    return v - half, v + half
