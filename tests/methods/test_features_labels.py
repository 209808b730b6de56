"""Features and labels: exact on ridge, Newton's error on logistic models, failures as values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.data.streams import InMemory
from jaxunlearn.linalg import Solved
from jaxunlearn.methods.edits.features_labels import (
    correct,
    corrected_model,
    features_labels,
    with_labels,
    without_features,
)
from jaxunlearn.methods.edits.newton import Newton
from tests.suite import laws

KEY = jax.random.key(0)
L2 = 1.0
CHOLESKY = Newton(solver="cholesky")


def linear_outputs(theta, batch):
    return batch["x"] @ theta


def ridge_loss(theta, batch):
    return 0.5 * (linear_outputs(theta, batch) - batch["y"]) ** 2


def logistic_loss(theta, batch):
    return jax.nn.softplus(-batch["y"] * linear_outputs(theta, batch))


RIDGE = ju.Model(outputs=linear_outputs, loss=ridge_loss)
LOGISTIC = ju.Model(outputs=linear_outputs, loss=logistic_loss)


def rows(x, y, batch_size=64):
    return InMemory({"x": jnp.asarray(x), "y": jnp.asarray(y)}, batch_size)


def ridge_fit(x, y, weight=None):
    w = np.ones(len(y)) if weight is None else weight
    return np.linalg.solve((x.T * w) @ x + L2 * np.eye(x.shape[1]), (x.T * w) @ y)


def logistic_gradient(theta, x, y):
    return -x.T @ (y / (1 + np.exp(y * (x @ theta)))) + L2 * theta


def logistic_fit(x, y):
    """Newton in NumPy: the retrained optimum by another road."""
    theta = np.zeros(x.shape[1])
    for _ in range(30):
        s = 1 / (1 + np.exp(y * (x @ theta)))
        hessian = (x.T * (s * (1 - s))) @ x + L2 * np.eye(x.shape[1])
        theta = theta - np.linalg.solve(hessian, logistic_gradient(theta, x, y))
    return theta


@functools.cache
def regression(n=24, p=4):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p))
    return x, x @ rng.standard_normal(p) + 0.3 * rng.standard_normal(n)


@functools.cache
def classification(n=300, p=20):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((n, p)), rng.standard_normal(p)
    y = np.where(rng.random(n) < 1 / (1 + np.exp(-x @ w)), 1.0, -1.0)
    return x, y, logistic_fit(x, y)


@functools.cache
def _updates(at, order, steps):
    """One compiled correction of 60 of 300 rows, for any of their values."""

    def run(theta, before, after, retain, tau):
        return correct(LOGISTIC, theta, before=before, after=after, retain=retain, l2=L2,
                       at=at, order=order, steps=steps, tau=tau, options=CHOLESKY)  # fmt: skip

    return jax.jit(run)


def scaled(t, everywhere=False):
    """The data with two columns of 60 (or all) rows multiplied by 1 - t."""
    x, y, theta = classification()
    changed = x.copy()
    changed[: None if everywhere else 60, :2] *= 1 - t
    return x, changed, y, theta


def update(t, at="corrected", order=2, steps=1, tau=1.0):
    x, changed, y, theta = scaled(t)
    run = _updates(at, order, steps)
    before, after = rows(x[:60], y[:60]), rows(changed[:60], y[:60])
    return run(jnp.asarray(theta), before, after, rows(x[60:], y[60:]), tau)


def best_first_order(t):
    return min(float(update(t, order=1, tau=tau)[1].gradient_after)
               for tau in np.geomspace(1e-3, 0.3, 12))  # fmt: skip


# --------------------------------------------------------------------------- what must hold: 1 to 9


@pytest.mark.parametrize("order", [1, 2])
def test_1_a_correction_that_changes_nothing_changes_nothing(x64, order):
    x, y = regression()
    theta, part = jnp.asarray(ridge_fit(x, y)), rows(x[:6], y[:6])
    out, info = correct(RIDGE, theta, before=part, after=part, retain=rows(x[6:], y[6:]),
                        order=order, tau=1.0, l2=L2)  # fmt: skip
    laws.bits(out, theta)
    assert info.status == Solved.CONVERGED and info.moved == 0


@pytest.mark.parametrize("solver", ["cholesky", "cg", "lissa"])
@pytest.mark.parametrize("change", ["removal", "features", "labels"])
def test_2_on_ridge_regression_the_second_order_is_retraining(x64, solver, change):
    x, y = regression()
    x2, y2, weight = x.copy(), y.copy(), np.ones(24)
    if change == "removal":
        weight[:6] = 0
    elif change == "features":
        x2[:6, 1] = 0
    else:
        y2[:6] *= -1
    after = None if change == "removal" else rows(x2[:6], y2[:6])
    options = Newton(solver=solver, tolerance=1e-13, iterations=4000, scale=40.0)
    out, info = correct(RIDGE, jnp.asarray(ridge_fit(x, y)), before=rows(x[:6], y[:6]),
                        after=after, retain=rows(x[6:], y[6:], 5), l2=L2,
                        options=options)  # fmt: skip
    retrained = ridge_fit(x2, y2, weight)
    np.testing.assert_allclose(out, retrained, rtol=1e-10, atol=1e-10)
    assert info.status == Solved.CONVERGED and info.gradient_after < 1e-10
    assert np.abs(retrained - ridge_fit(x, y)).max() > 1e-3, "the change is too small to see"


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_2_the_method_is_retraining_too_and_so_is_its_gauss_newton_form(x64, curvature):
    x, y = regression()
    loss = {"hessian": ridge_loss, "ggn": lambda p, b: ju.losses.squared_error(
        linear_outputs(p, b)[:, None], b["y"][:, None])}[curvature]  # fmt: skip
    factor = 1.0 if curvature == "hessian" else 2.0  # squared error has no 1/2
    outputs = linear_outputs if curvature == "hessian" else lambda p, b: linear_outputs(p, b)
    model = ju.Model(outputs=outputs, loss=loss)
    removal = features_labels(curvature=curvature, solver="cholesky", l2=factor * L2)
    request = ju.Request(rows(x[:6], y[:6]), rows(x[6:], y[6:]))
    out = removal.unlearn(model, jnp.asarray(ridge_fit(x, y)), request, KEY)
    np.testing.assert_allclose(out.params, ridge_fit(x[6:], y[6:]), rtol=1e-10, atol=1e-10)
    assert removal.guarantee == "empirical" and out.info.certificate == ()


def test_2_a_damped_or_undamped_mutant_is_not_retraining(x64):
    x, y = regression()
    for wrong in ({"l2": 0.0}, {"l2": L2, "damping": 0.1}, {"l2": L2, "at": "original"}):
        out, _ = correct(RIDGE, jnp.asarray(ridge_fit(x, y)), before=rows(x[:6], y[:6]),
                         after=None, retain=rows(x[6:], y[6:]), options=CHOLESKY,
                         **wrong)  # fmt: skip
        assert np.abs(out - ridge_fit(x[6:], y[6:])).max() > 1e-6, wrong


def test_3_second_order_is_better_than_first_order_and_first_order_than_nothing(x64):
    for t in (1.0, 0.0625):
        _, info = update(t)
        assert info.gradient_after < best_first_order(t) < info.gradient_before


def test_3_the_error_falls_with_the_square_of_the_change(x64):
    sizes, second, first = np.array([0.125, 0.0625, 0.03125]), [], []
    for t in sizes:
        _, changed, y, _ = scaled(t)
        star = logistic_fit(changed, y)
        second.append(np.linalg.norm(update(t)[0] - star))
        first.append(np.linalg.norm(update(t, order=1, tau=0.02)[0] - star))
    for errors, slope in ((second, 2), (first, 1)):
        found = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
        assert abs(found - slope) < 0.15, (slope, found)


def test_4_original_and_corrected_curvature_agree_to_second_order(x64):
    sizes = np.array([0.125, 0.0625, 0.03125])
    gaps = [np.linalg.norm(update(t)[0] - update(t, at="original")[0]) for t in sizes]
    assert abs(np.polyfit(np.log(sizes), np.log(gaps), 1)[0] - 2) < 0.15


def test_5_newton_steps_with_the_full_gradient_reach_the_retrained_optimum(x64):
    x, y, theta = classification()
    newton = features_labels(solver="cholesky", gradient="full", l2=L2)
    request = ju.Request(rows(x[:60], y[:60]), rows(x[60:], y[60:]))
    star, out, errors = logistic_fit(x[60:], y[60:]), jnp.asarray(theta), []
    for _ in range(5):
        out = newton.unlearn(LOGISTIC, out, request, KEY).params
        errors.append(np.linalg.norm(out - star))
    assert errors[0] > 1e-3 and errors[-1] < 1e-10
    assert errors[1] < 10 * errors[0] ** 2, "quadratic convergence"
    repeated = features_labels(solver="cholesky", l2=L2)  # the difference removes the rows twice
    again = ju.chain(repeated, repeated).unlearn(LOGISTIC, jnp.asarray(theta), request, KEY).params
    assert np.linalg.norm(again - star) > np.linalg.norm(theta - star) / 3


def test_6_lissa_in_the_papers_units_is_the_dense_damped_solution(x64):
    """d and s of the paper: the damping is d s."""
    x, y = regression()
    theta, d, s = ridge_fit(x, y), 0.01, 60.0
    out, info = correct(
        RIDGE, jnp.asarray(theta), before=rows(x[:6], y[:6]), after=None, retain=rows(x[6:], y[6:]),
        l2=L2, damping=d * s,
        options=Newton(solver="lissa", scale=s, iterations=5000, tolerance=1e-12),
    )  # fmt: skip
    g = -x[:6].T @ (x[:6] @ theta - y[:6])
    hessian = x[6:].T @ x[6:] + L2 * np.eye(4)
    np.testing.assert_allclose(out, theta - np.linalg.solve(hessian + d * s * np.eye(4), g),
                               rtol=1e-9)  # fmt: skip
    np.testing.assert_allclose(info.damping, d * s)


def test_7_labels_replaced_and_replaced_back_return_to_second_order_of_the_change(x64):
    x, y, theta = classification()
    run, sizes, errors = _updates("corrected", 2, 1), np.array([0.2, 0.1, 0.05]), []
    for t in sizes:
        soft = y[:60] * (1 - t)  # a label of less confidence
        there, _ = run(jnp.asarray(theta), rows(x[:60], y[:60]), rows(x[:60], soft),
                       rows(x[60:], y[60:]), 1.0)  # fmt: skip
        back, _ = run(there, rows(x[:60], soft), rows(x[:60], y[:60]), rows(x[60:], y[60:]), 1.0)
        assert np.linalg.norm(there - theta) > 5 * np.linalg.norm(back - theta)
        errors.append(np.linalg.norm(back - theta))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] > 1.7


def test_9_the_prediction_no_longer_depends_on_a_removed_column(x64):
    x, y = regression()
    method = features_labels(
        correction=without_features([2]), retain=False, solver="cholesky", l2=L2
    )
    assert "retain" not in method.needs
    theta = jnp.asarray(ridge_fit(x, y))
    out = method.unlearn(RIDGE, theta, ju.Request(rows(x, y)), KEY).params
    assert abs(out[2]) < 1e-10 < abs(theta[2])
    rest = np.delete(np.arange(4), 2)
    np.testing.assert_allclose(out[rest], ridge_fit(x[:, rest], y), rtol=1e-9)
    deleted = corrected_model(RIDGE, without_features([2]))
    other = x.copy()
    other[:, 2] = 1e6
    outputs = [deleted.outputs(theta, {"x": jnp.asarray(each)}) for each in (x, other)]
    np.testing.assert_array_equal(*outputs)
    assert np.abs(RIDGE.outputs(theta, {"x": jnp.asarray(x)}) - outputs[0]).max() > 0.1


# ------------------------------------------------------------ the behaviour on 300 rows, 20 columns


def test_the_behaviour_at_a_large_change_has_the_published_order(x64):
    """The card's table: first order, original and corrected curvature, and several steps."""
    _, changed, y, theta = scaled(1.0)
    star = logistic_fit(changed, y)
    (new, info), (old, old_info), (steps, step_info) = (
        update(1.0), update(1.0, at="original"), update(1.0, steps=6))  # fmt: skip
    first = best_first_order(1.0)
    assert 0.2 < first / info.gradient_before < 0.4
    assert info.gradient_after < first / 2
    assert 3 < old_info.gradient_after / info.gradient_after < 6
    assert step_info.gradient_after < info.gradient_after
    distance = [np.linalg.norm(each - star) for each in (theta, old, new, steps)]
    assert 2.4 < distance[1] / distance[2] and distance[2] < distance[0] / 5


