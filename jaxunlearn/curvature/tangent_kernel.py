"""The empirical tangent kernel of any Model, and the linear model that it is the kernel of.

    Theta(x, x') = J(x) J(x')^T,     J(x) = d outputs(theta, x) / d theta     (C, p)

    f_lin(x; theta') = f(x; theta) + J(x) (theta' - theta)                    one tangent pass
    theta' = theta + J_S^T alpha                                              one backward pass

so that a kernel machine over Theta with weights alpha *is* a parameter vector: its predictions are
f_lin(x; theta') - f(x; theta) = Theta(x, x_S) alpha. Jacot, Gabriel and Hongler (2018), "Neural
Tangent Kernel", arXiv:1806.07572; Lee et al. (2019), arXiv:1902.06720, for the linear model.

A pair of blocks of rows costs C backward passes for each row on the left, and for each row on the
right the tangent passes of all C b of them at once: C times fewer multiplications than the product
of two Jacobians, and never more than the Jacobian of b rows in memory (Novak, Sohl-Dickstein and
Schoenholz (2022), arXiv:2206.08720, call this NTK-vector products).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.products import widen
from jaxunlearn.model import Model, freeze_statistics, join_statistics, split_statistics
from jaxunlearn.naming import did_you_mean
from jaxunlearn.typing import Array, Batch, Params

OUTPUTS = ("full", "each", "trace")


def tangent_kernel(
    model: Model,
    params: Params,
    left: Batch,
    right: Batch | None = None,
    *,
    outputs: str = "full",
    block: int | None = 32,
) -> Array:
    """Theta(x_i, x'_j), the inner products of the gradients of the outputs.

    Args:
      model: outputs (n,) or (n, ...), C numbers a row once flattened (1 for outputs (n,)); a row of
        the outputs must depend on its own row of the batch alone.
      params: tree of arrays. Floating leaves are differentiated, in float32 at least; running
        statistics and integers are constants.
      left: Batch of n rows; a column "weight" is not read.
      right: Batch of m rows; None: `left`, and the kernel is exactly symmetric.
      outputs: "full", every pair of outputs; "each", every output with itself, Theta_cc; "trace",
        sum_c Theta_cc.
      block: rows taken at once on either side, >= 1; None: all of them, the whole Jacobian.

    Returns:
      (n, C, m, C), (n, C, m) or (n, m), float32 or wider.

    Raises:
      ValueError: an unknown `outputs` (the nearest one is named), a block < 1.

    | situation                       | result                                            |
    |---------------------------------|---------------------------------------------------|
    | outputs linear in the params    | the kernel of the features, whatever the params   |
    | another block, n not a multiple | the same up to rounding                           |
    | running statistics              | evaluation mode, not differentiated               |

    Cost: n C backward passes of one row and n C m tangent passes of one row; memory: the gradients
    of C b rows, the tangents of b rows under C b directions, and the result.

    Source: Jacot et al. (2018), arXiv:1806.07572.

    Example:
      >>> linear = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"] @ p)
      >>> rows = {"x": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
      >>> print(tangent_kernel(linear, jnp.ones(2), rows, outputs="trace"))
      [[1. 1.]
       [1. 5.]]
    """
    if outputs not in OUTPUTS:
        raise ValueError(f"tangent_kernel: outputs={outputs!r}. {did_you_mean(outputs, OUTPUTS)}")
    if block is not None and block < 1:
        raise ValueError(f"tangent_kernel: block must be >= 1 or None, got {block}.")
    function, weights = _of_floats(model, params)
    other = left if right is None else right

    def gradients(row: Batch) -> list[Array]:
        """The (C, ...) gradients of the outputs of one row."""
        z, pullback = jax.vjp(lambda w: _one(function, w, row), weights)
        return jax.vmap(lambda c: pullback(c)[0])(jnp.eye(z.size, dtype=z.dtype))

    def entry(directions: list[Array], row: Batch) -> Array:
        def along(direction: list[Array]) -> Array:
            return jax.jvp(lambda w: _one(function, w, row), (weights,), (direction,))[1]

        full = jax.vmap(along)(directions)  # (C, C)
        return {"full": full, "each": jnp.diag(full), "trace": jnp.trace(full)}[outputs]

    def row(mine: Batch) -> Array:
        directions = gradients(mine)
        return _map(lambda theirs: entry(directions, theirs), other, block)

    kernel = _map(row, left, block)
    if outputs != "trace":
        kernel = jnp.moveaxis(kernel, 2, 1)  # (n, m, C, ...) -> (n, C, m, ...)
    if right is not None:
        return kernel
    swapped = {"full": (2, 3, 0, 1), "each": (2, 1, 0), "trace": (1, 0)}[outputs]
    return (kernel + kernel.transpose(swapped)) / 2


def linearised(model: Model, params: Params, moved: Params, batch: Batch) -> Array:
    """f(x; theta) + J(x) (theta' - theta), of the outputs' shape.

    Args:
      model, params: the point theta where the model is made linear.
      moved: theta', of the params' structure.
      batch: n rows.

    Cost: one forward pass with a tangent.

    Example:
      >>> square = Model(outputs=lambda p, b: b["x"] * p**2, loss=lambda p, b: b["x"] * p)
      >>> print(linearised(square, jnp.array(1.0), jnp.array(3.0), {"x": jnp.ones(2)}))
      [5. 5.]
    """
    function, weights = _of_floats(model, params)
    change = [b - a for a, b in zip(weights, _of_floats(model, moved)[1], strict=True)]
    z, tangent = jax.jvp(lambda w: function(w, batch), (weights,), (change,))
    return z + tangent


def displaced(
    model: Model, params: Params, batch: Batch, alpha: Array, *, block: int | None = None
) -> Params:
    """theta' = theta + J_S^T alpha: the parameters that a kernel machine's weights stand for.

    Args:
      model, params: theta.
      batch: the rows S.
      alpha: of the outputs' shape, (n,) or (n, ...).
      block: rows taken at once, >= 1; None: all of them.

    Returns:
      A tree of the params' structure, shapes and dtypes; statistics and integers bit-identical.

    Raises:
      ValueError: alpha of another shape than the outputs.

    Cost: one backward pass over S; memory of a pass over a block.

    Example:
      >>> linear = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"] @ p)
      >>> print(displaced(linear, jnp.ones(2), {"x": jnp.eye(2)}, jnp.array([2.0, 3.0])))
      [3. 4.]
    """
    function, weights = _of_floats(model, params)
    expected = jax.eval_shape(lambda w: function(w, batch), weights).shape
    if jnp.shape(alpha) != expected:
        raise ValueError(
            f"displaced: expected alpha of the outputs' shape {expected}, got {jnp.shape(alpha)}."
        )

    def total(w: list[Array]) -> Array:
        def weighed(both: tuple[Batch, Array]) -> Array:
            z = _one(function, w, both[0])
            return jnp.vdot(z, both[1].reshape(-1).astype(z.dtype))

        return _map(weighed, (batch, jnp.asarray(alpha)), block).sum()

    step = jax.grad(total)(weights)
    split, statistics = split_statistics(model, params)
    leaves, tree = jax.tree.flatten(split)
    moves = iter(step)
    new = [(leaf + next(moves)).astype(leaf.dtype) if _floats(leaf) else leaf for leaf in leaves]
    return join_statistics(model, jax.tree.unflatten(tree, new), statistics)


# ----------------------------------------------------------------------------------------- one row


def _floats(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _of_floats(model: Model, params: Params) -> tuple[Callable, list[Array]]:
    """(function (floating leaves, batch) -> outputs, those leaves in float32 at least)."""
    split, statistics = split_statistics(model, params)
    frozen = freeze_statistics(model, statistics)
    leaves, tree = jax.tree.flatten(split)

    def function(weights: list[Array], batch: Batch) -> Array:
        given = iter(weights)
        whole = [next(given) if _floats(leaf) else leaf for leaf in leaves]
        return frozen.outputs(jax.tree.unflatten(tree, whole), batch)

    return function, [widen(leaf) for leaf in leaves if _floats(leaf)]


def _one(function: Callable, weights: list[Array], row: Batch) -> Array:
    """(C,) the outputs of one row."""
    return function(weights, jax.tree.map(lambda column: column[None], row)).reshape(-1)


def _map(function: Callable, rows: Any, block: int | None) -> Array:
    """`function` of every row, `block` rows at once, the last block shorter."""
    n = jax.tree.leaves(rows)[0].shape[0]
    if block is None or block >= n:
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=block)
