"""Inverses of many small matrices: those of LAPACK, whatever the size."""

import jax
import numpy as np
import pytest

from jaxunlearn.linalg.small_inverses import small_inverses


def matrices(n, seed=0, ridge=0.5):
    x = np.random.default_rng(seed).standard_normal((3, n, n + 3))
    return x @ x.transpose(0, 2, 1) / n + ridge * np.eye(n)[None]


@pytest.mark.parametrize("n", [1, 16, 17, 37])
def test_they_are_the_inverses_of_whole_matrices_on_both_sides_of_the_halving(x64, n):
    a = matrices(n)
    found = jax.jit(small_inverses)(a)
    np.testing.assert_allclose(found, np.linalg.inv(a), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found, np.swapaxes(found, 1, 2), atol=1e-12)


def test_a_matrix_that_is_not_definite_spoils_no_other(x64):
    a = matrices(20)
    spoilt = a.copy()
    spoilt[1] = 0
    found = jax.jit(small_inverses)(spoilt)
    np.testing.assert_allclose(found[0], np.linalg.inv(a[0]), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found[2], np.linalg.inv(a[2]), rtol=1e-9, atol=1e-10)
    assert not np.isfinite(found[1]).all()


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4)])
def test_what_is_no_batch_of_square_matrices_is_refused(shape):
    with pytest.raises(ValueError, match="expected matrices"):
        small_inverses(np.ones(shape))
