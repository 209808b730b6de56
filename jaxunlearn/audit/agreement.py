"""How alike are the predictions? Classical agreement measures against an ensemble of oracles.

For two predictive distributions p, q over C classes, with r = (p + q) / 2:

    jensen_shannon         1/2 KL(p || r) + 1/2 KL(q || r)       nats, in [0, ln 2]
    activation_distance    |p - q|_2                             in [0, sqrt 2]
    prediction_agreement   1[argmax p = argmax q]                0 or 1

A method model is compared with *each* oracle, averaged over examples, then over oracles: one number
per method model. (The mean distribution of the oracles would be the wrong reference: an ensemble is
calmer than any model in it.) The *floor* is the same number between two disjoint halves of the
oracles, which is what perfect unlearning scores.

    tug_of_war = prod_{S in {forget, retain, test}} (1 - |acc_method(S) - acc_oracle(S)|)

Sources: activation distance, A. Golatkar et al. (2021), arXiv:2012.13431; Jensen-Shannon
divergence, V. S. Chundawat et al. (2023), arXiv:2205.08096; tug-of-war (in [0, 1]), K. Zhao et al.
(2024), arXiv:2406.01257.
Departures: 1. an ensemble of oracles and a floor, where the papers use one retrained model;
2. natural logarithms.

The measures and `agreement` are jax.numpy: they can be jitted, vmapped and sharded, in the dtype of
the logits (at least float32). Everything else is NumPy on the host.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from .errors import TooFew

Measure = Callable[[Array, Array], Array]


def jensen_shannon(p: Array, q: Array) -> Array:
    """Jensen-Shannon divergence of distributions on the last axis.

    Args:
        p, q: (..., C) probabilities, same shape; a probability may be 0.

    Returns:
        (...,) nats, in [0, ln 2]; 0 when equal, ln 2 when disjoint.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(jensen_shannon(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))), 4)
        0.6931
    """
    middle = (p + q) / 2

    def divergence(a):
        ratio = jnp.where(a > 0, a / jnp.where(middle > 0, middle, 1), 1)
        return jnp.sum(a * jnp.log(ratio), axis=-1)

    return jnp.maximum((divergence(p) + divergence(q)) / 2, 0)


def activation_distance(p: Array, q: Array) -> Array:
    """Euclidean distance between distributions on the last axis, in [0, sqrt 2].

    Args:
        p, q: (..., C) probabilities, same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(activation_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))), 4)
        1.4142
    """
    return jnp.sqrt(jnp.sum((p - q) ** 2, axis=-1))


def prediction_agreement(p: Array, q: Array) -> Array:
    """1 where both predict the same class, else 0; the first class wins a tie.

    Args:
        p, q: (..., C) probabilities or logits, same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> float(prediction_agreement(jnp.array([0.9, 0.1]), jnp.array([0.6, 0.4])))
        1.0
    """
    return (jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)).astype(p.dtype)


def agreement(measure: Measure, logits: ArrayLike, oracle_logits: ArrayLike) -> Array | None:
    """Mean of `measure` between each model and all the oracles.

        a_i = mean_{oracles o} mean_{x} measure(p_i(x), p_o(x))

    Args:
        measure: one of the functions above, or any (..., C), (..., C) -> (...,).
        logits: (M, n, C) of the models to be judged.
        oracle_logits: (N, n, C), N >= 1, on the same examples.

    Returns:
        (M,) array in the unit of the measure; None when there is no example. A model with
        non-finite probabilities gets NaN, and an oracle with such makes all of them NaN.

    Raises:
        TooFew: no oracle. ValueError: shapes that do not match.

    Cost: M N n C operations; memory that of the oracles' outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> z = jnp.array([[[2.0, 0.0]], [[0.0, 2.0]]])
        >>> agreement(prediction_agreement, z, z).tolist()
        [0.5, 0.5]
    """
    z, o = jnp.asarray(logits), jnp.asarray(oracle_logits)
    if z.ndim < 3 or o.ndim != z.ndim or z.shape[1:] != o.shape[1:]:
        raise ValueError(
            "agreement: expected logits (models, n, C) and oracle_logits (oracles, n, C) on the "
            f"same examples, got {z.shape} and {o.shape}."
        )
    if o.shape[0] == 0:
        raise TooFew("agreement: no oracle to compare with.")
    if z.size == 0:
        return None
    return _mean_over_pairs(measure, z, o)


@partial(jax.jit, static_argnames="measure")
def _mean_over_pairs(measure: Measure, logits: Array, oracle_logits: Array) -> Array:
    kind = jnp.promote_types(logits.dtype, jnp.float32)
    oracles = jax.nn.softmax(oracle_logits.astype(kind), axis=-1)

    def against_all(one):
        p = jax.nn.softmax(one.astype(kind), axis=-1)
        mean = jnp.mean(jax.lax.map(lambda q: jnp.mean(measure(p, q)), oracles))
        return jnp.where(jnp.all(jnp.isfinite(p)), mean, jnp.nan)

    means = jax.lax.map(against_all, logits)
    return jnp.where(jnp.all(jnp.isfinite(oracles)), means, jnp.nan)


def agreement_floor(measure: Measure, oracle_logits: ArrayLike) -> Array | None:
    """What a retrained model scores: `agreement` of one half of the oracles with the other half.

    Args:
        measure: as `agreement`.
        oracle_logits: (N, n, C), N >= 2; the first N // 2 oracles are judged by the rest.

    Returns:
        (N // 2,) array, or None when there is no example.

    Raises:
        TooFew: fewer than two oracles.

    Example:
        >>> import jax.numpy as jnp
        >>> agreement_floor(activation_distance, jnp.zeros((4, 3, 2))).tolist()
        [0.0, 0.0]
    """
    first, second = halves(oracle_logits)
    return agreement(measure, first, second)


def halves(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Split the leading axis (oracles) in two disjoint groups: the first N // 2, and the rest.

    Seeds are exchangeable, so a fixed split is as good as a random one and needs no seed.

    Example:
        >>> [part.tolist() for part in halves([1, 2, 3])]
        [[1], [2, 3]]
    """
    values = np.asarray(values)
    if values.ndim == 0 or len(values) < 2:
        raise TooFew(
            f"halves: a floor needs at least 2 oracles, got {len(np.atleast_1d(values))}. "
            "Train more oracles."
        )
    return values[: len(values) // 2], values[len(values) // 2 :]


def tug_of_war(
    accuracies: Mapping[str, ArrayLike | None], oracle_accuracies: Mapping[str, ArrayLike | None]
) -> np.ndarray | None:
    """Closeness to retraining in accuracy, multiplied over the parts.

        prod_S (1 - |acc_i(S) - mean_o acc_o(S)|)

    Most methods land in 0.9 to 1: read it beside its floor, the same with one half of the oracles
    as the method and the other as the oracles.

    Args:
        accuracies: {part: (M,) in [0, 1]}; usually forget, retain and test.
        oracle_accuracies: {part: (N,)}, the same parts.

    Returns:
        (M,) float64 in [0, 1], 1 = the accuracies of retraining on all parts. None when a part is
        None (without examples): the product is then undefined.

    Raises:
        ValueError: different parts, or none.

    Example:
        >>> tug_of_war({"forget": [0.5], "test": [0.9]}, {"forget": [0.0, 0.0], "test": [0.9, 0.9]})
        array([0.5])
    """
    if not accuracies or set(accuracies) != set(oracle_accuracies):
        raise ValueError(
            f"tug_of_war: expected the same parts on both sides, got {sorted(accuracies)} and "
            f"{sorted(oracle_accuracies)}."
        )
    product = np.ones(1)
    for part, values in accuracies.items():
        reference = oracle_accuracies[part]
        if values is None or reference is None:
            return None
        gap = np.abs(np.asarray(values, np.float64) - np.mean(np.asarray(reference, np.float64)))
        product = product * (1 - gap)
    return product
