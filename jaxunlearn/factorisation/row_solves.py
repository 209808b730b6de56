"""One half of an alternating least squares sweep: every row solved exactly, the other side fixed.

    p_u = A_u^-1 b_u,     A_u = a_0 Q^T Q + sum_i w_ui q_i q_i^T + l_u I,     b_u = sum_i s_ui q_i

The rows of a side are independent ridge regressions. What else a sweep wants to know comes from the
same numbers: a row's share of the objective is c + p^T A p - 2 b^T p, half its gradient is
g = A p - b, and an exact solve lowers the share by g^T (p - p').

| solver     | the row solve                                                     | exact          |
|------------|-------------------------------------------------------------------|----------------|
| "cholesky" | Cholesky factor of A                                              | to rounding    |
| "cg"       | conjugate gradients from the old p, Jacobi preconditioned         | to `tolerance` |
| "block"    | one cycle of Newton steps on blocks of coordinates (iALS++)       | no; descends   |

"cg" with few steps never forms A, and multiplies by the gathered factors instead. iALS++: Rendle,
Krichene, Zhang, Koren (2021), arXiv:2110.14044.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.factorisation.rating_rows import Rectangle
from jaxunlearn.factorisation.row_passes import (
    Beside,
    Chunk,
    Entries,
    Problem,
    across,
    along,
    apply,
    cholesky_solve,
    dot,
    matrices,
    over_rows,
    take,
)
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.typing import Array

SOLVERS = ("cholesky", "cg", "block")
_FEW_STEPS = 6  # of conjugate gradients: up to here A is not worth forming


class Solver(NamedTuple):
    """How rows are solved; static."""

    name: str  # of SOLVERS
    steps: int  # of conjugate gradients, at most
    tolerance: float  # of conjugate gradients: |A p - b| / |b|
    block: int  # coordinates in a block of iALS++


class Half(NamedTuple):
    """What a half-sweep returns."""

    factors: Array  # (n, K)
    gradient: Array  # [] largest |A p - b| before the solves, over the chosen rows
    value: Array  # [] the chosen rows' share of the objective before the solves
    decrease: Array  # [] by how much it fell
    singular: Array  # [] int32, rows whose A had no Cholesky factor; they keep their factors


def half_sweep(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    factors: Array,
    side: tuple[Rectangle, ...],
    chosen: Array,
    solver: Solver,
) -> Half:
    """p_u = A_u^-1 b_u for the chosen rows of one side; the others stay as they are, bit for bit.

    Args:
      problem, beside, entries: what the rows are solved against.
      number: (n,) ratings of each row.
      factors: (n, K), where conjugate gradients and blocks begin.
      side: the ratings of the rows.
      chosen: (n,) bool. How many are chosen is not part of the compiled program: its loops end
        where the chosen rows do.
      solver: how.

    | row                                      | becomes                                       |
    |------------------------------------------|-----------------------------------------------|
    | without ratings (never had, or deleted)  | 0                                             |
    | chosen, A singular (l = 0, few ratings)  | stays; counted in `singular`                  |

    Cost: for each rating K^2 multiplications ("cg" of few steps: 2 K a step), K^3 / 3 for each row;
      memory a chunk of rows.
    """

    def body(chunk: Chunk, extras: tuple[Array, Array]) -> Any:
        factors, gram = extras
        old = take(factors, chunk.row)
        p, g, value, fall, bad = _solve(chunk, gram, old, solver)
        real = chunk.row < len(factors)
        sums = (value.sum() + chunk.c.sum(), fall.sum(), (bad & real).sum().astype(jnp.int32))
        return ~bad, p, sums, jnp.abs(g).max()

    zero = jnp.zeros((), factors.dtype)
    start = (jnp.zeros_like(factors), (zero, zero, jnp.int32(0)))
    touched, found, sums, largest = over_rows(
        problem, beside, entries, number, side, chosen, body, (factors, beside.gram), start
    )
    return Half(jnp.where(touched[:, None], found, factors), largest, *sums)


def _solve(
    chunk: Chunk, gram: Array, old: Array, solver: Solver
) -> tuple[Array, Array, Array, Array, Array]:
    """(p (c, K), g at the old p (c, K), p^T A p - 2 b^T p there, its fall, singular), (c,) each.

    old is (c, K), gram (K, K).
    """
    q, w = chunk.q, chunk.w
    b = along(q, chunk.s)
    bad = jnp.zeros(len(q), bool)

    def product(x: Array) -> Array:
        return along(q, w * across(q, x)) + dot(x, gram) + chunk.penalty[:, None] * x

    if solver.name == "block":
        g = product(old) - b
        p, bad = _blocks(chunk, gram, old, solver.block)
    elif solver.name == "cg" and solver.steps <= _FEW_STEPS:
        g = product(old) - b
        diagonal = along(q * q, w) + jnp.diag(gram)[None] + chunk.penalty[:, None]
        p = _conjugate_gradients(product, diagonal, b, g, old, solver)
    else:
        a = matrices(chunk, gram)
        g = apply(a, old) - b
        if solver.name == "cg":
            diagonal = jnp.diagonal(a, axis1=1, axis2=2)
            p = _conjugate_gradients(lambda x: apply(a, x), diagonal, b, g, old, solver)
        else:
            p, bad = jax.vmap(one_by_one(cholesky_solve))(a, b)
    bad = bad | ~jnp.isfinite(p).all(axis=1)
    p = jnp.where(bad[:, None], old, jnp.where(chunk.rated[:, None], p, 0))
    step = p - old
    fall = -_dots(g, step)
    if solver.name == "block":  # which does not end at the minimum of anything
        fall = 2 * fall - _dots(step, product(step))
    idle = jnp.where(chunk.rated, 0, _dots(old, old))  # their penalty is none of the objective's
    return p, g, _dots(old, g - b) - idle, fall - idle, bad


def _dots(a: Array, b: Array) -> Array:
    return jnp.einsum("ck,ck->c", a, b, precision="highest")


def _conjugate_gradients(
    product: Callable[[Array], Array], diagonal: Array, b: Array, g: Array, p: Array, solver: Solver
) -> Array:
    """Preconditioned conjugate gradients on c systems at once, until all are solved."""
    inverse = 1 / diagonal
    enough = (solver.tolerance**2) * (b * b).sum(axis=1)

    def going(state: tuple) -> Array:
        step, _, r, *_ = state
        return (step < solver.steps) & ((r * r).sum(axis=1) > enough).any()

    def turn(state: tuple) -> tuple:
        step, p, r, direction, rz = state
        image = product(direction)
        curvature = (direction * image).sum(axis=1)
        moving = curvature > 0
        a = jnp.where(moving, rz / jnp.where(moving, curvature, 1), 0)
        p, r = p + a[:, None] * direction, r - a[:, None] * image
        z = inverse * r
        new = (r * z).sum(axis=1)
        ratio = jnp.where(moving, new / jnp.where(rz > 0, rz, 1), 0)
        return step + 1, p, r, z + ratio[:, None] * direction, new

    z = -inverse * g
    start = (jnp.int32(0), p, -g, z, -(g * z).sum(axis=1))
    return jax.lax.while_loop(going, turn, start)[1]


def _blocks(chunk: Chunk, gram: Array, p: Array, block: int) -> tuple[Array, Array]:
    """One cycle over blocks of coordinates, a Newton step on each; predictions are kept up."""
    q, w, penalty = chunk.q, chunk.w, chunk.penalty[:, None]
    predicted = across(q, p)
    bad = jnp.zeros(len(q), bool)
    for low in range(0, q.shape[2], block):
        part = slice(low, low + block)
        inside = chunk._replace(q=q[:, :, part])
        g = along(inside.q, w * predicted - chunk.s) + dot(p, gram[:, part])
        g = g + penalty * p[:, part]
        a = matrices(inside, gram[part, part])
        step, singular = jax.vmap(one_by_one(cholesky_solve))(a, g)
        p = p.at[:, part].add(-step)
        predicted = predicted - across(inside.q, step)
        bad = bad | singular
    return p, bad
