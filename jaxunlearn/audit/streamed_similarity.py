"""CKA of data too large to hold: one pass over batches, or sums within batches alone.

    streaming_cka    exactly the value over all rows, whatever the batches; memory (p + q)^2
    minibatch_cka    unbiased HSIC summed over the batches, then divided; memory one batch

Everything that h of `jaxunlearn.audit.similarity` needs is in the products of *augmented* rows,

    S = sum_i (1, x_i, |x_i|^2)' (1, y_i, |y_i|^2)

since |x_i - mu|^2 = (|mu|^2, -2 mu, 1) . (1, x_i, |x_i|^2) is linear in them: with a and b those
coefficients, sum_i k_i l_i = a' S b, sum_i k_i = a' S e_1 and X'Y = S_xy - n mu nu'. Sums of S over
batches, devices and hosts add up; no average over batches is ever taken.

Sources: T. Nguyen et al. (2021), arXiv:2010.15327 (sums of unbiased HSIC over batches);
G. J. Székely and M. L. Rizzo (2014), arXiv:1310.2926. Departures: 1. rows are shifted by the mean
of the first batch before they are squared, so that far-off centres cost no digits; 2. batches of
unequal size are weighted by their degrees of freedom b (b - 3), where the paper has equal ones.

| input                             | result                                                     |
|-----------------------------------|------------------------------------------------------------|
| no row at all, or fewer than 4    | TooFew (biased `streaming_cka`: fewer than 2)              |
| an empty batch                    | adds nothing                                               |
| `minibatch_cka`, a batch of 1 to 3 | adds nothing: it has no degree of freedom                  |
| constant or non-finite features   | None: undefined                                            |

NumPy float64 on the host.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .similarity import as_pair, check_enough, debias, moments, precision, ratio


def streaming_cka(
    batches: Iterable[tuple[ArrayLike, ArrayLike]], *, debiased: bool = True
) -> float | None:
    """`cka` in one pass over batches: the value over all rows, for any size of batch.

    Args:
        batches: pairs of (b, p) and (b, q) features, b >= 0 rows each; any sizes, in any order.
        debiased: as `cka`.

    Returns:
        As `cka`, equal to it up to rounding (about 1e-12).

    Raises:
        TooFew, ValueError: as `cka`.

    Cost: one pass, n (p + q)^2 multiplications; memory (p + q)^2.

    Example:
        >>> import numpy as np
        >>> from jaxunlearn.audit import cka
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> parts = [(x[:20], x[:20] ** 3), (x[20:], x[20:] ** 3)]
        >>> abs(streaming_cka(parts) - cka(x, x**3)) < 1e-12
        True
    """
    sums: list[np.ndarray] = []
    shift: list[np.ndarray] = []
    tiny: list[float] = []
    for x, y in batches:
        pair = as_pair(x, y, "streaming_cka")
        if len(pair[0]) == 0:
            continue
        with np.errstate(invalid="ignore", over="ignore"):  # non-finite features: None below
            rows = [side.astype(np.float64) for side in pair]
            if not sums:
                shift = [side.mean(axis=0) for side in rows]
                tiny = [precision(side) for side in pair]
            a, b = (_augmented(side - middle) for side, middle in zip(rows, shift, strict=True))
            added = [a.T @ b, a.T @ a, b.T @ b]
            sums = [s + t for s, t in zip(sums, added, strict=True)] if sums else added
    check_enough(int(sums[0][0, 0]) if sums else 0, debiased, "streaming_cka")
    for S, middle, eps in zip(sums[1:], shift, tiny, strict=True):
        n, mu = S[0, 0], S[1:-1, 0] / S[0, 0]
        if not np.isfinite(S).all():
            return None
        spread = S[0, -1] - n * mu @ mu
        if not spread > eps**2 * (spread + n * np.square(mu + middle).sum()):
            return None
    return ratio(*(_moments_of_sums(S, debiased) for S in sums))


def minibatch_cka(batches: Iterable[tuple[ArrayLike, ArrayLike]]) -> float | None:
    """Debiased CKA when not even (p + q)^2 numbers fit: unbiased h summed over the batches.

        sum_b h_b(X, Y) / sqrt( sum_b h_b(X, X)  sum_b h_b(Y, Y) )

    Each sum is unbiased, so the ratio approaches that of the population as batches are added,
    whatever their size; the average of *biased* batch values does not. It is not the value over
    all rows (`streaming_cka`): two rows of different batches are never compared.

    Args:
        batches: pairs of (b, p) and (b, q) features, random batches of the data.

    Returns:
        A float in [-1, 1], or None where it is undefined.

    Raises:
        TooFew: no batch of at least 4 rows. ValueError: as `cka`.

    Cost: that of `cka` for every batch.

    Example:
        >>> import numpy as np
        >>> from jaxunlearn.audit import cka
        >>> rng = np.random.default_rng(0)
        >>> pairs = [rng.normal(size=(2, 8, 32)) for _ in range(200)]
        >>> biased = np.mean([cka(x, y, debiased=False) for x, y in pairs])
        >>> bool(abs(minibatch_cka(pairs)) < 0.05 < 0.75 < biased)
        True
    """
    total = np.zeros((3, 2))
    energies = np.zeros((2, 2))  # of x and y: about the mean of the batch, about 0
    tiny: list[float] = []
    for x, y in batches:
        pair = as_pair(x, y, "minibatch_cka")
        if len(pair[0]) < 4:
            continue
        tiny = tiny or [precision(side) for side in pair]
        with np.errstate(invalid="ignore", over="ignore"):
            rows = [side.astype(np.float64) for side in pair]
            a, b = (side - side.mean(axis=0) for side in rows)
            total += [moments(a, b, True), moments(a, a, True), moments(b, b, True)]
            energies += [
                [np.square(c).sum(), np.square(r).sum()] for c, r in zip((a, b), rows, strict=True)
            ]
    if not tiny:
        raise TooFew("minibatch_cka: expected a batch of at least 4 rows. Use larger batches.")
    if not (energies[:, 0] > np.square(tiny) * energies[:, 1]).all():
        return None
    return ratio(*total)


def _augmented(x: np.ndarray) -> np.ndarray:
    """(b, p) -> (b, p + 2): the rows (1, x, |x|^2)."""
    ones, squares = np.ones((len(x), 1)), np.square(x).sum(axis=1, keepdims=True)
    return np.concatenate([ones, x, squares], axis=1)


def _moments_of_sums(S: np.ndarray, debiased: bool) -> np.ndarray:
    """`moments` from the sums S."""
    n, mu, nu = S[0, 0], S[1:-1, 0] / S[0, 0], S[0, 1:-1] / S[0, 0]
    biased = np.square(S[1:-1, 1:-1] - n * np.outer(mu, nu)).sum()
    if not debiased:
        return np.array([biased, biased])
    a, b = np.r_[mu @ mu, -2 * mu, 1], np.r_[nu @ nu, -2 * nu, 1]
    return np.array([debias(biased, n, a @ S @ b, (a @ S[:, 0]) * (S[0] @ b)), biased])
