"""Every model is a point: matrices of distances between the outputs of models.

Classification, over the examples x of a part S, with p_i(x) the softmax of model i:

    D_ij = sqrt( mean_{x in S} H^2(p_i(x), p_j(x)) )
    H^2(p, q) = 1/2 sum_c (sqrt p_c - sqrt q_c)^2

Regression, with f_i(x) the prediction of model i in R^k:

    D_ij = sqrt( mean_{x in S} |f_i(x) - f_j(x)|^2 ) / scale

Both are Euclidean distances between vectors (the stacked square roots of probabilities, the
stacked predictions), which matters twice: the energy distance of `energy` is then zero only for
equal laws, and inner products of models follow from D^2 alone (`displacement`).

With u_i the stacked vector of model i, centred over the models, all distances come from one Gram
matrix K = U U^T:  |u_i - u_j|^2 = K_ii + K_jj - 2 K_ij.  Centring changes no distance, and keeps
the subtraction accurate when all models are nearly alike.

Source: the Hellinger distance is E. Hellinger (1909); the construction is this project's own.

| input                                      | result                                            |
|--------------------------------------------|---------------------------------------------------|
| no example (or every weight 0)             | None: the distance is undefined, not 0            |
| a model with NaN, +Inf or all -Inf outputs | NaN distances to all others, 0 to itself          |
| a logit of -Inf among finite ones          | probability 0                                     |
| weight 0                                   | the example contributes exactly nothing, NaN too  |
| two models with equal outputs              | 0 up to rounding of the squares (about 1e-8)      |
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

_CHUNK_ENTRIES = 1 << 21  # entries of one block of outputs in float64: 16 MiB


def hellinger_matrix(
    logits: ArrayLike, *, weight: ArrayLike | None = None, chunk: int | None = None
) -> np.ndarray | None:
    """Root mean squared Hellinger distance between the predictive distributions of M models.

        D_ij = sqrt( sum_x w_x H^2(p_i(x), p_j(x)) / sum_x w_x )

    Args:
        logits: (M, n, C) any float dtype, unnormalised log-probabilities, C >= 2 classes. More axes
            between the first and the last are allowed (tokens, entries): each is an example.
        weight: shape of `logits` without its first and last axis, >= 0; 0 = padding. None: all 1.
        chunk: examples handled at once; None chooses so that a block stays near 16 MiB. Never
            changes the answer beyond rounding.

    Returns:
        (M, M) float64 in [0, 1], symmetric, diagonal exactly 0; or None (table of the module).

    Raises:
        ValueError: fewer than three axes, fewer than two classes, weights of another shape or
            negative.

    Cost: M n C exponentials and M^2 n C multiplications; memory O(chunk M C + M^2).

    Example:
        >>> import numpy as np
        >>> certain = np.array([[[50.0, 0.0]], [[0.0, 50.0]], [[50.0, 0.0]]])
        >>> hellinger_matrix(certain).round(3)
        array([[0., 1., 0.],
               [1., 0., 1.],
               [0., 1., 0.]])
    """
    outputs = np.asarray(logits)
    if outputs.ndim < 3 or outputs.shape[-1] < 2:
        raise ValueError(
            "hellinger_matrix: expected logits of shape (models, examples, classes) with at least "
            f"two classes, got {outputs.shape}. A single logit has two classes: stack (0, logit)."
        )
    outputs, weight = _flatten(outputs, weight, "hellinger_matrix")
    if weight.size == 0:
        return None
    top = np.concatenate([b.max(-1) for b, _ in _blocks(outputs, weight, chunk)], axis=1)
    finite = np.asarray(np.isfinite(top).all(axis=1))

    def roots():
        for block, w in _blocks(outputs[finite], weight, chunk):
            yield np.sqrt(softmax(block, axis=-1) * w[None, :, None])

    squared = _squared_distances(roots(), int(finite.sum())) / (2 * weight.sum())
    return _embed(np.sqrt(np.minimum(squared, 1.0)), finite)


def prediction_matrix(
    predictions: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    scale: float | None = None,
    chunk: int | None = None,
) -> np.ndarray | None:
    """Root mean squared difference between the predictions of M models, in units of `scale`.

        D_ij = sqrt( sum_x w_x |f_i(x) - f_j(x)|^2 / sum_x w_x ) / scale

    Args:
        predictions: (M, n) or (M, n, k) any float dtype; with more axes, all but the first and
            the last are examples.
        weight: one weight >= 0 per example (see `hellinger_matrix`).
        scale: positive number in the unit of the predictions; the standard deviation of the
            targets is the natural choice. None: the *median over the models* of each model's own
            standard deviation over the examples (root of the summed variances of the k outputs),
            so that one diverged model cannot shrink the distances of all others; 1 if that is 0.
        chunk: examples handled at once.

    Returns:
        (M, M) float64 >= 0, symmetric, diagonal exactly 0; or None (table of the module).

    Raises:
        ValueError: fewer than two axes, a scale that is not positive and finite, bad weights.

    Cost: M^2 n k multiplications; memory O(chunk M k + M^2).

    Example:
        >>> import numpy as np
        >>> prediction_matrix(np.array([[0.0, 0.0], [3.0, 4.0]]), scale=5.0).round(4)
        array([[0.    , 0.7071],
               [0.7071, 0.    ]])
    """
    outputs = np.asarray(predictions)
    if outputs.ndim < 2:
        raise ValueError(
            "prediction_matrix: expected predictions of shape (models, examples) or "
            f"(models, examples, outputs), got {outputs.shape}."
        )
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"prediction_matrix: expected scale > 0 and finite, got {scale}.")
    if outputs.ndim == 2:
        outputs = outputs[..., None]
    outputs, weight = _flatten(outputs, weight, "prediction_matrix")
    if weight.size == 0:
        return None
    blocks = _blocks(outputs, weight, chunk)
    finite = np.asarray(np.all([np.isfinite(b).all(axis=(1, 2)) for b, _ in blocks], axis=0))
    outputs = outputs[finite]
    if scale is None:
        scale = _median_deviation(outputs, weight)

    def scaled():
        for block, w in _blocks(outputs, weight, chunk):
            yield block * np.sqrt(w)[None, :, None]

    squared = _squared_distances(scaled(), int(finite.sum())) / weight.sum()
    return _embed(np.sqrt(squared) / scale, finite)


def _flatten(
    outputs: np.ndarray, weight: ArrayLike | None, who: str
) -> tuple[np.ndarray, np.ndarray]:
    """(M, ..., C) -> (M, n, C) without the examples of weight 0, and their weights (n,)."""
    middle = outputs.shape[1:-1]
    size = int(np.prod(middle))
    if weight is None:
        return outputs.reshape(outputs.shape[0], size, outputs.shape[-1]), np.ones(size)
    weights = np.asarray(weight, dtype=np.float64)
    if weights.shape != middle:
        raise ValueError(f"{who}: expected weight of shape {middle}, got {weights.shape}.")
    if not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError(f"{who}: expected finite weights >= 0 (0 = padding).")
    weights = weights.reshape(size)
    outputs = outputs.reshape(outputs.shape[0], size, outputs.shape[-1])
    return outputs[:, weights > 0], weights[weights > 0]


def _blocks(
    outputs: np.ndarray, weight: np.ndarray, chunk: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive examples as float64, with their weights."""
    if chunk is None:
        chunk = max(1, _CHUNK_ENTRIES // max(1, outputs.shape[0] * outputs.shape[-1]))
    for start in range(0, weight.size, chunk):
        part = slice(start, start + chunk)
        yield outputs[:, part].astype(np.float64), weight[part]


def _squared_distances(blocks: Iterator[np.ndarray], num_models: int) -> np.ndarray:
    """Squared Euclidean distances of the rows that `blocks` (M, c, C) make side by side."""
    gram = np.zeros((num_models, num_models))
    for block in blocks:
        rows = block.reshape(num_models, block.shape[1] * block.shape[2])
        rows = rows - rows.mean(axis=0) if num_models else rows
        gram += rows @ rows.T
    norms = np.diag(gram)
    squared = norms[:, None] + norms[None, :] - (gram + gram.T)
    np.fill_diagonal(squared, 0.0)
    return np.maximum(squared, 0.0)


def _embed(D: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Put the distances of the finite models in place; the rest is NaN off the diagonal."""
    full = np.full((finite.size, finite.size), np.nan)
    full[np.ix_(finite, finite)] = D
    np.fill_diagonal(full, 0.0)
    return full


def _median_deviation(outputs: np.ndarray, weight: np.ndarray) -> float:
    """Median over models of the standard deviation of the predictions over the examples."""
    if outputs.shape[0] == 0:
        return 1.0
    share = (weight / weight.sum())[:, None]
    deviations = []
    for one in outputs.astype(np.float64):
        centred = one - (share * one).sum(axis=0)
        deviations.append(np.sqrt((share * centred**2).sum()))
    return float(np.median(deviations)) or 1.0
