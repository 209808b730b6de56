"""Certified removal for strongly convex losses: a measured residual against the noise of training.

    L(theta; D) = sum_i loss_i(theta) + (l2/2) |theta|^2 + b^T theta,      b ~ N(0, sigma^2 I)
    beta = |grad L(theta'; D~)|,   granted if  beta <= sigma epsilon / c,  c = sqrt(2 ln(1.5/delta))

theta' minimises L(.; D~) for the perturbation b - grad L(theta'; D~), and a shift of b by beta is
(epsilon, delta)-hidden in its noise. The argument needs that b decides the minimiser and the
minimiser b: a strongly convex L. Warnecke et al. (2023), "Machine Unlearning of Features and
Labels", arXiv:2108.11577, theorem 2, after Chaudhuri, Monteleoni and Sarwate (2011),
arXiv:0912.0071, and Guo et al. (2020), "Certified Data Removal", arXiv:1911.03030.
*Reconstruction*: the constant c is that of the published code.

Departures: 1. beta is the full gradient measured at theta', so that a training that stopped early
is in it. 2. Every assumption that can be looked at is looked at, and the certificate is withheld
with the reason otherwise. 3. Residuals of several requests add up against one budget.

What no program can check is assumed and said: sigma was chosen before training and not on these
data; b is secret and has not been used twice; the requests do not depend on published models
(non-adaptive); the certificate covers theta', not the choice of sigma or l2.
"""

import enum
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxunlearn.curvature import products
from jaxunlearn.data.streams import InMemory, Stream
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.losses import weighted_mean
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, stateless
from jaxunlearn.typing import Array, Batch, Data, Key, Params

DENSE_LIMIT = 10_000  # parameters whose Hessian's smallest eigenvalue is computed


class Verdict(enum.IntEnum):
    """Whether the certificate is granted, and if not, why."""

    GRANTED = 0
    NO_NOISE = 1
    NOT_CLAIMED_CONVEX = 2
    NOT_CONVEX = 3
    TOO_LARGE = 4
    SINGLE_PRECISION = 5
    NONFINITE = 6
    BUDGET_EXHAUSTED = 7


_REASONS = {
    Verdict.GRANTED: "granted",
    Verdict.NO_NOISE: "withheld: the training had no noise (sigma = 0)",
    Verdict.NOT_CLAIMED_CONVEX: "withheld: nobody claims that the loss is convex",
    Verdict.NOT_CONVEX: "withheld: l2 is 0, or the Hessian has an eigenvalue below l2, so the loss "
    "is not strongly convex as claimed",
    Verdict.TOO_LARGE: f"withheld: more than {DENSE_LIMIT} parameters, so strong convexity cannot "
    "be checked",
    Verdict.SINGLE_PRECISION: "withheld: the residual was not evaluated in float64; enable x64 and "
    "use a loss that keeps it",
    Verdict.NONFINITE: "withheld: the residual is NaN or Inf",
    Verdict.BUDGET_EXHAUSTED: "withheld: the residuals exceed sigma epsilon / c; retrain",
}


class Terms(NamedTuple):
    """What a certificate is asked for, and on what noise it rests."""

    epsilon: float  # > 0
    delta: float  # in (0, 1)
    sigma: Array | float  # standard deviation of the entries of b in training, >= 0
    perturbation: Params  # b, a tree like the params
    convex: bool  # the claim that every loss_i is convex in the params
    spent: Array | float = 0.0  # residuals of earlier requests since the last training


class Certificate(NamedTuple):
    """The answer; a pytree of values. `explain` puts it in words."""

    status: Array  # [] int32, a `Verdict`
    residual: Array  # [] float, beta of this request
    spent: Array  # [] float, residuals so far, this one included: the next request's `spent`
    allowed: Array  # [] float, sigma epsilon / c
    smallest: Array  # [] float, smallest eigenvalue of L's Hessian at theta'; NaN if not computed
    epsilon: Array  # []
    delta: Array  # []


