"""The gradient-trained methods: each against a second road to the same params."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.flatness import directional_slopes, slope_penalty
from jaxunlearn.losses import weighted_mean
from jaxunlearn.training import Status
from tests.suite import laws

KEY = jax.random.key(2)
TX = optax.sgd(0.2)


def mean_loss(case, params, data):
    return case.model.loss(params, data.arrays).mean()


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


# ------------------------------------------------------------------------------------- descent


@pytest.mark.parametrize("given", [{}, {"epochs": 1, "steps": 1}])
def test_a_descent_has_exactly_one_length(given):
    with pytest.raises(ValueError, match="half: give exactly one of epochs, steps and turns"):
        ju.descent(objectives.ascent, TX, name="half", **given)


@pytest.mark.parametrize("given", [{"epochs": -1}, {"steps": -2}])
def test_a_descent_of_negative_length_is_refused(given):
    with pytest.raises(ValueError, match="half: the length of a run must be >= 0, got -"):
        ju.descent(objectives.ascent, TX, name="half", **given)


def test_a_descent_is_fit_with_the_same_arguments(case):
    objective = partial(objectives.neggrad_plus, alpha=0.7)
    out = unlearn(ju.descent(objective, TX, epochs=2), case)
    fitted = ju.fit(
        objective(case.model),
        TX,
        case.params,
        {"retain": case.request.retain, "forget": case.request.forget},
        key=KEY,
        epochs=2,
    )
    laws.close(out.params, fitted.params)
    np.testing.assert_allclose(out.info.losses, fitted.info.losses, rtol=1e-4)


def test_a_descent_without_labels_has_none_to_read(case):
    """What reads none does the same; what reads the model's loss is refused."""
    objective = partial(slope_penalty, slopes=directional_slopes, samples=2)
    blind = partial(ju.descent, tx=TX, epochs=1, on=("forget",), labels=False)
    assert blind(objective).needs == {"forget", "key"}
    seeing = ju.descent(objective, TX, epochs=1, on=("forget",))
    laws.bits(unlearn(blind(objective), case).params, unlearn(seeing, case).params)
    with pytest.raises(ju.AccessError, match="its needs are .'forget', 'key'"):
        unlearn(blind(objectives.ascent), case)


# ------------------------------------------------------------------------------------ finetune


def test_fine_tuning_is_training_on_what_is_retained(single):
    """One full batch: theta - 0.2 grad L_R."""
    grads = jax.grad(lambda p: mean_loss(single, p, single.request.retain))(single.params)
    expected = jax.tree.map(lambda p, g: p - 0.2 * g, single.params, grads)
    out = unlearn(ju.finetune(TX, epochs=1), single)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-5)


def test_fine_tuning_never_reads_the_forget_set(case):
    forget = case.request.forget
    other = forget.take(np.arange(8)[::-1]).replace(x=np.zeros((8, 4), np.float32))
    out = unlearn(ju.finetune(TX, epochs=2), case)
    changed = unlearn(ju.finetune(TX, epochs=2), case, case.request._replace(forget=other))
    laws.bits(out.params, changed.params)


# ----------------------------------------------------------------------------- gradient ascent


def test_one_step_of_ascent_adds_the_gradient(single):
    grads = jax.grad(lambda p: mean_loss(single, p, single.request.forget))(single.params)
    expected = jax.tree.map(lambda p, g: p + 0.2 * g, single.params, grads)
    out = unlearn(ju.gradient_ascent(TX, epochs=1), single)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-5)


def test_an_example_beyond_the_clip_stops_pushing(single):
    losses = single.model.loss(single.params, single.request.forget.arrays)
    clip = float(jnp.sort(losses)[4]) - 1e-3

    def clipped(params):
        values = single.model.loss(params, single.request.forget.arrays)
        return jnp.where(losses < clip, values, 0).mean()

    grads = jax.grad(clipped)(single.params)
    expected = jax.tree.map(lambda p, g: p + 0.2 * g, single.params, grads)
    out = unlearn(ju.gradient_ascent(TX, epochs=1, clip=clip), single)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-5)


