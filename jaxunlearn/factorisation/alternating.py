"""The sweeps of a factorisation as compiled programs, and the two loops that call them.

    here  = (P(Q), Q)          users solved          objective and gradient are known here
    after = (P(Q), Q(P(Q)))    then items

One program is a sweep over any chosen rows: a full sweep, the affected rows of a deletion, and a
look at the gradient are the same program with other arguments. `alternate` sweeps until the
gradient is small. `polish` puts damped Newton steps (`joint_newton`) between the sweeps: a step is
tried, judged by what the next sweep measures, halved if the objective rose, and dropped for the
plain sweep if that does not help. The damping follows how well the quadratic model foretold the
fall, as in Levenberg (1944) and Marquardt (1963), and rises where negative curvature showed.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn.data.streams import is_traced
from jaxunlearn.factorisation.feedback import Feedback
from jaxunlearn.factorisation.joint_newton import Blocks, Side, Step, blocks, newton_step
from jaxunlearn.factorisation.rating_rows import Rectangle
from jaxunlearn.factorisation.row_passes import Beside, Entries, Problem, gradients, row_values
from jaxunlearn.factorisation.row_solves import Solver, half_sweep
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.typing import Array

EXACT = Solver("cholesky", 1, 0.0, 1)
_PRODUCTS = 200  # of a Newton step, at most
_LEAST_DAMPING = 1e-4  # below it there is none
_STALE = 0.02  # relative movement of the items after which inverses are made anew
_SMALLEST_STEP = 0.2  # of a Newton step, before it is dropped


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


class Rule(NamedTuple):
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


class Swept(NamedTuple):
    """A sweep: users solved (`here`), then items (`after`)."""

    here: ALSState  # P(Q), Q
    after: ALSState  # P(Q), Q(P(Q))
    gradient: Array  # [] largest, of the chosen items, `here`; that of solved users is 0
    measured: Array  # [] the objective `here`, where all users were chosen
    fall: Array  # [] by how much both halves lowered it
    singular: Array  # [] int32


@partial(jax.jit, static_argnames="rule")
def sweep_rows(state: ALSState, users: Array, items: Array, rule: Rule) -> Swept:
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
    return Swept(here, after, second.gradient, measured, fall, singular)


def _sides(state: ALSState) -> tuple[Side, Side]:
    return (
        Side(state.user, state.user_count, state.users),
        Side(state.item, state.item_count, state.items),
    )


@partial(jax.jit, static_argnames="rule")
def _blocks(state: ALSState, rule: Rule) -> Blocks:
    return blocks(
        rule.problem, state.entries, *_sides(state), lambda factors: rule.view(factors, state.mean)
    )


@partial(jax.jit, static_argnames="rule")
def _newton(state: ALSState, inverse: Blocks, tolerance: Array, damping: Array, rule: Rule) -> Step:
    return newton_step(
        rule.problem,
        state.entries,
        *_sides(state),
        lambda factors: rule.view(factors, state.mean),
        inverse,
        tolerance,
        damping,
        iterations=_PRODUCTS,
    )


@partial(jax.jit, static_argnames="rule")
def measured(state: ALSState, rule: Rule) -> tuple[Array, Array]:
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
    return objective_of(state, rule), largest


@partial(jax.jit, static_argnames="rule")
def objective_of(state: ALSState, rule: Rule) -> Array:
    """[] the objective of what is retained."""
    users = row_values(
        rule.problem, rule.view(state.item, state.mean), state.entries, state.user_count,
        state.user, state.users,
    )  # fmt: skip
    return users.sum() + rule.norms(state.item, state.item_count, len(state.user))


class Progress(NamedTuple):
    """What a loop did."""

    sweeps: int = 0
    newton_steps: int = 0
    products: int = 0
    gradient: float | None = None
    bound: float | None = None  # what the gradient is compared with
    converged: bool = False


def swept(state: ALSState, rule: Rule) -> Swept:
    """A full sweep.

    Raises:
      ValueError: a row has no unique solution.
    """
    return unless_singular(sweep_rows(state, *everyone(state), rule))


def everyone(state: ALSState) -> tuple[Array, Array]:
    """Masks of all users and all items."""
    return jnp.ones(len(state.user), bool), jnp.ones(len(state.item), bool)


def unless_singular(found: Swept) -> Swept:
    if not is_traced(found.singular) and (count := int(found.singular)):
        raise ValueError(
            f"als: {count} rows have no unique solution: they have fewer ratings than factors, and "
            "nothing regularises them. Give a regularisation > 0, or fewer factors."
        )
    return found


def size(state: ALSState) -> float:
    """max(1, largest factor): what tolerances are relative to."""
    return max(1.0, float(jnp.abs(state.user).max()), float(jnp.abs(state.item).max()))


def alternate(
    state: ALSState, rule: Rule, sweeps: int, tolerance: float | None
) -> tuple[ALSState, Progress]:
    """Plain sweeps, until the gradient is small where a tolerance is given."""
    done = Progress()
    while done.sweeps < sweeps:
        found = swept(state, rule)
        state, done = found.after, done._replace(sweeps=done.sweeps + 1)
        if tolerance is None:
            continue
        gradient, bound = float(found.gradient), tolerance * size(found.here)
        done = done._replace(gradient=gradient, bound=bound)
        if gradient <= bound:
            exactly = rule.solver.name == "cholesky"
            best, ended = _looked_at(found.here if exactly else state, rule, done)
            if ended.converged or exactly:
                return best, ended
    return state, done


def _looked_at(state: ALSState, rule: Rule, done: Progress) -> tuple[ALSState, Progress]:
    """Whether the gradient of both sides is small: that of solved users is rounding, but not 0."""
    gradient = float(measured(state, rule._replace(solver=EXACT))[1])
    small = done.bound is not None and gradient <= done.bound
    return state, done._replace(gradient=gradient, converged=small)


class _Trial(NamedTuple):
    """A Newton step of the items, to be judged by the next sweep."""

    start: ALSState  # P(Q), Q
    plain: ALSState  # an alternating sweep further
    direction: Array
    promised: float
    share: float  # of the direction, 1 at first

    @property
    def state(self) -> ALSState:
        if self.share < _SMALLEST_STEP:
            return self.plain
        return self.start._replace(item=self.start.item + self.share * self.direction)


def polish(
    state: ALSState, rule: Rule, sweeps: int, tolerance: float, warm: int
) -> tuple[ALSState, Progress]:
    """Exact sweeps, after `warm` of them with Newton steps between, until the gradient is small."""
    rule = rule._replace(solver=EXACT)
    done, first, trial, damping = Progress(), math.nan, None, 0.1
    inverse, at = None, state.item
    while done.sweeps < sweeps:
        daring = trial is not None and trial.share >= _SMALLEST_STEP
        found = _attempted(state, rule) if daring else swept(state, rule)
        done = done._replace(sweeps=done.sweeps + 1)
        if trial is not None:
            fell = float(trial.start.objective - found.measured) / (trial.promised or 1.0)
            noise = _rounding(trial.start.objective) / (trial.promised or 1.0)
            whole = trial.share == 1
            if whole and fell < 0.25 - noise:
                damping = 4 * max(damping, _LEAST_DAMPING)
            elif whole and fell > 0.75:
                damping = damping / 4 if damping >= 4 * _LEAST_DAMPING else 0.0
            if daring and fell < -noise:
                trial = trial._replace(share=trial.share / 2)
                state = trial.state
                continue
        gradient, bound = float(found.gradient), tolerance * size(found.here)
        done = done._replace(gradient=gradient, bound=bound)
        if gradient <= bound:
            return _looked_at(found.here, rule, done)
        state, trial = found.after, None
        if done.sweeps < warm:
            continue
        first = gradient if math.isnan(first) else first
        wanted = max(0.3 * bound / gradient, 0.1 * min(1.0, gradient / first) ** 0.5)
        wanted, by = (jnp.asarray(a, state.item.dtype) for a in (min(wanted, 0.3), damping))
        here = found.here
        if inverse is None or _moved(here.item, at) > _STALE:
            inverse, at = _blocks(here, rule), here.item
        step = _newton(here, inverse, wanted, by, rule)
        if int(step.status) == Solved.INDEFINITE:
            damping = 4 * max(damping, _LEAST_DAMPING)
        products = done.products + int(step.iterations)
        done = done._replace(newton_steps=done.newton_steps + 1, products=products)
        trial = _Trial(here, found.after, step.direction, float(step.promised), 1.0)
        state = trial.state
    return (state if trial is None else trial.plain), done


def _attempted(state: ALSState, rule: Rule) -> Swept:
    """A full sweep from a trial: a row without a solution is one more reason not to go there."""
    found = sweep_rows(state, *everyone(state), rule)
    lost = (found.singular > 0) | ~jnp.isfinite(found.measured)
    return found._replace(measured=jnp.where(lost, jnp.inf, found.measured))


def _moved(factors: Array, since: Array) -> float:
    """|Q - Q_0| / |Q_0|."""
    return float(jnp.linalg.norm(factors - since) / jnp.maximum(jnp.linalg.norm(since), 1e-30))


def _rounding(objective: Array) -> float:
    """How much two values of the objective may differ for no reason."""
    return 8 * float(jnp.finfo(objective.dtype).eps) * abs(float(objective))