def required_sigma(residual: float, epsilon: float, delta: float) -> float:
    """sigma = beta c / epsilon, c = sqrt(2 ln(1.5/delta)): the least noise that hides beta.

    Args:
      residual: beta >= 0.
      epsilon: > 0.
      delta: in (0, 1).

    Raises:
      ValueError: a constant out of range.

    Example:
      >>> round(required_sigma(1.0, 1.0, 0.01), 3)
      3.166
    """
    check_privacy("required_sigma", epsilon, delta)
    if not residual >= 0:
        raise ValueError(f"required_sigma: expected a residual >= 0, got {residual}.")
    return residual * math.sqrt(2 * math.log(1.5 / delta)) / epsilon


def check_privacy(name: str, epsilon: float, delta: float) -> None:
    """Raises `ValueError` unless epsilon > 0 and 0 < delta < 1."""
    if not (epsilon > 0 and 0 < delta < 1):
        raise ValueError(
            f"{name}: expected epsilon > 0 and delta in (0, 1), got {epsilon=}, {delta=}."
        )


def perturbation(key: Key, params: Params, sigma: float) -> Params:
    """b ~ N(0, sigma^2 I), a tree like the params; keep it, secret, with the model."""
    return optax.tree.scale(sigma, optax.tree.random_like(key, params, jax.random.normal))


def perturbed_objective(
    model: Model, rows: float, *, l2: float, b: Params, on: str = "data"
) -> Objective:
    """L(theta) / n = mean loss + ((l2/2) |theta|^2 + b^T theta) / n, to be trained with `fit`.

    Args:
      model: whose loss is summed.
      rows: n > 0, the total weight of the training data.
      l2: weight of the regulariser beside the SUM of losses, > 0 for strong convexity.
      b: `perturbation(...)`.
      on: the stream.
    """
    return stateless(partial(_perturbed, model, rows, l2, b, on))


def _perturbed(
    model: Model, rows: float, l2: float, b: Params, on: str, params: Params, batches: Batches,
    key: Key,
) -> Array:  # fmt: skip
    del key
    extra = l2 / 2 * optax.tree.vdot(params, params) + optax.tree.vdot(b, params)
    return weighted_mean(model.loss(params, batches[on]), batches[on]) + extra / rows


def regularised(gradient: Params, params: Params, l2: Array | float, b: Params | None) -> Params:
    """gradient + l2 theta + b."""
    total = optax.tree.add_scale(gradient, l2, products.widen(params))
    total = total if b is None else optax.tree.add(total, products.widen(b))
    return optax.tree.cast_like(total, gradient)


