"""From what is captured at the taps to sums of squared per-example gradients.

    S = sum_i sum_k phi(J_i^T c_ik)         phi: the square, the absolute value, or nothing at all

Leaves that share taps form a group; each group has the cheapest form that is exact:

| how         | when                                      | work beyond the backward pass          |
|-------------|-------------------------------------------|----------------------------------------|
| "squares"   | a product, one position: phi(x)^T phi(d)  | one product like the weight's gradient |
| "products"  | a product, T positions: phi(X_i^T D_i)    | the same, and phi over each result     |
| "rows"      | look-ups in a table                       | a sort of the T indices per example    |
| "each"      | biases, scales: no larger than its result | one pass over the cotangents           |
| "examples"  | all else: weights that are used more than | gradient of those leaves alone, one    |
|             | once or computed from others, insides of  | example at a time                      |
|             | cond, custom_vjp ...                      |                                        |
| "unused"    | no tap                                    | none: zeros                            |
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.curvature.capture import Captured
from jaxunlearn.curvature.folding import in_chunks
from jaxunlearn.curvature.replay import statics
from jaxunlearn.curvature.squares import POWERS, sum_of_squared_products
from jaxunlearn.curvature.taps import Static, Tap
from jaxunlearn.typing import Array, Params

PHI = POWERS | {"sum": lambda value: value}  # "sum": of the gradients themselves


def accumulator(params: Params) -> Params:
    """Zeros like the params, in float32 or wider."""

    def zeros(p: Array) -> Array:
        return jnp.zeros(jnp.shape(p), jnp.promote_types(jnp.result_type(p), jnp.float32))

    return jax.tree.map(zeros, params)


class Group(NamedTuple):
    """Leaves and taps that share nothing with the others."""

    leaves: tuple[int, ...]
    taps: tuple[int, ...]


def groups(taps: Sequence[Tap], leaves: int) -> list[Group]:
    """The connected components of the graph of leaves and taps."""
    label = list(range(leaves))
    for tap in taps:
        joined = {label[i] for i in tap.leaves}
        label = [min(joined) if each in joined else each for each in label]
    made = []
    for each in sorted(set(label)):
        members = tuple(i for i in range(leaves) if label[i] == each)
        inside = tuple(t for t, tap in enumerate(taps) if tap.leaves & set(members))
        made.append(Group(members, inside))
    return made


def how(taps: Sequence[Tap], group: Group) -> tuple[str, str]:
    """(a row of the table of this module, the reason if it is "examples")."""
    count = len(group.taps)
    if count == 0:
        return "unused", ""
    if count > 1:
        return "examples", f"meets data in {count} places"
    tap = taps[group.taps[0]]
    if len(group.leaves) > 1:
        return "examples", "what meets the data is made of several leaves"
    place, *more = tap.wrt
    if more or tap.statics[place].chain is None:
        return "examples", "what meets the data is computed from the leaf"
    if tap.rule is not None and tap.rule.form == "lookup":
        return "rows", ""
    if tap.rule is not None:
        return ("squares" if tap.rule.positions == 1 else "products"), ""
    if tap.weights[0].size > sum(out.size for out in tap.out):
        return "examples", "a weight larger than what it gives, in an equation without a rule"
    return "each", ""


def by_groups(given: Captured) -> list[Array]:
    """sum_i sum_k phi(J_i^T c_ik) for every leaf."""
    sums = jax.tree.leaves(accumulator(given.leaves))
    for group in groups(given.block.taps, len(sums)):
        values = _GROUP[how(given.block.taps, group)[0]](given, group)
        for leaf, value in zip(group.leaves, values, strict=True):
            sums[leaf] = value.astype(sums[leaf].dtype)
    return sums


def _squares(given: Captured, group: Group) -> list[Array]:
    """F = restore(phi(x)^T sum_k phi(d_k)), or the sum of phi over positions' sums."""
    (t,) = group.taps
    tap, others, (delta,) = given.block.taps[t], given.taken[t], given.deltas[t]
    rule = tap.rule
    assert rule is not None

    def factors(others: Sequence[Array], deltas: Array) -> tuple[Array, Array]:
        """X (G, T, I) and D (K, G, T, O) of one example."""
        x = rule.factors(others, deltas[0])[0]
        return x, jax.vmap(lambda d: rule.factors(others, d)[1])(deltas)

    def total(others: Sequence[Array], deltas: Array) -> Array:
        """(G, I, O) from the examples (n, ...) of `others` and (n, K, ...) of `deltas`."""
        x, d = jax.vmap(factors)(others, deltas)
        if given.power == "sum":
            return jnp.einsum("ngti,nkgto->gio", wide(x), wide(d))
        if rule.positions == 1 and given.power == "square" and d.shape[1] > 1:
            # one product for all columns: their squares add up
            d = jnp.sqrt(jnp.square(wide(d)).sum(axis=1, keepdims=True))
        grouped = x.shape[1] > 1
        x, d = (x, d) if grouped else (x[:, 0], d[:, :, 0])
        sums = [sum_of_squared_products(x, d[:, k], power=given.power) for k in range(d.shape[1])]
        value = sum(sums[1:], sums[0])
        return value if grouped else value[None]

    numbers = rule.positions * tap.weights[0].size if rule.bulky else 0
    value = in_chunks(total, (others, delta), _few(delta.shape[0], numbers))
    return [_unchained(tap, given.leaves[group.leaves[0]], rule.restore(value))]


