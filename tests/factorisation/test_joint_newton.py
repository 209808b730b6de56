"""The Newton step of one side: against the dense Hessian of the eliminated objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.factorisation.alternating import _blocks, _newton, sweep_rows
from jaxunlearn.linalg.solution import Solved
from tests.methods import als_cases as cases

NAMES = ("biases", "ials")
U, M = 9, 8  # the last user and the last item have no ratings, factors 0 and no part in a step


@functools.cache
def near(name, sweeps=8):
    """P = P(Q) after a few sweeps: neither far from a minimum nor at one."""
    state, everyone = cases.start(name), (jnp.ones(10, bool), jnp.ones(9, bool))
    for _ in range(sweeps):
        found = sweep_rows(state, *everyone, cases.rule(name))
        state = found.after
    return sweep_rows(state, *everyone, cases.rule(name)).here


def newton(name, state, tolerance, damping, at=None):
    """A step, with the inverses of the blocks at `at` or at the state itself."""
    inverse = _blocks(state if at is None else at, cases.rule(name))
    return _newton(state, inverse, jnp.asarray(tolerance), jnp.asarray(damping), cases.rule(name))


@functools.cache
def halves(name):
    """(P, Q) flat, without the empty rows -> half the gradient and Hessian of the double sum."""
    d = cases.dense(name, cases.small())
    k = cases.RANK + d.biases

    def half(flat):
        p, q = flat[: U * k].reshape(U, k), flat[U * k :].reshape(M, k)
        both = jnp.zeros((10, k)).at[:U].set(p), jnp.zeros((9, k)).at[:M].set(q)
        return cases.objective(d, *both) / 2

    return jax.jit(lambda flat: (jax.grad(half)(flat), jax.hessian(half)(flat)))


def dense(name, state):
    """(half the gradient, S, F_QQ) of the items, by elimination of the users."""
    flat = jnp.concatenate([state.user[:U].ravel(), state.item[:M].ravel()])
    g, h = (np.asarray(a) for a in halves(name)(flat))
    n = state.user[:U].size
    assert np.abs(g[:n]).max() < 1e-12  # P = P(Q)
    return g[n:], h[n:, n:] - h[n:, :n] @ np.linalg.solve(h[:n, :n], h[:n, n:]), h[n:, n:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damping", [0.1, 0.4])
def test_a_step_solves_the_dense_schur_complement(x64, name, damping):
    state = near(name)
    step = newton(name, state, 1e-11, damping)
    g, s, curvature = dense(name, state)
    d = np.asarray(step.direction)[:M].ravel()
    assert int(step.status) == Solved.CONVERGED and not step.direction[M].any()
    left = (s + damping * curvature) @ d + g
    assert np.linalg.norm(left) < 1e-9 * np.linalg.norm(g)
    assert np.linalg.norm(g) > 1e-3  # or the line above would say nothing


def test_inverses_of_other_factors_are_an_elimination_by_another_matrix(x64):
    """F_QQ - F_QP B F_PQ, with B the inverse of F_PP where the blocks were made."""
    state, before = near("biases"), near("biases", 5)
    step = newton("biases", state, 1e-11, 0.4, at=before)
    g, _, curvature = dense("biases", state)
    flat = jnp.concatenate([state.user[:U].ravel(), state.item[:M].ravel()])
    then = jnp.concatenate([before.user[:U].ravel(), before.item[:M].ravel()])
    now, old = (np.asarray(halves("biases")(x)[1]) for x in (flat, then))
    n = U * 3
    s = now[n:, n:] - now[n:, :n] @ np.linalg.solve(old[:n, :n], now[:n, n:])
    d = np.asarray(step.direction)[:M].ravel()
    assert int(step.status) == Solved.CONVERGED and g @ d < 0
    assert np.linalg.norm((s + 0.4 * curvature) @ d + g) < 1e-9 * np.linalg.norm(g)
    exact = np.asarray(newton("biases", state, 1e-11, 0.4).direction)[:M].ravel()
    assert np.linalg.norm(d - exact) > 1e-4 * np.linalg.norm(d)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_promises_what_the_quadratic_model_falls_by(x64, name):
    """The model of the objective itself, which is twice what is called f here."""
    state = near(name)
    g, s, _ = dense(name, state)
    for damping in (0.0, 0.3):
        step = newton(name, state, 1e-11, damping)
        d = np.asarray(step.direction)[:M].ravel()
        fall = -(2 * g @ d + d @ s @ d)
        if damping:
            assert float(step.promised) < float(fall) < 2 * float(step.promised)
        else:
            np.testing.assert_allclose(step.promised, fall, rtol=1e-8)


def test_a_step_of_one_product_is_an_alternating_sweep_further(x64):
    """The preconditioner is F_QQ: the first direction of the solve is that of the sweep."""
    state, rule = near("biases"), cases.rule("biases")
    everyone = jnp.ones(10, bool), jnp.ones(9, bool)
    swept = np.asarray(sweep_rows(state, *everyone, rule).after.item - state.item)
    found = newton("biases", state, 0.99, 0.0)
    assert int(found.iterations) == 1
    step = np.asarray(found.direction)
    cosine = (step * swept).sum() / np.linalg.norm(step) / np.linalg.norm(swept)
    np.testing.assert_allclose(cosine, 1, rtol=1e-12)


def test_near_a_minimum_steps_converge_at_second_order(x64):
    """The gradient after a whole step is of the order of its square."""
    state, _ = cases.fitted("biases")
    rule, everyone = cases.rule("biases"), (jnp.ones(10, bool), jnp.ones(9, bool))
    rng = np.random.default_rng(0)
    kick = rng.standard_normal(state.item.shape)
    gradient = []
    for size in (1e-3, 1e-4):
        moved = state._replace(item=state.item + size * kick)
        here = sweep_rows(moved, *everyone, rule).here
        step = newton("biases", here, size, 0.0)
        there = here._replace(item=here.item + step.direction)
        gradient.append(float(sweep_rows(there, *everyone, rule).gradient))
    assert gradient[1] < 0.03 * gradient[0]


def test_negative_curvature_ends_the_solve_and_says_so(x64):
    """At factors of almost zero, a saddle of the objective."""
    state, rule = cases.start("biases"), cases.rule("biases")
    tiny = state._replace(item=1e-3 * state.item)
    here = sweep_rows(tiny, jnp.ones(10, bool), jnp.ones(9, bool), rule).here
    step = newton("biases", here, 1e-6, 0.0)
    assert int(step.status) == Solved.INDEFINITE
    assert np.isfinite(step.direction).all() and float(step.promised) >= 0
