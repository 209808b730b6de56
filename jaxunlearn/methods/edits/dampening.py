"""Dampening: the step that SSD and its successors share.

    select j where  I_f,j > alpha I_ref,j;      theta'_j = theta_j min(lambda I_ref,j / I_f,j, 1)

I_f and I_ref are importances, numbers >= 0 for every parameter: of the forget set, and of all data
or of the retained data. The methods differ in the importance (squared or absolute gradients, of the
loss or of the outputs) and in alpha. Foster, Schoepf and Brintrup (2024), arXiv:2308.07707.
"""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.method import Request
from jaxunlearn.methods.edits.moments import Moments
from jaxunlearn.typing import Array, Params


class NothingSelectedWarning(UserWarning):
    """The bound I_f/I_full <= n/n_f leaves (almost) nothing to select at this alpha."""


class DampeningInfo(NamedTuple):
    """What was edited."""

    selected: Array  # [] float32, fraction of entries that were dampened
    largest_ratio: Array  # [] float32, max_j I_f,j / I_ref,j over finite ones with I_ref > 0
    alpha: Array  # [] float32, the threshold; NaN if none could be found (then nothing is selected)
    unusable: Array  # [] float32, fraction of entries with an importance of NaN or inf: left alone


def dampen(
    params: Params,
    forget: Params,
    reference: Params,
    alpha: float | Array,
    dampening: float = 1.0,
    floor: float = 0.0,
) -> Params:
    """theta'_j = theta_j max(min(lambda I_ref,j / I_f,j, 1), floor) where I_f,j > alpha I_ref,j.

    Args:
      params: tree of float arrays.
      forget, reference: importances I_f and I_ref, trees of the same shapes, >= 0.
      alpha: selection threshold, >= 0; entries with equality are not selected. May be traced.
      dampening: lambda >= 0.
      floor: smallest factor, in [0, 1].

    Returns:
      The params; the other entries bit-identical, dtype kept.

    Raises:
      ValueError: trees or shapes differ, naming the leaf.

    | entry                     | result                          |
    |---------------------------|---------------------------------|
    | I_f = I_ref = 0           | unchanged                       |
    | I_ref = 0 < I_f           | theta * floor                   |
    | I_f or I_ref NaN or inf   | unchanged                       |
    | alpha = inf or NaN        | unchanged                       |

    Example:
      >>> print(dampen(jnp.ones(2), jnp.array([4.0, 1.0]), jnp.ones(2), alpha=2.0))
      [0.25 1.  ]
    """
    for name, tree in (("forget", forget), ("reference", reference)):
        _check_like(params, tree, name)

    def edit(p: Array, i_f: Array, i_ref: Array) -> Array:
        factor = dampening * i_ref / jnp.where(i_f > 0, i_f, 1)
        factor = jnp.clip(factor, floor, 1).astype(p.dtype)
        return jnp.where(_selected(i_f, i_ref, alpha), p * factor, p)

    return jax.tree.map(edit, params, forget, reference)


def _selected(i_f: Array, i_ref: Array, alpha: float | Array) -> Array:
    threshold = jnp.asarray(alpha).astype(i_ref.dtype)
    # no comparison with NaN holds, that of inf * 0 included
    return (i_f > threshold * i_ref) & jnp.isfinite(i_f) & jnp.isfinite(i_ref)


def _check_like(params: Params, tree: Params, name: str) -> None:
    if jax.tree.structure(params) != jax.tree.structure(tree):
        raise ValueError(
            f"dampen: `{name}` and params are different trees. Was it computed for another model?"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(tree), strict=True)
    for (path, p), i in pairs:
        if p.shape != i.shape:
            raise ValueError(
                f"dampen: `{name}` and params differ at {jax.tree_util.keystr(path)}: shapes "
                f"{i.shape} and {p.shape}. Was it computed for another head?"
            )


