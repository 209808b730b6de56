"""A linear autoencoder: its closed form by definition, and every deletion against a refit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import ratings
from jaxunlearn.kernels.slots import IllConditionedError, Slot
from jaxunlearn.linalg import kept_inverse
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact import autoencoder
from jaxunlearn.methods.exact.autoencoder import ease
from jaxunlearn.methods.exact.row_prints import row_prints

USERS, ITEMS, LAMBDA = 40, 12, 0.7


def matrix(seed=0, users=USERS, items=ITEMS):
    """Half 0, otherwise 1 to 5, with one empty row and one empty column."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (users, items)) * (rng.random((users, items)) < 0.5)
    x[3], x[:, 5] = 0, 0
    return x.astype(np.float64)


X = matrix()
EVERYBODY = np.arange(USERS)


@functools.cache
def learner(dtype="float64"):
    """One for all tests, so that each request is compiled once."""
    return ease(users=USERS, items=ITEMS, regularisation=LAMBDA, dtype=dtype)


def learnt(dtype="float64"):
    return learner(dtype).learn(learner(dtype).init(), EVERYBODY, X)


def by_definition(x):
    """Each column of B is the ridge regression of that item on all others: no inverse of X^T X."""
    b = np.zeros((x.shape[1],) * 2)
    for j in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), j)
        a = np.concatenate([x[:, others], np.sqrt(LAMBDA) * np.eye(len(others))])
        target = np.concatenate([x[:, j], np.zeros(len(others))])
        b[others, j] = np.linalg.lstsq(a, target, rcond=None)[0]
    return b


def assert_is_refit(state, x, atol=1e-10):
    np.testing.assert_allclose(learner().weights(state), by_definition(x), atol=atol, rtol=0)
    np.testing.assert_allclose(state.kept.gram, x.T @ x, atol=atol)
    assert int(state.kept.status) == Solved.CONVERGED and float(state.kept.residual) < 1e-11


# --- exactness ------------------------------------------------------------------------------------


def test_every_column_is_ridge_regression_without_its_own_item(x64):
    assert_is_refit(learnt(), X)
    np.testing.assert_array_equal(np.diag(learner().weights(learnt())), 0)


@pytest.mark.parametrize("gone", [[7], [7, 20], range(0, 33), [3]])
def test_forgetting_people_is_the_refit_without_them(x64, gone):
    gone = list(gone)
    state = learner().forget(learnt(), gone, X[gone])
    assert_is_refit(state, np.delete(X, gone, axis=0))
    if gone != [3]:  # the empty row, that nobody misses
        assert np.abs(learner().weights(state) - learner().weights(learnt())).max() > 1e-4


def test_people_who_come_one_by_one_are_people_who_come_together(x64):
    state = learner().init()
    for user in EVERYBODY:
        state = learner().learn(state, [user], X[user : user + 1])
    assert_is_refit(state, X)
    assert state.users.tolist() == [Slot.LEARNT] * USERS


@pytest.mark.parametrize("who", [[4], [4, 9, 3]])
def test_changed_entries_are_the_refit_with_the_new_rows(x64, who):
    new = X[who].copy()
    new[:, :3] = np.where(new[:, :3] == 0, 5, 0)
    state = learner().change(learnt(), who, X[who], new)
    after = X.copy()
    after[who] = new
    assert_is_refit(state, after)
    rest = np.delete(after, who[0], axis=0)
    assert_is_refit(learner().forget(state, who[:1], new[:1]), rest)


