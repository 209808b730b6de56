"""Second moments: the closed form, brute force, and every row of the edge case table."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import losses
from jaxunlearn.checkpoint import load, save
from jaxunlearn.curvature import (
    NonFiniteError,
    SecondMoment,
    absolute_moment,
    class_means,
    fisher_diagonal,
    ggn_diagonal,
    second_moment,
)
from jaxunlearn.data import from_batches, in_memory


def linear(params, batch):
    return 0.5 * (batch["x"] @ params - batch["y"]) ** 2


def curved(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]).sum(axis=1) * batch["y"] + params["b"] ** 3


def columns(n=11, weight=None):
    rng = np.random.default_rng(0)
    made = {"x": rng.standard_normal((n, 3)), "y": rng.standard_normal(n)}
    made = {k: v.astype(np.float32) for k, v in made.items()}
    return made if weight is None else made | {"weight": np.asarray(weight, np.float32)}


PARAMS = {"w": jnp.asarray([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]]), "b": jnp.asarray(0.7)}


def gradients(loss, params, columns):
    """Every per-example gradient, leaves (n, ...)."""
    rows = {k: jnp.asarray(v)[:, None] for k, v in columns.items()}
    return jax.vmap(lambda row: jax.grad(lambda p: loss(p, row)[0])(params))(rows)


def brute_force(loss, params, columns):
    """One gradient at a time, in NumPy float64."""
    weight = columns.get("weight", np.ones(len(columns["y"])))
    rows = [{k: v[i : i + 1] for k, v in columns.items()} for i in range(len(weight))]
    grads = [jax.grad(lambda p, row=row: loss(p, row)[0])(params) for row in rows]
    grads = jax.tree.map(lambda *g: np.stack(g).astype(np.float64), *grads)

    def mean(values):
        return np.tensordot(weight, values, axes=1) / weight.sum()

    return jax.tree.map(lambda g: mean(g**2), grads), jax.tree.map(mean, grads)


def test_one_linear_layer_has_its_closed_form():
    c, theta = columns(), jnp.asarray([0.5, -1.0, 2.0])
    residual = c["x"] @ np.asarray(theta) - c["y"]
    each = residual[:, None] * c["x"]
    got = second_moment(linear, theta, in_memory(c))
    np.testing.assert_allclose(got.square, (each**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.mean, each.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["taps", "vmap"])
@pytest.mark.parametrize("micro_batch", [None, 1, 4, 50])
def test_any_micro_batch_and_any_weights_equal_brute_force(micro_batch, strategy):
    c = columns(weight=np.arange(11) % 4)
    square, mean = brute_force(curved, PARAMS, c)
    got = second_moment(curved, PARAMS, in_memory(c), micro_batch=micro_batch, strategy=strategy)
    chex.assert_trees_all_close(got.square, square, rtol=1e-5)
    chex.assert_trees_all_close(got.mean, mean, rtol=1e-5, atol=1e-6)
    assert got.count == c["weight"].sum()


def test_the_square_is_taken_per_example_and_not_per_batch():
    """A mutant that squares batch means depends on the batches, and is not the same number."""
    c = columns()
    right = second_moment(curved, PARAMS, in_memory(c)).square

    def of_batches(params, batch):
        return curved(params, batch).mean()[None]

    halves = [{k: v[i : i + 5] for k, v in c.items()} for i in (0, 5)]
    wrong = [jax.grad(lambda p, b=b: of_batches(p, b)[0])(PARAMS) for b in halves]
    wrong = jax.tree.map(lambda *g: np.mean(np.square(g), axis=0), *wrong)
    assert not np.allclose(wrong["w"], right["w"], rtol=0.2)


def test_the_order_of_the_examples_does_not_matter():
    data = in_memory(columns())
    shuffled = data.take(np.random.default_rng(1).permutation(11))
    first, second = (second_moment(curved, PARAMS, d) for d in (data, shuffled))
    chex.assert_trees_all_close(first, second, rtol=1e-5, atol=1e-6)


def test_repeated_data_have_the_same_moments():
    data = in_memory(columns())
    twice = data.take(np.tile(np.arange(11), 2))
    first, second = (second_moment(curved, PARAMS, d)[:2] for d in (data, twice))
    chex.assert_trees_all_close(first, second, rtol=1e-5, atol=1e-6)


def test_one_example_has_the_square_of_its_gradient():
    got = second_moment(curved, PARAMS, in_memory(columns(1)))
    chex.assert_trees_all_close(got.square, jax.tree.map(jnp.square, got.mean), rtol=1e-5)


def test_the_mean_of_squares_is_at_least_the_square_of_the_mean():
    got = second_moment(curved, PARAMS, in_memory(columns()))
    for f, g in zip(jax.tree.leaves(got.square), jax.tree.leaves(got.mean), strict=True):
        assert (np.asarray(f) >= np.asarray(g) ** 2 * (1 - 1e-6)).all()


def test_the_sum_of_the_diagonal_is_the_mean_squared_gradient_norm():
    c = columns()
    got = second_moment(curved, PARAMS, in_memory(c)).square
    grads = gradients(curved, PARAMS, c)
    norms = sum(np.square(g).reshape(11, -1).sum(axis=1) for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(sum(f.sum() for f in jax.tree.leaves(got)), norms.mean(), rtol=1e-5)


def test_batches_from_the_host_give_the_same_moments():
    c = columns(weight=np.arange(11) % 3)
    batches = [{k: v[i : i + 4] for k, v in c.items()} for i in range(0, 11, 4)]
    streamed = second_moment(curved, PARAMS, from_batches(batches))
    whole = second_moment(curved, PARAMS, in_memory(c))
    chex.assert_trees_all_close(streamed, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_rows_of_weight_zero_contribute_exactly_nothing_even_with_a_bad_gradient(micro_batch):
    def norm(params, batch):  # the gradient at x = 0 is NaN
        return jnp.linalg.norm(batch["x"] * params[None], axis=1)

    x = np.ones((4, 3), np.float32)
    x[0] = x[3] = 0
    got = second_moment(
        norm,
        jnp.ones(3),
        in_memory({"x": x, "weight": np.float32([0, 1, 1, 0])}),
        micro_batch=micro_batch,
    )
    alone = second_moment(norm, jnp.ones(3), in_memory({"x": x[1:3]}), micro_batch=micro_batch)
    chex.assert_trees_all_equal(got, alone)


def test_all_weights_zero_gives_zeros():
    c = columns(weight=np.zeros(11))
    got = second_moment(curved, PARAMS, in_memory(c))
    chex.assert_trees_all_equal(got.square, jax.tree.map(jnp.zeros_like, PARAMS))
    assert got.count == 0


def test_half_precision_params_are_accumulated_in_single_precision():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    got = second_moment(curved, half, in_memory(columns()))
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


def test_class_means_equal_the_means_of_each_class():
    c = columns(weight=np.arange(11) % 3)
    c |= {"y": (np.arange(11) % 2).astype(np.int32)}
    means, counts = class_means(curved, PARAMS, in_memory(c), 3)
    for label in (0, 1):
        member = c["y"] == label
        _, mean = brute_force(curved, PARAMS, {k: v[member] for k, v in c.items()})
        chex.assert_trees_all_close(
            jax.tree.map(lambda m: m[label], means),  # noqa: B023
            mean,
            rtol=1e-5,
            atol=1e-6,  # noqa: B023
        )
        assert counts[label] == c["weight"][member].sum()
    assert counts[2] == 0 and not np.any(means["w"][2])


def test_the_expected_square_of_a_batch_mean_follows_from_the_two_moments():
    """All 15 batches of 2 from 6, against g^2 + (F - g^2)/B (n - B)/(n - 1)."""
    c = columns(6)
    grads = gradients(curved, PARAMS, c)["w"]
    pairs = [np.mean(grads[np.array(p)], axis=0) ** 2 for p in itertools.combinations(range(6), 2)]
    assert len(pairs) == 15
    got = second_moment(curved, PARAMS, in_memory(c))
    f, g = got.square["w"], got.mean["w"]
    np.testing.assert_allclose(g**2 + (f - g**2) / 2 * 4 / 5, np.mean(pairs, axis=0), rtol=1e-4)


def test_a_repeated_call_compiles_nothing():
    calls = []

    def counted(params, batch):
        calls.append(1)
        return linear(params, batch)

    for scale in (1.0, 2.0):
        second_moment(counted, scale * jnp.ones(3), in_memory(columns()))
        traced = len(calls)
        class_means(
            counted, scale * jnp.ones(3), in_memory(columns() | {"y": np.zeros(11, np.int32)}), 2
        )
        calls_after = len(calls)
    second_moment(counted, jnp.zeros(3), in_memory(columns()))
    assert traced > 0 and len(calls) == calls_after


def test_moments_can_be_jitted_and_vmapped():
    data, stacked = in_memory(columns()), jnp.stack([jnp.ones(3), jnp.zeros(3)])
    many = jax.jit(jax.vmap(lambda p: second_moment(linear, p, data).square))(stacked)
    for row, params in zip(many, stacked, strict=True):
        np.testing.assert_allclose(row, second_moment(linear, params, data).square, rtol=1e-5)


def test_a_micro_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="micro_batch must be >= 1 or None, got 0"):
        second_moment(linear, jnp.ones(3), in_memory(columns()), micro_batch=0)


def test_the_absolute_moment_is_the_mean_of_absolute_values():
    c = columns(weight=np.arange(11) % 4)
    each = gradients(curved, PARAMS, {k: v for k, v in c.items() if k != "weight"})
    expected = jax.tree.map(lambda g: np.tensordot(c["weight"] / 15, np.abs(g), axes=1), each)
    for strategy in ("taps", "vmap"):
        got = absolute_moment(curved, PARAMS, in_memory(c), strategy=strategy)
        chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_positions_are_summed_before_they_are_squared():
    """x_1 = -x_2 with equal cotangents: the gradient is 0, and the naive formula says 2 x^2."""

    def loss(params, batch):
        return (batch["x"] @ params["w"]).sum(axis=(1, 2))

    x = jnp.array([[[1.0, 2.0], [-1.0, -2.0]]])
    params = {"w": jnp.ones((2, 3))}
    got = second_moment(loss, params, in_memory({"x": x}))
    naive = jnp.einsum("nti,nto->io", x**2, jnp.ones((1, 2, 3)))
    assert not np.any(got.square["w"]) and np.all(naive > 1)


# ---- the Fisher of the model's own labels ----


def logits(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) @ jnp.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])


def test_the_exact_fisher_is_the_expectation_over_the_models_labels(x64):
    params = {"w": jnp.asarray(PARAMS["w"], float)}
    c = {"x": columns()["x"].astype(float), "y": np.zeros(11, np.int32)}

    def of_label(label):
        def loss(p, b):
            return losses.cross_entropy(logits(p, b), jnp.full(len(b["x"]), label))

        return gradients(loss, params, c)["w"]

    p = jax.nn.softmax(logits(params, {"x": jnp.asarray(c["x"])}))
    expected = sum(
        np.einsum("n,nij->ij", p[:, label], np.square(of_label(label))) for label in range(3)
    )
    for strategy in ("taps", "vmap"):
        got = fisher_diagonal(
            None, params, in_memory(c), kind="exact", outputs=logits, strategy=strategy
        )
        np.testing.assert_allclose(got["w"], expected / 11, rtol=1e-10)


def test_the_exact_fisher_of_a_logistic_model_has_its_closed_form(x64):
    def two_classes(params, batch):
        z = batch["x"] @ params
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    w, x = jnp.array([0.3, -1.0, 0.5]), columns()["x"].astype(float)
    p = np.asarray(jax.nn.sigmoid(x @ w))
    data = in_memory({"x": x, "y": np.zeros(11, np.int32)})
    got = fisher_diagonal(None, w, data, kind="exact", outputs=two_classes)
    np.testing.assert_allclose(got, ((p * (1 - p))[:, None] * x**2).mean(axis=0), rtol=1e-10)


def test_draws_of_labels_approach_the_exact_fisher_like_one_over_the_root_of_their_number():
    data = in_memory({"x": columns()["x"], "y": np.zeros(11, np.int32)})
    params = {"w": PARAMS["w"]}
    exact = fisher_diagonal(None, params, data, kind="exact", outputs=logits)["w"]

    def error(samples):
        @jax.jit
        def drawn(key):
            return fisher_diagonal(
                None, params, data, kind="mc", outputs=logits, samples=samples, key=key
            )["w"]

        each = jax.vmap(drawn)(jax.random.split(jax.random.key(0), 200))
        return np.sqrt(np.square(each - exact[None]).mean())

    assert 6 < error(1) / error(64) < 10.5  # 8 = sqrt(64)


def test_draws_belong_to_the_row_and_not_to_the_batch():
    c = {"x": columns()["x"], "y": np.zeros(11, np.int32)}
    batches = [{k: v[i : i + 4] for k, v in c.items()} for i in range(0, 11, 4)]
    options = {"kind": "mc", "outputs": logits, "key": jax.random.key(1)}
    params = {"w": PARAMS["w"]}
    whole = fisher_diagonal(None, params, in_memory(c), **options)
    for data in (in_memory(c, batch_size=3), from_batches(batches)):
        got = fisher_diagonal(None, params, data, **options)
        chex.assert_trees_all_close(got, whole, rtol=1e-5)
    other = fisher_diagonal(None, params, in_memory(c), **options | {"key": jax.random.key(2)})
    assert not np.allclose(other["w"], whole["w"], rtol=1e-3)


def test_the_gaussian_fisher_of_a_line_has_its_closed_form():
    data = in_memory({"x": columns()["x"], "y": np.ones((11, 1), np.float32)})
    got = fisher_diagonal(
        None,
        jnp.ones((3, 1)),
        data,
        kind="exact",
        likelihood="gaussian",
        outputs=lambda p, b: b["x"] @ p,
    )
    np.testing.assert_allclose(got[:, 0], 2 * (columns()["x"] ** 2).mean(axis=0), rtol=1e-5)


def test_the_ggn_diagonal_of_any_convex_loss_is_that_of_the_dense_matrix(x64):
    def softplus(outputs, labels):
        return jnp.sum(jax.nn.softplus(-labels * outputs) + 0.1 * outputs**2, axis=1)

    c = {"x": columns()["x"].astype(float), "y": np.tile([[1.0, -1.0, 1.0]], (11, 1))}
    params = {"w": jnp.asarray(PARAMS["w"], float)}

    def dense(i):
        row = {k: jnp.asarray(v[i : i + 1]) for k, v in c.items()}
        jacobian = jax.jacobian(lambda w: logits({"w": w}, row)[0])(params["w"]).reshape(3, -1)
        z = logits(params, row)[0]
        hessian = jax.hessian(lambda z: softplus(z[None], row["y"])[0])(z)
        return jnp.diagonal(jacobian.T @ hessian @ jacobian).reshape(3, 2)

    expected = np.mean([dense(i) for i in range(11)], axis=0)
    got = ggn_diagonal(logits, softplus, params, in_memory(c))
    np.testing.assert_allclose(got["w"], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "true"}, "kind must be one of .*, got 'true'"),
        ({"kind": "exact"}, "kind 'exact' needs outputs"),
        ({"kind": "empirical"}, "kind 'empirical' needs loss_fn"),
        ({"kind": "mc", "outputs": logits, "samples": 0}, "samples must be >= 1, got 0"),
        ({"kind": "exact", "outputs": logits, "likelihood": "poisson"}, "got 'poisson'"),
        ({"kind": "exact", "outputs": logits, "strategy": "fast"}, "strategy must be one of"),
    ],
)
def test_a_fisher_that_cannot_be_computed_says_what_is_missing(options, message):
    data = in_memory({"x": columns()["x"], "y": np.zeros(11, np.int32)})
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(None, {"w": PARAMS["w"]}, data, **options)


def test_draws_need_a_key():
    data = in_memory({"x": columns()["x"], "y": np.zeros(11, np.int32)})
    with pytest.raises(TypeError, match="key"):
        fisher_diagonal(None, {"w": PARAMS["w"]}, data, kind="mc", outputs=logits)


@pytest.mark.parametrize("strategy", ["taps", "vmap"])
def test_a_gradient_that_is_not_finite_names_the_leaf(strategy):
    bad = PARAMS | {"b": jnp.asarray(jnp.inf)}
    with pytest.raises(NonFiniteError, match=r"params\['b'\] are not all finite"):
        second_moment(curved, bad, in_memory(columns()), strategy=strategy)


def test_moments_can_be_saved_with_a_checkpoint_and_loaded(tmp_path):
    got = second_moment(curved, PARAMS, in_memory(columns()))
    save(tmp_path / "importances", got)
    like = SecondMoment(PARAMS, PARAMS, jnp.zeros(()))
    chex.assert_trees_all_equal(load(tmp_path / "importances", like), got)


def test_eight_devices_find_the_same_moments():
    c = columns(16)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = in_memory({k: jax.device_put(v, rows) for k, v in c.items()})
    chex.assert_trees_all_close(
        second_moment(curved, PARAMS, spread),
        second_moment(curved, PARAMS, in_memory(c)),
        rtol=1e-5,
        atol=1e-6,
    )
