"""Second moments of what enters a weight, and of the cotangents of what leaves it.

    M = sum_i w_i X_i^T X_i                 X_i (T, I): inputs of the weight for example i

A step W - eta G with G's columns orthogonal to the range of M changes no output on these data; with
the cotangents D_i of the outputs, M and its counterpart are the factors of an approximation of the
Fisher matrix of W,

    F ~ A (x) B,     A = sum_i w_i X_i^T X_i / sum_i w_i T,     B = sum_i w_i D_i^T D_i / sum_i w_i

exact in expectation only if inputs and cotangents are uncorrelated and, with T > 1 positions, if
those are independent. It is offered as what it is: an approximation, never a default.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.curvature.capture import Columns, capture, one_column
from jaxunlearn.curvature.coupling import check_independent
from jaxunlearn.curvature.fisher import LossFn
from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.curvature.formulas import groups
from jaxunlearn.curvature.rules import Rule
from jaxunlearn.curvature.taps import Tap, walk_row
from jaxunlearn.typing import Array, Batch, Data, Params


class Gram(NamedTuple):
    """M of one weight. With G groups (stacked layers, grouped convolutions, heads): (G, I, I)."""

    matrix: Array  # (I, I), float32 or wider, positive semidefinite up to rounding
    axes: tuple[int, ...]  # axes of the leaf that I runs over, in this order, row-major
    count: Array  # [] sum of the example weights


class Kronecker(NamedTuple):
    """F ~ A (x) B of one weight; with G groups each has a leading axis."""

    inputs: Array  # A (I, I): mean over examples and positions
    outputs: Array  # B (O, O): mean over examples, sum over positions
    axes: tuple[int, ...]  # axes of the leaf that I runs over; O runs over the others in order


def input_grams(
    loss_fn: LossFn, params: Params, data: Data, *, micro_batch: int | None = None
) -> dict[str, Gram]:
    """M = sum_i w_i sum_t x_it x_it^T for every weight that multiplies the data.

    Args:
      loss_fn: (params, batch) -> (n, ...), the loss or the outputs: only where the weights enter it
        is read.
      params: tree of float arrays.
      data: in-memory (traceable) or streaming.
      micro_batch: examples taken at once; None: a batch of the data.

    Returns:
      {path of the leaf: Gram}, the path as `jax.tree_util.keystr` writes it. I runs over the input
      axes of the leaf in the leaf's own order: a dense kernel (I, O) has axes (0,), stored the
      other way round (1,); a convolution kernel (h, w, i, o) has (0, 1, 2), its patches in kernel
      order. A leaf used in several products has the sum. Biases, scales, tables, and weights
      computed from several leaves have none.

    Raises:
      CoupledError: the loss mixes the examples of a batch.

    | edge case         | result                                                   |
    |-------------------|----------------------------------------------------------|
    | rows of weight 0  | contribute exactly 0                                     |
    | data in two parts | the sum of the Grams of the parts: subtract to forget    |
    | strides, dilation | the patches that the layer really reads                  |

    Cost: one forward pass, and positions x I^2 multiplications per example and weight.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[1.0, 2.0], [0.0, 1.0]])})
      >>> grams = input_grams(lambda p, b: b["x"] @ p["w"], {"w": jnp.ones((2, 3))}, data)
      >>> print(grams["['w']"].matrix)
      [[1. 2.]
       [2. 5.]]
    """
    sums, plan = _sums(loss_fn, params, data, micro_batch, one_column, False)
    return {
        weight.path: Gram(matrices[0], weight.axes, sums[1])
        for weight, matrices in zip(plan, sums[0], strict=True)
    }


def kronecker_factors(
    loss_fn: LossFn, params: Params, data: Data, *, micro_batch: int | None = None
) -> dict[str, Kronecker]:
    """F ~ A (x) B for every weight that multiplies the data: an approximation of the Fisher matrix.

    Args:
      loss_fn, params, data, micro_batch: as for `input_grams`; the loss, whose labels make the
        Fisher the empirical one.

    Returns:
      {path of the leaf: Kronecker}, for the weights that `input_grams` has and that enter one
      product.

    Raises:
      CoupledError: the loss mixes the examples of a batch.

    Cost: one forward and backward pass, and positions x (I^2 + O^2) multiplications per example and
    weight; storage I^2 + O^2 in place of (I O)^2.

    Source: Martens and Grosse (2015), arXiv:1503.05671, section 3; with positions the "expand" form
    of Eschenhagen et al. (2023), arXiv:2311.00636, section 3.2. Departure: 1. true labels.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> data = in_memory({"x": jnp.array([[1.0], [3.0]])})
      >>> factors = kronecker_factors(lambda p, b: (b["x"] @ p)[:, 0], jnp.ones((1, 1)), data)
      >>> print(factors[""].inputs, factors[""].outputs)
      [[5.]] [[1.]]
    """
    sums, plan = _sums(loss_fn, params, data, micro_batch, one_column, True)
    total = jnp.where(sums[1] > 0, sums[1], 1)
    made = {}
    for weight, matrices in zip(plan, sums[0], strict=True):
        if len(weight.taps) == 1:
            a, b = (m / total.astype(m.dtype) for m in matrices)
            made[weight.path] = Kronecker(a / weight.positions, b, weight.axes)
    return made


class _Weight(NamedTuple):
    """A leaf all of whose taps are products with the same input axes."""

    path: str
    taps: tuple[int, ...]
    axes: tuple[int, ...]
    orders: tuple[Any, ...]  # for each tap: the op's input index at each of the leaf's
    shapes: tuple[tuple[int, ...], ...]  # of the matrices: (G, I, I) and (G, O, O)
    positions: int


@dataclasses.dataclass(frozen=True)
class _Grams:
    """Adds the rows of a batch to (matrices of each weight, count)."""

    function: Callable
    columns: Columns

    def __call__(self, params: Params, carry: Any, batch: Batch, keys: Any) -> tuple:
        check_independent(self.function, params, batch)
        sums, count = carry
        weight = batch["weight"]
        block = walk_row(self.function, params, batch)
        given = capture(block, self.columns, params, batch, jnp.sqrt(weight), keys)
        added = []
        for each, old in zip(_plan(self.function, params, batch), sums, strict=True):
            total = old
            for t, order in zip(each.taps, each.orders, strict=True):
                rule = given.block.taps[t].rule
                assert rule is not None
                delta = given.deltas[t][0][:, 0]
                x, d = jax.vmap(rule.factors)(list(given.taken[t]), delta)  # (n, G, T, .)
                x = jnp.sqrt(weight).astype(x.dtype)[:, None, None, None] * x[..., order]
                sides = (x, d)[: len(total)]
                total = [
                    old + _gram(side, old.dtype) for old, side in zip(total, sides, strict=True)
                ]
            added.append(total)
        return added, count + weight.sum()


def _gram(x: Array, dtype: Any) -> Array:
    """sum over examples and positions of x x^T, (G, I, I)."""
    x = x.astype(dtype).swapaxes(0, 1)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.einsum("gti,gtj->gij", x, x, precision=jax.lax.Precision.HIGHEST)


def _sums(
    function: Callable,
    params: Params,
    data: Data,
    micro_batch: int | None,
    columns: Columns,
    outputs: bool,
) -> tuple[tuple, list[_Weight]]:
    """((matrices of each weight, count), the weights), groups of one without their axis."""
    plan = _plan(function, params, next(iter(data)))
    wide = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    zeros = [[jnp.zeros(s, wide) for s in w.shapes[: 1 + outputs]] for w in plan]
    job = _Grams(function, columns)
    start = (zeros, jnp.zeros(()))
    sums, count = fold_over(job, params, data, start, micro_batch=micro_batch) if plan else start
    flat = [[m[0] if m.shape[0] == 1 else m for m in matrices] for matrices in sums]
    return (flat, count), plan


class _Use(NamedTuple):
    """A product in which a leaf is the weight."""

    rule: Rule
    axes: tuple[int, ...]  # input axes of the leaf
    order: Any  # (I,) the product's input index for each index of theirs


def _plan(function: Callable, params: Params, batch: Batch) -> list[_Weight]:
    paths = jax.tree_util.tree_leaves_with_path(params)
    taps = walk_row(function, params, batch).taps
    made = []
    for group in groups(taps, len(paths)):
        if len(group.leaves) != 1 or not group.taps:
            continue
        path, leaf = paths[group.leaves[0]]
        found = [_use(taps[t], leaf.shape) for t in group.taps]
        uses = [use for use in found if use is not None]
        if len(uses) < len(found) or len({(use.axes, use.rule.groups) for use in uses}) > 1:
            continue
        rule, axes, order = uses[0]
        outs = taps[group.taps[0]].weights[0].size // (rule.groups * order.size)
        shapes = ((rule.groups, n, n) for n in (order.size, outs))
        made.append(
            _Weight(
                jax.tree_util.keystr(path),
                group.taps,
                axes,
                tuple(use.order for use in uses),
                tuple(shapes),
                rule.positions,
            )
        )
    return made


def _use(tap: Tap, shape: tuple[int, ...]) -> _Use | None:
    """The product at a tap; None if it is something else, or no axes of the leaf are its inputs.

    Labels, one for each entry of the leaf, are sent along the chain to where the product reads
    them: the coordinates that change with the product's input index are the input axes.
    """
    mark = tap.statics[tap.wrt[0]]
    if tap.rule is None or tap.rule.form != "product" or len(tap.wrt) > 1 or mark.chain is None:
        return None
    with jax.ensure_compile_time_eval():
        labels = mark.chain(jnp.arange(np.prod(shape, dtype=int)).reshape(shape))
    inputs = tap.rule.inputs
    labels = np.moveaxis(np.asarray(labels), inputs, range(len(inputs)))
    size = int(np.prod(labels.shape[: len(inputs)], dtype=int))
    labels = labels.reshape(size, -1)
    places = np.stack(np.unravel_index(labels, shape))  # (axes, I, rest)
    axes = tuple(a for a in range(len(shape)) if (places[a] != places[a][:1]).any())
    spread = places[list(axes)]
    if (spread != spread[:, :, :1]).any() or size != np.prod([shape[a] for a in axes], dtype=int):
        return None
    flat = np.ravel_multi_index(tuple(spread[:, :, 0]), [shape[a] for a in axes]) if axes else [0]
    return _Use(tap.rule, axes, np.argsort(flat))
