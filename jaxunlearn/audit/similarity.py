"""Do two models see the same likenesses between examples? Centred kernel alignment (CKA).

With features X (n, p) and Y (n, q) of the same n examples, columns centred,

    CKA(X, Y) = h(X, Y) / sqrt( h(X, X) h(Y, Y) )
    biased    h = |X'Y|_F^2  =  <X X', Y Y'>_F
    debiased  h = |X'Y|_F^2 - n/(n-2) sum_i k_i l_i + (sum_i k_i)(sum_i l_i) / ((n-1)(n-2))

with k_i = |x_i|^2 and l_i = |y_i|^2. The second is n(n-3) times the unbiased estimate of HSIC; the
usual form over Gram matrices without diagonals reduces to it, because the rows of a centred Gram
matrix sum to 0. Both h are inner products (of centred and of U-centred Gram matrices), therefore

    biased CKA in [0, 1],   debiased CKA in [-1, 1],   and sqrt(1 - CKA) is a Euclidean distance

up to the factor sqrt 2. The biased value of *independent* Gaussian features of width p is about
p/(n + p): 0.8 for a batch of 512 rows of 2048 features. Averaged over batches, as published code
does, it stays there however many batches there are. The debiased value is near 0. The default here
is debiased, over all the data.

The same numbers from data too large to hold are in `streamed_similarity`.

CKA has a ceiling below 1: what two *retrained* models score. Never read it without (`mean_cka`).

Sources: CKA, S. Kornblith et al. (2019), arXiv:1905.00414; unbiased HSIC, L. Song et al. (2012),
JMLR 13; over batches, T. Nguyen et al. (2021), arXiv:2010.15327; U-centring, G. J. Székely and
M. L. Rizzo (2014), arXiv:1310.2926; as an audit of unlearning, Y. Kim et al. (2026),
arXiv:2503.06991. Departures: 1. no average of biased batch values; 2. all pairs of models, so that
an exact test can follow, where the paper compares with one retrained model.

| input                                           | result                                       |
|-------------------------------------------------|----------------------------------------------|
| the same features on both sides                 | 1 up to rounding                             |
| rotated, shifted or isotropically scaled        | unchanged; a general linear map does change it |
| constant features (a collapsed model)           | undefined: None, or NaN for that model       |
| debiased, all examples equally far apart        | undefined: there is no likeness to compare   |
| a model with NaN or Inf                         | NaN for that model                           |
| fewer than 4 examples (biased: 2)               | TooFew                                       |

NumPy float64 on the host. The range that rounding could leave is restored.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .groups import as_indices

_CHUNK_ENTRIES = 1 << 21  # entries of one block of Gram rows: 16 MiB
_ROUNDING = 1e-12  # of h relative to the sums that it is a difference of


def cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> float | None:
    """Linear CKA between two sets of features of the same examples, over all of them at once.

    Args:
        x: (n, p), y: (n, q) any float dtype, row i of both from example i; more axes are flattened.
        debiased: the debiased h of the module, else the biased one.

    Returns:
        A float in [-1, 1] (biased: [0, 1]), or None where it is undefined.

    Raises:
        TooFew: fewer than 4 examples (biased: 2). ValueError: different numbers of examples.

    Cost: for each of the three h the cheaper of n p q and n^2 (p + q); memory p q or n^2.

    Example:
        >>> x = [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 5.0]]
        >>> cka(x, [[-2.0 * b, 2.0 * a] for a, b in x])     # turned by 90 degrees and doubled
        1.0
    """
    rows_x, rows_y = as_pair(x, y, "cka")
    check_enough(len(rows_x), debiased, "cka")
    (x, ok_x), (y, ok_y) = _normalise(rows_x[None]), _normalise(rows_y[None])
    if not (ok_x.all() and ok_y.all()):
        return None
    return ratio(*(moments(a[0], b[0], debiased) for a, b in ((x, y), (x, x), (y, y))))


def cka_matrix(
    features: ArrayLike,
    *,
    debiased: bool = True,
    dtype: Any = np.float64,
    chunk: int | None = None,
) -> np.ndarray:
    """Linear CKA between all pairs of M models.

    Args:
        features: (M, n, d) any float dtype, the same n examples for every model; more axes after
            the second are flattened.
        debiased: as `cka`.
        dtype: of the products, np.float64 or np.float32 (about 1e-5 from the former, and half the
            time); their sums over blocks are float64.
        chunk: rows of the Gram matrices held at once; None chooses so that a block stays near
            16 MiB. Never changes the answer beyond rounding.

    Returns:
        (M, M) float64, symmetric, diagonal exactly 1; NaN in the rows and columns of models for
        which it is undefined.

    Raises:
        TooFew: as `cka`. ValueError: not (M, n, d).

    Cost: the cheaper of M n^2 (d + M) / 2 (Gram matrices) and M^2 n d^2 / 2 (cross products)
    multiplications; memory O(M n d + chunk M n) or O(M n d + M d^2).

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(2, 400, 3))
        >>> x[1, :, 0] = x[0, :, 0]         # one direction of three in common
        >>> cka_matrix(x).round(1)
        array([[1. , 0.3],
               [0.3, 1. ]])
    """
    stack = as_features(features, "cka_matrix")
    if np.dtype(dtype) not in (np.float64, np.float32):
        raise ValueError(f"cka_matrix: expected dtype float64 or float32, got {np.dtype(dtype)}.")
    n, d = stack.shape[1:]
    check_enough(n, debiased, "cka_matrix")
    x, defined = _normalise(stack)
    x = x[defined].astype(dtype)
    if n * (d + len(x)) < len(x) * d * d:
        h = biased = _gram_products(x, chunk)
    else:
        h = biased = _cross_products(x)
    if debiased:
        k = np.square(x.astype(np.float64)).sum(axis=2)
        total = k.sum(axis=1)
        h = debias(biased, n, k @ k.T, total[:, None] * total[None, :])
    own, raw = np.diag(h), np.diag(biased)
    usable = own > 1e4 * np.finfo(x.dtype).eps * raw
    scale = np.sqrt(np.where(usable, own, np.nan))
    value = np.clip(h / (scale[:, None] * scale[None, :]), -1.0 if debiased else 0.0, 1.0)
    np.fill_diagonal(value, np.where(usable, 1.0, np.nan))
    full = np.full((len(stack), len(stack)), np.nan)
    full[np.ix_(defined, defined)] = value
    return full


def cka_distance(matrix: ArrayLike) -> np.ndarray:
    """d = sqrt(max(0, 1 - CKA)), a Euclidean distance between models, for exact tests.

    Args:
        matrix: (M, M) of `cka_matrix`.

    Returns:
        (M, M) float64 in [0, sqrt 2] (from biased values [0, 1]), diagonal exactly 0; NaN off the
        diagonal for a model without a CKA, as `hellinger_matrix` has it. Two models with equal
        features are at 0 up to rounding of the square (about 1e-8).

    Example:
        >>> cka_distance([[1.0, 0.75], [0.75, 1.0]])
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    matrix = _as_square(matrix, "cka_distance")
    distance = np.sqrt(np.maximum(0.0, 1.0 - matrix))
    np.fill_diagonal(distance, 0.0)
    return distance


