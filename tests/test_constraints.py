"""The augmented Lagrangian finds constrained optima, and its dual variable is what theory says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.constraints import LagrangianState, augmented_lagrangian
from jaxunlearn.data import in_memory
from jaxunlearn.objectives import Objective, stateless
from jaxunlearn.training import Status, fit

KEY = jax.random.key(0)
A, B = np.array([1.0, 2.0, -1.0]), 3.0  # the constraint a.x = b
ROW = in_memory({"x": np.zeros((1, 1), np.float32)}, 1)


def half_square(p, batches, key):
    return 0.5 * jnp.sum(p**2)


def gap(p, batches, key, level=B):
    return jnp.dot(jnp.asarray(A, p.dtype), p) - level


def lagrangian(level=B, **options):
    return augmented_lagrangian(
        stateless(half_square), stateless(partial(gap, level=level)), 2.0, **options
    )


def solve(objective, steps=1500):
    start = jnp.zeros(3, jnp.result_type(float))
    return fit(objective, optax.sgd(0.05), start, ROW, key=KEY, steps=steps)


def test_an_equality_holds_at_the_end_and_its_multiplier_is_the_textbooks(x64):
    """min |x|^2 / 2 with a.x = b: x = a b / |a|^2, lambda = -b / |a|^2, from either side."""
    for level in (B, -B):
        out = solve(lagrangian(level))
        np.testing.assert_allclose(out.params, A * level / (A @ A), atol=1e-6)
        multiplier = out.state.objective.multiplier
        np.testing.assert_allclose(multiplier, -level / (A @ A), atol=1e-5)


def test_a_penalty_alone_misses_the_constraint(x64):
    """The mutant without dual steps: mu / 2 h^2 leaves h = -b / (1 + mu |a|^2)."""
    whole = lagrangian()

    def loss(p, batches, state, key):
        return whole.loss(p, batches, state, key)[0], state

    out = solve(whole._replace(loss=loss))
    np.testing.assert_allclose(A @ out.params - B, -B / (1 + 2.0 * (A @ A)), atol=1e-6)


def test_an_inequality_binds_where_it_must_and_lets_go_where_it_can(x64):
    """a.x <= b with b = 3 has room at x = 0; with b = -3 it is the equality."""
    free = solve(lagrangian(B, kind="inequality", multiplier=1.0))
    np.testing.assert_allclose(free.params, np.zeros(3), atol=1e-6)
    assert free.state.objective.multiplier == 0
    bound = solve(lagrangian(-B, kind="inequality"))
    np.testing.assert_allclose(bound.params, -A * B / (A @ A), atol=1e-6)
    np.testing.assert_allclose(bound.state.objective.multiplier, B / (A @ A), atol=1e-5)


@pytest.mark.parametrize("kind", ["equality", "inequality"])
def test_one_step_is_the_formula_with_h_before_the_step(kind, x64):
    """L = f + lambda h + mu/2 h^2; its gradient is grad f + (lambda + mu h) grad h, and lambda
    moves by mu h at the old parameters."""
    p = jnp.array([0.5, -1.0, 2.0])
    h, f = float(A @ np.asarray(p) - B), float(0.5 * jnp.sum(p**2))  # h = -6.5
    for multiplier in (20.0, 0.5):
        whole = lagrangian(kind=kind, multiplier=multiplier)
        value = lambda p: whole.loss(p, {}, whole.init(p), KEY)  # noqa: B023, E731
        (loss, state), slope = jax.value_and_grad(value, has_aux=True)(p)
        raised = multiplier + 2.0 * h
        penalty = multiplier * h + h**2
        if kind == "inequality":
            raised = max(raised, 0.0)
            penalty = (raised**2 - multiplier**2) / 4
        np.testing.assert_allclose(loss, f + penalty, rtol=1e-12)
        np.testing.assert_allclose(slope, np.asarray(p) + raised * A, rtol=1e-12)
        np.testing.assert_allclose(state.multiplier, raised, rtol=1e-6)


def test_the_multiplier_of_a_run_is_the_sum_of_h_before_each_step():
    seen = []

    def watched(p, batches, key):
        value = gap(p, batches, key)
        jax.debug.callback(lambda h: seen.append(float(h)), value)
        return value

    start, tx = jnp.zeros(3), optax.sgd(0.02)
    objective = augmented_lagrangian(stateless(half_square), stateless(watched), 2.0)
    out = fit(objective, tx, start, [{"x": np.zeros((1, 1), np.float32)}], key=KEY, steps=3)
    jax.effects_barrier()
    p, multiplier = np.zeros(3), 0.0
    for _ in range(3):
        h = A @ p - B
        p, multiplier = p - 0.02 * (p + (multiplier + 2.0 * h) * A), multiplier + 2.0 * h
    np.testing.assert_allclose(out.state.objective.multiplier, multiplier, rtol=1e-5)
    np.testing.assert_allclose(out.params, p, rtol=1e-5)
    assert len(seen) >= 3


def counting(value):
    def loss(p, batches, state, key):
        return value, state + jax.random.uniform(key, ())

    return Objective(
        lambda p: jnp.zeros(()), loss, lambda p, s: p + s, lambda p, b, s, k: {"extra": s}
    )


def test_both_parts_keep_a_state_and_a_key_of_their_own():
    whole = augmented_lagrangian(counting(1.0), counting(0.0))
    p = jnp.zeros(())
    _, state = whole.loss(p, {}, whole.init(p), KEY)
    assert isinstance(state, LagrangianState)
    assert 0 < state.objective != state.constraint > 0
    assert whole.outcome(p, state) == state.objective  # that of f
    assert whole.extras(p, {}, state, KEY) == {"extra": state.objective}
    assert lagrangian().extras is None


def test_a_constraint_that_is_not_finite_ends_a_run_before_the_step():
    objective = augmented_lagrangian(
        stateless(half_square), stateless(lambda p, b, k: jnp.sum(p) * jnp.inf)
    )
    out = fit(objective, optax.sgd(0.1), jnp.ones(3), ROW, key=KEY, steps=2)
    assert out.info.status == Status.DIVERGED
    np.testing.assert_array_equal(out.params, np.ones(3))
    assert out.state.objective.multiplier == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "hinge"}, "kind must be one of .*'equality', 'inequality'.*got 'hinge'"),
        ({"mu": 0.0}, "augmented_lagrangian: mu must be a finite number > 0, got 0"),
        ({"kind": "inequality", "multiplier": -1.0}, "multiplier must be .*>= 0, got -1"),
    ],
)
def test_a_constant_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        augmented_lagrangian(stateless(half_square), stateless(gap), **options)


def test_equal_parts_make_equal_objectives_and_a_traced_mu_passes():
    f, h = stateless(half_square), stateless(gap)
    assert augmented_lagrangian(f, h, 2.0).loss == augmented_lagrangian(f, h, 2.0).loss
    p = jnp.ones(3)

    def value(mu):
        whole = augmented_lagrangian(f, h, mu)
        return whole.loss(p, {}, whole.init(p), KEY)[0]

    swept = jax.vmap(value)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept, [float(value(1.0)), float(value(2.0))], rtol=1e-6)