def test_each_halving_of_the_change_quarters_the_second_order_and_halves_the_first(x64):
    second = [float(update(t)[1].gradient_after) for t in (0.125, 0.0625)]
    first = [best_first_order(t) for t in (0.125, 0.0625)]
    assert 3.2 < second[0] / second[1] < 4.2 and 1.7 < first[0] / first[1] < 2.2


def test_zeroing_columns_of_all_rows_needs_several_steps_with_the_full_gradient(x64):
    """In the difference, what earlier chunks left over is amplified where only l2 remains."""
    x, changed, y, theta = scaled(1.0, everywhere=True)
    star = logistic_fit(changed, y)

    def distance(steps, gradient):
        out, _ = correct(LOGISTIC, jnp.asarray(theta), before=rows(x, y), after=rows(changed, y),
                         retain=None, l2=L2, steps=steps, gradient=gradient,
                         options=CHOLESKY)  # fmt: skip
        return np.linalg.norm(out - star)

    one, many, amplified = distance(1, "full"), distance(6, "full"), distance(6, "difference")
    assert np.linalg.norm(theta - star) > 2 * one > 4 * many
    assert amplified > one


# ------------------------------------------------------------------------------ failure is a value


def wavy(theta, batch):
    """Indefinite: -cos has curvature of both signs."""
    return -jnp.cos(batch["x"] @ theta)


