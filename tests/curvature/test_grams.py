"""Grams of what enters each weight: brute force, kernel order, subtraction, Kronecker factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.curvature import input_grams, kronecker_factors, second_moment
from jaxunlearn.data import from_batches, in_memory

from .zoo import ZOO

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5, 3))
W = RNG.standard_normal((3, 4))


def positions(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]).sum(axis=(1, 2))


def test_a_gram_is_the_second_moment_of_the_inputs_over_examples_and_positions(x64):
    weight = np.arange(6) % 3 * 1.0
    got = input_grams(positions, {"w": W}, in_memory({"x": X, "weight": weight}))["['w']"]
    np.testing.assert_allclose(got.matrix, np.einsum("n,nti,ntj->ij", weight, X, X), rtol=1e-10)
    assert got.axes == (0,) and got.count == weight.sum()
    eigenvalues = np.linalg.eigvalsh(got.matrix)
    assert eigenvalues.min() > -1e-9 * eigenvalues.max()


def test_the_gram_of_the_rest_is_the_gram_of_all_less_that_of_the_forgotten(x64):
    whole, gone, rest = (
        input_grams(positions, {"w": W}, in_memory({"x": X[part]}))["['w']"].matrix
        for part in (slice(None), slice(2), slice(2, None))
    )
    np.testing.assert_allclose(whole - gone, rest, rtol=1e-8)


@pytest.mark.parametrize("size", [1, 4, 6])
def test_chunks_and_streams_give_the_same_gram(size, x64):
    whole = input_grams(positions, {"w": W}, in_memory({"x": X}))["['w']"].matrix
    chunked = input_grams(positions, {"w": W}, in_memory({"x": X}), micro_batch=size)
    stream = from_batches([{"x": X[i : i + size]} for i in range(0, 6, size)])
    for got in (chunked, input_grams(positions, {"w": W}, stream)):
        np.testing.assert_allclose(got["['w']"].matrix, whole, rtol=1e-10)


def test_a_step_off_the_span_of_the_inputs_leaves_the_outputs_alone(x64):
    """What the Gram is for: inputs in a plane, a gradient projected off it, no output moves."""
    x = RNG.standard_normal((7, 2)) @ RNG.standard_normal((2, 5))
    w = jnp.asarray(RNG.standard_normal((5, 4)))

    def outputs(params, batch):
        return batch["x"] @ params

    gram = input_grams(outputs, w, in_memory({"x": x}))[""].matrix
    values, vectors = np.linalg.eigh(gram)
    kept = vectors[:, values > 1e-9 * values.max()]
    step = RNG.standard_normal((5, 4))
    projected = step - kept @ (kept.T @ step)
    assert kept.shape[1] == 2 and np.abs(projected).max() > 0.1
    np.testing.assert_allclose(x @ (w + projected), x @ w, atol=1e-10)


LAYOUTS = {
    "stored as (in, out)": ((3, 4), lambda x, w: x @ w, (0,)),
    "stored as (out, in)": ((4, 3), lambda x, w: x @ w.T, (1,)),
    "split heads": ((3, 2, 2), lambda x, w: jnp.einsum("nti,ihk->nthk", x, w), (0,)),
    "joined heads": (
        (2, 2, 3, 5),
        lambda x, w: jnp.einsum("ntij,ijhk->nthk", x[..., :2, None] * jnp.ones((1, 1, 1, 2)), w),
        (0, 1),
    ),
    "a product with another meaning": ((12,), lambda x, w: x @ w.reshape(3, 4), None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_input_axes_are_those_of_the_leaf(name, x64):
    shape, op, axes = LAYOUTS[name]
    w = jnp.asarray(RNG.standard_normal(shape))

    def loss(params, batch):
        made = op(batch["x"], params)
        return jnp.tanh(made).sum(axis=tuple(range(1, made.ndim)))

    got = input_grams(loss, w, in_memory({"x": X}))
    if axes is None:
        assert got == {}
    else:
        assert got[""].axes == axes
        size = np.prod([shape[a] for a in axes])
        assert got[""].matrix.shape == (size, size)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("order", [("NHWC", "HWIO"), ("NCHW", "OIHW"), ("NHWC", "IOHW")])
def test_patches_of_a_convolution_come_in_the_order_of_its_kernel(order, dilation, x64):
    """The output is patches times kernel: so M from the patches JAX itself extracts, reordered."""
    data, kernel = order
    x = RNG.standard_normal((3, 6, 6, 2) if data == "NHWC" else (3, 2, 6, 6))
    sizes = {"H": 3, "W": 2, "I": 2, "O": 4}
    w = jnp.asarray(RNG.standard_normal([sizes[a] for a in kernel]))
    options = {"window_strides": (2, 1), "padding": ((1, 0), (2, 1))}
    options |= {"rhs_dilation": (dilation, dilation)}

    def loss(params, batch):
        made = jax.lax.conv_general_dilated(
            batch["x"], params, dimension_numbers=(data, kernel, data), **options
        )
        return jnp.tanh(made).sum(axis=(1, 2, 3))

    got = input_grams(loss, w, in_memory({"x": x}))[""]
    patches = jax.lax.conv_general_dilated_patches(
        jnp.asarray(x),
        (3, 2),
        dimension_numbers=(data, kernel, "NHWC"),
        **options,
    )  # features in the order (i, h, w)
    flat = patches.reshape(-1, 12)
    expected = np.asarray(flat.T @ flat).reshape(2, 3, 2, 2, 3, 2)
    named = ["IHW".index(kernel[a]) for a in got.axes]
    expected = expected.transpose(*named, *(3 + a for a in named)).reshape(12, 12)
    np.testing.assert_allclose(got.matrix, expected, rtol=1e-10)
    assert got.axes == tuple(sorted(kernel.index(a) for a in "HWI"))


def test_stacked_layers_have_a_gram_each_and_shared_weights_the_sum(x64):
    stacked = jnp.asarray(0.5 * RNG.standard_normal((3, 4, 4)))
    x = RNG.standard_normal((5, 4))

    def inputs(weights):
        h, made = x, []
        for w in weights:
            made.append(h)
            h = np.tanh(h @ w)
        return made

    def scanned(p, b):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), b["x"], p)[0].sum(axis=1)

    def repeated(p, b):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ p), None), b["x"], length=3)[0].sum(axis=1)

    got = input_grams(scanned, stacked, in_memory({"x": x}))[""]
    expected = np.stack([h.T @ h for h in inputs(np.asarray(stacked))])
    np.testing.assert_allclose(got.matrix, expected, rtol=1e-10)
    assert got.axes == (1,)
    got = input_grams(repeated, stacked[0], in_memory({"x": x}))[""]
    expected = sum(h.T @ h for h in inputs([np.asarray(stacked[0])] * 3))
    np.testing.assert_allclose(got.matrix, expected, rtol=1e-10)


def test_groups_of_a_convolution_have_a_gram_each(x64):
    network = ZOO["conv_grouped"]()
    got = input_grams(network.loss_fn, network.params, in_memory(network.columns))["['w']"]
    assert got.matrix.ndim == 3 and got.matrix.shape[1] == got.matrix.shape[2]


def test_tables_biases_and_weights_used_in_two_ways_have_none(x64):
    network = ZOO["decoder_tied"]()
    got = input_grams(network.loss_fn, network.params, in_memory(network.columns))
    assert "['block']['qkv']['w']" in got
    assert not any("embed" in path or "'b'" in path or "norm" in path for path in got)


def test_a_model_without_weights_that_multiply_has_no_grams():
    data = in_memory({"x": np.ones((3, 2), np.float32)})
    assert input_grams(lambda p, b: b["x"].sum(axis=1) + p, jnp.ones(()), data) == {}


# ---- Kronecker factors: an approximation that says what it is ----


def linear(params, batch):
    return jnp.square(batch["x"] @ params - batch["y"]).sum(axis=1)


def test_the_factors_are_the_means_of_the_two_sides(x64):
    x, y = RNG.standard_normal((9, 3)), RNG.standard_normal((9, 2))
    w = jnp.asarray(RNG.standard_normal((3, 2)))
    got = kronecker_factors(linear, w, in_memory({"x": x, "y": y}))[""]
    d = 2 * (x @ np.asarray(w) - y)
    np.testing.assert_allclose(got.inputs, x.T @ x / 9, rtol=1e-10)
    np.testing.assert_allclose(got.outputs, d.T @ d / 9, rtol=1e-10)


def test_with_one_example_the_product_is_exact_and_with_many_it_misses_the_covariance(x64):
    """diag(A (x) B) = E[x_i^2] E[d_j^2]: the exact diagonal is E[x_i^2 d_j^2]."""
    x, y = RNG.standard_normal((9, 3)), RNG.standard_normal((9, 2))
    w = jnp.asarray(RNG.standard_normal((3, 2)))

    def both(rows):
        data = in_memory({"x": x[:rows], "y": y[:rows]})
        factors = kronecker_factors(linear, w, data)[""]
        diagonal = np.outer(np.diag(factors.inputs), np.diag(factors.outputs))
        return diagonal, np.asarray(second_moment(linear, w, data).square)

    np.testing.assert_allclose(*both(1), rtol=1e-10)
    approximate, exact = both(9)
    d = 2 * (x @ np.asarray(w) - y)
    covariance = np.einsum("ni,nj->ij", x**2, d**2) / 9 - np.outer(
        (x**2).mean(axis=0), (d**2).mean(axis=0)
    )
    np.testing.assert_allclose(exact - approximate, covariance, atol=1e-10)
    assert np.abs(covariance).max() > 0.1
