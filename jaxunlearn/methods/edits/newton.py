"""The damped Newton system behind influence-type edits, and what happens when it is not solved.

    (C + (l2 + d) I) x = g,     C = sum over the rows of some data of the loss's curvature

| curvature | C                                                                                  |
|-----------|------------------------------------------------------------------------------------|
| hessian   | the Hessian: exact, and indefinite almost surely for a network                     |
| ggn       | generalised Gauss-Newton: positive semi-definite where the loss is convex in the   |
|           | outputs, and equal to the Hessian for models linear in their parameters            |

| solver    | how                                                                                |
|-----------|------------------------------------------------------------------------------------|
| cholesky  | the matrix itself, up to 1e4 parameters: n p^2 + p^3/3 operations                  |
| cg        | conjugate gradients: one product with C an iteration                               |
| lissa     | the Neumann series, with a scale that must exceed half the largest eigenvalue      |
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxunlearn.curvature import products
from jaxunlearn.data.streams import InMemory
from jaxunlearn.linalg import Solution, Solved, conjugate_gradients, lissa, psd_solve
from jaxunlearn.linalg.solution import damped_until_solved, norm
from jaxunlearn.losses import cross_entropy, num_classes, squared_error
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Data, Params

DENSE_LIMIT = 10_000  # parameters of a matrix that is formed
_SAME_LOSS = 1e-3  # relative gap up to which two losses are the same one


class Newton(NamedTuple):
    """The static choices of a solve; see the module."""

    curvature: str = "hessian"  # or "ggn"
    solver: str = "cg"  # or "cholesky", "lissa"
    tolerance: float = 1e-4  # relative residual that counts as solved
    iterations: int = 100  # at most, of cg and lissa
    scale: float = 2e5  # of lissa
    fallback: str = "damp"  # what an unsolved system leads to
    attempts: int = 3  # raises of the damping, by 10 each
    output_loss: products.OutputLoss | None = None  # of ggn; None: found from the labels


def check_choice(name: str, argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raises `ValueError` naming what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: {argument} must be one of {tuple(allowed)}, got {value!r}.")


def check_newton(name: str, options: Newton, fallbacks: Sequence[str]) -> None:
    """Raises `ValueError` for a choice out of range, in the name of a builder."""
    check_choice(name, "curvature", options.curvature, ("hessian", "ggn"))
    check_choice(name, "solver", options.solver, ("cg", "cholesky", "lissa"))
    check_choice(name, "fallback", options.fallback, fallbacks)
    if not (options.tolerance > 0 and options.scale > 0):
        raise ValueError(
            f"{name}: expected tolerance > 0 and scale > 0, got tolerance={options.tolerance}, "
            f"scale={options.scale}."
        )
    if options.iterations < 1 or options.attempts < 0:
        raise ValueError(
            f"{name}: expected iterations >= 1 and attempts >= 0, got "
            f"iterations={options.iterations}, attempts={options.attempts}."
        )


def streams(parts: Sequence[Data]) -> bool:
    """Whether some of the data is read from the host, so that loops must run there."""
    return any(not isinstance(part, InMemory) for part in parts)


def gradient_of(model: Model, params: Params, parts: Sequence[Data]) -> Params:
    """sum over all rows of all parts of grad loss; zeros for no part."""
    total = optax.tree.zeros_like(products.widen(params))
    for part in parts:
        total = optax.tree.add(total, products.gradient_sum(model.loss, params, part))
    return total


def newton_direction(
    model: Model,
    params: Params,
    parts: Sequence[Data],
    g: Params,
    *,
    l2: Array | float,
    damping: Array | float,
    options: Newton,
) -> tuple[Solution, Array]:
    """x = (C + (l2 + d) I)^{-1} g with C summed over `parts`, and the d it was solved with.

    d is `damping`, or with the fallback "damp" the first of 10 m, 100 m ..., m = max(damping, 1e-3
    |C g|/|g|), for which the solver converges. `Solution.status` tells whether it did.

    Raises:
      ValueError: "cholesky" with more than 1e4 parameters, or no data at all.
    """
    if not parts:
        raise ValueError(
            "nothing remains: every row is removed and none is retained. "
            "Start from fresh parameters instead."
        )
    host, wide = streams(parts), products.widen(params)
    ggn = options.curvature == "ggn"
    output_loss = options.output_loss or (_likely_loss(model, wide, parts[0]) if ggn else None)
    if output_loss is None or not ggn:
        each = [products.hessian_product(model.loss, wide, part) for part in parts]
        matrix_of = partial(products.dense_hessian, model.loss)
        foreign = jnp.array(False)
    else:
        each = [products.ggn_product(model.outputs, output_loss, wide, part) for part in parts]
        matrix_of = partial(products.dense_ggn, model.outputs, output_loss)
        gap = products.loss_gap(model.loss, model.outputs, output_loss, wide, parts[0])
        foreign = gap > _SAME_LOSS

    def matvec(v: Params) -> Params:
        total = optax.tree.scale(l2, v)
        for product in each:
            total = optax.tree.add(total, product(v))
        return optax.tree.cast_like(total, v)

    def shifted(d: Array | float, v: Params) -> Params:
        return optax.tree.cast_like(optax.tree.add_scale(matvec(v), d, v), v)

    limits = {"tolerance": options.tolerance, "iterations": options.iterations, "on_host": host}
    if options.solver == "cholesky":
        flat, unravel = ravel_pytree(g)
        _check_size(flat.size)
        matrix = sum((matrix_of(wide, part) for part in parts[1:]), matrix_of(wide, parts[0]))

        def solve(d: Array) -> Solution:
            shift = (l2 + d) * jnp.eye(flat.size, dtype=flat.dtype)
            solution = psd_solve(matrix + shift, flat, tolerance=options.tolerance)
            return solution._replace(x=unravel(solution.x))
    elif options.solver == "cg":

        def solve(d: Array) -> Solution:
            return conjugate_gradients(lambda v: shifted(d, v), g, **limits)
    else:

        def solve(d: Array) -> Solution:
            return lissa(matvec, g, scale=options.scale, damping=d, **limits)

    def honest(d: Array) -> Solution:
        solution = solve(d)
        status = jnp.where(foreign, jnp.int32(Solved.FOREIGN), solution.status)
        return solution._replace(status=status)

    start = jnp.asarray(damping, norm(g).dtype)
    if options.fallback != "damp" or not options.attempts:
        return honest(start), start
    size = norm(g)
    first = 1e-3 * norm(matvec(g)) / jnp.where(size > 0, size, 1)
    first = jnp.where(first > 0, first, 1e-3).astype(start.dtype)
    return damped_until_solved(honest, start, first, attempts=options.attempts, on_host=host)


def apply(params: Params, step: Params, allowed: Array) -> Params:
    """params + step where the step is allowed and finite, else the params; dtypes kept."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(step)]
    good = allowed & jnp.stack([jnp.array(True), *finite]).all()

    def edit(p: Array, s: Array) -> Array:
        return jnp.where(good, (p.astype(s.dtype) + s).astype(p.dtype), p)

    return jax.tree.map(edit, params, step)


def moved(before: Params, after: Params) -> Array:
    """[] |after - before|, in float32 at least."""
    return norm(optax.tree.sub(products.widen(after), products.widen(before)))


def _likely_loss(model: Model, params: Params, data: Data) -> products.OutputLoss:
    example = data.gather(jnp.arange(1)) if isinstance(data, InMemory) else next(iter(data))
    classes = num_classes(model.outputs, params, example)
    return squared_error if classes is None else cross_entropy


def _check_size(size: int) -> None:
    if size > DENSE_LIMIT:
        raise ValueError(
            f"solver='cholesky' would form a matrix of {size} x {size}; up to {DENSE_LIMIT} "
            "parameters are accepted. Use solver='cg'."
        )