WAVY = ju.Model(outputs=linear_outputs, loss=wavy)


def indefinite(options, **more):
    x = np.eye(2)[[0, 1, 0, 1]] * np.array([1.0, 1.0, 1.2, 1.2])[:, None]
    theta, y = jnp.array([0.5, 2.5]), np.zeros(4)  # the second coordinate is past pi/2
    return theta, correct(WAVY, theta, before=rows(x[:2], y[:2]), after=None,
                          retain=rows(x[2:], y[2:]), options=options, **more)  # fmt: skip


@pytest.mark.parametrize("solver", ["cg", "cholesky", "lissa"])
def test_an_indefinite_system_keeps_the_params_and_says_so(solver):
    theta, (out, info) = indefinite(Newton(solver=solver, fallback="keep", scale=10.0))
    laws.bits(out, theta)
    assert info.status == (Solved.DIVERGED if solver == "lissa" else Solved.INDEFINITE)
    assert info.moved == 0 and info.damping == 0


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_an_indefinite_system_is_damped_until_it_is_definite(x64, solver):
    theta, (out, info) = indefinite(Newton(solver=solver, attempts=5, tolerance=1e-10))
    assert info.status == Solved.CONVERGED and info.damping > 1  # eigenvalue -1.4 or so
    x = np.eye(2) * 1.2
    hessian = np.diag(1.2**2 * np.cos(x @ np.asarray(theta)))
    gradient = np.sin(np.asarray(theta))
    expected = theta + np.linalg.solve(hessian + float(info.damping) * np.eye(2), gradient)
    np.testing.assert_allclose(out, expected, rtol=1e-8)


