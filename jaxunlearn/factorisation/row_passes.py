"""Passes over the rows of one side of a factorisation, a few rows at a time.

    for a few rows at a time:   gather q_i and the ratings   ->   something per row, and sums

Everything that a factorisation computes is such a pass: solves (`row_solves`), gradients, products
with the Hessian, inverses of its diagonal blocks. The working set stays in a cache, memory does not
grow with the number of ratings, and with several devices each takes the rows that it was dealt.

    A_u = a_0 Q^T Q + sum_i w_ui q_i q_i^T + l_u I,    b_u = sum_i s_ui q_i,    g_u = A_u p_u - b_u
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxunlearn.factorisation.rating_rows import Rectangle, chunk_size
from jaxunlearn.linalg.small_inverses import small_inverses
from jaxunlearn.typing import Array


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


class Chunk(NamedTuple):
    """A few rows and their ratings; L slots each."""

    row: Array  # (c,) numbers; the number of rows where there is none
    beside: Array  # (c, L)
    q: Array  # (c, L, K)
    w: Array  # (c, L)
    s: Array  # (c, L)
    c: Array  # (c, L)
    penalty: Array  # (c,)
    rated: Array  # (c,) whether the row has ratings


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

    def body(chunk: Chunk, extras: Any) -> Any:
        factors, step, beside, change = extras
        p, dp = take(factors, chunk.row), take(step, chunk.row)
        rest = chunk.w * across(chunk.q, p) - chunk.s
        if gradient:
            out = along(chunk.q, rest) + dot(p, beside.gram) + chunk.penalty[:, None] * p
        else:
            dq = change.features[chunk.beside]
            moved = across(chunk.q, dp) + across(dq, p) + change.offset[chunk.beside]
            out = along(chunk.q, chunk.w * moved) + along(dq, rest)
            out = out + dot(dp, beside.gram) + dot(p, change.gram) + chunk.penalty[:, None] * dp
        return jnp.ones(len(p), bool), out, (), jnp.zeros((), p.dtype)

    everyone = jnp.ones(len(factors), bool)
    start = (jnp.zeros_like(factors), ())
    extras = (factors, step, beside, change)
    return over_rows(problem, beside, entries, number, side, everyone, body, extras, start)[1]


def row_values(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    factors: Array,
    side: tuple[Rectangle, ...],
) -> Array:
    """(n,) each row's share of the objective, sum_i [w x^2 - 2 s x + c] + p^T G p + l p^T p."""

    def body(chunk: Chunk, extras: tuple[Array, Array]) -> Any:
        factors, gram = extras
        p = take(factors, chunk.row)
        x = across(chunk.q, p)
        shares = (chunk.w * x**2 - 2 * chunk.s * x + chunk.c).sum(axis=1)
        shares = shares + (p * dot(p, gram)).sum(axis=1)
        shares = shares + jnp.where(chunk.rated, chunk.penalty, 0) * (p**2).sum(axis=1)
        return jnp.ones(len(p), bool), shares, (), jnp.zeros((), p.dtype)

    everyone = jnp.ones(len(factors), bool)
    start = (jnp.zeros(len(factors), factors.dtype), ())
    return over_rows(
        problem, beside, entries, number, side, everyone, body, (factors, beside.gram), start
    )[1]


def inverses(
    problem: Problem,
    beside: Beside,
    entries: Entries,
    number: Array,
    side: tuple[Rectangle, ...],
) -> tuple[Array, ...]:
    """A_u^-1 of all rows, for each rectangle (D, rows, K, K), where its rows are.

    Cost: a half-sweep and 3 K^3 for each row; memory n K^2, shared among the devices.
    """
    width = beside.features.shape[1]

    def local(arguments: Any, side: tuple[Rectangle, ...]) -> tuple[Array, ...]:
        beside, entries, number = arguments
        found = []
        for each in side:
            size = chunk_size(each.other.shape[2], each.row.shape[1])
            parts = jax.tree.map(lambda a, n=size: a[0].reshape(-1, n, *a.shape[2:]), each)

            def inverted(part: Rectangle) -> Array:
                chunk = _chunk(problem, beside, entries, number, *part)
                return small_inverses(matrices(chunk, beside.gram))

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
            here = apply(matrix[0], take(x, each.row[0]))
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


def over_rows(
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
) -> Chunk:
    real = (row < len(number))[:, None]
    weight = jnp.where(real, entries.weight[entry], 0)
    w, s, c = problem.terms(entries.value[entry], weight, beside.offset[other])
    ratings = take(number, row)
    penalty = jnp.where(ratings > 0, problem.penalty(ratings, len(beside.features)), 1)
    return Chunk(row, other, beside.features[other], w, s, c, penalty, ratings > 0)


def take(array: Array, row: Array) -> Array:
    """Rows of an array; zeros where there is none."""
    return array.at[row].get(mode="fill", fill_value=0)


def across(q: Array, p: Array) -> Array:
    return jnp.einsum("clk,ck->cl", q, p, precision="highest")


def along(q: Array, x: Array) -> Array:
    return jnp.einsum("clk,cl->ck", q, x, precision="highest")


def dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def matrices(chunk: Chunk, gram: Array) -> Array:
    """(c, K, K) A of each row; I + a_0 Q^T Q for a row without ratings."""
    q, eye = chunk.q, jnp.eye(chunk.q.shape[2], dtype=chunk.q.dtype)[None]
    a = jnp.einsum("clk,clm->ckm", q * chunk.w[..., None], q, precision="highest")
    return a + gram[None] + chunk.penalty[:, None, None] * eye


def apply(a: Array, x: Array) -> Array:
    return jnp.einsum("ckm,cm->ck", a, x, precision="highest")


def cholesky_solve(a: Array, b: Array) -> tuple[Array, Array]:
    """(x, whether A is singular to working precision)."""
    lower = jnp.linalg.cholesky(a)
    pivots = jnp.diagonal(lower) ** 2
    least = len(a) * jnp.finfo(a.dtype).eps * jnp.diagonal(a).max()
    return jax.scipy.linalg.cho_solve((lower, True), b), ~(pivots.min() > least)
