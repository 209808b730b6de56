"""Nearest class mean on frozen features: sums that forget an example by subtracting it.

    z = phi / |phi|,    m_c = sum_{i in c} z_i / n_c,    predict argmin_c |z - m_c|^2_{Sigma_c^-1}

What is known of the data are sums and counts, so that an example or a class leaves exactly, in O(d)
(O(d^2) with covariances). The encoder that made phi is outside of this: if it was trained on the
example, or on a near duplicate, nothing is forgotten in feature space. A published mean is data
too: with n_c = 1 it *is* the example; see `publish`.

Janson et al. (2022), "A Simple Baseline that Questions the Use of Pretrained-Models in Continual
Learning", arXiv:2210.04428; covariance="shared" is the linear discriminant, "class" is FeCAM
(Goswami et al. 2023, arXiv:2309.14062). The variant with ridge on random features (RanPAC) is
`analytic_head` on `random_features`. Departures: 1. Sums are pairs of floats (`pairs`). 2. The
second moments are kept for each class, so that a class leaves whole with "shared" as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.streams import is_traced
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.method import exact
from jaxunlearn.methods.exact.analytic_gram import solve
from jaxunlearn.methods.exact.pairs import Pair, add, pair, product, scale, value
from jaxunlearn.methods.exact.row_checks import check_rows
from jaxunlearn.typing import Array, Key, check_key

COVARIANCES = ("none", "shared", "class")
_FOREIGN = 0.1  # of what was removed last: more than this left of nothing was never all of it


class MeanState(NamedTuple):
    """Sums over what was learnt and not forgotten; a pytree."""

    sum: Pair  # (d, C) sum_i w_i z_i of each class
    second: Pair  # (C, d, d) sum_i w_i z_i z_i^T, or (0, d, d) without covariances
    count: Array  # (C,) float, weight of the rows; a class with 0 is never predicted
    status: Array  # [] int32, a `linalg.solution.Solved`


class NearestMean(NamedTuple):
    """Pure functions on a `MeanState`; see `nearest_mean`."""

    init: Callable[..., MeanState]  # (features, classes, dtype=None)
    learn: Callable[..., MeanState]  # (state, x, y, weight=None)
    forget: Callable[..., MeanState]
    forget_class: Callable[[MeanState, Any], MeanState]  # (state, c)
    merge: Callable[[MeanState, MeanState], MeanState]
    means: Callable[[MeanState], Array]  # (C, d)
    linear_head: Callable[[MeanState], tuple[Array, Array]]  # (W (d, C), b (C,))
    scores: Callable[[MeanState, Array], Array]  # (state, x) -> (n, C), larger is nearer
    predict: Callable[[MeanState, Array], Array]  # (state, x) -> (n,) int
    publish: Callable[..., Array]  # (state, key, noise_multiplier=) -> (C, d)
    guarantee: str


def nearest_mean(
    *,
    normalise: bool = True,
    normalise_mean: bool = False,
    covariance: str = "none",
    shrinkage: tuple[float, float] = (1.0, 0.0),
    correlation: bool = False,
) -> NearestMean:
    """argmin_c (z - m_c)^T Sigma_c^-1 (z - m_c) of class means that can forget.

    Args:
      normalise: z = x / |x|; a row of zeros stays zeros. False takes x as it is.
      normalise_mean: m_c / |m_c|, the cosine prototype of SimpleCIL.
      covariance: "none" (Sigma = I), "shared" (one, within classes), "class" (one each).
      shrinkage: (a, b) >= 0, Sigma + a v I + b u (1 - I), with v the mean of the diagonal and u
        that of the other entries. FeCAM: (1, 1). With covariances a > 0.
      correlation: Sigma_ij / sqrt(Sigma_ii Sigma_jj) after shrinking, as FeCAM does, so that
        classes of different spread can be compared. Only with "class".

    Returns:
      A `NearestMean`:

      `init(d, C, dtype=None)`; `learn`, `forget(state, x, y, weight=None)`: x (n, d), y (n,)
        integer labels in [0, C), weight (n,) >= 0, 0 is padding; `forget_class(state, c)` needs no
        example; `merge(a, b)`; `means(state)`: (C, d), zeros for a class without rows.
      `linear_head(state)`: (W, b) with argmax z W + b the same prediction; not with "class".
      `scores(state, x)`: minus the squared distances; a class without rows gets the least float.
      `publish(state, key, noise_multiplier=s)`: means plus normal noise of deviation s 2/n_c, the
        Gaussian mechanism for one example of unit norm replaced by another.

      All are traceable.

    Raises:
      ValueError: constants out of range; shapes, labels, NaN; rows that were never learnt, as far
        as that shows (a negative count, or something left when a count is 0). In a trace:
        `state.status` INDEFINITE, and the state stays as it was from then on.

    | situation                          | result                                                |
    |------------------------------------|-------------------------------------------------------|
    | `forget` rows that were learnt     | the state of the other rows: 1e-12 in float64         |
    | any order, any batches             | the same state, to rounding                           |
    | a class without rows               | never predicted                                       |
    | `forget_class(c)`                  | no row of another class changes from right to wrong   |
    | all classes but one forgotten      | that one is always predicted                          |
    | a class of one row, covariances    | its Sigma is the shrinkage alone                      |
    | no row at all                      | class 0; every score is the least float               |

    `forget_class` is monotone with covariance "none" and "class"; a shared one changes with it.

    Cost: n d for a request (n d^2 for each class with covariances); memory 2 C d (2 C d^2).

    Source: arXiv:2210.04428; departures in the module.

    Example:
      >>> nearest = nearest_mean()
      >>> state = nearest.init(2, 2)
      >>> state = nearest.learn(state, jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([0, 1]))
      >>> print(nearest.predict(state, jnp.array([[1.0, 0.2]])))
      [0]
    """
    if covariance not in COVARIANCES:
        raise ValueError(
            f"nearest_mean: covariance must be among {COVARIANCES}, got {covariance!r}."
        )
    a, b = shrinkage
    if not (a >= 0 and b >= 0) or (covariance != "none" and a == 0):
        raise ValueError(
            "nearest_mean: expected shrinkage >= 0, and the first > 0 with covariances, "
            f"got {shrinkage}: a class with fewer rows than features has a singular one."
        )
    if correlation and covariance != "class":
        raise ValueError(f"nearest_mean: correlation is of covariance='class', not {covariance!r}.")
    compiled = jax.jit(partial(_change, normalise=normalise), static_argnames="sign")

    def init(features: int, classes: int, dtype: Any = None) -> MeanState:
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        kept = 0 if covariance == "none" else classes
        return MeanState(
            pair(jnp.zeros((features, classes), dtype)),
            pair(jnp.zeros((kept, features, features), dtype)),
            jnp.zeros(classes, dtype),
            jnp.int32(Solved.CONVERGED),
        )

    def moved(
        verb: str, sign: int, state: MeanState, x: Array, y: Array, weight: Array | None
    ) -> MeanState:
        x, y, dtype = jnp.asarray(x), jnp.asarray(y), state.count.dtype
        weight = jnp.ones(x.shape[:1]) if weight is None else jnp.asarray(weight)
        if y.ndim != 1:
            raise ValueError(f"nearest_mean.{verb}: expected integer labels (n,), got {y.shape}.")
        check_rows(f"nearest_mean.{verb}", x, y, weight, *state.sum.high.shape)
        new = compiled(state, x.astype(dtype), y, weight.astype(dtype), sign=sign)
        if not is_traced(new) and int(new.status) != Solved.CONVERGED:
            raise ValueError(
                f"nearest_mean.{verb}: more would be removed than was learnt (a negative count, or "
                "something left of a class without rows). Rows can be forgotten once, with the "
                "features and labels they were learnt with."
            )
        return new

    def learn(state: MeanState, x: Array, y: Array, weight: Array | None = None) -> MeanState:
        return moved("learn", 1, state, x, y, weight)

    def forget(state: MeanState, x: Array, y: Array, weight: Array | None = None) -> MeanState:
        return moved("forget", -1, state, x, y, weight)

    def forget_class(state: MeanState, c: int | Array) -> MeanState:
        second = state.second
        if covariance != "none":
            second = jax.tree.map(lambda s: s.at[c].set(0), second)
        return state._replace(
            sum=jax.tree.map(lambda s: s.at[:, c].set(0), state.sum),
            second=second,
            count=state.count.at[c].set(0),
        )

    def merge(one: MeanState, other: MeanState) -> MeanState:
        return MeanState(
            add(one.sum, other.sum),
            add(one.second, other.second),
            one.count + other.count,
            jnp.maximum(one.status, other.status),
        )

    def means(state: MeanState) -> Array:
        m = _means(state)
        return _unit(m) if normalise_mean else m

    def metric(state: MeanState) -> Array:
        """Sigma, (C, d, d) or (1, d, d), shrunk."""
        m = _means(state)
        within = value(state.second) - state.count[:, None, None] * m[:, :, None] * m[:, None]
        count = state.count[:, None, None]
        if covariance == "shared":
            within, count = within.sum(axis=0, keepdims=True), count.sum(axis=0, keepdims=True)
        return jax.vmap(partial(_shrink, a=a, b=b, correlation=correlation))(
            within / jnp.maximum(count, 1)
        )

    def linear_head(state: MeanState) -> tuple[Array, Array]:
        if covariance == "class":
            raise ValueError(
                "nearest_mean.linear_head: a covariance for each class makes a quadratic rule; "
                "use scores, or covariance='shared'."
            )
        m = means(state)
        w = 2 * (m.T if covariance == "none" else solve(_factor(metric(state)[0]), m.T))
        bias = -0.5 * jnp.einsum("cd,dc->c", m, w)
        return w, jnp.where(state.count > 0, bias, jnp.finfo(w.dtype).min)

    def scores(state: MeanState, x: Array) -> Array:
        z = jnp.asarray(x, state.count.dtype)
        z, m = _unit(z) if normalise else z, means(state)

        def one(item: tuple[Array, Array | None]) -> Array:
            away = z - item[0][None]
            if item[1] is None:
                return -jnp.square(away).sum(axis=1)
            return -jnp.square(one_by_one(_forward)(_factor(item[1]), away.T)).sum(axis=0)

        if covariance == "none":
            found = jax.lax.map(lambda centre: one((centre, None)), m)
        else:
            sigma = metric(state)
            sigma = jnp.broadcast_to(sigma, (len(m), *sigma.shape[1:]))
            found = jax.lax.map(one, (m, sigma))
        return jnp.where(state.count[None] > 0, found.T, jnp.finfo(found.dtype).min)

    def publish(state: MeanState, key: Key, *, noise_multiplier: float) -> Array:
        check_key("nearest_mean.publish", key)
        if not normalise or normalise_mean or not noise_multiplier > 0:
            raise ValueError(
                "nearest_mean.publish: the sensitivity 2/n_c is that of means of unit rows; "
                "expected normalise=True, normalise_mean=False and noise_multiplier > 0, got "
                f"{normalise}, {normalise_mean} and {noise_multiplier}."
            )
        m = _means(state)
        deviation = noise_multiplier * 2 / jnp.maximum(state.count, 1)[:, None]
        noisy = m + deviation * jax.random.normal(key, m.shape, m.dtype)
        return jnp.where(state.count[:, None] > 0, noisy, 0)

    def predict(state: MeanState, x: Array) -> Array:
        return scores(state, x).argmax(axis=1)

    return NearestMean(
        init, learn, forget, forget_class, merge, means, linear_head, scores, predict, publish,
        exact(1e-12),
    )  # fmt: skip


def _change(
    state: MeanState, x: Array, y: Array, weight: Array, *, sign: int, normalise: bool
) -> MeanState:
    """The state with the rows added (sign 1) or taken away (-1)."""
    z = _unit(x) if normalise else x
    member = jax.nn.one_hot(y, state.count.size, dtype=z.dtype) * weight[:, None]
    sums, second = product(z, member), state.second
    if len(second.high):
        own = jax.lax.map(lambda w: product(jnp.sqrt(w)[:, None] * z), member.T)
        second = add(second, scale(own, sign))
    count = state.count + sign * member.sum(axis=0)
    total, gone = add(state.sum, scale(sums, sign)), count == 0
    left, removed = (jnp.abs(s.high).max(axis=0) for s in (total, sums))
    good = (count >= 0).all() & jnp.isfinite(total.high).all()
    good &= (sign > 0) | (~gone | (left <= _FOREIGN * removed)).all()
    new = MeanState(
        jax.tree.map(lambda s: jnp.where(gone[None], 0, s), total),
        jax.tree.map(lambda s: jnp.where(gone[: len(s), None, None], 0, s), second),
        count,
        state.status,
    )
    status = jnp.where(good, state.status, Solved.INDEFINITE).astype(jnp.int32)
    kept = jax.tree.map(lambda n, o: jnp.where(status == Solved.CONVERGED, n, o), new, state)
    return kept._replace(status=status)


def _means(state: MeanState) -> Array:
    counts = jnp.where(state.count > 0, state.count, 1)
    return (value(state.sum) / counts[None]).T


def _unit(z: Array) -> Array:
    """Rows of length 1; rows of zeros stay as they are."""
    scaled = z / jnp.where(jnp.abs(z).max(axis=1) > 0, jnp.abs(z).max(axis=1), 1)[:, None]
    length = jnp.linalg.norm(scaled, axis=1)
    return scaled / jnp.where(length > 0, length, 1)[:, None]


def _shrink(sigma: Array, *, a: float, b: float, correlation: bool) -> Array:
    """Sigma + a v I + b u (1 - I); of correlations if asked. The identity where Sigma is 0."""
    d, eye = len(sigma), jnp.eye(len(sigma), dtype=sigma.dtype)
    v = jnp.trace(sigma) / d
    u = (sigma.sum() - jnp.trace(sigma)) / max(d * d - d, 1)
    shrunk = sigma + a * v * eye + b * u * (1 - eye)
    shrunk = jnp.where(v > 0, shrunk, eye)
    root = jnp.sqrt(jnp.diagonal(shrunk))
    return shrunk / (root[:, None] * root[None]) if correlation else shrunk


def _factor(sigma: Array) -> Array:
    return one_by_one(jnp.linalg.cholesky)(sigma)


def _forward(lower: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(lower, b, lower=True)
