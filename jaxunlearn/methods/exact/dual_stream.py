"""DS-AL: a second analytic head that learns what the first one leaves. Its forgetting is NOT exact.

    y^ = x W + s z V,     W = ridge(x, y),     V = ridge(z, e),     e = (y - x W) on new classes

Two feature maps of one backbone, x (ReLU) and z (tanh). The residuals e are taken when a batch is
learnt, with the main head of that moment, so they depend on everything before it: a later deletion
would have changed them, and they cannot be recomputed without the data. The main stream forgets
exactly; of the second, the example's features leave exactly (its Gram) and its residual is taken
with the main head of today. Hence "empirical".

Zhuang et al. (2024), "DS-AL: A Dual-Stream Analytic Learning for Exemplar-Free Class-Incremental
Learning", AAAI. Departures: 1. Gram states in place of the recursion. 2. Deletion, which the paper
does not have. 3. Residual columns of classes learnt before the batch are 0 (the paper's label
cleansing) when `cleansed`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.method import EMPIRICAL
from jaxunlearn.methods.exact.analytic import analytic_head
from jaxunlearn.methods.exact.analytic_gram import GramState, targets_of
from jaxunlearn.methods.exact.pairs import add, dot, product, scale
from jaxunlearn.typing import Array


class DualState(NamedTuple):
    """Both heads; a pytree."""

    main: GramState
    second: GramState


class DualStream(NamedTuple):
    """Pure functions on a `DualState`; see `dual_stream`."""

    init: Callable[[int, int, int], DualState]  # (d, d of the second, C)
    learn: Callable[[DualState, Array, Array, Array], DualState]  # (state, x, z, y)
    forget: Callable[[DualState, Array, Array, Array], DualState]
    predict: Callable[[DualState, Array, Array], Array]  # (state, x, z) -> (n, C)
    guarantee: str


def dual_stream(*, gamma: float, compensation: float = 0.6, cleansed: bool = True) -> DualStream:
    """y^ = x W + s z V, where V is fitted to what W leaves.

    Args:
      gamma: ridge of both heads, > 0.
      compensation: s >= 0. Published: 0.6 (CIFAR-100), 1.5 (ImageNet).
      cleansed: see the module.

    Returns:
      A `DualStream`, guarantee "empirical": only its main stream forgets exactly.

    Raises:
      ValueError: a constant out of range, and what `analytic_head` raises.

    | edge case                   | result                                             |
    |-----------------------------|----------------------------------------------------|
    | s = 0                       | the main head, exact                               |
    | everything forgotten        | both streams empty, their heads 0                  |

    Cost: two analytic heads, and one solve for the residuals of each request.

    Example:
      >>> dual_stream(gamma=0.1).guarantee
      'empirical'
    """
    if not compensation >= 0:
        raise ValueError(f"dual_stream: expected compensation >= 0, got {compensation}.")
    head = analytic_head(gamma=gamma)

    def init(features: int, second: int, classes: int) -> DualState:
        return DualState(head.init(features, classes), head.init(second, classes))

    def residuals(main: GramState, older: Array, x: Array, y: Array) -> Array:
        w = head.weights(main).x
        left = targets_of(y, older.size, w.dtype) - dot(x.astype(w.dtype), w)
        return jnp.where((older > 0)[None] & cleansed, 0, left)

    def moved(some: GramState, z: Array, left: Array, sign: int) -> GramState:
        """The sums with rows added or taken away; residuals have no classes to be counted."""
        z, rows = z.astype(left.dtype), some.rows + sign * len(z)
        gram = add(some.gram, scale(jax.tree.map(lambda a: a[None], product(z)), sign))
        cross = add(some.cross, scale(product(z, left), sign))
        gram, cross = jax.tree.map(lambda a: jnp.where(rows == 0, 0, a), (gram, cross))
        return GramState(gram, cross, jnp.full_like(some.count, rows), rows, some.status)

    change = jax.jit(moved, static_argnames="sign")

    def learn(state: DualState, x: Array, z: Array, y: Array) -> DualState:
        main = head.learn(state.main, x, y)
        left = residuals(main, state.main.count, x, y)
        return DualState(main, change(state.second, z, left, sign=1))

    def forget(state: DualState, x: Array, z: Array, y: Array) -> DualState:
        left = residuals(state.main, jnp.zeros_like(state.main.count), x, y)
        main = head.forget(state.main, x, y)
        return DualState(main, change(state.second, z, left, sign=-1))

    def predict(state: DualState, x: Array, z: Array) -> Array:
        v = head.weights(state.second).x
        return head.predict(state.main, x) + compensation * dot(z.astype(v.dtype), v)

    return DualStream(init, learn, forget, predict, EMPIRICAL)
