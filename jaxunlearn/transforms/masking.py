"""Masked updates: frozen entries stay bit-identical, whatever stands before them in the chain.

    u <- u where the mask is True, 0 elsewhere

Where it stands decides what it is. A frozen entry moves by whatever is added after its gradient was
zeroed: weight decay, an anchor, a noise, the momentum of earlier steps. So the mask is the LAST
transformation of a chain:

    optax.chain(optax.adamw(1e-3), mask_updates(mask))        frozen entries do not move
    optax.chain(mask_updates(mask), optax.adamw(1e-3))        weight decay shrinks them

Last, it keeps parameters and not the optimiser's memory: moments of frozen entries fill up from
gradients that are thrown away, clipping and trust ratios measure them, and the first step after a
thaw is a jump. `mask_updates(mask, inner)` closes that as well. For `inner` the frozen entries are
0 in gradients and parameters, at `init` and at every `update`: no decay, norm, moment or moving
average sees them, and the mask stands behind it too.

The 0 of a frozen entry is -0.0, the one number that added to any other (0.0 and -0.0 among them)
gives that number bit for bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.penalties import full_mask
from jaxunlearn.typing import Array, Params


class MaskState(NamedTuple):
    """What the next step needs."""

    mask: Params  # full tree of bools or bool arrays; True moves
    inner: Any  # of the transformation inside, () if there is none


def mask_updates(
    mask: Any | Callable[[Params], Any], inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """u <- u where the mask is True, 0 elsewhere; around `inner`, if one is given.

    Args:
      mask: tree of the params' structure, or a prefix of it, or a function params -> such a tree,
        called at `init`. Leaves are bools (the whole leaf) or bool arrays of the leaf's shape
        (entries), which may be traced; True moves.
      inner: any transformation, in the place of one that stands before this in a chain.

    Returns:
      An optax transformation that stands LAST in a chain; arguments of `update` beyond the usual
      go to `inner`.

    Raises:
      ValueError: (at `init`) the mask does not fit the params; (at `update`) `inner` needs the
        params and there are none.
      TypeError: (at `init`) a mask leaf is not boolean.

    | edge case                                  | result                                         |
    |--------------------------------------------|------------------------------------------------|
    | frozen entry, after any number of steps    | bit-identical, NaN gradients included          |
    | slots of frozen entries, inside            | as for parameters and gradients that are 0     |
    | slots of frozen entries, last in a chain   | filled by gradients that are thrown away       |
    | all True                                   | what `inner` gives, bit for bit                |
    | first in a chain                           | weight decay behind it moves frozen entries    |

    Cost: one pass over the parameters, three around `inner`; memory of the mask.

    Example:
      >>> tx = mask_updates(jnp.array([True, False]), optax.adamw(0.1))
      >>> params = jnp.array([3.0, 3.0])
      >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
      >>> print(optax.apply_updates(params, updates) == params)
      [False  True]
    """
    wrapped = None if inner is None else optax.with_extra_args_support(inner)

    def init(params: Params) -> MaskState:
        full = full_mask("mask_updates", mask(params) if callable(mask) else mask, params)
        seen = () if wrapped is None else wrapped.init(_where(full, params, 0.0))
        return MaskState(full, seen)

    def update(updates: Params, state: Any, params: Params = None, **extra: Any) -> tuple:
        full, memory = state
        if wrapped is not None:
            shown = None if params is None else _where(full, params, 0.0)
            updates, memory = wrapped.update(_where(full, updates, 0.0), memory, shown, **extra)
        return _where(full, updates, -0.0), MaskState(full, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _where(mask: Params, tree: Params, frozen: float) -> Params:
    def choose(m: Any, leaf: Array) -> Array:
        return jnp.where(m, leaf, jnp.asarray(frozen, jnp.result_type(leaf)))

    return jax.tree.map(choose, mask, tree)