def test_too_few_attempts_keep_the_params_and_say_so():
    theta, (out, info) = indefinite(Newton(attempts=1))
    laws.bits(out, theta)
    assert info.status == Solved.INDEFINITE and info.damping > 0


def test_the_first_order_is_the_fallback_if_it_is_asked_for():
    theta, (out, info) = indefinite(Newton(fallback="first_order"), tau=0.1)
    np.testing.assert_allclose(out, theta + 0.1 * np.sin(theta), rtol=1e-5)
    assert info.status == Solved.INDEFINITE and info.moved > 0


def test_iterations_that_run_out_are_a_status_and_no_edit():
    x, y, theta = classification()
    options = Newton(iterations=2, fallback="keep", tolerance=1e-6)
    theta = jnp.asarray(theta, jnp.float32)
    out, info = correct(LOGISTIC, theta, before=rows(np.float32(x[:9]), np.float32(y[:9])),
                        after=None, retain=rows(np.float32(x[9:]), np.float32(y[9:])),
                        l2=L2, options=options)  # fmt: skip
    laws.bits(out, theta)
    assert info.status == Solved.EXHAUSTED and info.residual > 1e-6 and info.iterations == 2


@pytest.mark.parametrize("fallback", ["damp", "first_order", "keep"])
def test_a_gradient_that_is_no_number_never_reaches_the_params(fallback):
    x, y = np.float32(regression()[0]), np.float32(regression()[1])
    bad = x[:2].copy()
    bad[0, 0] = np.nan
    out, info = correct(RIDGE, jnp.ones(4), before=rows(bad, y[:2]), after=None, l2=L2,
                        retain=rows(x[2:], y[2:]), options=Newton(fallback=fallback))  # fmt: skip
    laws.bits(out, jnp.ones(4))
    assert info.status == Solved.NONFINITE


