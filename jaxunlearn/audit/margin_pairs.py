"""Two ensembles of margins side by side: checked once, cut into blocks, summed up over examples.

`klom`, `margin_distance`, `forgetting_quality` and `two_sample` all ask the same question, example
by example: do the margins g(x) = log p_y / (1 - p_y) of N oracles and of M models of a method come
from one law? What they share stands here:

    clip    g <- min(max(g, -100), 100)       so that a probability of 0 or 1 has a finite margin
    blocks  consecutive examples, (c, N) and (c, M), examples first: every number of an example is
            made from its own row alone, in an order that does not depend on c

so that memory is bounded by the block and the result has the same bits for any block.

| input                            | result                                          |
|----------------------------------|-------------------------------------------------|
| margins of +-Inf                 | clipped                                         |
| NaN                              | ValueError that names the models: leave them out|
| fewer than `least` models a side | TooFew                                          |
| other examples on the two sides  | ValueError                                      |
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew

CLIP = 100.0
_BLOCK_ENTRIES = 1 << 21  # numbers of one block in float64: 16 MiB


class ExampleSummary(NamedTuple):
    """A number of every example, over the examples of a part."""

    mean: float
    quantile95: float  # the worst twentieth of the examples begins here
    worst: float  # the largest


def over_examples(values: ArrayLike | None) -> ExampleSummary | None:
    """Mean, 95th percentile and worst of (n,) values; None and no value stay None.

    Example:
        >>> over_examples([0.0, 1.0])
        ExampleSummary(mean=0.5, quantile95=0.95, worst=1.0)
    """
    if values is None or np.size(values) == 0:
        return None
    values = np.asarray(values, dtype=np.float64)
    return ExampleSummary(
        float(values.mean()), float(np.quantile(values, 0.95)), float(values.max())
    )


def as_pair(
    oracle_margins: ArrayLike, method_margins: ArrayLike, who: str, *, least: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Both ensembles, checked; in their own dtype, not yet clipped.

    Args:
        oracle_margins: (N, n), N >= least. method_margins: (M, n), M >= least.
        who: the function that asks, for the message.
        least: fewest models that it can work with.

    Raises:
        TooFew, ValueError: see the table of the module.

    Example:
        >>> [side.shape for side in as_pair([[0.0], [1.0]], [[2.0], [3.0], [4.0]], "klom")]
        [(2, 1), (3, 1)]
    """
    oracle = as_margins(oracle_margins, "oracle_margins", who, least=least)
    method = as_margins(method_margins, "method_margins", who, least=least)
    if oracle.shape[1] != method.shape[1]:
        raise ValueError(
            f"{who}: expected the same examples on both sides, got "
            f"{oracle.shape[1]} and {method.shape[1]}."
        )
    return oracle, method


def as_margins(margins: ArrayLike, name: str, who: str, *, least: int = 2) -> np.ndarray:
    """One ensemble (models, n), checked; the half of `as_pair`."""
    values = np.asarray(margins)
    if values.ndim != 2:
        raise ValueError(f"{who}: expected {name} of shape (models, n), got {values.shape}.")
    if values.shape[0] < least:
        raise TooFew(
            f"{who}: {name} holds {values.shape[0]} model(s), needs at least {least}. "
            "Train more seeds."
        )
    broken = np.isnan(values).any(axis=1)
    if broken.any():
        models = np.flatnonzero(broken).tolist()
        raise ValueError(f"{who}: {name} is NaN for models {models}. Leave non-finite models out.")
    return values


def pair_blocks(
    oracle: np.ndarray,
    method: np.ndarray,
    who: str,
    *,
    chunk: int | None = None,
    entries: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive examples of a checked pair: (c, N) and (c, M) float64, clipped, contiguous.

    Args:
        oracle, method: from `as_pair`.
        who: the function that asks, for the message.
        chunk: examples in a block; None keeps a block near 16 MiB.
        entries: numbers that the caller holds for each example; None: N + M.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"{who}: expected chunk >= 1 examples, or None, got {chunk}.")
    n = oracle.shape[1]
    size = chunk or max(1, _BLOCK_ENTRIES // (entries or len(oracle) + len(method)))
    for start in range(0, n, size):
        part = slice(start, start + size)
        yield _rows(oracle[:, part]), _rows(method[:, part])


def _rows(margins: np.ndarray) -> np.ndarray:
    """(models, c) -> (c, models), clipped."""
    return np.clip(np.ascontiguousarray(margins.T, dtype=np.float64), -CLIP, CLIP)
