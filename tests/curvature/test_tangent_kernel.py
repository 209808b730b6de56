"""The empirical tangent kernel against the Jacobian, and the linear model that it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.curvature import displaced, linearised, tangent_kernel
from jaxunlearn.kernels.functions import relu_tangent, tangent

N, M, C = 5, 3, 2


def outputs(p, batch):
    hidden = jnp.tanh(batch["x"] @ p["layer"][0] + p["layer"][1][None])
    return (
        hidden[:, : 2 * C].reshape(-1, 2, C).sum(1) * p["scale"] ** p["power"] + hidden[:, :C] ** 2
    )


MODEL = ju.Model(outputs=outputs, loss=lambda p, b: outputs(p, b).sum(1))
kernel = jax.jit(tangent_kernel, static_argnums=0, static_argnames=("outputs", "block"))
move = jax.jit(displaced, static_argnums=0, static_argnames="block")
lift = jax.jit(linearised, static_argnums=0)


def setting():
    """params with a tuple and an integer leaf; rows left and right."""
    rng = np.random.default_rng(0)
    layer = (rng.standard_normal((4, 6)), rng.standard_normal(6))
    params = {"layer": layer, "scale": np.float64(1.5), "power": np.int32(2)}
    left, right = (rng.standard_normal((n, 4)) for n in (N, M))
    return params, {"x": left}, {"x": right}


def flat(params):
    """All parameters but the integer, in one vector."""
    return np.concatenate([*(np.ravel(a) for a in params["layer"]), np.ravel(params["scale"])])


def jacobian(params, batch):
    """(n, C, p) by forward differentiation of everything at once."""

    def at(point):
        return outputs(point | {"power": params["power"]}, batch)

    jac = jax.jit(jax.jacfwd(at))({k: params[k] for k in ("layer", "scale")})
    leaves = [*jac["layer"], jac["scale"]]
    return np.concatenate([np.asarray(a).reshape(*a.shape[:2], -1) for a in leaves], axis=2)


def test_it_is_the_product_of_two_jacobians(x64):
    """A block of 2 divides neither number of rows; None is all rows at once."""
    params, left, right = setting()
    expected = np.einsum("icp,jdp->icjd", jacobian(params, left), jacobian(params, right))
    for block in (2, None):
        full = kernel(MODEL, params, left, right, block=block)
        assert full.shape == (N, C, M, C)
        np.testing.assert_allclose(full, expected, rtol=1e-11)
        trace = kernel(MODEL, params, left, right, outputs="trace", block=block)
        np.testing.assert_allclose(trace, np.einsum("icjc->ij", expected), rtol=1e-11)
        each = kernel(MODEL, params, left, right, outputs="each", block=block)
        np.testing.assert_allclose(each, np.einsum("icjc->icj", expected), rtol=1e-11)


def test_of_one_set_of_rows_it_is_symmetric_to_the_bit_and_positive(x64):
    params, left, _ = setting()
    full = np.asarray(kernel(MODEL, params, left, block=2)).reshape(N * C, N * C)
    np.testing.assert_array_equal(full, full.T)
    assert np.linalg.eigvalsh(full).min() > -1e-12
    other = kernel(MODEL, params, left, left, block=2).reshape(N * C, N * C)
    np.testing.assert_allclose(full, other, rtol=1e-12)


def test_no_jacobian_of_all_rows_is_formed():
    """The largest array of the program is far from n C p numbers."""
    wide = ju.Model(outputs=lambda p, b: jnp.tanh(b["x"] @ p).sum(1), loss=lambda p, b: b["x"])
    params, rows = np.ones((50, 40), np.float32), {"x": np.ones((64, 50), np.float32)}
    run = jax.jit(lambda p, b: tangent_kernel(wide, p, b, outputs="trace", block=4))
    needed = run.lower(params, rows).compile().memory_analysis()
    every = jax.jit(lambda p, b: tangent_kernel(wide, p, b, outputs="trace", block=None))
    whole = every.lower(params, rows).compile().memory_analysis()
    jacobian_bytes = 4 * 64 * 50 * 40
    assert needed.temp_size_in_bytes < jacobian_bytes / 2 <= whole.temp_size_in_bytes


def test_weights_of_a_machine_are_parameters_of_the_linear_model(x64):
    """f_lin(x; theta + J^T alpha) - f(x) = Theta alpha, and J^T alpha by the Jacobian."""
    params, left, right = setting()
    alpha = np.random.default_rng(1).standard_normal((N, C))
    moved = move(MODEL, params, left, alpha)
    again = move(MODEL, params, left, alpha, block=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), again, moved)
    assert jax.tree.structure(moved) == jax.tree.structure(params)
    assert int(moved["power"]) == 2 and moved["power"].dtype == jnp.int32
    step = np.einsum("icp,ic->p", jacobian(params, left), alpha)
    np.testing.assert_allclose(flat(moved) - flat(params), step, rtol=1e-11, atol=1e-12)
    lifted = lift(MODEL, params, moved, right) - np.asarray(lift(MODEL, params, params, right))
    expected = np.einsum("icp,p->ic", jacobian(params, right), step)
    np.testing.assert_allclose(lifted, expected, rtol=1e-10)
    theta = np.asarray(kernel(MODEL, params, left, right, block=2))
    np.testing.assert_allclose(lifted, np.einsum("jdic,jd->ic", theta, alpha), rtol=1e-10)


def test_the_linear_model_is_tangent_to_the_network(x64):
    """The difference is of second order: a hundredth for a tenth of the step."""
    params, left, _ = setting()

    @jax.jit
    def difference(size):
        moved = params | {"layer": jax.tree.map(lambda a: a + size, params["layer"])}
        return jnp.abs(outputs(moved, left) - linearised(MODEL, params, moved, left)).max()

    assert 50 < difference(1e-3) / difference(1e-4) < 150


def test_running_statistics_are_constants_and_half_precision_is_widened():
    def scaled(p, batch):
        return (batch["x"] @ p["params"]) * p["batch_stats"]

    model = ju.Model(outputs=scaled, loss=scaled, statistics=True)
    rows = {"x": jnp.eye(3, dtype=jnp.bfloat16), "weight": jnp.ones(3)}
    params = {"params": jnp.ones(3, jnp.bfloat16), "batch_stats": jnp.array(2.0)}
    theta = kernel(model, params, rows, outputs="trace")
    np.testing.assert_array_equal(theta, 4 * np.eye(3))
    assert theta.dtype == jnp.float32
    moved = move(model, params, rows, jnp.ones(3))
    assert moved["params"].dtype == jnp.bfloat16 and float(moved["batch_stats"]) == 2
    np.testing.assert_array_equal(np.asarray(moved["params"], float), 3)
    np.testing.assert_array_equal(lift(model, params, moved, rows), 6)


def test_a_wide_network_has_the_kernel_of_the_infinite_one():
    """Also off the sphere, and with the scale; a mutant of either constant is 30 % off."""
    rng = np.random.default_rng(3)
    x, z = (rng.standard_normal((n, 3)).astype(np.float32) for n in (5, 4))
    width = 40_000
    net = ju.Model(
        outputs=lambda p, b: 1.5 * jax.nn.relu(b["x"] @ p["w"].T) @ p["v"] / width**0.5,
        loss=lambda p, b: b["x"][:, 0],
    )
    params = {
        "w": rng.standard_normal((width, 3)).astype(np.float32),
        "v": rng.standard_normal(width).astype(np.float32),
    }
    empirical = jax.jit(tangent(net, params, outputs="trace"))({"x": x}, {"x": z})
    analytic = np.asarray(jax.jit(relu_tangent(scale=1.5))(x, z))
    np.testing.assert_allclose(empirical, analytic, atol=0.02 * np.abs(analytic).max())


def test_the_infinite_kernel_at_its_edges(x64):
    x = np.array([[0.6, 0.8], [-0.6, -0.8], [0.0, 0.0], [3.0, 4.0], [-0.8, 0.6]])
    theta = np.asarray(jax.jit(relu_tangent())(x, x))
    np.testing.assert_allclose(np.diag(theta), [1, 1, 0, 25, 1], atol=1e-7)
    np.testing.assert_allclose(theta[0, 1], 0, atol=1e-7)
    np.testing.assert_array_equal(theta[2], 0)
    np.testing.assert_allclose(theta[0, 3], 5, atol=1e-7)
    # at a right angle: k1 = 1 / (2 pi), and the second term is 0
    np.testing.assert_allclose(theta[0, 4], 1 / (2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "tracce"}, "Did you mean 'trace'"),
        ({"block": 0}, "block must be >= 1 or None, got 0"),
    ],
)
def test_choices_that_do_not_exist_are_refused(options, message):
    params, left, _ = setting()
    with pytest.raises(ValueError, match=message):
        tangent_kernel(MODEL, params, left, **options)


def test_weights_of_another_shape_are_refused():
    params, left, _ = setting()
    with pytest.raises(ValueError, match=r"alpha of the outputs' shape \(5, 2\), got \(5,\)"):
        displaced(MODEL, params, left, jnp.ones(N))
    with pytest.raises(ValueError, match="'full' or 'trace', got 'each'"):
        tangent(MODEL, params, outputs="each")
