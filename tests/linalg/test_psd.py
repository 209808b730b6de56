"""Cholesky solves: NumPy's answer, and every way to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.linalg import Solved, psd_solve


def test_the_solution_is_numpys(x64):
    root = np.random.default_rng(0).standard_normal((8, 5))
    a, b = jnp.asarray(root.T @ root), jnp.arange(5.0)
    out = psd_solve(a, b, tolerance=1e-12)
    np.testing.assert_allclose(out.x, np.linalg.solve(a, b), rtol=1e-10)
    assert out.status == Solved.CONVERGED and out.residual < 1e-13


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_a_matrix_without_a_factor_is_indefinite_and_x_is_zero(lowest):
    out = psd_solve(jnp.diag(jnp.array([1.0, lowest])), jnp.ones(2))
    assert out.status == Solved.INDEFINITE and out.residual == 1
    np.testing.assert_array_equal(out.x, 0)


def test_a_residual_above_the_tolerance_is_stalled():
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    a = jnp.asarray(q * np.logspace(-6, 0, 6) @ q.T, jnp.float32) + 1e-6 * jnp.eye(6)
    out = psd_solve(a, jnp.ones(6), tolerance=1e-9)
    assert out.status == Solved.STALLED and out.residual > 1e-9


@pytest.mark.parametrize("where", ["matrix", "vector"])
def test_numbers_that_are_none_are_a_status(where):
    a, b = jnp.eye(2), jnp.ones(2)
    a, b = (a.at[0, 0].set(np.nan), b) if where == "matrix" else (a, b.at[0].set(np.inf))
    out = psd_solve(a, b)
    assert out.status == Solved.NONFINITE and np.isfinite(out.x).all()


def test_many_systems_at_once_each_have_their_own_status():
    many = jnp.stack([jnp.eye(2), -jnp.eye(2)])
    out = jax.jit(jax.vmap(psd_solve, in_axes=(0, None)))(many, jnp.ones(2))
    assert list(out.status) == [Solved.CONVERGED, Solved.INDEFINITE]


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (jnp.eye(2), jnp.ones(3), {}, r"expected a matrix \(p, p\).*got \(2, 2\) and \(3,\)"),
        (jnp.ones((2, 3)), jnp.ones(2), {}, r"got \(2, 3\) and \(2,\)"),
        (jnp.eye(2), jnp.ones(2), {"tolerance": 0.0}, "expected tolerance > 0, got tolerance=0"),
    ],
)
def test_what_is_no_system_is_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        psd_solve(a, b, **options)
