"""One objective must gain a stated amount in every step, the other pays the least.

    min_d  g_r . d    subject to    g_f . d >= B,    |d| <= R            variant "Q"
    min_d -g_f . d    subject to   -g_r . d >= B,    |d| <= R            variant "U"

g_r and g_f are the gradients of the retain and the forget loss; "U" is "Q" of (-g_f, -g_r). The
solution is `hamu_step`, which stands beside this file; here it becomes an optax transformation,
with one problem for every parameter array (B is shared out) or one for all.

Chen et al. (2026), "How Hard Can It Be? Hardness-Aware Multi-Objective Unlearning",
arXiv:2606.02119, and its code.

Departures: 1. With `blocks="global"` the part across g_f is normalised over all parameters; the
published code does it tensor by tensor, and that step is longer than R. 2. A run that stops keeps
its parameters; the published one makes them NaN. 3. Those of `hamu_step`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.transforms.hamu_step import Branch, dot, hamu_step, unit
from jaxunlearn.typing import Array, Params, check_between

Scalar = float | Array | Callable[[Array], Array]  # a number, or a schedule of the step


class TwoObjectiveState(NamedTuple):
    """What the next step needs, and what a person wants to plot."""

    count: Array  # [] int32, steps made
    stopped: Array  # [] bool, all further updates are 0
    branches: Array  # (5,) int32, blocks by `Branch`, of all steps and of the one refused
    cosine: Array  # [] float32, of the two whole gradients at the last step
    slack: Array  # [] float32, free gain of all blocks - B at the last step, unit of the loss


def two_objective_step(
    radius: Scalar,
    bound: Scalar,
    *,
    variant: str = "Q",
    blocks: str = "leaf",
    distribute: str = "norms",
    infeasible: str = "stop",
    relative: bool = False,
    clip: float | None = None,
    stop_when_hard: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """u <- argmin_d g_r . d  subject to  g_f . d >= B, |d| <= R, block by block.

    Made from the retain gradient in the place of the updates and the forget gradient in the
    argument `forget_grads=` of `update`. What comes out is the step itself, to be added to the
    parameters: no learning rate and no optimiser behind it, or what is said here is not so.

    Args:
      radius: R >= 0 of every block, or a schedule step -> R.
      bound: B >= 0 of all blocks together, in the unit of the loss, or a schedule.
      variant: "Q" (the forget loss gains B, the retain loss pays the least) or "U" (the retain loss
        falls by B, the forget loss gains the most).
      blocks: "leaf" (a problem of its own for every parameter array, as published) or "global" (one
        for all).
      distribute: how the leaves share B: "norms" (by |g_r| |g_f|), "softmax" (of -g_r . g_f) or
        "uniform".
      infeasible: if a block cannot gain its share within R: "stop" (no step, now or later) or
        "fallback" (the shortest step that does, longer than R).
      relative: R is `radius` times the length of the block's minimised gradient (g_r, or g_f in
        "U"), so that `radius` is a learning rate.
      clip: both gradients are first scaled down to at most this norm, over all parameters. It
        changes the meaning of B and of a relative R: they are those of the clipped gradients.
      stop_when_hard: no step, now or later, once B exceeds the free gain of all blocks.

    Returns:
      An optax transformation; see `TwoObjectiveState`. It composes with `optax.masked`.

    Raises:
      ValueError: an unknown choice, a negative constant; (at `update`) no forget gradient, or one
        of another tree.

    | situation                              | result                                         |
    |----------------------------------------|------------------------------------------------|
    | relative radius, shares by norms       | all blocks are feasible or none is             |
    | B = 0, gradients orthogonal, relative  | SGD on the retain loss                         |
    | "U" of (g_r, g_f)                      | "Q" of (-g_f, -g_r)                            |
    | once stopped                           | updates 0, state unchanged                     |
    | a gradient that is not finite          | updates are NaN, for the loop to notice        |
    | several devices                        | average both gradients first                   |

    The gain is per step and to first order: many steps can still raise the forget loss without
    bound. Minibatches decorrelate g_r and g_f, so the cosine depends on their size.

    Cost: four reductions over the parameters and one per leaf for the shares.

    Source: Chen et al. (2026), arXiv:2606.02119; departures in the module.

    Example:
      >>> tx = two_objective_step(radius=5.0, bound=1.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> g_r, g_f = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0])
      >>> print(tx.update(g_r, state, forget_grads=g_f)[0].round())
      [-3.  4.]
    """
    where = "two_objective_step"
    _check_choice("variant", variant, ("Q", "U"))
    _check_choice("blocks", blocks, ("leaf", "global"))
    _check_choice("distribute", distribute, ("norms", "softmax", "uniform"))
    _check_choice("infeasible", infeasible, ("stop", "fallback"))
    for what, value in (("radius", radius), ("bound", bound)):
        if not callable(value):
            check_between(where, what, value, at_least=0)
    if clip is not None:
        check_between(where, "clip", clip, above=0)

    def init(params: Params) -> TwoObjectiveState:
        del params
        counts = jnp.zeros(len(Branch), jnp.int32)
        zero = jnp.float32(0)
        return TwoObjectiveState(jnp.int32(0), jnp.array(False), counts, zero, zero)

    def update(
        updates: Params,
        state: Any,
        params: Params = None,
        *,
        forget_grads: Params = None,
        **extra: Any,
    ) -> tuple[Params, TwoObjectiveState]:
        del params, extra
        g_r, g_f = updates, _like(updates, forget_grads)
        if clip is not None:
            g_r, g_f = _clipped(g_r, clip), _clipped(g_f, clip)
        if variant == "U":
            g_r, g_f = (jax.tree.map(jnp.negative, g) for g in (g_f, g_r))
        leaves_r, tree = jax.tree.flatten(g_r)
        leaves_f = jax.tree.leaves(g_f)
        one = blocks == "global"
        pairs = [(leaves_r, leaves_f)] if one else list(zip(leaves_r, leaves_f, strict=True))

        rate = _at(radius, state.count)
        radii = [rate * unit(a)[1] if relative else rate for a, _ in pairs]
        total = _at(bound, state.count)
        shares = total * _shares(pairs, distribute)
        steps = [
            hamu_step(a, f, r, share, fallback=infeasible == "fallback")
            for (a, f), r, share in zip(pairs, radii, shares, strict=True)
        ]
        info = jax.tree.map(lambda *each: jnp.stack(each), *(info for _, info in steps))
        slack = info.free_gain.sum() - total
        (u_r, length_r), (u_f, length_f) = unit(leaves_r), unit(leaves_f)

        refused = jnp.array(False)
        if infeasible == "stop":
            refused |= ~info.feasible.all()
        if stop_when_hard:
            refused |= slack < 0
        refused &= jnp.isfinite(length_r + length_f)
        met = jnp.bincount(info.branch, length=len(Branch)).astype(jnp.int32)
        seen = TwoObjectiveState(
            count=state.count + ~refused,
            stopped=refused,
            branches=state.branches + met,
            cosine=dot(u_r, u_f).astype(jnp.float32),
            slack=slack.astype(jnp.float32),
        )
        after = jax.tree.map(lambda old, new: jnp.where(state.stopped, old, new), state, seen)
        found = steps[0][0] if one else [step for step, _ in steps]
        found = [
            jnp.where(after.stopped, 0, d).astype(u.dtype)
            for d, u in zip(found, jax.tree.leaves(updates), strict=True)
        ]
        return jax.tree.unflatten(tree, found), after

    return optax.GradientTransformationExtraArgs(init, update)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"two_objective_step: {what} must be one of {choices}, got {value!r}.")


def _at(value: Scalar, count: Array) -> Array:
    return jnp.asarray(value(count) if callable(value) else value)


def _like(updates: Params, forget_grads: Params) -> Params:
    """The forget gradient without the leaves that `optax.masked` hides from the updates."""
    where = "two_objective_step"
    if forget_grads is None:
        raise ValueError(
            f"{where}: update needs the gradient of the forget loss beside that of the retain "
            "loss: tx.update(retain_grads, state, params, forget_grads=...)."
        )

    def hidden(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    def pick(path: Any, u: Any, f: Any) -> Any:
        if hidden(u) or jnp.shape(u) == jnp.shape(f):
            return u if hidden(u) else f
        raise ValueError(
            f"{where}: forget_grads{jax.tree_util.keystr(path)} has shape {jnp.shape(f)}, the "
            f"retain gradient {jnp.shape(u)}. Were they taken at the same params?"
        )

    if jax.tree.structure(updates, is_leaf=hidden) != jax.tree.structure(
        forget_grads, is_leaf=hidden
    ):
        raise ValueError(
            f"{where}: forget_grads and the retain gradient are different trees, "
            f"{jax.tree.structure(forget_grads)} and {jax.tree.structure(updates)}."
        )
    return jax.tree_util.tree_map_with_path(pick, updates, forget_grads, is_leaf=hidden)


def _shares(pairs: list[tuple[Any, Any]], distribute: str) -> Array:
    """(blocks,) parts of B, adding to 1."""
    uniform = jnp.full(len(pairs), 1 / len(pairs))
    if distribute == "uniform":
        return uniform
    units = [(unit(a), unit(f)) for a, f in pairs]
    products = jnp.stack([r[1] * f[1] for r, f in units])
    if distribute == "softmax":
        cosines = jnp.stack([dot(r[0], f[0]) for r, f in units])
        return jax.nn.softmax(-products * cosines)
    total = products.sum()
    return jnp.where(total > 0, products / jnp.where(total > 0, total, 1), uniform)


def _clipped(tree: Any, most: float | Array) -> Any:
    direction, length = unit(tree)
    return jax.tree.map(lambda d, x: jnp.where(length > most, most * d, x), direction, tree)
