"""What do the neighbours say? k nearest neighbours on frozen features, by cosine.

    s(a, b) = a.b / (|a| |b|)
    yhat(x) = the label held by most of the k training examples with the largest s(x, .)

No parameter is fitted, so a model whose last layer alone was edited has exactly the predictions
that it had before: what the *features* still separate is what is measured. Scored on examples of
the forgotten kind with their true labels, this is remaining information and not behaviour, since
the labels of the forgotten kind are used to look it up. The reference is what retrained models
score by the same rule, never chance.

With features of another data set in place of the own one, fitted on its training part and scored
on its test part, it is the transfer of the features (see `downstream` for the classes to forget).

Source: Y. Kim et al. (2026), arXiv:2503.06991 (k = 5, cosine). Departure: ties have a stated rule.

| input                                   | result                                               |
|-----------------------------------------|------------------------------------------------------|
| classes with equally many votes         | the smallest label, as scikit-learn                  |
| training examples equally near          | the earlier rows are the nearer ones                 |
| k = 1, scored on the training examples  | 1 (unless features are parallel or 0)                |
| features 0 (no direction)               | s = 0 with everything                                |
| fewer training examples than k          | TooFew                                               |
| no example to predict                   | None                                                 |
| a model with NaN or Inf in its features | `knn_accuracy`: NaN; `knn_predictions`: -1           |

Similarities are float32 products in JAX, all models in one program; the rest is NumPy.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .errors import TooFew
from .similarity import as_features

_CHUNK_ENTRIES = 1 << 22  # similarities held at once, float32: 16 MiB


def knn_predictions(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    *,
    k: int = 5,
    chunk: int | None = None,
) -> np.ndarray | None:
    """The label of most of the k nearest training examples, for every model.

    Args:
        train_features: (M, n, d) of M models; any float dtype, read as float32.
        train_labels: (n,) integers >= 0, shared by all models.
        test_features: (M, m, d) of the same models.
        k: neighbours, 1 <= k <= n.
        chunk: test examples handled at once; None chooses so that their similarities stay near
            16 MiB. Never changes the answer.

    Returns:
        (M, m) int64 labels, -1 for a model with non-finite features; None for m = 0.

    Raises:
        TooFew: n < k. ValueError: shapes that do not match, labels that are no integers >= 0.

    Cost: M n m d multiplications and a partial sort of n numbers M m times; memory chunk n.

    Example:
        >>> train = [[[1.0, 0.0], [0.9, 0.1], [0.0, 2.0]]]
        >>> knn_predictions(train, [3, 3, 8], [[[5.0, 0.2], [0.1, 0.3]]], k=1)
        array([[3, 8]])
    """
    train, labels = as_labelled(train_features, train_labels, "knn_predictions: train")
    test = as_features(test_features, "knn_predictions: test")
    if test.shape[0] != train.shape[0] or test.shape[2] != train.shape[2]:
        raise ValueError(
            "knn_predictions: expected features of the same models and of the same width, got "
            f"{train.shape} and {test.shape}."
        )
    if k < 1:
        raise ValueError(f"knn_predictions: expected k >= 1, got {k}.")
    if labels.size < k:
        raise TooFew(
            f"knn_predictions: {k} neighbours asked of {labels.size} training example(s). "
            "Use a smaller k or more examples."
        )
    if test.shape[1] == 0:
        return None
    if chunk is None:
        chunk = max(1, min(test.shape[1], _CHUNK_ENTRIES // labels.size))
    finite = finite_models(train) & finite_models(test)
    sides = (jnp.asarray(directions(side, finite)) for side in (train, test))
    found = _vote(
        *sides,
        jnp.asarray(labels, jnp.int32),
        k=k,
        chunk=chunk,
    )
    return np.where(finite[:, None], np.asarray(found), -1).astype(np.int64)


def knn_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = 5,
    chunk: int | None = None,
) -> np.ndarray | None:
    """Share of test examples whose label is that of most of their k nearest training examples.

    Args:
        train_features, train_labels, test_features, k, chunk: as `knn_predictions`.
        test_labels: (m,) integers. Examples of the forgotten kind alone give its recall.

    Returns:
        (M,) float64 in [0, 1], NaN for a model with non-finite features; None for m = 0.

    Raises, Cost: as `knn_predictions`.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(2, 30, 4)), np.arange(30) % 3
        >>> knn_accuracy(x, y, x, y, k=1)
        array([1., 1.])
    """
    _, labels = as_labelled(test_features, test_labels, "knn_accuracy: test")
    found = knn_predictions(train_features, train_labels, test_features, k=k, chunk=chunk)
    if found is None:
        return None
    accuracy = (found == labels[None, :]).mean(axis=1)
    return np.where((found < 0).all(axis=1), np.nan, accuracy)


def as_labelled(features: ArrayLike, labels: ArrayLike, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Check: features (M, n, d) and labels (n,), integers >= 0."""
    x, y = as_features(features, who), np.asarray(labels)
    if y.shape != x.shape[1:2]:
        raise ValueError(
            f"{who}: features {x.shape} want labels of shape {x.shape[1:2]}, got {y.shape}."
        )
    if y.size and (y.dtype.kind not in "iu" or y.min() < 0):
        raise ValueError(f"{who}: expected labels as integers >= 0, got {y.dtype}, min {y.min()}.")
    return x, y.astype(np.int64)


def finite_models(features: np.ndarray) -> np.ndarray:
    """(M,) bool: models with finite features only."""
    return np.asarray(np.isfinite(features.astype(np.float64)).all(axis=(1, 2)))


def directions(features: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """x / |x|: (M, n, d) float32 of norm 1; 0 where x is, and for models that are not finite."""
    x = np.where(finite[:, None, None], features.astype(np.float64), 0.0)
    norm = np.sqrt(np.square(x).sum(axis=2, keepdims=True))
    return (x / np.where(norm > 0, norm, 1.0)).astype(np.float32)


@partial(jax.jit, static_argnames=("k", "chunk"))
def _vote(train: Array, test: Array, labels: Array, *, k: int, chunk: int) -> Array:
    """(M, m) labels; `train` and `test` are unit vectors."""

    def one_model(sides):
        rows, queries = sides

        def one_example(x):
            similarity = jnp.dot(rows, x, precision=jax.lax.Precision.HIGHEST)
            _, nearest = jax.lax.top_k(similarity, k)
            held = labels[nearest]
            votes = jnp.sum(held[:, None] == held[None, :], axis=1)
            return jnp.min(jnp.where(votes == jnp.max(votes), held, jnp.iinfo(jnp.int32).max))

        return jax.lax.map(one_example, queries, batch_size=chunk)

    return jax.lax.map(one_model, (train, test))
