"""How much of an original model does its quantised unlearned version hold?

Let delta be how far unlearning moved a weight, and Delta the step to which it is rounded. If
w / Delta is uniform within its rounding cell and the scale is unchanged, its code changes with

    Pr( c(w + delta) != c(w) ) = min(1, |delta| / Delta)

Where no code changes, quantisation gives the quantised original back (`quantisation`). That needs
weights away from the boundaries of their cells: an original that was quantised before, or a group
in which one large weight makes all others round to 0. Weights that fill their cells uniformly are
dithered instead, E[Q(w + delta) - Q(w)] = delta, and what many small moves agree on survives.

What came back in behaviour is the share

    R = (K_q - K_u) / (K_0 - K_u),     K = knowledge of the forget set, any number

of the quantised, the unlearned and the original model. A method that destroyed the model (forget
probabilities of 0) has K_u far below anything a retrained model has, and R says nothing of it: read
K_q of the oracles beside that of the method, which is also what a test should compare.

Source: Z. Zhang et al. (2024), arXiv:2410.16454, Sec. 4 for the mechanism; *reconstruction*. The
recovery ratio and the diagnostic are this project's own.

| input                                  | result                                               |
|----------------------------------------|------------------------------------------------------|
| the same model twice                   | no crossing; recovery NaN (nothing was forgotten)    |
| one group's largest weight moved       | `rescaled` counts the whole group                    |
| a non-finite weight                    | crossing NaN, over all and for its leaf              |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxunlearn.typing import Array, Params, check_between

from .leaves import Keep, norms_biases_embeddings
from .quantisation import codes


class Crossing(NamedTuple):
    """How many weights of two models have different codes."""

    overall: Array  # [] float32 in [0, 1], share of all quantised entries
    rescaled: Array  # [] float32 in [0, 1], share of entries whose group has another scale
    leaves: dict[str, Array]  # {path: [] float32}, the same as `overall` for every leaf


def crossing(
    params_a: Params,
    params_b: Params,
    *,
    bits: int | Array = 4,
    group: str | int = "row",
    scale: str = "symmetric",
    levels: str = "int",
    keep: Keep = norms_biases_embeddings,
) -> Crossing:
    """Share of weights that have different codes in two models, each with scales of its own.

        mean over entries of  1[ c_a(w_a) != c_b(w_b) ]

    A diagnostic of an unlearned model and the original that it was made from: near 0, quantisation
    gives the original back. It says nothing about models of different initialisation, which cross
    nearly everywhere.

    Args:
        params_a, params_b: two models of one architecture, in either order.
        The others: as `quantise`.

    Returns:
        `Crossing`; NaN where a group is not finite, in `overall` and for its leaf.

    Raises:
        ValueError: trees or shapes differ.

    Cost: one pass over both; three arrays of each leaf's shape.

    Example:
        >>> import jax.numpy as jnp
        >>> before = {"kernel": jnp.array([[7.0], [3.4], [1.0], [0.0]])}
        >>> after = {"kernel": jnp.array([[7.0], [3.6], [1.2], [0.0]])}
        >>> print(crossing(before, after, bits=4).overall)
        0.25
    """
    _check_alike(params_a, params_b)
    first, second = (
        codes(params, bits=bits, group=group, scale=scale, levels=levels, keep=keep)
        for params in (params_a, params_b)
    )
    crossed, rescaled, broken = {}, {}, {}
    for path, a in first.items():
        b = second[path]
        crossed[path] = jnp.sum(a.codes != b.codes, dtype=jnp.int32)
        rescaled[path] = jnp.sum(a.scale != b.scale, dtype=jnp.int32)
        broken[path] = ~jnp.all(jnp.isfinite(a.scale) & jnp.isfinite(b.scale))

    def share(counts: dict[str, Array], paths: list[str]) -> Array:
        size = sum(first[path].codes.size for path in paths)
        count = sum(counts[path].astype(jnp.float32) for path in paths)
        anywhere = jnp.any(jnp.stack([broken[path] for path in paths]))
        return jnp.where(anywhere, jnp.nan, count / size if size else jnp.nan)

    by_leaf = {path: share(crossed, [path]) for path in first}
    return Crossing(share(crossed, list(first)), share(rescaled, list(first)), by_leaf)


def expected_crossing(delta: ArrayLike, scale: ArrayLike) -> Array:
    """Probability that a weight's code changes when it moves by delta.

        min(1, |delta| / Delta)

    exact for w / Delta uniform within its cell and an unchanged scale. Its mean over the entries is
    what `crossing` gives, within the error of as many coin flips.

    Args:
        delta: how far each weight moved, any shape and float dtype.
        scale: Delta >= 0, the same shape or a scalar, in the same unit (`Codes.scale`).

    Returns:
        float32 (or wider) in [0, 1] of that shape; 0 where delta = 0, 1 where Delta = 0 < |delta|.

    Example:
        >>> import jax.numpy as jnp
        >>> print(expected_crossing(jnp.array([0.1, -0.5, 3.0]), 1.0))
        [0.1 0.5 1. ]
    """
    delta, scale = jnp.abs(jnp.asarray(delta)), jnp.asarray(scale)
    wide = jnp.result_type(delta, scale, jnp.float32)
    ratio = delta.astype(wide) / jnp.where(scale == 0, 1, scale).astype(wide)
    return jnp.minimum(jnp.where((scale == 0) & (delta > 0), 1, ratio), 1)


def recovery(
    quantised: ArrayLike, unlearned: ArrayLike, original: ArrayLike, *, least: float = 0.0
) -> np.ndarray:
    """Share of the forgotten knowledge that quantisation brings back.

        R = (K_q - K_u) / (K_0 - K_u)

    0: nothing came back; 1: all of it; below 0: quantisation forgot more. K may be any measure, and
    need not be larger for more knowledge. For K_0, give the original *quantised alike*, unless what
    the rounding costs is meant to count.

    Args:
        quantised, unlearned, original: K of each, numbers or arrays (M,) of M models, shapes that
            broadcast.
        least: smallest |K_0 - K_u| >= 0 that counts as forgetting. Below sampling error the ratio
            is noise: use the floor of K between retrained models.

    Returns:
        float64 of the common shape; NaN where |K_0 - K_u| <= `least` (nothing was forgotten, so
        nothing can return, whatever K_q) or an input is not finite.

    Raises:
        ValueError: `least` is negative.

    Example:
        >>> recovery([0.9, 0.25, 0.5], [0.5, 0.25, 0.5], [1.0, 0.75, 0.5])
        array([0.8, 0. , nan])
    """
    check_between("recovery", "least", least, at_least=0)
    K_q, K_u, K_0 = np.broadcast_arrays(
        *(np.asarray(K, dtype=np.float64) for K in (quantised, unlearned, original))
    )
    defined = np.isfinite(K_q) & np.isfinite(K_u) & np.isfinite(K_0)
    gained, lost = (np.where(defined, K, 0.0) - np.where(defined, K_u, 0.0) for K in (K_q, K_0))
    defined = defined & (np.abs(lost) > least)
    return np.where(defined, gained / np.where(defined, lost, 1.0), np.nan)


def _check_alike(params_a: Params, params_b: Params) -> None:
    """Raises `ValueError` unless both are trees of one structure and equal shapes."""
    tree_a, tree_b = jax.tree.structure(params_a), jax.tree.structure(params_b)
    if tree_a != tree_b:
        raise ValueError(
            f"crossing: expected two models of one architecture, got trees {tree_a} and {tree_b}."
        )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(params_a), jax.tree.leaves(params_b), strict=True
    ):
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"crossing: the models differ at {jax.tree_util.keystr(path)}: shapes "
                f"{jnp.shape(a)} and {jnp.shape(b)}. Stacked models: jax.vmap."
            )
