"""What an attacker reads off a model: one number per example, larger = "looks like a member".

The attacker sees the outputs p of the model and the label y, and computes one of

    loss                -(-log p_y)
    confidence          p_y
    entropy             -H(p),   H(p) = -sum_c p_c log p_c
    modified_entropy    -[ -(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c) ]
    margin              log p_y / (1 - p_y) = z_y - logsumexp_{c != y} z_c       (logit-scaled)

`entropy` does not look at the label and cannot tell confidently right from confidently wrong; the
modified entropy can. The margin is nearly Gaussian over models, which is what `lira` is built on.
Nothing here depends on who is a member: attacks on these signals are in `membership`,
`population`, `lira` and `rmia`.

Sources: modified entropy, L. Song, P. Mittal (2021), arXiv:2003.10595, Eq. 8; logit scaling,
N. Carlini et al. (2022), arXiv:2112.03570. Departures: 1. the published code of a popular benchmark
takes log p for log(1 - p) and overwrites the columns of all labels in the batch; here the equation
is what is computed; 2. log probabilities are clipped at -100 nats, margins at +-100.

| input                                   | result                                            |
|-----------------------------------------|---------------------------------------------------|
| a model with a NaN, +Inf, all-Inf logit | NaN for that model, the others untouched          |
| a logit of -Inf (a masked class)        | probability 0; the signal stays finite            |
| no example                              | (M, 0)                                            |
| any `chunk`                             | the same bits                                     |
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from .accuracy import as_outputs, margins

SCORES = ("loss", "confidence", "entropy", "modified_entropy", "margin")
LOG_FLOOR = -100.0  # nats
_CHUNK_ENTRIES = 1 << 20  # logits of one block in float64: 8 MiB, of which a few live at once


def attack_signal(
    logits: ArrayLike, labels: ArrayLike, *, score: str, chunk: int | None = None
) -> np.ndarray:
    """The attacker's number for every model and example; larger = more like a member.

    Args:
        logits: (M, n, C) any float dtype; more axes between the first and the last are allowed.
        labels: (n,) integers in [0, C); shape of `logits` without its first and last axis.
        score: "loss", "confidence", "entropy", "modified_entropy" or "margin".
        chunk: examples converted to float64 at once; None keeps a block near 8 MiB.

    Returns:
        (M, n) float64 (nats, except confidence in [0, 1]); NaN for a model with any non-finite
        distribution.

    Raises:
        ValueError: an unknown score, shapes that do not match, labels out of range, chunk < 1.

    Cost: one pass over the logits; memory that of a block and of the result.

    Source: L. Song, P. Mittal (2021), arXiv:2003.10595, for "modified_entropy".

    Example:
        >>> import numpy as np
        >>> attack_signal(np.log([[[0.75, 0.25]]]), [0], score="confidence").round(3)
        array([[0.75]])
    """
    if score not in SCORES:
        raise ValueError(f"attack_signal: score must be one of {SCORES}, got {score!r}.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"attack_signal: expected chunk >= 1 examples, or None, got {chunk}.")
    z = np.asarray(logits)
    _, y = as_outputs(z[:0], labels, "attack_signal")  # every check, and no copy
    middle, (M, C) = z.shape[1:-1], (len(z), z.shape[-1])
    z, y = z.reshape(M, y.size, C), y.reshape(y.size)
    size = chunk or max(1, _CHUNK_ENTRIES // max(1, M * C))
    signal, valid = np.empty((M, y.size)), np.ones(M, bool)
    for start in range(0, y.size, size):
        part = slice(start, start + size)
        block = z[:, part].astype(np.float64)
        broken = ~np.isfinite(block.max(axis=-1))
        valid &= ~broken.any(axis=1)
        signal[:, part] = _signal(np.where(broken[..., None], 0.0, block), y[part], score)
    signal[~valid] = np.nan
    return signal.reshape(M, *middle)


def _signal(z: np.ndarray, y: np.ndarray, score: str) -> np.ndarray:
    """(M, c, C) logits of valid distributions and (c,) labels -> (M, c)."""
    if score == "margin":
        return np.clip(margins(z, y), LOG_FLOOR, -LOG_FLOOR)
    logp = np.maximum(log_softmax(z, axis=-1), LOG_FLOOR)
    index = np.broadcast_to(y[None, :, None], (*z.shape[:-1], 1))
    logp_y = np.take_along_axis(logp, index, axis=-1)[..., 0]
    if score == "loss":
        return logp_y
    if score == "confidence":
        return np.exp(logp_y)
    p = np.exp(logp)
    if score == "entropy":
        return (p * logp).sum(axis=-1)
    with np.errstate(divide="ignore"):  # log 0, floored
        others = p * np.maximum(np.log1p(-np.minimum(p, 1.0)), LOG_FLOOR)
    np.put_along_axis(others, index, 0.0, axis=-1)
    return -np.expm1(logp_y) * logp_y + others.sum(axis=-1)
