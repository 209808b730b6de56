"""The pull towards an anchor as optax transformations: L2 and elastic weight consolidation.

    anchor            u <- u + mu F (theta - theta_o)
    proximal_anchor   theta <- (theta + u + eta mu F theta_o) / (1 + eta mu F)

The penalty mu/2 sum_j F_j (theta_j - theta_o,j)^2 has an analytic gradient, so it needs no place in
the loss. Where the first one stands in a chain decides what it is:

    optax.chain(anchor(theta_o, F, mu), optax.adam(eta))                      in the loss
    optax.chain(optax.scale_by_adam(), anchor(theta_o, F, mu),
                optax.scale_by_learning_rate(eta))                            decoupled

The two differ under any optimiser that rescales gradients: Adam divides the first pull by the size
of the whole gradient. For plain SGD they are one, and theta_j moves by the factor 1 - eta mu F_j:
stable while eta mu max F < 2. The second transformation ends a chain and has no such limit: it is
the exact minimiser of

    1/2 |theta' - (theta + u)|^2 + eta mu/2 sum_j F_j (theta'_j - theta_o,j)^2

Sources: Kirkpatrick et al. (2017), arXiv:1612.00796; decoupling as in Loshchilov and Hutter (2019),
arXiv:1711.05101; Smith et al. (2023), arXiv:2203.17269, of which no code was found: a
*reconstruction*. The same pull as an objective is in `jaxunlearn.penalties`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.penalties import check_importances, check_like, displacement, full_mask
from jaxunlearn.typing import Array, Params

Scalar = float | Array | Callable[[Array], Array]  # a number, or a schedule of the step


class AnchorState(NamedTuple):
    """What the pull needs; arrays of the size of the params are sharded like them."""

    count: Array  # [] int32, steps so far, for schedules
    anchor: Params  # theta_o, like params
    fisher: Params  # F, like params; None for 1
    mask: Params  # full tree of bools; None for everything


def anchor(
    params_0: Params = None,
    fisher: Params = None,
    strength: Scalar = 1.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """u <- u + mu F (theta - theta_o).

    Args:
      params_0: theta_o, a tree of the params' shapes; None: the params that `init` is given, so the
        pull is towards where training starts.
      fisher: F >= 0, of the same shapes; None: 1, which is `optax.add_decayed_weights` with an
        anchor in the place of 0.
      strength: mu >= 0, or a schedule step -> mu.
      mask: which leaves or entries are pulled, a tree of bools or bool arrays, or a prefix of it.

    Returns:
      An optax transformation; before the optimiser it is in the loss, after it decoupled (see the
      module). It composes with `optax.masked` and `optax.partition`.

    Raises:
      ValueError: a negative strength; (at `init`) trees or shapes that differ, or importances that
        are negative or not finite; (at `update`) no params.

    | edge case        | result                                          |
    |------------------|-------------------------------------------------|
    | theta = theta_o  | updates unchanged                               |
    | strength = 0     | updates unchanged                               |
    | bf16             | computed in float32, returned in the update's dtype |

    Cost: one pass over the parameters a step; memory of anchor and F.

    Example:
      >>> tx = optax.chain(anchor(jnp.zeros(2), jnp.array([1.0, 0.0])), optax.sgd(0.5))
      >>> params = jnp.ones(2)
      >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [0.5 1. ]
    """
    _check_number("anchor", "strength", strength)

    def update(updates: Params, state: Any, params: Params = None) -> tuple:
        mu = _at(strength, state.count)

        def pull(u: Array, d: Array, f: Array | float) -> Array:
            return (u + mu * f * d).astype(u.dtype)

        return _over(pull, "anchor", updates, state, params), _next(state)

    return optax.GradientTransformation(_init("anchor", params_0, fisher, mask), update)


def proximal_anchor(
    learning_rate: Scalar,
    params_0: Params = None,
    fisher: Params = None,
    strength: Scalar = 1.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """theta <- (theta + u + eta mu F theta_o) / (1 + eta mu F): the stable step for stiff F.

    Args:
      learning_rate: eta >= 0 of the optimiser before it, or the same schedule.
      params_0, fisher, mask: as for `anchor`.
      strength: mu >= 0, a schedule, or inf, which puts every entry with F > 0 on the anchor.

    Returns:
      An optax transformation that stands LAST in a chain, after the learning rate.

    Raises:
      ValueError: as for `anchor`, and for a negative learning rate.

    | edge case               | result                                              |
    |-------------------------|-----------------------------------------------------|
    | eta mu F = 0            | theta + u                                           |
    | eta mu F large          | theta_o, without overshooting                       |
    | eta mu F small          | plain SGD with the in-loss pull, to second order    |

    Cost: one pass over the parameters a step; memory of anchor and F.

    Example:
      >>> tx = optax.chain(optax.sgd(0.5), proximal_anchor(0.5, jnp.zeros(1), strength=6.0))
      >>> params = jnp.ones(1)
      >>> updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates))
      [0.25]
    """
    _check_number("proximal_anchor", "strength", strength)
    _check_number("proximal_anchor", "learning_rate", learning_rate)

    def update(updates: Params, state: Any, params: Params = None) -> tuple:
        eta, mu = _at(learning_rate, state.count), _at(strength, state.count)

        def shrink(u: Array, d: Array, f: Array | float) -> Array:
            c = jnp.where((f == 0) | (eta == 0), 0, eta * mu * f)  # not 0 * inf
            return (u / (1 + c) - d / (1 + 1 / c)).astype(u.dtype)  # c / (1 + c), also at c = inf

        return _over(shrink, "proximal_anchor", updates, state, params), _next(state)

    return optax.GradientTransformation(_init("proximal_anchor", params_0, fisher, mask), update)


def _check_number(where: str, what: str, value: Any) -> None:
    if isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{where}: {what} must be >= 0 or a schedule, got {value}.")


def _at(value: Scalar, count: Array) -> Array:
    return jnp.asarray(value(count) if callable(value) else value)


def _next(state: AnchorState) -> AnchorState:
    return state._replace(count=optax.safe_increment(state.count))


def _is_hidden(leaf: Any) -> bool:
    """Stands where `optax.masked` took a leaf away."""
    return isinstance(leaf, optax.MaskedNode)


def _like(params: Params, tree: Params) -> Params:
    """`tree` without the leaves that `optax.masked` hides from `params`."""
    if jax.tree.structure(tree) == jax.tree.structure(params):
        return tree
    try:
        return jax.tree.map(
            lambda p, t: p if _is_hidden(p) else t, params, tree, is_leaf=_is_hidden
        )
    except ValueError:
        return tree  # another model's: `check_like` says so


def _init(where: str, params_0: Params, fisher: Params, mask: Any) -> Callable:
    def init(params: Params) -> AnchorState:
        old = params if params_0 is None else _like(params, params_0)
        check_like(where, "params_0", old, params)
        weights = None if fisher is None else _like(params, fisher)
        if weights is not None:
            check_like(where, "fisher", weights, params)
            check_importances(where, weights)
        # A copy: the params themselves may be donated to the training step.
        old = jax.tree.map(lambda a: jnp.array(a, copy=True), old)
        return AnchorState(jnp.int32(0), old, weights, full_mask(where, mask, params))

    return init


def _over(
    function: Callable, where: str, updates: Params, state: AnchorState, params: Params
) -> Params:
    """function(update, theta - theta_o, F) on every leaf; updates where the mask is False."""
    if params is None:
        raise ValueError(
            f"{where}: update needs the params, as in tx.update(grads, state, params)."
        )
    d = displacement(params, state.anchor)
    fisher = jax.tree.map(lambda _: 1.0, d) if state.fisher is None else state.fisher
    moved = jax.tree.map(function, updates, d, fisher)
    if state.mask is None:
        return moved
    return jax.tree.map(jnp.where, state.mask, moved, updates)
