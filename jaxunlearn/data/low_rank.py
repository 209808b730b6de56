"""Ratings of people who do not exist: a planted low rank, and popularity by a power law.

    s_ui = p_u . q_i + noise e_ui,      P(entry ui) ~ a_u b_i,   b of rank r:  r^-popularity

p and q are normal with p . q of variance 1; a falls as r^-1/2. Entries are drawn without
replacement with these weights, in one of two ways of the same law: the smallest of exponential keys
E / (a b) over all cells, where these are few, or draws whose repetitions are thrown away.

| kind       | value                                           | weight of an entry               |
|------------|-------------------------------------------------|----------------------------------|
| `explicit` | 3.5 + s rounded to halves, kept within [0.5, 5] | a_u b_i                          |
| `implicit` | a count, 1 + floor(E exp(s)), E exponential     | times exp(2 s), s within [-1, 1] |

Nothing here asks NumPy for a distribution: uniform numbers are the raw output of PCG64, which NumPy
promises never to change.
"""

from collections.abc import Callable

import numpy as np

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.naming import did_you_mean

_DENSE = 2**22  # cells up to which every one gets a key
_CHUNK = 2**18  # entries whose factors are gathered at once
_DAY = 86_400


def low_rank_ratings(
    *,
    users: int,
    items: int,
    rank: int,
    density: float,
    noise: float,
    seed: int,
    kind: str = "explicit",
    popularity: float = 0.8,
) -> Ratings:
    """round(density users items) ratings with planted factors, sorted by user and item, with times.

    Args:
      users, items, rank: >= 1.
      density: share of the cells with an entry, in (0, 1]. There is at least one.
      noise: standard deviation of e, >= 0, in units of the deviation of the signal.
      seed: >= 0; equal arguments give equal bits.
      kind: `"explicit"` or `"implicit"`, see the module.
      popularity: exponent of the power law of the items, >= 0; 0: all alike.

    Returns:
      `Ratings` whose names are the row numbers, in an order that says nothing of popularity. Users
      and items without an entry occur. Each user's times lie within 60 days, those of all within
      1000.

    Raises:
      ValueError: an argument out of range.

    Cost: with at most 2^22 cells one pass over them, otherwise a few over the entries (1e7: about
    20 s); more than half of that many cells filled takes many draws.

    Example:
      >>> r = low_rank_ratings(users=50, items=30, rank=3, density=0.2, noise=0.1, seed=0)
      >>> len(r), float(r.value.min()), float(r.value.max())
      (300, 0.5, 5.0)
    """
    for name, count in (("users", users), ("items", items), ("rank", rank), ("seed", seed)):
        least = 0 if name == "seed" else 1
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
            raise ValueError(
                f"low_rank_ratings: expected {name} to be an integer >= {least}, got {count!r}."
            )
    if not 0 < density <= 1 or not 0 <= noise < np.inf or not 0 <= popularity < np.inf:
        raise ValueError(
            "low_rank_ratings: expected density in (0, 1], noise >= 0 and popularity >= 0, got "
            f"{density=}, {noise=}, {popularity=}."
        )
    if kind not in ("explicit", "implicit"):
        raise ValueError(
            f"low_rank_ratings: kind='{kind}' is unknown. "
            f"{did_you_mean(str(kind), ('explicit', 'implicit'))}"
        )
    bits = np.random.PCG64(int(seed))
    p = _normal(bits, users * rank).reshape(users, rank)
    q = _normal(bits, items * rank).reshape(items, rank) / np.sqrt(rank)
    active, liked = _power_law(bits, users, 0.5), _power_law(bits, items, popularity)

    def weight(u: np.ndarray, i: np.ndarray) -> np.ndarray:  # at most 1
        if kind == "explicit":
            return np.ones(len(u))
        return np.exp(2 * np.clip(_products(p, q, u, i), -1, 1) - 2)

    count = max(1, round(density * users * items))
    key = _draw(bits, count, active, liked, weight)
    u, i = np.divmod(key, items)
    score = _products(p, q, u, i) + noise * _normal(bits, count)
    if kind == "explicit":
        value = np.clip(np.round(2 * (3.5 + score)) / 2, 0.5, 5)
    else:
        value = 1 + np.floor(-np.log(_uniform(bits, count)) * np.exp(np.minimum(score, 5)))
    begin = 1_000_000_000 + 940 * _DAY * _uniform(bits, users)
    return Ratings(
        user=u.astype(np.int32),
        item=i.astype(np.int32),
        value=value.astype(np.float32),
        users=users,
        items=items,
        time=(begin[u] + 60 * _DAY * _uniform(bits, count)).astype(np.int64),
    )


def _draw(
    bits: np.random.PCG64,
    count: int,
    active: np.ndarray,
    liked: np.ndarray,
    weight: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """`count` distinct cells, sorted, drawn one after another with the weights given."""
    items, cells = len(liked), len(active) * len(liked)
    if cells <= _DENSE:
        every = np.arange(cells)
        u, i = np.divmod(every, items)
        arrival = -np.log(_uniform(bits, cells)) / (active[u] * liked[i] * weight(u, i))
        return np.sort(np.argpartition(arrival, count - 1)[:count])
    key = np.zeros(0, np.int64)
    while len(key) < count:
        tries = max(2 * (count - len(key)), count // 4)
        u, i = (_categories(bits, side, tries) for side in (active, liked))
        kept = _uniform(bits, tries) < weight(u, i)
        key = np.concatenate([key, (u * items + i)[kept]])
        key = key[np.sort(np.unique(key, return_index=True)[1])]  # the first of each, in order
    return np.sort(key[:count])


def _uniform(bits: np.random.PCG64, count: int) -> np.ndarray:
    """(count,) in (0, 1)."""
    return ((bits.random_raw(count) >> 12) + 0.5) * 2.0**-52


def _normal(bits: np.random.PCG64, count: int) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri(_uniform(bits, count))


def _power_law(bits: np.random.PCG64, count: int, exponent: float) -> np.ndarray:
    """r^-exponent for ranks r = 1..count in random order."""
    return (1.0 + np.argsort(_uniform(bits, count))) ** -exponent


def _categories(bits: np.random.PCG64, weights: np.ndarray, count: int) -> np.ndarray:
    steps = np.cumsum(weights)
    return np.searchsorted(steps[:-1] / steps[-1], _uniform(bits, count), side="right")


def _products(p: np.ndarray, q: np.ndarray, u: np.ndarray, i: np.ndarray) -> np.ndarray:
    """p_u . q_i for each pair, a chunk at a time."""
    out = np.empty(len(u))
    for start in range(0, len(u), _CHUNK):
        part = slice(start, start + _CHUNK)
        out[part] = np.einsum("nk,nk->n", p[u[part]], q[i[part]])
    return out
