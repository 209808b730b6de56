"""Which few directions is an activation made of? A sparse autoencoder with k active latents.

    x  = (a - mean) / scale                             a (d,): the activation of a token
    z  = TopK_k( relu( E (x - b_pre) + b_lat ) )        at most k of m latents are not 0
    x' = D z + b_pre                                    no other bias in the decoder

The columns of D have length 1. `jaxunlearn.audit.sparse_training` trains one.

Sources: TopK, L. Gao et al. (2024), arXiv:2406.04093, section 2.3; its use for unlearning, Y. Jang
et al. (2026), arXiv:2602.18505. Departures: 1. the scale is one number, not one a dimension, so
that directions keep their angles and rare units are not blown up; since it is one number, E and D
act on raw differences as on standardised ones. 2. exactly the k places of `lax.top_k` are kept; a
threshold keeps more where values are equal.

| input                                 | result                                               |
|---------------------------------------|------------------------------------------------------|
| equal pre-activations                 | still at most k latents are not 0, the first of them |
| a token that nothing is active for    | z = 0, x' = b_pre                                    |
| activations of another width          | ValueError                                           |
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array


class Dictionary(NamedTuple):
    """What is trained."""

    encoder: Array  # E (m, d)
    decoder: Array  # D (d, m), columns of length 1
    before: Array  # b_pre (d,)
    latent: Array  # b_lat (m,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """A trained dictionary with the statistics of what it was trained on; a pytree.

    Attributes:
      dictionary: E, D, b_pre and b_lat, on standardised activations.
      mean: (T, d) of each type of token: T = 2, the class token and the patches, or T = 1.
      scale: (T,) root mean square length per dimension around the mean; 1 if nothing varies.
      k: how many latents may be active; static.
    """

    dictionary: Dictionary
    mean: Array
    scale: Array
    k: int = dataclasses.field(metadata={"static": True})

    @property
    def class_token(self) -> bool:
        """Whether the first token is one of its own type."""
        return self.mean.shape[-2] == 2


def top_k(values: Array, k: int) -> Array:
    """The k largest entries of the last axis in their places, the others 0; of equals the first.

    Args:
      values: (..., m) float, at least 0.
      k: in [1, m], static.

    Example:
      >>> print(top_k(jnp.array([1.0, 3.0, 3.0, 3.0]), 2))
      [0. 3. 3. 0.]
    """
    largest, places = jax.lax.top_k(values, k)
    return jnp.put_along_axis(jnp.zeros_like(values), places, largest, axis=-1, inplace=False)


def linear_codes(dictionary: Dictionary, x: Array) -> Array:
    """E (x - b_pre), neither biased nor sparse: (..., m) of standardised x (..., d)."""
    before = dictionary.before.reshape((1,) * (x.ndim - 1) + (-1,))
    return (x - before) @ dictionary.encoder.T


def rectified_codes(dictionary: Dictionary, x: Array) -> Array:
    """relu(E (x - b_pre) + b_lat), not yet sparse: (..., m) of standardised x (..., d)."""
    codes = linear_codes(dictionary, x)
    return jax.nn.relu(codes + dictionary.latent.reshape((1,) * (x.ndim - 1) + (-1,)))


def from_codes(dictionary: Dictionary, z: Array) -> Array:
    """D z + b_pre: standardised (..., d) of codes (..., m)."""
    return z @ dictionary.decoder.T + dictionary.before.reshape((1,) * (z.ndim - 1) + (-1,))


def standardise(sae: SparseAutoencoder, hidden: Array) -> Array:
    """(a - mean) / scale by the type of each token: (n, t, d)."""
    mean, scale = _by_token(sae, hidden)
    return (hidden - mean) / scale


def unstandardise(sae: SparseAutoencoder, x: Array) -> Array:
    """The inverse of `standardise`."""
    mean, scale = _by_token(sae, x)
    return scale * x + mean


def _by_token(sae: SparseAutoencoder, hidden: Array) -> tuple[Array, Array]:
    """Mean (1, t, d) and scale (1, t, 1)."""
    if hidden.ndim != 3 or hidden.shape[-1] != sae.mean.shape[-1]:
        raise ValueError(
            f"sparse autoencoder: expected hidden (n, t, {sae.mean.shape[-1]}), the width that it "
            f"was trained on, got {hidden.shape}. Is it another network's?"
        )
    types = jnp.minimum(jnp.arange(hidden.shape[1]), sae.mean.shape[0] - 1)
    mean, scale = jnp.asarray(sae.mean), jnp.asarray(sae.scale)
    return mean[types][None], scale[types][None, :, None]


def encode(sae: SparseAutoencoder, hidden: Array) -> Array:
    """z = TopK_k( relu( E (x - b_pre) + b_lat ) ): (n, t, m), at most k not 0 for a token."""
    return top_k(rectified_codes(sae.dictionary, standardise(sae, hidden)), sae.k)


def reconstruct(sae: SparseAutoencoder, hidden: Array) -> Array:
    """What k latents say of each token: (n, t, d), in the unit of the activations."""
    return unstandardise(sae, from_codes(sae.dictionary, encode(sae, hidden)))
