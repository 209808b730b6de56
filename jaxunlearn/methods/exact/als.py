"""Alternating least squares, and deletions that end where retraining ends (Unlearn-ALS).

    explicit   sum_obs (r - p.q)^2  +  l (sum_u n_u^e |p_u|^2 + sum_i n_i^e |q_i|^2)
    implicit   sum_obs c (1 - p.q)^2 + a_0 sum_others (p.q)^2  +  penalties,    c = 1 + a count
    ials       sum_obs (1 - p.q)^2 + a_0 sum_all (p.q)^2  +  penalties,         n_u + a_0 I for n_u

Given one side the other is a ridge regression for each row, solved exactly; sweeps alternate. A
deletion changes the problem, not the method: the ratings are given weight 0, the affected rows are
solved again, and sweeps (or Newton steps) go on until the gradient of the *retained* objective is
below a tolerance. No term of it knows the deleted ratings any more, so its stationary points are
those of retraining. `optimality` says when there is only one.

Source: Xu, Sun, Yang, Yao, Wang (2023), "Netflix and Forget", arXiv:2302.06676, known here from its
abstract: the schedule is a *reconstruction*. Explicit: Zhou et al. (2008), the e = 1 scaling;
implicit: Hu, Koren, Volinsky (2008); ials: Rendle, Krichene, Zhang, Koren (2021), arXiv:2110.14037.
Departures: 1. affected rows are solved from what is retained and never by subtracting what was
deleted (`remove_from_row` does that, for who keeps inverses), so that nothing cancels and no
deleted number is read; 2. `mode="converged"` puts damped Newton steps
between the sweeps, since sweeps alone need hundreds for the last digits.

| `mode`      | what a deletion does                                  | guarantee                  |
|-------------|-------------------------------------------------------|----------------------------|
| "rows"      | affected users, then affected items, are solved once  | empirical                  |
| "sweeps"    | and then a few full sweeps                            | empirical                  |
| "converged" | and then on until the gradient is below a tolerance   | exact(tolerance), if it is |

Outside the guarantee: which stationary point is reached, where there are several (`optimality`
answers that); the numbers by which users and items are called; and anything computed elsewhere
from the ratings. `compact` drops the places of deleted ratings too, at the price of new shapes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.factorisation.alternating import (
    EXACT,
    ALSState,
    Progress,
    Rule,
    alternate,
    measured,
    objective_of,
    polish,
    sweep_rows,
    swept,
    unless_singular,
)
from jaxunlearn.factorisation.feedback import feedback_of
from jaxunlearn.factorisation.optimality import Optimality, optimality
from jaxunlearn.factorisation.rating_rows import Rectangle, rectangles
from jaxunlearn.factorisation.row_passes import Entries
from jaxunlearn.factorisation.row_solves import Solver
from jaxunlearn.linalg import woodbury
from jaxunlearn.method import EMPIRICAL, exact
from jaxunlearn.methods.exact.als_checks import (
    check_constants,
    check_values,
    entry_numbers,
    numbers,
)
from jaxunlearn.naming import did_you_mean
from jaxunlearn.typing import Array, Key, check_key

MODES = ("rows", "sweeps", "converged")


class ALSReport(NamedTuple):
    """What a fit or a deletion did; plain numbers."""

    mode: str  # "fit", or one of MODES
    removed: int  # ratings that went; those that had gone before do not count
    affected_users: int
    affected_items: int
    sweeps: int  # full alternating sweeps
    newton_steps: int
    products: int  # with the Hessian, over all Newton steps
    objective_before: float  # of what is retained, at the factors that came in
    objective: float
    gradient: float | None  # largest entry of half the gradient; None if it was not measured
    bound: float | None  # what it was compared with: tolerance x max(1, largest factor)
    converged: bool
    guarantee: str  # "exact(tolerance)" only where it converged


class ALS(NamedTuple):
    """What `als` returns: functions of a state. None of them changes what it is given."""

    init: Callable[[Ratings, Key], ALSState]
    sweep: Callable[[ALSState], ALSState]
    fit: Callable[..., tuple[ALSState, ALSReport]]
    forget: Callable[..., tuple[ALSState, ALSReport]]
    predict: Callable[[ALSState, Any, Any], Array]
    recommend: Callable[..., tuple[np.ndarray, np.ndarray]]
    objective: Callable[[ALSState], Array]
    gradient: Callable[[ALSState], Array]
    optimality: Callable[[ALSState], Optimality]
    compact: Callable[[ALSState], ALSState]


def als(
    *,
    rank: int,
    regularisation: float,
    feedback: str = "explicit",
    exponent: float | None = None,
    alpha: float = 1.0,
    unobserved: float = 1.0,
    biases: bool = False,
    solver: str = "cholesky",
    steps: int = 64,
    solver_tolerance: float | None = None,
    block: int = 32,
    scale: float = 0.1,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> ALS:
    """min sum_ui w_ui (p_u.q_i)^2 - 2 s_ui p_u.q_i + l (sum_u n_u^e |p_u|^2 + sum_i n_i^e |q_i|^2)

    Args:
      rank: number of factors, >= 1; more than users or items are allowed.
      regularisation: l >= 0, in squared units of the ratings for e = 0.
      feedback: "explicit" (values are ratings), "implicit" or "ials" (values are counts > 0 of what
        was done); the table of `feedback` has the three objectives.
      exponent: e >= 0; None: 0, and 1 for "ials".
      alpha: a >= 0, confidence of one count, for "implicit".
      unobserved: a_0 in [0, 1] ("ials": >= 0), weight of what was not done.
      biases: explicit feedback only: p_u.q_i + b_u + b_i + mean, the biases penalised like factors,
        the mean that of the retained ratings.
      solver: "cholesky", "cg" or "block", of the plain sweeps of `fit` and `sweep`; whatever calls
        itself exact solves by Cholesky factors.
      steps, solver_tolerance: of "cg", at most so many, until |A p - b| <= tolerance |b|; None:
        1e-5 in float32, 1e-12 in float64. With `steps` <= 6 no K x K matrix is formed.
      block: coordinates in a block of "block".
      scale: standard deviation of the first factors.
      dtype: float32 (None) or float64.
      mesh: devices with one axis; rows are dealt out among them, factors are on all.

    Returns:
      `ALS`, with
      init(ratings, key) -> state: factors from N(0, scale^2).
      sweep(state) -> state: users, then items.
      fit(state, *, sweeps=30, tolerance=None, accelerate=False) -> (state, report): plain sweeps,
        fewer where the gradient is small enough before; `accelerate` puts Newton steps between.
      forget(state, *, entries=None, users=None, items=None, mode="converged", sweeps=None,
        tolerance=None, accelerate=True) -> (state, report): takes ratings out, by their row numbers
        in the Ratings of `init`, or all of some users or items. `sweeps`: 3 for "sweeps", at most
        1000 for "converged".
      predict(state, user, item) -> (n,): scores of pairs of numbers.
      recommend(state, users, *, count=10) -> (items, scores), both (m, count): best first, without
        the items that a user has rated (retained); -1 and -inf where nothing is left.
      objective(state), gradient(state) -> []: of what is retained; the largest entry of half its
        gradient.
      optimality(state) -> `Optimality`: an upper bound to the distance from the predictions of any
        retraining that reaches its optimum.
      compact(state) -> state: without the places of deleted ratings; the others are renumbered in
        their order.
      `tolerance` is relative to max(1, largest factor); None: 1e-6 in float64, 1e-3 in float32,
      whose sums of a thousand ratings carry no more.

    Raises:
      TypeError, ValueError: a constant out of range, float64 without `jax_enable_x64`, negative
        counts, numbers out of range; a row without a unique solution (l = 0 and too few ratings).

    | situation                                   | result                                         |
    |---------------------------------------------|------------------------------------------------|
    | a user or item without ratings (left)       | factors 0, predictions the mean or 0           |
    | the same deletion again                     | nothing changes, bit for bit; removed = 0      |
    | all ratings of all users                    | factors 0                                      |
    | deleted values                              | wiped from the state, whatever they were       |
    | the objective carried by mode "rows"        | keeps the rounding of the shares taken off it  |
    | more deletions, of any number and kind      | same shapes: nothing is compiled again         |
    | one device or several                       | the same to rounding                           |
    | the tolerance not reached                   | converged False, guarantee "empirical"         |
    | a tolerance below the rounding of a solve   | stops there, the same; `gradient` has the rest |

    Cost: a sweep 2 N K^2 + (U + I) K^3 / 3 multiplications, memory of the factors and of 2.5 N
      places; "rows" the same for the affected rows alone. Newton steps hold (U + I) K^2 numbers
      (`accelerate=False` does not) and cost a tenth to a third of a sweep for each product.

    Source: see the module.

    Example:
      >>> from jaxunlearn.data import low_rank_ratings
      >>> r = low_rank_ratings(users=30, items=20, rank=2, density=0.5, noise=0.1, seed=0)
      >>> learner = als(rank=2, regularisation=1.0)
      >>> state, _ = learner.fit(learner.init(r, jax.random.key(0)), sweeps=10)
      >>> state, report = learner.forget(state, users=[3])
      >>> report.guarantee, report.affected_users, float(jnp.abs(state.user[3]).max())
      ('exact(0.001)', 1, 0.0)
    """
    dtype = check_constants(rank, solver, steps, block, scale, dtype)
    if solver_tolerance is None:
        solver_tolerance = 1e-5 if dtype == jnp.float32 else 1e-12
    objective_rule = feedback_of(feedback, regularisation, exponent, alpha, unobserved, biases)
    how = Solver(solver, int(steps), float(solver_tolerance), int(block))
    how = EXACT if solver == "cholesky" else how  # equal rules share compiled programs
    rule = Rule(objective_rule, how, mesh)
    exactly = rule._replace(solver=EXACT)

    def init(ratings: Ratings, key: Key) -> ALSState:
        check_key("als", key)
        check_values(ratings, rule.feedback)
        first, second = jax.random.split(key)
        user = scale * jax.random.normal(first, (ratings.users, rank + biases), dtype)
        item = scale * jax.random.normal(second, (ratings.items, rank + biases), dtype)
        pair = np.stack([ratings.user, ratings.item]).astype(np.int32)
        return _arranged(user, item, pair, np.append(ratings.value, 0), mesh, biases)

    def sweep(state: ALSState) -> ALSState:
        return swept(state, rule).after

    def fit(
        state: ALSState,
        *,
        sweeps: int = 30,
        tolerance: float | None = None,
        accelerate: bool = False,
    ) -> tuple[ALSState, ALSReport]:
        level = _level(tolerance, dtype) if accelerate or tolerance is not None else None
        before = float(objective(state))
        if accelerate and level is not None:
            state, done = polish(state, rule, sweeps, level, warm=_WARM)
        else:
            state, done = alternate(state, rule, sweeps, level)
        return state, _report("fit", (0, 0, 0), before, state, done, level)

    def forget(
        state: ALSState,
        *,
        entries: Any = None,
        users: Any = None,
        items: Any = None,
        mode: str = "converged",
        sweeps: int | None = None,
        tolerance: float | None = None,
        accelerate: bool = True,
    ) -> tuple[ALSState, ALSReport]:
        if mode not in MODES:
            raise ValueError(f"als: no mode is called {mode!r}. {did_you_mean(mode, MODES)}")
        level = _level(tolerance, dtype)
        gone = entry_numbers(state, entries, users, items)
        state, affected = _without(state, gone, exactly)
        before = float(state.objective)
        facts = (len(gone), *(int(mask.sum()) for mask in affected))
        if not len(gone) and mode != "converged":
            return state, _report(mode, facts, before, state, Progress(), level)
        if len(gone):
            chosen = (jnp.asarray(mask) for mask in affected)
            found = unless_singular(sweep_rows(state, *chosen, exactly))
            state = found.after._replace(objective=state.objective - found.fall)
        done = Progress()
        if mode == "sweeps":
            state, done = alternate(state, exactly, 3 if sweeps is None else sweeps, None)
        elif mode == "converged" and accelerate:
            state, done = polish(state, rule, _MOST if sweeps is None else sweeps, level, warm=1)
        elif mode == "converged":
            state, done = alternate(state, exactly, _MOST if sweeps is None else sweeps, level)
        return state, _report(mode, facts, before, state, done, level)

    def predict(state: ALSState, user: Any, item: Any) -> Array:
        u, i = numbers("user", user, len(state.user)), numbers("item", item, len(state.item))
        if u.shape != i.shape:
            raise ValueError(f"als: expected as many users as items, got {u.shape} and {i.shape}.")
        return _scores(state, jnp.asarray(u), jnp.asarray(i), rule)

    def recommend(state: ALSState, users: Any, *, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        wanted = numbers("user", users, len(state.user))
        if count < 1:
            raise ValueError(f"als: expected count >= 1, got {count}.")
        table = np.array(_table(state, jnp.asarray(wanted), rule))
        distinct, back = np.unique(wanted, return_inverse=True)
        pair = np.asarray(state.pair)
        theirs = (np.asarray(state.entries.weight)[:-1] > 0) & np.isin(pair[0], distinct)
        rated = np.zeros((len(distinct), table.shape[1]), bool)
        rated[np.searchsorted(distinct, pair[0, theirs]), pair[1, theirs]] = True
        table[rated[back]] = -np.inf
        short = max(0, count - table.shape[1])
        table = np.pad(table, ((0, 0), (0, short)), constant_values=-np.inf)
        best = np.argsort(-table, axis=1, kind="stable")[:, :count]
        scores = np.take_along_axis(table, best, axis=1)
        return np.where(np.isfinite(scores), best, -1), scores

    def objective(state: ALSState) -> Array:
        return measured(state, exactly)[0]

    def gradient(state: ALSState) -> Array:
        return measured(state, exactly)[1]

    def compact(state: ALSState) -> ALSState:
        kept = np.asarray(state.entries.weight)[:-1] > 0
        value = np.append(np.asarray(state.entries.value)[:-1][kept], 0)
        pair = np.asarray(state.pair)[:, kept]
        made = _arranged(state.user, state.item, pair, value, mesh, biases)
        return made._replace(objective=state.objective)

    def bounded(state: ALSState) -> Optimality:
        return optimality(state, rule)

    return ALS(init, sweep, fit, forget, predict, recommend, objective, gradient, bounded, compact)


_WARM = 10  # plain sweeps before the first Newton step of a fit: far from a minimum they do better
_MOST = 1000  # sweeps of a deletion that is to converge


def remove_from_row(
    inverse: woodbury.Inverse, factors: Array, q: Array, w: Array, s: Array
) -> tuple[woodbury.Inverse, Array, woodbury.Capacitance]:
    """A'^-1 and p' = A'^-1 b' of one row from which ratings are taken, by their low rank.

        A' = A - sum_j w_j q_j q_j^T,     b' = b - sum_j s_j q_j
        p' = p + A'^-1 sum_j (w_j q_j^T p - s_j) q_j

    For one rating with w = 1 this is Sherman and Morrison's formula.

    Args:
      inverse: A^-1, `woodbury.inverse(A)` or what a removal before returned.
      factors: (K,) p = A^-1 b.
      q: (m, K) factors beside the removed ratings. w, s: (m,), w >= 0.

    Returns:
      A'^-1, p', and the capacitance: `smallest` is 1 minus the largest leverage of the removed
      ratings, in (0, 1] for ratings that are in A; `status` CLIPPED says that they were not.

    Valid for a fixed penalty only: where e > 0 the number of ratings is in the penalty, A changes
    by a multiple of the identity too, and the row must be solved again (as `als` does).

    Cost: K^2 m + m^3 instead of K^2 n + K^3 / 3. Errors add up over removals; make A^-1 anew.

    Example:
      >>> p, q = jnp.array([1.0, 1.0]), jnp.array([[1.0, 0.0]])
      >>> inverse = woodbury.inverse(jnp.diag(jnp.array([2.0, 1.0])))
      >>> _, fewer, _ = remove_from_row(inverse, p, q, jnp.ones(1), jnp.array([2.0]))
      >>> print(fewer.round(6))
      [0. 1.]
    """
    changed, capacitance = woodbury.rank_change(inverse, (q * jnp.sqrt(w)[:, None]).T, sign=-1)
    rest = jnp.matmul(q.T, w * jnp.matmul(q, factors, precision="highest") - s, precision="highest")
    return changed, factors + woodbury.apply(changed, rest), capacitance


def _level(tolerance: float | None, dtype: Any) -> float:
    if tolerance is None:
        return 1e-6 if dtype == jnp.float64 else 1e-3
    if not tolerance > 0:
        raise ValueError(f"als: expected tolerance > 0, got {tolerance}.")
    return float(tolerance)


def _report(
    mode: str,
    facts: tuple[int, ...],
    before: float,
    state: ALSState,
    done: Progress,
    level: float | None,
) -> ALSReport:
    return ALSReport(
        mode=mode,
        removed=facts[0],
        affected_users=facts[1],
        affected_items=facts[2],
        sweeps=done.sweeps,
        newton_steps=done.newton_steps,
        products=done.products,
        objective_before=before,
        objective=float(state.objective),
        gradient=done.gradient,
        bound=done.bound,
        converged=done.converged,
        guarantee=exact(level) if done.converged and level is not None else EMPIRICAL,
    )


def _arranged(
    user: Array, item: Array, pair: np.ndarray, value: np.ndarray, mesh: Mesh | None, biases: bool
) -> ALSState:
    """The state of some factors and ratings, all retained."""
    dtype, devices = user.dtype, 1 if mesh is None else mesh.size
    sides = [
        _placed(rectangles(pair[k], pair[1 - k], count, devices=devices), mesh)
        for k, count in enumerate((len(user), len(item)))
    ]
    weight = np.append(np.ones(len(value) - 1), 0)
    zero = jnp.zeros((), dtype)
    counts = [
        jnp.asarray(np.bincount(end, minlength=len(f)), dtype)
        for end, f in zip(pair, (user, item), strict=True)
    ]
    state = ALSState(
        user=user,
        item=item,
        mean=zero,
        entries=Entries(jnp.asarray(value, dtype), jnp.asarray(weight, dtype)),
        user_count=counts[0],
        item_count=counts[1],
        users=sides[0],
        items=sides[1],
        pair=jnp.asarray(pair),
        objective=zero + jnp.nan,
    )
    return state._replace(mean=jnp.asarray(_mean(value, weight), dtype)) if biases else state


def _without(
    state: ALSState, gone: np.ndarray, rule: Rule
) -> tuple[ALSState, tuple[np.ndarray, np.ndarray]]:
    """(the state without some ratings, the users and the items that had them).

    The objective is that of what is left, at the same factors.
    """
    pair, dtype = np.asarray(state.pair), state.user.dtype
    value, weight = (np.array(each) for each in state.entries)
    masks, counts, factors = [], [], (np.asarray(state.user), np.asarray(state.item))
    change = 0.0
    for end, number, own, other in zip(
        pair, (state.user_count, state.item_count), factors, factors[::-1], strict=True
    ):
        old = np.asarray(number, np.float64)
        new = old - np.bincount(end[gone], minlength=len(old))
        mask = new < old
        penalty = [np.where(n > 0, rule.feedback.penalty(n, len(other)), 0) for n in (new, old)]
        change += ((penalty[0] - penalty[1])[mask] * (own[mask].astype(float) ** 2).sum(1)).sum()
        masks.append(mask)
        counts.append(jnp.asarray(new, dtype))
    x = np.einsum("nk,nk->n", *(f[end[gone]] for f, end in zip(factors, pair, strict=True)))
    w, s, c = rule.feedback.terms(value[gone], weight[gone], np.zeros(len(gone)))
    change -= (w * x**2 - 2 * s * x + c).sum()
    value[gone] = weight[gone] = 0
    left = state._replace(
        entries=Entries(jnp.asarray(value), jnp.asarray(weight)),
        user_count=counts[0],
        item_count=counts[1],
        objective=state.objective + jnp.asarray(change, dtype),
    )
    if rule.feedback.biases and len(gone):  # another mean moves every term
        left = left._replace(mean=jnp.asarray(_mean(value, weight), dtype))
        left = left._replace(objective=jnp.nan + left.objective)
    if not np.isfinite(float(left.objective)):
        left = left._replace(objective=objective_of(left, rule))
    return left, (masks[0], masks[1])


def _mean(value: np.ndarray, weight: np.ndarray) -> float:
    kept = value[weight > 0].astype(np.float64)
    return float(kept.sum() / max(len(kept), 1))


def _placed(side: tuple[Rectangle, ...], mesh: Mesh | None) -> tuple[Rectangle, ...]:
    if mesh is None:
        return jax.tree.map(jnp.asarray, side)
    (axis,) = mesh.axis_names
    return jax.device_put(side, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis)))


@partial(jax.jit, static_argnames="rule")
def _scores(state: ALSState, user: Array, item: Array, rule: Rule) -> Array:
    beside = rule.view(state.item, state.mean)
    x = jnp.einsum("nk,nk->n", state.user[user], beside.features[item], precision="highest")
    return x + beside.offset[item]


@partial(jax.jit, static_argnames="rule")
def _table(state: ALSState, users: Array, rule: Rule) -> Array:
    """(m, I) scores of all items."""
    beside = rule.view(state.item, state.mean)
    scores = jnp.matmul(state.user[users], beside.features.T, precision="highest")
    return scores + beside.offset[None]
