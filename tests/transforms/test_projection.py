"""Projections of updates: the dense projector, layers that do not answer differently, and the place
in the chain where the law holds and where it breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.curvature import input_grams
from jaxunlearn.data import in_memory
from jaxunlearn.transforms import Subspace, keep_within, project_out, span
from jaxunlearn.transforms.projection import everything, leading

RNG = np.random.default_rng(0)
D = 7
VECTORS = np.linalg.qr(RNG.standard_normal((D, D)))[0]
GRADS = RNG.standard_normal((D, 3))


def basis(k):
    return jnp.asarray(VECTORS[:, :k])


def run(tx, grads, params=None, **extra):
    return tx.update(grads, tx.init(grads), params, **extra)[0]


# The projector


@pytest.mark.parametrize("k", range(D + 1))
def test_it_is_the_dense_projector_whichever_side_is_stored(k, x64):
    dense = VECTORS[:, :k] @ VECTORS[:, :k].T
    kept = np.asarray(run(keep_within(basis(k)), jnp.eye(D)))
    np.testing.assert_allclose(kept, dense, atol=1e-12)
    np.testing.assert_allclose(kept, kept.T, atol=1e-12)
    np.testing.assert_allclose(kept @ kept, kept, atol=1e-12)
    np.testing.assert_allclose(np.trace(kept), k, atol=1e-12)
    assert np.linalg.matrix_rank(kept) == k
    out = run(project_out(basis(k)), jnp.asarray(GRADS))
    np.testing.assert_allclose(out, GRADS - dense @ GRADS, atol=1e-12)
    assert span(basis(k)).columns.shape[1] == min(k, D - k)


@pytest.mark.parametrize("size", [D, 6])
def test_a_rank_that_is_only_known_in_the_program_gives_the_same(size, x64):
    vectors = np.linalg.qr(RNG.standard_normal((size, size)))[0]
    grads = RNG.standard_normal((size, 2))

    @jax.vmap
    def both(rank):
        space = leading(jnp.asarray(vectors), rank)
        return space.without(jnp.asarray(grads)), space.within(jnp.asarray(grads))

    out, kept = both(jnp.arange(size + 1))
    for k in range(size + 1):
        dense = vectors[:, :k] @ vectors[:, :k].T @ grads
        np.testing.assert_allclose(kept[k], dense, atol=1e-12)
        np.testing.assert_allclose(out[k], grads - dense, atol=1e-12)
    np.testing.assert_array_equal(out[0], grads)
    np.testing.assert_array_equal(out[size], 0)
    np.testing.assert_array_equal(kept[0], 0)
    np.testing.assert_array_equal(kept[size], grads)
    assert leading(jnp.asarray(vectors), 3).columns.shape == (size, size // 2)


def test_nothing_and_everything_are_exact():
    grads = jnp.asarray(GRADS, jnp.float32)
    np.testing.assert_array_equal(run(project_out(basis(0)), grads), grads)
    np.testing.assert_array_equal(run(project_out(basis(D)), grads), 0)
    np.testing.assert_array_equal(run(keep_within(basis(D)), grads), grads)
    np.testing.assert_array_equal(run(keep_within(basis(0)), grads), 0)
    for shape in ((), (3,), (2, 3, 2)):
        leaf = jnp.ones(shape)
        np.testing.assert_array_equal(run(project_out(everything(shape)), leaf), 0)


@pytest.mark.parametrize("k", [2, 5])
def test_in_single_precision_what_is_left_in_the_span_is_rounding(k):
    grads = jnp.asarray(GRADS, jnp.float32)
    out = run(project_out(basis(k)), grads)
    inside = jnp.linalg.norm(basis(k).T @ out)
    assert inside <= 1e-5 * jnp.linalg.norm(grads)
    assert jnp.linalg.norm(basis(k).T @ grads) > 0.1 * jnp.linalg.norm(grads)
    together = out + run(keep_within(basis(k)), grads)
    np.testing.assert_allclose(together, grads, atol=1e-6)


# Layers


def test_a_layer_answers_the_same_to_every_input_of_the_span(x64):
    weights = RNG.standard_normal((D, 3))
    inside, outside = RNG.standard_normal((5, 4)) @ VECTORS[:, :4].T, RNG.standard_normal((5, D))
    step = 1e3 * np.asarray(run(project_out(basis(4)), jnp.asarray(GRADS)))
    np.testing.assert_allclose(inside @ (weights + step), inside @ weights, atol=1e-9)
    assert np.abs(outside @ step).max() > 1


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_convolution_answers_the_same_to_its_own_patches(dilation, x64):
    """Four patches of eight numbers, from the Gram in the order of the kernel (h, w, i, o)."""
    x = jnp.asarray(RNG.standard_normal((1, 5, 5, 2)))
    kernel, bias = jnp.asarray(RNG.standard_normal((2, 2, 2, 3))), jnp.ones(3)

    def outputs(params, batch):
        made = jax.lax.conv_general_dilated(
            batch["x"], params["w"], (3, 3), ((1, 0), (0, 1)), rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return made + params["b"][None, None, None]

    params = {"w": kernel, "b": bias}
    grams = input_grams(outputs, params, in_memory({"x": x}))
    assert set(grams) == {"['w']"} and grams["['w']"].axes == (0, 1, 2)  # a bias has none
    values, vectors = np.linalg.eigh(grams["['w']"].matrix)
    kept = vectors[:, values > 1e-9 * values.max()]
    assert 0 < kept.shape[1] < 8
    grads = {"w": jnp.asarray(RNG.standard_normal(kernel.shape)), "b": jnp.zeros(3)}
    before = outputs(params, {"x": x})

    def moved(columns):
        updates = run(project_out({"w": columns, "b": None}), grads)
        return outputs(optax.apply_updates(params, updates), {"x": x})

    np.testing.assert_allclose(moved(jnp.asarray(kept)), before, atol=1e-10)
    channels_first = kept.reshape(2, 2, 2, -1).transpose(2, 0, 1, 3).reshape(8, -1)
    assert np.abs(moved(jnp.asarray(channels_first)) - before).max() > 0.1


def test_a_subspace_may_run_over_other_axes_of_the_leaf(x64):
    """A kernel stored as (out, in), and one whose inputs are not neighbours."""
    dense = GRADS - VECTORS[:, :2] @ VECTORS[:, :2].T @ GRADS
    turned = run(project_out(span(basis(2), axes=(1,))), jnp.asarray(GRADS.T))
    np.testing.assert_allclose(turned, dense.T, atol=1e-12)
    vectors = jnp.asarray(np.linalg.qr(RNG.standard_normal((6, 6)))[0])
    leaf = jnp.asarray(RNG.standard_normal((2, 4, 3)))
    out = run(project_out(span(vectors[:, :2], axes=(0, 2))), leaf)
    flat = jnp.moveaxis(leaf, 1, 2).reshape(6, 4)
    flat -= vectors[:, :2] @ (vectors[:, :2].T @ flat)
    np.testing.assert_allclose(out, jnp.moveaxis(flat.reshape(2, 3, 4), 2, 1), atol=1e-12)


# Its place in a chain


def leak(tx, steps=3):
    """How much of the way went inside the span, relative to its length."""
    params = jnp.zeros((D, 3))
    state, start = tx.init(params), params
    for index in range(steps):
        grads = jnp.asarray(GRADS) * (1 + index) - 0.1 * params
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return float(jnp.linalg.norm(basis(3).T @ (params - start)) / jnp.linalg.norm(params - start))


def test_it_must_be_the_last_linear_map(x64):
    """Adam divides each coordinate by another number, and is orthogonal to nothing."""
    adam, project = optax.adam(0.1), project_out(basis(3))
    assert leak(optax.chain(adam, project)) < 1e-12
    assert leak(optax.chain(project, adam)) > 0.05
    assert leak(optax.chain(project, optax.rmsprop(0.1))) > 0.05


def test_momentum_and_a_learning_rate_may_stand_on_either_side(x64):
    momentum, project = optax.trace(0.9), project_out(basis(3))
    for chain in ((momentum, project), (project, momentum)):
        assert leak(optax.chain(*chain, optax.scale_by_learning_rate(0.1))) < 1e-12


# Trees


def test_prefixes_nothing_and_masked_leaves(x64):
    grads = {"body": {"w": jnp.asarray(GRADS), "v": 2 * jnp.asarray(GRADS)}, "b": jnp.ones(3)}
    expected = GRADS - VECTORS[:, :2] @ VECTORS[:, :2].T @ GRADS
    out = run(project_out({"body": basis(2), "b": None}), grads)
    np.testing.assert_allclose(out["body"]["w"], expected, atol=1e-12)
    np.testing.assert_allclose(out["body"]["v"], 2 * expected, atol=1e-12)
    np.testing.assert_array_equal(out["b"], 1)
    full = {"body": {"w": basis(2), "v": None}, "b": None}
    np.testing.assert_array_equal(run(project_out(full), grads)["body"]["v"], grads["body"]["v"])
    hidden = optax.masked(project_out({"body": basis(2), "b": None}), {"body": True, "b": False})
    np.testing.assert_allclose(run(hidden, grads)["body"]["w"], expected, atol=1e-12)


def test_a_basis_may_come_with_the_update_and_is_then_an_argument(x64):
    tx = project_out()
    traces = []

    @jax.jit
    def step(columns, grads):
        traces.append(1)
        return tx.update(grads, tx.init(grads), basis=columns)[0]

    for columns in (basis(2), jnp.asarray(VECTORS[:, 3:5])):
        ours = step(columns, jnp.asarray(GRADS))
        theirs = run(project_out(columns), jnp.asarray(GRADS))
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert len(traces) == 1
    chained = optax.chain(optax.sgd(1.0), project_out())
    out = chained.update(jnp.asarray(GRADS), chained.init(GRADS), basis=basis(D))[0]
    np.testing.assert_array_equal(out, 0)


def test_half_precision_stays_half_precision():
    grads = jnp.asarray(GRADS, jnp.bfloat16)
    out = run(project_out(jnp.asarray(VECTORS[:, :2], jnp.float32)), grads)
    assert out.dtype == jnp.bfloat16
    exact = run(project_out(basis(2)), grads.astype(jnp.float32))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


# What bad input gets


WIDE = {"w": jnp.ones((D, 3)), "b": jnp.ones(3)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_out(2 * basis(2)), r"span: the columns are not orthonormal.*reaches 3"),
        (lambda: keep_within(jnp.ones((D, 2))), "not orthonormal.*linalg.qr"),
        (lambda: project_out(basis(2) * jnp.nan), "not orthonormal"),
        (lambda: span(basis(3).T), r"expected columns \(d, k\) with k <= d, got shape \(3, 7\)"),
        (lambda: span(jnp.ones(3)), r"got shape \(3,\)"),
        (
            lambda: project_out({"w": basis(2), "b": basis(2)}).init(WIDE),
            r"project_out: the basis at \['b'\] has columns of length 7, .* shape \(3,\)",
        ),
        (
            lambda: keep_within({"w": span(basis(2), axes=(1,)), "b": None}).init(WIDE),
            r"keep_within: the basis at \['w'\].*or of its axes \(1,\)",
        ),
        (lambda: project_out({"tail": basis(2)}).init(WIDE), "the basis is no prefix of the par"),
        (lambda: run(project_out(), WIDE), r"project_out: no basis. Give project_out\(basis\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_subspace_is_a_tree_that_travels_through_programs():
    space = span(basis(2), axes=(0,))
    back = jax.jit(lambda s: s)(space)
    assert isinstance(back, Subspace) and back.axes == (0,)
    np.testing.assert_array_equal(back.columns, space.columns)
