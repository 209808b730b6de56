"""Rows of unequal length as a few rectangles: the ratings of every user, or of every item.

    row r   ->   other = (o_1, ..., o_n, 0, ..., 0),   entry = (e_1, ..., e_n, N, ..., N)

Rows of like length share a rectangle, padded to one of few lengths, chosen to waste least, so that
a half-sweep is a handful of loops with fixed shapes. A rectangle knows *where* a rating is
(`entry`, its place in the arrays of values and weights) and never what it is: a deletion writes one
weight, both sides see it, and no shape changes. Place N, one past the last, has weight 0.

With several devices the rows of each rectangle are dealt out in turn, like cards.
"""

from typing import Any, NamedTuple

import numpy as np

_CELLS_AT_ONCE = 2048  # ratings gathered at a time: with 64 factors half a megabyte, inside a cache
_ROWS_AT_ONCE = 32
_RECTANGLES = 4  # on each side at most: every one is a loop to be compiled
_MORE_RECTANGLES, _MANY = 8, 300_000  # for that many ratings, where padding costs more


class Rectangle(NamedTuple):
    """Rows of like length, on D devices; `length` slots each."""

    row: Any  # (D, n) int32 number of the row; the number of rows marks padding
    other: Any  # (D, n, length) int32 number on the other side; 0 in padding
    entry: Any  # (D, n, length) int32 place of the rating; N in padding


def rectangles(
    row: np.ndarray, other: np.ndarray, rows: int, *, devices: int = 1
) -> tuple[Rectangle, ...]:
    """The ratings of each row, grouped by how many there are.

    Args:
      row, other: (N,) integers, the two ends of every rating; row in [0, rows).
      rows: their number; rows without ratings are in the first rectangle, all padding.
      devices: D, among which rows are dealt out.

    Returns:
      Rectangles by growing length. Together they hold every row once and every rating once.

    Cost: a sort of N numbers on the host. Of a million ratings with degrees like those of films,
      a fifth of the slots is padding.

    Example:
      >>> wide, = rectangles(np.array([1, 0, 1]), np.array([5, 6, 7]), 2)
      >>> print(wide.row, wide.other[0, 1, :3], wide.entry[0, 1, :3])
      [[0 1]] [5 7 0] [0 2 3]
    """
    count = len(row)
    order = np.append(np.argsort(row, kind="stable"), count).astype(np.int32)  # and the padding
    degree = np.bincount(row, minlength=rows)
    start = np.concatenate([[0], np.cumsum(degree)])[:-1]
    lengths = _lengths(degree)
    place = np.searchsorted(lengths, degree)
    ends = np.append(other, 0).astype(np.int32)
    found = []
    for number, length in enumerate(lengths):
        members = np.flatnonzero(place == number)
        if not len(members):
            continue
        share = chunk_size(int(length), -(-len(members) // devices))
        size = -(-len(members) // (devices * share)) * share
        numbers = np.full(devices * size, rows, np.int32)
        numbers[: len(members)] = members
        slots = np.arange(length)[None]
        real = slots < np.where(numbers < rows, np.append(degree, 0)[numbers], 0)[:, None]
        entry = order[np.where(real, np.append(start, 0)[numbers][:, None] + slots, count)]
        found.append(Rectangle(*(_dealt(a, devices) for a in (numbers, ends[entry], entry))))
    return tuple(found)


def chunk_size(length: int, rows: int) -> int:
    """How many rows of that length are worked on at a time."""
    most = max(1, min(_ROWS_AT_ONCE, _CELLS_AT_ONCE // length))
    return min(most, max(1, rows))


def _lengths(degree: np.ndarray) -> np.ndarray:
    """The lengths of the few rectangles that hold all rows in the fewest slots.

    Candidates are multiples of 8 that grow by an eighth; dynamic programming chooses among them.
    """
    found = [8]
    while found[-1] < degree.max(initial=1):
        found.append(8 * -(-found[-1] * 9 // 64))
    length = np.array(found)
    upto = np.searchsorted(np.sort(degree), length, side="right")  # rows that fit each candidate
    best = upto * length  # slots of the rows that fit, in one rectangle
    cuts = []
    most = _RECTANGLES if degree.sum() < _MANY else _MORE_RECTANGLES
    for _ in range(most - 1):
        slots = best[:, None] + (upto[None] - upto[:, None]) * length[None]
        slots[np.tril_indices(len(length), -1)] = np.iinfo(np.int64).max
        cuts.append(slots.argmin(axis=0))
        best = slots.min(axis=0)
    chosen = [len(length) - 1]
    for cut in reversed(cuts):
        chosen.append(int(cut[chosen[-1]]))
    return length[np.unique(chosen)]


def _dealt(array: np.ndarray, devices: int) -> np.ndarray:
    """(D n, ...) -> (D, n, ...), row j to device j mod D."""
    return np.ascontiguousarray(np.swapaxes(array.reshape(-1, devices, *array.shape[1:]), 0, 1))
