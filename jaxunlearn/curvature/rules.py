"""What is known of the equations in which a weight meets data: products, convolutions, look-ups.

A `Rule` brings y = op(w, x) and the cotangent delta of y to one of two forms:

    product    dl/dw = restore(X^T D)       X (G, T, I), D (G, T, O): G groups, T positions
    lookup     dl/dw = sum_t e_{id_t} D_t   ids (T,), D (T, ...): row id_t of a table was read

The positions T are what one example feeds through the same weight: tokens, pixels, time steps. With
T = 1 the squares of X^T D are the products of the squares; with more, the sum over positions comes
first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn.convolution import patches_of
from jaxunlearn.typing import Array


class Rule(NamedTuple):
    """The form of one equation; see the module. Functions of one example."""

    form: str  # "product" or "lookup"
    factors: Callable[[Sequence[Array], Array], tuple[Array, Array]]  # (others, delta) -> (X, D)
    restore: Callable[[Array], Array] = lambda f: f  # (G, I, O) -> shape of the weight
    groups: int = 1  # G
    positions: int = 1  # T
    bulky: bool = False  # X is much larger than what it is made of (patches)
    inputs: tuple[int, ...] = ()  # axes of the weight that are summed over, in the order of I


_REINDEXING = frozenset(
    "reshape transpose squeeze expand_dims slice rev copy copy_p convert_element_type".split()
)


def is_reindexing(eqn: Any) -> bool:
    """Whether the one result holds entries of the one operand, each at most once."""
    if len(eqn.invars) != 1:
        return False
    if eqn.primitive.name == "broadcast_in_dim":
        return eqn.invars[0].aval.size == eqn.outvars[0].aval.size
    return eqn.primitive.name in _REINDEXING


def reindex(eqn: Any) -> Callable[[Array], Array]:
    """The equation as a function that keeps the dtype, whatever it is."""
    if eqn.primitive.name == "convert_element_type":
        return lambda value: value
    return lambda value: eqn.primitive.bind(value, **eqn.primitive.get_bind_params(eqn.params))


def rule_for(eqn: Any, position: int) -> Rule | None:
    """The Rule of an equation whose operand number `position` is the weight, or None."""
    make = {"dot_general": _dot_general, "conv_general_dilated": _conv, "gather": _gather}
    maker = make.get(eqn.primitive.name)
    return None if maker is None else maker(eqn, position)


def stack_rule(rule: Rule | None, varying: bool, length: int) -> Rule | None:
    """The Rule of the same equation in every step of a scan, its data and results stacked.

    With `varying` weights (one for each step) the steps are groups, else they are positions.
    """
    if rule is None or (rule.form == "lookup" and varying):
        return None

    def factors(others: Sequence[Array], delta: Array) -> tuple[Array, Array]:
        x, d = jax.vmap(rule.factors)(list(others), delta)
        if rule.form == "product" and not varying:  # (L, G, T, .) -> (G, L T, .)
            x, d = jnp.moveaxis(x, 0, 1), jnp.moveaxis(d, 0, 1)
            return x.reshape(x.shape[0], -1, x.shape[-1]), d.reshape(d.shape[0], -1, d.shape[-1])
        return x.reshape(-1, *x.shape[2:]), d.reshape(-1, *d.shape[2:])

    def restore(f: Array) -> Array:
        return jax.vmap(rule.restore)(f.reshape(-1, rule.groups, *f.shape[1:]))

    if not varying:
        return rule._replace(factors=factors, positions=length * rule.positions)
    inputs = tuple(axis + 1 for axis in rule.inputs)
    return rule._replace(factors=factors, restore=restore, inputs=inputs)


def _dot_general(eqn: Any, position: int) -> Rule:
    contracting, batch = eqn.params["dimension_numbers"]
    w, x = eqn.invars[position].aval, eqn.invars[1 - position].aval
    w_in, w_group = tuple(contracting[position]), tuple(batch[position])
    x_in, x_group = tuple(contracting[1 - position]), tuple(batch[1 - position])
    w_out = tuple(a for a in range(w.ndim) if a not in w_in + w_group)
    x_free = tuple(a for a in range(x.ndim) if a not in x_in + x_group)
    order = w_group + w_in + w_out
    groups = math.prod(w.shape[a] for a in w_group)
    inputs = math.prod(w.shape[a] for a in w_in)
    positions = math.prod(x.shape[a] for a in x_free)
    outputs = math.prod(w.shape[a] for a in w_out)

    def factors(others: Sequence[Array], delta: Array) -> tuple[Array, Array]:
        (x,) = others
        x = x.transpose(x_group + x_free + x_in).reshape(groups, positions, inputs)
        if position == 0:  # the result has the weight's axes first
            return x, delta.reshape(groups, outputs, positions).swapaxes(1, 2)
        return x, delta.reshape(groups, positions, outputs)

    def restore(f: Array) -> Array:
        back = sorted(range(len(order)), key=order.__getitem__)
        return f.reshape([w.shape[a] for a in order]).transpose(back)

    return Rule("product", factors, restore, groups, positions, inputs=w_in)


def _conv(eqn: Any, position: int) -> Rule | None:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    empty = eqn.outvars[0].aval.size == 0
    if position != 1 or eqn.params["batch_group_count"] != 1 or empty:
        return None
    kernel = eqn.invars[1].aval.shape
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    window = [kernel[a] for a in rhs[2:]]
    per_group, outputs = kernel[rhs[1]], kernel[rhs[0]] // groups

    def factors(others: Sequence[Array], delta: Array) -> tuple[Array, Array]:
        x = others[0].transpose((lhs[0], *lhs[2:], lhs[1]))
        x = patches_of(
            x,
            window,
            eqn.params["window_strides"],
            eqn.params["padding"],
            eqn.params["lhs_dilation"],
            eqn.params["rhs_dilation"],
        )
        x = x.reshape(-1, math.prod(window), groups, per_group)
        x = x.transpose(2, 0, 1, 3).reshape(groups, x.shape[0], -1)
        d = delta.transpose((out[0], *out[2:], out[1])).reshape(-1, groups, outputs)
        return x, d.swapaxes(0, 1)

    def restore(f: Array) -> Array:
        f = jnp.moveaxis(f.reshape(groups, *window, per_group, outputs), 0, -2)
        f = f.reshape(*window, per_group, groups * outputs)
        order = (*rhs[2:], rhs[1], rhs[0])
        return f.transpose(sorted(range(len(order)), key=order.__getitem__))

    result = eqn.outvars[0].aval
    positions = result.size // result.shape[out[1]]
    inputs = (*rhs[2:], rhs[1])
    return Rule("product", factors, restore, groups, positions, bulky=True, inputs=inputs)


def _gather(eqn: Any, position: int) -> Rule | None:
    table, indices = (v.aval for v in eqn.invars)
    numbers = eqn.params["dimension_numbers"]
    rows = (
        position == 0
        and tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,)
        and not tuple(numbers.operand_batching_dims)
        and tuple(eqn.params["slice_sizes"]) == (1, *table.shape[1:])
    )
    if not rows:
        return None
    clip = eqn.params["mode"] == lax.GatherScatterMode.CLIP
    offsets = tuple(numbers.offset_dims)

    def factors(others: Sequence[Array], delta: Array) -> tuple[Array, Array]:
        ids = others[0].reshape(-1)
        outside = (ids < 0) | (ids >= table.shape[0])
        # what is out of bounds reads no row: its cotangent goes nowhere
        ids = (
            jnp.clip(ids, 0, table.shape[0] - 1)
            if clip
            else jnp.where(outside, table.shape[0], ids)
        )
        batch = tuple(a for a in range(delta.ndim) if a not in offsets)
        return ids, delta.transpose(batch + offsets).reshape(ids.size, *table.shape[1:])

    return Rule("lookup", factors)
