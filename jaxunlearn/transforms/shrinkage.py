"""Soft thresholding of updates: of every step, only what is large enough.

    D = argmin_D  1/2 |D - u|^2 + tau |D|_1,    D_j = sign(u_j) max(|u_j| - tau, 0)

The proximal operator of the l1 norm, of the update and not of the weights: with u = -eta g and
tau = eta lambda it is one proximal-gradient step on  L(theta + D) + lambda |D|_1  from D = 0, and
theta moves in few entries. (Of the weights it would be a step towards sparse weights, which is
another method.) With `every` = k, k consecutive steps share their start theta_s, and are k
proximal-gradient steps on the same problem:

    theta <- theta_s + S_tau(theta + u - theta_s)

Source: the proximal operator is standard (Parikh and Boyd, 2014, "Proximal Algorithms", section
6.5.2); on updates, as a mask of what may be forgotten, for `jaxunlearn.methods.descent.forsaken`
(arXiv:2003.10933), a *reconstruction*.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.linalg.quantiles import tree_quantile
from jaxunlearn.typing import Array, Params, check_between


class ShrinkageState(NamedTuple):
    """What the next step needs."""

    count: Array  # [] int32, steps so far
    threshold: Array  # [] float32, tau of the last step; 0 before the first
    moved: Array  # [] float32, share of the entries that the last step moved
    start: Params  # theta_s, at least float32; () if every step has its own


def shrink(update: Array, threshold: float | Array) -> Array:
    """sign(u) max(|u| - tau, 0), entry by entry, in the dtype of u; at least in float32 inside.

    Example:
      >>> print(shrink(jnp.array([3.0, -0.5, -2.0]), 1.0))
      [ 2.  0. -1.]
    """
    dtype = jnp.promote_types(update.dtype, jnp.float32)
    u = update.astype(dtype)
    kept = jnp.abs(u) - jnp.asarray(threshold, dtype)
    return jnp.where(kept > 0, jnp.sign(u) * kept, 0).astype(update.dtype)


def soft_threshold(
    threshold: float | Array | Callable[[Array], Array] | None = None,
    *,
    share: float | Array | None = None,
    every: int = 1,
) -> optax.GradientTransformation:
    """u <- sign(u) max(|u| - tau, 0) on every leaf.

    Args:
      threshold: tau >= 0 in the unit of the updates, traced or not, or a schedule step -> tau.
      share: instead of a threshold, the share of all entries that the first update may move, in
        [0, 1]: tau is the (1 - share)-quantile of its |u| over all leaves, and stays.
      every: k >= 1 consecutive steps share their start.

    Returns:
      An optax transformation that stands LAST in a chain, after the learning rate: only there is an
      entry of 0 an entry that does not move.

    Raises:
      ValueError: neither or both of threshold and share, or one outside its range; every < 1; (at
        `update`) no params where every > 1.

    | edge case                         | result                                            |
    |-----------------------------------|---------------------------------------------------|
    | tau = 0                           | updates unchanged (every = 1)                     |
    | |u_j| <= tau                      | 0 exactly                                         |
    | tau >= max |u|                    | all 0                                             |
    | share under ties                  | fewer entries move; none where all |u| are equal  |
    | bf16                              | shrunk in float32, returned in the update's dtype |

    Cost: one pass over the updates; with `share` 35 of the first; with every > 1 a copy of theta.

    Example:
      >>> tx = optax.chain(optax.sgd(0.5), soft_threshold(0.5))
      >>> params = jnp.zeros(2)
      >>> updates, _ = tx.update(jnp.array([4.0, 1.0]), tx.init(params), params)
      >>> print(updates)
      [-1.5  0. ]
    """
    if (threshold is None) == (share is None):
        raise ValueError(
            "soft_threshold: give exactly one of threshold and share, "
            f"got threshold={threshold}, share={share}."
        )
    if threshold is not None and not callable(threshold):
        check_between("soft_threshold", "threshold", threshold, at_least=0)
    if share is not None:
        check_between("soft_threshold", "share", share, at_least=0, at_most=1)
    if not every >= 1:
        raise ValueError(f"soft_threshold: every must be >= 1 steps, got {every}.")

    def init(params: Params) -> ShrinkageState:
        # A copy: the params themselves may be donated to the training step.
        start = () if every == 1 else jax.tree.map(lambda p: jnp.array(_wide(p)), params)
        return ShrinkageState(jnp.int32(0), jnp.float32(0), jnp.float32(0), start)

    def tau_of(updates: Params, state: ShrinkageState) -> Array:
        if share is None:
            return jnp.asarray(threshold(state.count) if callable(threshold) else threshold)

        def first() -> Array:
            sizes = jax.tree.map(jnp.abs, updates)
            return tree_quantile(sizes, 1 - jnp.asarray(share)).astype(jnp.float32)

        return jax.lax.cond(state.count == 0, first, lambda: state.threshold)

    def update(updates: Params, state: Any, params: Params = None) -> tuple:
        tau = tau_of(updates, state)
        start = state.start
        if every == 1:
            kept = jax.tree.map(lambda u: shrink(u, tau), updates)
        else:
            if params is None:
                raise ValueError(
                    "soft_threshold: every > 1 needs the params, as in tx.update(grads, state, "
                    "params)."
                )
            renew = state.count % every == 0
            start = jax.tree.map(lambda p, s: jnp.where(renew, _wide(p), s), params, start)

            def towards(u: Array, p: Array, s: Array) -> Array:
                gone = _wide(p) - s
                return (shrink(gone + _wide(u), tau) - gone).astype(u.dtype)

            kept = jax.tree.map(towards, updates, params, start)
        moved = _share_moved(kept)
        count = jnp.asarray(optax.safe_increment(state.count))
        return kept, ShrinkageState(count, tau.astype(jnp.float32), moved, start)

    return optax.GradientTransformation(init, update)


def _wide(leaf: Any) -> Array:
    return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _share_moved(updates: Params) -> Array:
    leaves = jax.tree.leaves(updates)
    moved = [jnp.count_nonzero(leaf).astype(jnp.float32) for leaf in leaves]
    return sum(moved, jnp.float32(0)) / max(1, sum(leaf.size for leaf in leaves))