def mean_cka(matrix: ArrayLike, group: ArrayLike) -> np.ndarray:
    """Mean CKA of every model to the models of a group, itself left out.

    With the oracles as the group, the values of the oracles themselves are the ceiling that two
    retrained models reach, and the values of a method are read against it.

    Args:
        matrix: (M, M) of `cka_matrix`. group: numbers of models, at least one.

    Returns:
        (M,) float64; NaN for a model without a CKA, or with no other model in the group. Models of
        the group without a CKA are left out.

    Example:
        >>> mean_cka([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]], [0, 1])
        array([0.5, 0.5, 0.2])
    """
    matrix = _as_square(matrix, "mean_cka")
    index = as_indices(group, len(matrix), "mean_cka: group")
    if index.size == 0:
        raise TooFew("mean_cka: the group is empty; there is no model to compare with.")
    used = np.isfinite(matrix[:, index]) & (np.arange(len(matrix))[:, None] != index[None, :])
    total = np.where(used, matrix[:, index], 0.0).sum(axis=1)
    count = used.sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def as_features(features: ArrayLike, who: str) -> np.ndarray:
    """Check: (M, n, d) numbers, with axes after the second flattened into d."""
    stack = np.asarray(features)
    if stack.ndim < 3 or stack.dtype.kind not in "fiub" and stack.dtype.name != "bfloat16":
        raise ValueError(
            f"{who}: expected features of shape (models, examples, d), got {stack.dtype} "
            f"{stack.shape}. One model alone is features[None]."
        )
    return stack.reshape(*stack.shape[:2], int(np.prod(stack.shape[2:])))


