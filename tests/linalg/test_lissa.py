"""LiSSA: its fixed point by a dense solve, its range of convergence, and divergence seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.linalg import Solved, lissa

A = jnp.diag(jnp.array([1.0, 4.0, 10.0]))
B = jnp.array([1.0, -2.0, 3.0])


def product(v):
    return A @ v


@pytest.mark.parametrize("damping", [0.0, 2.0])
def test_the_fixed_point_is_the_damped_dense_solution(x64, damping):
    a = jnp.asarray(np.asarray(A, float))
    b = jnp.asarray(np.asarray(B, float))
    out = lissa(lambda v: a @ v, b, scale=8.0, damping=damping, tolerance=1e-12)
    expected = np.linalg.solve(a + damping * np.eye(3), b)
    np.testing.assert_allclose(out.x, expected, rtol=1e-10)
    assert out.status == Solved.CONVERGED
    assert not np.allclose(out.x, np.linalg.solve(a + (damping + 1) * np.eye(3), b), rtol=1e-3)


def test_it_is_the_published_recursion(x64):
    """u <- G + (1 - d) u - H u / s from u = G, answer u / s; d = damping / s."""
    a, g, s, d = np.diag([1.0, 4.0, 10.0]), np.array([1.0, -2.0, 3.0]), 20.0, 0.1
    u = g
    for _ in range(6):
        u = g + (1 - d) * u - a @ u / s
    out = lissa(lambda v: jnp.asarray(a) @ v, jnp.asarray(g), scale=s, damping=d * s,
                tolerance=1e-12, iterations=7)  # fmt: skip
    assert out.status == Solved.EXHAUSTED and out.iterations == 7
    np.testing.assert_allclose(out.x, u / s, rtol=1e-12)
    residual = np.linalg.norm(g - (a + d * s * np.eye(3)) @ (u / s)) / np.linalg.norm(g)
    np.testing.assert_allclose(out.residual, residual, rtol=1e-10)


@pytest.mark.parametrize(("scale", "ends"), [(5.2, Solved.CONVERGED), (4.8, Solved.DIVERGED)])
def test_it_converges_above_half_the_largest_eigenvalue_and_says_so_below(scale, ends):
    out = lissa(product, B, scale=scale, iterations=2000)
    assert out.status == ends and np.isfinite(out.x).all()


def test_damping_counts_as_part_of_the_largest_eigenvalue():
    assert lissa(product, B, scale=5.2, damping=1.0).status == Solved.DIVERGED


def test_divergence_ends_the_loop_at_once_and_keeps_what_was_before_it():
    """The growing part is small in b: it is seen as soon as it outgrows the shrinking rest."""
    out = lissa(product, jnp.array([1.0, 1.0, 1e-3]), scale=4.0, iterations=10_000)
    assert out.status == Solved.DIVERGED and out.iterations < 60
    assert np.abs(out.x).max() < 10


def test_a_negative_eigenvalue_diverges():
    out = lissa(lambda v: jnp.array([1.0, -1.0]) * v, jnp.ones(2), scale=2.0)
    assert out.status == Solved.DIVERGED


def test_nothing_asked_is_nothing_answered():
    out = lissa(product, jnp.zeros(3), scale=10.0)
    assert out.status == Solved.CONVERGED
    np.testing.assert_array_equal(out.x, 0)


@pytest.mark.parametrize("where", ["matrix", "vector"])
def test_numbers_that_are_none_are_a_status_and_x_stays_finite(where):
    a, b = (A.at[0, 0].set(np.nan), B) if where == "matrix" else (A, B.at[1].set(np.inf))
    out = lissa(lambda v: a @ v, b, scale=10.0)
    assert out.status == Solved.NONFINITE and np.isfinite(out.x).all()


def test_the_host_loop_is_the_same_loop_and_the_solver_can_be_jitted():
    host = lissa(lambda v: jnp.asarray(np.asarray(A) @ np.asarray(v)), B, scale=8.0, on_host=True)
    device = jax.jit(lambda b, s: lissa(product, b, scale=s))(B, 8.0)
    np.testing.assert_allclose(host.x, device.x, rtol=1e-4)
    assert host.iterations == device.iterations


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": 1.0, "damping": -1.0}])
def test_constants_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="lissa: expected scale > 0 and damping >= 0, got"):
        lissa(product, B, **options)
