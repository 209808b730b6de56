"""Per-example losses against NumPy and scikit-learn, and the one reduction."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import losses


def test_cross_entropy_is_the_log_loss_of_scikit_learn(x64):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 3)), np.array([0, 1, 2, 2, 1, 0])
    ours = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theirs = [
        metrics.log_loss([label], [p], labels=[0, 1, 2])
        for label, p in zip(labels, probabilities, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_cross_entropy_adds_up_the_positions_of_an_example():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3))
    labels = jnp.array([[0, 1, 2, 0, 1], [2, 2, 0, 1, 0]])
    apart = [losses.cross_entropy(logits[:, t], labels[:, t]) for t in range(5)]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), sum(apart), rtol=1e-6)


def test_squared_error_is_the_squared_distance():
    rng = np.random.default_rng(0)
    f, y = rng.standard_normal((2, 4, 3, 2)).astype(np.float32)
    ours = losses.squared_error(jnp.asarray(f), jnp.asarray(y))
    np.testing.assert_allclose(ours, [np.linalg.norm(a) ** 2 for a in f - y], rtol=1e-5)
    assert losses.squared_error(jnp.ones(3), jnp.zeros(3)).shape == (3,)


def test_losses_of_no_examples_are_no_numbers():
    assert losses.cross_entropy(jnp.zeros((0, 4)), jnp.zeros(0, int)).shape == (0,)
    assert losses.squared_error(jnp.zeros((0, 4)), jnp.zeros((0, 4))).shape == (0,)
    assert float(losses.weighted_mean(jnp.zeros(0), {})) == 0


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ((2, 3), jnp.zeros(2), TypeError, "integer classes, got dtype float32"),
        ((2, 3), jnp.zeros((2, 1), int), ValueError, r"logits \(2, 3\) and labels \(2, 1\)"),
        ((2,), jnp.zeros(2, int), ValueError, r"logits \(2,\) and labels \(2,\)"),
    ],
)
def test_labels_that_would_broadcast_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        losses.cross_entropy(jnp.zeros(logits), labels)


def test_targets_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"must have one shape, got \(3, 1\) and \(3,\)"):
        losses.squared_error(jnp.zeros((3, 1)), jnp.zeros(3))


def test_a_weight_of_two_is_the_row_twice_and_of_zero_no_row():
    values = jnp.array([1.0, 5.0, 7.0])
    weighted = losses.weighted_mean(values, {"weight": jnp.array([2.0, 0.0, 1.0])})
    assert float(weighted) == float(losses.weighted_mean(jnp.array([1.0, 1.0, 7.0]), {})) == 3
    ignored = losses.weighted_mean(values, {})  # the mutant that does not read the weights
    assert float(ignored) != 3


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_row_of_weight_zero_contributes_exactly_nothing_even_if_its_loss_is_not_finite(bad):
    batch = {"weight": jnp.array([1, 0, 3])}
    value, gradient = jax.value_and_grad(losses.weighted_mean)(jnp.array([2.0, bad, 4.0]), batch)
    assert float(value) == 3.5
    np.testing.assert_array_equal(gradient, [0.25, 0, 0.75])


def test_a_batch_in_which_no_row_counts_has_loss_and_gradient_zero():
    batch = {"weight": jnp.zeros(2)}
    value, gradient = jax.value_and_grad(losses.weighted_mean)(jnp.array([2.0, jnp.nan]), batch)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, [0, 0])


def test_half_precision_losses_are_not_added_up_in_half_precision():
    mean = losses.weighted_mean(jnp.full(4096, 0.1, jnp.bfloat16), {})
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, float(jnp.bfloat16(0.1)), rtol=1e-5)


BATCH = {"x": jnp.ones((4, 2)), "y": jnp.array([0, 1, 2, 1])}


@pytest.mark.parametrize(
    ("loss", "came"),
    [
        (lambda p, b: (b["x"] @ p).mean(), r"returned \(\)"),
        (lambda p, b: (b["x"] @ p).mean(keepdims=True), r"returned \(1,\)"),
        (lambda p, b: b["x"] @ p[:, None], r"returned \(3, 1\)"),
        (lambda p, b: (b["x"] @ p, 0), "returned tuple"),
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_loss_that_is_not_per_example_is_refused(loss, came, rows):
    batch = jax.tree.map(lambda a: a[:rows], BATCH)
    with pytest.raises(ValueError, match=f"one number per example.*{came}"):
        losses.check_per_example(loss, jnp.ones(2), batch)


def test_a_per_example_loss_is_accepted_without_being_computed():
    traces = chex.assert_max_traces(lambda p, b: b["x"] @ p, n=1)
    losses.check_per_example(traces, jax.ShapeDtypeStruct((2,), jnp.float32), BATCH)


@pytest.mark.parametrize(("label", "row"), [(3, 2), (-1, 0)])
def test_a_label_outside_the_classes_is_refused_with_its_row(label, row):
    batch = BATCH | {"y": BATCH["y"].at[row].set(label)}
    with pytest.raises(ValueError, match=rf"here: .* \[0, 3\), .* row {row} has {label}"):
        losses.check_labels("here", batch, 3)
    losses.check_labels("here", BATCH, 3)
    padded = batch | {"weight": jnp.ones(len(batch["y"])).at[row].set(0)}
    losses.check_labels("padding", padded, 3)


def test_classes_are_told_from_other_targets_without_computing_anything():
    params = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert losses.num_classes(lambda p, b: b["x"] @ p, params, BATCH) == 3
    assert losses.num_classes(lambda p, b: b["x"] @ p[:, 0], params, BATCH) is None
    real = BATCH | {"y": BATCH["y"].astype(jnp.float32)}
    assert losses.num_classes(lambda p, b: b["x"] @ p, params, real) is None


# Some of the classes


def test_a_local_cross_entropy_is_that_of_the_logits_cut_out(x64):
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.standard_normal((6, 5))), jnp.array([1, 3, 1, 3, 3, 1])
    cut = losses.cross_entropy(logits[:, jnp.array([1, 3])], (labels == 3).astype(int))
    mask = jnp.array([False, True, False, True, False])
    for classes in ((1, 3), (3, 1, 1), mask):
        ours = losses.local_cross_entropy(logits, labels, classes)
        np.testing.assert_allclose(ours, cut, rtol=1e-12)
    slope = jax.grad(lambda z: losses.local_cross_entropy(z, labels, mask).sum())(logits)
    assert slope[:, mask].all() and not slope[:, ~mask].any()
    every = losses.local_cross_entropy(logits, labels)
    np.testing.assert_allclose(every, losses.cross_entropy(logits, labels), rtol=1e-12)


def test_a_label_that_is_not_among_the_classes_ends_a_run_but_moves_nothing():
    logits, labels = jnp.zeros((3, 4)), jnp.array([0, 2, 7])
    ours = losses.local_cross_entropy(logits, labels, (0, 1))
    np.testing.assert_array_equal(jnp.isnan(ours), [False, True, True])
    slope = jax.grad(lambda z: losses.local_cross_entropy(z, labels, (0, 1)).sum())(logits)
    assert slope[0].any() and not slope[1:].any()
    kept = losses.weighted_mean(ours, {"weight": jnp.array([1.0, 0.0, 0.0])})
    np.testing.assert_allclose(kept, np.log(2), rtol=1e-6)


def test_a_binary_cross_entropy_is_one_log_loss_per_class(x64):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 3)), np.array([0, 1, 2, 2, 1, 0])
    p = 1 / (1 + np.exp(-logits))

    def theirs(classes):
        return sum(
            np.array([metrics.log_loss([y == k], [[1 - q, q]], labels=[0, 1])
                      for y, q in zip(labels, p[:, k], strict=True)])
            for k in classes
        )  # fmt: skip

    ours = losses.binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(ours, theirs(range(3)), rtol=1e-10)
    some = losses.binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), (0, 2))
    np.testing.assert_allclose(some, theirs((0, 2)), rtol=1e-10)


def test_losses_over_classes_add_up_the_positions_of_an_example():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3))
    labels = jnp.array([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0]])
    for loss in (losses.local_cross_entropy, losses.binary_cross_entropy):
        apart = [loss(logits[:, t], labels[:, t], (0, 1)) for t in range(5)]
        np.testing.assert_allclose(loss(logits, labels, (0, 1)), sum(apart), rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 3), r"expected integers in \[0, 3\).*got 3"),
        ((-1,), r"expected integers in \[0, 3\).*got -1"),
        (np.ones(2, bool), r"bool array of shape \(3,\).*got an array of bool \(2,\)"),
        (jnp.arange(3), r"bool array of shape \(3,\).*got an array of int32 \(3,\)"),
    ],
)
def test_classes_that_are_not_there_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        losses.class_mask(classes, 3)


def test_binary_cross_entropy_refuses_what_would_broadcast():
    with pytest.raises(ValueError, match="binary_cross_entropy: labels must have the shape"):
        losses.binary_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 1), int))


def test_a_saturated_loss_keeps_its_value_and_loses_its_gradient_from_the_clip_on():
    values = jnp.array([0.5, 3.0, 3.1, jnp.inf])
    np.testing.assert_array_equal(losses.saturated(values, 3.0), values)
    slope = jax.grad(lambda v: losses.saturated(v, 3.0).sum())(values)
    np.testing.assert_array_equal(slope, [1, 0, 0, 0])
    clipped = jax.grad(lambda v: jnp.minimum(v, 3.0).sum())(values)
    np.testing.assert_array_equal(clipped[2:], slope[2:])  # what it shares with a plain clip
    assert jnp.minimum(values, 3.0)[2] != values[2]  # and what it does not


# What is to become unlikely, and how sure a prediction is


@pytest.mark.parametrize("offset", [0.0, 0.05, 1.0])
def test_unlikelihood_is_the_log_of_what_is_left_for_other_labels(offset, x64):
    rng = np.random.default_rng(0)
    logits, labels = 2 * rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 1, 0])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theirs = -np.log(1 - p[np.arange(6), labels] + offset)
    ours = losses.unlikelihood(jnp.asarray(logits), jnp.asarray(labels), offset)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_sure_prediction_keeps_its_digits_and_the_offset_bounds_the_slope(x64):
    """1 - p is 1e-40 here, and rounds to 0 if it is computed as written."""
    sure, labels = jnp.array([[100 * np.log(10) * 0.4, 0.0]]), jnp.array([0])
    np.testing.assert_allclose(losses.unlikelihood(sure, labels), 40 * np.log(10), rtol=1e-10)

    def slope(p, offset):
        logits = jnp.log(jnp.array([[p, 1 - p]]))
        up = jax.grad(lambda z: losses.unlikelihood(z, labels, offset)[0])(logits)[0, 0]
        return up / (p * (1 - p))  # dl/dp: 1 / (1 - p + o)

    for p in (0.5, 0.99, 1 - 1e-9):
        np.testing.assert_allclose(slope(p, 0.05), 1 / (1 - p + 0.05), rtol=1e-6)
    assert slope(1 - 1e-9, 0.0) > 1e8


def test_entropy_is_that_of_scipy_and_a_zero_probability_has_a_finite_slope(x64):
    stats = pytest.importorskip("scipy.stats")
    logits = np.random.default_rng(0).standard_normal((5, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = losses.entropy(jnp.asarray(logits))
    np.testing.assert_allclose(ours, stats.entropy(p, axis=1), rtol=1e-12)
    never = jnp.array([[0.0, 1.0, -jnp.inf]])
    value, slope = jax.value_and_grad(lambda z: losses.entropy(z).sum())(never)
    np.testing.assert_allclose(value, losses.entropy(never[:, :2])[0], rtol=1e-12)
    assert jnp.isfinite(slope).all() and slope[0, 2] == 0
    np.testing.assert_allclose(losses.entropy(jnp.zeros((1, 8))), np.log(8), rtol=1e-12)


def test_unlikelihood_and_entropy_add_up_the_positions_of_an_example():
    logits = jax.random.normal(jax.random.key(0), (2, 5, 3))
    labels = jnp.array([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0]])
    apart = [losses.unlikelihood(logits[:, t], labels[:, t], 0.1) for t in range(5)]
    np.testing.assert_allclose(losses.unlikelihood(logits, labels, 0.1), sum(apart), rtol=1e-5)
    apart = [losses.entropy(logits[:, t]) for t in range(5)]
    np.testing.assert_allclose(losses.entropy(logits), sum(apart), rtol=1e-5)


def test_unlikelihood_and_entropy_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match="unlikelihood: offset must be .*>= 0, got -0.1"):
        losses.unlikelihood(jnp.zeros((2, 3)), jnp.zeros(2, int), -0.1)
    with pytest.raises(ValueError, match="unlikelihood: labels must have the shape"):
        losses.unlikelihood(jnp.zeros((2, 3)), jnp.zeros((2, 1), int))
    with pytest.raises(ValueError, match=r"entropy: expected logits .*got shape \(3,\)"):
        losses.entropy(jnp.zeros(3))
