"""The convolution equals XLA's; every network is the function its docstring says."""

import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax import lax

from jaxunlearn import networks
from jaxunlearn.networks import (
    MLP,
    LinenMLP,
    ResNet18,
    SmallCNN,
    SmallViT,
    build,
    conv_as_matmul,
    convolve,
)

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def uses_convolution(fn, *args):
    return "conv_general_dilated" in str(jax.make_jaxpr(fn)(*args))


def value_and_pullback(conv, x, w, **how):
    """The output, and the gradients of <cotangent, output> in both arguments."""
    y, pullback = jax.vjp(lambda x, w: conv(x, w, **how), x, w)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return y, *pullback(cotangent)


def assert_same_convolution(x, w, tolerance, **how):
    ours = jax.jit(partial(value_and_pullback, conv_as_matmul, **how))(x, w)
    theirs = jax.jit(partial(value_and_pullback, lax.conv_general_dilated, **how))(x, w)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **tolerance(a.dtype, scale=10))


# ------------------------------------------------------------------------------------ convolution


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 5), (2, 2), (4, 3)])
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [
        ((2, 2), "SAME", None),
        ((2, 3), "SAME_LOWER", (1, 1)),
        ((1, 2), "VALID", (2, 1)),
        ((1, 1), "SAME", (2, 2)),
        ((2, 1), ((1, 2), (0, 3)), (1, 2)),
        ((3, 2), ((-1, 1), (2, -1)), None),
    ],
)
def test_values_and_gradients_are_those_of_the_convolution(
    x64, tolerance, window, strides, padding, dilation
):
    x, w = normal(0, (2, 9, 7, 3)), normal(1, (*window, 3, 4))
    how = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC}
    how["rhs_dilation"] = dilation
    assert not uses_convolution(partial(conv_as_matmul, **how), x, w)
    assert_same_convolution(x, w, tolerance, **how)


def test_the_matrix_product_is_the_sum_in_the_docstring(x64, tolerance):
    x, w = normal(0, (2, 6, 5, 3)), normal(1, (3, 2, 3, 4))
    y = conv_as_matmul(x, w, (2, 1), ((1, 0), (0, 2)), None, (1, 2), NHWC)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 0), (0, 2), (0, 0)))
    expected = np.zeros(y.shape)
    for n, p, q, o in np.ndindex(*y.shape):
        for a, b in np.ndindex(3, 2):
            expected[n, p, q, o] += padded[n, 2 * p + a, q + 2 * b] @ w[a, b, :, o]
    np.testing.assert_allclose(y, expected, **tolerance(y.dtype, scale=10))


@pytest.mark.parametrize(
    ("spatial", "layout"), [((9,), ("NWC", "WIO", "NWC")), ((4, 5, 3), ("NDHWC", "DHWIO", "NDHWC"))]
)
def test_any_number_of_spatial_axes_works(x64, tolerance, spatial, layout):
    rank = len(spatial)
    x, w = normal(0, (2, *spatial, 3)), normal(1, (*(2,) * rank, 3, 4))
    how = {"window_strides": (2,) * rank, "padding": "SAME", "dimension_numbers": layout}
    assert not uses_convolution(partial(conv_as_matmul, **how), x, w)
    assert_same_convolution(x, w, tolerance, **how)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "how"),
    [
        ((2, 6, 6, 4), (3, 3, 2, 6), {"dimension_numbers": NHWC, "feature_group_count": 2}),
        ((2, 6, 6, 3), (3, 3, 3, 4), {"dimension_numbers": NHWC, "batch_group_count": 2}),
        ((2, 6, 6, 3), (3, 3, 3, 4), {"dimension_numbers": NHWC, "lhs_dilation": (2, 1)}),
        ((2, 6, 6, 3), (3, 3, 3, 4), {"dimension_numbers": ("NHWC", "HWIO", "NCHW")}),
        ((2, 3, 6, 6), (4, 3, 3, 3), {}),
        ((2, 2, 2, 3), (5, 5, 3, 4), {"dimension_numbers": NHWC}),
    ],
    ids=["feature groups", "batch groups", "dilated input", "layout", "default layout", "too big"],
)
def test_what_is_not_supported_is_left_to_the_convolution(x64, tolerance, x_shape, w_shape, how):
    x, w = normal(0, x_shape), normal(1, w_shape)
    how = {"window_strides": (1, 1), "padding": ((0, 1), (1, 0)), **how}
    assert uses_convolution(partial(conv_as_matmul, **how), x, w)
    assert_same_convolution(x, w, tolerance, **how)


