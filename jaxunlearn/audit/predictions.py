"""How wrong a regression is, and how far its predictions lie from those of retrained models.

Of the predictions f of a model for n examples with targets y, and f_j those of oracle j:

    mae                   mean |y - f|                                      unit of the target
    prediction_distance   mean_j sqrt( mean (f - f_j)^2 )                   unit of the target
    wasserstein           mean_j W1(f, f_j) = mean_j integral |P(f <= t) - P(f_j <= t)| dt

W1 compares two histograms and not two functions: predictions that are permuted among the examples
are at distance 0. It is at most the other distance. `rmse` and `explained` are those of
`jaxunlearn.audit.recommendations`, distances between all models those of
`jaxunlearn.audit.distances`.

Source: W1 to a retrained model as in Tarun et al. (2023), arXiv:2210.08196.

| input                                    | result                              |
|------------------------------------------|-------------------------------------|
| no example                               | None: undefined, not 0              |
| a model with a non-finite prediction     | NaN for that model                  |
| an oracle with a non-finite prediction   | NaN for all                         |
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import wasserstein_distance

from .errors import TooFew


def mae(predictions: ArrayLike, targets: ArrayLike) -> np.ndarray | None:
    """Mean absolute error of M models.

    Args:
        predictions: (M, n). targets: (n,) finite.

    Returns:
        (M,) float64 >= 0 in the unit of the target, or None without examples.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> mae([[3.0, 5.0], [4.0, 4.0]], [4.0, 4.0])
        array([1., 0.])
    """
    f, y = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if f.ndim != 2 or y.shape != f.shape[1:]:
        raise ValueError(
            f"mae: expected predictions (models, n) and targets (n,), got {f.shape} and {y.shape}."
        )
    return np.abs(np.where(np.isfinite(f), f, np.nan) - y[None]).mean(axis=1) if y.size else None


def wasserstein(predictions: ArrayLike, oracles: ArrayLike) -> np.ndarray | None:
    """W1 between the predictions of each model and of an oracle, averaged over the oracles.

    Args:
        predictions: (M, n). oracles: (N, n), N >= 1, for the same examples.

    Returns:
        (M,) float64 >= 0 in the unit of the predictions; None without examples.

    Raises:
        TooFew: no oracle. ValueError: shapes that do not match.

    Cost: M N sorts of n numbers.

    Example:
        >>> wasserstein([[0.0, 1.0], [3.0, 2.0]], [[1.0, 0.0], [1.0, 2.0]])
        array([0.5, 1.5])
    """
    return _over_oracles("wasserstein", wasserstein_distance, predictions, oracles)


def prediction_distance(predictions: ArrayLike, oracles: ArrayLike) -> np.ndarray | None:
    """Root mean square difference to an oracle's predictions, averaged over the oracles.

    Args, Returns, Raises: as `wasserstein`.

    Example:
        >>> prediction_distance([[0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
        array([0.5])
    """
    return _over_oracles("prediction_distance", _root_mean_square, predictions, oracles)


def _root_mean_square(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.square(one - other).mean()))


def _over_oracles(
    who: str,
    distance: Callable[[np.ndarray, np.ndarray], float],
    predictions: ArrayLike,
    oracles: ArrayLike,
) -> np.ndarray | None:
    own, theirs = (np.asarray(each, np.float64) for each in (predictions, oracles))
    if own.ndim != 2 or theirs.ndim != 2 or own.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"{who}: expected predictions (models, n) and oracles (models, n) for the same "
            f"examples, got {own.shape} and {theirs.shape}."
        )
    if not len(theirs):
        raise TooFew(f"{who}: no oracle to compare with.")
    if not own.shape[1]:
        return None
    broken = not np.isfinite(theirs).all()
    return np.array(
        [
            np.nan
            if broken or not np.isfinite(f).all()
            else np.mean([distance(f, g) for g in theirs])
            for f in own
        ]
    )
