"""The least harmful step that gains a stated amount, in closed form.

    min_d  g_r . d    subject to    g_f . d >= B,    |d| <= R

g_r and g_f are the gradients of two losses, R the radius within which they are believed, B the gain
in the unit of the second loss. With u = g / |g|, c = u_r . u_f, s = |u_r - c u_f| (cosine and sine
of the angle) and b = B / (R |g_f|) the solution is

    infeasible   b > 1                        no d of length R gains B
    direct       c <= -b                      d = -R u_r          steepest descent gains B anyway
    colinear     s = 0                        d = R b u_f         nothing is left to descend along
    rectified    otherwise                    d = R b u_f - R sqrt(1 - b^2) (u_r - c u_f) / s

At the optimum the first loss need not rise exactly if B <= R |g_f| s (c > 0) or B <= R |g_f|
(c <= 0): the *free gain*. Gradients that agree are hard: s = 0, and nothing is free.

Chen et al. (2026), "How Hard Can It Be? Hardness-Aware Multi-Objective Unlearning",
arXiv:2606.02119, and its code; the closed form was derived again.

Departures: 1. The free gain of an obtuse angle is R |g_f|; the published criterion has the sine
there too and calls opposed gradients hard. 2. Everything is computed with unit vectors, so that a
gradient is small only if it is 0 and a factor of a loss changes nothing; the published tests are
against 1e-12.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array, Params


class Branch(enum.IntEnum):
    """Which case of the closed form a block is in."""

    FLAT = 0  # g_f = 0 and B = 0: nothing asked, d = -R u_r
    INFEASIBLE = 1
    DIRECT = 2
    COLINEAR = 3
    RECTIFIED = 4


class StepInfo(NamedTuple):
    """Of one block."""

    branch: Array  # [] int32, a `Branch`
    feasible: Array  # [] bool
    cosine: Array  # [] float32 or wider, of g_r and g_f; 0 if one of them is 0
    free_gain: Array  # [] float32 or wider, the largest B at no first-order cost, unit of the loss


def hamu_step(
    g_r: Params, g_f: Params, radius: Array | float, bound: Array | float, *, fallback: bool = False
) -> tuple[Params, StepInfo]:
    """argmin_d g_r . d  subject to  g_f . d >= B, |d| <= R: one block, in closed form.

    Args:
      g_r, g_f: trees of float arrays of the same shapes; the whole tree is one vector.
      radius: R >= 0, in the unit of the parameters.
      bound: B >= 0, in the unit of the loss.
      fallback: what an infeasible block gets: d = 0, or the shortest d that gains B, which is
        longer than R.

    Returns:
      (d, StepInfo); d in the dtypes of g_r, computed in float32 at least.

    | situation                            | result                                     |
    |--------------------------------------|--------------------------------------------|
    | rectified                            | |d| = R and g_f . d = B                    |
    | B = 0, c > 0                         | d orthogonal to g_f                        |
    | (g_r, R) -> (s g_r, R)               | the same d                                 |
    | (g_f, B) -> (s g_f, s B)             | the same d                                 |
    | g_r = 0                              | d = (B / |g_f|^2) g_f                      |
    | g_f = 0, B > 0                       | infeasible, d = 0 whatever `fallback`      |
    | a gradient that is not finite        | d is NaN                                   |

    Cost: four reductions over the parameters, memory of three trees.

    Source: Chen et al. (2026), arXiv:2606.02119; departures in the module.

    Example:
      >>> d, info = hamu_step(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]), 5.0, 1.0)
      >>> print(d.round(), Branch(int(info.branch)).name)
      [-3.  4.] RECTIFIED
    """
    u_r, length_r = unit(g_r)
    u_f, length_f = unit(g_f)
    cosine = dot(u_r, u_f)
    across = _minus(u_r, cosine, u_f)
    across = _minus(across, dot(across, u_f), u_f)  # what rounding left along g_f
    across, sine = unit(across)
    parallel = sine < 32 * jnp.finfo(sine.dtype).eps
    sine = jnp.where(parallel, 0, sine)

    radius, bound = (jnp.asarray(a, sine.dtype) for a in (radius, bound))
    reach = radius * length_f
    feasible = (bound <= reach) & ((length_f > 0) | (bound <= 0))
    b = jnp.where(reach > 0, bound / jnp.where(reach > 0, reach, 1), 0)
    shortest = jnp.where(length_f > 0, bound / jnp.where(length_f > 0, length_f, 1), 0)

    cases = [  # in this order, with the lengths of d along u_r, u_f and across
        (length_f + bound == 0, Branch.FLAT, (-radius, 0, 0)),
        (~feasible, Branch.INFEASIBLE, (0, shortest if fallback else 0, 0)),
        (cosine <= -b, Branch.DIRECT, (-radius, 0, 0)),
        (parallel, Branch.COLINEAR, (0, radius * b, 0)),
        (True, Branch.RECTIFIED, (0, radius * b, -radius * jnp.sqrt((1 - b) * (1 + b)))),
    ]
    conditions = [jnp.asarray(condition) for condition, _, _ in cases]
    branch = jnp.select(conditions, [jnp.int32(case) for _, case, _ in cases])
    finite = jnp.isfinite(length_r + length_f)

    def length(place: int) -> Array:
        chosen = jnp.select(conditions, [jnp.asarray(c[place], sine.dtype) for _, _, c in cases])
        return jnp.where(finite, chosen, jnp.nan)

    along_r, along_f, along_across = length(0), length(1), length(2)
    update = jax.tree.map(
        lambda g, r, f, a: (along_r * r + along_f * f + along_across * a).astype(g.dtype),
        g_r,
        u_r,
        u_f,
        across,
    )
    free = reach * jnp.where(cosine > 0, sine, 1)
    return update, StepInfo(branch, feasible, cosine, free)


def unit(tree: Any) -> tuple[Any, Array]:
    """(tree / its length, its length []), float32 at least, without overflow of squares; 0 of 0."""
    leaves = jax.tree.leaves(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    largest = jnp.stack([jnp.abs(x).max(initial=0).astype(dtype) for x in leaves]).max()
    scale = jnp.where(largest > 0, largest, 1)
    scaled = jax.tree.map(lambda x: x.astype(dtype) / scale, tree)
    length = jnp.sqrt(dot(scaled, scaled))
    direction = jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), scaled)
    return direction, jnp.where(largest > 0, scale * length, largest)


def dot(one: Any, other: Any) -> Array:
    """The inner product of two trees of one dtype; elementwise, so never in half precision."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)
    return jnp.stack(jax.tree.leaves(products)).sum()


def _minus(one: Any, factor: Array, other: Any) -> Any:
    """one - factor * other."""
    return jax.tree.map(lambda a, b: a - factor * b, one, other)