@pytest.mark.parametrize("w", [jnp.ones((3, 3, 2, 4)), jnp.ones((3, 3, 3, 4), jnp.bfloat16)])
def test_a_kernel_that_does_not_fit_gets_the_error_of_the_convolution(w):
    args = (jnp.ones((2, 6, 6, 3)), w, (1, 1), "SAME", None, None, NHWC)
    with pytest.raises((TypeError, ValueError)) as theirs:
        lax.conv_general_dilated(*args)
    with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
        conv_as_matmul(*args)


def test_second_derivatives_are_those_of_the_convolution(x64, tolerance):
    x, w = normal(0, (2, 4, 4, 2)), normal(1, (3, 3, 2, 2))

    def hessian_vector(conv):
        def loss(w):
            return jnp.sum(jnp.tanh(conv(x, w, (2, 2), "SAME", dimension_numbers=NHWC)))

        return jax.jvp(jax.grad(loss), (w,), (jnp.cos(w),))[1]

    expected = hessian_vector(lax.conv_general_dilated)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        hessian_vector(conv_as_matmul), expected, **tolerance(w.dtype, scale=10)
    )


def test_stacked_kernels_give_stacked_outputs(x64, tolerance):
    x, w = normal(0, (5, 2, 6, 6, 3)), normal(1, (5, 3, 3, 3, 4))
    conv = partial(conv_as_matmul, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    theirs = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    expected = [theirs(a, b, dimension_numbers=NHWC) for a, b in zip(x, w, strict=True)]
    np.testing.assert_allclose(
        jax.vmap(conv)(x, w), jnp.stack(expected), **tolerance(x.dtype, scale=10)
    )


def test_precision_and_element_type_reach_the_product():
    x, w = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 1), jnp.bfloat16)
    conv = partial(conv_as_matmul, window_strides=(1, 1), padding="VALID", dimension_numbers=NHWC)
    assert conv(x, w).dtype == jnp.bfloat16
    assert conv(x, w, preferred_element_type=jnp.float32).dtype == jnp.float32
    assert "HIGHEST" in str(jax.make_jaxpr(partial(conv, precision="highest"))(x, w))


@pytest.mark.parametrize(("backend", "convolution"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_accelerators_convolve_and_the_cpu_multiplies(monkeypatch, backend, convolution):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, w = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 4))
    how = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC}
    assert uses_convolution(partial(convolve, **how), x, w) is convolution


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", 1])
def test_flax_layers_compute_the_same_with_either_convolution(tolerance, padding):
    x = normal(0, (2, 7, 7, 3), np.float32)
    how = {"strides": 2, "padding": padding, "kernel_dilation": 2}
    plain = nnx.Conv(3, 4, (3, 3), **how, rngs=nnx.Rngs(0))
    ours = nnx.Conv(3, 4, (3, 3), **how, conv_general_dilated=conv_as_matmul, rngs=nnx.Rngs(0))
    assert not uses_convolution(lambda x: ours(x), x)
    np.testing.assert_allclose(ours(x), plain(x), **tolerance(x.dtype))

    twin = linen.Conv(4, (3, 3), **how, conv_general_dilated=conv_as_matmul)
    variables = {"params": {"kernel": plain.kernel[...], "bias": plain.bias[...]}}
    assert not uses_convolution(twin.apply, variables, x)
    np.testing.assert_allclose(twin.apply(variables, x), plain(x), **tolerance(x.dtype))


