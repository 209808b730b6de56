"""One forward and backward pass that leaves x and delta at every tap of a function.

    x_i        what the equation at the tap takes from row i
    delta_ik   d (c_ik . function(params, row_i)) / d (what the equation gives), K cotangents c_ik

The function is run on one row and mapped over the rows, so the example axis leads everywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.replay import run
from jaxunlearn.curvature.taps import Block
from jaxunlearn.typing import Array, Batch, Params

Columns = Callable[[Array, Batch, Any], Array]  # (output, row, key) -> (K, *output.shape)


def one_column(out: Array, row: Batch, key: Any) -> Array:
    """The one cotangent of a loss."""
    del row, key
    return jnp.ones((1, *out.shape), out.dtype)


class Captured(NamedTuple):
    """What one forward and backward pass over n rows leaves at the taps."""

    block: Block
    leaves: list[Array]  # the params
    rows: int  # how many leaves a row of the data has
    taken: list[tuple[Array, ...]]  # for each tap what it took from the data, leaves (n, ...)
    deltas: list[tuple[Array, ...]]  # for each tap the cotangents of its results, (n, K, ...)
    power: str


def capture(
    block: Block,
    columns: Columns,
    params: Params,
    batch: Batch,
    scale: Array,
    keys: Any,
    power: str = "square",
) -> Captured:
    """x and delta at every tap.

    Args:
      block: `taps.walk_row` of a function that the data reaches.
      columns: (output, row, key) -> (K, *output.shape), the cotangents of one row's output.
      params: tree of float arrays.
      batch: n rows.
      scale: (n,) factor of each row's cotangents.
      keys: (n,) keys for `columns`, or None.
      power: kept for the formulas: a name in `formulas.PHI`.
    """
    leaves, rows = jax.tree.leaves(params), dict(batch)
    zeros = [tuple(jnp.zeros(o.shape, o.dtype) for o in tap.out) for tap in block.taps]

    def of_row(row: Batch, factor: Array, key: Any) -> tuple[list, list]:
        def forward(zeros: list) -> tuple[Array, list]:
            (out,), taken = run(block, [*leaves, *jax.tree.leaves(row)], zeros)
            return out, taken

        out, pull, taken = jax.vjp(forward, zeros, has_aux=True)
        cotangents = scaled(columns(out, row, key), factor, out)
        return taken, jax.vmap(lambda c: pull(c)[0])(cotangents)

    taken, deltas = jax.vmap(of_row)(rows, scale, keys)
    return Captured(block, leaves, len(rows), taken, deltas, power)


def scaled(cotangents: Array, factor: Array, out: Array) -> Array:
    return (cotangents * factor.astype(cotangents.dtype)).astype(out.dtype)
