"""How a linear solve ended, as a value: x, a status, and the residual that x really has.

    A x = b,        residual = |b - A x| / |b|

A solver never raises for numbers and never prints: under `jit` and `vmap` it cannot. Whoever asked
reads `status` and decides; `damped_until_solved` is the usual decision.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.typing import Array, Params

S = TypeVar("S")


class Solved(enum.IntEnum):
    """How a solve ended; 0 is the only good end, a larger one is not a worse one."""

    CONVERGED = 0  # the true residual is at most the tolerance
    EXHAUSTED = 1  # the iterations ran out
    STALLED = 2  # as far as rounding allows, and the true residual is above the tolerance
    INDEFINITE = 3  # a direction of curvature <= 0, or no Cholesky factor
    DIVERGED = 4  # the residual grew
    NONFINITE = 5  # NaN or Inf in A or b
    FOREIGN = 6  # A was built from another loss than b (said by whoever built them)


class Solution(NamedTuple):
    """What a solver returns; a pytree."""

    x: Any  # like b; finite whatever the status, and to be used only if the status allows it
    status: Array  # [] int32, a `Solved`
    residual: Array  # [] float, |b - A x| / |b|, computed from x; 0 for b = 0
    iterations: Array  # [] int32, products with A before the check (0 for a direct solve)


def while_loop(
    going: Callable[[S], Array], step: Callable[[S], S], state: S, *, on_host: bool
) -> S:
    """`jax.lax.while_loop`, or the same loop on the host where `step` reads streaming data."""
    if not on_host:
        return jax.lax.while_loop(going, step, state)
    while bool(going(state)):
        state = step(state)
    return state


def unit(b: Params) -> tuple[Params, Array]:
    """(b / s, s) with s = max |b| (1 for b = 0), so that no squared norm under- or overflows."""
    size = optax.tree.norm(b, ord="inf")
    scale = jnp.where(size > 0, size, 1)
    return optax.tree.scale(1 / scale, b), scale


def dot(a: Params, b: Params) -> Array:
    """[] the inner product of all entries together."""
    return jnp.asarray(optax.tree.vdot(a, b))


def norm(tree: Params) -> Array:
    """[] the Euclidean norm of all entries together."""
    return jnp.sqrt(dot(tree, tree))


def damped_until_solved(
    solve: Callable[[Array], Solution],
    damping: Array | float,
    first: Array | float,
    *,
    attempts: int,
    on_host: bool = False,
) -> tuple[Solution, Array]:
    """(A + d I) x = b with the smallest d of  damping, m, 10 m, 100 m, ...  that is solved.

    Args:
      solve: d -> Solution of the system with damping d.
      damping: [] >= 0, tried first.
      first: [] > 0, where raising begins: m = 10 max(damping, first).
      attempts: how often it is raised, >= 0.
      on_host: whether `solve` must run on the host.

    Returns:
      (solution, d): that of the last try, solved or not.

    A singular or indefinite A is solved by some d, of course for a shorter step. NONFINITE and
    FOREIGN are not retried: no damping repairs them.

    Cost: at most attempts + 1 solves.
    """
    start = jnp.asarray(damping, jnp.result_type(first))
    raised = 10 * jnp.maximum(start, first)

    def going(state: tuple) -> Array:
        solution, _, tried = state
        hopeless = (solution.status == Solved.NONFINITE) | (solution.status == Solved.FOREIGN)
        return (solution.status != Solved.CONVERGED) & ~hopeless & (tried < attempts)

    def step(state: tuple) -> tuple:
        _, _, tried = state
        d = raised * 10.0 ** tried.astype(raised.dtype)
        return solve(d), d, tried + 1

    solution, d, _ = while_loop(going, step, (solve(start), start, jnp.int32(0)), on_host=on_host)
    return solution, d