# --------------------------------------------------------------------------- laws of every network

THIN = {
    "mlp": lambda rngs: MLP(64, 3, hidden=(6, 5), rngs=rngs),
    "cnn": lambda rngs: SmallCNN((8, 8, 1), 3, channels=(2, 3), hidden=5, rngs=rngs),
    "resnet18": lambda rngs: ResNet18(1, 3, norm="batch", width=2, rngs=rngs),
    "resnet18_gn": lambda rngs: ResNet18(1, 3, norm="group", width=2, rngs=rngs),
    "vit": lambda rngs: SmallViT((8, 8, 1), 3, dim=8, depth=1, num_heads=2, mlp_dim=8, rngs=rngs),
    "vit_cls": lambda rngs: SmallViT(
        (8, 8, 1), 3, dim=8, depth=1, num_heads=2, mlp_dim=8, pool="cls", rngs=rngs
    ),
}
IMAGES = normal(2, (6, 8, 8), np.float32)
LABELS = jnp.array([0, 1, 2, 2, 1, 0])
every_network = pytest.mark.parametrize("name", THIN)


@cache
def initial(name, seed=0):
    """The state of a thin network as its own initialisers make it."""
    return nnx.state(THIN[name](nnx.Rngs(seed)))


@cache
def abstract(name):
    """A thin network of shapes alone, which costs no compilation."""
    return nnx.eval_shape(lambda: THIN[name](nnx.Rngs(0)))


def randomised(state, seed=3):
    """A state in which no bias is 0, no scale or variance is 1, and every variance is above 0."""
    rng = np.random.default_rng(seed)

    def drawn(path, v):
        noise = 0.3 * rng.standard_normal(v.shape)
        kind = [part.key for part in path if hasattr(part, "key")][-1]
        value = {"scale": 1 + noise, "var": 0.5 + np.abs(noise)}.get(kind, noise)
        return jnp.asarray(value, v.dtype)

    return jax.tree.map_with_path(drawn, state)


@cache
def compiled(name):
    """A thin network in evaluation mode, as (function of (state, x), state).

    The state holds parameters and statistics, the function gives (features, logits).
    """
    network = nnx.clone(abstract(name))
    network.eval()
    graph, state = nnx.split(network)

    def apply(state, x):
        network = nnx.merge(graph, state)
        return network.features(x), network(x)

    return jax.jit(apply), randomised(state)


def as_dict(state):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@every_network
def test_logits_are_the_head_of_the_features(name, tolerance):
    apply, state = compiled(name)
    features, logits = apply(state, IMAGES)
    head = as_dict(state)["head"]
    assert features.shape == (6, head["kernel"].shape[0]) and logits.shape == (6, 3)
    assert np.ptp(logits, axis=0).min() > 1e-3
    scale = float(np.abs(logits).max())
    expected = np.asarray(features) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, **tolerance(np.float32, scale))


TOKENS = {
    "mlp": (1, 6),
    "cnn": (16, 3),
    "resnet18": (16, 4),
    "resnet18_gn": (16, 4),
    "vit": (4, 8),
    "vit_cls": (5, 8),
}


@every_network
def test_resuming_from_half_way_up_gives_the_logits(name, tolerance):
    network = nnx.clone(abstract(name))
    network.eval()
    graph, _ = nnx.split(network)
    apply, state = compiled(name)

    @jax.jit
    def halves(state, x):
        network = nnx.merge(graph, state)
        h = network.middle(x)
        return h, network.resume(h), network.resume(h[::-1])

    h, logits, reversed_logits = halves(state, IMAGES)
    expected = apply(state, IMAGES)[1]
    assert h.shape == (6, *TOKENS[name])
    scale = 10 * float(np.abs(expected).max())
    np.testing.assert_allclose(logits, expected, **tolerance(np.float32, scale))
    np.testing.assert_allclose(reversed_logits[::-1], expected, **tolerance(np.float32, scale))


