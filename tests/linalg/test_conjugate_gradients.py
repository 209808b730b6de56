"""Conjugate gradients: the dense solution by another road, and every way to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.linalg import Solved, conjugate_gradients

RNG = np.random.default_rng(0)


def matrix(*eigenvalues):
    q = np.linalg.qr(RNG.standard_normal(2 * (len(eigenvalues),)))[0]
    return jnp.asarray(q * np.asarray(eigenvalues, float) @ q.T)


def product(a):
    return lambda v: a @ v


def test_the_solution_is_that_of_a_dense_solve(x64):
    a, b = matrix(0.1, 1, 2, 5, 9), jnp.arange(5.0)
    out = conjugate_gradients(product(a), b, tolerance=1e-12)
    np.testing.assert_allclose(out.x, np.linalg.solve(a, b), rtol=1e-9)
    assert out.status == Solved.CONVERGED and out.iterations <= 7


def test_as_many_iterations_as_distinct_eigenvalues_suffice(x64):
    a, b = matrix(2, 2, 2, 7, 7), jnp.ones(5)
    out = conjugate_gradients(product(a), b, tolerance=1e-10, iterations=2)
    assert out.status == Solved.CONVERGED and out.iterations == 2
    short = conjugate_gradients(product(a), b, tolerance=1e-10, iterations=1)
    assert short.status == Solved.EXHAUSTED


def test_the_residual_is_that_of_the_x_returned(x64):
    a, b = matrix(0.01, 1, 2, 5, 9), jnp.arange(5.0)
    for iterations in (1, 2, 3):
        out = conjugate_gradients(product(a), b, iterations=iterations, tolerance=1e-12)
        true = np.linalg.norm(b - a @ out.x) / np.linalg.norm(b)
        np.testing.assert_allclose(out.residual, true, rtol=1e-10)
        assert out.status == Solved.EXHAUSTED and out.iterations == iterations


def test_a_tree_is_one_vector(x64):
    a, b = matrix(1, 2, 5, 9), jnp.arange(4.0)

    def over_a_tree(v):
        out = a @ jnp.concatenate([v["one"], v["two"][0]])
        return {"one": out[:1], "two": (out[1:],)}

    out = conjugate_gradients(over_a_tree, {"one": b[:1], "two": (b[1:],)}, tolerance=1e-12)
    np.testing.assert_allclose(
        np.concatenate([out.x["one"], out.x["two"][0]]), np.linalg.solve(a, b), rtol=1e-9
    )


def test_nothing_asked_is_nothing_answered():
    out = conjugate_gradients(product(jnp.eye(3)), jnp.zeros(3))
    assert out.status == Solved.CONVERGED and out.iterations == 0 and out.residual == 0
    np.testing.assert_array_equal(out.x, 0)


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_a_direction_without_curvature_is_indefinite_and_x_stays_finite(lowest):
    a = jnp.diag(jnp.array([1.0, lowest]))
    out = conjugate_gradients(product(a), jnp.array([0.0, 1.0]))
    assert out.status == Solved.INDEFINITE and out.residual == 1
    np.testing.assert_array_equal(out.x, 0)


def test_an_indefinite_matrix_is_found_after_some_good_directions_too(x64):
    a, b = jnp.diag(jnp.array([1.0, 2.0, -0.5])), jnp.array([1.0, 1.0, 0.1])
    out = conjugate_gradients(product(a), b)
    assert out.status == Solved.INDEFINITE and out.iterations > 1
    assert np.isfinite(out.x).all() and np.any(out.x)


@pytest.mark.parametrize("where", ["matrix", "vector"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_a_status_and_x_stays_finite(where, bad):
    a, b = jnp.eye(2), jnp.ones(2)
    a, b = (a.at[0, 0].set(bad), b) if where == "matrix" else (a, b.at[0].set(bad))
    out = conjugate_gradients(product(a), b)
    assert out.status == Solved.NONFINITE
    assert np.isfinite(out.x).all()


def test_a_residual_that_rounding_keeps_up_is_stalled_and_not_converged():
    """Condition 1e8 in float32: the recursion falls far below what x reaches."""
    a = jnp.asarray(matrix(1e-6, 1e-3, 1, 100), jnp.float32)
    out = conjugate_gradients(product(a), jnp.ones(4), tolerance=1e-7, iterations=1000)
    assert out.status == Solved.STALLED and out.residual > 1e-7


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_size_of_b_does_not_matter(scale):
    a, b = jnp.diag(jnp.array([1.0, 3.0])), jnp.array([1.0, 2.0])
    out = conjugate_gradients(product(a), scale * b)
    np.testing.assert_allclose(out.x / scale, [1, 2 / 3], rtol=1e-5)
    assert out.status == Solved.CONVERGED


def test_the_host_loop_is_the_same_loop_and_the_solver_can_be_vmapped():
    a, b = jnp.asarray(matrix(1, 2, 5, 9), jnp.float32), jnp.arange(4.0)
    device = conjugate_gradients(product(a), b)

    def untraceable(v):
        return jnp.asarray(np.asarray(a) @ np.asarray(v))

    host = conjugate_gradients(untraceable, b, on_host=True)
    np.testing.assert_allclose(host.x, device.x, rtol=1e-5)
    assert host.iterations == device.iterations
    with pytest.raises(jax.errors.TracerArrayConversionError):
        conjugate_gradients(untraceable, b)
    many = jax.jit(jax.vmap(lambda b: conjugate_gradients(product(a), b)))(jnp.stack([b, 0 * b]))
    np.testing.assert_allclose(many.x[0], device.x, rtol=1e-4)
    assert list(many.status) == [Solved.CONVERGED] * 2 and many.iterations[1] == 0


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"iterations": 0}])
def test_a_limit_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="expected tolerance > 0 and iterations >= 1, got"):
        conjugate_gradients(product(jnp.eye(1)), jnp.ones(1), **options)


def test_a_preconditioner_changes_the_road_and_not_the_end(x64):
    """Badly scaled unknowns: their diagonal makes of 8 eigenvalues nearly one."""
    scales = 10.0 ** jnp.arange(-3, 5)
    a, b = scales[:, None] * (jnp.eye(8) + 0.01) * scales[None], jnp.arange(1.0, 9)
    plain = conjugate_gradients(product(a), b, tolerance=1e-9, iterations=8)
    better = conjugate_gradients(
        product(a), b, tolerance=1e-9, iterations=8, precondition=lambda v: v / jnp.diag(a)
    )
    assert plain.status == Solved.EXHAUSTED and better.status == Solved.CONVERGED
    assert better.iterations <= 3
    np.testing.assert_allclose(better.x, np.linalg.solve(a, b), rtol=1e-6)
    true = np.linalg.norm(b - a @ better.x) / np.linalg.norm(b)
    np.testing.assert_allclose(better.residual, true, rtol=1e-6)


def test_the_inverse_as_the_preconditioner_needs_one_iteration(x64):
    a, b = matrix(0.01, 1, 2, 5, 9), {"x": jnp.arange(5.0)}
    inverse = jnp.linalg.inv(a)
    out = conjugate_gradients(
        lambda v: {"x": a @ v["x"]},
        b,
        tolerance=1e-9,
        precondition=lambda v: {"x": inverse @ v["x"]},
    )
    assert out.iterations == 1 and out.status == Solved.CONVERGED


def test_the_tolerance_may_be_traced_and_then_decides_as_it_would_outside(x64):
    a, b = matrix(0.1, 1, 2, 5, 9), jnp.arange(5.0)
    solve = jax.jit(lambda level: conjugate_gradients(product(a), b, tolerance=level))
    for level in (0.9, 1e-10):
        inside, outside = solve(level), conjugate_gradients(product(a), b, tolerance=level)
        assert inside.iterations == outside.iterations and inside.residual <= level
    assert solve(0.9).iterations < solve(1e-10).iterations
