"""Pseudo-labels: targets and steps in closed form, and where they lead."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import jaxunlearn as ju
from jaxunlearn.methods.descent.pseudo_label import pseudo_labelled, without
from jaxunlearn.training import Status
from tests.suite import cases

KEY = jax.random.key(3)
COLUMNS = cases.columns()
X, Y = np.asarray(COLUMNS["x"], np.float64), COLUMNS["y"]
START = np.random.default_rng(6).standard_normal((4, 3))
LINEAR = cases.by_hand(lambda w, batch: batch["x"] @ w, None)
RATE = 0.5


def softmax(z):
    return special.softmax(z, axis=1)


def targets(target, rows, classes=()):
    """What x W_0 says of these rows without their own label and `classes`, as probabilities."""
    z = X[rows] @ START
    z[np.arange(len(z)), Y[rows]] = -np.inf
    z[:, list(classes)] = -np.inf
    return np.eye(3)[z.argmax(axis=1)] if target == "hard" else softmax(z)


def by_hand(told, rows, steps=3):
    """W <- W - rate/n sum_i x_i (softmax(x_i W) - told_i)', from W_0."""
    w = START
    for _ in range(steps):
        w = w - RATE / len(told) * X[rows].T @ (softmax(X[rows] @ w) - told)
    return w


def run(request=None, **given):
    method = ju.pseudo_label(optax.sgd(RATE), epochs=3, **given)
    return method.unlearn(LINEAR, jnp.asarray(START), request or cases.request(32), KEY).params


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_on_the_forget_set_alone_steps_lead_to_the_best_other_class(target, x64):
    rows = slice(0, 8)
    request = cases.request(32)._replace(retain=None)
    expected = by_hand(targets(target, rows), rows)
    np.testing.assert_allclose(run(request, target=target), expected, rtol=1e-6, atol=1e-7)
    other = by_hand(targets("soft" if target == "hard" else "hard", rows), rows)
    own = by_hand(np.eye(3)[Y[rows]], rows)
    assert min(abs(expected - other).max(), abs(expected - own).max()) > 1e-3


@pytest.mark.parametrize(
    ("target", "rehearse"),
    [("hard", "labels"), ("hard", "outputs"), ("soft", "labels"), ("soft", "outputs")],
)
def test_retained_rows_keep_their_labels_or_what_was_said_of_them(target, rehearse, x64):
    kept = np.eye(3)[Y[8:]] if rehearse == "labels" else softmax(X[8:] @ START)
    told = np.concatenate([targets(target, slice(0, 8)), kept])
    expected = by_hand(told, slice(0, 24))
    np.testing.assert_allclose(
        run(target=target, rehearse=rehearse), expected, rtol=1e-6, atol=1e-7
    )


def value(model, batch, start, **given):
    objective = pseudo_labelled(model, **given)
    return objective.loss(start, {"data": batch}, objective.init(start), KEY)[0]


def test_classes_that_go_together_are_no_pseudo_labels_of_each_other():
    z = jnp.array([[3.0, 2.0, 1.0, 0.0]])
    low = without(z, jnp.array([0]), classes=(1,))
    assert jnp.argmax(low) == 2 and jnp.argmax(without(z, jnp.array([0]))) == 1
    np.testing.assert_allclose(jax.nn.softmax(low)[0], softmax([[-np.inf, -np.inf, 1, 0]])[0])
    np.testing.assert_array_equal(low, without(z, jnp.array([0]), classes=(0, 1, 1)))


def test_of_two_classes_hard_and_soft_are_the_other_one(x64):
    two = cases.by_hand(lambda w, batch: batch["x"] @ w, None)
    batch = {"x": jnp.asarray(X[:8]), "y": jnp.asarray(Y[:8] % 2)}
    w = jnp.asarray(START[:, :2])
    hard, soft = (value(two, batch, w, target=each) for each in ("hard", "soft"))
    np.testing.assert_allclose(hard, soft, rtol=1e-12)
    other = ju.losses.cross_entropy(batch["x"] @ w, 1 - batch["y"]).mean()
    np.testing.assert_allclose(hard, other, rtol=1e-12)


def test_positions_have_labels_of_their_own():
    z = jnp.array([[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]])
    assert jnp.argmax(without(z, jnp.array([[0, 1]])), axis=-1).tolist() == [[1, 0]]
    model = cases.by_hand(lambda w, batch: batch["x"] @ w, None)
    batch = {"x": z, "y": jnp.array([[0, 1]])}
    other = ju.losses.cross_entropy(z, jnp.array([[1, 0]])).mean()
    np.testing.assert_allclose(value(model, batch, jnp.eye(3)), other, rtol=1e-6)


def test_rows_of_weight_zero_are_not_counted():
    weight = jnp.array([1.0] * 6 + [0.0] * 2)
    batch = {"x": jnp.asarray(X[:8]), "y": jnp.asarray(Y[:8])}
    start = jnp.asarray(START)
    full = value(LINEAR, batch | {"weight": weight}, start, target="soft")
    part = value(LINEAR, {k: v[:6] for k, v in batch.items()}, start, target="soft")
    np.testing.assert_allclose(full, part, rtol=1e-6)


def test_in_the_end_the_forgotten_rows_are_taken_for_what_they_resemble():
    method = ju.pseudo_label(optax.adam(0.1), rehearse="labels", epochs=150)
    request, start = cases.request(24), jnp.asarray(START, jnp.float32)
    after = np.asarray(method.unlearn(LINEAR, start, request, KEY).params)
    said = (X @ after).argmax(axis=1)
    assert (said[8:] == Y[8:]).mean() > 0.9
    assert (said[:8] == targets("hard", slice(0, 8)).argmax(axis=1)).mean() > 0.7


def test_what_is_read_is_what_is_needed():
    assert ju.pseudo_label().needs == {"forget", "labels", "key"}
    assert ju.pseudo_label(rehearse="outputs").needs == {"forget", "retain", "labels", "key"}


def test_a_run_that_diverges_keeps_its_last_finite_params():
    method = ju.pseudo_label(optax.sgd(1e38), epochs=4)
    out = method.unlearn(LINEAR, jnp.eye(4, 3), cases.request(), KEY)
    assert out.info.status == Status.DIVERGED and jnp.isfinite(out.params).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ju.pseudo_label(target="firm"), "target must be 'hard' or 'soft', got 'firm'"),
        (lambda: ju.pseudo_label(rehearse="x"), "must be 'labels', 'outputs' or None, got 'x'"),
        (lambda: ju.pseudo_label(epochs=-1), "pseudo_label: the length of a run must be >= 0"),
        (lambda: without(jnp.zeros((2, 1)), jnp.zeros(2, int)), r"has 1 and classes=\(\)"),
        (lambda: without(jnp.zeros((2, 3)), jnp.zeros(2, int), (0, 1)), "one class must be left"),
        (lambda: without(jnp.zeros((2, 3)), jnp.zeros(2, int), (7,)), r"integers in \[0, 3\)"),
        (lambda: without(jnp.zeros((2, 3)), jnp.zeros(2)), "labels must be integers.*float32"),
        (lambda: without(jnp.zeros((2, 3)), jnp.zeros((2, 1), int)), r"int32 \(2, 1\) and logits"),
    ],
)
def test_what_has_no_pseudo_label_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
