"""Steps that leave two scalars alone: the part of the velocity along two gradients is taken out.

    v <- beta v + g,    p = v - a_f q_f - a_r q_r,    v <- p,    u = p
    a = argmin |v - a_f q_f - a_r q_r|^2 + e |a|^2    for q_f, q_r of length 1

q_f and q_r are the gradients, at the same parameters, of what must stay (a forget loss and a loss
on the rest): to first order a step along -p changes neither. The projected velocity is the one that
is *stored*, so that what has been taken out does not come back with the momentum: this is not
`optax.chain(optax.trace(beta), ...)`, whose memory keeps the forbidden part.

The 2 x 2 system is solved where it is diagonal. For unit vectors s = q_f + q_r and d = q_f - q_r
are orthogonal, so

    p = v - s (v.s) / (s.s + 2 e) - d (v.d) / (d.d + 2 e)

is the same p with no determinant: it holds its digits when the two gradients are nearly parallel
(d small), where q_f.q_f q_r.q_r - (q_f.q_r)^2 is lost to rounding. The sign of q_r, which spans the
same line, is chosen so that s is the longer one; d goes first, since its large factor brings
rounding along s. The projection is made twice, which takes out what rounding and e have left.

It must be the LAST linear map but for a scalar: behind it only a learning rate. A step of Adam
divides by another number in every coordinate, and is no longer orthogonal to anything.

Cheng et al. (2026), "Machine Unlearning under Retain-Forget Entanglement", arXiv:2603.26569: the
second stage of `jaxunlearn.methods.entanglement`.

Departures: 1. The ridge e is relative to gradients of length 1 (published: 1e-8 added per tensor to
the squared lengths themselves, accumulated in float64). 2. The diagonal form, and the second pass.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.penalties import check_like
from jaxunlearn.typing import Array, Params, check_between


class SpanState(NamedTuple):
    """What the next step needs."""

    velocity: Params  # like params, at least float32; the projected one


def project_out_gradients(
    decay: float = 0.9, *, ridge: float = 1e-9
) -> optax.GradientTransformationExtraArgs:
    """p = v - P v, v <- beta v + g; P the projection on span{q_f, q_r}; v <- p.

    Args:
      decay: beta in [0, 1), of the velocity; 0 projects the gradient itself.
      ridge: e > 0, relative to gradients of length 1: two directions that are nearer than about
        sqrt(2 e) count as one.

    Returns:
      An optax transformation whose `update` takes `basis=(q_f, q_r)`, two trees like the updates,
      of any length. Computed in float32 or better; updates keep their dtype.

    Raises:
      ValueError: decay or ridge out of range; (at `update`) no basis, one that is not a pair, or
        trees or shapes that differ from the updates.

    | edge case              | result                                                             |
    |------------------------|--------------------------------------------------------------------|
    | q_f = 0, or q_r = 0    | projection along the other one                                     |
    | q_f = 0 and q_r = 0    | plain momentum                                                     |
    | q_f parallel to q_r    | projection along the one line                                      |
    | v in span{q_f, q_r}    | 0, up to rounding and e                                            |
    | a bfloat16 leaf        | its update is rounded to 3 digits, and orthogonal to as many       |

    Cost: ten passes over the parameters; memory of the velocity, s and d. With sharded parameters
    the products are sums of scalars over devices.

    Source: Cheng et al. (2026), arXiv:2603.26569; departures in the module.

    Example:
      >>> tx = project_out_gradients(decay=0.0)
      >>> basis = (jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 0.0]))
      >>> p, _ = tx.update(jnp.ones(3), tx.init(jnp.ones(3)), basis=basis)
      >>> print(abs(p).round(6))
      [0. 0. 1.]
    """
    check_between("project_out_gradients", "decay", decay, at_least=0, below=1)
    check_between("project_out_gradients", "ridge", ridge, above=0)

    def init(params: Params) -> SpanState:
        return SpanState(jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params))

    def update(
        updates: Params,
        state: Any,
        params: Params = None,
        *,
        basis: Any = None,
        **others: Any,
    ) -> tuple[Params, SpanState]:
        del params, others
        if not isinstance(basis, tuple | list) or len(basis) != 2:
            raise ValueError(
                "project_out_gradients: update needs basis=(q_f, q_r), two gradients like the "
                f"updates, got {type(basis).__name__}. An Objective hands it over by `extras`."
            )
        pair = [_like(updates, q) for q in basis]
        for name, q in zip(("basis[0]", "basis[1]"), pair, strict=True):
            check_like("project_out_gradients", name, q, updates)
        velocity = jax.tree.map(lambda v, g: decay * v + g.astype(v.dtype), state.velocity, updates)
        kept = project_off(velocity, *pair, ridge=ridge)
        return jax.tree.map(lambda p, g: p.astype(g.dtype), kept, updates), SpanState(kept)

    return optax.GradientTransformationExtraArgs(init, update)


def project_off(v: Params, q_f: Params, q_r: Params, *, ridge: float = 1e-9) -> Params:
    """p = v - a_f q_f - a_r q_r, a the ridge solution for q_f, q_r scaled to length 1; twice.

    Args:
      v, q_f, q_r: trees of one structure, of any float dtypes.
      ridge: e > 0.

    Returns:
      A tree like v, in its dtypes.

    Edge cases: those of `project_out_gradients`.
    """
    f, length_f = _direction(q_f)
    r, length_r = _direction(q_r)
    # A gradient of length 0 spans nothing; with the other one in its place s and d are orthogonal.
    f, r = _select(length_f > 0, f, r), _select(length_r > 0, r, f)
    r = _select(jnp.asarray(optax.tree.vdot(f, r)) < 0, optax.tree.scale(-1, r), r)
    axes = [(a, optax.tree.vdot(a, a)) for a in (optax.tree.sub(f, r), optax.tree.add(f, r))]
    for a, square in 2 * axes:
        share = optax.tree.vdot(a, v) / (square + 2 * ridge)
        v = jax.tree.map(lambda x, y, share=share: (x - share * y).astype(x.dtype), v, a)
    return v


def _wide(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _direction(q: Params) -> tuple[Params, Array]:
    """(q / |q|, |q|) in float32 or better; the largest entry is divided out first, so that no
    square overflows or vanishes. 0 stays 0."""
    q = jax.tree.map(lambda x: x.astype(_wide(x)), q)
    largest = jnp.max(jnp.array([0.0, *(jnp.abs(x).max(initial=0) for x in jax.tree.leaves(q))]))
    q = jax.tree.map(lambda x: x / jnp.where(largest > 0, largest, 1).astype(x.dtype), q)
    norm = optax.tree.norm(q)
    unit = jax.tree.map(lambda x: x / jnp.where(norm > 0, norm, 1).astype(x.dtype), q)
    return unit, largest * norm


def _select(condition: Array, one: Params, other: Params) -> Params:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _like(updates: Params, q: Params) -> Params:
    """`q` without the leaves that `optax.masked` hides from `updates`."""
    hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    if not any(map(hidden, jax.tree.leaves(updates, is_leaf=hidden))):
        return q
    return jax.tree.map(lambda u, x: u if hidden(u) else x, updates, q, is_leaf=hidden)
