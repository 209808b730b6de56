"""Curvature of a summed loss as a linear map: products with a vector, and the matrix when small.

    H v = sum_i w_i (d^2 loss_i / d theta^2) v                          Hessian
    G v = sum_i w_i J_i^T (d^2 loss_i / d outputs_i^2) J_i v            generalised Gauss-Newton

SUMS over examples, not means, so that the products of two data sets add. G is the Hessian without
the curvature of the network: positive semi-definite wherever the loss is convex in the outputs, and
equal to H wherever the outputs are linear in the parameters. Schraudolph (2002), "Fast Curvature
Matrix-Vector Products for Second-Order Gradient Descent", doi:10.1162/08997660260028683.

Parameters are widened to float32 at least. A product is one scan over the batches of in-memory
Data, compiled once for each pair of functions and traceable; a streaming one is driven from the
host. Rows of weight 0 contribute exactly 0, even where their own derivative is NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxunlearn.curvature.folding import fold_over
from jaxunlearn.data.streams import InMemory
from jaxunlearn.typing import Array, Batch, Data, Params

LossFn = Callable[[Params, Batch], Array]
OutputLoss = Callable[[Array, Array], Array]
Matvec = Callable[[Params], Params]

_COLUMNS_AT_ONCE = 32  # of a dense matrix


def widen(tree: Any) -> Any:
    """Floating leaves in float32 at least; wider ones and integers stay."""

    def wide(leaf: Array) -> Array:
        dtype = jnp.result_type(leaf)
        floating = jnp.issubdtype(dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.promote_types(dtype, jnp.float32) if floating else dtype)

    return jax.tree.map(wide, tree)


def gradient_sum(loss_fn: LossFn, params: Params, data: Data) -> Params:
    """sum_i w_i grad loss_i, a tree like the params, float32 or wider.

    Args:
      loss_fn: (params, batch) -> (n,), evaluation mode, no averaging inside.
      params: tree of float arrays.
      data: in-memory or streaming.

    Cost: one backward pass over the data; memory of one batch.

    Example:
      >>> data = InMemory({"x": jnp.array([1.0, 3.0])}, 1)
      >>> print(gradient_sum(lambda p, b: p * b["x"], jnp.ones(()), data))
      4.0
    """
    return _total(_gradient, (loss_fn,), params, data, (), widen(params))


def hessian_product(loss_fn: LossFn, params: Params, data: Data) -> Matvec:
    """v -> H v, H = sum_i w_i Hessian of loss_i at params.

    Args:
      loss_fn, params, data: as for `gradient_sum`.

    Returns:
      A function of a tree like the params, to such a tree, float32 or wider. Traceable if the data
      are in-memory; two calls are one compilation.

    | edge case                  | result                                |
    |----------------------------|---------------------------------------|
    | loss linear in the params  | zeros                                 |
    | rows of weight 0           | contribute exactly 0                  |
    | no rows, or all weights 0  | zeros                                 |

    Cost of a product: a forward and a backward pass, each with a tangent (about 2 gradients); one
    pass over the data.

    Example:
      >>> data = InMemory({"x": jnp.array([1.0, 3.0])}, 2)
      >>> product = hessian_product(lambda p, b: 0.5 * (p * b["x"]) ** 2, jnp.ones(()), data)
      >>> print(product(jnp.array(2.0)))
      20.0
    """
    wide = widen(params)
    return lambda v: _total(_hessian, (loss_fn,), wide, data, _like(v, wide), wide)


def ggn_product(
    outputs: Callable[[Params, Batch], Array], output_loss: OutputLoss, params: Params, data: Data
) -> Matvec:
    """v -> G v, G = sum_i w_i J_i^T (Hessian of output_loss at outputs_i) J_i.

    Args:
      outputs: (params, batch) -> (n, ...).
      output_loss: (outputs, batch["y"]) -> (n,), such as `losses.cross_entropy`.
      params, data: as for `gradient_sum`.

    Returns, edge cases: as for `hessian_product`.

    Cost of a product: a tangent and a backward pass through the model, one pass over the data.
    """
    wide = widen(params)
    return lambda v: _total(_ggn, (outputs, output_loss), wide, data, _like(v, wide), wide)


def dense_hessian(loss_fn: LossFn, params: Params, data: Data) -> Array:
    """H = sum_i w_i Hessian of loss_i, (p, p) in the order of `ravel_pytree(params)`, symmetric.

    Cost: p products in one pass over the data, 32 of them at once; memory p^2. For p up to 1e4.
    """
    return _dense_total(_dense_hessian, (loss_fn,), params, data)


def dense_ggn(
    outputs: Callable[[Params, Batch], Array], output_loss: OutputLoss, params: Params, data: Data
) -> Array:
    """G as a matrix (p, p); arguments as for `ggn_product`, order and cost as `dense_hessian`."""
    return _dense_total(_dense_ggn, (outputs, output_loss), params, data)


def loss_gap(
    loss_fn: LossFn,
    outputs: Callable[[Params, Batch], Array],
    output_loss: OutputLoss,
    params: Params,
    data: Data,
) -> Array:
    """[] sum_i w_i |loss_i - output_loss(outputs_i, y_i)| / sum_i w_i |loss_i|.

    0 where the two are one loss: what makes `ggn_product` the curvature of `loss_fn`. One forward
    pass.
    """
    zero = jnp.zeros(())
    functions = (loss_fn, outputs, output_loss)
    gap, size = _total(_gap, functions, params, data, (), (zero, zero))
    return gap / jnp.where(size > 0, size, 1)


# ----------------------------------------------------------------------- one batch, functions first


def _gradient(functions: tuple, params: Params, batch: Batch, v: Any) -> Params:
    del v
    (loss_fn,) = functions
    return jax.grad(lambda p: _weigh(loss_fn(p, batch), batch))(params)


def _hessian(functions: tuple, params: Params, batch: Batch, v: Params) -> Params:
    gradient = partial(_gradient, functions, batch=batch, v=())
    return jax.jvp(gradient, (params,), (v,))[1]


def _ggn(functions: tuple, params: Params, batch: Batch, v: Params) -> Params:
    outputs, output_loss = functions
    z, pullback, z_dot = _linearised(lambda p: outputs(p, batch), params, v)
    of_outputs = jax.grad(lambda out: _weigh(output_loss(out, batch["y"]), batch))
    return pullback(jax.jvp(of_outputs, (z,), (z_dot,))[1])[0]


def _linearised(function: Callable, params: Params, v: Params) -> tuple[Array, Callable, Array]:
    z, z_dot = jax.jvp(function, (params,), (v,))
    return z, jax.vjp(function, params)[1], z_dot


def _gap(functions: tuple, params: Params, batch: Batch, v: Any) -> tuple[Array, Array]:
    del v
    loss_fn, outputs, output_loss = functions
    losses, others = loss_fn(params, batch), output_loss(outputs(params, batch), batch["y"])
    return _weigh(jnp.abs(losses - others), batch), _weigh(jnp.abs(losses), batch)


def _dense(product: Callable, functions: tuple, params: Params, batch: Batch, v: Any) -> Array:
    del v
    flat, unravel = ravel_pytree(params)

    def column(basis: Array) -> Array:
        return ravel_pytree(product(functions, params, batch, unravel(basis)))[0]

    return jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype), batch_size=_COLUMNS_AT_ONCE)


_dense_hessian = partial(_dense, _hessian)  # module constants, so that one compilation serves all
_dense_ggn = partial(_dense, _ggn)


def _weigh(losses: Array, batch: Batch) -> Array:
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    return jnp.sum(losses * batch["weight"].astype(losses.dtype))


def _like(v: Params, params: Params) -> Params:
    if jax.tree.structure(v) != jax.tree.structure(params):
        raise ValueError(
            "curvature product: the vector and the params are different trees: "
            f"{jax.tree.structure(v)} and {jax.tree.structure(params)}."
        )
    return jax.tree.map(lambda a, p: jnp.asarray(a, p.dtype), v, params)


# ------------------------------------------------------------------------------ all batches, summed


class _Term(NamedTuple):
    """Adds of(functions, params, batch, v)."""

    of: Callable
    functions: tuple

    def __call__(self, args: tuple, total: Params, batch: Batch, keys: Any) -> Params:
        del keys
        term = self.of(self.functions, args[0], batch, args[1])
        return jax.tree.map(lambda t, new: t + new.astype(t.dtype), total, term)


def _dense_total(of: Callable, functions: tuple, params: Params, data: Data) -> Array:
    flat = ravel_pytree(widen(params))[0]
    zeros = jnp.zeros((flat.size, flat.size), flat.dtype)
    matrix = _total(of, functions, params, data, (), zeros)
    return (matrix + matrix.T) / 2  # rounding is not symmetric, Cholesky and eigh assume it


def _total(
    of: Callable, functions: tuple, params: Params, data: Data, v: Any, like: Params
) -> Params:
    """sum over batches of of(functions, params, batch, v), in loops compiled once."""
    params = widen(params)
    total = jax.tree.map(jnp.zeros_like, like)
    return fold_over(_Term(of, functions), (params, v), data, total)


def total_weight(data: Data) -> Array:
    """[] float32, sum_i w_i."""
    parts = [data.arrays] if isinstance(data, InMemory) else list(data)
    return sum((_weights(part).sum() for part in parts), jnp.zeros(()))


def _weights(batch: Batch) -> Array:
    return jnp.asarray(batch.get("weight", jnp.ones(_rows(batch))), jnp.float32)


def _rows(batch: Batch) -> int:
    return max(1, next(iter(batch.values())).shape[0])
