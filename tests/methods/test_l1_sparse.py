"""l1-sparse: fine-tuning with a penalty that falls epoch by epoch, against loops by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.descent.l1_sparse import linear_decay
from jaxunlearn.training import Status
from tests.suite import laws

KEY = jax.random.key(2)
TX = optax.sgd(0.1, momentum=0.9)


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


METHOD = ju.l1_sparse(TX, alpha=0.1, epochs=2)  # compiled once for the file


@pytest.fixture(scope="module")
def swept(single):
    """alpha -> params, one program for every alpha: four epochs of one batch, the last one free."""
    tx = optax.chain(optax.add_decayed_weights(0.01), TX)

    def final(alpha):
        return unlearn(ju.l1_sparse(tx, alpha=alpha, epochs=4, free_epochs=1), single).params

    return jax.jit(final), tx


def test_without_a_penalty_it_is_fine_tuning(swept, single):
    final, tx = swept
    plain = unlearn(ju.finetune(tx, epochs=4), single)
    chex.assert_trees_all_close(final(0.0), plain.params, rtol=1e-6, atol=1e-7)


def test_a_run_is_a_loop_with_the_penalty_in_the_loss(swept, single):
    """Momentum and decay see the subgradient, as they see the gradient."""
    final, tx = swept
    retain, params, state = single.request.retain.arrays, single.params, tx.init(single.params)

    @jax.jit
    def step(params, state, lam):
        def loss(p):
            # sign(0) = 0 as published; the derivative of `jnp.abs` at 0 is 1
            signs = jax.tree.map(lambda leaf: jax.lax.stop_gradient(jnp.sign(leaf)), p)
            return single.model.loss(p, retain).mean() + lam * optax.tree.vdot(signs, p)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for e in range(4):
        params, state = step(params, state, 0.3 * max(0.0, 1 - e / 3))
    chex.assert_trees_all_close(final(0.3), params, rtol=1e-4, atol=1e-5)


FLAT = ju.Model(
    outputs=lambda p, b: jnp.zeros((b["x"].shape[0], 3)) + 0 * p["b"],
    loss=lambda p, b: jnp.zeros(b["x"].shape[0]) * p["b"],
)


def test_the_penalty_falls_by_epochs_not_by_steps_and_leaves_out_no_leaf(case):
    """Three steps in each of four epochs, the last one free: 3 alpha (1 + 2/3 + 1/3)."""
    params = {"w": jnp.full((2, 2), 50.0), "b": jnp.asarray(-50.0)}
    method = ju.l1_sparse(optax.sgd(1.0), alpha=0.5, epochs=4, free_epochs=1)
    out = method.unlearn(FLAT, params, case.request, KEY)
    assert out.info.steps == 12
    by_step = sum(0.5 * (1 - t / 9) for t in range(9))
    assert abs(by_step - 3.0) > 0.4  # another number, were it by steps
    np.testing.assert_allclose(out.params["w"], 50 - 3.0, rtol=1e-6)
    np.testing.assert_allclose(out.params["b"], -50 + 3.0, rtol=1e-6)


def test_the_schedule_is_the_published_one():
    strength = linear_decay(0.2, 5, 7)
    values = [float(strength(jnp.int32(t))) for t in range(49)]
    expected = [0.2 * max(0, 1 - (t // 7) / 5) for t in range(49)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert linear_decay(0.2, 0, 7)(jnp.int32(0)) == 0  # every epoch is free


def test_the_proximal_form_makes_zeros_and_the_subgradient_jumps_across_them(case):
    """Without a loss 0.4 goes by 0.3, 0.2, 0.1: one below the threshold, or below zero."""
    params = {"w": jnp.full((2, 2), 0.4), "b": jnp.asarray(-0.4)}
    run = {
        proximal: ju.l1_sparse(optax.sgd(0.1), alpha=3.0, epochs=1, proximal=proximal)
        .unlearn(FLAT, params, case.request, KEY)
        .params["w"]
        for proximal in (None, 0.1)
    }
    assert (run[0.1] == 0).all()
    np.testing.assert_allclose(run[None], 0.4 - 3 * 0.3 + 2 * 0.3, rtol=1e-5)


def test_the_forget_set_is_never_read(single):
    assert METHOD.needs == {"retain", "labels", "key"}
    other = single.request._replace(forget=single.request.forget.take(np.arange(3)))
    laws.bits(unlearn(METHOD, single).params, unlearn(METHOD, single, other).params)


def test_a_second_run_on_streams_compiles_nothing(case):
    calls = []

    def loss(params, batch):
        calls.append(None)
        return case.model.loss(params, batch)

    model = dataclasses.replace(case.model, loss=loss)
    request = ju.Request(*(None if d is None else list(d) for d in case.request))
    method = ju.l1_sparse(TX, alpha=0.1, epochs=1)
    method.unlearn(model, case.params, request, KEY)
    before = len(calls)
    method.unlearn(model, case.params, request, KEY)
    assert len(calls) - before <= 1  # the boundary looks at shapes


def test_every_epoch_is_a_candidate(case):
    """It goes down by 3 x 0.5, then up by what is above: only the first epoch comes near zero."""
    params = {"w": jnp.full((2, 2), 1.6), "b": jnp.asarray(1.6)}
    method = ju.l1_sparse(optax.sgd(0.5), alpha=1.0, epochs=3)
    best = ju.keep_best(method, lambda _, p: -jnp.abs(p["b"] - 0.1))
    out = best.unlearn(FLAT, params, case.request, KEY)
    np.testing.assert_allclose(out.params["b"], 0.1, rtol=1e-4)
    last = method.unlearn(FLAT, params, case.request, KEY)
    assert abs(last.params["b"] - 0.1) > 0.1


def test_a_run_that_diverges_keeps_the_last_finite_params(single):
    out = unlearn(ju.l1_sparse(optax.sgd(float("inf")), epochs=2), single)
    assert out.info.status == Status.DIVERGED
    laws.bits(out.params, single.params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1.0}, "l1_sparse: alpha must be a finite number >= 0, got -1.0"),
        ({"epochs": -1}, "l1_sparse: epochs must be a finite number >= 0, got -1"),
        ({"epochs": 3, "free_epochs": 4}, "free_epochs must be .*<= 3, got 4"),
        ({"proximal": 0.0}, "proximal must be a finite number > 0, got 0.0"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ju.l1_sparse(**given)
