"""Kernel ridge that forgets: every deletion against a refit on what is left, by NumPy.

Requests are of one, of up to four or of all rows, so that few programs are compiled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.curvature import displaced, linearised
from jaxunlearn.kernels.functions import linear, rbf, relu_tangent, tangent
from jaxunlearn.kernels.slots import IllConditionedError, Slot
from jaxunlearn.kernels.spectrum import leave_out_per_row, spectrum
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact import kernel

N, RHO = 20, 0.1
RBF = rbf(gamma=0.5)
MACHINE = ju.kernel_ridge(kernel=RBF, rho=RHO)


def data(seed=0, n=N, dtype=float):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 3)), rng.standard_normal((n, 2))
    return x.astype(dtype), y.astype(dtype)


def left(*rows):
    return np.setdiff1d(np.arange(N), rows)


def gauss(x, z):
    """The kernel by its definition."""
    return np.exp(-0.5 * ((x[:, None] - z[None]) ** 2).sum(-1))


def dense(x, y, rho=RHO):
    """alpha by NumPy, of the kernel of these rows."""
    return np.linalg.solve(gauss(x, x) + rho * np.eye(len(x)), y)


def of(rows, array):
    """Some rows of an array of a state, by NumPy."""
    return np.asarray(array)[rows]


# ------------------------------------------------------------------------------ equal to retraining


def test_forgetting_equals_a_refit_on_what_is_left(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    np.testing.assert_allclose(state.alpha, dense(x, y), rtol=1e-10, atol=1e-10)
    gone, keep = [7, 3, 11], left(3, 7, 11)
    expected = dense(x[keep], y[keep])
    forgotten = MACHINE.forget(state, gone)
    np.testing.assert_allclose(of(keep, forgotten.alpha), expected, rtol=1e-10, atol=1e-10)
    left_out = of(keep, MACHINE.leave_out(state, gone))
    np.testing.assert_allclose(left_out, expected, rtol=1e-9, atol=1e-9)
    points = data(1)[0]
    np.testing.assert_allclose(
        MACHINE.predict(forgotten, points), gauss(points, x[keep]) @ expected, rtol=1e-9, atol=1e-10
    )
    assert np.abs(of(keep, state.alpha) - expected).max() > 0.1


def test_requests_one_after_another_are_one_request(x64):
    x, y = data()
    state = once = MACHINE.init(x, y)
    for row in (7, 3, 11, 0):
        state = MACHINE.forget(state, [row])
    once = MACHINE.forget(once, [0, 3, 7, 11])
    np.testing.assert_allclose(state.alpha, once.alpha, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(state.inverse, once.inverse, rtol=1e-9, atol=1e-10)


def test_leaving_one_out_equals_as_many_refits(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    expected = [gauss(x[i : i + 1], x[left(i)]) @ dense(x[left(i)], y[left(i)]) for i in range(N)]
    got = MACHINE.leave_one_out(state)
    np.testing.assert_allclose(got, np.concatenate(expected), rtol=1e-9, atol=1e-10)
    alpha = MACHINE.leave_out(state, [4])
    np.testing.assert_allclose(gauss(x[4:5], x) @ alpha, expected[4], rtol=1e-9, atol=1e-10)


def test_what_was_forgotten_can_be_learnt_again(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    rows = np.array([3, 11, 7])
    back = MACHINE.learn(MACHINE.forget(state, rows), rows[::-1], x[rows[::-1]], y[rows[::-1]])
    for name in ("inverse", "alpha", "gram", "x", "y"):
        np.testing.assert_allclose(
            getattr(back, name), getattr(state, name), rtol=1e-9, atol=1e-10, err_msg=name
        )
    np.testing.assert_array_equal(back.slots, Slot.LEARNT)


def test_learning_into_empty_slots_is_learning_at_once(x64):
    x, y = data()
    state = MACHINE.init(x[:17], y[:17], capacity=N)
    assert (np.asarray(state.slots)[17:] == Slot.EMPTY).all()
    grown = MACHINE.learn(state, np.arange(17, N), x[17:], y[17:])
    np.testing.assert_allclose(grown.alpha, dense(x, y), rtol=1e-9, atol=1e-10)
    same = MACHINE.learn(grown, [], x[:0], y[:0])
    np.testing.assert_array_equal(same.alpha, grown.alpha)


def test_float32_keeps_its_digits_where_rho_is_as_large_as_it_wants():
    x, y = data(dtype=np.float32)
    state = MACHINE.forget(MACHINE.init(x, y), [3, 7, 11])
    assert state.alpha.dtype == jnp.float32
    keep = left(3, 7, 11)
    exact = dense(x[keep].astype(float), y[keep].astype(float))
    np.testing.assert_allclose(of(keep, state.alpha), exact, atol=1e-3 * np.abs(exact).max())


def test_a_thousand_requests_do_not_drift(x64):
    """Rows go and come back at random; nothing is refitted in between."""
    x, y = data()
    rng = np.random.default_rng(0)
    state = MACHINE.init(x, y)
    start = state

    @jax.jit
    def many(state, rows):
        def one(s, row):
            s = MACHINE.forget(s, row[None])
            return MACHINE.learn(s, row[None], jnp.asarray(x)[row][None], y_of[row][None]), s.error

        return jax.lax.scan(one, state, rows)

    y_of = jnp.asarray(y)
    state, errors = many(state, jnp.asarray(rng.integers(0, N, 500)))
    np.testing.assert_allclose(state.alpha, start.alpha, rtol=1e-9, atol=1e-10)
    assert float(errors.max()) < 1e-10


def test_the_neighbour_agrees(x64):
    sklearn = pytest.importorskip("sklearn.kernel_ridge")
    x, y = data()
    keep = left(5)
    theirs = sklearn.KernelRidge(alpha=RHO, kernel="rbf", gamma=0.5).fit(x[keep], y[keep])
    ours = MACHINE.forget(MACHINE.init(x, y), [5])
    np.testing.assert_allclose(MACHINE.predict(ours, x), theirs.predict(x), rtol=1e-8, atol=1e-9)


# --------------------------------------------------------------------------- the other convention


def test_a_ridge_per_row_is_another_answer_and_equals_its_own_refit(x64):
    x, y = data()
    machine = ju.kernel_ridge(kernel=RBF, rho=RHO / N, per_row=True)
    state = machine.init(x, y)
    np.testing.assert_allclose(state.alpha, dense(x, y), rtol=1e-9, atol=1e-10)
    gone, keep = [3, 7, 11], left(3, 7, 11)
    expected = dense(x[keep], y[keep], RHO * len(keep) / N)
    forgotten = machine.forget(state, gone)
    np.testing.assert_allclose(of(keep, forgotten.alpha), expected, rtol=1e-9, atol=1e-10)
    assert np.abs(expected - dense(x[keep], y[keep])).max() > 1e-2
    back = machine.learn(forgotten, gone, x[gone], y[gone])
    np.testing.assert_allclose(back.alpha, state.alpha, rtol=1e-9, atol=1e-10)
    modes = spectrum(jnp.asarray(gauss(x, x)))
    requests = jnp.array([gone, [0, 1, -1]])
    many = jax.jit(jax.vmap(lambda rows: leave_out_per_row(modes, jnp.asarray(y), rows, RHO / N)))
    one, other = np.asarray(many(requests))
    np.testing.assert_allclose(one[keep], expected, rtol=1e-8, atol=1e-9)
    expected = dense(x[2:], y[2:], RHO * (N - 2) / N)
    np.testing.assert_allclose(other[2:], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("verb", ["leave_out", "leave_one_out"])
def test_a_ridge_per_row_has_no_leave_out_at_a_fixed_ridge(verb):
    machine = ju.kernel_ridge(kernel=RBF, rho=RHO, per_row=True)
    state = machine.init(*data(dtype=np.float32))
    with pytest.raises(ValueError, match=f"{verb}: the ridge changes with the rows"):
        getattr(machine, verb)(state, *([[1]] if verb == "leave_out" else []))


# -------------------------------------------------------------------------- networks made linear


def test_several_outputs_forget_as_parameters_of_the_linear_model(x64):
    """theta' = theta + J_S^T alpha_S' is the ridge solution on S in parameter space."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((3, 4)))}
    model = ju.Model(
        outputs=lambda p, b: (jnp.tanh(b["x"] @ p["w"]) ** 2).reshape(-1, 2, 2).sum(1),
        loss=lambda p, b: b["x"][:, 0],
    )
    x, y = data(n=6)
    batch, n = {"x": jnp.asarray(x)}, 6
    at_start = np.asarray(jax.jit(model.outputs)(params, batch))
    residual = y - at_start
    machine = ju.kernel_ridge(kernel=tangent(model, params, block=None), rho=RHO)
    state = machine.init(batch, residual)
    assert state.gram.shape == (2 * n, 2 * n) and state.alpha.shape == (n, 2)
    forgotten = machine.forget(state, [4, 1])
    moved = jax.jit(displaced, static_argnums=0)(model, params, state.x, forgotten.alpha)
    keep = np.array([0, 2, 3, 5])
    jac = jax.jit(jax.jacfwd(lambda w: model.outputs({"w": w}, batch)))(params["w"])
    rows = np.asarray(jac).reshape(n, 2, -1)[keep].reshape(-1, 12)
    gram = rows.T @ rows + RHO * np.eye(12)
    step = np.linalg.solve(gram, rows.T @ residual[keep].ravel())
    went = np.asarray(moved["w"]) - np.asarray(params["w"])
    np.testing.assert_allclose(went.ravel(), step, rtol=1e-8, atol=1e-10)
    lifted = jax.jit(linearised, static_argnums=0)(model, params, moved, batch) - at_start
    np.testing.assert_allclose(machine.predict(forgotten, batch), lifted, rtol=1e-8, atol=1e-10)
    # one row out (twice is once), both outputs of it: a 2 x 2 block of G
    alone = machine.forget(state, [4, 4])
    expected = of(4, machine.predict(alone, batch))
    np.testing.assert_allclose(of(4, machine.leave_one_out(state)), expected, rtol=1e-8)
    back = machine.learn(alone, [4], {"x": x[4:5]}, residual[4:5])
    np.testing.assert_allclose(back.alpha, state.alpha, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------- what the state remembers


def test_nothing_of_a_forgotten_row_is_left_in_the_state(x64):
    x, y = data()
    state = MACHINE.forget(MACHINE.init(x, y), [3, 7, 12])
    for name in ("x", "y", "alpha", "gram", "inverse"):
        leaf = np.asarray(getattr(state, name))
        assert not leaf[[3, 7, 12]].any() and leaf[[2, 4]].any(axis=1).all(), name
    assert not np.asarray(state.gram)[:, [3, 7, 12]].any()


def test_what_a_forgotten_row_held_cannot_be_read_again(x64):
    """NaN written where the row was reaches neither a prediction, a refit nor the next request."""
    x, y = data()
    state = MACHINE.forget(MACHINE.init(x, y), [3])
    bad_x, bad_gram = np.array(state.x), np.array(state.gram)
    bad_x[3] = bad_gram[3] = bad_gram[:, 3] = np.nan
    poisoned = state._replace(x=jnp.asarray(bad_x), gram=jnp.asarray(bad_gram))
    for verb in (MACHINE.refit, lambda s: MACHINE.forget(s, [5])):
        np.testing.assert_array_equal(verb(poisoned).alpha, verb(state).alpha)
    np.testing.assert_array_equal(MACHINE.predict(poisoned, x), MACHINE.predict(state, x))


def test_forgetting_twice_or_nothing_changes_nothing(x64):
    x, y = data()
    state = MACHINE.forget(MACHINE.init(x, y), [3, 7, 12])
    for rows in ([3], [7, 3, 3], []):
        again = MACHINE.forget(state, rows)
        np.testing.assert_array_equal(again.inverse, state.inverse)
        np.testing.assert_array_equal(again.slots, state.slots)
        np.testing.assert_allclose(again.alpha, state.alpha, rtol=1e-12, atol=1e-12)


def test_order_and_repeats_within_a_request_do_not_matter(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    one, other = (MACHINE.forget(state, np.array(rows)) for rows in ([3, 7, 12], [12, 3, 7, 3]))
    np.testing.assert_allclose(one.alpha, other.alpha, rtol=1e-11, atol=1e-12)
    inside = kernel._forget(state, np.int32([12, 3, 7, 3]), rho=RHO, tolerance=1e-2)
    assert int(inside.status) == Solved.CONVERGED  # not by a refit
    what_if = MACHINE.leave_out(state, [12, 3, 7, 3])
    np.testing.assert_allclose(what_if, one.alpha, rtol=1e-9, atol=1e-10)


def test_a_machine_that_forgot_everything_predicts_nothing_and_learns_again(x64):
    x, y = data()
    empty = MACHINE.forget(MACHINE.init(x, y), np.arange(N))
    np.testing.assert_array_equal(MACHINE.predict(empty, x), 0)
    assert int(empty.status) == Solved.CONVERGED
    again = empty
    for rows in np.arange(N).reshape(-1, 4):
        again = MACHINE.learn(again, rows, x[rows], y[rows])
    np.testing.assert_allclose(again.alpha, dense(x, y), rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------- transforms


def test_many_requests_at_once_are_each_alone(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    requests = jnp.array([[3, 7, 12], [5, -1, -1], [0, 19, 1]])
    many = jax.jit(jax.vmap(MACHINE.forget, in_axes=(None, 0)))(state, requests)
    what_if = jax.jit(jax.vmap(MACHINE.leave_out, in_axes=(None, 0)))(state, requests)
    for i, rows in enumerate(([3, 7, 12], [5], [0, 19, 1])):
        alone = MACHINE.forget(state, rows)
        np.testing.assert_allclose(of(i, many.alpha), alone.alpha, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(of(i, what_if), alone.alpha, rtol=1e-9, atol=1e-10)


def test_another_request_of_as_many_rows_compiles_nothing(x64):
    x, y = data()
    start = MACHINE.forget(MACHINE.init(x, y), [1, 2, 4])
    program = kernel._forget  # the one program that runs in a forget
    before = program._cache_size()
    state = start
    for rows in ([5, 6, 8], [9, 10, 11, 12]):  # four with padding, and four
        state = MACHINE.forget(state, rows)
    assert program._cache_size() == before > 0
    ju.kernel_ridge(kernel=RBF, rho=2 * RHO, tolerance=0.1).forget(start, [5, 6, 8])
    assert program._cache_size() == before  # nor does another rho
    MACHINE.forget(start, [5, 6])
    assert program._cache_size() == before + 1


# --------------------------------------------------------------------------------------- failures


def test_a_rho_too_small_for_float32_is_an_error_and_a_status():
    x, y = (np.repeat(a, 2, axis=0) for a in data(n=N // 2, dtype=np.float32))
    machine = ju.kernel_ridge(kernel=RBF, rho=1e-6)
    with pytest.raises(IllConditionedError, match=r"init: (STALLED|INDEFINITE).*Raise rho=1e-06"):
        machine.init(x, y)
    state = jax.jit(machine.init)(x, y)
    assert int(state.status) in (Solved.STALLED, Solved.INDEFINITE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_an_inverse_that_lost_its_digits_is_replaced_outside_and_reported_inside(x64):
    x, y = data()
    state = MACHINE.init(x, y)
    broken = state._replace(inverse=-state.inverse)
    gone = [3, 7, 12]
    healed = MACHINE.forget(broken, gone)
    np.testing.assert_allclose(healed.alpha, MACHINE.forget(state, gone).alpha, rtol=1e-9)
    inside = kernel._forget(broken, np.int32([*gone, -1]), rho=RHO, tolerance=1e-2)
    assert int(inside.status) == Solved.INDEFINITE
    np.testing.assert_array_equal(inside.alpha, broken.alpha)
    drifted = state._replace(inverse=1.5 * state.inverse)
    inside = kernel._forget(drifted, np.int32([*gone, -1]), rho=RHO, tolerance=1e-2)
    assert int(inside.status) == Solved.STALLED
    np.testing.assert_allclose(MACHINE.refit(broken).alpha, state.alpha, rtol=1e-9)
    back = MACHINE.learn(healed._replace(inverse=-healed.inverse), [3], x[3:4], y[3:4])
    expected = MACHINE.forget(state, [7, 12]).alpha
    np.testing.assert_allclose(back.alpha, expected, rtol=1e-8, atol=1e-9)


def test_the_error_bounds_what_it_says_it_bounds():
    """Over rho from harmless to hopeless: alpha in float32 against float64."""
    x, y = data(dtype=np.float32)
    for rho in (1e-1, 1e-2, 1e-3):
        machine = ju.kernel_ridge(kernel=RBF, rho=rho, tolerance=10.0)
        state = machine.init(x, y)
        exact = dense(x.astype(float), y.astype(float), rho)
        off = np.abs(state.alpha - exact).max() / np.abs(exact).max()
        assert off < float(state.error) < 1e4 * max(off, 1e-7)
        system = gauss(x.astype(float), x.astype(float)) + rho * np.eye(N)
        spread = np.linalg.cond(system, 1) * np.finfo(np.float32).eps
        assert float(state.error) > 0.9 * spread


def test_a_kernel_that_is_not_a_number_is_a_status_and_no_prediction():
    x, y = data(dtype=np.float32)
    machine = ju.kernel_ridge(kernel=lambda a, b: jnp.full((len(a), len(b)), jnp.nan), rho=RHO)
    with pytest.raises(IllConditionedError, match="init: NONFINITE"):
        machine.init(x, y)
    state = jax.jit(machine.init)(x, y)
    assert int(state.status) == Solved.NONFINITE and float(state.error) == np.inf
    np.testing.assert_array_equal(state.alpha, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([25], r"row 25 is unknown; ids are in \[0, 20\)"),
        ([-1], r"row -1 is unknown"),
        ([19], r"row 19 was never learnt.*17 rows are learnt"),
    ],
)
def test_unknown_rows_are_refused(rows, message):
    x, y = data(n=17, dtype=np.float32)
    state = MACHINE.init(x, y, capacity=N)
    with pytest.raises(ValueError, match=message):
        MACHINE.forget(state, rows)
    with pytest.raises(ValueError, match=message):
        MACHINE.leave_out(state, rows)


def test_arguments_that_do_not_fit_are_refused():
    x, y = data(dtype=np.float32)
    state = MACHINE.init(x, y)
    with pytest.raises(TypeError, match=r"expected row ids, integers \(m,\), got bool of shape"):
        MACHINE.forget(state, np.ones(N, bool))
    with pytest.raises(ValueError, match="row 3 is learnt already; forget it first"):
        MACHINE.learn(state, [3], x[:1], y[:1])
    state = MACHINE.forget(state, [3, 4, 5])
    with pytest.raises(ValueError, match=r"a row is given twice, \[3, 3\]"):
        MACHINE.learn(state, [3, 3], x[:2], y[:2])
    with pytest.raises(ValueError, match=r"x and y must have 2 rows, one for each id.*\[1\]"):
        MACHINE.learn(state, [3, 4], x[:1], y[:1])
    with pytest.raises(ValueError, match="20 rows do not fit into capacity=5"):
        MACHINE.init(x, y, capacity=5)
    with pytest.raises(ValueError, match=r"NaN or Inf in row 6 of \['y'\]"):
        MACHINE.init(x, np.where(np.arange(N)[:, None] == 6, np.nan, y))
    with pytest.raises(ValueError, match=r"one number of rows, they have \[3, 20\]"):
        MACHINE.init(x[:3], y)


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"rho": 1.0, "tolerance": 0.0}])
def test_constants_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected rho > 0 and tolerance > 0"):
        ju.kernel_ridge(kernel=linear, **options)


@pytest.mark.parametrize(("make", "name"), [(rbf, "gamma"), (relu_tangent, "scale")])
def test_kernels_refuse_constants_that_are_not_positive(make, name):
    with pytest.raises(ValueError, match=f"expected {name} > 0, got -1"):
        make(**{name: -1})


def test_the_primitives_skip_what_is_not_there(x64):
    """Inside a program there are no checks: unknown rows are padding."""
    x, y = data(n=17)
    state = MACHINE.init(x, y, capacity=N)
    out = kernel._forget(state, np.int32([25, 19, -4, 3]), rho=RHO, tolerance=1e-2)
    np.testing.assert_allclose(out.alpha, MACHINE.forget(state, [3]).alpha, rtol=1e-10)