def test_a_clip_below_every_loss_moves_nothing(single):
    out = unlearn(ju.gradient_ascent(TX, epochs=3, clip=1e-6), single)
    laws.bits(out.params, single.params)


def test_ascent_stops_at_chance(single):
    tx = optax.sgd(0.05)
    # A model that knows class 0: its loss starts below log 3.
    first = (single.params[0][0].at[:, 0].add(jnp.asarray([2.0, 0.0, 0.0, 0.0])),)
    params = (first, single.params[1])
    run = partial(single.model.loss, batch=single.request.forget.arrays)
    assert run(params).mean() < np.log(3)
    out = ju.gradient_ascent(tx, epochs=200, stop_at_chance=3).unlearn(
        single.model, params, single.request, KEY
    )
    assert out.info.status == Status.STOPPED
    steps = int(out.info.steps)
    losses = -np.asarray(out.info.losses)
    assert (losses[: steps - 1] < np.log(3)).all() and losses[steps - 1] >= np.log(3)
    assert np.isnan(losses[steps:]).all()


def test_ascent_that_diverges_keeps_the_last_finite_params(single):
    out = unlearn(ju.gradient_ascent(optax.sgd(1e38), epochs=20), single)
    assert out.info.status == Status.DIVERGED
    chex.assert_tree_all_finite(out.params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": 0.0}, "clip must be > 0 nats or None, got 0.0"),
        ({"stop_at_chance": 1}, "stop_at_chance is the number of classes, >= 2, got 1"),
        ({"clip": 1.0, "stop_at_chance": 10}, "with clip=1.0 no loss reaches that of chance, 2.3"),
        ({"epochs": -1}, "gradient_ascent: the length of a run must be >= 0"),
    ],
)
def test_brakes_that_cannot_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.gradient_ascent(**given)


# ------------------------------------------------------------------------------- neggrad_plus


def test_alpha_one_is_fine_tuning(single, case):
    for some in (single, case):
        ours = unlearn(ju.neggrad_plus(TX, alpha=1.0, epochs=2), some)
        chex.assert_trees_all_equal(ours.params, unlearn(ju.finetune(TX, epochs=2), some).params)


def test_alpha_zero_is_ascent_on_the_cycled_forget_batches(case):
    """Three retain batches an epoch, two forget batches: step six ends the third pass."""
    ours = unlearn(ju.neggrad_plus(TX, alpha=0.0, epochs=2), case)
    steps = 2 * case.request.retain.num_batches
    assert (steps, case.request.forget.num_batches) == (6, 2)
    ascent = ju.descent(objectives.ascent, TX, steps=steps, on=("forget",))
    laws.close(ours.params, unlearn(ascent, case).params)


def test_both_terms_meet_in_one_step(single):
    def objective(params):
        return 0.8 * mean_loss(single, params, single.request.retain) - 0.2 * mean_loss(
            single, params, single.request.forget
        )

    expected = jax.tree.map(
        lambda p, g: p - 0.2 * g, single.params, jax.grad(objective)(single.params)
    )
    out = unlearn(ju.neggrad_plus(TX, alpha=0.8, epochs=1), single)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_the_unit_interval_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number >= 0 and <= 1"):
        ju.neggrad_plus(alpha=alpha)


# ------------------------------------------------------------------------------ random_labels


def seen_labels(wrong_only, classes=5, rows=4000):
    """The labels that the objective hands to the loss, for rows whose true label is 2."""

    found = []
    for c in range(classes):
        model = ju.Model(
            outputs=lambda p, b: p * jnp.ones((b["y"].shape[0], classes)),
            loss=lambda p, b, c=c: p * (b["y"] == c),
        )
        batch = {"y": jnp.full(rows, 2), "forget": jnp.ones(rows, bool)}
        value = objectives.random_labels(model, wrong_only).loss(
            jnp.ones(()), {"data": batch}, (), KEY
        )[0]
        found.append(float(value) * rows)
    return np.round(found)