@every_network
def test_each_row_depends_on_its_own_example_only(name, tolerance):
    apply, state = compiled(name)
    logits = apply(state, IMAGES)[1]
    others = np.concatenate([IMAGES[:1], -2.0 * IMAGES[:5]])
    others_changed = apply(state, others)[1]
    np.testing.assert_allclose(logits[0], others_changed[0], **tolerance(np.float32))
    assert np.abs(logits[1:] - others_changed[1:]).max(1).min() > 1e-3


@every_network
def test_no_examples_give_no_logits_and_zero_gradients(name):
    apply, state = compiled(name)
    empty = jnp.zeros((0, 8, 8))
    assert apply(state, empty)[1].shape == (0, 3)
    grads = jax.jit(jax.grad(lambda s: apply(s, empty)[1].sum()))(state)
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
def test_a_channel_axis_of_one_may_be_left_out(name):
    apply, state = compiled(name)
    np.testing.assert_array_equal(apply(state, IMAGES)[1], apply(state, IMAGES[..., None])[1])


@every_network
def test_stacked_parameters_run_as_one_program_traced_once(name, tolerance):
    apply, state = compiled(name)
    states = [randomised(state, seed) for seed in (4, 5, 6)]
    stacked = jax.tree.map(lambda *v: np.stack(v), *states)
    traces = 0

    @jax.jit
    def ensemble(states, x):
        nonlocal traces
        traces += 1
        return jax.vmap(apply, in_axes=(0, None))(states, x)

    together = ensemble(stacked, IMAGES)[1]
    ensemble(jax.tree.map(lambda v: v + 1, stacked), IMAGES)
    assert traces == 1
    alone = np.stack([apply(state, IMAGES)[1] for state in states])
    scale = 10 * float(np.abs(alone).max())
    np.testing.assert_allclose(together, alone, **tolerance(np.float32, scale))


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_per_example_gradients_sum_to_the_gradient_of_the_sum(name, tolerance):
    apply, state = compiled(name)

    def total(state, x, y):
        return cross_entropy(apply(state, x)[1], y).sum()

    per_example = jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0, 0)))
    each = per_example(state, IMAGES[:, None], LABELS[:, None])
    expected = jax.jit(jax.grad(total))(state, IMAGES, LABELS)
    for a, b in zip(jax.tree.leaves(each), jax.tree.leaves(expected), strict=True):
        scale = 10 * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(np.sum(a, 0), b, **tolerance(np.float32, scale))
    assert any(np.abs(g).max() > 1e-2 for g in jax.tree.leaves(expected))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "vit"])
