"""RMIA: is the model surer of x than of other examples, beyond what x explains by itself?

With p(. | theta) the probability of the label, z an example of the population (held out from all
models) and p(.) the same probability averaged over reference models,

    LR(x, z) = [ p(x | theta) / p(x) ] / [ p(z | theta) / p(z) ]
    score(x) = Pr_z( LR(x, z) >= gamma )                         larger = more like a member

An example that is easy for every model has a large p(x | theta) and a large p(x). Few references
are enough, one to begin with. An example that some references were trained on (*online*) has

    p(x) = 1/2 [ mean_{in} p(x | theta') + mean_{out} p(x | theta') ]

and one that none was trained on (*offline*), such as the population,

    p(x) = 1/2 [ (1 + a) mean_{out} p(x | theta') + (1 - a) ]

whose second part stands for the references that would have been trained on x, surer of it. The
rule is the same for targets and population, so that x and z are exchangeable under the null: at
gamma = 1 a point of the population then scores 1/2 on average, exactly.

In log space LR(x, z) >= gamma says r(z) <= r(x) - log gamma with r = log p(. | theta) - log p(.).
The score is thus a population attack (`population`) on r, and no (n, z) table is ever made.

Source: S. Zarifzadeh, P. Liu, R. Shokri (2024), "Low-Cost High-Power Membership Inference Attacks",
arXiv:2312.03262 (*reconstruction* from the paper's text; a = 0.3 is theirs for CIFAR-10).
Departures: 1. equality LR = gamma counts one half; 2. the offline rule for the population too.

| input                                           | result                                     |
|-------------------------------------------------|--------------------------------------------|
| no reference                                    | TooFew                                     |
| an example that all references were trained on  | NaN: nothing tells what it is like without |
| saturated models (all p equal)                  | gamma 1: 1/2; larger gamma: 0              |
| p = 0 (log p = -inf)                            | clipped at -100 nats                       |
| a model with NaN                                | NaN for that model                         |
| a reference with NaN                            | ValueError                                 |
| any `chunk`                                     | the same bits                              |
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew
from .population import population_attack
from .signals import LOG_FLOOR

OFFLINE_A = 0.3
_CHUNK_ENTRIES = 1 << 20  # probabilities of one block


def rmia(
    log_p: ArrayLike,
    log_p_population: ArrayLike,
    references: ArrayLike,
    references_population: ArrayLike,
    *,
    member: ArrayLike | None = None,
    gamma: float = 2.0,
    offline_a: float = OFFLINE_A,
    chunk: int | None = None,
) -> np.ndarray:
    """Relative membership score of every target, for every attacked model.

        Pr_z( LR(x, z) >= gamma ),   LR(x, z) = [ p(x|theta) / p(x) ] / [ p(z|theta) / p(z) ]

    Args:
        log_p: (m, n) log probability of the label (signal "loss") of n targets in m models.
        log_p_population: (m, z) the same of z held-out examples.
        references: (r, n) the same of the targets in r >= 1 reference models.
        references_population: (r, z) of the population; no reference was trained on it.
        member: (r, n) bool, whether the reference was trained on the target: online where some
            were, offline where none was. None: none was.
        gamma: at least 1; 2 and 1 are in use.
        offline_a: a in [0, 1]; smaller = members are taken to be surer.
        chunk: examples handled at once; None keeps a block near 8 MiB.

    Returns:
        (m, n) float64 in [0, 1].

    Raises:
        TooFew: no reference, no population. ValueError: shapes, gamma, offline_a, a NaN reference.
        TypeError: `member` is not boolean.

    Cost: O(r (n + z)), a sort of the population for each model; memory of a block.

    Source: S. Zarifzadeh et al. (2024), arXiv:2312.03262.

    Example:
        >>> import numpy as np
        >>> population = np.log([[0.2, 0.3, 0.4, 0.5]])
        >>> rmia(np.log([[0.9, 0.3]]), population, np.log([[0.3, 0.3]]), population, gamma=1.0)
        array([[1.   , 0.375]])
    """
    x, z = _as_log(log_p, "log_p"), _as_log(log_p_population, "log_p_population")
    own = _as_log(references, "references")
    theirs = _as_log(references_population, "references_population")
    if x.shape[1] != own.shape[1] or z.shape[1] != theirs.shape[1] or len(x) != len(z):
        raise ValueError(
            "rmia: expected log_p (m, n), log_p_population (m, z), references (r, n) and "
            f"references_population (r, z), got {x.shape}, {z.shape}, {own.shape}, {theirs.shape}."
        )
    if len(own) != len(theirs):
        raise ValueError(
            f"rmia: {len(own)} references for the targets and {len(theirs)} for the population."
        )
    if len(own) == 0:
        raise TooFew("rmia: needs at least one reference model.")
    for name, each in (("references", own), ("references_population", theirs)):
        if np.isnan(each).any():
            broken = np.flatnonzero(np.isnan(each).any(axis=1)).tolist()
            raise ValueError(f"rmia: {name} is NaN for models {broken}. Leave them out.")
    if not gamma >= 1 or not math.isfinite(gamma) or not 0 <= offline_a <= 1:
        raise ValueError(
            f"rmia: expected a finite gamma >= 1 and offline_a in [0, 1], got {gamma}, {offline_a}."
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"rmia: expected chunk >= 1 examples, or None, got {chunk}.")
    trained = _as_member(member, own.shape)
    excess = x - _log_average(own, trained, offline_a, chunk)[None]
    none = np.broadcast_to(False, theirs.shape)
    usual = z - _log_average(theirs, none, offline_a, chunk)[None]
    # a target without a reference of the other kind must not take its whole model along
    known = ~np.isnan(excess).all(axis=0)
    score = np.full(x.shape, np.nan)
    if known.any():
        shifted = excess[:, known] - math.log(gamma)
        score[:, known] = population_attack(shifted, usual, chunk=chunk)
    return score


def _log_average(log_p: np.ndarray, trained: np.ndarray, a: float, chunk: int | None) -> np.ndarray:
    """(n,) log p(x) from (r, n) references; NaN where all of them were trained on x."""
    r, n = log_p.shape
    size = chunk or max(1, _CHUNK_ENTRIES // r)
    average = np.empty(n)
    for start in range(0, n, size):
        part = slice(start, start + size)
        # examples first: each is summed by itself, in an order that no chunk changes
        p = np.exp(np.ascontiguousarray(log_p[:, part].T))
        own = np.ascontiguousarray(trained[:, part].T)
        inside, outside = own.sum(axis=1), (~own).sum(axis=1)
        p_in = np.where(own, p, 0.0).sum(axis=1) / np.maximum(inside, 1)
        p_out = np.where(own, 0.0, p).sum(axis=1) / np.maximum(outside, 1)
        offline = ((1 + a) * p_out + (1 - a)) / 2
        mean = np.where(inside > 0, (p_in + p_out) / 2, offline)
        average[part] = np.log(np.where(outside > 0, np.maximum(mean, np.exp(LOG_FLOOR)), np.nan))
    return average


def _as_log(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"rmia: expected {name} of shape (models, examples), got {values.shape}.")
    if (values > 1e-6).any():
        raise ValueError(
            f"rmia: {name} must hold log probabilities, <= 0, got {np.nanmax(values):g}."
        )
    return np.clip(values, LOG_FLOOR, 0.0)


def _as_member(member: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    if member is None:
        return np.zeros(shape, bool)
    member = np.asarray(member)
    if member.dtype != bool:
        raise TypeError(f"rmia: `member` must be boolean, got dtype {member.dtype}.")
    if member.shape != shape:
        raise ValueError(f"rmia: expected member of shape {shape}, got {member.shape}.")
    return member
