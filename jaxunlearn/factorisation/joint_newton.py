"""A Newton step on a matrix factorisation of which one side is eliminated.

    f(Q) = min_P F(P, Q),      S dQ = -grad f,      S = F_QQ - F_QP F_PP^-1 F_PQ

At P = P(Q) the gradient of f is that of F with respect to Q, and S is the Hessian of f. Both
diagonal blocks of F fall apart into K x K matrices, so they are inverted once and applied; the
others are passes over the ratings. S dQ = -grad f is solved by conjugate gradients with F_QQ as the
preconditioner. One alternating sweep is the first of its iterations with step 1, dQ = -F_QQ^-1
grad f. Sweeps converge like 1 - l with l the smallest eigenvalue of F_QQ^-1 S, conjugate gradients
like 1 - 2 sqrt(l): that is the whole gain, and it is large, because l is small.

Rotations of both factors leave F as it is: S is singular along them, the gradient orthogonal to
them, and conjugate gradients never notice. Away from a minimum S may be indefinite; the solve then
ends at the direction where that showed. Eliminating one side is variable projection, Golub and
Pereyra (1973), doi:10.1137/0710036.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.factorisation.rating_rows import Rectangle
from jaxunlearn.factorisation.row_passes import (
    Beside,
    Entries,
    Problem,
    apply_inverses,
    curvature_products,
    gradients,
    inverses,
)
from jaxunlearn.linalg.conjugate_gradients import conjugate_gradients
from jaxunlearn.typing import Array

_LONGEST = 0.5  # |dQ| / |Q|: where curvature nearly vanishes, the quadratic model is not believed


class Side(NamedTuple):
    """One side of the factorisation."""

    factors: Array  # (n, K)
    number: Array  # (n,) ratings of each row
    rectangles: tuple[Rectangle, ...]


class Step(NamedTuple):
    """A Newton step of the second side, and how its solve ended."""

    direction: Array  # (n, K) at most half as long as Q; 0 if there was no way down
    promised: Array  # [] >= 0, by how much its quadratic model falls; more than that if damped
    iterations: Array  # [] int32
    status: Array  # [] int32, a `linalg.solution.Solved`


class Blocks(NamedTuple):
    """Inverses of the diagonal blocks of the Hessian, at some earlier or present factors."""

    first: tuple[Array, ...]  # F_PP^-1, for each rectangle (D, rows, K, K)
    second: tuple[Array, ...]  # F_QQ^-1


def blocks(
    problem: Problem, entries: Entries, first: Side, second: Side, view: Callable[[Array], Beside]
) -> Blocks:
    """The inverses that `newton_step` applies.

    Cost: a pass over the ratings for K x K sums, 3 K^3 for each row; (n + m) K^2 numbers of memory.
    """
    return Blocks(
        inverses(problem, view(second.factors), entries, first.number, first.rectangles),
        inverses(problem, view(first.factors), entries, second.number, second.rectangles),
    )


def newton_step(
    problem: Problem,
    entries: Entries,
    first: Side,
    second: Side,
    view: Callable[[Array], Beside],
    inverse: Blocks,
    tolerance: Array,
    damping: Array,
    *,
    iterations: int,
) -> Step:
    """dQ with (S + m F_QQ) dQ = -grad f to a relative residual, at P = P(Q).

    Args:
      problem, entries: the objective.
      first: P, which must be solved exactly for this Q.
      second: Q.
      view: factors -> what the rows of the other side are solved against.
      inverse: from `blocks`. Those of factors nearby will do: S is then that of an elimination with
        a slightly wrong F_PP, symmetric all the same, and the step nearly the Newton step.
      tolerance: [] relative residual, in (0, 1).
      damping: [] m >= 0.
      iterations: at most.

    Cost: each iteration two passes over the ratings of about 6 K multiplications each, and
      (n + m) K^2: some tenth of a sweep.
    """
    mesh = problem.mesh
    beside_first, beside_second = view(second.factors), view(first.factors)
    g = gradients(problem, beside_second, entries, second.number, second.factors, second.rectangles)

    def precondition(x: Array) -> Array:
        return apply_inverses(mesh, inverse.second, second.rectangles, x)

    def product(dq: Array) -> Array:
        cross = curvature_products(
            problem, beside_first, _moved(view, second.factors, dq), entries,
            first.number, first.factors, jnp.zeros_like(first.factors), first.rectangles,
        )  # fmt: skip
        dp = -apply_inverses(mesh, inverse.first, first.rectangles, cross)
        return curvature_products(  # linear in the step: S dq + damping F_QQ dq in one pass
            problem, beside_second, _moved(view, first.factors, dp), entries,
            second.number, second.factors, (1 + damping) * dq, second.rectangles,
        )  # fmt: skip

    found = conjugate_gradients(
        product, -g, tolerance=tolerance, iterations=iterations, precondition=precondition
    )
    longest = _LONGEST * jnp.maximum(jnp.linalg.norm(second.factors), 1e-30)
    length = jnp.linalg.norm(found.x)
    direction = found.x * jnp.minimum(1, longest / jnp.where(length > 0, length, 1))
    return Step(direction, -jnp.vdot(g, direction), found.iterations, found.status)


def _moved(view: Callable[[Array], Beside], factors: Array, step: Array) -> Beside:
    """How features, offset and Gram move when the factors that they are made of do."""
    return jax.jvp(view, (factors,), (step,))[1]