def _rows(given: Captured, group: Group) -> list[Array]:
    """F_v = sum_i sum_k phi(sum of the cotangents where example i reads row v)."""
    (t,) = group.taps
    tap, others, (delta,) = given.block.taps[t], given.taken[t], given.deltas[t]
    rule, table = tap.rule, tap.weights[0]
    assert rule is not None

    def merged(ids: Array, d: Array) -> tuple[Array, Array]:
        """Positions that read the same row as one; the others point outside of the table."""
        order = jnp.argsort(ids)
        ids, d = ids[order], d[order]
        fresh = jnp.concatenate([jnp.ones(1, bool), ids[1:] != ids[:-1]])
        place = jnp.cumsum(fresh) - 1
        rows = jnp.full(ids.shape, table.shape[0], ids.dtype).at[place].set(ids)
        return rows, jax.ops.segment_sum(d, place, num_segments=ids.size, indices_are_sorted=True)

    def one(others: Sequence[Array], d: Array) -> tuple[Array, Array]:
        rows, sums = merged(*rule.factors(others, d))
        return rows, PHI[given.power](wide(sums))

    rows, values = jax.vmap(lambda o, ds: jax.vmap(lambda d: one(o, d))(ds))(others, delta)
    values = values.reshape(-1, *table.shape[1:])
    value = jnp.zeros(table.shape, values.dtype).at[rows.reshape(-1)].add(values, mode="drop")
    return [_unchained(tap, given.leaves[group.leaves[0]], value)]


def _each(given: Captured, group: Group) -> list[Array]:
    """F = sum_i sum_k phi(op^T(x_i) delta_ik), all rows at once."""
    (t,) = group.taps
    tap = given.block.taps[t]
    pull = _pullback(tap, _statics(given)[t])
    over = jax.vmap(jax.vmap(pull, (None, 0)))
    (grads,) = over(given.taken[t], given.deltas[t])
    value = _total(PHI[given.power](wide(grads)), 2)
    return [_unchained(tap, given.leaves[group.leaves[0]], value)]


def _examples(given: Captured, group: Group) -> list[Array]:
    """F = sum_i sum_k phi(H^T (op_1^T delta_1, op_2^T delta_2 ...)) for leaves that share taps."""
    found = _statics(given)
    pulls = [_pullback(given.block.taps[t], found[t]) for t in group.taps]

    def effective(some: list[Array]) -> list[tuple[Array, ...]]:
        leaves = list(given.leaves)
        for i, leaf in zip(group.leaves, some, strict=True):
            leaves[i] = leaf
        found = _statics(given._replace(leaves=leaves))
        return [tuple(found[t][i] for i in given.block.taps[t].wrt) for t in group.taps]

    back = jax.vjp(effective, [given.leaves[i] for i in group.leaves])[1]

    def of_example(taken: list, deltas: list) -> list[Array]:
        cotangents = [pull(o, d) for pull, o, d in zip(pulls, taken, deltas, strict=True)]
        return [wide(g) for g in back(cotangents)[0]]

    def total(taken: list, deltas: list) -> list[Array]:
        grads = jax.vmap(jax.vmap(of_example, (None, 0)))(taken, deltas)
        return [_total(PHI[given.power](g), 2) for g in grads]

    taken, deltas = ([each[t] for t in group.taps] for each in (given.taken, given.deltas))
    weight = sum(given.leaves[i].size for i in group.leaves)
    rows = jax.tree.leaves(deltas)[0].shape[0]
    return in_chunks(total, (taken, deltas), _few(rows, weight))


def _unused(given: Captured, group: Group) -> list[Array]:
    return [jnp.zeros(jnp.shape(given.leaves[i])) for i in group.leaves]


_GROUP = {
    "squares": _squares,
    "products": _squares,
    "rows": _rows,
    "each": _each,
    "examples": _examples,
    "unused": _unused,
}


# ---- small ----


def wide(value: Array) -> Array:
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _total(values: Array, axes: int) -> Array:
    return values.sum(axis=tuple(range(axes)))


def _statics(given: Captured) -> list[tuple]:
    return statics(given.block, [*given.leaves, *[None] * given.rows])


def _with(fixed: Sequence[Array], places: Sequence[int], values: Sequence[Array]) -> list[Array]:
    made = list(fixed)
    for i, value in zip(places, values, strict=True):
        made[i] = value
    return made


def _pullback(tap: Tap, fixed: Sequence[Array]) -> Callable:
    """(others, deltas) of one example -> cotangents of the weights in `wrt`."""

    def pull(others: Sequence[Array], deltas: tuple[Array, ...]) -> tuple[Array, ...]:
        def op(some: tuple[Array, ...]) -> tuple[Array, ...]:
            return tap.apply(_with(fixed, tap.wrt, some), others)

        return jax.vjp(op, tuple(fixed[i] for i in tap.wrt))[1](deltas)[0]

    return pull


def _unchained(tap: Tap, leaf: Array, value: Array) -> Array:
    """The entries of a weight's moment put back where the leaf has them."""
    mark: Static = tap.statics[tap.wrt[0]]
    assert mark.chain is not None
    like = jax.ShapeDtypeStruct(jnp.shape(leaf), value.dtype)
    return jax.linear_transpose(mark.chain, like)(value)[0]


def _few(rows: int, numbers: int) -> int:
    """How many examples at once: one where that is quick, all if their temporaries are small."""
    largest = 1 if jax.default_backend() == "cpu" else 16
    return rows if rows * numbers <= 2**16 else largest
