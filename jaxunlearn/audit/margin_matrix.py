"""Every model is a point: mean absolute difference of margins.

    D_ij = mean_x |g_i(x) - g_j(x)| / s(x),      g = log p_y / (1 - p_y), clipped to [-100, 100]

It is the matrix behind the energy of `margin_distance`: for groups a and b of the models,

    energy(D, a, b) = mean_x E(x) / s(x)

is an identity, since averaging |g_i(x) - g_j(x)| over pairs of models and over examples can be done
in either order. So the exact permutation test of `jaxunlearn.audit.energy` and the numbers per
example speak of one distance. It sees what the Hellinger distance of probabilities hardly does: the
difference between a confidence of 0.99 and of 0.9999. It is the l1 distance of vectors, for which
the energy is zero only if the margins of each example have equal laws; how examples vary
*together* within a model is left to `jaxunlearn.audit.two_sample.classifier_test`.

Source: G. J. Székely, M. L. Rizzo (2013), J. Stat. Plan. Inference 143; margins of ensembles,
K. Georgiev et al. (2025), arXiv:2410.23232.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist

from .margin_pairs import CLIP

_BLOCK = 4096  # examples at once; fixed, so that the sum has one order


def margin_matrix(margins: ArrayLike, *, scale: ArrayLike | None = None) -> np.ndarray | None:
    """Mean absolute difference of the margins of every two models.

        D_ij = mean_x |g_i(x) - g_j(x)| / s(x)

    Args:
        margins: (M, n) of all models of an audit, whatever they are.
        scale: (n,) s > 0, for instance `pooled_deviation`; None: 1, in nats of log-odds.

    Returns:
        (M, M) float64 >= 0, symmetric, diagonal exactly 0; None for n = 0. A model with NaN among
        its margins has NaN distances to all others, 0 to itself. `energy` of this matrix is the
        mean over examples of the energy of `margin_distance`.

    Raises:
        ValueError: margins that are not (M, n); a scale of another shape, or not positive.

    Cost: M^2 n differences; memory a block of examples in float64, and M^2.

    Example:
        >>> margin_matrix([[0.0, 0.0], [1.0, 3.0]])
        array([[0., 2.],
               [2., 0.]])
    """
    values = np.asarray(margins)
    if values.ndim != 2:
        raise ValueError(
            f"margin_matrix: expected margins of shape (models, n), got {values.shape}."
        )
    n = values.shape[1]
    if n == 0:
        return None
    s = np.ones(n) if scale is None else np.asarray(scale, dtype=np.float64)
    if s.shape != (n,) or not np.all(np.isfinite(s) & (s > 0)):
        raise ValueError(
            f"margin_matrix: expected scale of shape ({n},), finite and > 0, got shape {s.shape}"
            f"{f' with smallest {s.min()}' if s.size else ''}."
        )
    total = np.zeros(len(values) * (len(values) - 1) // 2)
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        g = np.clip(values[:, part].astype(np.float64), -CLIP, CLIP) / s[part]
        if total.size:
            total += pdist(g, "cityblock")
    D = np.zeros((len(values), len(values)))
    D[np.triu_indices(len(values), 1)] = total / n
    return D + D.T
