"""WIN-U: the Newton step of the retained loss, from curvature measured while all data existed.

    Delta = (H - U U^T)^-1 (g_F - grad L)        theta' = theta + eta Delta
          = h + V K^-1 U^T h,    V = H^-1 U,    h = H^-1 (g_F - grad L),    K = I - U^T V

L = sum_i w_i l_i + ridge/2 |theta|^2 over all data, a sum and not a mean, so that what is removed
is subtracted; H = sum_i w_i J_i^T Lambda_i J_i + (ridge + damping) I its Gauss-Newton matrix at
theta, with J the Jacobian of the outputs z and Lambda the Hessian of the loss in z; g_F the
gradient of the forget set; and the columns of U are J^T S for Lambda = S S^T, so that no singular
Lambda is inverted. The first term alone is the influence step; the Woodbury term makes it a step on
the retained rows, exact for squared errors of linear models. After a request H^-1 has become
(H - U U^T)^-1, and serves the next one.

Zhao, Mohammadi Amiri and Magdon-Ismail (2026), "WIN-U: Woodbury-Informed Newton-Unlearning as a
retain-free Machine Unlearning Framework", arXiv:2604.13438. This is a *reconstruction*: no code was
published that we know of, and the formulas were derived from the abstract, as was "MC-WIN-U" from
its name. How H is kept for networks, its damping and the layers that move are our choices:

1. `kind`: a Cholesky factor; a diagonal; or Q (Q^T H Q) Q^T + lambda (I - Q Q^T) on r orthonormal
   columns Q near the leading eigenvectors (randomised subspace iteration, arXiv:0909.4061), where U
   becomes Q^T U: a part of H then never exceeds it, and K stays positive definite.
2. Lambda = S S^T for any loss of the outputs, and C - 1 columns, not C, for softmax
   (`curvature.columns`).
3. K that is not positive definite is clipped and counted (see `linalg.woodbury`).
4. `grad L`, 0 in the paper's case, is measured where training stopped early: `stationary=False`.
5. Without a stored curvature it is measured in the same call, which then needs retained data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxunlearn import losses
from jaxunlearn.curvature.columns import OutputLoss, ggn_columns, weighted_gradient
from jaxunlearn.data.streams import InMemory, concatenate
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.woodbury import Inverse, Status, apply, inverse, rank_change
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.model import Model, freeze_statistics, rebase, split_statistics
from jaxunlearn.typing import Array, Batch, Data, Key, Params

KINDS = ("dense", "diagonal", "low_rank")
_LARGEST_DENSE = 20_000
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Curvature(NamedTuple):
    """What is kept of the training data; p numbers are edited. A pytree, to be saved as one."""

    inverse: Inverse  # of H, over the p numbers or the r coordinates of the basis
    gradient: Array  # (p,) float, grad L at the params; 0 where training ended at a minimum
    basis: Array | None  # (p, r) float, orthonormal; None: all directions
    remainder: Array  # [] float, ridge + damping: H outside the basis
    damping: Array  # [] float, the part of H that is no part of the loss


class WinUInfo(NamedTuple):
    """How the step went."""

    status: Array  # [] int32, a `linalg.woodbury.Status`; NOT_FINITE leaves the params as they were
    smallest: Array  # [] float, smallest eigenvalue of K before clipping, in (0, 1] if H holds F
    clipped: Array  # [] int32, eigenvalues of K that were clipped
    residual: Array  # [] float, |H^-1 (b + U U^T Delta) - Delta| / |Delta|, 0 if solved
    step: Array  # [] float, |eta Delta|
    curvature: Curvature | None  # of what remains, for the next request; or None


def win_u_step(
    curvature: Curvature,
    columns: Array,
    gradient: Array,
    *,
    sign: int = -1,
    eta: float = 1.0,
    epsilon: float | None = None,
    woodbury: bool = True,
) -> tuple[Array, WinUInfo]:
    """eta Delta = -eta (H + s U U^T)^-1 (grad L + s g) of rows with columns U and gradient g.

    Args:
      curvature: of the loss so far.
      columns: U, (p, m) or, in k groups one after another, (k, p, m).
      gradient: g (p,), summed over the rows.
      sign: s, -1 to remove the rows, +1 to learn them.
      eta: step length.
      epsilon: see `linalg.woodbury.rank_change`.
      woodbury: False leaves H as it is for the step: the influence step H^-1 (g - grad L).

    Returns:
      eta Delta (p,), and `WinUInfo` with the curvature at theta + eta Delta of what is left: H^-1
      changed, and the gradient that a quadratic loss has there, (1 - eta)(grad L + s g) -
      eta damping Delta if Delta solves the system.

    Cost: m applications of H^-1 and p m^2 for each group.
    """
    if gradient.shape != curvature.gradient.shape or columns.shape[-2] != len(gradient):
        raise ValueError(
            f"win_u_step: the curvature is of {len(curvature.gradient)} numbers, but the columns "
            f"have shape {columns.shape} and the gradient {gradient.shape}."
        )
    groups = columns if columns.ndim == 3 else columns[None]
    u = jax.vmap(lambda group: _coordinates(curvature, group))(groups)
    return _step(curvature, u, gradient, sign, eta, epsilon, woodbury)


def _coordinates(curvature: Curvature, columns: Array) -> Array:
    """U, or Q^T U: (p, m) -> (r, m), vectors too."""
    return columns if curvature.basis is None else _dot(curvature.basis.T, columns)


def _step(
    curvature: Curvature,
    u: Array,
    gradient: Array,
    sign: int,
    eta: float,
    epsilon: float | None,
    woodbury: bool,
) -> tuple[Array, WinUInfo]:
    """`win_u_step` with the columns in coordinates, (k, r, m)."""
    inv, basis = curvature.inverse, curvature.basis
    changed, k = rank_change(inv, u, sign=sign, epsilon=epsilon)
    b = -(curvature.gradient + sign * gradient)
    inside = _coordinates(curvature, b)
    short = apply(changed if woodbury else inv, inside)
    over = jnp.einsum("kpm,km->p", u, jnp.einsum("kpm,p->km", u, short))
    error, size = apply(inv, inside - sign * over) - short, jnp.linalg.norm(short)
    residual = jnp.linalg.norm(error) / jnp.where(size > 0, size, 1)
    delta = short
    if basis is not None:
        delta = _dot(basis, short) + (b - _dot(basis, inside)) / curvature.remainder
    finite = jnp.isfinite(delta).all() & (k.status != Status.NOT_FINITE)
    delta = jnp.where(finite, delta, 0)
    fresh = jnp.arange(changed.factor.shape[1]) >= inv.factor.shape[1]
    factor = jnp.where(fresh[None] & ~finite, 0, changed.factor)
    after = (eta - 1) * b - eta * curvature.damping * delta
    left = curvature._replace(
        inverse=changed._replace(factor=factor),
        gradient=jnp.where(finite, after, curvature.gradient),
    )
    status = jnp.where(finite, k.status, Status.NOT_FINITE).astype(jnp.int32)
    length = eta * jnp.linalg.norm(delta)
    return eta * delta, WinUInfo(status, k.smallest, k.clipped, residual, length, left)


def _flatten(params: Params, leaves: str | None) -> tuple[Array, Callable[[Array], Params]]:
    """(theta (p,), theta -> params): the leaves whose path contains `leaves`, as one vector."""
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    chosen = [leaves is None or leaves in name for name in names]
    if not any(chosen):
        raise ValueError(
            f"win_u: no leaf's path contains leaves={leaves!r}; the leaves are {', '.join(names)}."
        )
    old = [leaf for _, leaf in paths]
    dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in old))
    picked = [leaf.astype(dtype) for leaf, moves in zip(old, chosen, strict=True) if moves]
    theta, unravel = ravel_pytree(picked)

    def restore(vector: Array) -> Params:
        moved = iter(unravel(vector))
        return tree.unflatten(
            [
                next(moved).astype(leaf.dtype) if moves else leaf
                for leaf, moves in zip(old, chosen, strict=True)
            ]
        )

    return theta, restore


def _scan(step: Callable, carry: Any, data: Data, rows: int) -> tuple[Any, Any]:
    """Scans `step(carry, (index, batch))` over batches of `rows`; streamed ones rechunked alike."""

    def over(carry: Any, start: int | Array, part: InMemory) -> tuple[Any, Any]:
        def body(carry: Any, index: Array) -> tuple[Any, Any]:
            return step(carry, (start + index, part.batch(index)))

        return jax.lax.scan(body, carry, jnp.arange(part.num_batches))

    if isinstance(data, InMemory):
        return over(carry, 0, InMemory(data.arrays, rows))
    outs, compiled, start = [], jax.jit(over), 0
    for batch in data:
        part = InMemory(dict(batch), rows)
        carry, out = compiled(carry, start, part)
        outs, start = [*outs, out], start + part.num_batches
    return carry, jax.tree.map(lambda *each: jnp.concatenate(each), *outs)


def _columns_of(
    model: Model,
    restore: Callable[[Array], Params],
    theta: Array,
    output_loss: OutputLoss,
    samples: int | None,
    key: Key | None,
) -> Callable[[Array, Batch], tuple[Array, Array]]:
    """(index, batch) -> (U (p, n m), g (p,)) of the batch, in terms of theta."""
    small = rebase(model, restore, lambda params: params)

    def columns(index: Array, batch: Batch) -> tuple[Array, Array]:
        own = None if key is None else jax.random.fold_in(key, index)
        return (
            ggn_columns(small.outputs, output_loss, theta, batch, samples=samples, key=own),
            weighted_gradient(small.loss, theta, batch),
        )

    return columns


def _orthonormal(matrix: Array) -> Array:
    return jnp.linalg.qr(matrix)[0]


def win_u_curvature(
    model: Model,
    params: Params,
    data: Data,
    *,
    kind: str = "dense",
    ridge: float = 0.0,
    damping: float = 1.0,
    stationary: bool = True,
    leaves: str | None = None,
    rank: int = 64,
    samples: int | None = None,
    output_loss: OutputLoss = losses.cross_entropy,
    micro_batch: int = 16,
    key: Key | None = None,
) -> Curvature:
    """H = sum_i w_i J_i^T Lambda_i J_i + (ridge + damping) I of all the data, for later requests.

    Args:
      model, params, data: what was trained, on what; afterwards the data may go.
      kind: "dense" (p <= 20000), "diagonal" or "low_rank"; see the module.
      ridge: lambda >= 0 of the loss that was minimised, per SUM of losses: n times that of a mean.
      damping: added to H alone, >= 0; ridge + damping > 0. For a ridge regression, 0.
      stationary: True takes grad L as 0, False measures it.
      leaves: only leaves whose path contains this text move ("head"); None: all.
      rank: r of "low_rank"; more than p means p.
      samples: Monte-Carlo columns per example, or None for the exact Lambda.
      output_loss: (outputs, labels) -> (n,), of which Lambda is the Hessian: the loss of the model.
      micro_batch: examples whose Jacobians are held at once.
      key: for `samples` and "low_rank".

    Returns:
      A `Curvature`, in at least float32.

    Raises:
      ValueError: an argument outside its range, a missing key, no such leaf, a dense H too large.
      TypeError: labels that `output_loss` does not take.

    Cost: m + 1 backward passes per example (m = C - 1, or samples), three passes over the data for
    "low_rank" and one for the others; memory p^2, p, or p r, and micro_batch x m x p.
    """
    _check(kind, ridge, damping, rank, samples, micro_batch)
    if key is None and (samples is not None or kind == "low_rank"):
        raise ValueError(f"win_u_curvature: {kind=} with {samples=} draws; give it a key.")
    weights, statistics = split_statistics(model, params)
    theta, restore = _flatten(weights, leaves)
    size, extra = len(theta), jnp.asarray(ridge + damping, theta.dtype)
    if kind == "dense" and size > _LARGEST_DENSE:
        raise ValueError(
            f"win_u: a dense curvature of {size} numbers would hold {size**2:.1e}; choose fewer "
            "with leaves=, or kind='low_rank' or 'diagonal'."
        )
    frozen = freeze_statistics(model, statistics)
    columns = _columns_of(frozen, restore, theta, output_loss, samples, key)

    def total(function: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(sum over the data of function(U), gradient of the data)."""
        shape = jax.eval_shape(function, jnp.zeros((size, 1), theta.dtype))

        def step(carry: tuple[Array, Array], item: tuple[Array, Batch]) -> tuple:
            u, g = columns(*item)
            return (carry[0] + function(u), carry[1] + g), None

        zeros = jnp.zeros(shape.shape, shape.dtype), jnp.zeros_like(theta)
        (added, gradient), _ = _scan(step, zeros, data, micro_batch)
        return added, gradient

    basis = None
    if kind == "diagonal":
        matrix, gradient = total(lambda u: (u * u).sum(axis=1))
    elif kind == "dense":
        matrix, gradient = total(lambda u: _dot(u, u.T))
    else:
        assert key is not None
        own = jax.random.fold_in(key, size)
        q = jax.random.normal(own, (size, min(rank, size)), theta.dtype)
        for _ in range(2):  # H Q, orthonormalised: towards the leading eigenvectors
            q = one_by_one(_orthonormal)(total(lambda u: _dot(u, _dot(u.T, q)))[0])  # noqa: B023
        basis = q
        matrix, gradient = total(lambda u: _dot(_dot(q.T, u), _dot(u.T, q)))
    matrix += extra if matrix.ndim == 1 else extra * jnp.eye(len(matrix), dtype=extra.dtype)
    gradient = jnp.zeros_like(theta) if stationary else gradient + ridge * theta
    return Curvature(inverse(matrix), gradient, basis, extra, jnp.asarray(damping, theta.dtype))


