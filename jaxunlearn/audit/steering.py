"""Steering: the latents that stand for something, and moving them in the middle of a network.

    experts  = the latents j of largest  mean_target z_j - mean_rest z_j
    z        = E (x_u - b_pre),   z_o = E (x_o - b_pre)             linear codes, no TopK, no bias
    inject   : x' = D (z + alpha 1_j (z_o - z)) + b_pre             the original's codes put in
    add      : x' = x_u + alpha D (1_j z)                           its own made stronger
    class token:  c' = c_u + alpha (c_o - c_u)                      no dictionary

with x the standardised activations of the unlearned (u) and the original (o) model; patches are
steered by the first two, the class token by the last.

Source: Y. Jang et al. (2026), arXiv:2602.18505, and its published intervention. The choice of
experts is a *reconstruction*: the source names those of its models and not how they were found.
Departure: "add" leaves out a second b_pre, so that alpha = 0 changes nothing.

| input                                     | result                                            |
|-------------------------------------------|---------------------------------------------------|
| alpha = 0, "inject"                       | patches as the dictionary's linear map has them   |
| alpha = 0, "add"                          | nothing changes                                   |
| original = unlearned                      | the class token does not change, to the bit       |
| no row besides the target                 | experts: the latents most active on the target    |
| no target row                             | TooFew; inside a trace the first latents          |
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.columns import is_traced
from jaxunlearn.typing import Array, Key, check_between

from .errors import TooFew
from .sparse_autoencoder import (
    SparseAutoencoder,
    encode,
    from_codes,
    linear_codes,
    standardise,
    unstandardise,
)

ARMS = ("experts", "class_token", "both")
MODES = ("inject", "add")


def expert_features(
    sae: SparseAutoencoder,
    hidden: Array,
    target: Array,
    *,
    count: int = 10,
    weight: Array | None = None,
) -> Array:
    """The latents j with the largest  mean_target z_j - mean_rest z_j,  the highest first.

    z are the sparse codes of the patches, averaged over tokens and rows.

    Args:
      sae: trained on the original's activations.
      hidden: (n, t, d), the original's.
      target: (n,) bool, the rows to be told from the rest: those of a class, or any forget set.
      count: in [1, latents].
      weight: (n,) >= 0.

    Returns:
      (count,) int32 places of latents. Without other rows they are those most active on the target.

    Raises:
      ValueError: a target that is not bool (n,), a count out of range.
      TooFew: (where it can be seen) no target row.

    Example:
      >>> from jaxunlearn.audit.sparse_autoencoder import Dictionary
      >>> eye, zero = jnp.eye(2), jnp.zeros(2)
      >>> sae = SparseAutoencoder(Dictionary(eye, eye, zero, zero), zero[None], jnp.ones(1), 1)
      >>> print(expert_features(sae, eye[:, None], jnp.array([False, True]), count=1))
      [1]
    """
    rows = len(hidden)
    target = as_target(target, rows, "expert_features")
    check_between(
        "expert_features", "count", count, at_least=1, at_most=sae.dictionary.latent.shape[-1]
    )
    weight = jnp.ones(rows) if weight is None else jnp.asarray(weight)
    z = encode(sae, hidden)[:, int(sae.class_token) :].mean(axis=1)
    inside, outside = (_mean_code(z, weight * rows_of) for rows_of in (target, ~target))
    return jax.lax.top_k(inside - outside, count)[1].astype(jnp.int32)


def _mean_code(z: Array, weight: Array) -> Array:
    total = weight.sum()
    return jnp.where(weight[:, None] > 0, weight[:, None] * z, 0).sum(0) / jnp.where(
        total > 0, total, 1
    )


def latent_mask(experts: Array, latents: int) -> Array:
    """(latents,) bool, True at the experts.

    Raises:
      ValueError: experts that are no integers (count,), are not distinct places in [0, latents), or
        are so many that the random control cannot have as many others.

    Example:
      >>> print(latent_mask(jnp.array([2, 0]), 4))
      [ True False  True False]
    """
    shape, dtype = jnp.shape(experts), jnp.result_type(experts)
    if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"experts: expected integers (count,), got {dtype} {shape}. expert_features gives them."
        )
    if not 1 <= shape[0] <= latents // 2:
        raise ValueError(
            f"experts: got {shape[0]} of {latents} latents. There must be at least one, and as "
            "many other latents for the random control; ask expert_features for another count, or "
            "train with more latents."
        )
    if not is_traced(experts):
        places = np.asarray(experts)
        if places.min() < 0 or places.max() >= latents or len(np.unique(places)) < len(places):
            raise ValueError(
                f"experts: expected distinct places in [0, {latents}), got {places.tolist()}."
            )
    return jnp.zeros(latents, bool).at[jnp.asarray(experts)].set(True)


def random_latents(key: Key, excluded: Array, count: int, draws: int) -> Array:
    """(draws, m) bool: `count` latents drawn without replacement, none of the `excluded` (m,)."""

    def draw(key: Key) -> Array:
        rank = jnp.where(excluded, -1.0, jax.random.uniform(key, excluded.shape))
        return jnp.zeros_like(excluded).at[jax.lax.top_k(rank, count)[1]].set(True)

    return jax.vmap(draw)(jax.random.split(key, draws))


def steer(
    sae: SparseAutoencoder,
    hidden: Array,
    original: Array | None,
    latents: Array,
    alpha: Array | float,
    *,
    arm: str = "experts",
    mode: str = "inject",
) -> Array:
    """x' of the module, in the unit of the activations: what is to be resumed from.

    Args:
      sae: the original's.
      hidden: (n, t, d) of the unlearned model.
      original: (n, t, d) of the original, the same rows; None in mode "add".
      latents: (m,) bool, the latents to be moved.
      alpha: [] strength; 0 leaves the unlearned model's own codes, 1 puts the original's.
      arm: "experts", "class_token" or "both"; the last two for an SAE with a class token.
      mode: "inject", or "add", which needs no original and moves patches only.

    Returns:
      (n, t, d).

    Raises:
      ValueError: an unknown arm or mode, an arm that these tokens or this mode do not have, no
        original to inject from.
    """
    check_arm(sae, original is not None, arm, mode)
    first = int(sae.class_token)
    if arm == "class_token":
        patches = hidden[:, first:]
    else:
        patches = _steered_patches(sae, hidden, original, latents, alpha, mode)[:, first:]
    if arm == "experts" or original is None:
        class_tokens = hidden[:, :first]
    else:
        class_tokens = hidden[:, :first] + alpha * (original[:, :first] - hidden[:, :first])
    return jnp.concatenate([class_tokens, patches], axis=1).astype(hidden.dtype)


def _steered_patches(
    sae: SparseAutoencoder,
    hidden: Array,
    original: Array | None,
    latents: Array,
    alpha: Array | float,
    mode: str,
) -> Array:
    """(n, t, d), right for the patches; the class token among them is not to be read."""
    z = linear_codes(sae.dictionary, standardise(sae, hidden))
    if mode == "add":
        moved = jnp.where(latents[None, None], alpha * z, 0) @ sae.dictionary.decoder.T
        return hidden + sae.scale[-1] * moved
    assert original is not None
    change = linear_codes(sae.dictionary, standardise(sae, original)) - z
    moved = z + alpha * jnp.where(latents[None, None], change, 0)
    return unstandardise(sae, from_codes(sae.dictionary, moved))


def as_target(target: Array, rows: int, where: str) -> Array:
    """(n,) bool as an array; raises unless it is that, and (where it can be seen) not all False."""
    shape, dtype = jnp.shape(target), jnp.result_type(target)
    if shape != (rows,) or not jnp.issubdtype(dtype, jnp.bool_):
        raise ValueError(
            f"{where}: expected target as bool ({rows},), one entry a row, got {dtype} {shape}. "
            "For a class it is batch['y'] == c."
        )
    if not is_traced(target) and not np.asarray(target).any():
        raise TooFew(f"{where}: no row is a target, so there is nothing to look for.")
    return jnp.asarray(target)


def check_arm(sae: SparseAutoencoder, has_original: bool, arm: str, mode: str) -> None:
    """Raises `ValueError` unless these tokens and this mode have the arm."""
    if arm not in ARMS or mode not in MODES:
        raise ValueError(
            f"steer: expected an arm of {ARMS} and a mode of {MODES}, got {arm!r} and {mode!r}."
        )
    if arm != "experts" and not sae.class_token:
        raise ValueError(
            f"steer: the arm {arm!r} moves a class token, and this sparse autoencoder was trained "
            "without one. Train it with class_token=True if the network has it."
        )
    if arm != "experts" and mode == "add":
        raise ValueError(f"steer: the arm {arm!r} takes from an original; mode 'add' has none.")
    if mode == "inject" and not has_original:
        raise ValueError("steer: mode 'inject' takes from an original, got None. Use mode='add'.")