def describe(forget: Params, reference: Params, alpha: float | Array) -> DampeningInfo:
    """What `dampen` does with these importances."""
    pairs = list(zip(jax.tree.leaves(forget), jax.tree.leaves(reference), strict=True))
    total = max(sum(f.size for f, _ in pairs), 1)

    def share(entries: list[Array]) -> Array:
        """Of all entries those that are true; counted in floats, which do not overflow."""
        return jnp.array([e.sum(dtype=jnp.float32) for e in entries]).sum() / total

    chosen = [_selected(f, r, alpha) for f, r in pairs]
    broken = [~(jnp.isfinite(f) & jnp.isfinite(r)) for f, r in pairs]
    largest = [
        jnp.max(x, initial=0.0, where=jnp.isfinite(x))
        for x in jax.tree.leaves(ratios(forget, reference))
    ]
    return DampeningInfo(
        selected=share(chosen).astype(jnp.float32),
        largest_ratio=jnp.max(jnp.array(largest)).astype(jnp.float32),
        alpha=jnp.asarray(alpha, jnp.float32),
        unusable=share(broken).astype(jnp.float32),
    )


def ratios(forget: Params, reference: Params) -> Params:
    """I_f / I_ref; NaN where I_ref is 0."""
    return jax.tree.map(
        lambda f, r: jnp.where(r > 0, f / jnp.where(r > 0, r, 1), jnp.nan), forget, reference
    )


# ------------------------------------------------------------- what the builders have in common


def check_constants(
    name: str,
    *,
    alpha: float | Array,
    dampening: float,
    floor: float,
    effective_batch: int,
    micro_batch: int | None,
    batching: str,
    reference: str,
) -> None:
    """Raises `ValueError` for a constant outside its range; a traced alpha is not looked at."""
    positive = is_traced(alpha) or alpha >= 0
    if not (positive and dampening >= 0 and 0 <= floor <= 1):
        raise ValueError(
            f"{name}: expected alpha >= 0, dampening >= 0 and floor in [0, 1], got {alpha=}, "
            f"{dampening=}, {floor=}."
        )
    if effective_batch < 1 or (micro_batch is not None and micro_batch < 1):
        raise ValueError(f"{name}: batches must be >= 1, got {effective_batch=}, {micro_batch=}.")
    if batching not in ("random", "class"):
        raise ValueError(f"{name}: batching must be 'random' or 'class', got {batching!r}.")
    if reference not in ("full", "retain"):
        raise ValueError(f"{name}: reference must be 'full' or 'retain', got {reference!r}.")


def check_request(
    name: str, request: Request, stored: Moments | None, alpha: float | Array, bounded: bool
) -> None:
    """Says what cannot work, before a run; inside a trace rows count as 1 each.

    Raises:
      ValueError: stored moments of no more examples than are to be forgotten.

    Warns:
      NothingSelectedWarning: `bounded`, and n/n_f < 3 alpha.
    """
    if stored is not None and is_traced((request.forget, stored.count)):
        return
    forget = _weight(request.forget)
    n = forget + _weight(request.retain) if stored is None else float(stored.count)
    if not n > forget and stored is not None:
        raise ValueError(
            f"{name}: the stored moments are of {n:g} examples, and {forget:g} are to be "
            "forgotten. They must be those of the whole training set."
        )
    if not bounded or is_traced(alpha):
        return
    ratio = n / forget
    if ratio < 3 * alpha:
        warnings.warn(
            f"{name}: these importances obey I_f/I_full <= n/n_f = {ratio:.3g}, and alpha = "
            f"{alpha:g} selects only above {alpha:g}, so "
            f"{'nothing' if ratio <= alpha else 'little'} can be dampened. Use random batches "
            "(effective_batch=64), the retained data as reference, or a smaller alpha.",
            NothingSelectedWarning,
            stacklevel=4,
        )


def _weight(data: Any) -> float:
    """Total weight of the rows; of a stream, or inside a trace, their number."""
    if isinstance(data, InMemory) and "weight" in data and not is_traced(data["weight"]):
        return float(np.asarray(data["weight"], np.float64).sum())
    return float(data.num_examples)