def test_gauss_newton_of_another_loss_is_refused_as_a_value(single):
    halved = ju.Model(single.model.outputs, lambda p, b: 0.5 * single.model.loss(p, b))
    own = features_labels(
        curvature="ggn",
        damping=1.0,
        output_loss=lambda z, y: 0.5 * ju.losses.cross_entropy(z, y),
    )
    out = features_labels(curvature="ggn", damping=1.0).unlearn(
        halved, single.params, single.request, KEY
    )
    laws.bits(out.params, single.params)
    assert out.info.status == Solved.FOREIGN
    right = own.unlearn(halved, single.params, single.request, KEY)
    assert right.info.status == Solved.CONVERGED and right.info.moved > 0


# --------------------------------------------------------------------- corrections, chunks, streams


def test_labels_come_from_their_column(x64):
    x, y = regression()
    data = InMemory({"x": jnp.asarray(x), "y": jnp.asarray(y), "fixed": jnp.asarray(-y)}, 64)
    method = features_labels(correction=with_labels("fixed"), solver="cholesky", l2=L2)
    request = ju.Request(data.take(range(6)), data.take(range(6, 24)))
    out = method.unlearn(RIDGE, jnp.asarray(ridge_fit(x, y)), request, KEY)
    np.testing.assert_allclose(out.params, ridge_fit(x, np.r_[-y[:6], y[6:]]), rtol=1e-9)


def test_stepwise_streams_equal_stepwise_arrays():
    x, y = (np.float32(each) for each in regression())
    method = features_labels(correction=without_features([1]), l2=L2, steps=3, tolerance=1e-5)
    data = [[{"x": x[i : i + 6], "y": y[i : i + 6]} for i in part] for part in ((0, 6), (12, 18))]
    arrays = ju.Request(rows(x[:12], y[:12], 6), rows(x[12:], y[12:], 6))
    streamed = method.unlearn(RIDGE, jnp.ones(4), ju.Request(*data), KEY)
    inside = method.unlearn(RIDGE, jnp.ones(4), arrays, KEY)
    np.testing.assert_allclose(streamed.params, inside.params, rtol=1e-4)
    assert streamed.info.status == inside.info.status == Solved.CONVERGED


def test_on_a_quadratic_several_steps_are_one(x64):
    """Exact at every step, whatever the chunks: 5 of them for 6 rows."""
    x, y = regression()
    out, info = correct(RIDGE, jnp.asarray(ridge_fit(x, y)), before=rows(x[:6], y[:6]), after=None,
                        retain=rows(x[6:], y[6:]), l2=L2, steps=5, options=CHOLESKY)  # fmt: skip
    np.testing.assert_allclose(out, ridge_fit(x[6:], y[6:]), rtol=1e-10, atol=1e-10)
    assert info.status.shape == ()


