"""Alternating least squares, and deletions that end where retraining ends (Unlearn-ALS).

    explicit   sum_obs (r - p.q)^2                     + l (sum_u n_u^e |p_u|^2 + sum_i n_i^e |q_i|^2)
    implicit   sum_obs c (1 - p.q)^2 + a_0 sum_others (p.q)^2 + the same,          c = 1 + a count
    ials       sum_obs (1 - p.q)^2 + a_0 sum_all (p.q)^2      + l (sum_u (n_u + a_0 I)^e |p_u|^2 + ...)

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
deleted number is read; 2. `mode="converged"` ends by Newton steps on the joint problem, since
sweeps need hundreds for the last digits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxunlearn.data.ratings import Ratings
from jaxunlearn.linalg import woodbury
from jaxunlearn.method import EMPIRICAL, exact
from jaxunlearn.methods.exact.feedback import Feedback, feedback_of
from jaxunlearn.methods.exact.joint_newton import Side, Step, newton_step
from jaxunlearn.methods.exact.rating_rows import Rectangle, rectangles
from jaxunlearn.methods.exact.row_solves import (
    SOLVERS,
    Beside,
    Entries,
    Problem,
    Solver,
    gradients,
    half_sweep,
)
from jaxunlearn.naming import did_you_mean
from jaxunlearn.typing import Array, Key, check_key

MODES = ("rows", "sweeps", "converged")


class ALSState(NamedTuple):
    """A factorisation and the ratings it is of; a pytree. K is the rank, and one with biases."""

    user: Array  # (U, K) factors; with biases the last column is the bias
    item: Array  # (I, K)
    mean: Array  # [] of the retained ratings, where there are biases; else 0
    entries: Entries  # value and weight (N + 1,), in the order of the ratings
    user_count: Array  # (U,) retained ratings
    item_count: Array  # (I,)
    users: tuple[Rectangle, ...]  # the ratings of every user
    items: tuple[Rectangle, ...]
    pair: Array  # (2, N) int32 user and item of every rating
    objective: Array  # [] of the retained ratings; NaN until a sweep has measured it


class ALSReport(NamedTuple):
    """What a fit or a deletion did; plain numbers."""

    mode: str
    removed: int  # ratings that went, without those that had gone before
    affected_users: int
    affected_items: int
    sweeps: int  # full alternating sweeps
    newton_steps: int
    products: int  # with the Hessian, in all Newton steps
    objective_before: float  # of what is retained, at the factors that came in
    objective: float
    gradient: float | None  # largest entry of the gradient, halved; None where it was not measured
    tolerance: float  # what it was compared with, scaled by the largest factor
    converged: bool
    guarantee: str  # "exact(tolerance)" only if converged


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
    compact: Callable[[ALSState], ALSState]


class _Rule(NamedTuple):
    """Everything static; hashable, so that equal builders share compiled programs."""

    feedback: Feedback
    solver: Solver
    mesh: Mesh | None

    @property
    def problem(self) -> Problem:
        return Problem(self.feedback.terms, self.feedback.penalty, self.mesh)

    def view(self, factors: Array, mean: Array) -> Beside:
        """What the rows of the other side are solved against."""
        zeros = jnp.zeros(len(factors), factors.dtype)
        if self.feedback.biases:
            one = jnp.ones_like(factors[:, :1])
            factors, zeros = jnp.concatenate([factors[:, :-1], one], 1), factors[:, -1] + mean
        gram = self.feedback.unobserved * jnp.matmul(factors.T, factors, precision="highest")
        return Beside(factors, zeros, gram)

    def norms(self, factors: Array, number: Array, others: int) -> Array:
        """[] the penalties of one side."""
        penalty = jnp.where(number > 0, self.feedback.penalty(number, others), 0)
        return (penalty * (factors**2).sum(axis=1)).sum()


class _Swept(NamedTuple):
    """A sweep: users solved (`here`), then items (`after`)."""

    here: ALSState  # P(Q), Q
    after: ALSState  # P(Q), Q(P(Q))
    gradient: Array  # [] largest, of the chosen items, `here`; that of solved users is 0
    measured: Array  # [] the objective `here`, where all users were chosen
    fall: Array  # [] by how much both halves lowered it
    singular: Array  # [] int32


@partial(jax.jit, static_argnames="rule")
def _sweep(state: ALSState, users: Array, items: Array, rule: _Rule) -> _Swept:
    first = half_sweep(
        rule.problem, rule.view(state.item, state.mean), state.entries, state.user_count,
        state.user, state.users, users, rule.solver,
    )  # fmt: skip
    measured = first.value - first.decrease
    measured = measured + rule.norms(state.item, state.item_count, len(state.user))
    here = state._replace(user=first.factors, objective=measured)
    second = half_sweep(
        rule.problem, rule.view(here.user, state.mean), state.entries, state.item_count,
        state.item, state.items, items, rule.solver,
    )  # fmt: skip
    after = here._replace(item=second.factors, objective=measured - second.decrease)
    fall, singular = first.decrease + second.decrease, first.singular + second.singular
    return _Swept(here, after, second.gradient, measured, fall, singular)


@partial(jax.jit, static_argnames=("rule", "iterations"))
def _newton(state: ALSState, tolerance: Array, damping: Array, rule: _Rule, iterations: int) -> Step:
    return newton_step(
        rule.problem,
        state.entries,
        Side(state.user, state.user_count, state.users),
        Side(state.item, state.item_count, state.items),
        lambda factors: rule.view(factors, state.mean),
        tolerance,
        damping,
        iterations=iterations,
    )


@partial(jax.jit, static_argnames="rule")
def _measured(state: ALSState, rule: _Rule) -> tuple[Array, Array]:
    """(objective, largest entry of either gradient)."""
    sides = (
        (state.user, state.user_count, state.users, state.item),
        (state.item, state.item_count, state.items, state.user),
    )
    largest = jnp.zeros((), state.user.dtype)
    for factors, number, side, other in sides:
        beside = rule.view(other, state.mean)
        g = gradients(rule.problem, beside, state.entries, number, factors, side)
        largest = jnp.maximum(largest, jnp.abs(g).max())
    return _objective(state, rule), largest


def _objective(state: ALSState, rule: _Rule) -> Array:
    user, item = rule.view(state.user, state.mean), rule.view(state.item, state.mean)
    value, weight = state.entries

    def share(n: Array) -> Array:
        (u, i), w = state.pair[:, n], weight[n]
        x = state.user[u] * item.features[i]
        quadratic, linear, constant = rule.feedback.terms(value[n], w, item.offset[i])
        x = x.sum()
        return quadratic * x**2 - 2 * linear * x + constant

    shares = jax.lax.map(share, jnp.arange(state.pair.shape[1]), batch_size=_ENTRIES_AT_ONCE)
    total = shares.sum() + rule.norms(state.user, state.user_count, len(state.item))
    total = total + rule.norms(state.item, state.item_count, len(state.user))
    return total + jnp.vdot(user.gram, jnp.matmul(state.item.T, state.item, precision="highest"))


_EXACT = Solver("cholesky", 1, 0.0, 1)
_ENTRIES_AT_ONCE = 1 << 15


class _Progress(NamedTuple):
    sweeps: int = 0
    newton: int = 0
    products: int = 0
    bound: float = math.nan
    gradient: float | None = None
    converged: bool = False


class _Trial(NamedTuple):
    """A step of the items that the next sweep tries; its users are solved there."""

    start: ALSState  # P(Q), Q
    fallback: ALSState  # an alternating sweep further
    direction: Array
    size: float

    @property
    def state(self) -> ALSState:
        if self.size < _SMALLEST_STEP:
            return self.fallback
        return self.start._replace(item=self.start.item + self.size * self.direction)


_SMALLEST_STEP = 0.2


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
    """DOC"""
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    rule = _checked_rule(
        feedback_of(feedback, regularisation, exponent, alpha, unobserved, biases),
        rank, solver, steps, solver_tolerance, block, dtype, mesh,
    )  # fmt: skip
    exactly = rule._replace(solver=_EXACT)
    devices = 1 if mesh is None else mesh.size

    def init(ratings: Ratings, key: Key) -> ALSState:
        check_key("als", key)
        _check_values(ratings, rule.feedback)
        user, item = np.asarray(ratings.user), np.asarray(ratings.item)
        spread = [
            scale * jax.random.normal(k, (n, rank + biases), dtype)
            for k, n in zip(jax.random.split(key), (ratings.users, ratings.items), strict=True)
        ]
        value, weight = np.append(ratings.value, 0), np.append(np.ones(len(ratings)), 0)
        return _counted(
            ALSState(
                *spread,
                mean=jnp.zeros((), dtype),
                entries=Entries(jnp.asarray(value, dtype), jnp.asarray(weight, dtype)),
                user_count=jnp.zeros(ratings.users, dtype),
                item_count=jnp.zeros(ratings.items, dtype),
                users=_placed(rectangles(user, item, ratings.users, devices=devices), mesh),
                items=_placed(rectangles(item, user, ratings.items, devices=devices), mesh),
                pair=jnp.asarray(np.stack([user, item]), jnp.int32),
                objective=jnp.asarray(jnp.nan, dtype),
            ),
            biases,
        )

    def swept(state: ALSState, how: _Rule = rule) -> _Swept:
        users, items = jnp.ones(len(state.user), bool), jnp.ones(len(state.item), bool)
        return _unless_singular(_sweep(state, users, items, how))

    def level(tolerance: float | None) -> float:
        if tolerance is None:
            return 1e-6 if dtype == jnp.float64 else 1e-3
        if not tolerance > 0:
            raise ValueError(f"als: expected tolerance > 0, got {tolerance}.")
        return float(tolerance)

    def alternate(state: ALSState, sweeps: int, relative: float | None) -> tuple[Any, _Progress]:
        """Plain sweeps, until the gradient is small where a tolerance is given."""
        done = _Progress()
        while done.sweeps < sweeps:
            found = swept(state)
            state, done = found.after, done._replace(sweeps=done.sweeps + 1)
            if relative is None:
                continue
            bound = relative * _size(found.here)
            done = done._replace(bound=bound, gradient=float(found.gradient))
            if done.gradient <= bound and solver == "cholesky":
                return found.here, done._replace(converged=True)
            if done.gradient <= bound:  # users were not solved exactly: look at both sides
                largest = float(_measured(state, rule)[1])
                if largest <= bound:
                    return state, done._replace(gradient=largest, converged=True)
        return state, done

    def polish(state: ALSState, sweeps: int, relative: float, warm: int) -> tuple[Any, _Progress]:
        """Sweeps, and after `warm` of them Newton steps between, until the gradient is small."""
        done, first, trial, damping = _Progress(), math.nan, None, 0.1
        while done.sweeps < sweeps:
            found = swept(state, exactly)
            done = done._replace(sweeps=done.sweeps + 1)
            if trial is not None and trial.size >= _SMALLEST_STEP and not _fell(found, trial):
                trial = trial._replace(size=trial.size / 2); damping *= 3; print("halved",damping)
                state = trial.state
                continue
            state, bound = found.after, relative * _size(found.here)
            gradient = float(found.gradient)
            done = done._replace(bound=bound, gradient=gradient)
            if gradient <= bound:
                return found.here, done._replace(converged=True)
            if done.sweeps < warm:
                continue
            first = gradient if math.isnan(first) else first
            wanted = max(0.3 * bound / gradient, min(0.3, 0.3 * (gradient / first) ** 0.5))
            step = _newton(found.here, jnp.asarray(wanted, dtype), jnp.asarray(damping,dtype), exactly, _PRODUCTS)
            products = done.products + int(step.iterations)
            done = done._replace(newton=done.newton + 1, products=products)
            if VERBOSE: print(done.sweeps, gradient, float(found.measured), "cg",int(step.iterations),int(step.status),"damp",damping)
            damping = damping*3 if int(step.status)==3 else (damping/3 if damping>1e-4 else 0.)
            damping = max(damping,1e-4) if int(step.status)==3 else damping
            trial = _Trial(found.here, found.after, step.direction, 1.0)
            state = trial.state
        return (trial.fallback if trial is not None else state), done

    return ALS(*[None]*9)


VERBOSE=0
_PRODUCTS = 200


def _fell(found: _Swept, trial: _Trial) -> bool:
    """Whether the objective is no higher than where the step began, up to rounding."""
    start = float(trial.start.objective)
    slack = 8 * float(jnp.finfo(found.measured.dtype).eps) * abs(start)
    return float(found.measured) <= start + slack


def _size(state: ALSState) -> float:
    """max(1, largest factor): what tolerances are relative to."""
    return max(1.0, float(jnp.abs(state.user).max()), float(jnp.abs(state.item).max()))


def _unless_singular(found: _Swept) -> _Swept:
    if count := int(found.singular):
        raise ValueError(
            f"als: {count} rows have no unique solution (as many ratings as factors are needed "
            "where regularisation is 0). Give a regularisation > 0, or fewer factors."
        )
    return found


def _counted(state: ALSState, biases: bool) -> ALSState:
    """With the counts of the retained ratings, and their mean where there are biases."""
    value, weight = (np.asarray(a, np.float64)[:-1] for a in state.entries)
    dtype = state.user.dtype
    counts = [
        jnp.asarray(np.bincount(end, weights=weight, minlength=n), dtype)
        for end, n in zip(np.asarray(state.pair), (len(state.user), len(state.item)), strict=True)
    ]
    mean = weight @ value / max(weight.sum(), 1) if biases else 0.0
    return state._replace(
        mean=jnp.asarray(mean, dtype), user_count=counts[0], item_count=counts[1]
    )


def _placed(side: tuple[Rectangle, ...], mesh: Mesh | None) -> tuple[Rectangle, ...]:
    if mesh is None:
        return jax.tree.map(jnp.asarray, side)
    (axis,) = mesh.axis_names
    return jax.device_put(side, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis)))


def _checked_rule(*a):
    fb, rank, solver, steps, tol, block, dtype, mesh = a
    return _Rule(fb, Solver(solver, steps, tol or 1e-5, block), mesh)

def _check_values(r, f): pass