def certificate(
    model: Model, params: Params, parts: Sequence[Data], terms: Terms, *, l2: float
) -> Certificate:
    """beta = |grad L(theta'; D~)| <= sigma epsilon / c, with every assumption looked at.

    Args:
      model: its loss.
      params: theta', as released.
      parts: D~, the corrected data, as one or more Data.
      terms: see `Terms`; sigma, b and spent may be traced.
      l2: the strong convexity that the regulariser gives, beside the SUM of losses.

    Returns:
      `Certificate`; traceable if the data are in-memory.

    | situation                                           | status                                |
    |-----------------------------------------------------|---------------------------------------|
    | sigma = 0                                           | NO_NOISE                              |
    | convexity not claimed                               | NOT_CLAIMED_CONVEX                    |
    | l2 <= 0, or an eigenvalue of L's Hessian below l2   | NOT_CONVEX                            |
    | more than 1e4 parameters                            | TOO_LARGE                             |
    | float64 not enabled, or not kept by the loss        | SINGLE_PRECISION                      |
    | NaN or Inf                                          | NONFINITE                             |
    | spent + beta > sigma epsilon / c                    | BUDGET_EXHAUSTED: retrain             |

    A Hessian at one point refutes convexity and cannot prove it: hence the claim beside the check.

    Cost: one gradient over D~ and, up to 1e4 parameters p, its dense Hessian and p^3 operations.
    """
    check_privacy("certificate", terms.epsilon, terms.delta)
    wide = _double(params)
    data = [_double_data(part) for part in parts]
    gradient = optax.tree.zeros_like(wide)
    for part in data:
        gradient = optax.tree.add(gradient, products.gradient_sum(model.loss, wide, part))
    gradient = ravel_pytree(regularised(gradient, wide, l2, _double(terms.perturbation)))[0]
    beta = jnp.linalg.norm(gradient)
    dtype, size = beta.dtype, gradient.size
    if size <= DENSE_LIMIT:
        matrix = jnp.diag(jnp.full(size, l2, dtype))
        for part in data:
            matrix = matrix + products.dense_hessian(model.loss, wide, part)
        finite = jnp.isfinite(matrix).all()
        matrix = jnp.where(finite, matrix, jnp.eye(size, dtype=dtype))
        values = one_by_one(lambda m: jnp.linalg.eigvalsh(m))(matrix)
        smallest = jnp.where(finite, values[0], jnp.nan)
        slack = 1e-9 * jnp.maximum(values[-1], 1)
    else:
        smallest, slack = jnp.asarray(jnp.nan, dtype), jnp.zeros((), dtype)
    sigma = jnp.asarray(terms.sigma, dtype)
    allowed = sigma * terms.epsilon / math.sqrt(2 * math.log(1.5 / terms.delta))
    spent = jnp.asarray(terms.spent, dtype) + beta
    doubts = (  # the first that holds is the reason
        (sigma <= 0, Verdict.NO_NOISE),
        (not terms.convex, Verdict.NOT_CLAIMED_CONVEX),
        (_precision(model, wide, data) != jnp.float64, Verdict.SINGLE_PRECISION),
        (size > DENSE_LIMIT, Verdict.TOO_LARGE),
        (~jnp.isfinite(spent) | (~jnp.isfinite(smallest) & (size <= DENSE_LIMIT)),
         Verdict.NONFINITE),
        (l2 <= 0, Verdict.NOT_CONVEX),
        (smallest < l2 - slack, Verdict.NOT_CONVEX),
        (~(spent <= allowed), Verdict.BUDGET_EXHAUSTED),
    )  # fmt: skip
    status = jnp.int32(Verdict.GRANTED)
    for doubt, verdict in reversed(doubts):
        status = jnp.where(doubt, jnp.int32(verdict), status)
    constants = (jnp.asarray(terms.epsilon, dtype), jnp.asarray(terms.delta, dtype))
    return Certificate(status, beta, spent, allowed, smallest, *constants)


def explain(certificate: Certificate) -> str:
    """One sentence: granted or withheld, why, and what is assumed. For concrete values.

    Example:
      >>> nothing = jnp.zeros(())
      >>> print(explain(Certificate(jnp.int32(1), *[nothing] * 4, nothing + 1, nothing + 0.01)))
      certified(1, 0.01) withheld: the training had no noise (sigma = 0).
    """
    verdict = Verdict(int(certificate.status))
    text = f"certified({float(certificate.epsilon):g}, {float(certificate.delta):.3g}) "
    text += _REASONS[verdict]
    if verdict in (Verdict.GRANTED, Verdict.BUDGET_EXHAUSTED):
        text += f" (spent {float(certificate.spent):.3g} of {float(certificate.allowed):.3g})"
    if verdict is Verdict.GRANTED:
        text += ", assuming non-adaptive requests and a noise level chosen before training"
    return text + "."


def _double(tree: Any) -> Any:
    """Floating leaves in float64 where that is enabled, else float32."""
    widest = jax.dtypes.canonicalize_dtype(jnp.float64)

    def cast(leaf: Any) -> Array:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, widest) if floating else jnp.asarray(leaf)

    return jax.tree.map(cast, tree)


def _double_data(data: Data) -> Data:
    if isinstance(data, InMemory):
        return InMemory(_double(data.arrays), data.batch_size)
    batches = data

    def open() -> Any:
        return (_double(dict(batch)) for batch in batches)

    size = getattr(data, "batch_size", None) or max(len(_first(batch)) for batch in data)
    return Stream(open, data.num_examples, data.num_batches, size)


def _first(batch: Batch) -> Array:
    return next(iter(batch.values()))


def _precision(model: Model, params: Params, parts: Sequence[Data]) -> Any:
    part = parts[0]
    example = part.gather(jnp.arange(1)) if isinstance(part, InMemory) else next(iter(part))
    return jax.eval_shape(model.loss, params, dict(example)).dtype
