"""How steep a function is at its inputs, estimated in random directions, as an objective.

    s_i = 1/N sum_k |f(x_i) - f(x_ik)| / |x_i - x_ik|    `finite_slopes`, x_ik = x_i + noise
    s_i = 1/N sum_k |J(x_i) u_ik|                        `directional_slopes`, u_ik unit directions
    L(theta) = sum_i w_i s_i                             `slope_penalty`

J is the Jacobian of the outputs in the input. The second line is the limit of the first for small
noise; neither reads labels. `jit_lipschitz` and `info_theoretic` minimise them at what is to be
forgotten, and `objectives.weighted_sum` adds them to any other loss. Finite slopes after Foster et
al. (2024), arXiv:2402.01401, as its code has them.

The published gradient holds the noisy side f(x_ik) constant. So it is that of |f(x_i) - c| / d, a
pull of the outputs at x_i towards those at noisy copies, and not the gradient of the slope. Without
clipping it has mean 0 on a linear model (the noise is even, the pull odd), and one noise moves it
by O(1 / sigma): no limit for small sigma, though the value has one. Where inputs lie on the bounds
(black pixels) clipping leaves only inward noise, and then the mean grows as 1 / sigma as well.
`symmetric=True` is the gradient of the slope itself, and does tend to that of `directional_slopes`.

The noise lives in the range of the batch: its smallest and largest value over all rows and pixels
of positive weight. On several devices that is the whole global batch, as on one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.losses import weighted_mean
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind, stateless
from jaxunlearn.typing import Array, Batch, Key, Params

Outputs = Callable[[Params, Batch], Array]


def finite_slopes(
    outputs: Outputs,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    sigma: float = 0.5,
    samples: int = 25,
    clip: bool = True,
    symmetric: bool = False,
    micro_batch: int | None = None,
) -> Array:
    """s_i = 1/N sum_k |f(x_i) - f(x_ik)| / |x_i - x_ik|, gradient through f(x_i) only.

    Args:
      outputs: (params, batch) -> (n, ...), each row from its own row of the batch.
      params: passed on.
      batch: with "x" (n, ...) float; "weight" (n,) tells the rows whose min and max clip.
      key: typed key; split into one for each noise.
      sigma: standard deviation of the noise, > 0, in the unit of x.
      samples: N >= 1.
      clip: x_ik into [min x, max x] of the batch.
      symmetric: gradient through f(x_ik) too.
      micro_batch: noises that are evaluated at once; None is all. Changes nothing but memory.

    Returns:
      (n,) float32 (float64 for such outputs), unit of outputs per unit of x; norms over all axes
      after the first.

    Raises:
      TypeError: x is not float.
      ValueError: the batch has no "x".

    | edge case                            | result                                            |
    |--------------------------------------|---------------------------------------------------|
    | f constant                           | 0, gradient 0                                     |
    | x_ik = x_i (all pixels of one value) | that term is 0, gradient 0                        |
    | f(x) = A x, clip=False               | |A xi| / |xi|: x and sigma do not matter          |
    | row of weight 0                      | not in min x, max x; its noise and slope are 0    |

    Cost: N + 1 forwards; the backward pass goes through one of them, or all if symmetric. Memory of
    micro_batch noisy batches, of all N if symmetric.

    Source: Foster et al. (2024), arXiv:2402.01401; departures in
    `jaxunlearn.methods.descent.jit_lipschitz`.

    Example:
      >>> batch = {"x": jnp.array([[1.0], [4.0]])}
      >>> f = lambda p, b: p * b["x"]
      >>> slopes = finite_slopes(f, 3.0, batch, jax.random.key(0), clip=False)
      >>> [f"{s:.3f}" for s in slopes]
      ['3.000', '3.000']
    """
    x = _inputs(batch)
    counts = _per_row(batch["weight"] > 0, x) if "weight" in batch else jnp.ones(x.shape, bool)
    low = jnp.min(x, where=counts, initial=jnp.inf)
    high = jnp.max(x, where=counts, initial=-jnp.inf)
    z = outputs(params, batch)

    def slope(key: Key) -> Array:
        noisy = x + sigma * jax.random.normal(key, x.shape, x.dtype)
        noisy = jnp.where(counts, jnp.clip(noisy, low, high) if clip else noisy, x)
        other = outputs(params, {**batch, "x": noisy})
        change = _norms(z - (other if symmetric else jax.lax.stop_gradient(other)))
        distance = _norms(x - noisy).astype(change.dtype)
        moved = distance > 0
        return jnp.where(moved, change, 0) / jnp.where(moved, distance, 1)

    return _mean_over_draws(slope, key, samples, micro_batch)


def directional_slopes(
    outputs: Outputs,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    samples: int = 25,
    micro_batch: int | None = None,
) -> Array:
    """s_i = 1/N sum_k |J(x_i) u_ik|, u_ik = xi_ik / |xi_ik|, xi_ik ~ N(0, I), by forward mode.

    Arguments, returns and errors are those of `finite_slopes`, and with the same key it is the
    limit of its value as sigma -> 0, draw by draw. E |J u|^2 = |J|_F^2 / d in d dimensions. Where
    the outputs are piecewise linear in x (ReLU), J does not depend on biases: they get gradient 0.

    Cost: one linearisation and N forwards; a backward pass through both, memory of N forwards.

    Example:
      >>> batch = {"x": jnp.array([[1.0], [4.0]])}
      >>> f = lambda p, b: p * b["x"] ** 2
      >>> [f"{s:.3f}" for s in directional_slopes(f, 3.0, batch, jax.random.key(0))]
      ['6.000', '24.000']
    """
    x = _inputs(batch)
    # One linearisation serves all directions.
    _, along = jax.linearize(lambda x: outputs(params, {**batch, "x": x}), x)

    def slope(key: Key) -> Array:
        xi = jax.random.normal(key, x.shape, x.dtype)
        return _norms(along(xi / _per_row(_norms(xi), x).astype(x.dtype)))

    return _mean_over_draws(slope, key, samples, micro_batch)


def _inputs(batch: Batch) -> Array:
    if "x" not in batch:
        raise ValueError(
            f"Lipschitz unlearning moves the inputs batch['x'], but the batch has {sorted(batch)}."
        )
    x = jnp.asarray(batch["x"])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"Lipschitz unlearning adds noise to batch['x'], which must be float, got {x.dtype}. "
            "Convert images to float beforehand; tokens have no neighbourhood to be flat in, so "
            "give the model embeddings as inputs."
        )
    return x


def _per_row(values: Array, like: Array) -> Array:
    """(n,) -> the shape of `like`, (n, ...)."""
    return jnp.broadcast_to(values.reshape(-1, *[1] * (like.ndim - 1)), like.shape)


def _norms(values: Array) -> Array:
    """(n, ...) -> (n,): Euclidean norm of each row, at least float32, with gradient 0 at 0."""
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return optax.safe_norm(wide.reshape(wide.shape[0], -1), 0.0, axis=1)


def _mean_over_draws(
    slope: Callable[[Key], Array], key: Key, samples: int, micro_batch: int | None
) -> Array:
    at_once = min(micro_batch or samples, samples)
    return jax.lax.map(slope, jax.random.split(key, samples), batch_size=at_once).mean(axis=0)


def slope_penalty(
    model: Model,
    slopes: Callable[..., Array] = finite_slopes,
    *,
    on: str = "forget",
    reduction: str = "sum",
    **options: Any,
) -> Objective:
    """L = sum_i w_i s_i over the stream `on` (or that over sum_i w_i), s_i = slopes(f; x_i).

    Args:
      model: only its outputs are read.
      slopes: `finite_slopes` or `directional_slopes`.
      on: the stream.
      reduction: "sum" (published) or "mean".
      options: of `slopes`.

    Returns:
      A stateless Objective; rows of weight 0 contribute exactly 0.

    Raises:
      ValueError: an unknown reduction.

    Example:
      >>> linear = Model(outputs=lambda p, b: p * b["x"], loss=lambda p, b: b["x"][:, 0])
      >>> batches = {"forget": {"x": jnp.array([[1.0], [4.0]])}}
      >>> penalty = slope_penalty(linear, directional_slopes)
      >>> value, _ = penalty.loss(3.0, batches, (), jax.random.key(0))
      >>> f"{value:.3f}"
      '6.000'
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"slope_penalty: reduction must be 'sum' or 'mean', got {reduction!r}.")
    constants = (model, slopes, on, reduction, tuple(options.items()))
    return stateless(bind(_slope_penalty, *constants))


def _slope_penalty(
    model: Model,
    slopes: Callable[..., Array],
    on: str,
    reduction: str,
    options: tuple,
    params: Params,
    batches: Batches,
    key: Key,
) -> Array:
    batch = batches[on]
    each = slopes(model.outputs, params, batch, key, **dict(options))
    mean = weighted_mean(each, batch)
    total = batch["weight"].sum() if "weight" in batch else each.shape[0]
    return mean * total if reduction == "sum" else mean
