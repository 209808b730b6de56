"""The pull towards zero that makes parameters sparse, as optax transformations.

    add_l1         u <- u + lambda sign(theta)
    proximal_l1    theta <- S(theta + u; eta lambda),   S(z; t) = sign(z) max(|z| - t, 0)

The penalty lambda |theta|_1 has a kink at 0, and the two differ in how they take it. The first adds
a subgradient before the optimiser, as if the penalty stood in the loss: entries come to about
eta lambda of zero and then jump across it, step after step. The second ends a chain, and is the
exact minimiser of 1/2 |theta' - (theta + u)|^2 + eta lambda |theta'|_1: small entries become zero
and stay there until the gradient outweighs lambda. After plain SGD it is proximal gradient descent
(ISTA); after an optimiser that rescales gradients it is decoupled from that scale, as the decay of
AdamW is, while the first is rescaled with the gradient.

Sources: the subgradient as in Jia et al. (2023), arXiv:2304.04934, eq. 4; the proximal step as in
Beck and Teboulle (2009), "A Fast Iterative Shrinkage-Thresholding Algorithm".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.transforms.anchor import Scalar
from jaxunlearn.typing import Array, Params, check_between


class SparsityState(NamedTuple):
    """What a schedule needs."""

    count: Array  # [] int32, steps so far


def add_l1(strength: Scalar) -> optax.GradientTransformation:
    """u <- u + lambda sign(theta), the subgradient of lambda |theta|_1 with 0 at 0.

    Args:
      strength: lambda >= 0, or a schedule step -> lambda.

    Returns:
      An optax transformation that stands BEFORE the optimiser. Some leaves only: `optax.masked`.

    Raises:
      ValueError: a negative strength; (at `update`) no params.

    | edge case     | result                                                  |
    |---------------|---------------------------------------------------------|
    | theta = 0     | updates unchanged                                       |
    | strength = 0  | updates unchanged                                       |
    | bf16          | computed in float32, returned in the update's dtype     |

    Cost: one pass over the parameters a step, no memory.

    Example:
      >>> tx = optax.chain(add_l1(0.5), optax.sgd(1.0))
      >>> params = jnp.array([2.0, 0.0, -2.0])
      >>> updates, _ = tx.update(jnp.zeros(3), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [ 1.5  0.  -1.5]
    """

    def pull(lam: Array, u: Array, p: Array) -> Array:
        return u + lam * jnp.sign(p)

    return _leafwise("add_l1", pull, {"strength": strength})


def proximal_l1(learning_rate: Scalar, strength: Scalar) -> optax.GradientTransformation:
    """theta <- S(theta + u; eta lambda), with exact zeros.

    Args:
      learning_rate: eta >= 0 of the optimiser before it, or the same schedule.
      strength: lambda >= 0, or a schedule step -> lambda.

    Returns:
      An optax transformation that stands LAST in a chain, after the learning rate. Some leaves
      only: `optax.masked`.

    Raises:
      ValueError: a negative argument; (at `update`) no params.

    | edge case                       | result                                            |
    |---------------------------------|---------------------------------------------------|
    | eta lambda = 0                  | updates unchanged                                 |
    | |theta + u| <= eta lambda       | theta is 0, to the bit                            |
    | bf16                            | computed in float32, returned in the update's dtype |

    Cost: one pass over the parameters a step, no memory.

    Example:
      >>> tx = optax.chain(optax.sgd(1.0), proximal_l1(1.0, 0.5))
      >>> params = jnp.array([2.0, 0.3, -2.0])
      >>> updates, _ = tx.update(jnp.zeros(3), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [ 1.5  0.  -1.5]
    """

    def threshold(eta: Array, lam: Array, u: Array, p: Array) -> Array:
        z, t = p + u, eta * lam
        return jnp.where(jnp.abs(z) <= t, -p, u - t * jnp.sign(z))  # S(z; t) - p, exact at 0

    return _leafwise(
        "proximal_l1", threshold, {"learning_rate": learning_rate, "strength": strength}
    )


def _leafwise(
    where: str, rule: Callable[..., Array], scalars: dict[str, Scalar]
) -> optax.GradientTransformation:
    """u <- rule(scalars at this step, u, theta) on every leaf, in at least float32."""
    for what, value in scalars.items():
        if not callable(value):
            check_between(where, what, value, at_least=0)

    def init(params: Params) -> SparsityState:
        del params
        return SparsityState(jnp.int32(0))

    def update(updates: Params, state: Any, params: Params = None) -> tuple:
        if params is None:
            raise ValueError(
                f"{where}: update needs the params, as in tx.update(grads, state, params)."
            )
        now = [jnp.asarray(v(state.count) if callable(v) else v) for v in scalars.values()]

        def one(u: Array, p: Array) -> Array:
            dtype = jnp.promote_types(jnp.result_type(u), jnp.float32)
            return rule(*now, u.astype(dtype), p.astype(dtype)).astype(u.dtype)

        return jax.tree.map(one, updates, params), SparsityState(
            jnp.asarray(optax.safe_increment(state.count))
        )

    return optax.GradientTransformation(init, update)
