"""Matrix factorisation by another road: dense matrices, loops over rows, `numpy.linalg.solve`.

Every objective is one weighted sum over all pairs, written out and never as a Gram matrix:

    sum_ui W_ui (T_ui - x_ui)^2 + C + sum_u l_u |p_u|^2 + sum_i l_i |q_i|^2

    explicit   W = 1 or 0           T = r          C = 0
    implicit   W = 1 + a r or a_0   T = 1 or 0     C = 0
    ials       W = 1 + a_0 or a_0   T = 1 / (1 + a_0) or 0, which completes the square of
                                    (1 - x)^2 + a_0 x^2, with a_0 / (1 + a_0) left over
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.factorisation.alternating import EXACT, Rule
from jaxunlearn.factorisation.feedback import feedback_of
from jaxunlearn.methods.exact.als import als

RANK = 2
OBJECTIVES: dict[str, dict[str, Any]] = {
    "explicit": {"regularisation": 2.0},
    "biases": {"regularisation": 0.3, "exponent": 1.0, "biases": True},
    "implicit": {"feedback": "implicit", "regularisation": 0.5, "alpha": 0.4, "unobserved": 0.6},
    "ials": {"feedback": "ials", "regularisation": 0.3, "exponent": 0.5, "unobserved": 0.2},
}


@functools.cache
def small() -> Ratings:
    """10 x 9, 44 ratings in 1 .. 5; user 9 and item 8 have none. One rectangle on each side."""
    rng = np.random.default_rng(3)
    known = rng.random((10, 9)) < 0.65
    known[9], known[:, 8] = False, False
    user, item = (a.astype(np.int32) for a in np.nonzero(known))
    order = rng.permutation(len(user))
    value = rng.integers(1, 6, len(user)).astype(np.float32)
    return Ratings(user=user[order], item=item[order], value=value, users=10, items=9)


@functools.cache
def learner(name: str, **other: Any) -> Any:
    return als(**{"rank": RANK, "dtype": jnp.float64} | OBJECTIVES[name] | other)


@functools.cache
def start(name: str, seed: int = 0, **other: Any) -> Any:
    return learner(name, **other).init(small(), jax.random.key(seed))


@functools.cache
def fitted(name: str) -> Any:
    """(state, report) at a minimum, to the last digits."""
    return learner(name).fit(start(name), sweeps=400, tolerance=1e-11, accelerate=True)


def rule(name: str) -> Rule:
    """The rule that `learner(name)` has inside."""
    given = {"feedback": "explicit", "exponent": None, "alpha": 1.0, "unobserved": 1.0}
    given |= {"biases": False} | OBJECTIVES[name]
    return Rule(feedback_of(given.pop("feedback"), **given), EXACT, None)


class Dense(NamedTuple):
    """An objective and its data as matrices."""

    weight: np.ndarray  # (U, I) W
    target: np.ndarray  # (U, I) T
    constant: float  # C
    penalty: tuple[np.ndarray, np.ndarray]  # (U,), (I,)
    rated: tuple[np.ndarray, np.ndarray]  # (U,), (I,) bool
    mean: float
    biases: bool

    @property
    def turned(self) -> "Dense":
        return self._replace(
            weight=self.weight.T, target=self.target.T, penalty=self.penalty[::-1],
            rated=self.rated[::-1],
        )  # fmt: skip


def dense(name: str, r: Ratings) -> Dense:
    o = {"feedback": "explicit", "alpha": 1.0, "unobserved": 1.0, "biases": False}
    o |= OBJECTIVES[name]
    known, value = np.zeros((r.users, r.items), bool), np.zeros((r.users, r.items))
    for u, i, v in zip(r.user, r.item, r.value, strict=True):
        known[u, i], value[u, i] = True, v
    mean = float(value[known].mean()) if o["biases"] and len(r) else 0.0
    a0, constant = o["unobserved"], 0.0
    if o["feedback"] == "explicit":
        weight, target, a0 = known * 1.0, value, 0.0
    elif o["feedback"] == "implicit":
        weight, target = np.where(known, 1 + o["alpha"] * value, a0), known * 1.0
    else:
        weight, target = known + a0, known / (1 + a0)
        constant = len(r) * a0 / (1 + a0)
    e = o.get("exponent", 1.0 if o["feedback"] == "ials" else 0.0)
    number = known.sum(1), known.sum(0)
    penalty = (
        np.where(number[0] > 0, o["regularisation"] * (number[0] + a0 * r.items) ** e, 0),
        np.where(number[1] > 0, o["regularisation"] * (number[1] + a0 * r.users) ** e, 0),
    )
    rated = number[0] > 0, number[1] > 0
    return Dense(weight, target, constant, penalty, rated, mean, o["biases"])


def predictions(d: Dense, p: Any, q: Any) -> Any:
    """(U, I); of arrays of NumPy or JAX."""
    if not d.biases:
        return p @ q.T
    return p[:, :-1] @ q[:, :-1].T + p[:, -1:] + q[:, -1:].T + d.mean


def objective(d: Dense, p: Any, q: Any) -> Any:
    rest = d.weight * (d.target - predictions(d, p, q)) ** 2
    norms = (d.penalty[0] * (p**2).sum(1)).sum() + (d.penalty[1] * (q**2).sum(1)).sum()
    return rest.sum() + d.constant + norms


def solved(d: Dense, q: Any) -> np.ndarray:
    """P(Q), row by row."""
    q = np.asarray(q)
    features = np.c_[q[:, :-1], np.ones(len(q))] if d.biases else q
    offset = q[:, -1] + d.mean if d.biases else np.zeros(len(q))
    p = np.zeros((len(d.weight), q.shape[1]))
    for u in np.flatnonzero(d.rated[0]):
        a, b = d.penalty[0][u] * np.eye(q.shape[1]), np.zeros(q.shape[1])
        for i in range(len(q)):
            a += d.weight[u, i] * np.outer(features[i], features[i])
            b += d.weight[u, i] * (d.target[u, i] - offset[i]) * features[i]
        p[u] = np.linalg.solve(a, b)
    return p


def half_gradient(d: Dense, p: Any, q: Any) -> tuple[np.ndarray, np.ndarray]:
    """By automatic differentiation of the double sum."""
    g = jax.grad(lambda both: objective(d, *both))((jnp.asarray(p), jnp.asarray(q)))
    return np.asarray(g[0]) / 2, np.asarray(g[1]) / 2


def retrained(name: str, r: Ratings, seed: int = 5) -> np.ndarray:
    """(U, I) predictions of a cold start, after plain sweeps by loops until nothing moves."""
    d = dense(name, r)
    q = 0.1 * np.random.default_rng(seed).standard_normal((r.items, RANK + d.biases))
    last = np.inf
    for _ in range(600):
        p = solved(d, q)
        q = solved(d.turned, p)
        now = predictions(d, p, q)
        if np.abs(now - last).max() < 1e-11:
            break
        last = now
    return predictions(d, p, q)


def table(made: Any, state: Any) -> np.ndarray:
    """(U, I) predictions of a learner."""
    u, i = np.indices((len(state.user), len(state.item)))
    return np.asarray(made.predict(state, u.ravel(), i.ravel())).reshape(u.shape)


def same_bits(one: Any, other: Any) -> None:
    """Two states, leaf by leaf; NaN is NaN."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
