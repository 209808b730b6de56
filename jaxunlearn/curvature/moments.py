"""Sums of squared per-example gradients of one chunk of rows, by taps or by `vmap(grad)`.

    S = sum_i sum_k phi(J_i^T c_ik)         J_i = d function(params, row_i) / d params

phi is the square or the absolute value, entry by entry; c_ik are K cotangents (one, namely 1, for a
loss; K columns of a factor of the output's curvature for a Fisher). `by_vmap` forms every gradient
and is the reference. `by_taps` makes one backward pass and applies a formula at each tap; `routes`
says which.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.capture import Columns, capture, scaled
from jaxunlearn.curvature.folding import in_chunks
from jaxunlearn.curvature.formulas import PHI, accumulator, by_groups, groups, how
from jaxunlearn.curvature.taps import Block, single, walk_row
from jaxunlearn.typing import Array, Batch, Params


class Route(NamedTuple):
    """How one parameter leaf is dealt with."""

    leaf: str  # its path
    how: str  # a row of the table of `formulas`
    where: tuple[str, ...]  # the primitives in which it meets data
    reason: str  # for "examples": why nothing cheaper


class Sums(NamedTuple):
    """Of one chunk."""

    moment: Params  # sum_i sum_k phi(J_i^T c_ik), float32 or wider
    gradient: Params | None  # sum_i sum_k scale_i J_i^T c_ik


def by_vmap(
    function: Callable,
    columns: Columns,
    params: Params,
    batch: Batch,
    scale: Array,
    keys: Any,
    power: str,
    gradient: bool,
) -> Sums:
    """The reference: every per-example gradient is formed. Memory rows x K x params.

    Args:
      function: (params, batch of one row) -> (1, ...).
      columns: cotangents of one row's output.
      params: tree of float arrays.
      batch: n rows.
      scale: (n,) factor of each row's cotangents.
      keys: (n,) keys for `columns`, or None.
      power: "square" or "abs".
      gradient: whether to return the plain sum as well, of scale_i times the cotangents above.
    """

    def of_row(row: Batch, factor: Array, key: Any) -> Params:
        out, pull = jax.vjp(lambda p: single(function)(p, row), params)
        return jax.vmap(lambda c: pull(c)[0])(scaled(columns(out, row, key), factor, out))

    grads = jax.vmap(of_row)(dict(batch), scale, keys)
    like = accumulator(params)
    moment = jax.tree.map(lambda g, a: PHI[power](g.astype(a.dtype)).sum(axis=(0, 1)), grads, like)
    if not gradient:
        return Sums(moment, None)

    def weighted(g: Array, a: Array) -> Array:
        return jnp.tensordot(scale.astype(a.dtype), g.astype(a.dtype).sum(axis=1), axes=1)

    return Sums(moment, jax.tree.map(weighted, grads, like))


def by_taps(
    function: Callable,
    columns: Columns,
    params: Params,
    batch: Batch,
    scale: Array,
    keys: Any,
    power: str,
    gradient: bool,
) -> Sums:
    """The same by one backward pass for many rows; arguments of `by_vmap`.

    On a CPU as many rows at once as stay near its cache, or all if there are convolutions of XLA's
    own, which are slow inside loops. Memory: what a gradient of those rows needs, and the sums.
    """
    block = walk_row(function, params, batch)
    if block.outs[0] is not None:  # no data reaches the result: nothing to tap
        return by_vmap(function, columns, params, batch, scale, keys, power, gradient)
    tree = jax.tree.structure(params)

    def total(batch: Batch, scale: Array, keys: Any) -> Sums:
        given = capture(block, columns, params, batch, scale, keys, power)
        moment = jax.tree.unflatten(tree, by_groups(given))
        if not gradient:
            return Sums(moment, None)

        def weigh(d: Array) -> Array:
            return d * scale.astype(d.dtype).reshape(-1, *[1] * (d.ndim - 1))

        deltas = [tuple(weigh(d) for d in each) for each in given.deltas]
        weighed = given._replace(deltas=deltas, power="sum")
        return Sums(moment, jax.tree.unflatten(tree, by_groups(weighed)))

    return in_chunks(total, (dict(batch), scale, keys), _rows_at_once(block, scale.size))


# Numbers in the intermediate results of the rows taken at once. Measured on 2 cores, from 2^23 to
# 2^27: residual networks and transformers are quickest here, up to twice as quick as with 32 rows.
_NEAR_THE_CACHE = 24_000_000


def _rows_at_once(block: Block, rows: int) -> int:
    numbers, convolves = _intermediate(block)
    if jax.default_backend() != "cpu" or convolves:
        return rows
    return max(1, _NEAR_THE_CACHE // max(1, numbers))


def _intermediate(block: Block) -> tuple[int, bool]:
    """(numbers that one row's equations give, whether one of these is XLA's convolution)."""
    numbers, convolves = 0, False
    for step in block.steps:
        if all(mark is not None for mark in step.marks):
            continue
        inner, found = _intermediate(step.block) if step.block is not None else (0, False)
        inner *= step.eqn.params.get("length", 1) if step.kind == "scan" else 1
        numbers += max(inner, sum(v.aval.size for v in step.eqn.outvars))
        convolves |= found or step.eqn.primitive.name == "conv_general_dilated"
    return numbers, convolves


def routes(function: Callable, params: Params, batch: Batch) -> tuple[Route, ...]:
    """How each leaf is dealt with, in `jax.tree.leaves` order; nothing is computed.

    Args:
      function: (params, batch) -> (n,).
      params: tree of arrays.
      batch: some rows; only shapes are read.

    Example:
      >>> loss = lambda p, b: jnp.square(b["x"] @ p["w"] + p["b"])
      >>> params = {"w": jnp.ones(3), "b": jnp.ones(()), "old": jnp.ones(2)}
      >>> [(r.leaf, r.how) for r in routes(loss, params, {"x": jnp.ones((4, 3))})]
      [("['b']", 'each'), ("['old']", 'unused'), ("['w']", 'squares')]
    """
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    block = walk_row(function, params, batch)
    taps = block.taps
    made = {}
    for group in groups(taps, len(paths)):
        way, reason = how(taps, group)
        if block.outs[0] is not None:
            way, reason = "examples", "no data reaches the result"
        for leaf in group.leaves:
            where = tuple(taps[t].name for t in group.taps)
            made[leaf] = Route(paths[leaf], way, where, reason)
    return tuple(made[i] for i in range(len(paths)))
