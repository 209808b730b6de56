"""Soft thresholding: the minimiser, its support, its limits, and where it has to stand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize_scalar

from jaxunlearn.transforms import soft_threshold
from jaxunlearn.transforms.shrinkage import shrink

RNG = np.random.default_rng(1)
GRADS = {
    "a": jnp.asarray(RNG.standard_normal((20, 4)), jnp.float32),
    "b": jnp.asarray(RNG.standard_normal(9), jnp.float32),
}
THETA = jax.tree.map(lambda g: 0.1 * jnp.ones_like(g), GRADS)


def step(tx, grads=GRADS, params=THETA):
    updates, state = tx.update(grads, tx.init(params), params)
    return updates, optax.apply_updates(params, updates), state


def shares(tree, like=THETA):
    return np.mean([np.mean(np.asarray(x) != 0) for x in jax.tree.leaves(tree)])


def test_it_is_the_minimiser_of_the_proximal_problem(x64):
    for u, tau in ((1.7, 0.4), (-0.9, 0.4), (0.3, 0.4), (0.4, 0.4), (-2.0, 0.0)):
        found = minimize_scalar(
            lambda d: 0.5 * (d - u) ** 2 + tau * abs(d),  # noqa: B023
            bracket=(-3, 3),
            options={"xtol": 1e-12},
        )
        np.testing.assert_allclose(shrink(jnp.float64(u), tau), found.x, atol=1e-7)


def test_a_step_is_the_proximal_gradient_step():
    eta, lam = 0.5, 0.8
    updates, _, _ = step(optax.chain(optax.sgd(eta), soft_threshold(eta * lam)))
    g = np.asarray(GRADS["a"])
    expected = -eta * np.sign(g) * np.maximum(np.abs(g) - lam, 0)
    np.testing.assert_allclose(updates["a"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.0, 100.0])
def test_entries_below_the_threshold_do_not_move_to_the_bit(lam):
    eta = 0.25  # a power of two, so that eta g and eta lam round alike
    _, moved, state = step(optax.chain(optax.sgd(eta), soft_threshold(eta * lam)))
    count = 0
    for name, g in GRADS.items():
        still = np.abs(g) <= np.float32(lam)
        np.testing.assert_array_equal(
            np.asarray(moved[name])[still], np.asarray(THETA[name])[still]
        )
        assert (np.asarray(moved[name])[~still] != np.asarray(THETA[name])[~still]).all()
        count += (~still).sum()
    assert state[1].moved == pytest.approx(count / 89)


def test_threshold_zero_is_no_threshold_and_a_huge_one_stops_everything():
    plain, _, _ = step(optax.sgd(0.3))
    chex.assert_trees_all_equal(step(optax.chain(optax.sgd(0.3), soft_threshold(0.0)))[0], plain)
    chex.assert_trees_all_equal(step(optax.chain(optax.sgd(0.3), soft_threshold(1e30)))[1], THETA)


def test_the_share_that_moves_falls_as_the_threshold_grows():
    found = [float(step(soft_threshold(t))[2].moved) for t in np.linspace(0, 3, 13)]
    assert found[0] == 1 and found[-1] < 0.05
    assert (np.diff(found) <= 0).all() and len(set(found)) > 6


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_all_entries_moves_first_and_the_threshold_stays(share):
    tx = soft_threshold(share=share)
    updates, state = tx.update(GRADS, tx.init(THETA))
    sizes = np.concatenate([np.abs(np.ravel(g)) for g in GRADS.values()])
    np.testing.assert_allclose(state.threshold, np.quantile(sizes, 1 - share), rtol=1e-5)
    moved = sum(np.count_nonzero(u) for u in updates.values())
    assert abs(moved - share * 89) <= 1
    doubled = jax.tree.map(lambda g: 2 * g, GRADS)
    again, after = tx.update(doubled, state)
    assert after.threshold == state.threshold and after.count == 2
    chex.assert_trees_all_close(again, jax.tree.map(lambda g: shrink(g, state.threshold), doubled))


def test_shared_starts_are_the_proximal_gradient_method(x64):
    """Three steps of ISTA on a quadratic + lam |D|_1, twice, written in NumPy."""
    a = RNG.standard_normal((8, 5))
    target, eta, lam = RNG.standard_normal(8), 0.05, 0.9
    theta = np.full(5, 0.3)
    tx = optax.chain(optax.sgd(eta), soft_threshold(eta * lam, every=3))
    params = jnp.asarray(theta)
    state = tx.init(params)
    for _ in range(2):
        start, d = theta, np.zeros(5)
        for _ in range(3):
            grad = a.T @ (a @ (start + d) - target)
            d = d - eta * grad
            d = np.sign(d) * np.maximum(np.abs(d) - eta * lam, 0)
            updates, state = tx.update(a.T @ (a @ params - target), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(params, start + d, rtol=1e-12, atol=1e-14)
        theta = start + d
    every_one = optax.chain(optax.sgd(eta), soft_threshold(eta * lam))
    other, state = jnp.full(5, 0.3), every_one.init(params)
    for _ in range(6):
        updates, state = every_one.update(a.T @ (a @ other - target), state, other)
        other = optax.apply_updates(other, updates)
    assert not np.allclose(other, params, atol=1e-3), "the shared start made no difference"


def test_it_must_stand_after_the_optimiser():
    """Before Adam, momentum goes on moving entries that the threshold has stopped."""
    after = optax.chain(optax.adam(0.1), soft_threshold(0.05))
    before = optax.chain(soft_threshold(1.0), optax.adam(0.1))
    first, later = GRADS, jax.tree.map(lambda g: 0.01 * g, GRADS)
    for tx, stays in ((after, True), (before, False)):
        state = tx.init(THETA)
        _, state = tx.update(first, state, THETA)
        updates, state = tx.update(later, state, THETA)
        gone = np.abs(np.asarray(first["a"])) > 1.0
        small = np.asarray(updates["a"])
        if stays:
            assert (np.abs(small) <= 0.05 + 1e-6).all() and (small[small != 0] != 0).all()
        else:
            assert (small[gone] != 0).all(), "nothing of `later` is above the threshold of 1"


def test_schedules_traced_thresholds_and_half_precision():
    scheduled = soft_threshold(lambda count: jnp.where(count == 0, 10.0, 0.0))
    state = scheduled.init(THETA)
    none, state = scheduled.update(GRADS, state)
    every, state = scheduled.update(GRADS, state)
    assert shares(none) == 0 and shares(every) == 1
    swept = jax.vmap(lambda t: soft_threshold(t).update(GRADS, scheduled.init(THETA))[0]["a"])
    taus = jnp.array([0.0, 0.7])
    for place, tau in enumerate(taus):
        np.testing.assert_array_equal(swept(taus)[place], shrink(GRADS["a"], tau))
    half = shrink(jnp.asarray([1.0 + 2**-7], jnp.bfloat16), 1.0 - 2**-9)
    assert half.dtype == jnp.bfloat16 and float(half[0]) == 2**-7 + 2**-9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of threshold and share, got threshold=None, share=None"),
        ({"threshold": 1.0, "share": 0.1}, "exactly one of threshold and share"),
        ({"threshold": -1.0}, "soft_threshold: threshold must be .*>= 0, got -1.0"),
        ({"share": 1.5}, "soft_threshold: share must be .*<= 1, got 1.5"),
        ({"threshold": 1.0, "every": 0}, "every must be >= 1 steps, got 0"),
    ],
)
def test_constants_outside_their_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        soft_threshold(**given)


def test_a_shared_start_needs_the_params():
    tx = soft_threshold(0.1, every=2)
    with pytest.raises(ValueError, match="every > 1 needs the params"):
        tx.update(GRADS, tx.init(THETA))
