"""Influence unlearning: one preconditioned step against the forget set's pull on the parameters.

    theta' = theta + alpha C^{-1} v,    v = (g_F - (f/r) g_R) / (f + r)

g_S is the sum of the gradients over S, f = |F| and r = |R|. With a regulariser l2/2 |theta|^2 per
example (what weight decay in a MEAN loss is), -v is the gradient of the retraining objective
mean_R loss + l2/2 |theta|^2 at a theta that is stationary for F and R together; so with C its
Hessian, mean over R plus l2, alpha = 1 is a Newton step, and exact for quadratic losses.

The step goes back to Koh and Liang (2017), "Understanding Black-box Predictions via Influence
Functions", arXiv:1703.04730; the baseline in this form, with a WoodFisher recursion over single
retained examples for C^{-1}, is that of Jia et al. (2023), "Model Sparsity Can Simplify Machine
Unlearning", arXiv:2304.04934. *Reconstruction* from a description of its code.

| curvature  | C, always over the retained data                                                 |
|------------|----------------------------------------------------------------------------------|
| diagonal   | mean squared per-example gradient + l2 + damping, entry by entry                   |
| ggn        | mean generalised Gauss-Newton + (l2 + damping) I, by conjugate gradients           |
| hessian    | mean Hessian + (l2 + damping) I, by conjugate gradients                            |
| woodfisher | none: k <- k - (k.g)/(N + o.g) o,  o <- o - (o.g)/(N + o.g) o  over N gradients g  |

The last recursion starts with k = v and o = the first gradient. It is a heuristic: Sherman and
Morrison would compute o = C^{-1} g anew for every g.

Departures: 1. "diagonal", "ggn" and "hessian" in place of the recursion, which is offered. 2. Its N
examples are spread evenly over the retained data in stored order, so that sorted data do not give
examples of one class; a row of weight w counts as sqrt(w) g.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.curvature.fisher import second_moment
from jaxunlearn.curvature.products import LossFn, OutputLoss, total_weight, widen
from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.linalg import Solution, Solved
from jaxunlearn.linalg.solution import dot
from jaxunlearn.method import EMPIRICAL, Method, Request, Unlearned, method
from jaxunlearn.methods.edits import newton
from jaxunlearn.methods.edits.newton import Newton
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Batch, Data, Key, Params

_CURVATURES = ("diagonal", "ggn", "hessian", "woodfisher")


class InfluenceInfo(NamedTuple):
    """How the step was found."""

    status: Array  # [] int32, a `linalg.Solved`; anything but 0: the params are unchanged
    residual: Array  # [] float, relative residual of the solve; 0 without a solve
    iterations: Array  # [] int32, products with C, or examples of the recursion
    damping: Array  # [] float, the damping of the solve, raised or not
    moved: Array  # [] float, |theta' - theta|


def woodfisher(
    loss_fn: LossFn, params: Params, data: Data, v: Params, *, samples: int = 1000
) -> tuple[Params, Array]:
    """k <- k - (k.g)/(N + o.g) o,   o <- o - (o.g)/(N + o.g) o;   k_0 = v, o_0 = the first g.

    Args:
      loss_fn: (params, batch) -> (n,).
      params: tree of float arrays.
      data: the examples; min(N, their number) of them are used, evenly spaced.
      v: tree like the params.
      samples: N >= 1, also the constant of the recursion.

    Returns:
      (k, number of gradients that were used); rows of weight 0 are skipped.

    Cost: one backward pass per used example, one after another; memory of three gradients.
    """
    wide, v = widen(params), widen(v)
    carry = (v, optax.tree.zeros_like(v), jnp.int32(0))
    total, first = data.num_examples, 0
    used = min(samples, total)
    for part in [data] if isinstance(data, InMemory) else (InMemory(dict(b), 1) for b in data):
        places = first + np.arange(part.num_examples)
        chosen = np.flatnonzero((places + 1) * used // total > places * used // total)
        first += part.num_examples
        if chosen.size:
            rows = part.gather(jnp.asarray(chosen))
            fold = _recursion if is_traced((wide, rows, carry)) else _recursion_jit
            carry = fold(loss_fn, samples, wide, rows, carry)
    return carry[0], carry[2]


def _recursion(loss_fn: LossFn, samples: int, params: Params, rows: Batch, carry: tuple) -> tuple:
    def add(carry: tuple, row: dict) -> tuple[tuple, None]:
        k, o, count = carry
        one = {name: column[None] for name, column in row.items()}
        g = jax.grad(lambda p: jnp.sqrt(row["weight"]) * loss_fn(p, one)[0])(params)
        g = optax.tree.cast_like(g, k)
        t = dot(o, g)
        smaller = optax.tree.add_scale(k, -dot(k, g) / (samples + t), o)
        shorter = optax.tree.scale(1 - t / (samples + t), o)
        started, counts = count > 0, row["weight"] > 0
        later = optax.tree.where(started, (smaller, shorter), (k, g))
        k, o = optax.tree.where(counts, later, (k, o))
        return (k, o, count + counts), None

    return jax.lax.scan(add, carry, dict(rows))[0]


_recursion_jit = jax.jit(_recursion, static_argnums=(0, 1))


def influence(
    *,
    curvature: str = "woodfisher",
    gradient: str = "centred",
    alpha: float = 1.0,
    l2: float = 0.0,
    damping: float = 1e-3,
    samples: int = 1000,
    tolerance: float = 1e-4,
    iterations: int = 100,
    fallback: str = "damp",
    attempts: int = 3,
    output_loss: OutputLoss | None = None,
) -> Method:
    """theta' = theta + alpha C^{-1} v,  v = (g_F - (f/r) g_R)/(f + r).

    Args:
      curvature: "diagonal", "ggn", "hessian" or "woodfisher"; see the module.
      gradient: "centred" (v above) or "forget" (v = g_F / r, the same at a stationary point without
        regulariser, and without a gradient of the retained data).
      alpha: length of the step; 1 is Newton's. Published with "woodfisher": 1 to 20 and more.
      l2: weight of l2/2 |theta|^2 beside the MEAN loss in training, >= 0.
      damping: added to C, per example as the mean loss is, >= 0.
      samples: N of "woodfisher", >= 1.
      tolerance, iterations: of conjugate gradients.
      fallback: if they do not converge, "damp" (damping times 10, up to `attempts` times) or
        "keep"; after that the params are kept.
      attempts: see fallback, >= 0.
      output_loss: of "ggn", (outputs, y) -> (n,). None: cross-entropy for class labels, else
        squared error; if that is not the model's loss the status is FOREIGN and nothing moves.

    Returns:
      A Method that needs forget, retain and labels; deterministic; its info is an `InfluenceInfo`.

    Raises:
      ValueError: a constant out of range.

    | situation                                | result                                          |
    |------------------------------------------|-------------------------------------------------|
    | alpha = 0                                | params bit-identical                            |
    | quadratic loss, "hessian", alpha 1, no   | equals retraining with the same l2, to rounding |
    | damping, stationary theta                | (linear model, squared error)                   |
    | a solve that fails whatever the damping  | params bit-identical, status and residual say   |
    | a parameter without gradient anywhere    | unchanged                                       |

    Cost: a gradient over F and R; then "diagonal" one backward pass per example of R, "ggn" and
    "hessian" about 2 gradients of R an iteration, "woodfisher" N examples one by one.

    Source: Koh and Liang (2017), arXiv:1703.04730; departures in the module.

    Example:
      >>> sorted(influence(curvature="ggn", damping=1e-2).needs)
      ['forget', 'labels', 'retain']
    """
    newton.check_choice("influence", "curvature", curvature, _CURVATURES)
    newton.check_choice("influence", "gradient", gradient, ("centred", "forget"))
    solved_with = curvature if curvature in ("ggn", "hessian") else "hessian"
    options = Newton(
        curvature=solved_with,
        tolerance=tolerance,
        iterations=iterations,
        fallback=fallback,
        attempts=attempts,
        output_loss=output_loss,
    )
    newton.check_newton("influence", options, ("damp", "keep"))
    if not (np.isfinite(alpha) and l2 >= 0 and damping >= 0 and samples >= 1):
        raise ValueError(
            "influence: expected a finite alpha, l2 >= 0, damping >= 0 and samples >= 1, got "
            f"{alpha=}, {l2=}, {damping=}, {samples=}."
        )

    def unlearn(model: Model, params: Params, request: Request, key: Key) -> Unlearned:
        del key
        forget, retain = request.forget, request.retain
        assert retain is not None
        r = jnp.maximum(total_weight(retain), 1)
        f = total_weight(forget)
        v = newton.gradient_of(model, params, [forget])
        if gradient == "forget":
            v = _divided(v, r)
        else:
            pull = newton.gradient_of(model, params, [retain])
            v = _divided(optax.tree.add_scale(v, -f / r, pull), f + r)
        solution, used = _solve(model, params, retain, v, r)
        step = optax.tree.scale(alpha, solution.x)
        edited = newton.apply(params, step, solution.status == Solved.CONVERGED)
        info = InfluenceInfo(
            solution.status,
            solution.residual,
            solution.iterations,
            used,
            newton.moved(params, edited),
        )
        return Unlearned(model, edited, info)

    def _solve(
        model: Model, params: Params, retain: Data, v: Params, r: Array
    ) -> tuple[Solution, Array]:
        if curvature == "diagonal":
            square = second_moment(model.loss, params, retain).square
            x = jax.tree.map(lambda a, s: _quotient(a, s + l2 + damping), v, square)
            return _direct(x, 0), jnp.float32(damping)
        if curvature == "woodfisher":
            return _direct(*woodfisher(model.loss, params, retain, v, samples=samples)), jnp.zeros(
                ()
            )
        # the system of the sums: r times that of the means
        solution, used = newton.newton_direction(
            model,
            params,
            [retain],
            optax.tree.cast_like(optax.tree.scale(r, v), v),
            l2=r * l2,
            damping=r * damping,
            options=options,
        )
        return solution, used / r

    return method(
        unlearn, needs={"forget", "retain", "labels"}, name="influence", guarantee=EMPIRICAL
    )


def _divided(tree: Params, by: Array) -> Params:
    return jax.tree.map(lambda a: (a / by).astype(a.dtype), tree)


def _quotient(a: Array, b: Array) -> Array:
    b = b.astype(a.dtype)
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _direct(x: Params, count: Array | int) -> Solution:
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(x)]).all()
    status = jnp.where(finite, jnp.int32(Solved.CONVERGED), jnp.int32(Solved.NONFINITE))
    return Solution(x, status, jnp.zeros(()), jnp.asarray(count, jnp.int32))
