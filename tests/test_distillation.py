"""Distillation: zero at the old model, a divergence in between, agreement of logits when hot, a
quadratic for linear features; old outputs may be computed once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import distillation, losses
from jaxunlearn.data import from_batches, in_memory
from jaxunlearn.distillation import feature_distance, prediction_divergence
from jaxunlearn.model import Model

KEY = jax.random.key(0)


def features(p, batch):
    return jnp.tanh(batch["x"] @ p["body"])


def outputs(p, batch):
    return features(p, batch) @ p["head"]


MODEL = Model(
    outputs=outputs,
    loss=lambda p, batch: losses.cross_entropy(outputs(p, batch), batch["y"]),
    features=features,
)


def params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"body": (3, 5), "head": (5, 4)}
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}


OLD, NEW = params(0), params(1)
BATCH = {"x": jnp.asarray(np.random.default_rng(2).standard_normal((6, 3)), jnp.float32)}


def logits(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def value(objective, p, batch=BATCH):
    return objective.loss(p, {"data": batch}, objective.init(p), KEY)[0]


def flat(some):
    return jax.flatten_util.ravel_pytree(some)[0]


# Check 1


PENALTIES = {
    "softmax": distillation.prediction_distillation(MODEL, OLD),
    "softmax, some": distillation.prediction_distillation(MODEL, OLD, classes=(0, 2)),
    "sigmoid": distillation.prediction_distillation(MODEL, OLD, kind="sigmoid"),
    "features": distillation.feature_distillation(MODEL, OLD),
    "directions": distillation.feature_distillation(MODEL, OLD, normalise=True),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_the_old_model_pays_nothing_and_is_not_moved(name):
    penalty = PENALTIES[name]
    here, slope = jax.value_and_grad(lambda p: value(penalty, p))(OLD)
    np.testing.assert_allclose(here, 0, atol=1e-7)
    np.testing.assert_allclose(flat(slope), 0, atol=1e-6)
    there, slope = jax.value_and_grad(lambda p: value(penalty, p))(NEW)
    assert there > 1e-2 and abs(flat(slope)).max() > 1e-2


# Check 5


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_divergence_is_what_scipy_says_and_never_negative(kind, x64):
    special = pytest.importorskip("scipy.special")
    z, z_o, t = logits(0, 50, 4), logits(1, 50, 4), 3.0
    ours = prediction_divergence(z, z_o, temperature=t, kind=kind)
    if kind == "softmax":
        p, q = (special.softmax(each / t, axis=1) for each in (z_o, z))
        theirs = special.rel_entr(p, q).sum(axis=1)
    else:
        p, q = (special.expit(each / t) for each in (z_o, z))
        theirs = (special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).mean(axis=1)
    np.testing.assert_allclose(ours, t**2 * theirs, rtol=1e-10)
    assert (ours >= 0).all()
    assert ours.shape == (50,)


def test_a_hot_softmax_compares_centred_logits(x64):
    z, z_o = logits(0, 7, 4), logits(1, 7, 4)
    d = z - z_o - (z - z_o).mean(axis=1, keepdims=True)
    ours = prediction_divergence(z, z_o, temperature=1e4)
    np.testing.assert_allclose(ours, jnp.square(d).sum(axis=1) / (2 * 4), rtol=1e-3)
    assert abs(prediction_divergence(z, z_o, temperature=1.0) / ours - 1).max() > 0.05


def test_the_gradient_is_that_of_the_soft_cross_entropies(x64):
    """A divergence and a cross-entropy towards the same targets differ by a constant."""
    z, z_o, t = logits(0, 3, 4), logits(1, 3, 4), 2.0

    def soft(z):
        return -t * t * (jax.nn.softmax(z_o / t) * jax.nn.log_softmax(z / t)).sum()

    def binary(z):
        p = jax.nn.sigmoid(z_o)
        each = p * jnp.log(jax.nn.sigmoid(z)) + (1 - p) * jnp.log(1 - jax.nn.sigmoid(z))
        return -each.mean(axis=1).sum()

    for kind, theirs in (("softmax", soft), ("sigmoid", binary)):
        ours = jax.grad(lambda z, kind=kind: prediction_divergence(z, z_o, kind=kind).sum())(z)
        np.testing.assert_allclose(ours, jax.grad(theirs)(z), rtol=1e-9, atol=1e-12)


def test_a_constant_over_the_classes_changes_no_softmax_but_every_sigmoid(x64):
    z, z_o = logits(0, 3, 4), logits(1, 3, 4)
    softmax, sigmoid = (
        [prediction_divergence(each, z_o, kind=kind) for each in (z, z + 3.0)]
        for kind in ("softmax", "sigmoid")
    )
    np.testing.assert_allclose(*softmax, rtol=1e-10)
    assert abs(sigmoid[0] - sigmoid[1]).min() > 0.1


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_only_the_named_classes_count_however_they_are_named(kind, x64):
    z, z_o = logits(0, 5, 4), logits(1, 5, 4)
    cut = prediction_divergence(z[:, :2], z_o[:, :2], kind=kind)
    mask = jnp.array([True, True, False, False])
    for classes in ((0, 1), range(2), np.array(mask), mask):
        ours = prediction_divergence(z, z_o, classes=classes, kind=kind)
        np.testing.assert_allclose(ours, cut, rtol=1e-10)
    slope = jax.grad(lambda z: prediction_divergence(z, z_o, classes=mask, kind=kind).sum())(z)
    assert slope[:, :2].all() and not slope[:, 2:].any()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_classes_are_no_penalty(kind):
    z, z_o = logits(0, 5, 4), logits(1, 5, 4)

    def total(z):
        return prediction_divergence(z, z_o, classes=jnp.zeros(4, bool), kind=kind).sum()

    here, slope = jax.value_and_grad(total)(z)
    assert here == 0 and not slope.any()


def test_large_logits_give_large_and_finite_divergences():
    z = jnp.array([[200.0, -200.0]])
    for kind in ("softmax", "sigmoid"):
        ours, slope = jax.value_and_grad(
            lambda z, kind=kind: prediction_divergence(z, -z0, temperature=1.0, kind=kind).sum()
        )(z0 := z)
        np.testing.assert_allclose(ours, 400 if kind == "softmax" else 200, rtol=1e-5)
        assert jnp.isfinite(slope).all()


def test_positions_of_an_example_are_added_up():
    z, z_o = logits(0, 2, 3, 4), logits(1, 2, 3, 4)
    apart = sum(prediction_divergence(z[:, t], z_o[:, t]) for t in range(3))
    np.testing.assert_allclose(prediction_divergence(z, z_o), apart, rtol=1e-5)


# Check 6


def test_for_linear_features_distillation_is_a_weighted_l2(x64):
    """mean_i |x_i (W - W_o)|^2 = <D, X^T X D> / n, its gradient 2 X^T X D / n."""
    linear = Model(
        outputs=lambda p, b: b["x"] @ p,
        loss=lambda p, b: b["x"][:, 0],
        features=lambda p, b: b["x"] @ p,
    )
    x, w, w_o = logits(0, 6, 3), logits(1, 3, 2), logits(2, 3, 2)
    penalty, d = distillation.feature_distillation(linear, w_o), w - w_o
    gram = x.T @ x / 6
    here, slope = jax.value_and_grad(lambda w: value(penalty, w, {"x": x}))(w)
    np.testing.assert_allclose(here, jnp.vdot(d, gram @ d), rtol=1e-12)
    np.testing.assert_allclose(slope, 2 * gram @ d, rtol=1e-12)


def test_directions_do_not_see_lengths_and_a_vanished_feature_stays_finite():
    h = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(feature_distance(7 * h, h, normalise=True), 0, atol=1e-6)
    assert feature_distance(7 * h, h)[0] == 36 * 25
    np.testing.assert_allclose(feature_distance(-h, h, normalise=True)[0], 4, rtol=1e-6)
    slope = jax.grad(lambda h: feature_distance(h, 1 + h, normalise=True).sum())(h)
    assert jnp.isfinite(slope).all()


# In a run


def test_rows_of_weight_zero_do_not_count_and_others_count_by_their_weight():
    batch = BATCH | {"weight": jnp.array([2.0, 1.0, 0.0, 0.0, 0.0, 0.0])}
    repeated = {"x": BATCH["x"][jnp.array([0, 0, 1])]}
    for penalty in PENALTIES.values():
        np.testing.assert_allclose(
            value(penalty, NEW, batch), value(penalty, NEW, repeated), rtol=1e-5
        )


def test_old_outputs_may_be_computed_once():
    data = in_memory(BATCH, batch_size=4)  # the last batch is padded
    told = distillation.with_old_outputs(MODEL, OLD, data)
    np.testing.assert_allclose(told["old_outputs"], outputs(OLD, BATCH), rtol=1e-5)
    np.testing.assert_allclose(told["old_features"], features(OLD, BATCH), rtol=1e-5)
    assert told.num_examples == 6 and told.batch_size == 4
    for build in (distillation.prediction_distillation, distillation.feature_distillation):
        once, again = build(MODEL, None), build(MODEL, OLD)
        np.testing.assert_allclose(
            value(once, NEW, told.arrays), value(again, NEW), rtol=1e-5, atol=1e-7
        )
        assert once == build(MODEL, None) or once.loss == build(MODEL, None).loss
        with pytest.raises(ValueError, match=r"reads the column 'old_.*with_old_outputs adds it"):
            value(once, NEW, BATCH)
    plain = distillation.with_old_outputs(dataclasses.replace(MODEL, features=None), OLD, data)
    assert "old_features" not in plain
    with pytest.raises(TypeError, match="expected in-memory data, got Stream"):
        distillation.with_old_outputs(MODEL, OLD, from_batches([{"x": np.ones((2, 3))}]))


def test_another_old_model_and_other_classes_compile_nothing():
    traces = []

    def noted(p, batch):
        traces.append(1)
        return outputs(p, batch)

    model = dataclasses.replace(MODEL, outputs=noted)
    compiled = jax.jit(lambda loss, p, s: loss(p, {"data": BATCH}, s, KEY)[0], static_argnums=0)
    seen = []
    for seed, kept in ((0, [True, True, False, False]), (3, [True, False, True, True])):
        penalty = distillation.prediction_distillation(model, params(seed), classes=jnp.array(kept))
        seen.append(float(compiled(penalty.loss, NEW, penalty.init(NEW))))
    assert len(traces) == 2  # one program: the new model and the old one
    assert seen[0] != seen[1]


# What bad input gets


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z: prediction_divergence(z, z[:, :2]),
            r"got \(3, 2\) and \(3, 4\).*Pad",
        ),
        (
            lambda z: prediction_divergence(z, z, kind="hinge"),
            "must be 'softmax' or.*'hinge'",
        ),
        (
            lambda z: prediction_divergence(z, z, temperature=0.0),
            "must be > 0, got 0.0",
        ),
        (lambda z: prediction_divergence(z, z, classes=(4,)), r"integers in \[0, 4\).*got 4"),
        (lambda z: feature_distance(z, z[:, :1]), r"one shape, got \(3, 1\) and \(3, 4\)"),
        (
            lambda z: distillation.prediction_distillation(MODEL, OLD, kind="hinge"),
            "kind must be 'softmax' or",
        ),
        (
            lambda z: distillation.feature_distillation(
                dataclasses.replace(MODEL, features=None), OLD
            ),
            "needs model.features",
        ),
        (
            lambda z: distillation.feature_distillation(
                dataclasses.replace(MODEL, statistics=True), OLD
            ),
            "keeps running statistics.*freeze_statistics",
        ),
    ],
)
def test_what_cannot_be_distilled_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((3, 4)))