def test_the_seed_alone_decides_the_initial_weights(name):
    first, other = (jax.tree.leaves(initial(name, seed)) for seed in (0, 1))
    again = jax.tree.leaves(initial.__wrapped__(name, 0))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    matrices = [(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1 and np.any(a)]
    assert matrices and not any(np.array_equal(a, b) for a, b in matrices)
    assert all(a.dtype == jnp.float32 for a in first)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18", "vit"])
def test_training_learns_six_images_by_heart(name):
    network = nnx.clone(abstract(name))
    network.train()
    graph = nnx.graphdef(network)
    params, rest = nnx.split_state(initial(name), nnx.Param, ...)
    tx = optax.adam(1e-2)

    def loss(params, rest):
        network = nnx.merge(graph, params, rest, copy=True)
        losses = cross_entropy(network(IMAGES), LABELS)
        return losses.mean(), nnx.state(network, nnx.Not(nnx.Param))

    def step(carry, _):
        params, rest, state = carry
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), rest, state), value

    start = (params, rest, tx.init(params))
    values = jax.jit(lambda start: lax.scan(step, start, length=150))(start)[1]
    assert np.isfinite(values).all()
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_the_network_is_the_same_function_on_an_accelerator(monkeypatch, tolerance, name):
    apply, state = compiled(name)
    assert not uses_convolution(apply, state, IMAGES)
    on_cpu = apply(state, IMAGES)[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere = jax.jit(lambda *args: apply.__wrapped__(*args))
    x = IMAGES[..., None]
    assert uses_convolution(elsewhere, state, x)
    scale = 10 * float(np.abs(on_cpu).max())
    np.testing.assert_allclose(elsewhere(state, x)[1], on_cpu, **tolerance(np.float32, scale))


# ---------------------------------------------------------------------- each network by other means


def weights(network):
    """Move every parameter and statistic away from its initial value; they, as a pure dict."""
    state = randomised(nnx.state(network))
    nnx.update(network, state)
    return as_dict(state)


def test_the_mlp_is_products_and_rectifiers(tolerance):
    network = MLP(64, 3, hidden=(6, 5), rngs=nnx.Rngs(0))
    w = weights(network)
    h = np.asarray(IMAGES).reshape(6, 64)
    for i in range(2):
        h = np.maximum(h @ w["layers"][i]["kernel"] + w["layers"][i]["bias"], 0)
    np.testing.assert_allclose(network.features(IMAGES), h, **tolerance(h.dtype, scale=10))
    logits = h @ w["head"]["kernel"] + w["head"]["bias"]
    np.testing.assert_allclose(network(IMAGES), logits, **tolerance(h.dtype, scale=10))


def test_an_mlp_without_hidden_layers_is_a_linear_classifier(tolerance):
    network = MLP(64, 3, hidden=(), rngs=nnx.Rngs(0))
    flat = IMAGES.reshape(6, 64)
    np.testing.assert_array_equal(network.features(IMAGES), flat)
    expected = flat @ network.head.kernel[...] + network.head.bias[...][None]
    np.testing.assert_allclose(network(IMAGES), expected, **tolerance(flat.dtype))
    np.testing.assert_array_equal(network.middle(IMAGES), flat[:, None])
    np.testing.assert_array_equal(network.resume(network.middle(IMAGES)), network(IMAGES))


def test_the_linen_twin_is_the_same_function_given_the_same_weights():
    network = MLP(64, 3, hidden=(6, 5), rngs=nnx.Rngs(0))
    w = weights(network)
    twin = LinenMLP(num_classes=3, hidden=(6, 5))
    params = {"layers_0": w["layers"][0], "layers_1": w["layers"][1], "head": w["head"]}
    fresh = twin.init(jax.random.key(0), IMAGES)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    np.testing.assert_array_equal(twin.apply({"params": params}, IMAGES), network(IMAGES))
    features = twin.apply({"params": params}, IMAGES, method="features")
    np.testing.assert_array_equal(features, network.features(IMAGES))
    assert twin.apply({"params": params}, IMAGES[:0]).shape == (0, 3)
    middle = twin.apply({"params": params}, IMAGES, method="middle")
    np.testing.assert_array_equal(middle, network.middle(IMAGES))
    resumed = twin.apply({"params": params}, middle, method="resume")
    np.testing.assert_array_equal(resumed, network(IMAGES))


def conv(x, kernel, stride=1, padding=1):
    pads = ((padding, padding),) * 2
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=NHWC)


@pytest.mark.parametrize("side", [8, 7])
def test_the_small_cnn_is_convolutions_a_hidden_layer_and_a_head(tolerance, side):
    network = SmallCNN((side, side, 1), 3, channels=(2, 3, 4), hidden=5, rngs=nnx.Rngs(0))
    w = weights(network)
    x = IMAGES[:, :side, :side, None]
    h = x
    for i, stride in enumerate((1, 2, 2)):
        kernel, bias = w["convs"][i]["kernel"], w["convs"][i]["bias"]
        same = lax.conv_general_dilated(h, kernel, (stride, stride), "SAME", dimension_numbers=NHWC)
        h = jax.nn.relu(same + bias[None, None, None])
    assert h.shape == (6, 2, 2, 4)
    h = jax.nn.relu(h.reshape(6, -1) @ w["dense"]["kernel"] + w["dense"]["bias"][None])
    expected = h @ w["head"]["kernel"] + w["head"]["bias"][None]
    np.testing.assert_allclose(network(x), expected, **tolerance(np.float32, scale=10))


