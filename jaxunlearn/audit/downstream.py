"""Which classes should be forgotten to hurt most elsewhere? Those that another data set resembles.

    rank classes by  #{downstream examples x: yhat(x) = c}
    yhat(x) = argmax_c z_c(x)                              the head's prediction, or
    yhat(x) = argmax_c s(x, mean_{i: y_i = c} u_i)         the nearest centroid, s the cosine

A random class to be forgotten is seldom one that a downstream task leans on. Forgetting the most
resembled classes instead is the hard case of a transfer test (`knn_accuracy`, `probe_accuracy` on
the downstream data): does forgetting them wreck the features that the task needs?

Source: Y. Kim et al. (2026), arXiv:2503.06991. *A reconstruction*: the paper publishes its lists of
"top" classes and what they are for, not the rule that made them.

| input                              | result                                              |
|------------------------------------|-----------------------------------------------------|
| classes predicted equally often    | the smaller number first                            |
| centroids equally near             | the smaller label                                   |
| a model with NaN or Inf            | `nearest_centroids`: -1 for all its examples        |
| no prediction, no reference        | TooFew                                              |

NumPy on the host.
"""

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .neighbours import as_labelled, directions, finite_models
from .similarity import as_features


def nearest_centroids(
    features: ArrayLike, reference_features: ArrayLike, reference_labels: ArrayLike
) -> np.ndarray:
    """The class whose mean direction is nearest, by cosine, for every model.

        yhat(x) = argmax_c s( x, mean_{i: y_i = c} u_i ),   u_i = x_i / |x_i|

    Args:
        features: (M, n, d) of the examples to be placed.
        reference_features: (M, m, d) of the same models. reference_labels: (m,) integers >= 0.

    Returns:
        (M, n) int64 labels among those of the reference, the smallest one at a tie; -1 for a model
        with non-finite features.

    Example:
        >>> nearest_centroids([[[0.1, 5.0]]], [[[1.0, 0.0], [0.0, 1.0]]], [4, 7])
        array([[7]])
    """
    reference, labels = as_labelled(
        reference_features, reference_labels, "nearest_centroids: reference"
    )
    x = as_features(features, "nearest_centroids")
    if labels.size == 0:
        raise TooFew("nearest_centroids: the reference has no example, so there is no centroid.")
    if x.shape[0] != reference.shape[0] or x.shape[2] != reference.shape[2]:
        raise ValueError(
            "nearest_centroids: expected features of the same models and of the same width, got "
            f"{x.shape} and {reference.shape}."
        )
    finite = finite_models(x) & finite_models(reference)
    units = directions(reference, finite).astype(np.float64)
    classes = np.unique(labels)
    centroids = np.stack([units[:, labels == c].mean(axis=1) for c in classes], axis=1)
    similarity = directions(x, finite) @ directions(centroids, finite).transpose(0, 2, 1)
    return np.where(finite[:, None], classes[similarity.argmax(axis=2)], -1)


def closest_classes(predictions: ArrayLike, *, num_classes: int, count: int) -> np.ndarray:
    """The classes that a downstream data set resembles most: those it is taken for most often.

        rank classes by  #{downstream examples x: yhat(x) = c},  the smaller number first at a tie

    To forget these is the hardest test of transfer: their features are the ones in use downstream.
    A reconstruction (see the module).

    Args:
        predictions: integers in [0, num_classes), any shape: classes predicted for downstream
            examples, by the head (argmax of the logits) or by `nearest_centroids`, of one model or
            of several.
        num_classes: classes of the upstream data.
        count: how many classes to choose, 1 <= count <= num_classes.

    Returns:
        (count,) int64, the most resembled class first.

    Raises:
        TooFew: no prediction. ValueError: predictions or count out of range.

    Example:
        >>> closest_classes([2, 2, 0, 3, 3, 3], num_classes=5, count=2)
        array([3, 2])
    """
    found = np.asarray(predictions).ravel()
    if found.size == 0:
        raise TooFew("closest_classes: no prediction to rank the classes by.")
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= num_classes:
        raise ValueError(
            f"closest_classes: expected predictions as integers in [0, {num_classes}), got "
            f"{found.dtype} from {found.min()} to {found.max()}."
        )
    if not 1 <= count <= num_classes:
        raise ValueError(f"closest_classes: expected count in [1, {num_classes}], got {count}.")
    votes = np.bincount(found, minlength=num_classes)
    return np.argsort(-votes, kind="stable")[:count].astype(np.int64)
