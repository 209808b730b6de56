"""The pull towards zero: a subgradient in the loss, or a soft threshold that solves the lasso."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import Lasso

from jaxunlearn.transforms import add_l1, proximal_l1

RNG = np.random.default_rng(0)
THETA = {"w": jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32), "b": jnp.array([0.0, 1e-3])}
GRADS = {"w": jnp.asarray(RNG.standard_normal((3, 2)), jnp.float32), "b": jnp.array([0.5, -0.5])}


def step(tx, grads=GRADS, params=THETA):
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates)


def run(tx, loss, params, steps):
    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx.init(params)), None, length=steps)[0][0]


def close(ours, theirs, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


def l1(params):
    return sum(jnp.abs(p).sum() for p in jax.tree.leaves(params))


@pytest.mark.parametrize("inner", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
def test_before_the_optimiser_it_is_the_penalty_in_the_loss(inner):
    nonzero = jax.tree.map(lambda p: jnp.where(p == 0, 0.1, p), THETA)
    slope = jax.grad(lambda p: 0.7 * l1(p))(nonzero)
    expected = step(inner, jax.tree.map(jnp.add, GRADS, slope), nonzero)
    close(step(optax.chain(add_l1(0.7), inner), params=nonzero), expected)


def test_at_zero_and_without_strength_updates_are_unchanged():
    np.testing.assert_array_equal(add_l1(9.0).update(GRADS, add_l1(9.0).init(0), THETA)[0]["b"][0],
                                  GRADS["b"][0])  # fmt: skip
    for tx in (add_l1(0.0), proximal_l1(0.1, 0.0), proximal_l1(0.0, 3.0)):
        updates, _ = tx.update(GRADS, tx.init(THETA), THETA)
        jax.tree.map(np.testing.assert_array_equal, updates, GRADS)


def test_the_proximal_step_minimises_distance_and_penalty():
    """No point of a fine grid around the result is better, leaf entry by leaf entry."""
    eta, lam = 0.5, 0.8
    z = jax.tree.map(lambda p, g: p - eta * g, THETA, GRADS)
    ours = step(optax.chain(optax.sgd(eta), proximal_l1(eta, lam)))
    grid = np.linspace(-3, 3, 60001)
    for z_leaf, leaf in zip(jax.tree.leaves(z), jax.tree.leaves(ours), strict=True):
        for a, b in zip(np.ravel(z_leaf), np.ravel(leaf), strict=True):
            best = grid[np.argmin(0.5 * (grid - a) ** 2 + eta * lam * np.abs(grid))]
            np.testing.assert_allclose(b, best, atol=1.1e-4)


def test_proximal_descent_solves_the_lasso_and_the_subgradient_only_nearly(x64):
    x = RNG.standard_normal((40, 6))
    y = x @ np.array([2.0, -1.0, 0, 0, 0.3, 0]) + 0.1 * RNG.standard_normal(40)
    theirs = Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=100000).fit(x, y).coef_
    assert 0 < (theirs == 0).sum() < 6
    xs, ys = jnp.asarray(x), jnp.asarray(y)

    def loss(w):
        return jnp.square(ys - xs @ w).sum() / 80

    eta, start = 0.2, jnp.ones(6)
    ours = run(optax.chain(optax.sgd(eta), proximal_l1(eta, 0.3)), loss, start, 500)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)
    np.testing.assert_array_equal(ours == 0, theirs == 0)
    nearly = run(optax.chain(add_l1(0.3), optax.sgd(eta)), loss, start, 500)
    assert not (nearly == 0).any()  # it jumps across zero
    np.testing.assert_allclose(nearly, theirs, atol=2 * eta * 0.3)


def test_after_adam_the_threshold_is_not_rescaled():
    tx = optax.chain(optax.adam(0.1), proximal_l1(0.1, 5.0))
    moved = step(optax.adam(0.1))
    close(step(tx), jax.tree.map(lambda z: jnp.sign(z) * jnp.maximum(abs(z) - 0.5, 0), moved))


def test_what_is_below_the_threshold_is_zero_to_the_bit():
    ours = step(optax.chain(optax.sgd(0.1), proximal_l1(0.1, 100.0)))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("build", [add_l1, lambda lam: proximal_l1(0.5, lam)], ids=["add", "prox"])
def test_strength_may_be_a_schedule(build):
    tx = build(lambda count: jnp.where(count < 1, 2.0, 0.0))
    state = tx.init(THETA)
    first, state = tx.update(GRADS, state, THETA)
    second, state = tx.update(GRADS, state, THETA)
    constant = build(2.0)
    close(first, constant.update(GRADS, constant.init(THETA), THETA)[0], rtol=0, atol=0)
    close(second, GRADS, rtol=0, atol=0)
    assert int(state.count) == 2


def test_strengths_can_be_swept_in_one_program():
    strengths = jnp.array([0.0, 0.5, 2.0])
    together = jax.vmap(lambda s: step(optax.chain(add_l1(s), optax.sgd(0.1))))(strengths)
    for i, s in enumerate(strengths):
        alone = step(optax.chain(add_l1(float(s)), optax.sgd(0.1)))
        close(jax.tree.map(lambda leaf: leaf[i], together), alone)  # noqa: B023


def test_some_leaves_alone_are_pulled_through_optax_masked():
    only_w = {"w": True, "b": False}
    for tx in (add_l1(2.0), proximal_l1(0.5, 2.0)):
        full, _ = tx.update(GRADS, tx.init(THETA), THETA)
        some = optax.masked(tx, only_w)
        part, _ = some.update(GRADS, some.init(THETA), THETA)
        close(part, {"w": full["w"], "b": GRADS["b"]}, rtol=0, atol=0)


def test_half_precision_stays_half_precision():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), THETA)
    for tx in (add_l1(0.1), proximal_l1(0.1, 0.1)):
        updates, _ = tx.update(half, tx.init(half), half)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add_l1(-1.0), "add_l1: strength must be a finite number >= 0, got -1.0"),
        (lambda: add_l1(float("nan")), "add_l1: strength must be a finite number >= 0, got nan"),
        (lambda: proximal_l1(-0.1, 1.0), "proximal_l1: learning_rate must be .* >= 0, got -0.1"),
        (lambda: proximal_l1(0.1, -1.0), "proximal_l1: strength must be .* >= 0, got -1.0"),
        (
            lambda: add_l1(1.0).update(GRADS, add_l1(1.0).init(THETA)),
            "add_l1: update needs the params",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