@pytest.mark.parametrize("wrong_only", [False, True])
def test_labels_are_drawn_uniformly(wrong_only):
    counts = seen_labels(wrong_only)
    possible = np.array([True, True, not wrong_only, True, True])
    assert counts.sum() == 4000 and (counts[~possible] == 0).all()
    expected = 4000 / possible.sum()
    chi_squared = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_squared < 18.5  # 0.1 % level of chi-squared with 4 degrees of freedom


def test_retained_rows_keep_their_labels(single):
    """With nothing to relabel the objective is the mean loss."""
    retain = single.request.retain.arrays
    batch = retain | {"forget": jnp.zeros(16, bool), "weight": jnp.ones(16)}
    value, _ = objectives.random_labels(single.model).loss(single.params, {"data": batch}, (), KEY)
    np.testing.assert_allclose(
        value, weighted_mean(single.model.loss(single.params, retain), batch), rtol=1e-6
    )


def recorded(method, case):
    """Which rows each step of the method sees, by their id."""
    steps = []

    def note(ids, weight):
        steps.append([int(i) for i, w in zip(ids, weight, strict=True) if w > 0])

    def loss(params, batch):
        jax.debug.callback(note, batch["id"], batch["weight"], ordered=True)
        return jnp.sum(params**2) * jnp.ones(batch["id"].shape)

    model = ju.Model(outputs=lambda p, b: jnp.zeros((b["id"].shape[0], 3)) + p.sum(), loss=loss)
    out = method.unlearn(model, jnp.ones(3), case.request, KEY)
    jax.block_until_ready(out.params)
    jax.effects_barrier()
    return steps


def test_an_epoch_of_the_union_sees_each_row_once(case):
    steps = recorded(ju.random_labels(TX, epochs=2), case)
    assert len(steps) == 8
    for epoch in (steps[:4], steps[4:]):
        assert sorted(sum(epoch, [])) == list(range(100, 124))
    assert steps[:4] != steps[4:]


def test_the_sequential_order_sees_the_forget_set_first_in_its_own_batches(case):
    """Batches of 6: eight forget rows are a full and a short one, sixteen retained rows three."""
    steps = recorded(ju.random_labels(TX, epochs=2, order="sequential"), case)
    assert [len(step) for step in steps] == [6, 2, 6, 6, 4] * 2
    for epoch in (steps[:5], steps[5:]):
        assert sorted(sum(epoch[:2], [])) == list(range(100, 108))
        assert sorted(sum(epoch[2:], [])) == list(range(108, 124))
    assert steps[:5] != steps[5:]


def test_in_turns_only_the_forget_set_is_relabelled(single):
    """A loss that knows no wrong label there is: 1 for label 0, the true one of all forget rows."""
    model = ju.Model(
        outputs=single.model.outputs, loss=lambda p, b: (b["y"] == 0) * p[1][0] + 0 * p[0][0].sum()
    )
    method = ju.random_labels(TX, epochs=2, order="sequential", wrong_only=True)
    out = method.unlearn(model, single.params, single.request, KEY)
    np.testing.assert_array_equal(out.info.losses, 0)  # F never has 0 again, R never had it
    laws.bits(out.params, single.params)
    any_label = ju.random_labels(TX, epochs=2, order="sequential")
    assert any_label.unlearn(model, single.params, single.request, KEY).params[1][0] != 0


def test_streams_of_different_batches_can_be_relabelled(case):
    request = ju.Request(forget=list(case.request.forget), retain=case.request.retain)
    for order in ("union", "sequential"):
        method = ju.random_labels(TX, epochs=1, order=order)
        chex.assert_tree_all_finite(unlearn(method, case, request).params)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order must be 'union' or 'sequential', got 'reverse'"):
        ju.random_labels(order="reverse")
    with pytest.raises(ValueError, match="random_labels: epochs must be >= 0, got -1"):
        ju.random_labels(order="sequential", epochs=-1)