def test_rows_of_weight_zero_are_not_there(x64):
    x, y = regression()
    weight = np.r_[np.zeros(2), np.ones(22)]
    junk = x.copy()
    junk[:2] = np.nan
    data = InMemory({"x": jnp.asarray(junk), "y": jnp.asarray(y), "weight": jnp.asarray(weight)}, 5)
    request = ju.Request(data.take(range(6)), data.take(range(6, 24)))
    theta = jnp.asarray(ridge_fit(x[2:], y[2:]))
    out = features_labels(solver="cholesky", l2=L2, steps=2).unlearn(RIDGE, theta, request, KEY)
    np.testing.assert_allclose(out.params, ridge_fit(x[6:], y[6:]), rtol=1e-9)


def test_bfloat16_params_that_do_not_move_keep_their_bits():
    x, y = (np.float32(each) for each in regression())
    half = jnp.ones(4, jnp.bfloat16)
    out, _ = correct(RIDGE, half, before=rows(x[:3], y[:3]), after=rows(x[:3], y[:3]),
                     retain=rows(x[3:], y[3:]), l2=L2)  # fmt: skip
    laws.bits(out, half)


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, r"expected order 1 or 2 and steps >= 1, got order=3"),
        ({"steps": 0}, "steps=0"),
        ({"tau": 0.0}, "expected tau > 0, l2 >= 0 and damping >= 0, got tau=0"),
        ({"l2": -1.0}, "l2=-1"),
        ({"damping": -1.0}, "damping=-1"),
        ({"at": "both"}, r"at must be one of \('corrected', 'original'\), got 'both'"),
        ({"gradient": "half"}, "gradient must be one of .*got 'half'"),
        ({"curvature": "fisher"}, "curvature must be one of .*got 'fisher'"),
        ({"solver": "lu"}, "solver must be one of .*got 'lu'"),
        ({"fallback": "raise"}, "fallback must be one of .*'first_order'.*got 'raise'"),
        ({"tolerance": 0.0}, "expected tolerance > 0 and scale > 0, got tolerance=0"),
        ({"scale": 0.0}, "scale=0"),
        ({"iterations": 0}, "expected iterations >= 1 and attempts >= 0, got iterations=0"),
        ({"attempts": -1}, "attempts=-1"),
        ({"retain": False}, "without `correction` rows are removed, and with retain=False none"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"features_labels: .*{message}"):
        features_labels(**options)


@pytest.mark.parametrize(
    ("correction", "error", "message"),
    [
        (lambda b: b["x"], TypeError, "must map a batch .*it returned"),
        (lambda b: {**b, "x": b["x"][:, 1:]}, ValueError, "changed column 'x' from shape .*to"),
        (lambda b: {"x": b["x"]}, ValueError, r"lost the columns \['y'\]"),
        (with_labels("gone"), KeyError, "with_labels: no column 'gone' in this data"),
    ],
)
def test_a_correction_that_changes_the_kind_of_rows_is_refused(correction, error, message):
    x, y = (np.float32(each) for each in regression())
    request = ju.Request(rows(x[:6], y[:6]), rows(x[6:], y[6:]))
    with pytest.raises(error, match=message):
        features_labels(correction=correction).unlearn(RIDGE, jnp.ones(4), request, KEY)


def test_a_matrix_that_is_too_large_is_refused():
    wide = ju.Model(outputs=linear_outputs, loss=lambda p, b: p["big"].sum() * b["y"])
    one = rows(np.ones((1, 1), np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="a matrix of 10001 x 10001; up to 10000 .*solver='cg'"):
        correct(wide, {"big": jnp.ones(10_001)}, before=one, after=None, retain=one,
                options=CHOLESKY)  # fmt: skip


def test_removing_everything_is_refused():
    one = rows(np.ones((1, 4), np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="nothing remains: every row is removed"):
        correct(RIDGE, jnp.ones(4), before=one, after=None, retain=None)


def test_every_pair_of_order_and_curvature_is_another_edit(single):
    edits = [
        features_labels(order=o, curvature=c, l2=1.0, damping=5.0, tau=0.1)
        .unlearn(single.model, single.params, single.request, KEY).params
        for o, c in ((1, "hessian"), (2, "ggn"))
    ]  # fmt: skip
    for a, b in itertools.combinations(edits, 2):
        assert laws.different(a, b)
