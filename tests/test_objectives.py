"""Objectives: weights honoured, clips and signs right, equal when built equally, state kept
apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import losses, objectives
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective


def linear(p, batch):
    return batch["x"] @ p


MODEL = Model(
    outputs=linear, loss=lambda p, batch: losses.cross_entropy(linear(p, batch), batch["y"])
)
PARAMS = jax.random.normal(jax.random.key(0), (2, 3))
KEY = jax.random.key(1)


def some(seed, n=4, **more):
    rng = np.random.default_rng(seed)
    columns = {"x": rng.standard_normal((n, 2)), "y": rng.integers(0, 3, n)}
    return {name: jnp.asarray(column) for name, column in columns.items()} | more


def value(objective, batches, params=PARAMS, key=KEY):
    return objective.loss(params, batches, objective.init(params), key)[0]


def test_the_mean_loss_of_weighted_rows_is_that_of_repeated_rows():
    batch = some(0, weight=jnp.array([2.0, 0.0, 1.0, 1.0]))
    repeated = jax.tree.map(lambda a: a[jnp.array([0, 0, 2, 3])], some(0))
    ours = value(objectives.mean_loss(MODEL), {"data": batch})
    np.testing.assert_allclose(ours, MODEL.loss(PARAMS, repeated).mean(), rtol=1e-6)


def test_a_clipped_example_stops_pushing():
    batch = some(0)
    each = MODEL.loss(PARAMS, batch)
    clip = float(jnp.median(each))
    objective = objectives.mean_loss(MODEL, clip=clip)
    gradient = jax.grad(lambda p: value(objective, {"data": batch}, p))(PARAMS)
    kept = jax.tree.map(lambda a: a[each < clip], batch)
    expected = jax.grad(lambda p: MODEL.loss(p, kept).sum() / 4)(PARAMS)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_allclose(value(objective, {"data": batch}), jnp.minimum(each, clip).mean())


def test_ascent_is_minus_the_forget_loss_and_neggrad_mixes_both():
    batches = {"forget": some(1), "retain": some(2)}
    forget, retain = (MODEL.loss(PARAMS, batches[k]).mean() for k in ("forget", "retain"))
    np.testing.assert_allclose(value(objectives.ascent(MODEL), batches), -forget, rtol=1e-6)
    mixed = value(objectives.neggrad_plus(MODEL, alpha=0.8), batches)
    np.testing.assert_allclose(mixed, 0.8 * retain - 0.2 * forget, rtol=1e-5)


def test_each_term_of_a_sum_keeps_its_own_state_and_draws_its_own_numbers():
    def counting(start):
        return Objective(
            lambda p: jnp.float32(start),
            lambda p, batches, state, key: (jax.random.normal(key), state + 1),
        )

    both = objectives.weighted_sum((1.0, counting(0)), (10.0, counting(5)))
    total, state = both.loss(PARAMS, {}, both.init(PARAMS), KEY)
    assert [float(s) for s in state] == [1, 6]
    draws = [jax.random.normal(jax.random.fold_in(KEY, k)) for k in range(2)]
    assert draws[0] != draws[1]
    np.testing.assert_allclose(total, draws[0] + 10 * draws[1], rtol=1e-6)
    with pytest.raises(ValueError, match="expected at least one .coefficient, objective. pair"):
        objectives.weighted_sum()


@pytest.mark.parametrize(
    "build",
    [
        lambda: objectives.mean_loss(MODEL, "retain", 2.0),
        lambda: objectives.ascent(MODEL),
        lambda: objectives.neggrad_plus(MODEL, 0.9),
        lambda: objectives.random_labels(MODEL, True),
        lambda: objectives.training(MODEL),
    ],
)
def test_objectives_built_twice_from_equal_arguments_are_equal(build):
    assert build() == build() and hash(build()) == hash(build())


def test_objectives_of_other_arguments_differ():
    assert objectives.mean_loss(MODEL, clip=1.0) != objectives.mean_loss(MODEL, clip=2.0)
    assert objectives.neggrad_plus(MODEL, 0.9) != objectives.neggrad_plus(MODEL, 0.8)


def test_a_coefficient_may_be_traced():
    batches = {"forget": some(1), "retain": some(2)}
    alphas = jnp.array([0.0, 0.5, 1.0])
    swept = jax.vmap(lambda a: value(objectives.neggrad_plus(MODEL, a), batches))(alphas)
    one_by_one = [value(objectives.neggrad_plus(MODEL, float(a)), batches) for a in alphas]
    np.testing.assert_allclose(swept, one_by_one, rtol=1e-5)


def drawn_labels(wrong_only, batch, classes):
    """The labels that random_labels trains on, read off a model whose loss is the label itself."""
    spy = Model(
        outputs=lambda p, b: jnp.zeros((*b["y"].shape, classes)),
        loss=lambda p, b: (b["y"] * b["place"]).reshape(b["y"].shape[0], -1).sum(axis=1),
    )
    n = batch["y"].shape[0]
    one_hot = jnp.eye(n, dtype=jnp.float32)
    objective = objectives.random_labels(spy, wrong_only)
    return np.array(
        [n * value(objective, {"data": batch | {"place": place}}, ()) for place in one_hot]
    )


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_random_labels_are_uniform_over_the_classes_and_spare_the_rest(dtype):
    n, classes = 300, 3
    true = jnp.full(n, 2, dtype)
    batch = {"y": true, "forget": jnp.arange(n) < 250}
    any_label = drawn_labels(False, batch, classes)
    wrong = drawn_labels(True, batch, classes)
    for labels in (any_label, wrong):
        assert (labels[250:] == 2).all()
    counts = np.bincount(any_label[:250].astype(int), minlength=3)
    assert (abs(counts - 250 / 3) < 35).all()  # 4.7 standard deviations
    counts = np.bincount(wrong[:250].astype(int), minlength=3)
    assert counts[2] == 0 and abs(counts[0] - 125) < 35


def test_wrong_labels_of_small_integers_do_not_wrap_around():
    batch = {"y": jnp.full(64, 199, jnp.uint8), "forget": jnp.ones(64, bool)}
    labels = drawn_labels(True, batch, 200)
    assert (labels < 199).all() and labels.max() > 100


def test_every_position_of_an_example_gets_a_label_of_its_own():
    x, y = jnp.zeros((4, 5, 2)), jnp.zeros((4, 5), int)
    batch = {"x": x, "y": y, "forget": jnp.array([True, True, False, False])}
    loss = value(objectives.random_labels(MODEL), {"data": batch})
    np.testing.assert_allclose(loss, 5 * np.log(3), rtol=1e-6)  # logits 0: any label costs log 3


def test_with_a_single_class_no_label_is_wrong():
    one = Model(outputs=lambda p, b: b["x"][:, :1], loss=lambda p, b: b["x"][:, 0])
    batch = some(0, forget=jnp.ones(4, bool))
    with pytest.raises(ValueError, match="wrong_only needs at least 2 classes, this model has 1"):
        value(objectives.random_labels(one, wrong_only=True), {"data": batch})


def test_the_outcome_of_an_objective_is_the_params_unless_said():
    objective = objectives.mean_loss(MODEL)
    assert objective.outcome(PARAMS, objective.init(PARAMS)) is PARAMS


def test_training_mode_of_a_model_without_one_is_its_evaluation_mode():
    assert objectives.training(MODEL) == objectives.mean_loss(MODEL)


def test_both_batches_of_neggrad_plus_may_go_through_the_model_as_one(x64):
    """Value and gradient, with weights, padding, and a column that only one has."""
    rng = np.random.default_rng(5)
    retain = {"x": rng.normal(size=(5, 3)), "y": rng.integers(0, 2, 5), "id": np.arange(5)}
    forget = {
        "x": rng.normal(size=(3, 3)),
        "y": rng.integers(0, 2, 3),
        "weight": np.array([2.0, 1, 0]),
    }
    forget["x"][2] = 9.0  # a row that counts nothing
    retain["weight"] = np.array([1.0, 1, 0.5, 1, 0])
    batches = {"retain": retain, "forget": forget}
    batches = {name: {c: jnp.asarray(v) for c, v in b.items()} for name, b in batches.items()}

    def outputs(p, batch):
        return batch["x"] @ p

    model = Model(outputs, lambda p, b: losses.cross_entropy(outputs(p, b), b["y"]))
    params = jnp.asarray(rng.normal(size=(3, 2)))
    values, gradients = [], []
    for together in (False, True):
        objective = objectives.neggrad_plus(model, 0.8, together=together)
        found = jax.value_and_grad(lambda p, o=objective: o.loss(p, batches, o.init(p), KEY)[0])
        value, gradient = found(params)
        values.append(value)
        gradients.append(gradient)
    assert np.isfinite(gradients[0]).all()
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)
