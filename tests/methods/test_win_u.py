"""WIN-U: Newton steps that equal retraining where theory says so, and dense algebra elsewhere."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.curvature.columns import ggn_columns, output_factor, weighted_gradient
from jaxunlearn.linalg.woodbury import Status, apply
from jaxunlearn.losses import cross_entropy, squared_error
from jaxunlearn.methods.edits.win_u import Curvature, win_u, win_u_curvature, win_u_step
from tests.suite import cases, laws

KEY = jax.random.key(0)
RIDGE = 0.7  # lambda / 2 |theta|^2 beside a sum of squared errors


def linear(output_loss) -> ju.Model:
    def outputs(params, batch):
        return batch["x"] @ params

    def loss(params, batch):
        return output_loss(outputs(params, batch), batch["y"])

    return ju.Model(outputs=outputs, loss=loss)


REGRESSION, SOFTMAX = linear(squared_error), linear(cross_entropy)
squares = partial(win_u, output_loss=squared_error, micro_batch=4)


class Problem(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    data: ju.data.InMemory


def regression(n=24, d=5, outputs=2) -> Problem:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, outputs))
    return Problem(x, y, ju.data.in_memory({"x": x, "y": y, "id": np.arange(n)}, 8))


def retrained(problem, rows, ridge=RIDGE):
    """argmin sum |x theta - y|^2 + ridge/2 |theta|^2 over some rows."""
    x, y = problem.x[rows], problem.y[rows]
    return np.linalg.solve(2 * x.T @ x + ridge * np.eye(x.shape[1]), 2 * x.T @ y)


def stored(problem, theta, **options):
    options = {
        "ridge": RIDGE,
        "damping": 0.0,
        "output_loss": squared_error,
        "micro_batch": 8,
    } | options
    make = jax.jit(partial(win_u_curvature, **options), static_argnames="key")
    return make(REGRESSION, jnp.asarray(theta), problem.data)


def forget(problem, curvature, theta, rows, **options):
    request = ju.Request(problem.data.take(np.asarray(rows)))
    method = squares(curvature=curvature, **options)
    return method.unlearn(REGRESSION, jnp.asarray(theta), request, KEY)


ALL = np.arange(24)


# ------------------------------------------------------------------------ ridge, where it is exact


@pytest.mark.parametrize("count", [1, 7, 23])
def test_on_ridge_regression_it_equals_retraining(x64, count):
    problem = regression()
    theta = retrained(problem, ALL)
    out = forget(problem, stored(problem, theta), theta, ALL[:count])
    np.testing.assert_allclose(out.params, retrained(problem, ALL[count:]), atol=1e-10)
    assert np.abs(out.params - theta).max() > 1e-3
    assert int(out.info.status) == Status.SOLVED and int(out.info.clipped) == 0
    assert 0 < float(out.info.smallest) <= 1 and float(out.info.residual) < 1e-10


def test_on_a_ridge_head_it_is_the_downdate_of_analytic_unlearning(x64):
    """W + R X_f^T S^-1 (X_f W - Y_f), S = I - X_f R X_f^T, with A = X^T X + ridge/2 I."""
    problem = regression()
    theta, x, y = retrained(problem, ALL), problem.x[:6], problem.y[:6]
    r = np.linalg.inv(problem.x.T @ problem.x + RIDGE / 2 * np.eye(5))
    s = np.eye(6) - x @ r @ x.T
    expected = theta + r @ x.T @ np.linalg.solve(s, x @ theta - y)
    out = forget(problem, stored(problem, theta), theta, ALL[:6])
    np.testing.assert_allclose(out.params, expected, atol=1e-12)


def test_without_a_stored_curvature_it_is_measured_and_the_same(x64):
    problem = regression()
    theta = retrained(problem, ALL)
    request = ju.Request(problem.data.take(ALL[:6]), problem.data.take(ALL[6:]))
    method = squares(ridge=RIDGE, damping=0.0)
    out = method.unlearn(REGRESSION, jnp.asarray(theta), request, KEY)
    np.testing.assert_allclose(out.params, retrained(problem, ALL[6:]), atol=1e-10)
    assert out.info.curvature is None


def test_requests_one_after_another_equal_retraining_if_the_curvature_is_carried_along(x64):
    problem = regression()
    theta = retrained(problem, ALL)
    curvature = stored(problem, theta)
    first = forget(problem, curvature, theta, ALL[:6])
    second = forget(problem, first.info.curvature, first.params, ALL[6:12])
    expected = retrained(problem, ALL[12:])
    np.testing.assert_allclose(second.params, expected, atol=1e-10)
    stale = forget(problem, curvature, first.params, ALL[6:12])
    assert np.abs(stale.params - expected).max() > 1e-4


@pytest.mark.parametrize("eta", [1.0, 0.6])
def test_the_carried_gradient_is_that_of_the_retained_loss_at_the_new_params(x64, eta):
    """Also with damping, a shorter step, and a start that is no minimum."""
    problem = regression()
    theta = retrained(problem, ALL) + 0.3
    out = forget(
        problem, stored(problem, theta, damping=2.0, stationary=False), theta, ALL[:6], eta=eta
    )
    x, y, new = problem.x[6:], problem.y[6:], np.asarray(out.params)
    expected = 2 * x.T @ (x @ new - y) + RIDGE * new
    np.testing.assert_allclose(out.info.curvature.gradient, expected.ravel(), atol=1e-10)


def test_an_early_stopped_start_needs_its_gradient(x64):
    problem = regression()
    theta = retrained(problem, ALL) + 0.3
    expected = retrained(problem, ALL[6:])
    out = forget(problem, stored(problem, theta, stationary=False), theta, ALL[:6])
    np.testing.assert_allclose(out.params, expected, atol=1e-10)
    wrong = forget(problem, stored(problem, theta), theta, ALL[:6])
    assert np.abs(wrong.params - expected).max() > 1e-2


def test_learning_the_same_rows_again_inverts_the_step(x64):
    problem = regression()
    theta = jnp.asarray(retrained(problem, ALL))
    out = forget(problem, stored(problem, theta), theta, ALL[:6])
    u, g = columns_of(REGRESSION, out.params, problem.data.take(ALL[:6]), squared_error)
    delta, info = win_u_step(out.info.curvature, u, g, sign=1)
    np.testing.assert_allclose(out.params + delta.reshape(5, 2), theta, atol=1e-10)
    assert int(info.status) == Status.SOLVED and float(info.residual) < 1e-10


def test_the_order_the_groups_and_padding_do_not_matter(x64):
    problem = regression()
    theta = retrained(problem, ALL)
    curvature = stored(problem, theta)
    expected = forget(problem, curvature, theta, ALL[:7]).params
    shuffled = forget(problem, curvature, theta, [4, 0, 6, 2, 1, 5, 3], micro_batch=3).params
    padded = problem.data.replace(weight=(ALL < 7).astype(np.float32))
    request = ju.Request(padded.replace(x=np.where(ALL[:, None] < 7, problem.x, 1e200)))
    out = squares(curvature=curvature).unlearn(REGRESSION, jnp.asarray(theta), request, KEY)
    for other in (shuffled, out.params):
        np.testing.assert_allclose(other, expected, atol=1e-12)


def test_a_row_of_weight_two_is_the_row_twice(x64):
    problem = regression()
    theta = retrained(problem, ALL) + 0.1
    twice = problem.data.take([0, 0, 1])
    weighted = problem.data.take([0, 1]).replace(weight=np.asarray([2.0, 1.0]))
    (u, g), (v, h) = (
        columns_of(REGRESSION, jnp.asarray(theta), d, squared_error) for d in (twice, weighted)
    )
    np.testing.assert_allclose(u @ u.T, v @ v.T, atol=1e-12)
    np.testing.assert_allclose(g, h, atol=1e-12)


def test_single_precision_is_close():
    problem = regression()
    theta = retrained(problem, ALL).astype(np.float32)
    out = forget(problem, stored(problem, theta), theta, ALL[:7])
    np.testing.assert_allclose(out.params, retrained(problem, ALL[7:]), atol=1e-5)


# ----------------------------------------------------------------- the step against dense algebra


def columns_of(model, params, data, output_loss=cross_entropy):
    """U and g of all rows at once, for params that are one matrix."""
    batch = dict(data.batch(0)) if data.num_batches == 1 else None
    assert batch is not None
    shape, theta = params.shape, params.ravel()
    u = ggn_columns(lambda t, b: model.outputs(t.reshape(shape), b), output_loss, theta, batch)
    g = weighted_gradient(lambda t, b: model.loss(t.reshape(shape), b), theta, batch)
    return u, g


def synthetic(p=8, m=5, seed=0):
    rng = np.random.default_rng(seed)
    a, u = rng.standard_normal((p, 3 * p)), rng.standard_normal((p, m))
    return a @ a.T + u @ u.T, u, rng.standard_normal(p), rng.standard_normal(p)


def curvature_of(h, gradient, basis=None, remainder=2.0):
    from jaxunlearn.linalg.woodbury import inverse

    inside = h if basis is None else basis.T @ h @ basis
    inside = inside + remainder * np.eye(len(inside))
    made = jnp.asarray(inside), jnp.asarray(gradient), jnp.asarray(remainder)
    return Curvature(inverse(made[0]), made[1], basis, made[2], jnp.zeros(()))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("width", [5, 20])
def test_the_step_is_the_dense_solve_with_the_changed_matrix(x64, sign, width):
    h, u, g, gradient = synthetic(m=width)
    expected = -np.linalg.solve(h + 2 * np.eye(8) + sign * u @ u.T, gradient + sign * g)
    delta, info = win_u_step(curvature_of(h, gradient), jnp.asarray(u), jnp.asarray(g), sign=sign)
    np.testing.assert_allclose(delta, expected, atol=1e-11)
    np.testing.assert_allclose(info.step, np.linalg.norm(expected))
    half, _ = win_u_step(
        curvature_of(h, gradient), jnp.asarray(u), jnp.asarray(g), sign=sign, eta=0.5
    )
    np.testing.assert_allclose(half, expected / 2, atol=1e-11)


def test_without_the_woodbury_term_it_is_the_influence_step(x64):
    h, u, g, gradient = synthetic()
    expected = np.linalg.solve(h + 2 * np.eye(8), g - gradient)
    made = curvature_of(h, gradient), jnp.asarray(u), jnp.asarray(g)
    delta, info = win_u_step(*made, woodbury=False)
    np.testing.assert_allclose(delta, expected, atol=1e-12)
    assert float(info.residual) > 1e-3  # it does not solve the retained system, and says so
    full, _ = win_u_step(*made)
    assert np.abs(full - delta).max() > 1e-3


def test_inside_a_basis_it_is_the_solve_in_its_coordinates_and_the_remainder_outside(x64):
    h, u, g, gradient = synthetic()
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 3)))[0]
    both = q @ q.T @ (h - u @ u.T) @ q @ q.T + 2 * np.eye(8)
    expected = np.linalg.solve(both, g - gradient)
    made = curvature_of(h, gradient, jnp.asarray(q))
    delta, info = win_u_step(made, jnp.asarray(u), jnp.asarray(g))
    np.testing.assert_allclose(delta, expected, atol=1e-12)
    assert 0 < float(info.smallest) < 1 and int(info.status) == Status.SOLVED


def test_columns_of_zeros_are_no_request(x64):
    h, _, _, gradient = synthetic()
    made = curvature_of(h, np.zeros(8))
    delta, info = win_u_step(made, jnp.zeros((8, 3)), jnp.zeros(8))
    np.testing.assert_array_equal(delta, 0)
    assert float(info.smallest) == 1 and float(info.residual) == 0
    del gradient


@pytest.mark.parametrize("broken", ["columns", "gradient", "curvature"])
def test_what_is_not_finite_moves_nothing_and_keeps_the_curvature(broken):
    h, u, g, gradient = (np.asarray(a, np.float32) for a in synthetic())
    u[0, 0] = np.nan if broken == "columns" else u[0, 0]
    g[0] = np.inf if broken == "gradient" else g[0]
    h = -h if broken == "curvature" else h  # not positive definite
    made = curvature_of(h, gradient)
    delta, info = win_u_step(made, jnp.asarray(u), jnp.asarray(g))
    assert int(info.status) == Status.NOT_FINITE
    np.testing.assert_array_equal(delta, 0)
    np.testing.assert_array_equal(info.curvature.gradient, gradient)
    if broken != "curvature":
        after, before = (apply(c.inverse, jnp.ones(8)) for c in (info.curvature, made))
        np.testing.assert_allclose(after, before, rtol=1e-6)


# ------------------------------------------------------------------------- the factor of Lambda


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2,)])
def test_the_softmax_factor_squares_to_its_hessian_with_one_column_fewer(x64, shape):
    rng = np.random.default_rng(0)
    z, y = 3 * rng.standard_normal(shape), rng.integers(0, shape[-1], shape[:-1])
    s = output_factor(cross_entropy, jnp.asarray(z), jnp.asarray(y))
    positions = int(np.prod(shape[:-1]))
    assert s.shape == (*shape, positions * (shape[-1] - 1))
    flat = np.asarray(s).reshape(z.size, -1)
    blocks = np.zeros((z.size, z.size))
    for i, p in enumerate(np.asarray(jax.nn.softmax(jnp.asarray(z))).reshape(-1, shape[-1])):
        plain = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))  # the textbook factor
        at = slice(i * shape[-1], (i + 1) * shape[-1])
        blocks[at, at] = plain @ plain.T
        np.testing.assert_allclose(plain @ plain.T, np.diag(p) - np.outer(p, p), atol=1e-12)
    np.testing.assert_allclose(flat @ flat.T, blocks, atol=1e-12)


def test_a_certain_softmax_has_a_finite_factor():
    s = output_factor(cross_entropy, jnp.asarray([200.0, 0.0, 0.0]), jnp.asarray(0))
    np.testing.assert_allclose(s, 0, atol=1e-6)


def test_other_losses_have_the_factor_of_their_hessian(x64):
    z, y = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 0.5])
    s = output_factor(squared_error, z, y)
    np.testing.assert_allclose(s @ s.T, 2 * np.eye(2), atol=1e-12)

    def logcosh(a, b):
        return jnp.log(jnp.cosh(a - b)).sum(axis=1) + (a[:, 0] - b[:, 1]) ** 2

    s = output_factor(logcosh, z, y)
    expected = np.diag(1 / np.cosh(np.asarray(z - y)) ** 2 + [2.0, 0.0])
    np.testing.assert_allclose(s @ s.T, expected, atol=1e-12)


@pytest.mark.parametrize("output_loss", [cross_entropy, squared_error])
def test_monte_carlo_columns_have_the_exact_square_in_expectation(output_loss):
    z = jnp.asarray([[0.5, -1.0, 0.2], [0.0, 2.0, 1.0]])
    y = jnp.asarray([0, 1]) if output_loss is cross_entropy else jnp.zeros((2, 3))
    exact = output_factor(output_loss, z, y).reshape(6, -1)
    few, many = (output_factor(output_loss, z, y, k, KEY).reshape(6, -1) for k in (20, 20_000))
    assert few.shape == (6, 20)
    errors = [np.abs(s @ s.T - exact @ exact.T).max() for s in (few, many)]
    assert errors[1] < 0.06 and errors[1] < errors[0]


# --------------------------------------------------------------------------- softmax regression


class Fitted(NamedTuple):
    model: ju.Model
    data: ju.data.InMemory
    theta: np.ndarray
    target: np.ndarray  # retrained without the first 30 rows
    half: np.ndarray  # retrained with half their weight


def softmax_weights(x, y, weight, ridge, start):
    """argmin sum_i w_i l_i + ridge/2 |theta|^2 by Newton with a dense Hessian, in NumPy."""
    theta, onehot = start.copy(), np.eye(4)[y]
    for _ in range(30):
        z = x @ theta
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        gradient = x.T @ (weight[:, None] * (p - onehot)) + ridge * theta
        blocks = weight[:, None, None] * (p[:, :, None] * np.eye(4) - p[:, :, None] * p[:, None])
        h = np.einsum("ni,nab,nj->iajb", x, blocks, x).reshape(80, 80) + ridge * np.eye(80)
        theta = theta - np.linalg.solve(h, gradient.ravel()).reshape(20, 4)
    assert np.abs(gradient).max() < 1e-10
    return theta


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 20))
    y = np.argmax(x @ rng.standard_normal((20, 4)) + 2 * rng.gumbel(size=(300, 4)), axis=1)
    first = np.arange(300) < 30
    weights = [softmax_weights(x, y, 1.0 - t * first, 0.5, np.zeros((20, 4))) for t in (0, 1, 0.5)]
    with jax.enable_x64(True):
        data = ju.data.in_memory({"x": x, "y": y.astype(np.int32)}, 300)
    return Fitted(SOFTMAX, data, *weights)


def move(fitted, weight=1.0, key=KEY, **options):
    forget = fitted.data.take(np.arange(30)).replace(weight=np.full(30, weight))
    retain = fitted.data.take(np.arange(30, 300))
    options = {"ridge": 0.5, "damping": 0.0, "micro_batch": 30} | options
    request = ju.Request(forget, retain)
    return win_u(**options).unlearn(fitted.model, jnp.asarray(fitted.theta), request, key)


def test_on_softmax_regression_it_comes_nearer_to_retraining_than_influence(x64, classifier):
    errors = [
        np.linalg.norm(np.asarray(params) - classifier.target)
        for params in (
            classifier.theta, move(classifier, woodbury=False).params, move(classifier).params
        )
    ]  # fmt: skip
    assert errors[2] < 0.65 * errors[1] and errors[1] < 0.35 * errors[0], errors
    info = move(classifier).info
    assert 0 < float(info.smallest) <= 1 and int(info.clipped) == 0
    assert float(info.residual) < 1e-10


def test_its_error_is_quadratic_in_what_is_removed(x64, classifier):
    curvature = jax.jit(partial(win_u_curvature, ridge=0.5, damping=0.0, micro_batch=30))(
        classifier.model, jnp.asarray(classifier.theta), classifier.data
    )
    errors, sizes = [], []
    for weight, target in ((1.0, classifier.target), (0.5, classifier.half)):
        params = np.asarray(move(classifier, weight, curvature=curvature).params)
        errors.append(np.linalg.norm(params - target))
        sizes.append(np.linalg.norm(target - classifier.theta))
    power = np.log(errors[0] / errors[1]) / np.log(sizes[0] / sizes[1])
    assert 1.7 < power < 2.6, power


def test_an_infinite_ridge_or_damping_moves_nothing(x64, classifier):
    for options in ({"ridge": 1e12}, {"damping": 1e12}):
        moved = np.asarray(move(classifier, **options).params) - classifier.theta
        assert 0 < np.abs(moved).max() < 1e-9


@pytest.mark.slow
def test_more_samples_come_nearer_to_the_exact_step(x64, classifier):
    theta = jnp.asarray(classifier.theta)
    curvature = jax.jit(partial(win_u_curvature, ridge=0.5, damping=0.0, micro_batch=30))(
        classifier.model, theta, classifier.data
    )
    request = ju.Request(classifier.data.take(np.arange(6)))

    def moved(seed, **options):
        method = win_u(curvature=curvature, micro_batch=6, **options)
        keys = jax.random.split(jax.random.key(seed), 8)
        many = jax.vmap(lambda key: method.unlearn(classifier.model, theta, request, key).params)
        return np.asarray(jax.jit(many)(keys)) - classifier.theta

    exact = moved(0)
    few, many = (
        np.sqrt(np.mean((moved(1, samples=k) - exact) ** 2)) for k in (4, 64)
    )  # of order 1 / sqrt(samples): a quarter
    assert many < few / 2.5 and few < np.abs(exact).max(), (few, many)


def test_a_basis_of_all_directions_is_the_dense_curvature(x64, classifier):
    """A rank above p means p."""
    low = move(classifier, kind="low_rank", rank=500)
    np.testing.assert_allclose(low.params, move(classifier).params, atol=1e-9)


def test_a_smaller_basis_keeps_k_positive_definite(x64, classifier):
    low = move(classifier, kind="low_rank", rank=20)
    assert int(low.info.status) == Status.SOLVED and 0 < float(low.info.smallest) <= 1
    distance = np.linalg.norm(np.asarray(low.params) - classifier.theta)
    assert 0 < distance < np.inf


def test_a_diagonal_that_forgets_correlations_is_clipped_and_says_so(x64):
    """Five equal features: the diagonal sees a fifth of the curvature along their sum."""
    plain = regression(outputs=1)
    x = np.repeat(plain.x[:, :1], 5, axis=1)
    problem = Problem(x, plain.y, ju.data.in_memory({"x": x, "y": plain.y}, 8))
    theta = retrained(problem, ALL)
    out = forget(problem, stored(problem, theta, kind="diagonal"), theta, ALL[:16], epsilon=0.1)
    assert int(out.info.status) == Status.CLIPPED and int(out.info.clipped) >= 1
    assert float(out.info.smallest) < 0 and float(out.info.residual) > 1e-3
    assert np.isfinite(out.params).all()
    few = forget(problem, stored(problem, theta, kind="diagonal"), theta, ALL[:1])
    assert int(few.info.status) == Status.SOLVED


def test_the_basis_is_that_of_the_leading_eigenvectors(x64, classifier):
    make = jax.jit(
        partial(win_u_curvature, ridge=0.5, damping=0.0, kind="low_rank", rank=20, micro_batch=30)
    )
    low = make(classifier.model, jnp.asarray(classifier.theta), classifier.data, key=KEY)
    np.testing.assert_allclose(low.basis.T @ low.basis, np.eye(20), atol=1e-12)
    u, _ = columns_of(SOFTMAX, jnp.asarray(classifier.theta), classifier.data)
    values = np.linalg.eigvalsh(np.asarray(u @ u.T))[::-1]
    caught = np.trace(np.asarray(low.basis.T @ u @ u.T @ low.basis))
    assert 0.8 * values[:20].sum() < caught <= values[:20].sum() * (1 + 1e-12)
    inside = np.asarray(low.basis.T @ u @ u.T @ low.basis) + 0.5 * np.eye(20)
    solved = apply(low.inverse, jnp.eye(20))
    np.testing.assert_allclose(solved, np.linalg.inv(inside), atol=1e-10)


def test_a_diagonal_is_the_diagonal_of_the_dense_matrix(x64, classifier):
    make = jax.jit(partial(win_u_curvature, ridge=0.5, damping=0.0, kind="diagonal", micro_batch=7))
    made = make(classifier.model, jnp.asarray(classifier.theta), classifier.data)
    u, _ = columns_of(SOFTMAX, jnp.asarray(classifier.theta), classifier.data)
    expected = np.diag(np.asarray(u @ u.T)) + 0.5
    np.testing.assert_allclose(made.inverse.base, expected, rtol=1e-10)


# --------------------------------------------------------------------------- leaves and storage


def test_only_the_leaves_named_move(case):
    out = win_u(leaves="head").unlearn(case.model, case.params, case.request, KEY)
    laws.bits(out.params["body"], case.params["body"])
    assert laws.different(out.params["head"], case.params["head"])
    masked = ju.masked(win_u(), {"body": False, "head": True})
    laws.close(masked.unlearn(case.model, case.params, case.request, KEY).params, out.params)


def test_a_stored_curvature_survives_a_file_and_needs_no_retained_data(case, tmp_path):
    data = ju.data.concatenate(*case.request[:2])
    made = win_u_curvature(case.model, case.params, data, leaves="head")
    checkpoint.save(tmp_path / "curvature", made)
    made = checkpoint.load(tmp_path / "curvature", made)
    method = win_u(curvature=made, leaves="head")
    assert method.needs == {"forget", "labels"}
    alone = ju.Request(case.request.forget)
    out = method.unlearn(case.model, case.params, alone, KEY)
    both = win_u(leaves="head").unlearn(case.model, case.params, case.request, KEY)
    laws.close(out.params, both.params)
    with pytest.raises(ValueError, match="the curvature is of 21 numbers.*have 51.*other leaves="):
        win_u(curvature=made).unlearn(case.model, case.params, alone, KEY)


def test_a_model_with_running_statistics_has_the_curvature_of_its_weights():
    case = cases.statistics_case()
    data = ju.data.concatenate(*case.request[:2])
    made = win_u_curvature(case.model, case.params, data, leaves="head")
    out = win_u(curvature=made, leaves="head").unlearn(
        case.model, case.params, ju.Request(case.request.forget), KEY
    )
    laws.bits(out.params["batch_stats"], case.params["batch_stats"])
    assert laws.different(out.params["params"]["head"], case.params["params"]["head"])


def test_streams_give_the_same_curvature(case):
    data = ju.data.concatenate(*case.request[:2])
    make = partial(win_u_curvature, case.model, case.params, damping=1.0, micro_batch=4)
    inside, streamed = make(data), make(ju.data.from_batches(list(data)))
    laws.close(inside, streamed)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, {"forget", "retain", "labels"}),
        ({"samples": 2}, {"forget", "retain", "labels", "key"}),
        ({"kind": "low_rank"}, {"forget", "retain", "labels", "key"}),
    ],
)
def test_it_needs_a_key_only_where_something_is_drawn(options, needs):
    assert win_u(**options).needs == needs


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kfac"}, r"kind must be among \('dense', 'diagonal', 'low_rank'\), got 'kfac'"),
        ({"ridge": -1.0}, "expected ridge >= 0 and damping >= 0, not both 0, got ridge=-1.0"),
        ({"damping": 0.0}, "ridge=0.0, damping=0.0: without either H need not have an inverse"),
        ({"rank": 0}, "counts must be >= 1, got rank=0"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"samples": 0}, "samples=0"),
        ({"eta": 0.0}, r"expected eta > 0 and epsilon in \(0, 1\], got eta=0.0"),
        ({"epsilon": 2.0}, "epsilon=2.0"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        win_u(**options)


def test_leaves_that_are_not_there_a_missing_key_and_a_dense_giant_are_refused(case):
    data = case.request.forget
    with pytest.raises(ValueError, match=r"contains leaves='tail'; the leaves are \['body'\]\['b'"):
        win_u(leaves="tail").unlearn(case.model, case.params, case.request, KEY)
    for options in ({"kind": "low_rank"}, {"samples": 1}):
        with pytest.raises(ValueError, match="draws; give it a key"):
            win_u_curvature(case.model, case.params, data, **options)
    with pytest.raises(ValueError, match=r"dense curvature of 20001 numbers would hold 4.0e\+08"):
        win_u_curvature(SOFTMAX, jnp.ones(20_001), data, damping=1.0)


def test_labels_of_another_loss_are_refused(case):
    model = dataclasses.replace(REGRESSION, outputs=lambda p, b: b["x"] @ p)
    data = ju.data.in_memory({"x": np.ones((4, 2)), "y": np.ones((4, 3))})
    with pytest.raises(TypeError, match="labels must be integer classes"):
        win_u_curvature(model, jnp.ones((2, 3)), data, damping=1.0)


def test_the_step_refuses_columns_of_another_model():
    h, u, g, gradient = synthetic()
    with pytest.raises(ValueError, match=r"of 8 numbers, but the columns have shape \(7, 5\)"):
        win_u_step(curvature_of(h, gradient), jnp.asarray(u)[:7], jnp.asarray(g))


# -------------------------------------------------------------------------------- the behaviour


@pytest.mark.slow
def test_on_a_small_network_the_forget_loss_moves_towards_retraining_and_not_beyond():
    from jaxunlearn.networks import MLP

    rng = np.random.default_rng(0)
    y = np.arange(240) % 4
    x = 1.5 * np.eye(4, 8)[y] + rng.standard_normal((240, 8))
    data = ju.data.in_memory({"x": x.astype(np.float32), "y": y.astype(np.int32)}, 64)
    model = ju.from_nnx(lambda rngs: MLP(8, 4, hidden=(16,), rngs=rngs))
    request = ju.Request(data.take(np.arange(40)), data.take(np.arange(40, 240)))
    tx = optax.adam(5e-3)
    before = ju.train(model, tx, data, key=KEY, epochs=40).params
    oracle = ju.train(model, tx, request.retain, key=KEY, epochs=40).params
    out = win_u(leaves="head", damping=1.0).unlearn(model, before, request, KEY)

    def loss(params):
        return float(model.loss(params, request.forget.arrays).mean())

    def accuracy(params):
        predicted = model.outputs(params, request.retain.arrays).argmax(-1)
        return float((predicted == request.retain["y"]).mean())

    assert loss(before) + 0.01 < loss(out.params) < loss(oracle) + 0.05
    assert accuracy(out.params) > accuracy(before) - 0.05
