"""The pull as optax transformations: the same as the penalty's gradient, decoupled where it stands
after the optimiser, stable where an explicit step is not, and composable."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn import penalties
from jaxunlearn.transforms import anchor, proximal_anchor

RNG = np.random.default_rng(0)


def tree(scale=1.0):
    shapes = {"body": (3, 2), "head": (2, 4)}
    return {k: jnp.asarray(scale * RNG.standard_normal(s), jnp.float32) for k, s in shapes.items()}


THETA, OLD, GRADS = tree(), tree(), tree()
FISHER = jax.tree.map(jnp.square, tree())


def step(tx, grads=GRADS, params=THETA, state=None):
    state = tx.init(params) if state is None else state
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates)


def run(tx, params, steps, loss=lambda p: jnp.zeros(())):
    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx.init(params)), None, length=steps)[0][0]


def assert_close(ours, theirs, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


@pytest.mark.parametrize("fisher", [None, FISHER], ids=["l2", "ewc"])
@pytest.mark.parametrize("inner", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
def test_before_the_optimiser_it_is_the_penalty_in_the_loss(inner, fisher):
    slope = jax.grad(lambda p: 0.7 * penalties.quadratic(p, OLD, fisher))(THETA)
    expected = step(inner, jax.tree.map(jnp.add, GRADS, slope))
    assert_close(step(optax.chain(anchor(OLD, fisher, 0.7), inner)), expected)


def test_around_zero_it_is_decoupled_weight_decay():
    zero = jax.tree.map(jnp.zeros_like, THETA)
    ours = optax.chain(
        optax.scale_by_adam(), anchor(zero, strength=0.3), optax.scale_by_learning_rate(0.1)
    )
    assert_close(step(ours), step(optax.adamw(0.1, weight_decay=0.3)))
    in_loss = step(optax.chain(anchor(zero, strength=0.3), optax.adam(0.1)))
    assert abs(in_loss["body"] - step(ours)["body"]).max() > 1e-3


def test_at_the_anchor_and_at_strength_zero_updates_are_unchanged():
    for tx in (anchor(THETA, FISHER, 5.0), anchor(OLD, FISHER, 0.0)):
        assert_close(tx.update(GRADS, tx.init(THETA), THETA)[0], GRADS, rtol=0, atol=0)
    for tx in (proximal_anchor(0.1, OLD, FISHER, 0.0), proximal_anchor(0.0, OLD, FISHER, jnp.inf)):
        assert_close(tx.update(GRADS, tx.init(THETA), THETA)[0], GRADS, rtol=0, atol=0)


def test_without_an_anchor_it_is_where_training_starts():
    assert_close(step(anchor(strength=3.0)), step(anchor(THETA, strength=3.0)))
    tx = anchor(strength=1.0)
    state = tx.init(OLD)
    expected = jax.tree.map(lambda g, p, o: g + p - o, GRADS, THETA, OLD)
    assert_close(tx.update(GRADS, state, THETA)[0], expected)


# The proximal step


def test_the_proximal_step_is_the_formula_and_the_minimiser():
    eta, mu = 0.5, 3.0
    tx = optax.chain(optax.sgd(eta), proximal_anchor(eta, OLD, FISHER, mu))
    ours = step(tx)

    def formula(p, g, f, o):
        return (p - eta * g + eta * mu * f * o) / (1 + eta * mu * f)

    assert_close(ours, jax.tree.map(formula, THETA, GRADS, FISHER, OLD))
    moved = jax.tree.map(lambda p, g: p - eta * g, THETA, GRADS)

    def objective(p):
        near = sum(jnp.square(a - b).sum() for a, b in zip(p.values(), moved.values(), strict=True))
        return 0.5 * near + eta * mu * penalties.quadratic(p, OLD, FISHER)

    assert_close(jax.grad(objective)(ours), jax.tree.map(jnp.zeros_like, OLD), atol=1e-5)


def test_an_explicit_step_diverges_beyond_two_and_the_proximal_one_never():
    """eta mu F = 1.9 shrinks, 2.1 grows, and 1e6 is no trouble to the proximal step."""
    fisher, start = jnp.array([1.0]), jnp.array([1.0])

    def left(tx):
        return float(abs(run(tx, start, 100)[0]))

    zero, sgd = jnp.zeros(1), optax.sgd(1.0)
    assert left(optax.chain(anchor(zero, fisher, 1.9), sgd)) < 1e-3
    assert left(optax.chain(anchor(zero, fisher, 2.1), sgd)) > 1e3
    for mu in (2.1, 1e6):
        assert left(optax.chain(sgd, proximal_anchor(1.0, zero, fisher, mu))) < 1e-6


def test_both_steps_have_the_same_fixed_point():
    """The minimiser of 1/2 |theta - t|^2 + mu/2 F (theta - theta_o)^2."""
    target, mu, eta = tree(), 2.0, 0.05

    def loss(p):
        return penalties.quadratic(p, target)

    best = jax.tree.map(lambda t, f, o: (t + mu * f * o) / (1 + mu * f), target, FISHER, OLD)
    for tx in (
        optax.chain(anchor(OLD, FISHER, mu), optax.sgd(eta)),
        optax.chain(optax.sgd(eta), proximal_anchor(eta, OLD, FISHER, mu)),
    ):
        assert_close(run(tx, THETA, 500, loss), best, rtol=1e-3, atol=1e-4)


def test_an_infinite_strength_is_the_anchor_exactly_where_importance_is_positive():
    fisher = {"body": jnp.ones((3, 2)), "head": jnp.zeros((2, 4))}
    ours = step(optax.chain(optax.sgd(0.1), proximal_anchor(0.1, OLD, fisher, jnp.inf)))
    assert_close(ours["body"], OLD["body"], rtol=1e-6)
    assert_close(ours["head"], step(optax.sgd(0.1))["head"])


# It composes


@pytest.mark.parametrize(
    "build", [lambda **k: anchor(OLD, FISHER, 2.0, **k),
              lambda **k: proximal_anchor(0.5, OLD, FISHER, 2.0, **k)], ids=["anchor", "proximal"]
)  # fmt: skip
def test_masks_of_leaves_of_entries_and_of_optax_agree(build):
    def updates(tx):
        return tx.update(GRADS, tx.init(THETA), THETA)[0]

    full, leaves = updates(build()), updates(build(mask={"body": True, "head": False}))
    np.testing.assert_array_equal(leaves["body"], full["body"])
    np.testing.assert_array_equal(leaves["head"], GRADS["head"])
    theirs = updates(optax.masked(build(), {"body": True, "head": False}))
    assert_close(leaves, theirs, rtol=0, atol=0)
    old = np.tile([True, True, False, False], (2, 1))
    entries = updates(build(mask={"body": False, "head": old}))
    np.testing.assert_array_equal(entries["head"][:, :2], full["head"][:, :2])
    np.testing.assert_array_equal(entries["head"][:, 2:], GRADS["head"][:, 2:])
    assert abs(full["head"] - GRADS["head"]).min() > 0


def test_strength_and_learning_rate_may_be_schedules():
    tx = anchor(OLD, strength=lambda count: jnp.where(count < 1, 2.0, 0.0))
    state = tx.init(THETA)
    first, state = tx.update(GRADS, state, THETA)
    second, state = tx.update(GRADS, state, THETA)
    assert_close(first, step(anchor(OLD, strength=2.0), params=THETA) | first, rtol=0, atol=0)
    assert abs(first["body"] - GRADS["body"]).min() > 0
    assert_close(second, GRADS, rtol=0, atol=0)
    assert int(state.count) == 2
    rates = proximal_anchor(lambda count: 0.5, OLD, strength=2.0)
    assert_close(step(rates), step(proximal_anchor(0.5, OLD, strength=2.0)))


def test_half_precision_stays_half_precision():
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), THETA)
    for tx in (anchor(OLD, FISHER), proximal_anchor(0.1, OLD, FISHER)):
        updates, _ = tx.update(half, tx.init(half), half)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_many_models_run_as_one_program():
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), THETA)
    ours = jax.vmap(lambda p: run(optax.chain(anchor(OLD), optax.sgd(0.1)), p, 3))(stacked)
    alone = run(optax.chain(anchor(OLD), optax.sgd(0.1)), THETA, 3)
    assert_close(jax.tree.map(lambda p: p[0], ours), alone)


# What bad input gets


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anchor(OLD, strength=-1.0), "anchor: strength must be >= 0.*got -1.0"),
        (lambda: proximal_anchor(-0.1, OLD), "proximal_anchor: learning_rate must be >= 0.*-0.1"),
        (lambda: anchor({"body": OLD["body"]}).init(THETA), "`params_0` and params are different"),
        (
            lambda: anchor(OLD | {"head": jnp.ones((2, 3))}).init(THETA),
            r"`params_0` and params differ at \['head'\]: shapes \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: proximal_anchor(0.1, OLD, FISHER | {"head": jnp.ones(4)}).init(THETA),
            r"proximal_anchor: `fisher` and params differ at \['head'\]",
        ),
        (
            lambda: anchor(OLD, jax.tree.map(jnp.negative, FISHER)).init(THETA),
            r"importances must be finite and >= 0.*fisher\['body'\]",
        ),
        (lambda: anchor(OLD).update(GRADS, anchor(OLD).init(THETA)), "update needs the params"),
        (lambda: anchor(OLD, mask={"tail": True}).init(THETA), "the mask is no prefix"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
