"""The inverse of a principal submatrix: every change against the inverse of what is left."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.linalg import principal

N = 7
invert, remove, add = map(jax.jit, (principal.invert, principal.remove, principal.add))
ALL = np.ones(N, bool)


def spd(dtype=float):
    a = np.random.default_rng(0).standard_normal((N, 2 * N))
    return jnp.asarray((a @ a.T).astype(dtype))


def dense(matrix, kept):
    out, at = np.zeros((N, N)), np.flatnonzero(kept)
    out[np.ix_(at, at)] = np.linalg.inv(np.asarray(matrix)[np.ix_(at, at)])
    return out


def without(*rows):
    return np.isin(np.arange(N), rows, invert=True)


def request(*rows):
    """Rows and one of padding."""
    return jnp.array([*rows, 0]), jnp.array([True] * len(rows) + [False])


def test_removing_and_adding_equal_the_inverse_of_what_is_left(x64):
    matrix = spd()
    whole, definite = invert(matrix, ALL)
    assert bool(definite)
    np.testing.assert_allclose(whole, dense(matrix, ALL), rtol=1e-10, atol=1e-13)
    fewer, _ = remove(whole, *request(5, 2))
    np.testing.assert_allclose(fewer, dense(matrix, without(2, 5)), rtol=1e-10, atol=1e-13)
    assert not np.asarray(fewer)[[2, 5]].any() and not np.asarray(fewer)[:, [2, 5]].any()
    np.testing.assert_allclose(fewer, invert(matrix, without(2, 5))[0], rtol=1e-10, atol=1e-13)
    back, definite, pivot = add(fewer, matrix, without(2, 5), *request(2, 5))
    np.testing.assert_allclose(back, whole, rtol=1e-10, atol=1e-13)
    assert bool(definite) and 0 < float(pivot) < 1


def test_a_solution_follows_without_the_inverse_being_changed(x64):
    matrix, b = spd(), jnp.asarray(np.random.default_rng(1).standard_normal((N, 2)))
    whole = invert(matrix, ALL)[0]
    rows, valid = request(5, 2)
    left, _ = jax.jit(principal.downdate)(whole[rows], whole @ b, rows, valid)
    np.testing.assert_allclose(left, dense(matrix, without(2, 5)) @ b, rtol=1e-10, atol=1e-12)


def test_padding_alone_changes_nothing(x64):
    whole = invert(spd(), ALL)[0]
    rows, none = jnp.array([0, 3, 0]), jnp.zeros(3, bool)
    np.testing.assert_array_equal(remove(whole, rows, none)[0], whole)
    same, _, pivot = add(whole, spd(), jnp.asarray(ALL), rows, none)
    np.testing.assert_array_equal(same, whole)
    assert float(pivot) == 1


def test_what_has_no_factor_says_so_and_stays_as_it_was(x64):
    zero, definite = invert(-spd(), ALL)
    assert not bool(definite) and not np.asarray(zero).any()
    bad = -dense(spd(), ALL)
    kept, definite = remove(jnp.asarray(bad), *request(5, 2))
    assert not bool(definite)
    np.testing.assert_array_equal(kept, bad)


def test_a_row_that_depends_on_the_others_shows_in_its_pivot(x64):
    a = np.random.default_rng(0).standard_normal((N, N))
    a[5] = a[0] + a[1]
    matrix = jnp.asarray(a @ a.T)
    fewer, _ = invert(matrix, without(5))
    _, _, pivot = add(fewer, matrix, without(5), *request(5))
    assert not float(pivot) > 1e-10