@pytest.mark.parametrize("gone", [[2], [2, 9, 5, 0]])
def test_forgetting_items_is_the_refit_without_their_columns(x64, gone):
    state = learner().forget_items(learnt(), gone, X)
    rest = np.delete(np.arange(ITEMS), gone)
    b = np.asarray(learner().weights(state))
    np.testing.assert_allclose(b[np.ix_(rest, rest)], by_definition(X[:, rest]), atol=1e-10)
    np.testing.assert_array_equal(b[gone], 0)
    np.testing.assert_array_equal(b[:, gone], 0)
    assert int(state.kept.renewals) == int(learnt().kept.renewals)  # right at once, not cured
    # and life goes on: a person is forgotten by the row with or without what was deleted
    blank = np.where(np.isin(np.arange(ITEMS), gone), 0, X)
    for given in (X, blank):
        later = learner().forget(state, [7], given[7:8])
        assert_is_refit(later, np.delete(blank, 7, axis=0))


def test_learning_and_forgetting_goes_back(x64):
    half = learner().learn(learner().init(), EVERYBODY[:38], X[:38])
    whole = learner().learn(half, EVERYBODY[38:], X[38:])
    back = learner().forget(whole, EVERYBODY[38:], X[38:])
    for a, b in zip(back.kept[:2], half.kept[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    again = learner().learn(back, [39], X[39:])  # a forgotten person may come back
    assert_is_refit(again, X[[*range(38), 39]])


def test_when_everybody_is_forgotten_nothing_is_left(x64):
    state = learner().forget(learnt(), EVERYBODY, X)
    np.testing.assert_array_equal(state.kept.gram, 0)
    np.testing.assert_allclose(state.kept.inverse, np.eye(ITEMS) / LAMBDA, atol=1e-12)
    np.testing.assert_array_equal(state.prints, 0)
    assert_is_refit(state, np.zeros((1, ITEMS)))


def test_single_precision_is_exact_to_its_own_tolerance():
    state = learner("float32").forget(learnt("float32"), [7, 20], X[[7, 20]])
    assert state.kept.inverse.dtype == jnp.float32
    expected = by_definition(np.delete(X, [7, 20], axis=0))
    np.testing.assert_allclose(learner("float32").weights(state), expected, atol=1e-4, rtol=0)
    assert float(state.kept.residual) < 1e-4


def adversary(state, left, x):
    """Whoever has the largest share of what is known: the costliest to take out."""
    shares = np.einsum("ui,ij,uj->u", x[left], np.asarray(state.kept.inverse), x[left])
    return left[int(np.argmax(shares))]


def test_a_thousand_adversarial_deletions_keep_memory_bounded_and_the_model_exact(x64):
    """A person of huge ratings comes and goes each time; now and then one leaves for good."""
    x, state, left = matrix(seed=1), learner().init(), list(EVERYBODY)
    state = learner().learn(state, EVERYBODY, x)
    shapes = jax.tree.map(jnp.shape, state)
    rng, worst = np.random.default_rng(0), 0.0
    for turn in range(500):
        user = adversary(state, left, x) if turn % 50 == 0 else left[turn % len(left)]
        huge = np.round(10.0 ** rng.uniform(0, 4) * rng.random((1, ITEMS)))
        state = learner().change(state, [user], x[user : user + 1], huge)
        if turn % 50 == 0:
            state, left = learner().forget(state, [user], huge), [u for u in left if u != user]
        else:
            state = learner().change(state, [user], huge, x[user : user + 1])
        worst = max(worst, float(state.kept.residual))
    assert jax.tree.map(jnp.shape, state) == shapes
    assert worst < 1e-9
    np.testing.assert_allclose(learner().weights(state), by_definition(x[left]), atol=1e-10)


def test_a_drifted_inverse_is_made_anew_from_the_gram(x64):
    state = learnt()
    drifted = state._replace(kept=state.kept._replace(inverse=state.kept.inverse * (1 + 1e-6)))
    cured = learner().forget(drifted, [7], X[7:8])
    assert int(cured.kept.renewals) == int(state.kept.renewals) + 1
    assert_is_refit(cured, np.delete(X, 7, axis=0))
    kept = learner().forget(state, [7], X[7:8])
    assert int(kept.kept.renewals) == int(state.kept.renewals)
    lazy = ease(users=USERS, items=ITEMS, regularisation=LAMBDA, dtype="float64", tolerance=1e-2)
    assert float(lazy.forget(drifted, [7], X[7:8]).kept.residual) > 1e-8  # by its own choice


def test_an_inverse_as_good_as_a_fresh_one_is_not_made_anew(x64):
    """Two equal columns of large numbers: no inverse of this Gram has a smaller residual."""
    x = 100 * X
    x[:, 1] = x[:, 0]
    state = learner().learn(learner().init(), EVERYBODY, x)
    for user in (7, 20, 8):
        state = learner().forget(state, [user], x[user : user + 1])
        assert 1e-11 < float(state.kept.residual) < 1e-8
        assert int(state.kept.renewals) == 1


def test_what_cannot_be_taken_away_is_found_even_by_a_wrong_inverse(x64):
    """The factor of K fails, P is made from the Gram, and the Gram decides."""
    kept = learnt().kept
    bad = kept._replace(inverse=kept.inverse * 50)
    change = jax.jit(functools.partial(kept_inverse.change, sign=-1, regularisation=LAMBDA))
    good = change(bad, jnp.asarray(X[7:8].T))
    expected = np.linalg.inv(X.T @ X - np.outer(X[7], X[7]) + LAMBDA * np.eye(ITEMS))
    np.testing.assert_allclose(good.inverse, expected, atol=1e-11)
    out = change(kept, 100 * jnp.asarray(X[7:8].T))
    assert int(out.status) == Solved.INDEFINITE
    np.testing.assert_array_equal(out.gram, kept.gram)
    np.testing.assert_array_equal(out.inverse, kept.inverse)
    nan = change(kept, np.full((ITEMS, 1), np.nan))
    assert int(nan.status) == Solved.NONFINITE
    np.testing.assert_array_equal(nan.inverse, kept.inverse)


# --- predictions ----------------------------------------------------------------------------------


def test_scores_are_rows_times_b_and_recommendations_the_best_that_are_new(x64):
    state = learner().forget_items(learnt(), [2], X)
    b = np.asarray(learner().weights(state))
    scores = np.where(np.arange(ITEMS) == 2, 0, X[:6]) @ b
    np.testing.assert_allclose(learner().predict(state, X[:6]), scores, atol=1e-10)
    items, values = learner().recommend(state, X[:6], 4)
    for row in range(6):
        free = [j for j in np.argsort(-scores[row], kind="stable") if X[row, j] == 0 and j != 2]
        assert items[row].tolist() == free[:4]
        np.testing.assert_allclose(values[row], scores[row][free[:4]], atol=1e-10)
    items, values = learner().recommend(state, np.ones((1, ITEMS)), 2)
    assert (np.asarray(values) == -np.inf).all()


def test_ratings_in_the_place_of_rows_are_the_same(x64):
    user, item = np.nonzero(X)
    r = ratings(user, item, X[user, item], users=USERS, items=ITEMS)
    state = learner().learn(learner().init(), EVERYBODY, r)
    assert_is_refit(state, X)
    state = learner().forget_items(learner().forget(state, [20, 7], r), [2], r)
    blank = np.where(np.arange(ITEMS) == 2, 0, X)
    assert_is_refit(state, np.delete(blank, [20, 7], axis=0))
    np.testing.assert_allclose(learner().predict(state, r), learner().predict(state, X), atol=1e-12)
    np.testing.assert_array_equal(
        learner().recommend(state, r, 3)[0], learner().recommend(state, X, 3)[0]
    )


def test_many_people_are_learnt_in_chunks(x64, monkeypatch):
    monkeypatch.setattr(autoencoder, "_CHUNK", 16)  # of 64 places: two full, one of 7, one empty
    user, item = np.nonzero(X)
    r = ratings(user, item, X[user, item], users=USERS, items=ITEMS)
    state = learner().learn(learner().init(), EVERYBODY[:-1], r)
    assert int(state.kept.renewals) == 1
    assert state.users.tolist() == [Slot.LEARNT] * (USERS - 1) + [Slot.EMPTY]
    assert_is_refit(state, X[:-1])
    state = learner().forget(state, [20], r)
    assert_is_refit(state, np.delete(X[:-1], 20, axis=0))


# --- requests -------------------------------------------------------------------------------------


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_forgetting_twice_is_forgetting_once(x64):
    once = learner().forget(learnt(), [7], X[7:8])
    same(learner().forget(once, [7], X[7:8]).kept[:2], once.kept[:2])
    both = learner().forget(once, [7, 8], X[[7, 8]])
    assert_is_refit(both, np.delete(X, [7, 8], axis=0))
    repeated = learner().forget(learnt(), [8, 8], X[[8, 8]])
    assert_is_refit(repeated, np.delete(X, 8, axis=0))
    gone = learner().forget_items(once, [2], X)
    same(learner().forget_items(gone, [2], X).kept[:2], gone.kept[:2])


def test_a_request_for_nothing_changes_nothing(x64):
    state = learnt()
    same(learner().forget(state, [], np.zeros((0, ITEMS))), state)
    same(learner().learn(state, [], np.zeros((0, ITEMS))), state)
    same(learner().forget_items(state, [], X).kept[:2], state.kept[:2])


def test_a_row_that_was_not_learnt_is_refused_and_inside_jit_left_alone(x64):
    state, wrong = learnt(), X[7:8].copy()
    wrong[0, [0, 1]] = wrong[0, [1, 0]] + [0, 1]
    for request in (
        lambda: learner().forget(state, [7], wrong),
        lambda: learner().change(state, [7], wrong, X[7:8]),
        lambda: learner().forget_items(state, [2], np.concatenate([X[:7], wrong, X[8:]])),
    ):
        with pytest.raises(ValueError, match="row given for user 7 is not the one that was learnt"):
            request()
    traced = jax.jit(learner().forget)(state, jnp.array([7]), jnp.asarray(wrong))
    assert int(traced.kept.status) == Solved.FOREIGN
    same(traced.kept[:2], state.kept[:2])
    same(traced.users, state.users)
    changed = autoencoder._STEPS["change"](
        state, np.int32([7]), wrong, X[7:8], regularisation=LAMBDA, tolerance=None
    )
    assert int(changed.kept.status) == Solved.FOREIGN
    same((changed.kept[:2], changed.users, changed.prints), (state.kept[:2], *state[1:3]))
    items = jax.jit(learner().forget_items)(state, jnp.array([2]), jnp.asarray(X * 2))
    assert int(items.kept.status) == Solved.FOREIGN and bool(items.items.all())


def test_prints_tell_rows_apart_by_value_place_and_count():
    rows = np.zeros((7, 4), np.float32)
    rows[1, 0], rows[2, 1], rows[3, 0], rows[4, [0, 1]], rows[5, 0] = 1, 1, 2, 1, -1
    rows[6] = rows[4][::-1]
    of = jax.jit(row_prints)
    prints = np.asarray(of(rows))
    assert prints[0] == 0 and len(np.unique(prints)) == 7
    many = np.random.default_rng(0).integers(0, 3, (4000, 16)).astype(np.float32)
    assert len(np.unique(np.asarray(of(many)))) == len(np.unique(many, axis=0))


def test_many_learners_at_once_are_each_alone(x64):
    state = learnt()
    who = np.array([[7], [20]])
    both = jax.jit(jax.vmap(learner().forget, in_axes=(None, 0, 0)))(state, who, X[who])
    inverses, statuses = np.asarray(both.kept.inverse), np.asarray(both.kept.status)
    for i, user in enumerate((7, 20)):
        alone = learner().forget(state, [user], X[user : user + 1])
        np.testing.assert_allclose(inverses[i], alone.kept.inverse, atol=1e-13)
        assert int(statuses[i]) == Solved.CONVERGED


def test_requests_of_up_to_a_power_of_two_are_one_program(x64):
    state, program = learnt(), autoencoder._STEPS["forget"]
    counts = []
    for size in (33, 40, 1, 2):
        learner().forget(state, EVERYBODY[:size], X[:size])
        counts.append(program._cache_size())
    assert counts[0] == counts[1]
    other = ease(users=USERS, items=ITEMS, regularisation=2 * LAMBDA, dtype="float64")
    other.forget(other.learn(other.init(), EVERYBODY, X), [2], X[2:3])
    assert program._cache_size() == counts[-1]  # one for all learners of a shape


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (lambda s: learner().learn(s, [4], X[4:5]), ValueError, "row 4 is learnt already"),
        (lambda s: learner().forget(s, [40], X[:1]), ValueError, r"row 40 is unknown; .*\[0, 40\)"),
        (lambda s: learner().forget(s, [-1], X[:1]), ValueError, "row -1 is unknown"),
        (lambda s: learner().forget(s, [0.5], X[:1]), TypeError, "expected row ids, integers"),
        (lambda s: learner().forget(s, [1], X[:2]), ValueError, r"rows \(1, 12\).*got \(2, 12\)"),
        (lambda s: learner().forget(s, [1], X[1]), ValueError, r"got \(12,\)"),
        (lambda s: learner().forget(s, [1], X[1:2] * np.nan), ValueError, "NaN or Inf in row 0"),
        (lambda s: learner().forget_items(s, [12], X), ValueError, "row 12 is unknown"),
        (lambda s: learner().recommend(s, X, 13), ValueError, r"expected k in \[1, 12\], got 13"),
        (
            lambda s: learner().forget(s, [0], ratings([0], [0])),
            ValueError,
            "expected ratings of 40 users x 12 items, got 1 x 1",
        ),
    ],
)
def test_requests_that_make_no_sense_are_refused(x64, request_, error, message):
    with pytest.raises(error, match=message):
        request_(learnt())


