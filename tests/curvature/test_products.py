"""Products with the curvature: closed forms, jax.hessian, definiteness, padding, streams."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxunlearn import losses
from jaxunlearn.curvature import products
from jaxunlearn.data import from_batches, in_memory


def outputs(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) @ params["v"]


def loss(params, batch):
    return losses.cross_entropy(outputs(params, batch), batch["y"])


def linear(params, batch):
    return 0.5 * (batch["x"] @ params - batch["x"].sum(axis=1)) ** 2


def columns(n=7, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 3)).astype(dtype)
    return {"x": x, "y": (np.arange(n) % 2).astype(np.int32), "weight": np.arange(n) % 3 + 0.5}


def params(dtype=jnp.float64):
    rng = np.random.default_rng(1)
    return {
        "w": jnp.asarray(rng.standard_normal((3, 4)), dtype),
        "v": jnp.asarray(rng.standard_normal((4, 2)), dtype),
    }


def flat_loss(c, theta):
    flat, unravel = ravel_pytree(theta)
    return flat, lambda f: jnp.sum(jnp.asarray(c["weight"]) * loss(unravel(f), c))


def vector(theta, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), theta)


@pytest.mark.parametrize("batch_size", [3, 50])
def test_gradient_product_and_matrix_are_those_of_the_weighted_sum(x64, batch_size):
    c, theta = columns(), params()
    data = in_memory(c, batch_size)
    flat, total = flat_loss(c, theta)
    hessian = jax.hessian(total)(flat)
    gradient = ravel_pytree(products.gradient_sum(loss, theta, data))[0]
    np.testing.assert_allclose(gradient, jax.grad(total)(flat), rtol=1e-10, atol=1e-12)
    v = vector(theta)
    product = ravel_pytree(products.hessian_product(loss, theta, data)(v))[0]
    np.testing.assert_allclose(product, hessian @ ravel_pytree(v)[0], rtol=1e-10, atol=1e-12)
    dense = products.dense_hessian(loss, theta, data)
    np.testing.assert_allclose(dense, hessian, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(dense, dense.T)


def test_a_product_is_the_slope_of_the_gradient(x64):
    c, theta, eps = columns(), params(), 1e-5
    data, v = in_memory(c, 3), vector(params())
    ahead, behind = (
        products.gradient_sum(loss, jax.tree.map(lambda p, a: p + s * eps * a, theta, v), data)  # noqa: B023
        for s in (1, -1)
    )
    slope = jax.tree.map(lambda a, b: (a - b) / (2 * eps), ahead, behind)
    product = products.hessian_product(loss, theta, data)(v)
    chex.assert_trees_all_close(product, slope, rtol=1e-6, atol=1e-7)


def test_gauss_newton_is_the_sum_of_j_h_j(x64):
    c, theta = columns(), params()
    flat, unravel = ravel_pytree(theta)
    expected = np.zeros(2 * (flat.size,))
    for i in range(7):
        row = {k: jnp.asarray(v[i : i + 1]) for k, v in c.items()}
        j = jax.jacobian(lambda f, row=row: outputs(unravel(f), row)[0])(flat)
        p = jax.nn.softmax(outputs(theta, row)[0])
        expected += c["weight"][i] * np.asarray(j.T @ (jnp.diag(p) - jnp.outer(p, p)) @ j)
    data, v = in_memory(c, 3), vector(theta)
    dense = products.dense_ggn(outputs, losses.cross_entropy, theta, data)
    np.testing.assert_allclose(dense, expected, rtol=1e-9, atol=1e-11)
    product = products.ggn_product(outputs, losses.cross_entropy, theta, data)(v)
    np.testing.assert_allclose(
        ravel_pytree(product)[0], expected @ ravel_pytree(v)[0], rtol=1e-9, atol=1e-11
    )
    assert np.linalg.eigvalsh(dense)[0] > -1e-10
    hessian = products.dense_hessian(loss, theta, data)
    assert np.linalg.eigvalsh(hessian)[0] < -1e-3, "the Hessian of this network is indefinite"


def test_for_a_linear_model_gauss_newton_is_the_hessian(x64):
    c = columns()

    def straight(p, batch):
        return batch["x"] @ p

    theta, data = jnp.asarray(np.random.default_rng(2).standard_normal((3, 2))), in_memory(c, 2)
    hessian = products.dense_hessian(
        lambda p, b: losses.cross_entropy(straight(p, b), b["y"]), theta, data
    )
    ggn = products.dense_ggn(straight, losses.cross_entropy, theta, data)
    np.testing.assert_allclose(ggn, hessian, rtol=1e-10, atol=1e-12)


def test_the_hessian_of_least_squares_is_the_gram_matrix():
    c = columns(dtype=np.float32) | {"weight": np.ones(7, np.float32)}
    dense = products.dense_hessian(linear, jnp.ones(3), in_memory(c, 4))
    np.testing.assert_allclose(dense, c["x"].T @ c["x"], rtol=1e-5)


def test_products_of_two_data_sets_add(x64):
    data, theta = in_memory(columns(), 3), params()
    v = vector(theta)
    parts = [data.take([0, 1, 2]), data.take([3, 4, 5, 6])]
    both = [products.hessian_product(loss, theta, part)(v) for part in parts]
    whole = products.hessian_product(loss, theta, data)(v)
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *both), whole, rtol=1e-10, atol=1e-12)


def test_a_stream_gives_what_arrays_give():
    c, theta = columns(dtype=np.float32), params(jnp.float32)
    c["weight"] = c["weight"].astype(np.float32)
    stream = from_batches([{k: v[i : i + 3] for k, v in c.items()} for i in (0, 3, 6)])
    data, v = in_memory(c, 3), params(jnp.float32)
    for of in (
        lambda d: products.hessian_product(loss, theta, d)(v),
        lambda d: products.ggn_product(outputs, losses.cross_entropy, theta, d)(v),
        lambda d: products.dense_hessian(loss, theta, d),
        lambda d: products.gradient_sum(loss, theta, d),
        products.total_weight,
    ):
        chex.assert_trees_all_close(of(stream), of(data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_rows_of_weight_zero_contribute_nothing_even_with_a_bad_derivative(batch_size):
    def norm(p, batch):  # not differentiable at x = 0
        return jnp.linalg.norm(batch["x"] * p[None], axis=1)

    x = np.ones((4, 3), np.float32)
    x[0] = x[3] = 0
    data = in_memory({"x": x, "weight": np.float32([0, 1, 1, 0])}, batch_size)
    alone, p, v = in_memory({"x": x[1:3]}, batch_size), jnp.arange(1.0, 4.0), jnp.ones(3)
    for of in (
        lambda d: products.hessian_product(norm, p, d)(v),
        lambda d: products.gradient_sum(norm, p, d),
        lambda d: products.dense_hessian(norm, p, d),
    ):
        np.testing.assert_allclose(of(data), of(alone), rtol=1e-6)


def test_no_rows_and_no_weight_are_zeros():
    c = {"x": np.ones((2, 3), np.float32), "weight": np.zeros(2, np.float32)}
    for data in (in_memory(c), in_memory(c).take([])):
        np.testing.assert_array_equal(
            products.hessian_product(linear, jnp.ones(3), data)(jnp.ones(3)), 0
        )
        assert products.total_weight(data) == 0


def test_half_precision_params_give_single_precision_products():
    half = jnp.ones(3, jnp.bfloat16)
    data = in_memory(columns(dtype=np.float32), 2)
    got = products.hessian_product(linear, half, data)(jnp.ones(3, jnp.bfloat16))
    expected = products.hessian_product(linear, jnp.ones(3), data)(jnp.ones(3))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_two_products_are_one_compilation():
    calls = []

    def counted(p, batch):
        calls.append(1)
        return linear(p, batch)

    data = in_memory(columns(dtype=np.float32), 3)
    products.hessian_product(counted, jnp.ones(3), data)(jnp.ones(3))
    once = len(calls)
    products.hessian_product(counted, jnp.zeros(3), data)(jnp.arange(3.0))
    assert once > 0 and len(calls) == once


def test_a_product_can_be_jitted_and_vmapped():
    data = in_memory(columns(dtype=np.float32), 3)

    def of(p):
        return products.hessian_product(lambda q, b: linear(q, b) ** 2, p, data)(jnp.ones(3))

    many = jax.jit(jax.vmap(of))(jnp.stack([jnp.ones(3), jnp.zeros(3)]))
    np.testing.assert_allclose(many[1], of(jnp.zeros(3)), rtol=1e-4)


def test_a_vector_of_another_tree_is_refused():
    product = products.hessian_product(linear, jnp.ones(3), in_memory(columns()))
    with pytest.raises(ValueError, match="the vector and the params are different trees"):
        product({"a": jnp.ones(3)})


def test_the_gap_between_two_losses_is_relative_and_zero_for_one_loss():
    data, theta = in_memory(columns(dtype=np.float32), 3), params(jnp.float32)
    assert products.loss_gap(loss, outputs, losses.cross_entropy, theta, data) == 0

    def half(z, y):
        return 0.5 * losses.cross_entropy(z, y)

    gap = products.loss_gap(loss, outputs, half, theta, data)
    np.testing.assert_allclose(gap, 0.5, rtol=1e-6)
