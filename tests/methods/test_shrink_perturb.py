"""Shrink and perturb: a dial with fine-tuning at one end and training from scratch at the other."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.distillation import prediction_divergence
from jaxunlearn.methods.descent.shrink_perturb import cycle, interpolate
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(9)
INIT_KEY, FIT_KEY = jax.random.split(KEY)
TX = optax.sgd(0.2)


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


METHOD = ju.shrink_perturb(TX, epochs=1)  # compiled once for the file


def dial(case, epochs):
    """s -> params, one program for every s."""

    def final(shrink):
        method = ju.shrink_perturb(TX, shrink=shrink, schedule="constant", epochs=epochs)
        return unlearn(method, case).params

    return jax.jit(final)


# ------------------------------------------------------------------------------------- the ends


def test_from_one_end_to_the_other_it_is_the_same_batches_from_another_start(single):
    """s = 1 is `finetune`; s = 0 is `fit` from fresh params; between, from between."""
    small = dataclasses.replace(single, request=cases.request(batch_size=6))
    final = dial(small, epochs=2)
    finetune = jax.jit(
        lambda start: (
            ju.finetune(TX, epochs=2).unlearn(small.model, start, small.request, FIT_KEY).params
        )
    )
    fresh = single.model.init(INIT_KEY)
    between = jax.tree.map(lambda p, f: 0.25 * p + 0.75 * f, single.params, fresh)
    for shrink, start in ((1.0, single.params), (0.0, fresh), (0.25, between)):
        chex.assert_trees_all_close(final(shrink), finetune(start), rtol=1e-5, atol=1e-6)


def test_at_zero_it_is_training_from_scratch(single):
    ours = dial(single, epochs=3)(0.0)
    fresh = ju.train(single.model, TX, single.request.retain, key=KEY, epochs=3)
    chex.assert_trees_all_close(ours, fresh.params, rtol=1e-4, atol=1e-5)


def test_an_interpolation_is_exact_at_its_ends_and_keeps_dtypes(case):
    fresh = case.model.init(INIT_KEY)
    laws.bits(interpolate(case.params, fresh, 1.0), case.params)
    laws.bits(interpolate(case.params, fresh, 0.0), fresh)
    between = interpolate(case.params, fresh, 0.25)
    chex.assert_trees_all_equal_shapes_and_dtypes(between, case.params)


# --------------------------------------------------------------------------------- the schedule


def test_the_cosine_is_the_neighbours_cosine_in_the_middle_of_each_step():
    theirs = optax.cosine_decay_schedule(1.0, 9)
    steps = jnp.arange(9)
    np.testing.assert_allclose(cycle(9, 0.0)(steps), theirs(steps + 0.5), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_a_cycle_goes_up_for_a_quarter_and_down_to_nothing(steps):
    factors = np.asarray(cycle(steps, 0.25)(jnp.arange(steps)))
    top = factors.argmax()
    assert (factors > 0).all() and (factors <= 1).all() and top <= max(steps / 4, 1)
    assert (np.diff(factors[: top + 1]) > 0).all() and (np.diff(factors[top:]) < 0).all()
    if steps == 40:
        np.testing.assert_allclose(factors[:10], (np.arange(10) + 0.5) / 10, rtol=1e-6)
        assert factors[-1] < 0.005


def test_the_schedule_spans_the_whole_run_and_scales_any_optimiser(case):
    """A loss of slope 1 moves by the sum of the factors over 2 x 3 steps."""
    model = ju.Model(
        outputs=lambda p, b: jnp.zeros((b["x"].shape[0], 3)) + p,
        loss=lambda p, b: jnp.ones(b["x"].shape[0]) * p,
        init=lambda key: jnp.zeros(()),
    )
    method = ju.shrink_perturb(optax.sgd(1.0), shrink=1.0, epochs=2)
    out = method.unlearn(model, jnp.asarray(10.0), case.request, KEY)
    t = (np.arange(6) + 0.5) / 6
    factors = np.where(t < 0.25, t / 0.25, 0.5 * (1 + np.cos(np.pi * (t - 0.25) / 0.75)))
    np.testing.assert_allclose(out.params, 10 - factors.sum(), rtol=1e-5)


# ---------------------------------------------------------------------------------- distillation


def test_one_step_descends_on_the_loss_and_on_the_divergence_from_the_old_model(single):
    retain, old = single.request.retain.arrays, single.params
    start = interpolate(old, single.model.init(INIT_KEY), 0.5)

    @jax.jit
    def gradient(p, c):
        def loss(p):
            said = [single.model.outputs(q, retain) for q in (p, old)]
            kept = prediction_divergence(*said, temperature=3.0)
            return single.model.loss(p, retain).mean() + c * kept.mean()

        return jax.grad(loss)(p)

    expected, without = (
        jax.tree.map(lambda p, g: p - 0.2 * g, start, gradient(start, c)) for c in (0.7, 0.0)
    )
    method = ju.shrink_perturb(
        TX, shrink=0.5, schedule="constant", epochs=1, distil=0.7, temperature=3.0
    )
    out = unlearn(method, single)
    chex.assert_trees_all_close(out.params, expected, rtol=1e-4, atol=1e-5)
    assert abs(without[0][0] - out.params[0][0]).max() > 1e-3


# ------------------------------------------------------------------------------------- the rest


def test_the_model_before_is_a_candidate(single):
    """The run begins elsewhere, and no epoch comes back to it."""

    def near_start(model, params):
        return -jnp.abs(params[0][0] - single.params[0][0]).sum()

    laws.bits(unlearn(ju.keep_best(METHOD, near_start), single).params, single.params)


def test_the_forget_set_is_never_read(single):
    assert METHOD.needs == {"retain", "labels", "init", "key"}
    other = single.request._replace(forget=single.request.forget.take(np.arange(3)))
    laws.bits(unlearn(METHOD, single).params, unlearn(METHOD, single, other).params)


def test_a_second_run_on_streams_compiles_nothing(case):
    calls = []

    def loss(params, batch):
        calls.append(None)
        return case.model.loss(params, batch)

    model = dataclasses.replace(case.model, loss=loss)
    request = ju.Request(*(None if d is None else list(d) for d in case.request))
    METHOD.unlearn(model, case.params, request, KEY)
    before = len(calls)
    METHOD.unlearn(model, case.params, request, KEY)
    assert len(calls) - before <= 1  # the boundary looks at shapes


def test_a_run_that_diverges_keeps_the_last_finite_params(single):
    out = unlearn(ju.shrink_perturb(optax.sgd(float("inf")), shrink=0.5, epochs=2), single)
    assert out.info.status == Status.DIVERGED
    start = interpolate(single.params, single.model.init(INIT_KEY), 0.5)
    chex.assert_trees_all_close(out.params, start, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shrink": 1.1}, "shrink must be a finite number >= 0 and <= 1, got 1.1"),
        ({"epochs": -1}, "shrink_perturb: epochs must be a finite number >= 0, got -1"),
        ({"distil": -0.1}, "distil must be a finite number >= 0, got -0.1"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"schedule": "step"}, r"schedule must be one of \['constant', 'cosine', 'one_cycle'\]"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.shrink_perturb(**given)


# ---------------------------------------------------------------------------- the forget set's push


def test_with_the_whole_model_and_no_schedule_it_is_neggrad_plus(single):
    small = dataclasses.replace(single, request=cases.request(batch_size=6))
    method = ju.shrink_perturb(TX, shrink=1.0, alpha=0.8, schedule="constant", epochs=2)
    theirs = ju.neggrad_plus(TX, alpha=0.8, epochs=2)
    chex.assert_trees_all_close(
        unlearn(method, small).params,
        unlearn(theirs, small, key=FIT_KEY).params,
        rtol=1e-5,
        atol=1e-6,
    )
    assert method.needs == {"forget", "retain", "labels", "init", "key"}


def test_an_alpha_of_one_changes_nothing(single):
    alone = unlearn(ju.shrink_perturb(TX, epochs=1), single).params
    with_one = unlearn(ju.shrink_perturb(TX, epochs=1, alpha=1.0, forget_batch=2), single).params
    chex.assert_trees_all_close(alone, with_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha must be a finite number >= 0 and <= 1, got 1.5"),
        ({"forget_batch": 4}, "forget_batch must be >= 1 and goes with alpha, got forget_batch=4"),
        ({"forget_batch": 0, "alpha": 0.9}, "forget_batch must be >= 1"),
    ],
)
def test_a_push_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ju.shrink_perturb(**options)
