"""Half-sweeps: every row is the ridge regression of a dense solve, and knows what it gained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.factorisation.alternating import sweep_rows
from jaxunlearn.factorisation.row_passes import gradients
from jaxunlearn.factorisation.row_solves import Solver
from jaxunlearn.linalg import woodbury
from jaxunlearn.methods.exact.als import remove_from_row
from tests.methods import als_cases as cases

every = pytest.mark.parametrize("name", cases.OBJECTIVES)
SOLVERS = {
    "cg of many steps": Solver("cg", 64, 1e-13, 1),
    "cg of few steps": Solver("cg", 6, 1e-13, 1),
    "block": Solver("block", 1, 0.0, 1),
}


def chosen(state, users=True, items=True):
    return jnp.full(len(state.user), users), jnp.full(len(state.item), items)


@every
def test_both_halves_of_a_sweep_are_dense_ridge_regressions(x64, name):
    """From random factors, also of a user and an item that nobody knows anything of."""
    state, d = cases.start(name), cases.dense(name, cases.small())
    found = sweep_rows(state, *chosen(state), cases.rule(name))
    p = cases.solved(d, state.item)
    q = cases.solved(d.turned, p)
    np.testing.assert_allclose(found.here.user, p, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found.here.item, state.item)
    np.testing.assert_allclose(found.after.item, q, rtol=1e-10, atol=1e-12)
    assert not found.after.user[9].any() and not found.after.item[8].any()
    assert int(found.singular) == 0


@every
def test_what_a_sweep_says_of_the_objective_and_the_gradient_is_measured(x64, name):
    state, d = cases.start(name), cases.dense(name, cases.small())
    found = sweep_rows(state, *chosen(state), cases.rule(name))
    before, here, after = (
        cases.objective(d, np.asarray(s.user), np.asarray(s.item))
        for s in (state, found.here, found.after)
    )
    assert after < here < before
    np.testing.assert_allclose(found.measured, here, rtol=1e-11)
    np.testing.assert_allclose(found.here.objective, here, rtol=1e-11)
    np.testing.assert_allclose(found.after.objective, after, rtol=1e-11)
    np.testing.assert_allclose(found.fall, before - after, rtol=1e-11)
    user, item = cases.half_gradient(d, found.here.user, found.here.item)
    np.testing.assert_allclose(found.gradient, np.abs(item[:8]).max(), rtol=1e-10)
    assert np.abs(user[:9]).max() < 1e-12


@pytest.mark.parametrize("name", ["biases", "ials"])
def test_gradients_are_those_of_the_double_sum(x64, name):
    """Off the minimum of either side."""
    state, d = cases.start(name), cases.dense(name, cases.small())
    problem, rule = cases.rule(name).problem, cases.rule(name)
    user, item = cases.half_gradient(d, state.user, state.item)
    sides = (
        (state.user, state.user_count, state.users, state.item, user, 9),
        (state.item, state.item_count, state.items, state.user, item, 8),
    )
    for own, number, side, other, expected, rated in sides:
        beside = rule.view(other, state.mean)
        g = jax.jit(lambda *a: gradients(problem, *a))(beside, state.entries, number, own, side)
        np.testing.assert_allclose(g[:rated], expected[:rated], rtol=1e-11, atol=1e-12)


def test_rows_that_are_not_chosen_stay_as_they_are_bit_for_bit(x64):
    state, rule = cases.start("explicit"), cases.rule("explicit")
    users, items = (np.zeros(n, bool) for n in (10, 9))
    users[[2, 7]], items[4] = True, True
    found = sweep_rows(state, jnp.asarray(users), jnp.asarray(items), rule).after
    np.testing.assert_array_equal(found.user[~users], state.user[~users])
    np.testing.assert_array_equal(found.item[~items], state.item[~items])
    d = cases.dense("explicit", cases.small())
    p = np.where(users[:, None], cases.solved(d, state.item), state.user)
    np.testing.assert_allclose(found.user, p, rtol=1e-10)
    q = cases.solved(d.turned, p)
    np.testing.assert_allclose(found.item[4], q[4], rtol=1e-10)


def test_nothing_chosen_is_nothing_done(x64):
    state = cases.start("explicit")
    found = sweep_rows(state, *chosen(state, False, False), cases.rule("explicit"))
    np.testing.assert_array_equal(found.after.user, state.user)
    np.testing.assert_array_equal(found.after.item, state.item)
    assert float(found.fall) == float(found.gradient) == 0


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_iterative_solvers_say_exactly_how_far_the_objective_fell(x64, solver):
    """Blocks of one coordinate: each row by Gauss-Seidel, which dense loops can follow."""
    name = "ials"
    state, d = cases.start(name), cases.dense(name, cases.small())
    found = sweep_rows(state, *chosen(state), cases.rule(name)._replace(solver=SOLVERS[solver]))
    if solver == "block":
        q, p = np.asarray(state.item), np.array(state.user)
        p[9] = 0
        for u in range(9):
            a = (q.T * d.weight[u]) @ q + d.penalty[0][u] * np.eye(2)
            b = q.T @ (d.weight[u] * d.target[u])
            for k in range(2):
                p[u, k] -= (a[k] @ p[u] - b[k]) / a[k, k]
    else:
        p = cases.solved(d, state.item)
    np.testing.assert_allclose(found.here.user, p, rtol=1e-9, atol=1e-12)
    for s in (found.here, found.after):
        true = cases.objective(d, np.asarray(s.user), np.asarray(s.item))
        np.testing.assert_allclose(s.objective, true, rtol=1e-10)


def test_conjugate_gradients_stop_at_the_tolerance_and_at_the_steps(x64):
    """One step of two leaves a residual."""
    state, d, rule = cases.start("ials"), cases.dense("ials", cases.small()), cases.rule("ials")

    def residual(solver):
        p = np.asarray(sweep_rows(state, *chosen(state), rule._replace(solver=solver)).here.user)
        user, _ = cases.half_gradient(d, p, state.item)
        b, _ = cases.half_gradient(d, 0 * p, state.item)
        return (np.linalg.norm(user[:9], axis=1) / np.linalg.norm(b[:9], axis=1)).max()

    assert 1e-3 < residual(Solver("cg", 1, 1e-13, 1))
    assert residual(SOLVERS["cg of few steps"]) < 1e-12


# ------------------------------------------------------------- a row from which ratings are removed


remove = jax.jit(remove_from_row)


def row(seed=0, n=12, k=4):
    rng = np.random.default_rng(seed)
    q, r, w = rng.standard_normal((n, k)), rng.normal(3, 1, n), rng.uniform(0.5, 2, n)
    return q, w, w * r


def solve(q, w, s, *, penalty=0.5):
    a = (q.T * w) @ q + penalty * np.eye(q.shape[1])
    return a, np.linalg.solve(a, q.T @ s)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-4)])
@pytest.mark.parametrize("gone", [1, 3, 7])
def test_removing_from_a_row_is_solving_the_row_without(x64, gone, tolerance):
    with jax.enable_x64(x64):
        q, w, s = row()
        a, p = solve(q, w, s)
        there = np.arange(7) < gone  # the others of weight 0: one program for all
        cut = jnp.asarray(q[:7]), jnp.asarray(w[:7] * there), jnp.asarray(s[:7] * there)
        inverse, fewer, k = remove(woodbury.inverse(jnp.asarray(a)), jnp.asarray(p), *cut)
        left, expected = solve(q[gone:], w[gone:], s[gone:])
        np.testing.assert_allclose(fewer, expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            woodbury.apply(inverse, jnp.eye(4)), np.linalg.inv(left), rtol=tolerance, atol=tolerance
        )
        root = q[:gone] * np.sqrt(w[:gone])[:, None]
        capacitance = np.eye(gone) - root @ np.linalg.solve(a, root.T)
        smallest = np.linalg.eigvalsh(capacitance)[0]
        np.testing.assert_allclose(k.smallest, smallest, rtol=100 * tolerance)
        assert int(k.status) == woodbury.Status.SOLVED and 0 < float(k.smallest) <= 1


def test_one_rating_after_another_is_all_of_them_at_once(x64):
    q, w, s = (jnp.asarray(x) for x in row())
    a, p = solve(np.asarray(q), np.asarray(w), np.asarray(s))
    inverse, now = woodbury.inverse(jnp.asarray(a)), jnp.asarray(p)
    for n in range(2):
        inverse, now, _ = remove(inverse, now, *(x[n : n + 1] for x in (q, w, s)))
    np.testing.assert_allclose(
        now, solve(np.asarray(q)[2:], np.asarray(w)[2:], np.asarray(s)[2:])[1], rtol=1e-10
    )


def test_removing_what_a_row_never_had_is_reported(x64):
    q, w, s = (jnp.asarray(x) for x in row())
    a, p = solve(np.asarray(q)[1:], np.asarray(w)[1:], np.asarray(s)[1:], penalty=0.01)
    never = 50 * q[:1], w[:1], s[:1]
    _, fewer, k = remove(woodbury.inverse(jnp.asarray(a)), jnp.asarray(p), *never)
    assert int(k.status) == woodbury.Status.CLIPPED and np.isfinite(fewer).all()
