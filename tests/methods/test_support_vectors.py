"""Machines of other losses: each against scikit-learn, each deletion against a refit.

Requests are of up to eight or of all rows, so that few programs are compiled.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.curvature import displaced, linearised, tangent_kernel
from jaxunlearn.kernels import losses as kernel_losses
from jaxunlearn.kernels.decremental import decrement
from jaxunlearn.kernels.dual_ascent import ascend, relative_gap
from jaxunlearn.kernels.dynamics import subgradient_descent
from jaxunlearn.kernels.functions import linear, rbf
from jaxunlearn.kernels.slots import IllConditionedError
from jaxunlearn.linalg.solution import Solved

N, RHO = 40, 0.2
RBF = rbf(gamma=0.5)
LOSSES = {
    "squared": kernel_losses.squared(),
    "hinge": kernel_losses.hinge(),
    "squared_hinge": kernel_losses.squared_hinge(),
    "logistic": kernel_losses.logistic(),
    "epsilon_insensitive": kernel_losses.epsilon_insensitive(0.3),
}
MACHINES = {
    name: ju.kernel_machine(kernel=RBF, rho=RHO, loss=loss) for name, loss in LOSSES.items()
}
SVM = MACHINES["hinge"]
walk = jax.jit(decrement)
ALL = np.ones(N, bool)


def data(dtype=float):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 3))
    return x.astype(dtype), np.sign(x[:, 0] + 0.7 * rng.standard_normal(N)).astype(dtype)


def gauss(x, z):
    """The kernel by its definition."""
    return np.exp(-0.5 * ((x[:, None] - z[None]) ** 2).sum(-1))


def left(rows):
    return np.setdiff1d(np.arange(N), rows)


def support(state):
    return np.flatnonzero(np.asarray(state.alpha))


# -------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("name", LOSSES)
def test_conjugates_slopes_and_coordinate_steps_belong_together(x64, name):
    """l*(u) = sup_f u f - l(f) on a grid; Fenchel-Young holds with equality at slopes and steps."""
    loss, rho, k = LOSSES[name], RHO, 0.7
    f, grid = np.linspace(-2.83, 3.17, 41), np.linspace(-60, 60, 240_001)
    step = (f[1:] - f[:-1]) / 1e4

    @jax.jit
    def of(y):
        beta = -loss.slope(y, f)
        at_slopes = loss.value(y, f) + loss.conjugate(y, beta) + beta * f
        sup = (-beta[:5, None] * grid[None] - loss.value(y, grid)[None]).max(axis=1)
        differences = (loss.value(y, f[:-1] + step) - loss.value(y, f[:-1])) / step
        a = loss.coordinate(y, f, jnp.asarray(k), jnp.asarray(rho))  # f is what others predict
        at = f + k * a
        at_steps = loss.value(y, at) + loss.conjugate(y, rho * a) + rho * a * at
        return at_slopes, at_steps, beta, loss.conjugate(y, beta[:5]), sup, differences

    for y in (-1.0, 1.0):
        at_slopes, at_steps, beta, conjugate, sup, differences = map(np.asarray, of(y))
        np.testing.assert_allclose(at_slopes, 0, atol=1e-12)
        np.testing.assert_allclose(at_steps, 0, atol=1e-12)
        np.testing.assert_allclose(conjugate, sup, atol=1e-4)
        np.testing.assert_allclose(differences, -beta[:-1], atol=1e-3)


def oracle(name, x, y):
    """scikit-learn on a factor of the kernel, without intercept: predictions at x."""
    svm, linear_model = (pytest.importorskip(f"sklearn.{m}") for m in ("svm", "linear_model"))
    tight = {"tol": 1e-9, "max_iter": 1_000_000, "fit_intercept": False}
    c = 1 / RHO
    model = {
        "squared": lambda: linear_model.Ridge(alpha=RHO, fit_intercept=False),
        "hinge": lambda: svm.LinearSVC(C=c, loss="hinge", **tight),
        "squared_hinge": lambda: svm.LinearSVC(C=c / 2, loss="squared_hinge", **tight),
        "logistic": lambda: linear_model.LogisticRegression(C=c, solver="newton-cholesky", **tight),
        "epsilon_insensitive": lambda: svm.LinearSVR(C=c, epsilon=0.3, **tight),
    }[name]()
    values, vectors = np.linalg.eigh(gauss(x, x))
    features = vectors * np.sqrt(np.maximum(values, 0))
    return features @ model.fit(features, y).coef_.ravel()


@pytest.mark.parametrize("name", LOSSES)
def test_deletion_equals_a_refit_and_the_neighbour_agrees(x64, name):
    x, y = data()
    machine = MACHINES[name]
    state = machine.init(x, y)
    np.testing.assert_allclose(machine.predict(state, x), oracle(name, x, y), atol=1e-4)
    gone = support(state)[:5]
    forgotten = machine.forget(state, gone)
    again = oracle(name, x[left(gone)], y[left(gone)])
    predicted = np.asarray(machine.predict(forgotten, x))
    np.testing.assert_allclose(predicted[left(gone)], again, atol=1e-4)
    expected = np.asarray(machine.predict(machine.refit(forgotten), x))
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    assert np.abs(np.asarray(machine.predict(state, x)) - expected).max() > 0.05
    assert float(forgotten.gap) < 1e-13 and not np.asarray(forgotten.alpha)[gone].any()
    back = machine.learn(forgotten, gone, x[gone], y[gone])
    np.testing.assert_allclose(machine.predict(back, x), machine.predict(state, x), atol=1e-6)


def test_the_machine_of_the_squared_loss_is_kernel_ridge(x64):
    x, y = data()
    ridge = ju.kernel_ridge(kernel=RBF, rho=RHO)
    state = MACHINES["squared"].init(x, y)
    np.testing.assert_allclose(state.alpha, ridge.init(x, y).alpha, atol=1e-5)


@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "epsilon_insensitive"])
def test_rows_that_support_nothing_leave_without_a_trace(x64, name):
    x, y = data()
    machine = MACHINES[name]
    state = machine.init(x, y)
    others = np.setdiff1d(np.arange(N), support(state))
    assert len(others) > 4
    forgotten = machine.forget(state, others[:5])
    np.testing.assert_array_equal(forgotten.alpha, state.alpha)
    np.testing.assert_array_equal(machine.predict(forgotten, x), machine.predict(state, x))
    assert not np.asarray(forgotten.x)[others[:5]].any()
    assert int(forgotten.events) == int(forgotten.epochs) == 0


# -------------------------------------------------------------------------------- decremental path


def test_the_path_alone_ends_at_the_refit(x64):
    """All sizes of request up to all support vectors, with no dual ascent behind it."""
    x, y = data()
    state = SVM.init(x, y)
    events = []
    for count in (1, 5, len(support(state))):
        gone = np.isin(np.arange(N), support(state)[:count])
        path = walk(state.gram, state.y, state.alpha, ALL, gone, RHO)
        request = np.resize(np.flatnonzero(gone), N)  # with repeats: one program for all sizes
        expected = SVM.refit(SVM.forget(state, request)).alpha
        np.testing.assert_allclose(path.alpha, expected, atol=1e-8)
        a = y * np.asarray(path.alpha)
        margin = (a > 0) & (a < 1 / RHO)  # to the last bits, though roundings add up on the way
        f = np.asarray(state.gram) @ np.asarray(path.alpha)
        np.testing.assert_allclose((y * f)[margin], 1, rtol=0, atol=6e-15)
        assert bool(path.arrived) and not np.asarray(path.alpha)[gone].any()
        events.append(int(path.events))
    assert 0 < events[0] < events[2]


def test_the_hinge_needs_no_ascent_after_its_path(x64):
    x, y = data()
    state = SVM.init(x, y)
    forgotten = SVM.forget(state, support(state)[:5])
    assert int(forgotten.events) > 0 and int(forgotten.epochs) == 0


def test_margin_rows_that_depend_on_each_other_are_left_to_dual_ascent(x64):
    """A linear kernel of three inputs has rank three."""
    x, y = data()
    machine = ju.kernel_machine(kernel=linear, rho=5.0)
    state = machine.init(np.round(x), y)
    gone = support(state)[:5]
    forgotten = machine.forget(state, gone)
    again = machine.refit(forgotten)
    np.testing.assert_allclose(machine.predict(forgotten, x), machine.predict(again, x), atol=1e-6)
    gram, y, pair = np.eye(N), np.ones(N), np.zeros(N)
    gram[:2, :2] = k = 0.7  # one row, twice, at its margin
    pair[:2] = 0.5 / k
    kept, gone = np.arange(N) < 2, np.arange(N) == 1
    path = walk(gram, y, pair, kept, gone, 0.01)
    assert bool(path.arrived)
    np.testing.assert_allclose(path.alpha, np.where(np.arange(N) == 0, 1 / k, 0), rtol=1e-12)


def test_forgetting_twice_all_or_nothing(x64):
    x, y = data()
    state = SVM.init(x, y)
    once = SVM.forget(state, support(state)[:5])
    np.testing.assert_array_equal(SVM.forget(once, support(state)[:5]).alpha, once.alpha)
    smooth = MACHINES["squared_hinge"].init(x, y)
    np.testing.assert_array_equal(MACHINES["squared_hinge"].forget(smooth, []).alpha, smooth.alpha)
    empty = SVM.forget(state, np.arange(N))
    np.testing.assert_array_equal(SVM.predict(empty, x), 0)
    assert float(empty.gap) == 0


@pytest.mark.parametrize("name", ["squared_hinge", pytest.param("hinge", marks=pytest.mark.slow)])
def test_many_requests_at_once_are_each_alone(x64, name):
    x, y = data()
    machine = MACHINES[name]
    state = machine.init(x, y)
    first, second = support(state)[:8], support(state)[8:16]
    many = jax.jit(jax.vmap(machine.forget, in_axes=(None, 0)))(state, np.stack([first, second]))
    for i, rows in enumerate((first, second)):
        alone = machine.forget(state, rows).alpha
        np.testing.assert_allclose(np.asarray(many.alpha)[i], alone, atol=1e-10)


# --------------------------------------------------------------------------------- the certificate


def test_the_gap_bounds_how_far_predictions_can_be(x64):
    x, y = data()
    state = SVM.init(x, y)
    best = np.asarray(SVM.predict(state, x))
    gram = np.asarray(state.gram)
    solve = jax.jit(partial(ascend, loss=LOSSES["squared_hinge"], rho=RHO, tolerance=1e-14))
    exact = MACHINES["squared_hinge"].predict(MACHINES["squared_hinge"].init(x, y), x)
    for epochs in (1, 3, 10):
        dual = solve(state.gram, state.y, ALL, np.zeros(N), epochs=epochs)
        off = np.abs(gram @ np.asarray(dual.alpha) - exact).max()
        assert int(dual.status) == Solved.EXHAUSTED and int(dual.epochs) == epochs
        assert off <= np.sqrt(2 * float(dual.gap) * N / 2 / RHO)  # P(0) = n / 2
    wrong = np.array(state.alpha)
    wrong[support(state)[0]] *= 0.9
    of = jax.jit(partial(relative_gap, loss=LOSSES["hinge"], rho=RHO))
    gap = float(of(state.gram, state.y, wrong, ALL))
    assert np.abs(gram @ wrong - best).max() <= np.sqrt(2 * gap * N / RHO)
    assert gap > 1e-6


def test_float32_reaches_its_own_tolerance():
    x, y = data(np.float32)
    state = SVM.init(x, y)
    gone = support(state)[:5]
    forgotten = SVM.forget(state, gone)
    again = SVM.refit(forgotten)
    assert forgotten.alpha.dtype == jnp.float32
    np.testing.assert_allclose(SVM.predict(forgotten, x), SVM.predict(again, x), atol=1e-2)


def test_too_few_epochs_are_an_error_and_a_status():
    x, y = data(np.float32)
    machine = ju.kernel_machine(kernel=RBF, rho=RHO, loss=LOSSES["logistic"], epochs=1)
    with pytest.raises(IllConditionedError, match="init: EXHAUSTED with relative gap.*1 epochs"):
        machine.init(x, y)
    assert int(jax.jit(machine.init)(x, y).status) == Solved.EXHAUSTED


def test_arguments_that_do_not_fit_are_refused():
    x, y = data(np.float32)
    with pytest.raises(ValueError, match="the loss hinge wants labels -1 and 1, got 0"):
        SVM.init(x, np.where(y > 0, 1, 0))
    with pytest.raises(ValueError, match="rho > 0, tolerance > 0 and epochs >= 1.*rho=0"):
        ju.kernel_machine(kernel=RBF, rho=0)
    with pytest.raises(ValueError, match="expected epsilon >= 0, got -1"):
        kernel_losses.epsilon_insensitive(-1)
    state = SVM.init(x[:-1], y[:-1], capacity=N)
    with pytest.raises(ValueError, match="row 39 was never learnt"):
        SVM.forget(state, [N - 1])
    with pytest.raises(ValueError, match="row 3 is learnt already"):
        SVM.learn(state, [3], x[:1], y[:1])
    np.testing.assert_array_equal(SVM.learn(state, [], x[:0], y[:0]).alpha, state.alpha)


# ------------------------------------------------------------------------------------ the dynamics


def steps(count, batch=None):
    rng = np.random.default_rng(1)
    rows = [rng.permutation(N)[: batch or N] for _ in range(count)]
    return np.array(rows)


DESCENT = {"loss": LOSSES["hinge"], "decay": RHO / N, "learning_rate": 0.5}
descend = jax.jit(subgradient_descent, static_argnames=("loss", "shrink"))


def test_descent_ends_near_the_support_vector_machine(x64):
    """lambda = rho / n; a constant learning rate ends in a neighbourhood, so the rate falls."""
    x, y = data()
    state = SVM.init(x, y)
    alpha = np.zeros(N)
    for rate in (1.0, 0.3, 0.1, 0.03, 0.01):
        options = DESCENT | {"learning_rate": rate}
        alpha, values = descend(state.gram, state.y, steps(1500), start=alpha, **options)
    solved, f = np.asarray(state.alpha), np.asarray(state.gram) @ np.asarray(state.alpha)
    best = RHO / 2 * solved @ f / N + np.maximum(0, 1 - y * f).mean()
    last = np.asarray(values)[-100:].min()
    np.testing.assert_allclose(last, best, rtol=2e-3)
    assert last >= best * (1 - 1e-12)


def test_the_published_update_is_descent_only_if_the_batch_is_everything(x64):
    x, y = data()
    gram = gauss(x, x)
    both = [descend(gram, y, steps(50), shrink=how, **DESCENT)[0] for how in ("all", "batch")]
    np.testing.assert_allclose(*both, rtol=1e-12)
    both = [descend(gram, y, steps(50, 4), shrink=how, **DESCENT)[0] for how in ("all", "batch")]
    assert np.abs(np.asarray(both[0]) - np.asarray(both[1])).max() > 0.01


def test_descent_without_rows_is_descent_on_the_others(x64):
    x, y = data()
    gram, kept = gauss(x, x), np.arange(N) >= 5
    out, values = descend(gram, y, steps(20), kept=kept, **DESCENT)
    rows = np.broadcast_to(np.arange(N - 5), (20, N - 5))
    alone, expected = descend(gram[5:, 5:], y[5:], rows, **DESCENT)
    np.testing.assert_allclose(np.asarray(out)[5:], alone, rtol=1e-12)
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert not np.asarray(out)[:5].any()


def test_the_linear_model_of_a_network_follows_the_kernel_step_by_step(x64):
    """Mini-batch descent on parameters = descent on alpha over the tangent kernel, exactly."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.standard_normal((3, 5)))
    model = ju.Model(
        outputs=lambda p, b: (jnp.tanh(b["x"] @ p) ** 2).sum(1), loss=lambda p, b: b["x"][:, 0]
    )
    x, y = data()
    batch, y, batches = {"x": jnp.asarray(x)}, jnp.asarray(y), steps(12, 7)

    def loss(p, rows):
        f = (linearised(model, params, p, batch) - model.outputs(params, batch))[rows]
        pull = DESCENT["decay"] / 2 * ((p - params) ** 2).sum()
        return pull + LOSSES["hinge"].value(y[rows], f).mean()

    @jax.jit
    def step(theta, rows):
        return theta - DESCENT["learning_rate"] * jax.grad(loss)(theta, rows)

    theta = params
    for rows in batches:
        theta = step(theta, rows)

    @jax.jit
    def by_the_kernel(params, batch):
        gram = tangent_kernel(model, params, batch, outputs="trace")
        alpha, _ = subgradient_descent(gram, y, jnp.asarray(batches), **DESCENT)
        return displaced(model, params, batch, alpha)

    np.testing.assert_allclose(by_the_kernel(params, batch), theta, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": "batches"}, "Did you mean 'batch'"),
        ({"decay": -1.0}, "decay >= 0 and learning_rate > 0.*decay=-1"),
        ({"learning_rate": 0.0}, "decay >= 0 and learning_rate > 0.*learning_rate=0"),
    ],
)
def test_descent_refuses_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        subgradient_descent(np.eye(N), np.ones(N), steps(1), **(DESCENT | options))
