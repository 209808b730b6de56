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

from jaxunlearn.linalg.conjugate_gradients import conjugate_gradients
from jaxunlearn.methods.exact.rating_rows import Rectangle
from jaxunlearn.methods.exact.row_passes import (
    Beside,
    Entries,
    Problem,
    apply_inverses,
    curvature_products,
    gradients,
    inverses,
)
from jaxunlearn.typing import Array


class Side(NamedTuple):
    """One side of the factorisation."""

    factors: Array  # (n, K)
    number: Array  # (n,) ratings of each row
    rectangles: tuple[Rectangle, ...]


class Step(NamedTuple):
    """A Newton step of the second side, and how its solve ended."""

    direction: Array  # (n, K) zero if the first product showed negative curvature
    promised: Array  # [] >= 0, about half of what the objective should fall by
    iterations: Array  # [] int32
    status: Array  # [] int32, a `linalg.solution.Solved`


def newton_step(
    problem: Problem,
    entries: Entries,
    first: Side,
    second: Side,
    view: Callable[[Array], Beside],
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
      tolerance: [] relative residual, in (0, 1).
      damping: [] m >= 0; above the most negative eigenvalue of F_QQ^-1 S, the direction is downhill.
      iterations: at most.

    Cost: a sweep for the inverses and (n + m) K^2 numbers of memory; each iteration two passes over
      the ratings of about 6 K multiplications each, and (n + m) K^2.
    """
    mesh = problem.mesh
    beside_first, beside_second = view(second.factors), view(first.factors)
    over_first = inverses(problem, beside_first, entries, first.number, first.rectangles)
    over_second = inverses(problem, beside_second, entries, second.number, second.rectangles)
    g = gradients(problem, beside_second, entries, second.number, second.factors, second.rectangles)

    def precondition(x: Array) -> Array:
        return apply_inverses(mesh, over_second, second.rectangles, x)

    def product(dq: Array) -> Array:
        cross = curvature_products(
            problem, beside_first, _moved(view, second.factors, dq), entries,
            first.number, first.factors, jnp.zeros_like(first.factors), first.rectangles,
        )  # fmt: skip
        dp = -apply_inverses(mesh, over_first, first.rectangles, cross)
        return curvature_products(  # linear in the step: S dq + damping F_QQ dq in one pass
            problem, beside_second, _moved(view, first.factors, dp), entries,
            second.number, second.factors, (1 + damping) * dq, second.rectangles,
        )  # fmt: skip

    found = conjugate_gradients(
        product, -g, tolerance=tolerance, iterations=iterations, precondition=precondition
    )
    return Step(found.x, -jnp.vdot(g, found.x), found.iterations, found.status)


def _moved(view: Callable[[Array], Beside], factors: Array, step: Array) -> Beside:
    """How features, offset and Gram move when the factors that they are made of do."""
    return jax.jvp(view, (factors,), (step,))[1]
