"""The inverse that follows its matrix: every change against a dense solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.linalg import woodbury
from jaxunlearn.linalg.batching import one_by_one
from jaxunlearn.linalg.woodbury import Inverse, Status, apply, inverse

P = 6
rank_change = jax.jit(woodbury.rank_change, static_argnames=("sign", "epsilon"))


def spd(kind="dense", seed=0):
    """H as `inverse` takes it, and as a full matrix."""
    a = np.random.default_rng(seed).standard_normal((P, 3 * P))
    full = a @ a.T + np.eye(P)
    return (
        (jnp.asarray(full), full) if kind == "dense" else (jnp.diag(full), np.diag(np.diag(full)))
    )


def columns(width, seed=1, scale=0.3):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal((P, width)))


def dense(inv):
    return np.asarray(apply(inv, jnp.eye(P)))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("kind", ["dense", "diagonal"])
@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_change_equals_the_inverse_of_the_changed_matrix(x64, kind, sign, width):
    """Also with more columns than variables."""
    given, full = spd(kind)
    u = columns(width)
    changed, k = rank_change(inverse(given), u, sign=sign)
    expected = np.linalg.inv(full + sign * np.asarray(u @ u.T))
    np.testing.assert_allclose(dense(changed), expected, rtol=1e-11, atol=1e-13)
    capacitance = np.eye(width) + sign * np.asarray(u.T) @ np.linalg.solve(full, np.asarray(u))
    np.testing.assert_allclose(k.smallest, np.linalg.eigvalsh(capacitance)[0], rtol=1e-10)
    assert int(k.status) == Status.SOLVED and int(k.clipped) == 0


def test_groups_and_requests_one_after_another_are_one_change(x64):
    given, full = spd()
    u, w = columns(6), columns(2, seed=2)
    once, _ = rank_change(inverse(given), jnp.concatenate([u, w], axis=1))
    groups, k = rank_change(inverse(given), jnp.stack([u[:, :2], u[:, 2:4], u[:, 4:]]))
    twice, _ = rank_change(groups, w)
    np.testing.assert_allclose(dense(twice), dense(once), rtol=1e-11, atol=1e-13)
    assert groups.factor.shape == (P, 6) and twice.factor.shape == (P, 8)
    # the smallest over all groups, each with respect to what the ones before it have left
    left = full - np.asarray(u[:, :4] @ u[:, :4].T)
    last = np.eye(2) - np.asarray(u[:, 4:].T) @ np.linalg.solve(left, np.asarray(u[:, 4:]))
    assert float(k.smallest) <= np.linalg.eigvalsh(last)[0] + 1e-12


@pytest.mark.parametrize("first", [-1, 1])
def test_what_was_removed_can_be_added_again(x64, first):
    inv = inverse(spd()[0])
    there, _ = rank_change(inv, columns(4), sign=first)
    back, _ = rank_change(there, columns(4), sign=-first)
    np.testing.assert_allclose(dense(back), dense(inv), rtol=1e-11, atol=1e-13)
    assert np.abs(dense(there) - dense(inv)).max() > 1e-3


def test_the_eigenvalues_of_k_lie_between_0_and_1_when_h_holds_what_is_removed(x64):
    u = columns(9, scale=5.0)
    _, k = rank_change(inverse(u @ u.T + 0.01 * jnp.eye(P)), u)
    assert 0 < float(k.smallest) < 0.01 and int(k.status) == Status.SOLVED


def test_removing_more_than_there_is_is_clipped_counted_and_stays_positive_definite(x64):
    given, full = spd("diagonal")
    u = jnp.zeros((P, 3)).at[0, 0].set(2 * np.sqrt(full[0, 0])).at[1, 1].set(0.1)
    changed, k = rank_change(inverse(given), u, epsilon=0.25)
    assert int(k.status) == Status.CLIPPED and int(k.clipped) == 1
    np.testing.assert_allclose(k.smallest, -3.0, rtol=1e-12)  # 1 - 2^2
    assert np.linalg.eigvalsh(dense(changed)).min() > 0
    # V K^-1 V^T with K = 1/4: (2 sqrt(h) / h)^2 / (1/4) = 16 / h on top of 1 / h
    np.testing.assert_allclose(dense(changed)[0, 0], 17 / full[0, 0], rtol=1e-12)
    np.testing.assert_allclose(dense(changed)[1, 1], 1 / (full[1, 1] - 0.01), rtol=1e-12)


def test_no_columns_and_columns_of_zeros_change_nothing(x64):
    inv = inverse(spd()[0])
    for u in (columns(0), jnp.zeros((P, 3)), jnp.zeros((0, P, 3))):
        changed, k = rank_change(inv, u)
        np.testing.assert_array_equal(dense(changed), dense(inv))
        assert float(k.smallest) == 1 and int(k.status) == Status.SOLVED


@pytest.mark.parametrize("where", ["columns", "diagonal", "indefinite"])
def test_what_is_not_finite_is_a_status_and_changes_nothing(where):
    given = jnp.ones(P).at[0].set(jnp.nan if where == "diagonal" else 1.0)
    given = -jnp.eye(P) if where == "indefinite" else given
    u = jnp.full((P, 2), jnp.nan if where == "columns" else 0.1)
    changed, k = rank_change(inverse(given), u)
    assert int(k.status) == Status.NOT_FINITE
    np.testing.assert_array_equal(changed.factor, 0)


def test_single_precision_keeps_its_digits():
    given, full = spd()
    u = columns(4)
    changed, _ = rank_change(inverse(given.astype(jnp.float32)), u)
    expected = np.linalg.inv(full - np.asarray(u @ u.T))
    np.testing.assert_allclose(dense(changed), expected, rtol=1e-4, atol=1e-5)


def test_many_at_once_are_each_alone():
    given = jnp.stack([spd(seed=s)[0] for s in range(3)]).astype(jnp.float32)
    both = jax.jit(jax.vmap(lambda h: apply(rank_change(inverse(h), columns(2))[0], columns(1))))
    for i, got in enumerate(both(given)):
        alone = apply(rank_change(inverse(given[i]), columns(2))[0], columns(1))
        np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-5)


def test_large_factorisations_run_on_several_devices_at_once():
    """Batched LAPACK calls of several CPU devices wait for each other for ever at this size."""
    from jaxunlearn.ensembles import ensemble

    def factor(scale):
        return inverse(scale * jnp.eye(400)).base[0, 0]

    run = jax.jit(ensemble(factor, how="shard", devices=jax.devices()[:2]))
    np.testing.assert_allclose(run(jnp.arange(1.0, 9.0)), np.sqrt(np.arange(1, 9)), rtol=1e-6)


def test_a_loop_of_one_is_a_loop_on_a_cpu():
    looped = jax.make_jaxpr(jax.vmap(one_by_one(jnp.linalg.cholesky)))(jnp.ones((3, 2, 2)))
    assert "scan" in str(looped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": jnp.ones((5, 2))}, r"expected columns \(6, m\) or \(k, 6, m\).*got \(5, 2\)"),
        ({"sign": 2}, r"sign must be -1 \(remove\) or \+1 \(add\), got 2"),
        ({"epsilon": 0.0}, r"epsilon must lie in \(0, 1\], got 0.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    arguments = {"columns": jnp.ones((P, 2))} | options
    with pytest.raises(ValueError, match=message):
        rank_change(inverse(jnp.ones(P)), **arguments)


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"a square matrix \(p, p\), got \(2, 3\)"):
        inverse(jnp.ones((2, 3)))


def test_the_inverse_is_a_pytree_of_three_arrays():
    assert len(jax.tree.leaves(Inverse(*[jnp.ones(1)] * 3))) == 3
