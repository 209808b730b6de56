"""How good recommendations are, and how alike: errors of ratings, ranks of items, overlap of lists.

Of the predictions f of a model for entries (u, i, r), and of its list L_u of items for a person u
whose held-out items are H_u:

    rmse             sqrt( mean (r - f)^2 )                            unit of the ratings
    explained        1 - mean (r - f)^2 / variance of the ratings      1 = perfect, 0 = their mean
    pair_accuracy    Pr( f(u, i) > f(u, j) ) + 1/2 Pr(equal),  j an item that u never met
    recall@k         |L_u[:k] and H_u| / min(k, |H_u|)                 mean over people
    ndcg@k           sum_{hits at rank r <= k} 1 / log2(1 + r)  /  the same of the best list
    overlap@k        |L_u[:k] and L'_u[:k]| / k                        mean over people, and oracles

`explained` and `pair_accuracy` are what accuracy is to a classifier: the share of what there is to
know, with a chance level that needs no model (0 for predicting the mean, 1/2 for guessing).

Sources: recall with min(k, |H|) below the line is that of the iALS benchmarks, S. Rendle et al.
(2021), arXiv:2110.14037; NDCG with binary gains, K. Järvelin, J. Kekäläinen (2002).

| input                                          | result                                      |
|------------------------------------------------|---------------------------------------------|
| no entry, nobody with a held-out item          | None: undefined, not 0                      |
| a model with a non-finite prediction           | NaN for that model                          |
| a variance of 0                                | `explained`: None                           |
| an item number below 0 in a list               | an empty place: never a hit                 |
| two lists without any item                     | `overlap_at_k`: 1                           |
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew


def rmse(predictions: ArrayLike, ratings: ArrayLike) -> np.ndarray | None:
    """Root mean square error of M models.

    Args:
        predictions: (M, n). ratings: (n,) finite.

    Returns:
        (M,) float64 >= 0 in the unit of the ratings, or None without entries.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> rmse([[3.0, 5.0], [4.0, 4.0]], [4.0, 4.0])
        array([1., 0.])
    """
    f, r = _entries("rmse", predictions, ratings)
    return np.sqrt(((f - r[None]) ** 2).mean(axis=1)) if r.size else None


def explained(predictions: ArrayLike, ratings: ArrayLike, *, variance: float) -> np.ndarray | None:
    """Mean squared error as a share of the variance of all ratings, taken from 1.

        1 - mean (r - f)^2 / variance

    Args:
        predictions: (M, n). ratings: (n,) finite.
        variance: of the training ratings, >= 0; the error of who knows no user and no item and
            predicts the mean. Not that of these n, which may be the few and equal ones of one user.

    Returns:
        (M,) float64 <= 1, negative for a model worse than the mean; None (table of the module).

    Raises:
        ValueError: shapes that do not match, a variance that is negative or not finite.

    Example:
        >>> explained([[3.0, 5.0], [4.0, 5.0]], [4.0, 4.0], variance=1.0)
        array([0. , 0.5])
    """
    f, r = _entries("explained", predictions, ratings)
    if not 0 <= variance < np.inf:
        raise ValueError(f"explained: expected a finite variance >= 0, got {variance}.")
    return 1 - ((f - r[None]) ** 2).mean(axis=1) / variance if r.size and variance else None


def pair_accuracy(scores: ArrayLike, others: ArrayLike) -> np.ndarray | None:
    """Share of pairs in which an entry's item scores above one that its user never met.

    Args:
        scores: (M, n) of the entries. others: (M, n, c) of c other items for the same users.

    Returns:
        (M,) float64 in [0, 1], ties counted one half; None without entries.

    Raises:
        ValueError: shapes that do not match.

    Example:
        >>> pair_accuracy([[2.0]], [[[1.0, 2.0, 3.0, 0.0]]])
        array([0.625])
    """
    own, theirs = np.asarray(scores, np.float64), np.asarray(others, np.float64)
    if own.ndim != 2 or theirs.ndim != 3 or theirs.shape[:2] != own.shape:
        raise ValueError(
            "pair_accuracy: expected scores (models, entries) and others (models, entries, c), got "
            f"{own.shape} and {theirs.shape}."
        )
    if theirs[:1].size == 0:
        return None
    with np.errstate(invalid="ignore"):  # Inf - Inf
        side = (1 + np.sign(own[..., None] - theirs)) / 2
    finite = np.isfinite(own).all(axis=1) & np.isfinite(theirs).all(axis=(1, 2))
    return np.where(finite, side.mean(axis=(1, 2)), np.nan)


def recall_at_k(lists: ArrayLike, held_out: Sequence[ArrayLike], *, k: int) -> np.ndarray | None:
    """Share of the held-out items that are among the first k, of what k places can hold.

    Args:
        lists: (M, U, K) integer item numbers, best first, K >= k; below 0 is an empty place.
        held_out: for each of the U people, their held-out item numbers.
        k: >= 1.

    Returns:
        (M,) float64 in [0, 1], the mean over people with a held-out item; None without any.

    Raises:
        ValueError: shapes that do not match, k out of range.

    Example:
        >>> recall_at_k([[[7, 3, 5]]], [[5, 7]], k=2)
        array([0.5])
    """
    hits, sizes = _hits("recall_at_k", lists, held_out, k)
    if not sizes.any():
        return None
    found = hits.sum(axis=2)[:, sizes > 0] / np.minimum(k, sizes[sizes > 0])
    return found.mean(axis=1)


def ndcg_at_k(lists: ArrayLike, held_out: Sequence[ArrayLike], *, k: int) -> np.ndarray | None:
    """Normalised discounted cumulative gain of the first k places, gains 0 or 1.

    Args, Returns, Raises: as `recall_at_k`.

    Example:
        >>> ndcg_at_k([[[7, 3]]], [[7]], k=2), ndcg_at_k([[[3, 7]]], [[7]], k=2).round(3)
        (array([1.]), array([0.631]))
    """
    hits, sizes = _hits("ndcg_at_k", lists, held_out, k)
    if not sizes.any():
        return None
    gain = 1 / np.log2(2 + np.arange(k))
    best = np.cumsum(gain)[np.minimum(k, sizes[sizes > 0]) - 1]
    return ((hits[:, sizes > 0] @ gain) / best).mean(axis=1)


def overlap_at_k(lists: ArrayLike, references: ArrayLike, *, k: int) -> np.ndarray | None:
    """How many of k recommendations a retrained model would have made as well, as a share.

        o_i = mean_{references j} mean_{people u} |L_iu[:k] and L_ju[:k]| / k

    Args:
        lists: (M, U, K) integer item numbers, no item twice in a list; below 0 is an empty place.
        references: (N, U, K) of the oracles, N >= 1, for the same people.
        k: in [1, K]. A pair of lists that both hold fewer is compared in the longer one's length.

    Returns:
        (M,) float64 in [0, 1]; None without people.

    Raises:
        TooFew: no reference. ValueError: shapes that do not match, k out of range.

    Cost: M N U k^2 comparisons.

    Example:
        >>> overlap_at_k([[[1, 2, 9]]], [[[2, 3, 9]], [[2, 1, 9]]], k=2)
        array([0.75])
    """
    own, theirs = (_lists("overlap_at_k", each, k) for each in (lists, references))
    if own.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"overlap_at_k: expected lists for the same people, got {own.shape} and {theirs.shape}."
        )
    if len(theirs) == 0:
        raise TooFew("overlap_at_k: no reference to compare with.")
    if own.shape[1] == 0:
        return None
    held = (theirs >= 0).sum(axis=-1)
    out = np.empty(len(own))
    for i, one in enumerate(own):
        same = (one[None, :, :, None] == theirs[:, :, None]) & (one >= 0)[None, :, :, None]
        longer = np.maximum((one >= 0).sum(axis=-1)[None], held)
        shares = np.where(longer > 0, same.sum(axis=(2, 3)) / np.maximum(longer, 1), 1.0)
        out[i] = shares.mean()
    return out


def _entries(who: str, predictions: ArrayLike, ratings: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    f, r = np.asarray(predictions, np.float64), np.asarray(ratings, np.float64)
    if f.ndim != 2 or r.shape != f.shape[1:]:
        raise ValueError(
            f"{who}: expected predictions (models, entries) and ratings (entries,), got {f.shape} "
            f"and {r.shape}."
        )
    return np.where(np.isfinite(f), f, np.nan), r


def _lists(who: str, lists: ArrayLike, k: int) -> np.ndarray:
    found = np.asarray(lists)
    if found.ndim != 3 or found.dtype.kind not in "iu" or not 1 <= k <= found.shape[2]:
        raise ValueError(
            f"{who}: expected integer lists (models, people, places) with at least k = {k} places, "
            f"got {found.dtype} {found.shape}."
        )
    return found[..., :k]


def _hits(
    who: str, lists: ArrayLike, held_out: Sequence[ArrayLike], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(M, U, k) whether a place holds a held-out item, and (U,) how many there are."""
    found = _lists(who, lists, k)
    if len(held_out) != found.shape[1]:
        raise ValueError(
            f"{who}: expected held-out items of {found.shape[1]} people, got {len(held_out)}."
        )
    wanted = [np.unique(np.asarray(items, np.int64)) for items in held_out]
    hits = np.zeros(found.shape, bool)
    for person, items in enumerate(wanted):
        hits[:, person] = np.isin(found[:, person], items) & (found[:, person] >= 0)
    return hits, np.array([len(items) for items in wanted], int)