def normalise(x, w):
    """With stored statistics where there are some, else with those of the example (one group)."""
    scale, bias = w["scale"][None, None, None], w["bias"][None, None, None]
    if "mean" in w:
        mean, var = w["mean"][None, None, None], w["var"][None, None, None]
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
    mean, var = (f(x, axis=(1, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(var + 1e-6) * scale + bias


def resnet_by_hand(w, x):
    """Features and logits from a pure dict of weights."""
    h = jax.nn.relu(normalise(conv(x, w["stem"]["kernel"]), w["stem_norm"]))
    for i in range(8):
        b, halves = w["blocks"][i], i in (2, 4, 6)
        inner = conv(h, b["conv1"]["kernel"], 2 if halves else 1)
        inner = jax.nn.relu(normalise(inner, b["norm1"]))
        inner = normalise(conv(inner, b["conv2"]["kernel"]), b["norm2"])
        if halves:
            h = normalise(conv(h, b["conv3"]["kernel"], 2, padding=0), b["norm3"])
        h = jax.nn.relu(inner + h)
    features = h.mean((1, 2))
    return features, features @ w["head"]["kernel"] + w["head"]["bias"][None]


@pytest.mark.parametrize("name", ["resnet18", "resnet18_gn"])
def test_the_resnet_is_a_stem_and_eight_residual_blocks(tolerance, name):
    apply, state = compiled(name)
    expected = jax.jit(resnet_by_hand)(as_dict(state), IMAGES[..., None])
    for a, b in zip(apply(state, IMAGES), expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance(np.float32, 10 * np.abs(b).max()))


def test_training_mode_updates_batch_statistics_and_evaluation_mode_reads_them(tolerance):
    network = nnx.clone(abstract("resnet18"))
    nnx.update(network, initial("resnet18"))
    stem = np.asarray(conv(IMAGES[..., None], network.stem.kernel[...]))
    network.train()
    in_training = nnx.jit(lambda net, x: net(x))(network, IMAGES)
    mean, var = network.stem_norm.mean[...], network.stem_norm.var[...]
    expected = 0.1 * stem.mean((0, 1, 2)), 0.9 + 0.1 * stem.var((0, 1, 2))
    np.testing.assert_allclose(mean, expected[0], **tolerance(np.float32))
    np.testing.assert_allclose(var, expected[1], **tolerance(np.float32, scale=10))

    evaluate = compiled("resnet18")[0]
    with_old, with_new = evaluate(initial("resnet18"), IMAGES), evaluate(nnx.state(network), IMAGES)
    assert np.abs(with_new[1] - in_training).max() > 0.01
    assert np.abs(with_new[1] - with_old[1]).max() > 0.01


@pytest.mark.parametrize(("width", "groups"), [(2, (1, 1)), (24, (1, 32)), (64, (32, 32))])
def test_group_normalisation_never_normalises_a_single_number(width, groups):
    network = nnx.eval_shape(lambda: ResNet18(3, 10, norm="group", width=width, rngs=nnx.Rngs(0)))
    first, last = network.stem_norm, network.blocks[-1].norm2
    assert (first.num_groups, last.num_groups) == groups
    assert min(first.group_size, last.group_size) >= 2


def test_the_resnet_has_as_many_parameters_as_the_usual_pytorch_one():
    network = nnx.eval_shape(lambda: build("resnet18", (32, 32, 3), 10)(nnx.Rngs(0)))
    assert count(network) == 11_173_962


def test_the_vision_transformer_is_attention_and_two_layer_networks(tolerance):
    apply, state = compiled("vit_cls")
    w = as_dict(state)
    p = w["blocks"][0]

    def layer_norm(h, p):
        deviation = h - h.mean(-1, keepdims=True)
        scaled = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * p["scale"] + p["bias"]

    def attend(h, p):
        out = np.zeros_like(h)
        for head in range(2):
            q, k, v = (
                h @ p[name]["kernel"][:, head] + p[name]["bias"][head]
                for name in ("query", "key", "value")
            )
            score = q @ k.T / np.sqrt(4)
            share = np.exp(score - score.max(-1, keepdims=True))
            out += (share / share.sum(-1, keepdims=True)) @ v @ p["out"]["kernel"][head]
        return out + p["out"]["bias"]

    def dense(h, p):
        return h @ p["kernel"] + p["bias"]

    for image, logits in zip(np.asarray(IMAGES), apply(state, IMAGES)[1], strict=True):
        corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
        patches = np.stack([image[a : a + 4, b : b + 4].reshape(-1) for a, b in corners])
        h = np.concatenate([w["cls"][0], dense(patches, w["embed"])]) + w["positions"][0]
        h = h + attend(layer_norm(h, p["norm1"]), p["attention"])
        inner = jax.nn.gelu(dense(layer_norm(h, p["norm2"]), p["expand"]))
        h = h + dense(np.asarray(inner), p["contract"])
        expected = dense(layer_norm(h, w["norm"])[0], w["head"])
        np.testing.assert_allclose(logits, expected, **tolerance(np.float32, scale=100))


def test_only_the_learned_positions_tell_one_patch_from_another(tolerance):
    apply, state = compiled("vit")
    without = nnx.to_pure_dict(state)
    without["positions"] = jnp.zeros_like(without["positions"])
    swapped = jnp.asarray(np.concatenate([IMAGES[:, 4:], IMAGES[:, :4]], axis=1))
    assert np.abs(apply(state, IMAGES)[1] - apply(state, swapped)[1]).max() > 0.01

    nowhere = nnx.clone(state)
    nnx.replace_by_pure_dict(nowhere, without)
    np.testing.assert_allclose(
        apply(nowhere, IMAGES)[1], apply(nowhere, swapped)[1], **tolerance(np.float32, scale=10)
    )


# ------------------------------------------------------------------------------------------- build

NAMES = ("mlp", "cnn", "resnet18", "resnet18_gn", "vit")


def count(network):
    return sum(math.prod(v.shape) for v in jax.tree.leaves(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (32, 32, 3), (9, 14, 2), (3, 3)])
def test_every_name_builds_a_network_for_images_of_any_size(name, shape):
    network = nnx.eval_shape(lambda: build(name, shape, 7)(nnx.Rngs(0)))
    network.eval()
    logits = nnx.eval_shape(lambda net, x: net(x), network, jnp.ones((2, *shape)))
    assert logits.shape == (2, 7)


def test_a_flat_input_gets_an_mlp():
    assert build("mlp", (64,), 10)(nnx.Rngs(0))(jnp.ones((2, 64))).shape == (2, 10)


@pytest.mark.parametrize(
    ("depth", "pool", "tokens", "after"),
    [(0, "mean", 4, 0), (1, "cls", 5, 1), (2, "mean", 4, 1), (3, "cls", 5, 2), (4, "mean", 4, 2)],
)
def test_the_tokens_of_the_vision_transformer_come_after_its_middle_block(
    monkeypatch, depth, pool, tokens, after
):
    network = nnx.eval_shape(
        lambda: SmallViT((8, 8, 1), 3, dim=8, depth=depth, num_heads=2, pool=pool, rngs=nnx.Rngs(0))
    )
    ran = []
    monkeypatch.setattr(
        networks._TransformerBlock, "__call__", lambda self, h: ran.append(self) or h
    )
    h = nnx.eval_shape(lambda net, x: net.middle(x), network, IMAGES)
    assert h.shape == (6, tokens, 8) and len(ran) == after
    nnx.eval_shape(lambda net, h: net.resume(h), network, h)
    assert len(ran) == depth


def test_the_resnet_splits_square_images_only():
    middle = nnx.eval_shape(lambda net, x: net.middle(x), abstract("resnet18_gn"), IMAGES)
    assert middle.shape == (6, 16, 4)
    for shape in ((2, 8, 6), (2, 4, 16)):  # 64 positions might be 8 x 8
        with pytest.raises(ValueError, match=f"square images, got {shape[1]} x {shape[2]} pixels"):
            nnx.eval_shape(lambda net, x: net.middle(x), abstract("resnet18_gn"), jnp.ones(shape))


@pytest.mark.parametrize(("side", "patch"), [(3, 1), (8, 2), (9, 1), (28, 4), (32, 4), (12, 3)])
def test_the_patch_divides_the_image_and_leaves_a_grid_to_attend_over(side, patch):
    network = nnx.eval_shape(lambda: build("vit", (side, side), 10)(nnx.Rngs(0)))
    assert network.patch == patch


def test_the_table_at_the_top_of_the_module_is_true():
    rows = re.findall(r"^\| `(\w+)` .*\| (\d+) +\|$", networks.__doc__, re.MULTILINE)
    assert tuple(name for name, _ in rows) == NAMES
    for name, stated in rows:
        network = nnx.eval_shape(lambda name=name: build(name, (28, 28), 10)(nnx.Rngs(0)))
        assert count(network) == int(stated), name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet", "resnet18"), ("MLP", "mlp"), ("convnet", "cnn"), ("vit-b", "vit")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, nearest):
    with pytest.raises(
        ValueError,
        match=f"unknown network '{name}': did you mean '{nearest}'.*mlp, cnn, resnet18, "
        "resnet18_gn, vit",
    ):
        build(name, (8, 8), 10)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "resnet18_gn", "vit"])
@pytest.mark.parametrize("shape", [(64,), (1, 8, 8, 1)])
def test_networks_of_images_refuse_other_shapes(name, shape):
    with pytest.raises(
        ValueError,
        match=rf"'{name}' reads images: expected .*\(H, W\) or \(H, W, C\), got "
        + re.escape(str(shape))
        + ".*choose 'mlp'",
    ):
        build(name, shape, 10)


@pytest.mark.parametrize(("shape", "classes"), [((), 10), ((0, 8), 10), ((8, 8), 0)])
def test_sizes_below_one_are_refused(shape, classes):
    with pytest.raises(ValueError, match="'mlp' expected sizes of at least 1.*without the batch"):
        build("mlp", shape, classes)


def test_an_mlp_refuses_examples_of_another_size():
    with pytest.raises(ValueError, match=r"expected 64 numbers an example, got 8 .*\(8, 8\)"):
        MLP(64, 3, rngs=nnx.Rngs(0))(jnp.ones((8, 8)))


@pytest.mark.parametrize("name", ["SmallCNN", "ResNet18", "SmallViT"])
@pytest.mark.parametrize("shape", [(2, 64), (2, 8, 8, 3), (2, 1, 8, 8)])
def test_an_image_network_refuses_what_is_not_its_images(name, shape):
    network = abstract({"SmallCNN": "cnn", "ResNet18": "resnet18", "SmallViT": "vit"}[name])
    with pytest.raises(
        ValueError,
        match=name
        + r" expected images of shape \(n, H, W, 1\) or \(n, H, W\), got "
        + re.escape(str(shape))
        + ". Put the channels last",
    ):
        network(jnp.ones(shape))


def test_a_norm_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="expected norm to be 'batch' or 'group', got 'layer'"):
        ResNet18(3, 10, norm="layer", rngs=nnx.Rngs(0))


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="got patch 4 for 8 x 10 pixels. Choose a divisor of 2"):
        SmallViT((8, 10, 1), 10, patch=4, rngs=nnx.Rngs(0))


def test_a_pooling_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="expected pool to be 'mean' or 'cls', got 'max'"):
        SmallViT((8, 8, 1), 10, pool="max", rngs=nnx.Rngs(0))
