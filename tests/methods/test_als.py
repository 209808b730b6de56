"""Alternating least squares: deletions that end where retraining ends, and everything said of them.

Deletions are held against a cold start on what is retained, computed by loops over dense matrices
(`als_cases`); predictions are compared, never factors, which may be rotated.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import checkpoint
from jaxunlearn.data import low_rank_ratings
from jaxunlearn.data.ratings import Ratings, ratings
from jaxunlearn.factorisation import alternating
from jaxunlearn.methods.exact.als import als
from tests.methods import als_cases as cases

R = cases.small()
every = pytest.mark.parametrize("name", cases.OBJECTIVES)
newton = pytest.mark.parametrize(
    "name", ["explicit", "biases", pytest.param("ials", marks=pytest.mark.slow)]
)
REQUESTS = {
    "entries": {"entries": [3, 17, 30]},
    "a user": {"users": [2]},
    "an item": {"items": [4]},
    "all at once": {"entries": [3, 5], "users": [1], "items": [0, 6]},
}


def rows_of(request):
    """The ratings that a request names, by hand."""
    chosen = np.isin(np.arange(len(R)), request.get("entries", []))
    chosen |= np.isin(R.user, request.get("users", []))
    return np.flatnonzero(chosen | np.isin(R.item, request.get("items", [])))


def objective(name, state, left):
    return cases.objective(cases.dense(name, left), np.asarray(state.user), np.asarray(state.item))


def programs():
    """How many there are of each kind."""
    kinds: Any = (
        alternating.sweep_rows,
        alternating._newton,
        alternating._blocks,
        alternating.measured,
    )
    return [kind._cache_size() for kind in kinds]


@functools.cache
def forgotten(name, request, mode="converged", accelerate=True):
    made, (state, _) = cases.learner(name), cases.fitted(name)
    how = {"mode": mode, "accelerate": accelerate}
    tolerance = {"tolerance": 1e-10 if accelerate else 1e-8}
    return made.forget(state, **REQUESTS[request], **how, **tolerance)


# ---------------------------------------------------------------------------------- fits, by a loop


@newton
def test_a_fit_with_newton_steps_ends_where_plain_sweeps_end(x64, name):
    made, (state, report) = cases.learner(name), cases.fitted(name)
    assert report.converged and report.guarantee == "exact(1e-11)" and report.newton_steps > 0
    np.testing.assert_allclose(cases.table(made, state), cases.retrained(name, R), atol=1e-8)
    d = cases.dense(name, R)
    found = [np.abs(g).max() for g in cases.half_gradient(d, state.user, state.item)]
    assert max(found) <= report.bound * 1.01
    np.testing.assert_allclose(made.gradient(state), max(found), atol=1e-12)
    np.testing.assert_allclose(made.objective(state), objective(name, state, R), rtol=1e-12)
    np.testing.assert_allclose(report.objective, made.objective(state), rtol=1e-12)
    largest = max(1, np.abs(state.user).max(), np.abs(state.item).max())
    np.testing.assert_allclose(report.bound, 1e-11 * largest, rtol=1e-12)


@every
def test_the_objective_never_rises_and_is_kept_up_without_being_measured(x64, name):
    made, state = cases.learner(name), cases.start(name)
    last = np.inf
    for _ in range(6):
        state = made.sweep(state)
        now = objective(name, state, R)
        np.testing.assert_allclose(state.objective, now, rtol=1e-10)
        assert now < last
        last = now


def test_a_fit_of_plain_sweeps_is_sweeps_one_after_another_and_claims_nothing(x64):
    made, state = cases.learner("explicit"), cases.start("explicit")
    after, report = made.fit(state, sweeps=2)
    cases.same_bits(after, made.sweep(made.sweep(state)))
    assert (report.mode, report.sweeps, report.newton_steps) == ("fit", 2, 0)
    assert report.gradient is None and report.guarantee == "empirical" and not report.converged
    np.testing.assert_allclose(report.objective_before, objective("explicit", state, R), rtol=1e-12)


def test_equal_keys_give_equal_bits_and_other_keys_other_factors(x64):
    made = cases.learner("explicit")
    one, same, other = (made.init(R, jax.random.key(k)) for k in (3, 3, 4))
    cases.same_bits(one, same)
    assert np.abs(one.user - other.user).max() > 0.01
    assert 0.07 < np.std(np.r_[one.user, one.item]) < 0.13


# ----------------------------------------------------------------------- deletions, by a retraining


@newton
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_converged_deletion_is_a_retraining_from_a_cold_start(x64, name, request_):
    made = cases.learner(name)
    state, report = forgotten(name, request_)
    left = R.without(rows_of(REQUESTS[request_]))
    expected = cases.retrained(name, left)
    assert np.abs(cases.table(made, cases.fitted(name)[0]) - expected).max() > 0.02
    np.testing.assert_allclose(cases.table(made, state), expected, atol=1e-7)
    assert report.converged and report.guarantee == "exact(1e-10)" and report.mode == "converged"
    np.testing.assert_allclose(report.objective, objective(name, state, left), rtol=1e-10)
    found = cases.half_gradient(cases.dense(name, left), state.user, state.item)
    assert max(np.abs(g).max() for g in found) <= report.bound * 1.01


def test_a_converged_deletion_from_implicit_feedback_by_sweeps_alone(x64):
    made, start = cases.learner("implicit"), cases.start("implicit")
    state, report = made.fit(start, sweeps=500, tolerance=1e-10)
    assert report.converged and report.newton_steps == 0
    state, report = made.forget(state, **REQUESTS["all at once"], tolerance=1e-10, accelerate=False)
    expected = cases.retrained("implicit", R.without(rows_of(REQUESTS["all at once"])))
    np.testing.assert_allclose(cases.table(made, state), expected, atol=1e-7)
    assert report.converged and report.newton_steps == 0 and report.guarantee == "exact(1e-10)"


def test_newton_steps_save_sweeps_and_end_at_the_same_place(x64):
    made = cases.learner("explicit")
    slow, sweeps = forgotten("explicit", "entries", accelerate=False)
    fast, steps = forgotten("explicit", "entries")
    assert sweeps.converged and sweeps.newton_steps == 0 < steps.newton_steps
    assert steps.sweeps < sweeps.sweeps / 2
    np.testing.assert_allclose(cases.table(made, slow), cases.table(made, fast), atol=1e-6)


def test_newton_steps_that_do_not_help_are_dropped(x64, monkeypatch):
    """Every step a long way uphill: the sweeps between them get there all the same."""
    made, (state, _), true = (
        cases.learner("explicit"),
        cases.fitted("explicit"),
        alternating._newton,
    )
    expected, _ = forgotten("explicit", "a user")

    def uphill(*given):
        return true(*given)._replace(direction=jnp.ones_like(state.item))

    monkeypatch.setattr(alternating, "_newton", uphill)
    after, report = made.forget(state, users=[2], tolerance=1e-8)
    assert report.converged and report.newton_steps > 10 and report.sweeps > 3 * report.newton_steps
    np.testing.assert_allclose(cases.table(made, after), cases.table(made, expected), atol=1e-6)


@every
@pytest.mark.parametrize("request_", REQUESTS)
def test_rows_mode_solves_the_affected_rows_of_what_is_retained(x64, name, request_):
    """With the items as they are a deletion is exactly ridge retraining of its users: one step."""
    made, state = cases.learner(name), cases.learner(name).sweep(cases.start(name))
    gone = rows_of(REQUESTS[request_])
    left = R.without(gone)
    after, report = made.forget(state, **REQUESTS[request_], mode="rows")
    d = cases.dense(name, left)
    users, items = np.unique(R.user[gone]), np.unique(R.item[gone])
    p, q = np.array(state.user), np.array(state.item)
    np.testing.assert_allclose(report.objective_before, cases.objective(d, p, q), rtol=1e-11)
    p[users] = cases.solved(d, q)[users]
    q[items] = cases.solved(d.turned, p)[items]
    np.testing.assert_allclose(after.user, p, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(after.item, q, rtol=1e-10, atol=1e-11)
    others = np.setdiff1d(np.arange(10), users)
    np.testing.assert_array_equal(after.user[others], state.user[others])
    facts = (report.removed, report.affected_users, report.affected_items)
    assert facts == (len(gone), len(users), len(items))
    np.testing.assert_allclose(report.objective, cases.objective(d, p, q), rtol=1e-11)
    assert (report.guarantee, report.converged, report.sweeps) == ("empirical", False, 0)
    np.testing.assert_array_equal(after.user_count, np.bincount(left.user, minlength=10))
    np.testing.assert_array_equal(after.item_count, np.bincount(left.item, minlength=9))


def test_a_few_sweeps_and_a_run_stopped_early_claim_nothing(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    rows, _ = made.forget(state, entries=[3], mode="rows")
    for sweeps in (None, 2):
        after, report = made.forget(state, entries=[3], mode="sweeps", sweeps=sweeps)
        expected, _ = made.fit(rows, sweeps=sweeps or 3)
        cases.same_bits((after.user, after.item), (expected.user, expected.item))
        assert (report.sweeps, report.guarantee) == (sweeps or 3, "empirical")
    for accelerate in (True, False):
        how = {"sweeps": 2, "tolerance": 1e-10, "accelerate": accelerate}
        after, report = made.forget(state, users=[2], **how)
        assert not report.converged and report.guarantee == "empirical" and report.sweeps == 2
        assert report.gradient > report.bound
        left = R.without(rows_of({"users": [2]}))
        np.testing.assert_allclose(report.objective, objective("explicit", after, left), rtol=1e-10)


def test_forgetting_nothing_at_a_minimum_moves_nothing(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    after, report = made.forget(state, entries=[], tolerance=1e-9)
    np.testing.assert_allclose(cases.table(made, after), cases.table(made, state), atol=1e-9)
    assert (report.removed, report.sweeps, report.converged) == (0, 1, True)
    for mode in ("rows", "sweeps"):
        after, report = made.forget(state, entries=[], mode=mode)
        cases.same_bits(after, state)
        assert (report.removed, report.sweeps, report.converged) == (0, 0, False)


# -------------------------------------------------------------------------------------------- leaks


@pytest.mark.parametrize("name", ["explicit", "biases"])
def test_deleted_ratings_could_have_been_anything(x64, name):
    """Bit for bit, in every mode: the same factors, trained on other values of what is deleted."""
    gone = rows_of(REQUESTS["all at once"])
    value = R.value.copy()
    value[gone] = 1e6
    made, (state, _) = cases.learner(name), cases.fitted(name)
    other = made.init(
        Ratings(user=R.user, item=R.item, value=value, users=10, items=9), jax.random.key(8)
    )
    unmeasured = state._replace(objective=jnp.asarray(jnp.nan))
    twin = other._replace(user=state.user, item=state.item)
    for mode in ("rows", "sweeps", "converged"):
        a, b = (made.forget(s, entries=gone, mode=mode) for s in (unmeasured, twin))
        cases.same_bits(a[0], b[0])
        assert a[1] == b[1]


@pytest.mark.parametrize("name", ["explicit", "biases"])
def test_what_is_deleted_is_wiped_and_its_place_is_never_read_again(x64, name):
    made, (state, _) = cases.learner(name), forgotten(name, "all at once")
    gone = rows_of(REQUESTS["all at once"])
    assert not np.asarray(state.entries.value)[gone].any()
    assert not np.asarray(state.entries.weight)[gone].any()
    value = np.array(state.entries.value)
    value[gone] = np.nan
    poisoned = state._replace(entries=state.entries._replace(value=jnp.asarray(value)))
    for ask in (made.objective, made.gradient, lambda s: cases.table(made, s)):
        cases.same_bits(ask(state), ask(poisoned))
    cases.same_bits(made.sweep(state)[:3], made.sweep(poisoned)[:3])
    for mode in ("rows", "converged"):
        a, b = (made.forget(s, users=[7], mode=mode) for s in (state, poisoned))
        cases.same_bits((a[0].user, a[0].item, a[0].mean), (b[0].user, b[0].item, b[0].mean))
        assert a[1] == b[1]
    cases.same_bits(made.compact(state), made.compact(poisoned))


def test_the_mean_is_that_of_what_is_retained(x64):
    state, _ = forgotten("biases", "a user")
    left = R.without(rows_of(REQUESTS["a user"]))
    np.testing.assert_allclose(state.mean, left.value.astype(float).mean(), rtol=1e-14)
    assert abs(float(state.mean - cases.fitted("biases")[0].mean)) > 1e-3


# -------------------------------------------------------------------------------- order, repetition


def test_order_and_repetition_of_numbers_do_not_matter(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    one = made.forget(state, entries=[3, 17, 30], users=[1, 4])
    other = made.forget(state, entries=np.array([30, 3, 17, 3], np.uint8), users=[4, 1, 4])
    cases.same_bits(one[0], other[0])
    assert one[1] == other[1]
    again, report = made.forget(one[0], entries=[17, 3], users=[1], mode="rows")
    cases.same_bits(one[0], again)
    assert (report.removed, report.affected_users, report.affected_items) == (0, 0, 0)


def test_what_came_in_is_left_as_it_was(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    before = jax.tree.map(np.array, state)
    made.forget(state, users=[0, 1])
    made.sweep(state)
    cases.same_bits(before, state)


def test_deleting_and_adding_again_returns_to_the_first_predictions(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    without, _ = forgotten("explicit", "all at once")
    back = made.init(R, jax.random.key(1))._replace(item=without.item)
    back, report = made.fit(back, sweeps=300, tolerance=1e-10, accelerate=True)
    assert report.converged
    np.testing.assert_allclose(cases.table(made, back), cases.table(made, state), atol=1e-8)


# -------------------------------------------------------------------------------------------- edges


@newton
def test_all_of_a_user_and_all_of_an_item_leave_factors_of_zero(x64, name):
    state, report = forgotten(name, "all at once")
    assert not state.user[1].any() and not state.item[np.array([0, 6])].any()
    assert np.isfinite(cases.table(cases.learner(name), state)).all() and report.converged


@newton
def test_nothing_is_left_of_everything(x64, name):
    made, (state, _) = cases.learner(name), cases.fitted(name)
    state, report = made.forget(state, users=np.arange(10))
    assert not state.user.any() and not state.item.any() and float(state.mean) == 0
    assert report.removed == len(R) and report.converged and report.objective == 0
    np.testing.assert_array_equal(cases.table(made, state), 0)
    again, report = made.forget(state, items=np.arange(9))
    assert report.removed == 0 and report.converged and np.isfinite(again.user).all()
    small = made.compact(state)
    assert small.pair.shape == (2, 0) and not cases.table(made, small).any()


def test_more_factors_than_users_are_allowed(x64):
    made, d = cases.learner("explicit", rank=12), cases.dense("explicit", R)
    state = made.init(R, jax.random.key(0))
    q = np.asarray(state.item)
    for _ in range(3):
        state = made.sweep(state)
        p = cases.solved(d, q)
        q = cases.solved(d.turned, p)
    np.testing.assert_allclose(cases.table(made, state), p @ q.T, atol=1e-9)


def test_a_row_without_a_unique_solution_is_an_error_and_never_an_answer(x64):
    """Without regularisation: two ratings for two factors do, one does not."""
    made = cases.learner("explicit", regularisation=0.0)
    state = made.sweep(made.init(R, jax.random.key(0)))
    assert np.isfinite(state.user).all()
    mine = np.flatnonzero(R.user == 2)
    made.forget(state, entries=mine[2:], mode="rows")
    for mode in ("rows", "converged"):
        with pytest.raises(ValueError, match="1 rows have no unique solution.*regularisation > 0"):
            made.forget(state, entries=mine[1:], mode=mode)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({}, ValueError, "say what to forget: entries=, users= or items="),
        ({"entries": [44]}, ValueError, r"entry 44 is not in \[0, 44\)"),
        ({"entries": [-1]}, ValueError, r"entry -1 is not in \[0, 44\)"),
        ({"users": [0, 10]}, ValueError, r"user 10 is not in \[0, 10\)"),
        ({"items": [9]}, ValueError, r"item 9 is not in \[0, 9\)"),
        ({"entries": np.zeros(44, bool)}, TypeError, "got bool .*numpy.flatnonzero"),
        ({"users": [1.0]}, TypeError, "expected user numbers, integers .* got float64"),
        ({"items": [[1]]}, TypeError, r"expected item numbers.*\(1, 1\)"),
        ({"users": ["eve"]}, TypeError, "expected user numbers"),
        ({"entries": [1], "mode": "convergd"}, ValueError, "no mode .*'convergd'.*converged"),
        ({"entries": [1], "tolerance": 0.0}, ValueError, "expected tolerance > 0, got 0.0"),
    ],
)
def test_requests_that_mean_nothing_are_refused(x64, request_, error, message):
    with pytest.raises(error, match=message):
        cases.learner("explicit").forget(cases.start("explicit"), **request_)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"rank": 0}, "expected rank .* >= 1, got 0"),
        ({"rank": True}, "expected rank .* got True"),
        ({"rank": 2.0}, "expected rank .* got 2.0"),
        ({"solver": "cholesk"}, "no solver is called 'cholesk'.*cholesky"),
        ({"steps": 0}, "steps >= 1 and block >= 1, got 0 and 32"),
        ({"block": 0}, "steps >= 1 and block >= 1, got 64 and 0"),
        ({"scale": 0.0}, "expected scale .* > 0, got 0.0"),
        ({"dtype": jnp.bfloat16}, "expected dtype float32, .* got bfloat16"),
        ({"dtype": jnp.float16}, "expected dtype float32, .* got float16"),
        ({"dtype": jnp.float64}, "float64 with jax_enable_x64 on, got float64"),
        ({"regularisation": -1.0}, "expected regularisation .* got -1.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_constants_out_of_range_are_refused(constants, message):
    with pytest.raises(ValueError, match=message):
        als(**{"rank": 2, "regularisation": 1.0} | constants)


def test_ratings_that_a_feedback_cannot_be_are_refused():
    counted = ratings([0, 0, 1], [0, 1, 1], [1.0, 0.0, 2.0])
    for kind in ("implicit", "ials"):
        with pytest.raises(ValueError, match=f"{kind} feedback .* row 1 has 0.0.*Leave such"):
            als(rank=2, regularisation=1.0, feedback=kind).init(counted, jax.random.key(0))
    made = als(rank=2, regularisation=1.0)
    nonsense: Any = np.ones((3, 3))
    with pytest.raises(TypeError, match="expected Ratings, got ndarray"):
        made.init(nonsense, jax.random.key(0))
    with pytest.raises(TypeError, match="als.*key"):
        made.init(counted, cast(Any, 0))
    with pytest.raises(ValueError, match="rows 0 and 1 are both"):
        ratings([0, 0], [1, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        ratings([0, 0], [0, 1], [np.nan, 2.0])


def test_pairs_and_lists_that_mean_nothing_are_refused(x64):
    made, state = cases.learner("explicit"), cases.start("explicit")
    with pytest.raises(ValueError, match=r"as many users as items, got \(2,\) and \(1,\)"):
        made.predict(state, [0, 1], [0])
    with pytest.raises(ValueError, match=r"item 9 is not in \[0, 9\)"):
        made.predict(state, [0], [9])
    with pytest.raises(ValueError, match="expected count >= 1, got 0"):
        made.recommend(state, [0], count=0)


# -------------------------------------------------------------------------- programs, states, lists


def test_deletions_of_every_kind_and_size_compile_nothing_new(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    made.forget(state, users=[0])
    before = programs()
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20, 40):
        left, _ = made.forget(state, entries=rng.choice(44, count, replace=False))
        left, _ = made.forget(left, users=rng.choice(10, 1 + count // 10), mode="rows")
        left, _ = made.forget(left, items=rng.choice(9, 1 + count // 10), mode="sweeps", sweeps=1)
        assert jax.tree.map(jnp.shape, left) == jax.tree.map(jnp.shape, state)
    assert programs() == before


def test_a_state_can_be_stored_and_goes_on_from_there_bit_for_bit(x64, tmp_path):
    made, (state, _) = cases.learner("explicit"), forgotten("explicit", "a user")
    checkpoint.save(tmp_path / "state", state)
    back = checkpoint.load(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    cases.same_bits(back, state)
    cases.same_bits(made.forget(back, items=[3])[0], made.forget(state, items=[3])[0])


def test_sweeps_are_traceable(x64):
    made, state = cases.learner("explicit"), cases.start("explicit")
    traced = jax.eval_shape(made.sweep, state)
    assert jax.tree.map(jnp.shape, traced) == jax.tree.map(jnp.shape, state)


def test_compacting_drops_the_places_of_deleted_ratings_and_changes_no_prediction(x64):
    made, (state, _) = cases.learner("biases"), forgotten("biases", "entries")
    small = made.compact(state)
    left = R.without(REQUESTS["entries"]["entries"])
    assert small.entries.value.shape == (len(left) + 1,)
    np.testing.assert_array_equal(small.pair, np.stack([left.user, left.item]))
    np.testing.assert_array_equal(small.entries.value[:-1], left.value)
    np.testing.assert_array_equal(cases.table(made, small), cases.table(made, state))
    np.testing.assert_allclose(small.mean, state.mean, rtol=1e-14)
    assert float(small.objective) == float(state.objective)
    for before, after in (("user_count", "user_count"), ("item_count", "item_count")):
        np.testing.assert_array_equal(getattr(small, after), getattr(state, before))


@pytest.mark.parametrize("name", ["biases", "ials"])
def test_recommended_is_the_best_of_what_a_user_has_not_rated(x64, name):
    made, (state, _) = cases.learner(name), cases.fitted(name)
    scores = cases.predictions(cases.dense(name, R), np.asarray(state.user), np.asarray(state.item))
    wanted = [4, 0, 4, 9]
    items, found = made.recommend(state, wanted, count=11)
    assert items.shape == found.shape == (4, 11)
    for row, user in enumerate(wanted):
        mine = R.item[R.user == user]
        free = np.setdiff1d(np.arange(9), mine)
        best = free[np.argsort(-scores[user, free], kind="stable")]
        np.testing.assert_array_equal(items[row], np.r_[best, np.full(11 - len(best), -1)])
        np.testing.assert_allclose(found[row][: len(best)], scores[user, best], rtol=1e-11)
        assert (found[row][len(best) :] == -np.inf).all()
    top, _ = made.recommend(state, wanted, count=2)
    np.testing.assert_array_equal(top, items[:, :2])


def test_what_is_deleted_may_be_recommended_again(x64):
    made, (state, _) = cases.learner("explicit"), cases.fitted("explicit")
    number = int(np.flatnonzero(R.user == 4)[0])
    before, _ = made.recommend(state, [4], count=9)
    after, _ = made.recommend(made.forget(state, entries=[number])[0], [4], count=9)
    assert R.item[number] not in before and R.item[number] in after


# --------------------------------------------------------------- other solvers, precisions, devices


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"solver": "cg"}, marks=pytest.mark.slow),
        {"solver": "cg", "steps": 3},
        pytest.param({"solver": "block", "block": 1}, marks=pytest.mark.slow),
    ],
    ids=["cg", "cg of 3 steps", "blocks of 1"],
)
def test_every_solver_reaches_the_same_fixed_point(x64, how):
    made = cases.learner("ials", **how)
    state, report = made.fit(cases.start("ials"), sweeps=600, tolerance=1e-9)
    assert report.converged and report.guarantee == "exact(1e-09)"
    expected = cases.table(cases.learner("ials"), cases.fitted("ials")[0])
    np.testing.assert_allclose(cases.table(made, state), expected, atol=1e-6)
    d = cases.dense("ials", R)
    found = cases.half_gradient(d, state.user, state.item)
    assert max(np.abs(g).max() for g in found) <= report.bound * 1.01


@functools.cache
def single(accelerate):
    """float32, to the tolerance of that."""
    made = als(rank=2, **cases.OBJECTIVES["explicit"])
    return made, made.fit(
        made.init(R, jax.random.key(0)), sweeps=300, accelerate=accelerate, tolerance=1e-5
    )


def test_what_is_said_of_the_gradient_is_of_both_sides_and_rounding_is_no_convergence():
    """A tolerance that float32 cannot reach: items may look solved, users never are."""
    made = als(rank=2, regularisation=2.0)
    begun = made.init(R, jax.random.key(0))
    for tolerance in (1e-3, 1e-12):
        state, report = made.fit(begun, sweeps=60, tolerance=tolerance)
        assert report.converged == (float(made.gradient(state)) <= report.bound)
        assert report.converged == (tolerance == 1e-3)
        assert report.guarantee == ("exact(0.001)" if report.converged else "empirical")
        if report.converged:
            assert report.gradient == float(made.gradient(state))


@pytest.mark.parametrize("accelerate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_single_precision_reaches_its_own_tolerance(accelerate):
    made, (state, report) = single(accelerate)
    assert report.converged and state.user.dtype == jnp.float32
    np.testing.assert_allclose(cases.table(made, state), cases.retrained("explicit", R), atol=1e-3)
    state, report = made.forget(state, **REQUESTS["all at once"], accelerate=accelerate)
    assert report.converged and report.guarantee == "exact(0.001)"
    state, report = made.forget(state, entries=[], tolerance=1e-5, accelerate=accelerate)
    expected = cases.retrained("explicit", R.without(rows_of(REQUESTS["all at once"])))
    np.testing.assert_allclose(cases.table(made, state), expected, atol=1e-3)


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_several_devices_do_what_one_does(x64, tolerance, count):
    """Sweeps, a deletion, what is measured, and what is said of it; on eight also Newton steps."""
    mesh = jax.make_mesh((count,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    one, many = cases.learner("ials"), cases.learner("ials", mesh=mesh)
    single, several = (made.init(R, jax.random.key(0)) for made in (one, many))
    assert several.users[0].row.shape[0] == count
    close = functools.partial(np.testing.assert_allclose, **tolerance(jnp.float64, scale=10))
    for _ in range(2):
        single, several = one.sweep(single), many.sweep(several)
        close(several.user, single.user)
        close(several.item, single.item)
        close(several.objective, single.objective)
    close(many.gradient(several), one.gradient(single))
    how = {"sweeps": 4, "tolerance": 1e-13, "accelerate": count == 8}
    a, b = (
        made.forget(state, users=[2], entries=[5], **how)
        for made, state in ((one, single), (many, several))
    )
    close(b[0].user, a[0].user)
    close(b[0].item, a[0].item)
    close(b[1].gradient, a[1].gradient)
    assert b[1].newton_steps == a[1].newton_steps and b[1].products == a[1].products
    assert (b[1].newton_steps > 0) == (count == 8)


# ---------------------------------------------------------------------------------------- behaviour


def test_costly_deletions_one_after_another_leave_what_retraining_leaves(x64):
    """The busiest user's ratings of the busiest items first, one at a time, until none is left.

    The objective that is carried along is within 1e-12 of the first, and no program is added.
    """
    made, (state, first) = cases.learner("explicit"), cases.fitted("explicit")
    made.forget(state, entries=[0], mode="rows")
    before = programs()
    kept = np.arange(len(R))
    while len(kept):
        busy = np.bincount(R.user[kept], minlength=10)[R.user[kept]]
        liked = np.bincount(R.item[kept], minlength=9)[R.item[kept]]
        worst = kept[np.lexsort((-liked, -busy))[0]]
        state, report = made.forget(state, entries=[worst], mode="rows")
        kept = kept[kept != worst]
        assert report.removed == 1
        if len(kept) % 8 == 0:
            true = objective("explicit", state, R.take(kept))
            assert abs(report.objective - true) < 1e-12 * first.objective
        if len(kept) == 24:
            final, _ = made.forget(state, entries=[], tolerance=1e-10)
            expected = cases.retrained("explicit", R.take(kept))
            np.testing.assert_allclose(cases.table(made, final), expected, atol=1e-6)
    assert programs() == before
    assert not state.user.any() and not state.item.any()


@functools.cache
def card():
    """60 x 40, rank 4, 40 % observed, with noise; one in a hundred is to be deleted."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 40))
    user, item = np.nonzero(rng.random((60, 40)) < 0.4)
    value = (low + 0.5 * rng.standard_normal((60, 40)))[user, item].astype(np.float32)
    made = Ratings(
        user=user.astype(np.int32), item=item.astype(np.int32), value=value, users=60, items=40
    )
    return made, rng.choice(len(user), len(user) // 100, replace=False)


@pytest.mark.slow
def test_a_warm_start_takes_no_more_sweeps_than_a_cold_one_and_ends_there(x64):
    """And Newton steps take far fewer than either."""
    r, gone = card()
    made = als(rank=4, regularisation=1.0, dtype=jnp.float64)
    how = {"sweeps": 400, "tolerance": 1e-8}
    state, _ = made.fit(made.init(r, jax.random.key(0)), **how)
    cold, _ = made.forget(made.init(r, jax.random.key(1)), entries=gone, mode="rows")
    cold, from_cold = made.fit(cold, **how)
    warm, from_warm = made.forget(state, entries=gone, tolerance=1e-8, accelerate=False)
    fast, from_fast = made.forget(state, entries=gone, tolerance=1e-8)
    assert from_cold.converged and from_warm.converged and from_fast.converged
    assert from_warm.sweeps <= from_cold.sweeps and 2 * from_fast.sweeps < from_warm.sweeps
    expected = cases.table(made, cold)
    assert np.abs(cases.table(made, state) - expected).max() > 0.01
    for after in (warm, fast):
        np.testing.assert_allclose(cases.table(made, after), expected, atol=1e-6)
    np.testing.assert_allclose(from_warm.objective, from_cold.objective, rtol=1e-9)
    np.testing.assert_allclose(from_fast.objective, from_cold.objective, rtol=1e-9)


@pytest.mark.slow
def test_a_thousand_deletions_add_no_program_and_no_drift(x64):
    """Of 1200 ratings, always one of whoever has most left, each by the affected rows alone."""
    made = low_rank_ratings(users=60, items=50, rank=3, density=0.4, noise=0.3, seed=1)
    assert len(made) > 1100
    learner = als(rank=4, regularisation=4.0, dtype=np.float64)
    state, _ = learner.fit(learner.init(made, jax.random.key(0)), sweeps=200, accelerate=True)
    state, report = learner.forget(state, entries=[0], mode="rows")
    before, start, kept = programs(), report.objective, np.arange(1, len(made))
    for _ in range(1000):
        busiest = np.bincount(made.user[kept], minlength=60)[made.user[kept]]
        worst = kept[busiest.argmax()]
        state, report = learner.forget(state, entries=[worst], mode="rows")
        kept = kept[kept != worst]
    assert programs() == before
    assert abs(report.objective - float(learner.objective(state))) < 1e-12 * start
    final, ended = learner.forget(state, entries=[])
    other = learner.init(made.take(kept), jax.random.key(1))
    retrained, again = learner.fit(other, sweeps=500, accelerate=True)
    assert ended.converged and again.converged
    user, item = made.user[kept], made.item[kept]
    close = [learner.predict(s, user, item) for s in (final, retrained)]
    np.testing.assert_allclose(*close, atol=1e-5)
