"""What to do with a system that is not solved: more damping, and how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.linalg import Solved, conjugate_gradients, psd_solve
from jaxunlearn.linalg.solution import damped_until_solved, unit

INDEFINITE = jnp.diag(jnp.array([1.0, -0.5]))
B = jnp.ones(2)


def dense(d):
    return psd_solve(INDEFINITE + d * jnp.eye(2), B)


@pytest.mark.parametrize("on_host", [False, True])
def test_damping_is_raised_by_ten_until_the_system_is_solved(on_host):
    out, d = damped_until_solved(dense, 0.0, 0.01, attempts=5, on_host=on_host)
    assert out.status == Solved.CONVERGED
    np.testing.assert_allclose(d, 1.0)  # 0.1 is not enough, 0.5 would just not be
    np.testing.assert_allclose(out.x, [1 / 2, 1 / 0.5], rtol=1e-5)


def test_a_solved_system_is_not_damped():
    out, d = damped_until_solved(lambda d: psd_solve((1 + d) * jnp.eye(2), B), 0.5, 1.0, attempts=3)
    assert d == 0.5 and out.status == Solved.CONVERGED
    np.testing.assert_allclose(out.x, 1 / 1.5, rtol=1e-6)


def test_damping_that_was_given_is_raised_and_not_lowered():
    _, d = damped_until_solved(dense, 0.2, 0.01, attempts=5)
    np.testing.assert_allclose(d, 2.0)


def test_the_last_try_is_returned_solved_or_not():
    out, d = damped_until_solved(dense, 0.0, 0.001, attempts=2)
    assert out.status == Solved.INDEFINITE
    np.testing.assert_allclose(d, 0.1, rtol=1e-6)


def test_no_attempt_is_no_retry():
    out, d = damped_until_solved(dense, 0.0, 1.0, attempts=0)
    assert out.status == Solved.INDEFINITE and d == 0


@pytest.mark.parametrize("status", [Solved.NONFINITE, Solved.FOREIGN])
def test_what_no_damping_repairs_is_not_retried(status):
    tries = []

    def solve(d):
        tries.append(float(d))
        return psd_solve(jnp.eye(2), B)._replace(status=jnp.int32(status))

    out, d = damped_until_solved(solve, 0.0, 1.0, attempts=5, on_host=True)
    assert out.status == status and tries == [0.0] and d == 0


def test_retries_can_be_vmapped_and_stay_apart():
    def one(lowest):
        a = jnp.stack([1.0, lowest])
        return damped_until_solved(
            lambda d: conjugate_gradients(lambda v: (a + d) * v, B), 0.0, 0.1, attempts=3
        )

    out, d = jax.jit(jax.vmap(one))(jnp.array([2.0, -3.0]))
    assert list(out.status) == [Solved.CONVERGED] * 2
    np.testing.assert_allclose(d, [0, 10])


def test_zero_has_no_size():
    scaled, scale = unit({"a": jnp.zeros(2)})
    assert scale == 1 and not np.any(scaled["a"])
