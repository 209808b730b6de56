"""Loss and accuracy of every model on a part, and the margin that other audits build on.

With z (C,) the logits of an example and y its label:

    loss = logsumexp(z) - z_y                     nats, in [0, inf]
    accuracy = mean_x 1[argmax z = y]             in [0, 1]; the first class wins a tie
    margin = z_y - logsumexp_{c != y} z_c         = log p_y / (1 - p_y), in [-inf, inf]

The target for a method is the value of a *retrained* model, never 0 accuracy for its own sake.

| input                                       | result                                     |
|---------------------------------------------|--------------------------------------------|
| no example (or every weight 0)              | None: undefined, not 0                     |
| a model with a NaN, +Inf or all -Inf output | NaN for that model, whatever argmax says   |
| a logit of -Inf at the label                | loss +Inf for that example (p_y is 0)      |
| labels that are not integers in [0, C)      | ValueError                                 |

NumPy float64 on the host. Leading axis M = models; labels are shared by all models.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp


class PartScores(NamedTuple):
    """Scores of M models on one part."""

    loss: np.ndarray  # (M,) float64, mean over examples, nats
    accuracy: np.ndarray  # (M,) float64 in [0, 1]


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Loss of every model on every example.

    Args:
        logits: (M, n, C) any float dtype; more axes between the first and the last are allowed.
        labels: (n,) integers in [0, C); shape of `logits` without its first and last axis.

    Returns:
        (M, n) float64, nats.

    Example:
        >>> import numpy as np
        >>> cross_entropy(np.zeros((1, 2, 4)), [0, 3]).round(4)
        array([[1.3863, 1.3863]])
    """
    z, y = as_outputs(logits, labels, "cross_entropy")
    with np.errstate(invalid="ignore"):
        return logsumexp(z, axis=-1) - _pick(z, y)


def margins(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Margin of the label against all other classes together, the log-odds of the label.

    Args, shapes: as `cross_entropy`.

    Returns:
        (M, n) float64; +-Inf where the label has probability 1 or 0.

    Example:
        >>> import numpy as np
        >>> margins(np.log([[[0.8, 0.1, 0.1]]]), [0]).round(4)     # log(0.8 / 0.2)
        array([[1.3863]])
    """
    z, y = as_outputs(logits, labels, "margins")
    others = z.copy()
    np.put_along_axis(others, _columns(z, y), -np.inf, axis=-1)
    with np.errstate(invalid="ignore"):
        return _pick(z, y) - logsumexp(others, axis=-1)


def part_scores(
    logits: ArrayLike, labels: ArrayLike, *, weight: ArrayLike | None = None
) -> PartScores | None:
    """Mean loss and accuracy of every model on one part.

    Args:
        logits: (M, n, C).
        labels: (n,) integers in [0, C).
        weight: (n,) >= 0, 0 = padding; None: all 1.

    Returns:
        `PartScores`, or None when there is no example.

    Raises:
        ValueError: labels or weights of another shape, out of range.

    Cost: one pass over the logits in float64.

    Example:
        >>> import numpy as np
        >>> part_scores(np.array([[[2.0, 0.0], [0.0, 2.0]]]), [0, 0]).accuracy
        array([0.5])
    """
    z, y = as_outputs(logits, labels, "part_scores")
    if weight is None:
        share = np.ones(y.shape)
    else:
        share = np.asarray(weight, dtype=np.float64)
        if share.shape != y.shape or not np.all(np.isfinite(share) & (share >= 0)):
            raise ValueError(
                f"part_scores: expected finite weights >= 0 of shape {y.shape}, got shape "
                f"{share.shape}."
            )
    used = share > 0
    z, y, share = z[:, used], y[used], share[used]
    if y.size == 0:
        return None
    total = share.sum()
    valid = np.isfinite(z.max(axis=-1)).all(axis=1)
    loss = cross_entropy(z, y) @ share / total
    accuracy = (z.argmax(axis=-1) == y) @ share / total
    return PartScores(np.where(valid, loss, np.nan), np.where(valid, accuracy, np.nan))


def scores_by_part(
    logits: Mapping[str, ArrayLike], labels: Mapping[str, ArrayLike]
) -> dict[str, PartScores | None]:
    """`part_scores` of every part, apart: parts are never averaged into one number.

    Args:
        logits: {part: (M, n_part, C)}.
        labels: {part: (n_part,)}, the same parts.

    Example:
        >>> import numpy as np
        >>> scores_by_part({"forget": np.zeros((2, 0, 3))}, {"forget": np.zeros(0, int)})
        {'forget': None}
    """
    if set(logits) != set(labels):
        raise ValueError(
            f"scores_by_part: logits have parts {sorted(logits)}, labels {sorted(labels)}."
        )
    return {part: part_scores(logits[part], labels[part]) for part in logits}


def as_outputs(logits: ArrayLike, labels: ArrayLike, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Check and convert: logits (M, ..., C) to float64, labels (...,) to int64."""
    z, y = np.asarray(logits), np.asarray(labels)
    if z.ndim < 3 or z.shape[-1] < 2:
        raise ValueError(
            f"{who}: expected logits of shape (models, examples, classes) with at least two "
            f"classes, got {z.shape}."
        )
    if y.shape != z.shape[1:-1]:
        raise ValueError(
            f"{who}: logits {z.shape} want labels of shape {z.shape[1:-1]}, got {y.shape}."
        )
    if y.size == 0:
        return z.astype(np.float64), y.astype(np.int64)
    if y.dtype.kind not in "iu":
        raise ValueError(f"{who}: expected integer labels, got dtype {y.dtype}.")
    if y.min() < 0 or y.max() >= z.shape[-1]:
        raise ValueError(
            f"{who}: expected labels in [0, {z.shape[-1]}), got {y.min()} to {y.max()}."
        )
    return z.astype(np.float64), y.astype(np.int64)


def _columns(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.broadcast_to(y[None, ..., None], (*z.shape[:-1], 1))


def _pick(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.take_along_axis(z, _columns(z, y), axis=-1)[..., 0]
