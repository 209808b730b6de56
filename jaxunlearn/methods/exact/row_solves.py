"""One half of an alternating least squares sweep: every row solved exactly, the other side fixed.

    A_u p_u = b_u,     A_u = a_0 Q^T Q + sum_i w_ui q_i q_i^T + l_u I,     b_u = sum_i s_ui q_i

The rows of a side are independent ridge regressions. They are taken a few at a time: gather the
factors beside the ratings, form A and b, solve, write back, all inside one loop whose working set
stays in the cache. What else a sweep wants to know comes from the same numbers: a row's share of
the objective is c + p^T A p - 2 b^T p, half its gradient g = A p - b, and an exact solve lowers it
by g^T (p - p').

| solver     | the row solve                                                     | exact          |
|------------|-------------------------------------------------------------------|----------------|
| "cholesky" | Cholesky factor of A                                              | to rounding    |
| "cg"       | conjugate gradients from the old p, Jacobi preconditioned         | to `tolerance` |
| "block"    | one cycle of Newton steps on blocks of coordinates (iALS++)       | no; descends   |

"cg" with few steps never forms A, and multiplies by the gathered factors instead. iALS++: Rendle,
Krichene, Zhang, Koren (2021), arXiv:2110.14044.

`gradients`, `inverses` and `curvature_products` are the same passes for other ends: for a stopping
rule, for a preconditioner, and for the Hessian of the joint problem.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.methods.exact.rating_rows import Rectangle, chunk_size
from jaxunlearn.typing import Array

SOLVERS = ("cholesky", "cg", "block")
_FEW_STEPS = 6  # of conjugate gradients: up to here A is not worth forming


class Solver(NamedTuple):
    """How rows are solved; static."""

    name: str  # of SOLVERS
    steps: int  # of conjugate gradients, at most
    tolerance: float  # of conjugate gradients: |A p - b| / |b|
    block: int  # coordinates in a block of iALS++


class Problem(NamedTuple):
    """What is the same for both sides; static.

    A rating's share of the objective is w (q^T p)^2 - 2 s q^T p + c.
    """

    terms: Callable[[Array, Array, Array], tuple[Array, Array, Array]]
    """(value, weight, offset) -> (w, s, c), elementwise; zeros for weight 0."""
    penalty: Callable[[Array, int], Array]  # (ratings of a row, rows beside) -> l, elementwise
    mesh: Mesh | None  # devices with one axis, among which rectangles are dealt out


class Beside(NamedTuple):
    """The other side, against which rows are solved."""

    features: Array  # (m, K) q
    offset: Array  # (m,) subtracted from what is to be predicted
    gram: Array  # (K, K) a_0 Q^T Q, zeros for explicit feedback


class Entries(NamedTuple):
    """The ratings, in one order for both sides."""

    value: Array  # (N + 1,) the last is padding
    weight: Array  # (N + 1,) 1, or 0 where a rating is deleted or padding


class Half(NamedTuple):
    """What a half-sweep returns."""

    factors: Array  # (n, K)
    gradient: Array  # [] largest |A p - b| before the solves, over the chosen rows
    value: Array  # [] the chosen rows' share of the objective before the solves
    decrease: Array  # [] by how much it fell
    singular: Array  # [] int32, rows whose A had no Cholesky factor; they keep their factors


class _Chunk(NamedTuple):
    """A few rows and their ratings; L slots each."""

    row: Array  # (c,) numbers; the number of rows where there is none
    beside: Array  # (c, L)
    q: Array  # (c, L, K)
    w: Array  # (c, L)
    s: Array  # (c, L)
    c: Array  # (c, L)
    penalty: Array  # (c,)
    rated: Array  # (c,) whether the row has ratings


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

    def body(chunk: _Chunk, extras: tuple[Array, Array]) -> Any:
        factors, gram = extras
        old = _take(factors, chunk.row)
        p, g, value, fall, bad = _solve(chunk, gram, old, solver)
        real = chunk.row < len(factors)
        sums = (value.sum() + chunk.c.sum(), fall.sum(), (bad & real).sum().astype(jnp.int32))
        return ~bad, p, sums, jnp.abs(g).max()

    zero = jnp.zeros((), factors.dtype)
    start = (jnp.zeros_like(factors), (zero, zero, jnp.int32(0)))
    touched, found, sums, largest = _over_rows(
        problem, beside, entries, number, side, chosen, body, (factors, beside.gram), start
    )
    return Half(jnp.where(touched[:, None], found, factors), largest, *sums)


def gradients(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    factors: Array,
    side: tuple[Rectangle, ...],
) -> Array:
    """(n, K) A_u p_u - b_u of all rows: half the gradient of the objective."""
    no = jax.tree.map(jnp.zeros_like, beside)
    zeros = jnp.zeros_like(factors)
    return curvature_products(
        problem, beside, no, entries, number, factors, zeros, side, gradient=True
    )


def curvature_products(
    problem: Problem,
    beside: Beside,
    change: Beside,
    entries: Entries,
    number: Array,
    factors: Array,
    step: Array,
    side: tuple[Rectangle, ...],
    *,
    gradient: bool = False,
) -> Array:
    """(n, K) d(A_u p_u - b_u) when p moves along `step` and the other side along `change`.

        sum_i [ w (q^T dp + dq^T p + do) q + e dq ] + l dp + G dp + dG p,    e = w q^T p - s

    With `gradient` the value itself instead of its derivative.

    Cost: about 6 K multiplications for each rating.
    """

    def body(chunk: _Chunk, extras: Any) -> Any:
        factors, step, beside, change = extras
        p, dp = _take(factors, chunk.row), _take(step, chunk.row)
        rest = chunk.w * _across(chunk.q, p) - chunk.s
        if gradient:
            out = _along(chunk.q, rest) + _dot(p, beside.gram) + chunk.penalty[:, None] * p
        else:
            dq = change.features[chunk.beside]
            moved = _across(chunk.q, dp) + _across(dq, p) + change.offset[chunk.beside]
            out = _along(chunk.q, chunk.w * moved) + _along(dq, rest)
            out = out + _dot(dp, beside.gram) + _dot(p, change.gram) + chunk.penalty[:, None] * dp
        return jnp.ones(len(p), bool), out, (), jnp.zeros((), p.dtype)

    everyone = jnp.ones(len(factors), bool)
    start = (jnp.zeros_like(factors), ())
    extras = (factors, step, beside, change)
    return _over_rows(problem, beside, entries, number, side, everyone, body, extras, start)[1]


def inverses(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    side: tuple[Rectangle, ...],
) -> tuple[Array, ...]:
    """A_u^-1 of all rows, for each rectangle (D, rows, K, K), where its rows are.

    Cost: a half-sweep and 2 K^3 for each row; memory n K^2, shared among the devices.
    """
    width = beside.features.shape[1]

    def local(arguments: Any, side: tuple[Rectangle, ...]) -> tuple[Array, ...]:
        beside, entries, number = arguments
        found = []
        for each in side:
            size = chunk_size(each.other.shape[2], each.row.shape[1])
            parts = jax.tree.map(lambda a, n=size: a[0].reshape(-1, n, *a.shape[2:]), each)

            def inverted(part: Rectangle) -> Array:
                a = _matrices(_chunk(problem, beside, entries, number, *part), beside.gram)
                eye = jnp.eye(width, dtype=a.dtype)
                return jax.vmap(one_by_one(lambda a: _cholesky_solve(a, eye)[0]))(a)

            found.append(jax.lax.map(inverted, parts).reshape(1, -1, width, width))
        return tuple(found)

    arguments = (beside, entries, number)
    return _spread(problem.mesh, local, arguments, side, whole=False)


def apply_inverses(
    mesh: Mesh | None, inverse: tuple[Array, ...], side: tuple[Rectangle, ...], x: Array
) -> Array:
    """(n, K) A_u^-1 x_u of all rows."""

    def local(x: Array, both: Any) -> Array:
        out = jnp.zeros_like(x)
        for matrix, each in zip(*both, strict=True):
            here = _apply(matrix[0], _take(x, each.row[0]))
            out = out.at[each.row[0]].set(here, mode="drop")
        return out

    return _spread(mesh, local, x, (inverse, side), whole=True)


def _spread(mesh: Mesh | None, function: Callable, shared: Any, dealt: Any, *, whole: bool) -> Any:
    """function(shared, dealt) on every device, with its own share of `dealt` (leading axis 1).

    `whole`: results are sums of the shares, since each row is on one device. Otherwise they stay
    where they are.
    """
    if mesh is None:
        return function(shared, dealt)
    (axis,) = mesh.axis_names

    def on_each(shared: Any, dealt: Any) -> Any:
        found = function(shared, dealt)
        return jax.lax.psum(found, axis) if whole else found

    return jax.shard_map(
        on_each,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axis)),
        out_specs=PartitionSpec() if whole else PartitionSpec(axis),
        check_vma=False,
    )(shared, dealt)


def _over_rows(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    side: tuple[Rectangle, ...],
    chosen: Array,
    body: Callable,
    extras: Any,
    start: tuple[Array, tuple],
) -> tuple[Array, Array, tuple, Array]:
    """body(chunk, extras) -> (write (c,), rows (c, ...), sums, largest) over the chosen rows.

    Returns (rows that were written (n,), what was written, the sums, the largest).
    """

    def local(arguments: Any, side: tuple[Rectangle, ...]) -> Any:
        beside, entries, number, chosen, extras, (blank, sums) = arguments
        count = len(number)
        wanted = jnp.append(chosen, False)
        state = (jnp.zeros(count, jnp.int32), blank, sums, jnp.zeros((), blank.dtype))
        for each in side:
            row, other, entry = (a[0] for a in each)
            order = jnp.argsort(~wanted[row], stable=True)
            total = wanted[row].sum()
            size = chunk_size(other.shape[1], len(row))

            def step(i: Array, state: Any, row: Any = row, other: Any = other, entry: Any = entry,
                     order: Any = order, total: Any = total, size: int = size) -> Any:  # fmt: skip
                at = jax.lax.dynamic_slice(order, (i * size,), (size,))
                real = i * size + jnp.arange(size) < total
                here = jnp.where(real, row[at], count)
                chunk = _chunk(problem, beside, entries, number, here, other[at], entry[at])
                write, rows, more, largest = body(chunk, extras)
                to = jnp.where(write, here, count)
                return (
                    state[0].at[to].set(1, mode="drop"),
                    state[1].at[to].set(rows, mode="drop"),
                    jax.tree.map(jnp.add, state[2], more),
                    jnp.maximum(state[3], largest),
                )

            state = jax.lax.fori_loop(0, (total + size - 1) // size, step, state)
        largest = state[3]
        if problem.mesh is not None:
            largest = jax.lax.pmax(largest, problem.mesh.axis_names[0]) / problem.mesh.size
        return (*state[:3], largest)

    arguments = (beside, entries, number, chosen, extras, start)
    touched, found, sums, largest = _spread(problem.mesh, local, arguments, side, whole=True)
    return touched > 0, found, sums, largest


def _chunk(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    row: Array,
    other: Array,
    entry: Array,
) -> _Chunk:
    real = (row < len(number))[:, None]
    weight = jnp.where(real, entries.weight[entry], 0)
    w, s, c = problem.terms(entries.value[entry], weight, beside.offset[other])
    ratings = _take(number, row)
    penalty = jnp.where(ratings > 0, problem.penalty(ratings, len(beside.features)), 1)
    return _Chunk(row, other, beside.features[other], w, s, c, penalty, ratings > 0)


def _take(array: Array, row: Array) -> Array:
    """Rows of an array; zeros where there is none."""
    return array.at[row].get(mode="fill", fill_value=0)


def _across(q: Array, p: Array) -> Array:
    return jnp.einsum("clk,ck->cl", q, p, precision="highest")


def _along(q: Array, x: Array) -> Array:
    return jnp.einsum("clk,cl->ck", q, x, precision="highest")


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _matrices(chunk: _Chunk, gram: Array) -> Array:
    """(c, K, K) A of each row; I + a_0 Q^T Q for a row without ratings."""
    q, eye = chunk.q, jnp.eye(chunk.q.shape[2], dtype=chunk.q.dtype)[None]
    a = jnp.einsum("clk,clm->ckm", q * chunk.w[..., None], q, precision="highest")
    return a + gram[None] + chunk.penalty[:, None, None] * eye


def _solve(
    chunk: _Chunk, gram: Array, old: Array, solver: Solver
) -> tuple[Array, Array, Array, Array, Array]:
    """(p (c, K), g at the old p (c, K), p^T A p - 2 b^T p there (c,), its fall (c,), singular (c,)).

    old is (c, K), gram (K, K).
    """
    q, w = chunk.q, chunk.w
    b = _along(q, chunk.s)
    bad = jnp.zeros(len(q), bool)

    def product(x: Array) -> Array:
        return _along(q, w * _across(q, x)) + _dot(x, gram) + chunk.penalty[:, None] * x

    if solver.name == "block":
        g = product(old) - b
        p, bad = _blocks(chunk, gram, old, solver.block)
    elif solver.name == "cg" and solver.steps <= _FEW_STEPS:
        g = product(old) - b
        diagonal = _along(q * q, w) + jnp.diag(gram)[None] + chunk.penalty[:, None]
        p = _conjugate_gradients(product, diagonal, b, g, old, solver)
    else:
        a = _matrices(chunk, gram)
        g = _apply(a, old) - b
        if solver.name == "cg":
            diagonal = jnp.diagonal(a, axis1=1, axis2=2)
            p = _conjugate_gradients(lambda x: _apply(a, x), diagonal, b, g, old, solver)
        else:
            p, bad = jax.vmap(one_by_one(_cholesky_solve))(a, b)
    bad = bad | ~jnp.isfinite(p).all(axis=1)
    p = jnp.where(bad[:, None], old, jnp.where(chunk.rated[:, None], p, 0))
    step = p - old
    fall = -_dots(g, step)
    if solver.name == "block":  # which does not end at the minimum of anything
        fall = 2 * fall - _dots(step, product(step))
    return p, g, _dots(old, g - b), fall, bad


def _dots(a: Array, b: Array) -> Array:
    return jnp.einsum("ck,ck->c", a, b, precision="highest")


def _apply(a: Array, x: Array) -> Array:
    return jnp.einsum("ckm,cm->ck", a, x, precision="highest")


def _cholesky_solve(a: Array, b: Array) -> tuple[Array, Array]:
    """(x, whether A is singular to working precision)."""
    lower = jnp.linalg.cholesky(a)
    pivots = jnp.diagonal(lower) ** 2
    least = len(a) * jnp.finfo(a.dtype).eps * jnp.diagonal(a).max()
    return jax.scipy.linalg.cho_solve((lower, True), b), ~(pivots.min() > least)


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


def _blocks(chunk: _Chunk, gram: Array, p: Array, block: int) -> tuple[Array, Array]:
    """One cycle over blocks of coordinates, a Newton step on each; predictions are kept up."""
    q, w, penalty = chunk.q, chunk.w, chunk.penalty[:, None]
    predicted = _across(q, p)
    bad = jnp.zeros(len(q), bool)
    for low in range(0, q.shape[2], block):
        part = slice(low, low + block)
        inside = chunk._replace(q=q[:, :, part])
        g = _along(inside.q, w * predicted - chunk.s) + _dot(p, gram[:, part])
        g = g + penalty * p[:, part]
        a = _matrices(inside, gram[part, part])
        step, singular = jax.vmap(one_by_one(_cholesky_solve))(a, g)
        p = p.at[:, part].add(-step)
        predicted = predicted - _across(inside.q, step)
        bad = bad | singular
    return p, bad
