"""Linear projections of updates: keep a leaf's step out of a subspace of its inputs, or inside it.

    project_out    G <- G - U U^T G       keep_within    G <- U U^T G       U (d, k), U^T U = 1

A dense kernel W (d, o) turns an input x into x^T W. If the columns of U span the inputs that
matter, a step that was projected out of them leaves every x^T W alone, whatever its length:
x^T (G - U U^T G) = 0 for x = U c. A convolution is the same with patches for inputs, its kernel
(h, w, i, o) read as (h w i, o).

It must be the LAST linear map of a chain but for a scalar. Orthogonality survives a learning rate,
and momentum with a basis that does not change; it does not survive a division by another number in
every coordinate, so Adam comes first:

    optax.chain(optax.adam(1e-3), project_out(basis))         no step in the span
    optax.chain(project_out(basis), optax.adam(1e-3))         steps in the span, as without it

Only k columns are stored, never the d x d projector; and where k > d/2 the d - k of the complement
are, so that a step costs at most d^2 o multiplications, and nothing is the exact identity:
k = 0 leaves the update bit-identical, k = d makes it exactly 0 (of `keep_within` the other way
round).

Saha, Garg and Roy (2021), "Gradient Projection Memory for Continual Learning", arXiv:2103.09762.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.data.columns import is_traced
from jaxunlearn.typing import Array, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Subspace:
    """A subspace S of R^d, by an orthonormal basis of itself or of its complement.

    Attributes:
      columns: (d, m) float, orthonormal; zero columns are padding and count for nothing.
      complement: [] bool, True if `columns` span what is orthogonal to S.
      axes: axes of the leaf that d runs over, in this order, row-major; None: the leading ones.
    """

    columns: Array
    complement: Array
    axes: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def within(self, matrix: Array) -> Array:
        """U U^T G, for G (d, o)."""
        shadow = self._shadow(matrix)
        return jnp.where(self.complement, matrix - shadow, shadow)

    def without(self, matrix: Array) -> Array:
        """G - U U^T G, for G (d, o)."""
        shadow = self._shadow(matrix)
        return jnp.where(self.complement, shadow, matrix - shadow)

    def _shadow(self, matrix: Array) -> Array:
        inner = jnp.matmul(self.columns.T, matrix, precision=jax.lax.Precision.HIGHEST)
        return jnp.matmul(self.columns, inner, precision=jax.lax.Precision.HIGHEST)


def span(columns: Array, axes: tuple[int, ...] | None = None) -> Subspace:
    """The subspace that orthonormal columns span.

    Args:
      columns: U (d, k), U^T U = 1, 0 <= k <= d. Where k > d/2 the complement is computed and kept.
      axes: of the leaf, see `Subspace`.

    Raises:
      ValueError: not a matrix (d, k <= d), or (where values can be seen) not orthonormal.

    Cost: for k > d/2 one Householder factorisation, 4 d^3 / 3.

    Example:
      >>> print(span(jnp.eye(3)[:, :1]).without(jnp.ones((3, 2))))
      [[0. 0.]
       [1. 1.]
       [1. 1.]]
    """
    columns = jnp.asarray(columns)
    if columns.ndim != 2 or columns.shape[1] > columns.shape[0]:
        raise ValueError(
            f"span: expected columns (d, k) with k <= d, got shape {columns.shape}. Examples are "
            "rows; a basis of their span stands in columns."
        )
    if not jnp.issubdtype(columns.dtype, jnp.floating) or jnp.finfo(columns.dtype).bits < 32:
        columns = columns.astype(jnp.float32)
    d, k = columns.shape
    if not is_traced(columns):
        error = float(jnp.abs(columns.T @ columns - jnp.eye(k, dtype=columns.dtype)).max(initial=0))
        if not error <= float(jnp.finfo(columns.dtype).eps) ** 0.5:
            raise ValueError(
                "span: the columns are not orthonormal: |U^T U - 1| reaches "
                f"{error:.2g}. jnp.linalg.qr(columns)[0] has orthonormal columns of the same span."
            )
    if 2 * k <= d:
        return Subspace(columns, jnp.array(False), axes)
    rest = jnp.linalg.qr(columns, mode="complete")[0][:, k:]
    return Subspace(rest, jnp.array(True), axes)


def leading(vectors: Array, rank: Array | int, axes: tuple[int, ...] | None = None) -> Subspace:
    """The span of the first `rank` of d orthonormal vectors; `rank` may be traced.

    Args:
      vectors: (d, d) orthonormal columns, such as eigenvectors from the largest eigenvalue down.
      rank: [] integer in [0, d].
      axes: of the leaf, see `Subspace`.

    Returns:
      A Subspace of floor(d/2) columns whatever the rank: those of the span or of its complement,
      whichever are fewer, and zeros.

    Example:
      >>> print(leading(jnp.eye(3), 2).columns[:, 0], leading(jnp.eye(3), 2).complement)
      [0. 0. 1.] True
    """
    d = vectors.shape[0]
    half, place, rank = d // 2, jnp.arange(d), jnp.asarray(rank)
    kept = jnp.where((place < rank)[None], vectors, 0)[:, :half]
    rest = jnp.where((place >= rank)[None], vectors, 0)[:, d - half :]
    return Subspace(jnp.where(rank > half, rest, kept), rank > half, axes)


def everything(shape: tuple[int, ...]) -> Subspace:
    """The whole space of a leaf of this shape: projected out of it, nothing is left, exactly."""
    axes = tuple(range(len(shape)))
    return Subspace(jnp.zeros((math.prod(shape), 0)), jnp.array(True), axes)


def project_out(basis: Any = None) -> optax.GradientTransformationExtraArgs:
    """G <- G - U U^T G on every leaf that has a basis.

    Args:
      basis: tree of the params' structure or a prefix of it (one basis for all leaves below).
        A leaf is an orthonormal U (d, k), a `Subspace`, or None: not touched. d runs over the
        leading axes of the params' leaf: (d, o), or (h, w, i, o) with d = h w i; a Subspace may
        name others. None altogether: `update` is handed the tree as `basis=`, so that another one
        is another argument and not another program.

    Returns:
      A stateless optax transformation. Products are at least float32, updates keep their dtype.

    Raises:
      ValueError: columns that are not orthonormal; (at `init` and `update`) a basis that is no
        prefix of the params, or of another size than a leaf; (at `update`) no basis at all.

    | edge case            | result                                                       |
    |----------------------|--------------------------------------------------------------|
    | k = 0                | updates bit-identical                                        |
    | k = d                | updates exactly 0                                            |
    | U not orthonormal    | refused where its values can be seen                         |
    | hidden by `masked`   | leaves that `optax.masked` took away stay away               |
    | a bfloat16 leaf      | rounded to 3 digits after projection, orthogonal to as many  |

    Cost: 4 d o min(k, d - k) operations a leaf and step; memory d min(k, d - k).

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), project_out({"w": jnp.eye(2)[:, :1], "b": None}))
      >>> params = {"w": jnp.ones((2, 1)), "b": jnp.ones(1)}
      >>> print(tx.update(params, tx.init(params))[0]["w"].T)
      [[ 0. -1.]]
    """
    return _projection("project_out", basis, Subspace.without)


def keep_within(basis: Any = None) -> optax.GradientTransformationExtraArgs:
    """G <- U U^T G on every leaf that has a basis: the step stays inside the span.

    Args, Returns, Raises, Cost: as for `project_out`, whose complement this is: the two add up to
    the update. k = 0 makes updates exactly 0, k = d leaves them bit-identical.

    Example:
      >>> tx = keep_within(jnp.eye(2)[:, :1])
      >>> print(tx.update(jnp.ones((2, 1)), tx.init(jnp.ones((2, 1))))[0].T)
      [[1. 0.]]
    """
    return _projection("keep_within", basis, Subspace.within)


def _is_basis(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, Subspace)


def _projection(
    where: str, basis: Any, project: Callable[[Subspace, Array], Array]
) -> optax.GradientTransformationExtraArgs:
    def as_subspaces(basis: Any) -> Any:
        return jax.tree.map(lambda b: b if _is_basis(b) else span(b), basis, is_leaf=_is_basis)

    given = None if basis is None else as_subspaces(basis)

    def over(basis: Any, updates: Params) -> Params:
        def below(path: Any, subspace: Any, branch: Params) -> Params:
            if subspace is None:
                return branch
            return jax.tree_util.tree_map_with_path(
                lambda inner, leaf: _apply(where, project, subspace, leaf, (*path, *inner)), branch
            )

        try:
            return jax.tree_util.tree_map_with_path(below, basis, updates, is_leaf=_is_basis)
        except ValueError as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where}: the basis is no prefix of the params: {error}") from None

    def init(params: Params) -> optax.EmptyState:
        if given is not None:
            jax.eval_shape(over, given, params)
        return optax.EmptyState()

    def update(
        updates: Params, state: Any, params: Params = None, *, basis: Any = None, **extra: Any
    ) -> tuple:
        del params, extra
        if given is None and basis is None:
            raise ValueError(
                f"{where}: no basis. Give {where}(basis), or tx.update(..., basis=...)."
            )
        return over(as_subspaces(basis) if given is None else given, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _apply(where: str, project: Callable, subspace: Subspace, leaf: Array, path: Any) -> Array:
    d = subspace.columns.shape[0]
    shape = jnp.shape(leaf)
    runs = (m for m in range(len(shape) + 1) if math.prod(shape[:m]) == d)
    axes = tuple(range(next(runs, 0))) if subspace.axes is None else subspace.axes
    if any(a >= len(shape) for a in axes) or math.prod(shape[a] for a in axes) != d:
        raise ValueError(
            f"{where}: the basis at {jax.tree_util.keystr(path)} has columns of length {d}, but "
            f"the leaf has shape {shape}: expected the product of its leading axes"
            + ("" if subspace.axes is None else f", or of its axes {subspace.axes}")
            + ". Was it made for another layer?"
        )
    order = (*axes, *(a for a in range(len(shape)) if a not in axes))
    moved = leaf.transpose(order)
    wide = jnp.promote_types(leaf.dtype, subspace.columns.dtype)
    matrix = moved.reshape(d, -1).astype(wide)
    made = project(subspace, matrix).astype(leaf.dtype).reshape(moved.shape)
    return made.transpose([order.index(a) for a in range(len(shape))])
