"""Training a sparse autoencoder: the mean square of what k latents leave over, and of dead ones.

    loss = |e|^2 / d  +  c |stop(e) - D z_dead|^2 / d,         e = x - x'
    z_dead = TopK_{d/2} of relu(E (x - b_pre) + b_lat) among the latents that no longer fire

by Adam from E = D^T, every column of D put back on the unit sphere after each step. A latent that
has not fired for a while gets no gradient from e; the second term asks such dead latents to explain
what the others left over.

Sources: L. Gao et al. (2024), arXiv:2406.04093, section 2.4 and appendix A.2; Y. Jang et al.
(2026), arXiv:2602.18505, of whose training only the result is published, so that this is a
*reconstruction*. Departure: deadness is counted in steps, not in tokens.

| input                                        | result                                         |
|----------------------------------------------|------------------------------------------------|
| constant activations                         | scale 1, explained NaN                         |
| a class token (`class_token=True`)           | statistics of its own; training reads patches  |
| rows of weight 0                             | count for nothing                              |
| NaN or Inf among the activations             | ValueError; inside a trace `status` DIVERGED   |
| no rows                                      | TooFew                                         |
| steps = 0                                    | the dictionary as drawn                        |
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import InMemory
from jaxunlearn.losses import weighted_mean
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Key, check_between

from .errors import TooFew
from .sparse_autoencoder import (
    Dictionary,
    SparseAutoencoder,
    from_codes,
    rectified_codes,
    top_k,
)


class SparseAutoencoderInfo(NamedTuple):
    """How well the dictionary describes the tokens that it was trained on."""

    losses: Array  # (steps,) float32, NaN from where the run diverged
    status: Array  # [] int32, a `jaxunlearn.training.Status`
    explained: Array  # [] float, 1 - |x - x'|^2 / |x|^2, at most 1; NaN if nothing varies
    dead: Array  # [] float in [0, 1], share of latents that are active for no token


def unit_columns() -> optax.GradientTransformation:
    """u <- (W + u) / |W + u| - W for every column of every leaf W (d, m): last in a chain.

    Example:
      >>> w, tx = jnp.eye(2), unit_columns()
      >>> u, _ = tx.update(jnp.array([[2.0, 3.0], [0.0, 3.0]]), tx.init(w), w)
      >>> print(np.asarray(w + u).round(2))
      [[1.  0.6]
       [0.  0.8]]
    """

    def back(update: Array, leaf: Array) -> Array:
        moved = leaf + update
        length = jnp.linalg.norm(moved, axis=-2, keepdims=True)
        return moved / jnp.maximum(length, jnp.finfo(length.dtype).tiny) - leaf

    return optax.stateless(lambda updates, params: jax.tree.map(back, updates, params))


@lru_cache
def _optimiser(learning_rate: float) -> optax.GradientTransformation:
    def decoder_only(dictionary: Dictionary) -> Dictionary:
        return dictionary._replace(encoder=False, decoder=True, before=False, latent=False)  # type: ignore[arg-type]

    on_the_decoder = optax.masked(unit_columns(), decoder_only)
    return optax.chain(optax.adam(learning_rate), on_the_decoder)


def sparse_objective(k: int, *, dead_after: int = 100, auxiliary: float = 1 / 32) -> Objective:
    """The loss at the top of this module; its state (m,) int32 counts steps since a latent fired.

    Args:
      k: active latents of a token.
      dead_after: steps without firing that make a latent dead.
      auxiliary: c >= 0.
    """
    return Objective(_never_fired, bind(_sparse_loss, k, dead_after, auxiliary))


def _never_fired(dictionary: Dictionary) -> Array:
    return jnp.zeros(dictionary.latent.shape, jnp.int32)


def _sparse_loss(
    k: int,
    dead_after: int,
    auxiliary: float,
    dictionary: Dictionary,
    batches: Batches,
    age: Array,
    key: Key,
) -> tuple[Array, Array]:
    del key
    x = batches["data"]["x"]
    active = rectified_codes(dictionary, x)
    z = top_k(active, k)
    error = x - from_codes(dictionary, z)
    dead = age >= dead_after
    spare = top_k(jnp.where(dead[None], active, 0), min(len(age), max(1, x.shape[-1] // 2)))
    left = jax.lax.stop_gradient(error) - spare @ dictionary.decoder.T
    each = jnp.square(error).mean(-1) + auxiliary * dead.any() * jnp.square(left).mean(-1)
    counts = batches["data"].get("weight", jnp.ones(len(x))) > 0
    fired = ((z > 0) & counts[:, None]).any(axis=0)
    return weighted_mean(each, batches["data"]), jnp.where(fired, 0, age + 1)


def train_sparse_autoencoder(
    hidden: Array,
    *,
    key: Key,
    k: int = 16,
    latents: int | None = None,
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    dead_after: int = 100,
    auxiliary: float = 1 / 32,
    class_token: bool = False,
    weight: Array | None = None,
) -> tuple[SparseAutoencoder, SparseAutoencoderInfo]:
    """argmin over (E, D, b_pre, b_lat) of the mean of |x - x'|^2 / d over tokens, |D_j| = 1.

    Args:
      hidden: (n, t, d) float, `model.hidden` of one model, or (n, d) for one token an example.
      key: typed key; draws the decoder and orders the tokens.
      k: in [1, latents], active latents of a token; 16 and 32 of 768 are published.
      latents: m >= 1; default d.
      steps: >= 0, of Adam.
      batch_size: tokens a step.
      learning_rate: of Adam.
      dead_after: steps without firing after which a latent counts as dead.
      auxiliary: c, the weight of what dead latents are asked to explain; 0 leaves them alone.
      class_token: whether the first token is one; it then keeps statistics of its own, and the
        dictionary is trained on the other tokens.
      weight: (n,) >= 0, how often an example counts; 0 is padding.

    Returns:
      `(sae, info)`; traceable, `jax.vmap` over (hidden, key) trains many.

    Raises:
      ValueError: see the table of the module; k or sizes out of range; no patch beside the class
        token.
      TooFew: no rows, or (where it can be seen) none of positive weight.

    Cost: `steps` gradients of batch_size x d x m products, and one pass at the end.

    Source: see the module.

    Example:
      >>> hidden = jax.random.normal(jax.random.key(0), (64, 1, 4))
      >>> train = jax.jit(lambda h, key: train_sparse_autoencoder(h, key=key, k=2, steps=3))
      >>> sae, info = train(hidden, jax.random.key(1))
      >>> sae.dictionary.encoder.shape, info.losses.shape
      ((4, 4), (3,))
    """
    hidden = _as_tokens(hidden, class_token, weight)
    n, t, d = hidden.shape
    m = d if latents is None else latents
    check_between("train_sparse_autoencoder", "latents", m, at_least=1)
    check_between("train_sparse_autoencoder", "k", k, at_least=1, at_most=m)
    check_between("train_sparse_autoencoder", "batch_size", batch_size, at_least=1)
    check_between("train_sparse_autoencoder", "learning_rate", learning_rate, above=0)
    check_between("train_sparse_autoencoder", "dead_after", dead_after, at_least=1)
    check_between("train_sparse_autoencoder", "auxiliary", auxiliary, at_least=0)
    weight = jnp.ones(n, hidden.dtype) if weight is None else jnp.asarray(weight, hidden.dtype)
    mean, scale, varies = _statistics(hidden, weight, class_token)
    draw_key, fit_key = jax.random.split(key)
    decoder = jax.random.normal(draw_key, (d, m), hidden.dtype)
    decoder = decoder / jnp.linalg.norm(decoder, axis=0, keepdims=True)
    start = Dictionary(decoder.T, decoder, jnp.zeros(d, hidden.dtype), jnp.zeros(m, hidden.dtype))
    first = int(class_token)
    tokens = (hidden[:, first:] - mean[-1][None, None]) / scale[-1]
    columns = {"x": tokens.reshape(-1, d), "weight": jnp.repeat(weight, t - first)}
    data = InMemory(columns, batch_size)
    objective = sparse_objective(k, dead_after=dead_after, auxiliary=auxiliary)
    fitted = fit(objective, _optimiser(float(learning_rate)), start, data, key=fit_key, steps=steps)
    explained, dead = _quality(fitted.params, data, k)
    info = SparseAutoencoderInfo(
        fitted.info.losses, fitted.info.status, jnp.where(varies, explained, jnp.nan), dead
    )
    return SparseAutoencoder(fitted.params, mean, scale, k), info


def _as_tokens(hidden: Array, class_token: bool, weight: Array | None) -> Array:
    hidden = jnp.asarray(hidden)
    hidden = hidden[:, None] if hidden.ndim == 2 else hidden
    where = "train_sparse_autoencoder"
    if hidden.ndim != 3 or hidden.shape[1] <= int(class_token) or hidden.shape[2] == 0:
        asked = "a class token and at least one patch" if class_token else "at least one token"
        raise ValueError(
            f"{where}: expected hidden (n, t, d) with {asked}, got {hidden.shape}. "
            "model.hidden(params, batch) gives it."
        )
    if weight is not None and jnp.shape(weight) != hidden.shape[:1]:
        raise ValueError(
            f"{where}: expected weight of shape ({len(hidden)},), one an example, got "
            f"{jnp.shape(weight)}."
        )
    counts = None if weight is None or is_traced(weight) else np.asarray(weight) > 0
    if len(hidden) == 0 or (counts is not None and not counts.any()):
        raise TooFew(f"{where}: no example of positive weight. There is nothing to learn from.")
    if not jnp.issubdtype(hidden.dtype, jnp.floating) or jnp.finfo(hidden.dtype).bits < 32:
        hidden = hidden.astype(jnp.float32)
    if not is_traced((hidden, jnp.zeros(()))):
        read = hidden if counts is None else hidden[counts]
        if not jnp.isfinite(read).all():
            raise ValueError(
                f"{where}: hidden holds NaN or Inf. Leave this model out: its outputs are not "
                "finite either."
            )
    return hidden


def _statistics(hidden: Array, weight: Array, class_token: bool) -> tuple[Array, Array, Array]:
    """Mean (T, d) and scale (T,) of each type of token, and whether the patches vary."""
    kinds = (hidden[:, :1], hidden[:, 1:]) if class_token else (hidden,)
    means, scales, varies = [], [], jnp.array(False)
    for a in kinds:
        a = jnp.where(weight[:, None, None] > 0, a, 0)
        share = weight / weight.sum() / a.shape[1]
        mean = jnp.einsum("n,ntd->d", share, a)
        spread, size = (
            jnp.sqrt(jnp.einsum("n,ntd->", share, jnp.square(v)) / a.shape[2])
            for v in (a - mean[None, None], a)
        )
        varies = spread > 100 * jnp.finfo(a.dtype).eps * size
        means.append(mean)
        scales.append(jnp.where(varies, spread, 1))
    return jnp.stack(means), jnp.stack(scales), varies


def _quality(dictionary: Dictionary, data: InMemory, k: int) -> tuple[Array, Array]:
    """Explained variance and the share of dead latents, in one pass over the tokens."""

    def add(sums: tuple, index: Array) -> tuple:
        batch = data.batch(index)
        x, w = batch["x"], batch["weight"]
        z = top_k(rectified_codes(dictionary, x), k)
        missed, total, fired = sums
        missed += jnp.vdot(w, jnp.square(x - from_codes(dictionary, z)).sum(-1))
        total += jnp.vdot(w, jnp.square(x).sum(-1))
        return (missed, total, fired | ((z > 0) & (w > 0)[:, None]).any(axis=0)), None

    zero = jnp.zeros((), dictionary.before.dtype)
    start = zero, zero, jnp.zeros(dictionary.latent.shape, bool)
    (missed, total, fired), _ = jax.lax.scan(add, start, jnp.arange(data.num_batches))
    return 1 - missed / total, 1 - fired.mean()
