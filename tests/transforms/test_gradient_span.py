"""Projection off two gradients: against the dense projection, in every degenerate position."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunlearn.transforms import gradient_span, project_out_gradients

RNG = np.random.default_rng(1)
project_off = jax.jit(gradient_span.project_off)


def tree(dtype=jnp.float32, scale=1.0):
    return {
        "a": jnp.asarray(scale * RNG.standard_normal((3, 2)), dtype),
        "b": (jnp.asarray(scale * RNG.standard_normal(4), dtype),),
    }


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def cosine(x, y):
    return abs(flat(x) @ flat(y)) / (np.linalg.norm(flat(x)) * np.linalg.norm(flat(y)))


def scaled(tree, c):
    return jax.tree.map(lambda x: c * x, tree)


def test_it_is_the_dense_projection(x64):
    v, q, r = (tree(jnp.float64) for _ in range(3))
    basis = np.stack([flat(q), flat(r)], 1)
    expected = flat(v) - basis @ np.linalg.lstsq(basis, flat(v), rcond=None)[0]
    np.testing.assert_allclose(flat(project_off(v, q, r, ridge=1e-14)), expected, atol=1e-12)


def test_one_pass_is_the_two_by_two_system_with_its_ridge(x64):
    """(G + e I) a = b for gradients of length 1, solved twice over."""
    v, q, r = (tree(jnp.float64) for _ in range(3))
    units = np.stack([flat(x) / np.linalg.norm(flat(x)) for x in (q, r)])
    expected = flat(v)
    for _ in range(2):
        a = np.linalg.solve(units @ units.T + 0.1 * np.eye(2), units @ expected)
        expected = expected - a @ units
    np.testing.assert_allclose(flat(project_off(v, q, r, ridge=0.1)), expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
@pytest.mark.parametrize("angle", [1.0, 1e-2, 1e-5, 0.0], ids=["wide", "narrow", "lost", "none"])
def test_what_is_left_is_orthogonal_to_both(angle, scale):
    """float32, gradients of any length and at any angle: |p.q| <= 1e-5 |p| |q|."""
    v, q, w = tree(), tree(), tree()
    r = jax.tree.map(lambda a, b: scale * (a + angle * b), q, w)
    p = project_off(v, q, r)
    assert cosine(p, q) < 1e-5 and cosine(p, r) < 1e-5
    assert cosine(v, q) > 1e-2  # the test can fail
    if angle != 1e-5:  # where the ridge decides, a third pass takes a little more
        np.testing.assert_allclose(flat(project_off(p, q, r)), flat(p), atol=1e-5)


def test_opposite_gradients_are_one_line():
    v, q = tree(), tree()
    p, one = project_off(v, q, scaled(q, -2.0)), flat(q) / np.linalg.norm(flat(q))
    np.testing.assert_allclose(flat(p), flat(v) - (flat(v) @ one) * one, atol=1e-6)


def test_a_velocity_in_the_span_is_taken_out():
    q, r = tree(), tree()
    v = jax.tree.map(lambda a, b: 3 * a - 2 * b, q, r)
    assert np.linalg.norm(flat(project_off(v, q, r))) < 1e-5 * np.linalg.norm(flat(v))


def test_equal_gradients_and_vanished_ones_project_along_one_line():
    v, q = tree(), tree()
    one = flat(q) / np.linalg.norm(flat(q))
    expected = flat(v) - (flat(v) @ one) * one
    zero = scaled(q, 0.0)
    for pair in ((q, q), (q, zero), (zero, q)):
        np.testing.assert_allclose(flat(project_off(v, *pair)), expected, atol=1e-6)
    np.testing.assert_array_equal(flat(project_off(v, zero, zero)), flat(v))


# The transformation


def run(tx, grads, basis, params=None):
    params = tree() if params is None else params
    update = jax.jit(lambda g, state, q: tx.update(g, state, params, basis=q))
    state, steps = tx.init(params), []
    for g, q in zip(grads, basis, strict=True):
        u, state = update(g, state, q)
        steps.append(u)
    return steps, state


GRADS = [tree() for _ in range(3)]
BASIS = [(tree(), tree()) for _ in range(3)]


def test_the_stored_velocity_is_the_projected_one():
    """v <- beta p + g; a trace before the projection remembers what was taken out."""
    steps, state = run(project_out_gradients(0.9), GRADS, BASIS)
    p = scaled(GRADS[0], 0.0)
    for g, pair, u in zip(GRADS, BASIS, steps, strict=True):
        p = project_off(jax.tree.map(lambda a, b: 0.9 * a + b, p, g), *pair)
        np.testing.assert_allclose(flat(u), flat(p), atol=1e-5)
        assert max(cosine(u, q) for q in pair) < 1e-5
    np.testing.assert_array_equal(flat(state.velocity), flat(steps[-1]))
    chained, _ = run(optax.chain(optax.trace(0.9), project_out_gradients(0.0)), GRADS, BASIS)
    assert abs(flat(chained[-1]) - flat(steps[-1])).max() > 1e-2


def test_without_momentum_it_is_the_projected_gradient():
    steps, _ = run(project_out_gradients(0.0), GRADS, BASIS)
    np.testing.assert_allclose(flat(steps[2]), flat(project_off(GRADS[2], *BASIS[2])), atol=1e-6)


def test_it_must_be_the_last_linear_map():
    """Behind it a learning rate keeps the law; Adam behind it breaks the law, Adam before does
    not."""
    rate = optax.scale_by_learning_rate(0.1)
    project = project_out_gradients(0.0)
    law = {}
    for name, tx in {
        "rate": optax.chain(project, rate),
        "adam before": optax.chain(optax.scale_by_adam(), project, rate),
        "adam behind": optax.chain(project, optax.scale_by_adam(), rate),
    }.items():
        steps, _ = run(tx, GRADS, BASIS)
        law[name] = max(cosine(steps[-1], q) for q in BASIS[-1])
    assert law["rate"] < 1e-5 and law["adam before"] < 1e-5 and law["adam behind"] > 1e-2


def test_vanished_gradients_leave_plain_momentum():
    zero = scaled(GRADS[0], 0.0)
    steps, _ = run(project_out_gradients(0.9), GRADS, [(zero, zero)] * 3)
    tx = optax.trace(0.9)
    state = tx.init(GRADS[0])
    for g, u in zip(GRADS, steps, strict=True):
        expected, state = tx.update(g, state)
        np.testing.assert_allclose(flat(u), flat(expected), rtol=1e-6)


def test_half_precision_leaves_keep_their_dtype_and_a_single_precision_velocity():
    low = tree(jnp.bfloat16)
    tx = project_out_gradients(0.9)
    u, state = tx.update(low, tx.init(low), basis=BASIS[0])
    assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state.velocity)} == {jnp.dtype(jnp.float32)}
    assert max(cosine(state.velocity, q) for q in BASIS[0]) < 1e-5


def test_a_mask_of_optax_hides_leaves_of_the_basis_too():
    mask = {"a": True, "b": False}
    tx, whole = optax.masked(project_out_gradients(0.0), mask), GRADS[0]
    u, _ = tx.update(whole, tx.init(whole), whole, basis=BASIS[0])
    np.testing.assert_array_equal(u["b"][0], whole["b"][0])
    expected = project_off(whole["a"], BASIS[0][0]["a"], BASIS[0][1]["a"])
    np.testing.assert_allclose(u["a"], expected, atol=1e-6)


def test_a_basis_that_does_not_fit_is_refused():
    tx = project_out_gradients()
    state = tx.init(GRADS[0])
    for wrong in (None, GRADS[0], (GRADS[0],)):
        with pytest.raises(ValueError, match=r"needs basis=\(q_f, q_r\), two gradients"):
            tx.update(GRADS[0], state, basis=wrong)
    other = GRADS[0] | {"a": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"`basis\[1\]` and params differ at \['a'\]: shapes \(2"):
        tx.update(GRADS[0], state, basis=(GRADS[0], other))
    with pytest.raises(ValueError, match=r"`basis\[0\]` and params are different trees"):
        tx.update(GRADS[0], state, basis=({"a": jnp.ones(2)}, GRADS[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"decay": 1.0}, "decay must be .* < 1, got 1.0"), ({"ridge": 0.0}, "ridge must be .* > 0")],
)
def test_a_constant_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        project_out_gradients(**options)