def win_u(
    *,
    curvature: Curvature | None = None,
    kind: str = "dense",
    ridge: float = 0.0,
    damping: float = 1.0,
    stationary: bool = True,
    leaves: str | None = None,
    rank: int = 64,
    samples: int | None = None,
    eta: float = 1.0,
    epsilon: float | None = None,
    woodbury: bool = True,
    output_loss: OutputLoss = losses.cross_entropy,
    micro_batch: int = 16,
) -> Method:
    """theta' = theta + eta (H - U U^T)^-1 (g_F - grad L), by Woodbury from H^-1.

    Args:
      curvature: from `win_u_curvature`, with the same `leaves`: then no retained data are needed,
        and `kind`, `ridge`, `damping`, `stationary` and `rank` are those it was made with. None:
        measured in the same call on forget and retain together.
      kind, ridge, damping, stationary, leaves, rank, samples, output_loss, micro_batch: see
        `win_u_curvature`; micro_batch is also the size of a group of forgotten examples, whose K
        has micro_batch x m columns.
      eta: step length > 0.
      epsilon: least eigenvalue of K, in (0, 1]; None: the square root of the machine epsilon. The
        smaller, the further a step may go along a direction that F alone holds.
      woodbury: False gives the influence step H^-1 (g_F - grad L).

    Returns:
      A Method that needs forget and labels; retain too without a stored curvature, and a key where
      something is drawn (`samples`, or measuring "low_rank"). Its info is a `WinUInfo`, whose
      `curvature` must replace a stored one before the next request.

    Raises:
      ValueError: a constant outside its range, or a curvature of another number of params.

    | situation                              | result                                             |
    |----------------------------------------|----------------------------------------------------|
    | squared error, linear model, damping 0 | equals retraining (dense, exact arithmetic)        |
    | ridge or damping -> infinity           | params unchanged                                   |
    | K not positive definite                | clipped, status CLIPPED, counted                   |
    | NaN or Inf anywhere                    | params and curvature unchanged, status NOT_FINITE  |
    | more columns than params               | as any other number                                |
    | examples permuted, another micro_batch | the same step up to rounding, if SOLVED            |

    Cost: m + 1 backward passes per forgotten example, then p M (M + p) for its M = n_f m columns
    (r in place of p for "low_rank", M alone for "diagonal"); without a stored curvature that of
    `win_u_curvature` before.

    Source: Zhao et al. (2026), arXiv:2604.13438, a reconstruction; departures in the module.

    Example:
      >>> sorted(win_u(leaves="head").needs)
      ['forget', 'labels', 'retain']
    """
    _check(kind, ridge, damping, rank, samples, micro_batch)
    if not eta > 0 or not (epsilon is None or 0 < epsilon <= 1):
        raise ValueError(f"win_u: expected eta > 0 and epsilon in (0, 1], got {eta=}, {epsilon=}.")
    drawn = samples is not None or (curvature is None and kind == "low_rank")

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        theta, restore = _flatten(params, leaves)
        first, second = jax.random.split(key) if drawn else (None, None)
        before = curvature
        if before is None:
            assert request.retain is not None
            before = win_u_curvature(
                model, params, concatenate(request.forget, request.retain),
                kind=kind, ridge=ridge, damping=damping, stationary=stationary, leaves=leaves,
                rank=rank, samples=samples, output_loss=output_loss, micro_batch=micro_batch,
                key=first,
            )  # fmt: skip
        if before.gradient.shape != theta.shape:
            raise ValueError(
                f"win_u: the curvature is of {len(before.gradient)} numbers, the params that may "
                f"move have {len(theta)}. Was it made for another network, or with other leaves=?"
            )
        columns = _columns_of(model, restore, theta, output_loss, samples, second)

        def step(total: Array, item: tuple[Array, Batch]) -> tuple[Array, Array]:
            u, g = columns(*item)
            return total + g, _coordinates(before, u)

        gradient, u = _scan(step, jnp.zeros_like(theta), request.forget, micro_batch)
        delta, info = _step(before, u, gradient, -1, eta, epsilon, woodbury)
        if curvature is None:
            info = info._replace(curvature=None)
        return Unlearned(model, restore(theta + delta), info)

    needs = {"forget", "labels"}
    needs |= {"retain"} if curvature is None else set()
    needs |= {"key"} if drawn else set()
    return method(unlearn, needs=needs, name="win_u")


def _check(
    kind: str, ridge: float, damping: float, rank: int, samples: int | None, micro_batch: int
) -> None:
    if kind not in KINDS:
        raise ValueError(f"win_u: kind must be among {KINDS}, got {kind!r}.")
    if not (ridge >= 0 and damping >= 0 and ridge + damping > 0):
        raise ValueError(
            f"win_u: expected ridge >= 0 and damping >= 0, not both 0, got {ridge=}, {damping=}: "
            "without either H need not have an inverse."
        )
    if rank < 1 or micro_batch < 1 or (samples is not None and samples < 1):
        raise ValueError(f"win_u: counts must be >= 1, got {rank=}, {micro_batch=}, {samples=}.")