def test_who_was_never_learnt_cannot_be_forgotten(x64):
    some = learner().learn(learner().init(), [0, 1], X[:2])
    for verb in (learner().forget, lambda *a: learner().change(*a, X[4:5])):
        with pytest.raises(ValueError, match="row 4 was never learnt"):
            verb(some, [4], X[4:5])
    with pytest.raises(ValueError, match="a row is given twice"):
        learner().learn(some, [4, 4], X[[4, 4]])


def test_a_gram_that_does_not_hold_what_is_taken_away_is_an_error(x64):
    state = learnt()
    broken = state._replace(kept=kept_inverse.empty(ITEMS, LAMBDA, jnp.float64))
    with pytest.raises(IllConditionedError, match="ease.forget: INDEFINITE.*larger regularisation"):
        learner().forget(broken, [7], X[7:8])


def test_a_system_beyond_the_dtype_is_an_error_and_not_a_wrong_answer():
    x = np.zeros_like(X)
    x[:2], x[2:4] = 1e6, np.eye(2, ITEMS)
    tiny = ease(users=USERS, items=ITEMS, regularisation=1e-6, dtype="float32")
    with pytest.raises(IllConditionedError, match="(STALLED|INDEFINITE).*in float32. Use float64"):
        tiny.learn(tiny.init(), EVERYBODY, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "expected users to be an integer >= 1, got 0"),
        ({"items": 2.5}, "expected items to be an integer >= 1, got 2.5"),
        ({"regularisation": 0.0}, "expected regularisation > 0 and finite, got 0.0.*singular"),
        ({"regularisation": float("nan")}, "expected regularisation > 0 and finite, got nan"),
        ({"tolerance": 0.0}, "expected tolerance > 0, got 0.0"),
    ],
)
def test_constants_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ease(**({"users": 3, "items": 3, "regularisation": 1.0} | options))
