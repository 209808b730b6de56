"""Influence unlearning: leave-out on linear models, the diagonal in closed form, the recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.data import from_batches
from jaxunlearn.data.streams import InMemory
from jaxunlearn.linalg import Solved
from jaxunlearn.methods.edits.influence import influence, woodfisher
from tests.suite import laws

KEY = jax.random.key(0)
L2 = 0.05  # beside the mean loss


def loss(theta, batch):
    return 0.5 * (batch["x"] @ theta - batch["y"]) ** 2


MODEL = ju.Model(outputs=lambda p, b: b["x"] @ p, loss=loss)


def columns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4))
    return x, x @ rng.standard_normal(4) + 0.5 * rng.standard_normal(30)


def fit(x, y, l2=L2):
    n = len(y)
    return np.linalg.solve(x.T @ x / n + l2 * np.eye(4), x.T @ y / n)


def request(batch_size=8, dtype=np.float64):
    x, y = columns()

    def part(rows):
        return InMemory({"x": jnp.asarray(x[rows], dtype), "y": jnp.asarray(y[rows], dtype)},
                        batch_size)  # fmt: skip

    return ju.Request(part(slice(0, 7)), part(slice(7, 30)))


def test_on_ridge_regression_it_is_leaving_the_rows_out(x64):
    x, y = columns()
    method = influence(curvature="hessian", l2=L2, damping=0.0, tolerance=1e-12)
    theta, left_out = jnp.asarray(fit(x, y)), fit(x[7:], y[7:])
    out = method.unlearn(MODEL, theta, request(), KEY)
    np.testing.assert_allclose(out.params, left_out, rtol=1e-10, atol=1e-10)
    assert out.info.status == Solved.CONVERGED
    for wrong in ({"l2": 0.0}, {"damping": 1e-3}, {"alpha": 0.99}, {"gradient": "forget"}):
        options = {"curvature": "hessian", "l2": L2, "damping": 0.0, "tolerance": 1e-12} | wrong
        mutant = influence(**options).unlearn(MODEL, theta, request(), KEY).params
        assert np.abs(mutant - left_out).max() > 1e-6, wrong


def test_without_a_regulariser_the_pull_of_the_forget_set_alone_is_enough(x64):
    x, y = columns()
    method = influence(curvature="hessian", gradient="forget", damping=0.0, tolerance=1e-12)
    out = method.unlearn(MODEL, jnp.asarray(fit(x, y, 0.0)), request(), KEY)
    np.testing.assert_allclose(out.params, fit(x[7:], y[7:], 0.0), rtol=1e-9)


def centred(theta):
    """v of the published code: means over F and R apart, in NumPy."""
    x, y = columns()
    each = (x @ theta - y)[:, None] * x
    f, r = 7, 23
    return each[:7].sum(0) / (f + r) - f / ((f + r) * r) * each[7:].sum(0), each


def test_the_diagonal_divides_by_the_mean_squared_gradient_of_the_retained(x64):
    theta = np.array([0.2, -0.4, 1.0, 0.3])
    v, each = centred(theta)
    expected = theta + 3.0 * v / ((each[7:] ** 2).mean(0) + L2 + 0.1)
    method = influence(curvature="diagonal", alpha=3.0, l2=L2, damping=0.1)
    out = method.unlearn(MODEL, jnp.asarray(theta), request(), KEY)
    np.testing.assert_allclose(out.params, expected, rtol=1e-9)
    np.testing.assert_allclose(out.info.moved, np.linalg.norm(expected - theta), rtol=1e-9)


def test_the_hessian_and_gauss_newton_solve_the_damped_mean_system(x64):
    theta = np.array([0.2, -0.4, 1.0, 0.3])
    v, _ = centred(theta)
    x, _ = columns()
    expected = theta + np.linalg.solve(x[7:].T @ x[7:] / 23 + (L2 + 0.1) * np.eye(4), v)
    squares = ju.Model(
        outputs=lambda p, b: (b["x"] @ p)[:, None],
        loss=loss,
    )

    def half(z, y):
        return 0.5 * (z[:, 0] - y) ** 2

    for options in ({"curvature": "hessian"}, {"curvature": "ggn", "output_loss": half}):
        method = influence(l2=L2, damping=0.1, tolerance=1e-12, **options)
        out = method.unlearn(squares, jnp.asarray(theta), request(), KEY)
        np.testing.assert_allclose(out.params, expected, rtol=1e-9)
        np.testing.assert_allclose(out.info.damping, 0.1)


def published(each, v, n):
    """The recursion as in the published code, in NumPy."""
    k, o = v.copy(), None
    for g in each:
        if o is None:
            o = g.copy()
        else:
            t = o @ g
            k -= (k @ g) / (n + t) * o
            o -= t / (n + t) * o
    return k


@pytest.mark.parametrize("samples", [23, 40, 6])
def test_the_recursion_is_the_published_one(x64, samples):
    theta = np.array([0.2, -0.4, 1.0, 0.3])
    v, each = centred(theta)
    used = min(samples, 23)
    chosen = [i for i in range(23) if (i + 1) * used // 23 > i * used // 23]
    assert len(chosen) == used
    expected = theta + 2.0 * published(each[7:][chosen], v, samples)
    method = influence(curvature="woodfisher", alpha=2.0, samples=samples)
    out = method.unlearn(MODEL, jnp.asarray(theta), request(), KEY)
    np.testing.assert_allclose(out.params, expected, rtol=1e-10)
    assert out.info.iterations == used


def test_the_recursion_skips_rows_of_weight_zero_the_first_one_too(x64):
    theta = jnp.array([0.2, -0.4, 1.0, 0.3])
    v, each = centred(np.asarray(theta))
    arrays = dict(request().retain.arrays)
    arrays["weight"] = jnp.asarray(np.r_[0.0, np.ones(20), 0.0, 4.0])
    arrays["x"] = arrays["x"].at[0].set(np.nan)
    k, count = woodfisher(loss, theta, InMemory(arrays, 4), jnp.asarray(v), samples=23)
    rows = np.r_[each[8:28], 2 * each[29:30]]  # weight 4 is twice the gradient
    np.testing.assert_allclose(k, published(rows, v, 23), rtol=1e-10)
    assert count == 21


def test_the_recursion_reads_streams_in_the_same_order():
    arrays = request(dtype=np.float32).retain
    batches = from_batches([dict(b) for b in arrays])
    theta, v = jnp.array([0.2, -0.4, 1.0, 0.3]), jnp.ones(4)
    inside, outside = (woodfisher(loss, theta, d, v, samples=9) for d in (arrays, batches))
    np.testing.assert_allclose(outside[0], inside[0], rtol=1e-5)
    assert outside[1] == inside[1] == 9


@pytest.mark.parametrize("curvature", ["diagonal", "woodfisher"])
def test_the_other_curvatures_keep_dtypes(curvature, case):
    method = influence(curvature=curvature, damping=0.1, samples=5)
    laws.keeps_tree_shapes_and_dtypes(method, case)


def test_no_length_is_no_step(single):
    out = influence(alpha=0.0).unlearn(single.model, single.params, single.request, KEY)
    laws.bits(out.params, single.params)


def test_a_parameter_that_nothing_depends_on_stays_without_damping():
    model = ju.Model(lambda p, b: b["x"] @ p["w"], lambda p, b: loss(p["w"], b))
    params = {"w": jnp.ones(4), "idle": jnp.full(2, 3.0)}
    method = influence(curvature="diagonal", damping=0.0)
    out = method.unlearn(model, params, request(dtype=np.float32), KEY).params
    laws.bits(out["idle"], params["idle"])
    assert laws.different(out["w"], params["w"])


def wavy(theta, batch):
    return -jnp.cos(batch["x"] @ theta)


@pytest.mark.parametrize("fallback", ["keep", "damp"])
def test_an_indefinite_hessian_is_a_status_or_is_damped(fallback):
    model = ju.Model(outputs=MODEL.outputs, loss=wavy)
    theta = jnp.full(4, 3.0)
    method = influence(curvature="hessian", damping=0.0, fallback=fallback, attempts=6)
    out = method.unlearn(model, theta, request(dtype=np.float32), KEY)
    if fallback == "keep":
        laws.bits(out.params, theta)
        assert out.info.status == Solved.INDEFINITE and out.info.moved == 0
    else:
        assert out.info.status == Solved.CONVERGED and out.info.damping > 0 < out.info.moved


def test_gauss_newton_of_another_loss_moves_nothing():
    model = ju.Model(outputs=MODEL.outputs, loss=loss)  # half of the squared error
    out = influence(curvature="ggn").unlearn(model, jnp.ones(4), request(dtype=np.float32), KEY)
    laws.bits(out.params, jnp.ones(4))
    assert out.info.status == Solved.FOREIGN


def test_a_gradient_that_is_no_number_never_reaches_the_params():
    made = request(dtype=np.float32)
    bad = made.forget.replace(x=np.full((7, 4), 1e30, np.float32))
    for curvature in ("diagonal", "woodfisher", "hessian"):
        method = influence(curvature=curvature)
        big = jnp.full(4, 1e20)
        out = method.unlearn(MODEL, big, made._replace(forget=bad), KEY)
        laws.bits(out.params, big)
        assert out.info.status == Solved.NONFINITE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "kfac"}, r"curvature must be one of \('diagonal', .*got 'kfac'"),
        ({"gradient": "none"}, "gradient must be one of .*got 'none'"),
        ({"fallback": "first_order"}, r"fallback must be one of \('damp', 'keep'\)"),
        ({"alpha": float("inf")}, "expected a finite alpha.*alpha=inf"),
        ({"l2": -1.0}, "l2=-1"),
        ({"damping": -1.0}, "damping=-1"),
        ({"samples": 0}, "samples=0"),
        ({"iterations": 0}, "expected iterations >= 1"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"influence: .*{message}"):
        influence(**options)