def as_pair(x: ArrayLike, y: ArrayLike, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Check: features (n, p) and (n, q) of the same n examples, later axes flattened."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim < 2 or y.ndim < 2 or len(x) != len(y):
        raise ValueError(
            f"{who}: expected features (n, p) and (n, q) of the same examples, got {x.shape} and "
            f"{y.shape}."
        )
    p, q = int(np.prod(x.shape[1:])), int(np.prod(y.shape[1:]))
    return x.reshape(len(x), p), y.reshape(len(y), q)


def _as_square(matrix: ArrayLike, who: str) -> np.ndarray:
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{who}: expected a square matrix of CKA values, got {matrix.shape}.")
    return matrix


def check_enough(n: int, debiased: bool, who: str) -> None:
    least = 4 if debiased else 2
    if n < least:
        kind = "debiased" if debiased else "biased"
        raise TooFew(f"{who}: {n} example(s); the {kind} CKA needs at least {least}.")


def precision(features: np.ndarray) -> float:
    """Relative rounding of the features: what spreads no more than this is constant."""
    kind = features.dtype if jnp.issubdtype(features.dtype, jnp.floating) else np.float64
    return 4 * float(jnp.finfo(kind).eps)


def _normalise(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, n, d) centred over the examples, Frobenius norm 1; and which models are defined."""
    x = stack.astype(np.float64)
    finite = np.asarray(np.isfinite(x).all(axis=(1, 2)))
    x = np.where(finite[:, None, None], x, 0.0)
    largest = np.abs(x).max(axis=(1, 2), initial=0.0)
    x = x / np.where(largest > 0, largest, 1.0)[:, None, None]
    whole = np.sqrt(np.square(x).sum(axis=(1, 2)))
    x = x - x.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(x).sum(axis=(1, 2)))
    defined = finite & (norm > precision(stack) * whole)
    return x / np.where(defined, norm, 1.0)[:, None, None], defined


def debias(biased: Any, n: Any, products: Any, sums: Any) -> Any:
    """The debiased h of the module from |X'Y|_F^2, sum_i k_i l_i and (sum_i k_i)(sum_i l_i)."""
    return biased - n / (n - 2) * products + sums / ((n - 1) * (n - 2))


def moments(x: np.ndarray, y: np.ndarray, debiased: bool) -> np.ndarray:
    """h and its biased form, (2,), for centred features; by whichever product is smaller."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    if p * q <= n * (p + q):
        biased = np.square(x.T @ y).sum()
    else:
        biased = np.maximum(((x @ x.T) * (y @ y.T)).sum(), 0.0)
    if not debiased:
        return np.array([biased, biased])
    k, m = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    return np.array([debias(biased, n, k @ m, k.sum() * m.sum()), biased])


def ratio(xy: np.ndarray, xx: np.ndarray, yy: np.ndarray) -> float | None:
    """h_xy / sqrt(h_xx h_yy) from `moments`, or None where an own h is no more than rounding."""
    if not (xx[0] > _ROUNDING * xx[1] and yy[0] > _ROUNDING * yy[1]):
        return None
    return float(np.clip(xy[0] / (np.sqrt(xx[0]) * np.sqrt(yy[0])), -1.0, 1.0))


def _gram_products(x: np.ndarray, chunk: int | None) -> np.ndarray:
    """(M, M) of <X_i X_i', X_j X_j'>_F, by blocks of rows; of two equal halves one is made."""
    M, n, _ = x.shape
    chunk = max(1, _CHUNK_ENTRIES // max(1, M * n)) if chunk is None else chunk
    total = np.zeros((M, M))
    for start in range(0, n, chunk):
        rows = np.matmul(x[:, start : start + chunk], x[:, start:].transpose(0, 2, 1))
        rows[:, :, rows.shape[1] :] *= np.sqrt(x.dtype.type(2))
        flat = rows.reshape(M, rows.shape[1] * rows.shape[2])
        total += flat @ flat.T
    return total


def _cross_products(x: np.ndarray) -> np.ndarray:
    """(M, M) of |X_i' X_j|_F^2."""
    total = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        across = np.matmul(x[i].T, x[i:])
        total[i, i:] = total[i:, i] = np.square(across).sum(axis=(1, 2), dtype=np.float64)
    return total
