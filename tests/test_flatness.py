"""Slopes of a function at its inputs: each estimate against a second road to the same number."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxunlearn import objectives
from jaxunlearn.flatness import directional_slopes, finite_slopes, slope_penalty
from jaxunlearn.model import Model

KEY = jax.random.key(4)
BOTH = pytest.mark.parametrize("slopes", [finite_slopes, directional_slopes])


def curved(params, batch):
    """(n, 2, 3) -> (n, 2, 2): outputs and inputs of more than one axis."""
    return jnp.tanh(batch["x"] @ params["w"]) * params["s"]


def linear(a, batch):
    return batch["x"] @ a.T


CURVED = Model(outputs=curved, loss=lambda p, b: jnp.square(curved(p, b)).sum((1, 2)))


def problem():
    """Of the dtype that is the default when it is called."""
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.standard_normal((3, 2))), "s": jnp.asarray(1.7)}
    return params, {"x": jnp.asarray(rng.uniform(0, 1, (5, 2, 3)))}


class Slopes(NamedTuple):
    each: Any  # (n,)
    sum: Any  # ()
    gradient: Any  # of the sum, in the params


@functools.cache
def compiled(slopes, outputs, **options):
    """One program for all params, inputs, keys and sizes of noise."""

    def run(params, batch, key, noise):
        def summed(params):
            each = slopes(outputs, params, batch, key, **options, **noise)
            return each.sum(), each

        (value, each), gradient = jax.value_and_grad(summed, has_aux=True)(params)
        return Slopes(each, value, gradient)

    return jax.jit(run)


def measure(slopes, outputs, params, batch, sigma=None, **options):
    noise = {} if sigma is None else {"sigma": sigma}
    return compiled(slopes, outputs, **options)(params, batch, KEY, noise)


@functools.cache
def penalised(**options):
    loss = slope_penalty(CURVED, **options).loss
    run = jax.value_and_grad(lambda p, batch: loss(p, {"forget": batch}, (), KEY)[0])
    return jax.jit(run)


def size(tree):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))


def noises(samples, shape):
    return [np.asarray(jax.random.normal(k, shape)) for k in jax.random.split(KEY, samples)]


# ------------------------------------------------------------------------------ what is estimated


def test_value_and_gradient_are_the_published_ones_written_out(x64):
    """1/N sum_k sum_i |z_i - c_ki| / d_ki with c and d numbers: clipped noise, a constant side."""
    params, batch = problem()
    x, pairs = np.asarray(batch["x"]), []
    for xi in noises(3, x.shape):
        noisy = np.clip(x + 0.5 * xi, x.min(), x.max())
        d = np.linalg.norm((x - noisy).reshape(5, -1), axis=1)
        pairs.append((np.tanh(noisy @ params["w"]) * 1.7, d))

    def written(p):
        z = curved(p, batch)
        each = sum(jnp.sqrt(((z - c) ** 2).sum((1, 2))) / d for c, d in pairs) / 3
        return each.sum(), each

    expected, each = jax.jit(jax.grad(written, has_aux=True))(params)
    got = measure(finite_slopes, curved, params, batch, sigma=0.5, samples=3)
    np.testing.assert_allclose(got.each, each, rtol=1e-12)
    np.testing.assert_allclose(got.gradient["w"], expected["w"], rtol=1e-9)
    np.testing.assert_allclose(got.gradient["s"], expected["s"], rtol=1e-9)
    free = measure(finite_slopes, curved, params, batch, sigma=0.5, samples=3, clip=False)
    assert (np.abs(free.each - each) > 1e-3).any()
    whole = measure(finite_slopes, curved, params, batch, sigma=0.5, samples=3, symmetric=True)
    np.testing.assert_allclose(whole.each, each, rtol=1e-12)
    assert (np.abs(whole.gradient["w"] - expected["w"]) > 1e-2).any()


@pytest.mark.parametrize(
    ("slopes", "options"), [(finite_slopes, {"symmetric": True}), (directional_slopes, {})]
)
def test_symmetric_and_directional_gradients_are_those_of_the_value(slopes, options, x64):
    params, batch = problem()
    run = functools.partial(measure, slopes, curved, samples=3, **options)
    gradient = run(params, batch).gradient["w"]
    for place in [(0, 0), (2, 1)]:
        ends = [run(params | {"w": params["w"].at[place].add(h)}, batch).sum for h in (1e-6, -1e-6)]
        np.testing.assert_allclose(gradient[place], (ends[0] - ends[1]) / 2e-6, rtol=1e-6)


def test_a_linear_function_has_the_mean_slope_of_its_elliptic_integral(x64):
    """E |A u| = (2 / pi) s_1 E(1 - s_2^2 / s_1^2) in the plane, whatever x and sigma are."""
    a = jnp.array([[3.0, 1.0], [0.0, 0.5], [-1.0, 1.0]])
    s = np.linalg.svd(a)[1]
    exact = 2 / np.pi * s[0] * scipy.special.ellipe(1 - s[1] ** 2 / s[0] ** 2)
    run = functools.partial(measure, finite_slopes, linear, a, samples=10000, clip=False)
    first, other = {"x": jnp.zeros((2, 2))}, {"x": jnp.array([[5.0, -3.0], [100.0, 7.0]])}
    one = run(first, sigma=0.5).each
    np.testing.assert_allclose(one, exact, rtol=0.02)
    for sigma, batch in [(0.5, other), (30.0, first), (1e-3, other)]:
        np.testing.assert_allclose(run(batch, sigma=sigma).each, one, rtol=1e-8)
    directions = measure(directional_slopes, linear, a, other, samples=10000).each
    np.testing.assert_allclose(directions, one, rtol=1e-8)


def test_directional_slopes_are_jacobians_times_unit_directions(x64):
    params, batch = problem()
    jacobians = jax.vmap(jax.jacrev(lambda row: curved(params, {"x": row[None]})[0]))(batch["x"])
    expected = np.zeros(5)
    for xi in noises(4, batch["x"].shape):
        u = xi / np.sqrt((xi**2).sum((1, 2), keepdims=True))
        moved = np.einsum("nabij,nij->nab", jacobians, u)
        expected += np.sqrt((moved**2).sum((1, 2))) / 4
    got = measure(directional_slopes, curved, params, batch, samples=4).each
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_small_noise_gives_the_directional_value_and_symmetrically_its_gradient(x64):
    """Draw by draw, with an error that falls with sigma."""
    params, batch = problem()
    limit = measure(directional_slopes, curved, params, batch, samples=2)
    near = functools.partial(
        measure, finite_slopes, curved, params, batch, samples=2, clip=False, symmetric=True
    )
    runs = [near(sigma=sigma) for sigma in (1e-2, 1e-3, 1e-4)]
    for errors in (
        [np.abs(run.each - limit.each).max() for run in runs],
        [np.abs(run.gradient["w"] - limit.gradient["w"]).max() for run in runs],
    ):
        assert errors[0] < 0.2 and errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5


# ---------------------------------------------------------------- what the published gradient does


def test_one_noise_moves_the_published_gradient_by_one_over_sigma(x64):
    """Its value has a limit for small noise, and it has none."""
    params, batch = problem()
    run = functools.partial(measure, finite_slopes, curved, params, batch, samples=1, clip=False)
    sizes = [size(run(sigma=sigma).gradient) for sigma in (1e-3, 1e-4, 1e-5)]
    np.testing.assert_allclose([sizes[1] / sizes[0], sizes[2] / sizes[1]], 10, rtol=0.05)


def test_on_a_linear_function_the_published_gradient_averages_out_and_the_symmetric_one_shrinks(
    x64,
):
    """The one has mean 0; the other satisfies <A, G> = value > 0."""
    a, batch = jnp.array([[3.0, 1.0], [0.0, 0.5]]), {"x": jnp.array([[1.0, -2.0]])}
    run = functools.partial(measure, finite_slopes, linear, sigma=0.5, clip=False)
    single, many = (run(a, batch, samples=n).gradient for n in (1, 20000))
    assert size(many) < 0.05 * size(single)
    whole = run(a, batch, samples=100, symmetric=True)
    np.testing.assert_allclose((whole.gradient * a).sum(), whole.sum, rtol=1e-10)
    after = a - 0.1 * whole.gradient
    assert size(after) < size(a) and run(after, batch, samples=100).sum < whole.sum


def test_where_inputs_lie_on_the_bounds_the_mean_clipped_gradient_grows_as_one_over_sigma(x64):
    """Black and white pixels: only inward noise is left, and the pull no longer averages out."""
    a, batch = jnp.array([[3.0, 1.0], [0.0, 0.5]]), {"x": jnp.array([[0.0, 1.0], [1.0, 1.0]])}
    run = functools.partial(measure, finite_slopes, linear, a, batch, samples=5000)
    wide, narrow = run(sigma=1e-2).gradient, run(sigma=1e-3).gradient
    np.testing.assert_allclose(narrow, 10 * wide, rtol=1e-6)
    assert size(wide) > 10


# --------------------------------------------------------------------------------------- the edges


@BOTH
def test_a_constant_function_has_slope_zero_and_gradient_zero(slopes):
    def constant(p, batch):
        return jnp.full((batch["x"].shape[0], 3), p**2)

    got = measure(slopes, constant, 2.0, {"x": jnp.linspace(0, 1, 8).reshape(4, 2)})
    assert (got.each == 0).all() and got.gradient == 0


@pytest.mark.parametrize("symmetric", [False, True])
def test_noise_that_is_clipped_away_altogether_counts_nothing(symmetric):
    """A batch of one value: min x = max x, and nothing can move."""
    batch = {"x": jnp.full((3, 2), 0.25)}
    got = measure(finite_slopes, linear, jnp.ones((2, 2)), batch, symmetric=symmetric)
    assert (got.each == 0).all() and (got.gradient == 0).all()


@BOTH
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_rows_of_weight_zero_change_nothing_not_even_the_range(slopes, reduction):
    """The same rows before padding of huge values of both signs, noise for noise."""
    params, batch = problem()
    weight = jnp.array([1.0, 2, 1, 1, 1, 0, 0])
    x = jnp.concatenate([batch["x"], jnp.full((2, 2, 3), 50.0).at[1].multiply(-1)])
    run = penalised(slopes=slopes, reduction=reduction, samples=3)
    far, near = (run(params, {"x": some, "weight": weight}) for some in (x, x.at[5:].set(0.5)))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, far, near))


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_batch_of_padding_alone_has_loss_and_gradient_zero(symmetric):
    params, batch = problem()
    loss, gradient = penalised(symmetric=symmetric)(params, batch | {"weight": jnp.zeros(5)})
    assert loss == 0 and size(gradient) == 0


@BOTH
def test_the_sum_counts_a_row_by_its_weight_and_the_mean_divides_by_all_of_it(slopes):
    params, batch = problem()
    each = np.asarray(measure(slopes, curved, params, batch, samples=3).each)
    weight = np.array([1.0, 3, 1, 1, 2], np.float32)
    weighted = batch | {"weight": jnp.asarray(weight)}
    for some, reduction, expected in [
        (weighted, "sum", weight @ each),
        (weighted, "mean", weight @ each / weight.sum()),
        (batch, "sum", each.sum()),
    ]:
        got, _ = penalised(slopes=slopes, reduction=reduction, samples=3)(params, some)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@BOTH
def test_how_many_noises_are_evaluated_at_once_does_not_matter(slopes):
    params, batch = problem()
    whole = measure(slopes, curved, params, batch, samples=7).gradient
    for micro_batch in (3, 100):
        some = measure(slopes, curved, params, batch, samples=7, micro_batch=micro_batch).gradient
        np.testing.assert_allclose(some["w"], whole["w"], rtol=1e-4, atol=1e-5)


@BOTH
def test_no_two_draws_share_a_key(slopes, no_key_reuse):
    params, batch = problem()
    assert jax.jit(functools.partial(slopes, curved))(params, batch, jax.random.key(0)).all()


def test_relu_biases_have_no_directional_slope_but_a_finite_one():
    def network(p, batch):
        return jax.nn.relu(batch["x"] @ p["w"] + p["b"][None]) @ p["v"]

    rng = np.random.default_rng(0)
    shapes = {"w": (3, 8), "b": (8,), "v": (8, 2)}
    params = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    batch = {"x": jnp.asarray(rng.standard_normal((6, 3)), jnp.float32)}
    limit = measure(directional_slopes, network, params, batch).gradient
    assert (limit["b"] == 0).all() and size(limit["w"]) > 0.1
    assert size(measure(finite_slopes, network, params, batch).gradient["b"]) > 0.1


@BOTH
def test_half_precision_outputs_are_compared_in_single_precision(slopes):
    def half(p, batch):
        return curved(p, batch).astype(jnp.bfloat16)

    params, batch = problem()
    got, full = (measure(slopes, f, params, batch).each for f in (half, curved))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, full, rtol=0.05)


@BOTH
def test_eight_devices_give_the_loss_and_gradient_of_one(slopes):
    """The range is that of the global batch; rows are sorted, so that a device's own differs."""
    params, _ = problem()
    x = np.sort(np.random.default_rng(0).uniform(0, 1, (16, 2, 3)).astype(np.float32), axis=0)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("rows")))
    one, eight = (measure(slopes, curved, params, {"x": some}, samples=3) for some in (x, spread))
    np.testing.assert_allclose(eight.each, one.each, rtol=1e-5)
    np.testing.assert_allclose(eight.gradient["w"], one.gradient["w"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------- the objective


def test_penalties_built_twice_are_equal_and_others_are_not():
    one, again = (slope_penalty(CURVED, sigma=0.1, samples=3) for _ in range(2))
    assert one == again and hash(one) == hash(again)
    assert one != slope_penalty(CURVED, sigma=0.2, samples=3)
    assert slope_penalty(CURVED, finite_slopes) != slope_penalty(CURVED, directional_slopes)


def test_a_penalty_adds_to_any_other_objective():
    params, batch = problem()
    penalty = slope_penalty(CURVED, samples=2)
    both = objectives.weighted_sum((1.0, objectives.mean_loss(CURVED, "forget")), (0.5, penalty))
    got, _ = both.loss(params, {"forget": batch}, both.init(params), KEY)
    slope, _ = penalty.loss(params, {"forget": batch}, (), jax.random.fold_in(KEY, 1))
    np.testing.assert_allclose(got, CURVED.loss(params, batch).mean() + 0.5 * slope, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_inputs_that_are_not_float_are_refused(slopes, dtype):
    with pytest.raises(TypeError, match=rf"must be float, got {dtype}.*give the model embeddings"):
        slopes(linear, jnp.eye(2), {"x": np.ones((3, 2), dtype)}, KEY)


@BOTH
def test_a_batch_without_inputs_is_refused(slopes):
    with pytest.raises(ValueError, match=r"moves the inputs batch\['x'\], but the batch has \['t"):
        slopes(linear, jnp.eye(2), {"tokens": np.ones((3, 2))}, KEY)


def test_an_unknown_reduction_of_a_penalty_is_refused():
    with pytest.raises(ValueError, match="slope_penalty: reduction must be 'sum' or 'mean', got"):
        slope_penalty(CURVED, reduction="max")
