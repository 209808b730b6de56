"""Analytic heads: every state against ridge regression on the rows that remain."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

import jaxunlearn as ju
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact import analytic_gram as grams
from jaxunlearn.methods.exact import pairs
from jaxunlearn.methods.exact.analytic import STATES, analytic_head
from jaxunlearn.methods.exact.analytic_factor import rotate
from jaxunlearn.methods.exact.analytic_inverse import probe, woodbury
from jaxunlearn.methods.exact.dual_stream import dual_stream
from jaxunlearn.methods.exact.ledger import Ledger
from jaxunlearn.methods.exact.random_features import (
    draw_centres,
    draw_projection,
    gaussian_features,
    relu_features,
)

N, D, C, GAMMA, BLOCK = 60, 12, 3, 0.1, 8
HEADS = {state: analytic_head(gamma=GAMMA, state=state) for state in STATES}  # compiled once each
PER_CLASS = analytic_head(gamma=GAMMA, per_class=True)
BALANCED = analytic_head(gamma=GAMMA, balanced=True)
CARELESS = analytic_head(gamma=GAMMA, verify=False)
PLAIN = analytic_head(gamma=GAMMA, compensated=False)
every_state = pytest.mark.parametrize("name", STATES)


def rows(n=N, seed=0, spread=1.0):
    """Features of scales 1 .. spread, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, D)) * np.geomspace(1, spread, D)
    return x, rng.integers(0, C, n)


def ridge(x, y, gamma=GAMMA, weight=None):
    """W by a dense solve in float64; y labels or targets."""
    x, y = np.asarray(x, np.float64), np.eye(C)[y] if np.ndim(y) == 1 else y
    w = np.ones(len(x)) if weight is None else weight
    return np.linalg.solve(
        x.T @ (w[:, None] * x) + gamma * np.eye(x.shape[1]), x.T @ (w[:, None] * y)
    )


def in_blocks(verb, state, x, y):
    """learn or forget in blocks of eight rows, the last one padded: one shape, one program."""
    for start in range(0, len(x), BLOCK):
        part, labels = x[start : start + BLOCK], y[start : start + BLOCK]
        short = BLOCK - len(part)
        weight = np.pad(np.ones(len(part)), (0, short))
        marks = np.pad(labels, [(0, short)] + [(0, 0)] * (labels.ndim - 1))
        state = verb(state, np.pad(part, ((0, short), (0, 0))), marks, weight)
    return state


def learnt(head, x, y):
    return in_blocks(head.learn, head.init(x.shape[1], C), x, y)


def forget(head, state, x, y):
    return in_blocks(head.forget, state, x, y)


def close(one, other, rtol=1e-10, atol=1e-10):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), one, other)


def sums(state):
    """A + gamma I, C and counts of any state, as single floats."""
    if hasattr(state, "inverse"):
        state = state.gram
    if hasattr(state, "factor"):
        a = state.factor @ state.factor.T
    else:
        a = pairs.value(state.gram).sum(axis=0) + GAMMA * jnp.eye(state.gram.high.shape[-1])
    return a, pairs.value(state.cross), state.count, state.rows


# ------------------------------------------------------------------------ what must hold, by card


@every_state
def test_what_remains_is_ridge_on_the_retained_rows(x64, name):
    """Deleted one by one, in small blocks and in one larger than d; scikit-learn agrees."""
    head, (x, y) = HEADS[name], rows()
    state = learnt(head, x, y)
    for start, stop in ((0, 1), (1, 5), (5, 25)):
        remove = head.forget if stop - start > D else partial(forget, head)
        state = remove(state, x[start:stop], y[start:stop])
        close(head.weights(state).x, ridge(x[stop:], y[stop:]))
    peer = Ridge(alpha=GAMMA, fit_intercept=False).fit(x[25:], np.eye(C)[y[25:]])
    close(head.weights(state).x, peer.coef_.T, rtol=1e-9)
    assert head.guarantee == "exact(1e-10)"


@every_state
def test_adding_and_deleting_returns_the_state(x64, name):
    head, (x, y) = HEADS[name], rows()
    state = learnt(head, x[:40], y[:40])
    back = forget(head, in_blocks(head.learn, state, x[40:45], y[40:45]), x[40:45], y[40:45])
    close(sums(back), sums(state))
    close(head.weights(back).x, head.weights(state).x)


@every_state
def test_the_order_of_additions_and_deletions_and_their_batches_do_not_matter(x64, name):
    head, (x, y) = HEADS[name], rows()
    one = learnt(head, x, y)
    one = forget(head, one, x[:20], y[:20])
    other = head.init(D, C)
    for start in (20, 0):
        other = in_blocks(head.learn, other, x[start : start + 20], y[start : start + 20])
    other = forget(head, other, x[10:20], y[10:20])
    other = in_blocks(head.learn, other, x[59:39:-1], y[59:39:-1])
    other = forget(head, other, x[:10], y[:10])
    close(sums(one), sums(other))
    close(head.weights(one).x, head.weights(other).x)


@every_state
def test_deleting_everything_returns_the_start_state(x64, name):
    head, (x, y) = HEADS[name], rows(spread=1e-2)
    state = learnt(head, x, y)
    for start in (40, 0, 20):
        part = slice(start, start + 20)
        state = forget(head, state, x[part], y[part])
    start = head.init(D, C)
    assert (np.asarray(head.weights(state).x) == 0).all()
    jax.tree.map(np.testing.assert_array_equal, sums(state), sums(start))


@every_state
def test_the_column_of_a_class_that_is_gone_is_zero_and_it_is_never_predicted(x64, name):
    head, (x, y) = HEADS[name], rows()
    state = forget(head, learnt(head, x, y), x[y == 1], y[y == 1])
    np.testing.assert_allclose(head.weights(state).x[:, 1], 0, atol=1e-10)
    scores = head.predict(state, -10 * jnp.asarray(x))
    assert (scores.argmax(axis=1) != 1).all()
    raw = -10 * x @ np.asarray(head.weights(state).x)
    assert (raw.argmax(axis=1) == 1).any()  # an unmasked column of zeros would win


def test_with_a_large_ridge_the_head_is_zero_and_deletion_changes_nothing(x64):
    head, (x, y) = analytic_head(gamma=1e12), rows()
    state = learnt(head, x, y)
    after = forget(head, state, x[:5], y[:5])
    close(head.weights(after).x, head.weights(state).x)
    assert float(jnp.abs(head.weights(state).x).max()) < 1e-10


def test_the_eigenvalues_of_s_lie_in_0_1_and_are_bounded_by_the_ridge(x64):
    head, (x, y) = HEADS["gram"], rows()
    state, x = learnt(head, x, y), jnp.asarray(x[:5])
    r = np.linalg.inv(sums(state)[0])
    values = np.linalg.eigvalsh(np.eye(5) - x @ r @ x.T)
    sigma = np.linalg.norm(x, 2)
    assert GAMMA / (GAMMA + sigma**2) <= values[0] and values[-1] <= 1
    for each in STATES:
        made = learnt(HEADS[each], *rows())
        close(HEADS[each].leverage(made, x), np.diag(x @ r @ x.T))


@every_state
def test_deleting_what_was_never_added_raises_and_is_never_nan(x64, name):
    head, (x, y) = HEADS[name], rows()
    state = learnt(head, x, y)
    stranger = 50 * np.ones((1, D))
    with pytest.raises(ValueError, match="more would be removed than was learnt.*ledger of ids"):
        forget(head, state, stranger, np.array([0]))
    traced = jax.jit(lambda s: forget(head, s, stranger, np.array([0])))(state)
    own = traced.gram if name == "inverse" else traced
    assert int(own.status) == Solved.INDEFINITE
    jax.tree.map(np.testing.assert_array_equal, sums(traced), sums(state))
    with pytest.raises(ValueError, match="analytic_head.learn: more would be removed"):
        in_blocks(head.learn, traced, x[:20], y[:20])  # the status stays


@every_state
def test_a_count_never_goes_below_zero(x64, name):
    head, (x, _) = HEADS[name], rows()
    state = learnt(head, x[:20], np.zeros(20, int))
    with pytest.raises(ValueError, match="a negative count"):
        forget(head, state, x[:1], np.array([1]))  # the same features, another label


def test_a_direction_that_is_not_there_cannot_be_deleted_even_if_the_ridge_would_allow_it(x64):
    x = 0.1 * np.eye(D)[np.arange(20) % 4]
    state = learnt(HEADS["gram"], x, np.arange(20) % 2)
    stranger = 0.1 * np.eye(D)[5:6], np.array([0])
    with pytest.raises(ValueError, match="more would be removed"):
        forget(HEADS["gram"], state, *stranger)
    forget(CARELESS, state, *stranger)  # leverage 0.1: not seen


def test_an_unverified_state_is_refused_where_the_head_is_solved(x64):
    x, y = rows()
    state = forget(CARELESS, learnt(CARELESS, x, y), 50 * np.ones((1, D)), np.array([0]))
    with pytest.raises(ValueError, match="weights: the head is INDEFINITE.*never learnt"):
        CARELESS.weights(state)


@every_state
def test_the_residual_of_a_deleted_row_is_the_old_one_over_one_less_leverage(x64, name):
    head, (x, y) = HEADS[name], rows()
    state = learnt(head, x, y)
    one, target = x[7:8], np.eye(C)[y[7:8]]
    old = target - one @ np.asarray(head.weights(state).x)
    leverage = float(head.leverage(state, one)[0])
    after = forget(head, state, one, y[7:8])
    new = target - one @ np.asarray(head.weights(after).x)
    assert 0.01 < leverage < 1
    close(new, old / (1 - leverage))


# ------------------------------------------------------------------------------ streams of requests


@every_state
def test_a_stream_of_requests_is_one_scan_and_padding_changes_not_one_bit(x64, name):
    head, (x, y) = HEADS[name], rows()
    weight = np.ones((5, 4))
    weight[:, 3] = 0
    requests = (x[:20].reshape(5, 4, D), y[:20].reshape(5, 4), weight)
    start = learnt(head, x, y)

    @jax.jit
    def stream(state):
        return jax.lax.scan(
            lambda s, r: (head.forget(s, *r), head.weights(s).residual), state, requests
        )

    end, residuals = stream(start)
    gone = np.arange(N) < 20
    gone[3:20:4] = False
    close(head.weights(end).x, ridge(x[~gone], y[~gone]))
    assert (residuals < 1e-10).all()
    padded = head.forget(start, x[:BLOCK], y[:BLOCK], np.zeros(BLOCK))
    jax.tree.map(np.testing.assert_array_equal, sums(padded), sums(start))


def test_weighted_rows_are_weighted_ridge(x64):
    x, y = rows(7 * BLOCK)
    weight = np.random.default_rng(1).uniform(0.5, 2, len(x))
    for head in HEADS.values():
        state = head.init(D, C)
        for part in np.split(np.arange(len(x)), 7):
            state = head.learn(state, x[part], y[part], weight[part])
        state = head.forget(state, x[:BLOCK], y[:BLOCK], weight[:BLOCK])
        close(head.weights(state).x, ridge(x[BLOCK:], y[BLOCK:], weight=weight[BLOCK:]))


@every_state
def test_labels_and_features_can_be_corrected(x64, name):
    head, (x, y) = HEADS[name], rows()
    new_x, new_y = x.copy(), y.copy()
    new_x[:BLOCK] += 0.3
    new_y[:BLOCK] = (y[:BLOCK] + 1) % C
    state = learnt(head, x, y)
    labels = head.replace(state, x[:BLOCK], y[:BLOCK], x[:BLOCK], new_y[:BLOCK])
    close(head.weights(labels).x, ridge(x, new_y))
    both = head.replace(state, x[:BLOCK], y[:BLOCK], new_x[:BLOCK], new_y[:BLOCK])
    close(head.weights(both).x, ridge(new_x, new_y))


def test_real_targets_are_regressed(x64):
    x, _ = rows()
    targets = np.random.default_rng(2).standard_normal((N, C))
    for head in HEADS.values():
        state = in_blocks(head.learn, head.init(D, C), x, targets)
        state = forget(head, state, x[:5], targets[:5])
        close(head.weights(state).x, ridge(x[5:], targets[5:]))


@pytest.mark.parametrize("name", [*STATES, "per class"])
def test_new_classes_append_columns_of_zeros(x64, name):
    head, (x, y) = HEADS.get(name, PER_CLASS), rows()
    small = head.init(D, C - 1)
    state = in_blocks(head.learn, small, x[y < 2], y[y < 2])
    wide = head.grow(state, C)
    np.testing.assert_array_equal(head.weights(wide).x[:, 2], 0)
    close(head.weights(in_blocks(head.learn, wide, x[y == 2], y[y == 2])).x, ridge(x, y))
    with pytest.raises(ValueError, match="grow: expected at least the 3 classes.*got 2"):
        head.grow(wide, 2)


def test_a_class_is_removed_whole_where_its_gram_is_held(x64):
    x, y = rows()
    for head in (PER_CLASS, BALANCED):
        state = learnt(head, x, y)
        whole = head.forget_class(state, 1)
        rest = forget(head, state, x[y == 1], y[y == 1])
        close(sums(whole), sums(rest))
        close(head.weights(whole).x, head.weights(rest).x)
        assert (np.asarray(head.weights(whole).x[:, 1]) == 0).all()
    close(PER_CLASS.weights(PER_CLASS.forget_class(learnt(PER_CLASS, x, y), 1)).x,
          ridge(x[y != 1], y[y != 1]))  # fmt: skip


def test_balanced_classes_are_ridge_with_weights_of_mean_one(x64):
    x, y = rows()
    y = np.where(np.arange(N) < 40, 0, y)
    state = learnt(BALANCED, x, y)
    state = forget(BALANCED, state, x[:5], y[:5])
    x, y = x[5:], y[5:]
    omega = 1 / np.bincount(y, minlength=C)
    omega /= omega.mean()
    close(BALANCED.weights(state).x, ridge(x, y, weight=omega[y]))
    gone = BALANCED.forget_class(state, 2)  # the mean is over the classes that are there
    kept = y != 2
    close(
        BALANCED.weights(gone).x,
        ridge(x[kept], y[kept], weight=(omega / omega[:2].mean())[y[kept]]),
    )


def test_states_of_two_data_sets_add_up(x64):
    x, y = rows()
    for head in (HEADS["gram"], PER_CLASS):
        both = head.merge(learnt(head, x[:20], y[:20]), learnt(head, x[20:], y[20:]))
        close(sums(both), sums(learnt(head, x, y)))


def test_states_of_several_devices_add_up(x64):
    head, (x, y) = HEADS["gram"], rows(64)

    @partial(jax.vmap, axis_name="device")
    def on_each(x, y):
        return head.reduce(head.learn(head.init(D, C), x, y), "device")

    every = on_each(x.reshape(4, 16, D), y.reshape(4, 16))
    alone = head.learn(head.init(D, C), x, y)
    for i in (0, 3):
        close(sums(jax.tree.map(lambda a: a[i], every)), sums(alone))  # noqa: B023


# -------------------------------------------------------------------------------- single precision


@pytest.mark.slow  # `test_plain_sums_drift_where_compensated_ones_do_not` is the fast one
@every_state
def test_single_precision_after_many_requests(name):
    """400 interleaved requests on features of scales 1 to 1e-2; the bound is that of the state."""
    head = HEADS[name]
    x, y = rows(420, spread=1e-2)
    x = x.astype(np.float32)
    blocks = x[:400].reshape(200, 2, D), y[:400].reshape(200, 2)

    @jax.jit
    def stream(state):
        def step(s, r):
            return head.learn(s, *r), None

        def undo(s, r):
            return head.forget(s, *r), None

        return jax.lax.scan(undo, jax.lax.scan(step, state, blocks)[0], blocks)[0]

    end = stream(learnt(head, x[400:], y[400:]))
    exact = ridge(x[400:], y[400:])
    error = np.abs(head.weights(end).x - exact).max() / np.abs(exact).max()
    assert error < {"gram": 1e-6, "inverse": 1e-3, "cholesky": 1e-3}[name]


def test_plain_sums_drift_where_compensated_ones_do_not():
    x, y = rows(420, spread=1e-2)
    x = x.astype(np.float32)
    exact, errors = ridge(x[400:], y[400:]), {}
    for name, head in (("pairs", HEADS["gram"]), ("plain", PLAIN)):
        state = learnt(head, x[400:], y[400:])
        for verb in (head.learn, head.forget):
            state = in_blocks(verb, state, 30 * x[:400], y[:400])
        errors[name] = np.abs(head.weights(state).x - exact).max() / np.abs(exact).max()
    assert errors["pairs"] < 1e-5 < errors["plain"]


def test_the_inverse_is_made_anew_when_its_residual_says_so():
    """Rows of scale 1e2 come and go: what is left of R in float32 is rounding."""
    head, (x, y) = HEADS["inverse"], rows()
    start = learnt(head, x[:20], y[:20])
    big, marks = jnp.float32(1e2 * x[20:28]), jax.nn.one_hot(y[20:28], C)
    blind, w = start.inverse, start.weights
    for sign in (1, -1):
        blind, w, _ = jax.jit(woodbury, static_argnums=4)(blind, w, big, marks, sign)
    assert float(probe(start.gram, blind, GAMMA)) > 1e-3
    state = head.forget(head.learn(start, big, y[20:28]), big, y[20:28])
    assert int(state.renewals) > int(start.renewals) and float(state.residual) < 1e-3
    close(head.weights(state).x, ridge(x[:20], y[:20]), 1e-3, 1e-3)


def test_the_inverse_is_made_anew_every_so_many_requests(x64):
    head = analytic_head(gamma=GAMMA, state="inverse", refresh=3)
    x, y = rows()
    state, ages = head.init(D, C), []
    for i in range(7):
        state = head.learn(state, x[i : i + 1], y[i : i + 1])
        ages.append(int(state.age))
    assert ages == [1, 2, 0, 1, 2, 0, 1] and int(state.renewals) == 2


# ------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize("n", [1, 40, 700])
def test_float32_products_have_the_digits_of_pairs(n):
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((n, 5)).astype(np.float32) for _ in range(2))
    for right in (None, y):
        p = jax.jit(pairs.product)(x, right)
        exact = x.astype(np.float64).T @ (x if right is None else right).astype(np.float64)
        got = np.float64(p.high) + np.float64(p.low)
        largest = np.abs(x).max() * np.abs(x if right is None else right).max()
        assert np.abs(got - exact).max() < 2.0**-29 * n * largest
        assert np.abs(np.float64(x.T @ (x if right is None else right)) - exact).max() > 0


@pytest.mark.parametrize(("n", "digits"), [(40, 29), (1500, 29)])
def test_a_matrix_is_cut_once_and_multiplied_with_the_digits_of_pairs(n, digits):
    """Rows of very different sizes; 1500 columns are more than one exact sum holds."""
    rng = np.random.default_rng(7)
    a = (rng.standard_normal((6, n)) * 10.0 ** np.arange(-3, 3)[:, None]).astype(np.float32)
    w = rng.standard_normal((n, 2)).astype(np.float32)
    exact, largest = np.float64(a) @ np.float64(w), np.abs(a).max(1)[:, None] * np.abs(w).max(0)
    p, blunt = (
        jax.jit(lambda a, w, c=c: pairs.times(pairs.cut(a, compensated=c), w))(a, w)
        for c in (True, False)
    )
    error = np.abs(np.float64(p.high) + np.float64(p.low) - exact) / largest
    assert error.max() < 2.0**-digits * n
    assert np.abs(np.float64(blunt.high) - exact).max() > 0 == np.abs(blunt.low).max()


def test_an_ill_conditioned_head_is_refined_more_often_and_to_single_precision():
    found = []
    for spread in (1.0, 1e-3):
        x, y = rows(spread=spread)
        x = x.astype(np.float32)
        head = HEADS["gram"]
        solution = head.weights(learnt(head, x, y))
        expected = ridge(x, y)
        found.append(int(solution.iterations))
        assert np.abs(solution.x - expected).max() < 2e-7 * np.abs(expected).max()
        assert float(solution.residual) < 2e-7
    assert 1 == found[0] <= found[1] <= 4


def test_a_system_without_a_factor_is_said_and_its_residual_is_that_of_zeros():
    eye, b = pairs.pair(jnp.eye(D)), pairs.pair(jnp.ones((D, C)))
    for a, status in ((pairs.scale(eye, -1), Solved.INDEFINITE),
                      (pairs.scale(eye, jnp.nan), Solved.NONFINITE)):  # fmt: skip
        solution = grams.ridge(a, b, GAMMA, tolerance=1e-3)
        assert int(solution.status) == status and float(solution.residual) == 1
        assert (np.asarray(solution.x) == 0).all()
    strangely = pairs.pair(jnp.eye(D).at[3, 3].set(-1))  # one direction of twelve
    assert int(grams.ridge(strangely, b, GAMMA, tolerance=1e-3).status) == Solved.INDEFINITE


def test_a_thousand_sums_of_pairs_return_to_where_they_began():
    rng = np.random.default_rng(4)
    terms = rng.standard_normal((500, 8)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, (500, 1))
    terms = terms.astype(np.float32)

    def step(p, t):
        return pairs.add(p, pairs.pair(t)), None

    start = pairs.pair(jnp.full(8, 0.1, jnp.float32))
    both = jnp.concatenate([terms, -terms[::-1]])
    end = jax.jit(lambda p: jax.lax.scan(step, p, both)[0])(start)
    np.testing.assert_allclose(pairs.value(end), 0.1, rtol=1e-7)
    plain = jax.lax.scan(lambda s, t: (s + t, None), start.high, both)[0]
    assert float(jnp.abs(plain - 0.1).max()) > 1e-6


@pytest.mark.parametrize("sign", [-1, 1])
def test_rotations_give_the_cholesky_factor_of_the_changed_matrix(x64, sign):
    rng = np.random.default_rng(5)
    a = rng.standard_normal((30, 6))
    full, x = a.T @ a, a[:4]
    expected = np.linalg.cholesky(full + sign * x.T @ x)
    close(rotate(jnp.linalg.cholesky(full), jnp.asarray(x), sign), expected)


# --------------------------------------------------------------------------------- ids, features


def test_a_ledger_makes_deletion_idempotent_and_refuses_strangers(x64):
    head, (x, y) = HEADS["gram"], rows(20)
    ids, ledger = np.arange(100, 120), Ledger()
    state = ledger.learn(head.learn, head.init(D, C), x, y, ids=ids)
    again = ledger.learn(head.learn, state, x, y, ids=ids)
    jax.tree.map(np.testing.assert_array_equal, sums(again), sums(state))
    once = ledger.forget(head.forget, state, x[:4], y[:4], ids=ids[:4])
    twice = ledger.forget(head.forget, once, x[:4], y[:4], ids=ids[:4])
    jax.tree.map(np.testing.assert_array_equal, sums(twice), sums(once))
    assert len(ledger) == 16 and 100 not in ledger and 104 in ledger
    with pytest.raises(ValueError, match="ledger.forget: id 7 .row 0. was never learnt"):
        ledger.forget(head.forget, twice, x[:1], y[:1], ids=[7])
    with pytest.raises(ValueError, match="id 110 .row 0. was learnt with another content"):
        ledger.forget(head.forget, twice, x[:1], y[:1], ids=[110])
    with pytest.raises(ValueError, match="one distinct id for each of 2 rows, got 2 ids, 1 of"):
        ledger.forget(head.forget, twice, x[4:6], y[4:6], ids=[104, 104])
    with pytest.raises(ValueError, match="never learnt"):
        ledger.only_present().forget(head.forget, twice, x[:1], y[:1], ids=[100])
    other = ledger.learn(head.learn, twice, x[:4] + 1, y[:4], ids=ids[:4])  # comes back changed
    assert float(other.rows) == 20


def test_a_ledger_stays_as_it_was_when_the_learner_raises():
    head, (_, y) = HEADS["gram"], rows(20)
    ledger = Ledger()
    with pytest.raises(ValueError, match="x holds NaN or Inf, first in row 0"):
        ledger.learn(head.learn, head.init(D, C), np.full((1, D), np.nan), y[:1], ids=[1])
    assert len(ledger) == 0


def test_random_features_are_a_function_of_their_key():
    h = np.random.default_rng(6).standard_normal((50, 4)).astype(np.float32)
    one, again, other = (draw_projection(jax.random.key(k), 4, 9) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and relu_features(h, one).shape == (50, 9)
    np.testing.assert_allclose(relu_features(h, one), np.maximum(h @ np.asarray(one), 0), atol=1e-5)
    np.testing.assert_allclose(float((np.asarray(draw_projection(jax.random.key(2), 4, 4000)) ** 2)
                               .mean()), 1 / 4, rtol=0.05)  # fmt: skip


def test_kernel_centres_are_drawn_from_all_rows():
    h = np.arange(40, dtype=np.float32).reshape(20, 2)
    drawn = [np.asarray(draw_centres(jax.random.key(k), h, 4))[:, 0] / 2 for k in range(12)]
    assert all(len(set(each)) == 4 for each in drawn)
    assert max(each.max() for each in drawn) >= 15
    centres = draw_centres(jax.random.key(0), h, 4)
    distance = np.square(h[:, None] - np.asarray(centres)[None]).sum(axis=2)
    got = gaussian_features(h, centres, width=7.0)
    np.testing.assert_allclose(got, np.exp(-distance / 98), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: draw_projection(0, 2, 2), TypeError, "draw_projection: expected one typed key"),
        (lambda: draw_projection(jax.random.key(0), 0, 2), ValueError, "expected counts >= 1"),
        (
            lambda: draw_centres(jax.random.key(0), jnp.ones((3, 2)), 4),
            ValueError,
            "expected 1 <= count <= 3 rows, got 4",
        ),
        (
            lambda: gaussian_features(jnp.ones((3, 2)), jnp.ones((1, 2)), width=0.0),
            ValueError,
            "expected width > 0, got 0.0",
        ),
    ],
)
def test_feature_maps_that_cannot_be_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_a_class_of_digits_is_forgotten_as_by_retraining():
    digits = load_digits()
    h, y = (digits.data[:600] / 16).astype(np.float32), digits.target[:600]
    x = np.asarray(relu_features(h, draw_projection(jax.random.key(0), 64, 80)))
    head, gone = analytic_head(gamma=0.1, verify=False), y == 3
    state = head.learn(head.init(80, 10), x, y)
    state = head.forget(state, x[gone], y[gone])
    again = head.learn(head.init(80, 10), x[~gone], y[~gone])
    mine, oracle = (np.asarray(head.predict(s, x)) for s in (state, again))
    # the very same predictions: whoever attacks the head learns nothing of the deleted rows
    np.testing.assert_allclose(mine[:, :3], oracle[:, :3], atol=1e-4)
    assert (mine.argmax(1) == oracle.argmax(1)).all()
    assert (mine[gone].argmax(1) == 3).mean() == 0
    assert (mine[~gone].argmax(1) == y[~gone]).mean() > 0.9


# ------------------------------------------------------------------------------ the dual stream


def test_the_second_stream_helps_and_its_main_stream_forgets_exactly(x64):
    x, y = rows()
    z = np.tanh(x**2 - 1)
    dual, free = dual_stream(gamma=GAMMA), dual_stream(gamma=GAMMA, compensation=0.0)
    start = dual.init(D, D, C)
    state = dual.learn(start, x, z, y)

    def loss(learner):
        return float(jnp.square(learner.predict(state, x, z) - np.eye(C)[y]).mean())

    assert loss(dual) < loss(free) and dual.guarantee == "empirical"
    after = dual.forget(state, x[:5], z[:5], y[:5])
    again = dual.learn(start, x[5:], z[5:], y[5:])
    close(sums(after.main), sums(again.main))
    close(sums(after.second)[0], sums(again.second)[0])
    assert float(jnp.abs(sums(after.second)[1] - sums(again.second)[1]).max()) > 1e-3  # not exact
    empty = dual.forget(after, x[5:], z[5:], y[5:])
    assert float(jnp.abs(empty.second.cross.high).max()) == 0 == float(empty.second.rows)


@pytest.mark.slow
def test_residuals_of_older_classes_are_cleansed():
    x, y = rows()
    dual, raw = (dual_stream(gamma=GAMMA, cleansed=c) for c in (True, False))
    order = np.argsort(y)
    x, y = x[order], y[order]
    first, second = y < 2, y == 2
    ends = []
    for learner in (dual, raw):
        state = learner.learn(learner.init(D, D, C), x[first], x[first], y[first])
        before = state.second.cross.high
        state = learner.learn(state, x[second], x[second], y[second])
        ends.append(np.abs(state.second.cross.high - before)[:, :2].max())
    assert ends[0] == 0 < ends[1]


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "expected gamma > 0.*got gamma=0.0"),
        ({"gamma": 1.0, "refresh": 0}, "refresh >= 1, got .*refresh=0"),
        ({"gamma": 1.0, "tolerance": 0.0}, "tolerance > 0"),
        ({"gamma": 1.0, "state": "r"}, "state must be among .*got 'r'"),
        (
            {"gamma": 1.0, "state": "inverse", "balanced": True},
            "state must be 'gram', not 'inverse'",
        ),
    ],
)
def test_a_constant_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=f"analytic_head: .*{message}"):
        analytic_head(**options)


@pytest.mark.parametrize(
    ("x", "y", "weight", "message"),
    [
        (np.ones((2, 5)), np.zeros(2, int), None, r"expected x \(n, 12\).*got \(2, 5\)"),
        (np.ones((2, D)), np.zeros(2), None, r"labels \(n,\) must be integers, got float"),
        (np.ones((2, D)), np.array([0, 3]), None, r"labels must lie in \[0, 3\), row 1 has 3"),
        (np.full((1, D), np.inf), np.zeros(1, int), None, "x holds NaN or Inf, first in row 0"),
        (np.ones((1, D)), np.zeros(1, int), -np.ones(1), "weights must be >= 0, got -1"),
        (np.full((1, D), 1e30), np.zeros(1, int), None, "NONFINITE.*Scale the features down"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(x, y, weight, message):
    head = HEADS["gram"]
    with pytest.raises(ValueError, match=f"analytic_head.learn: .*{message}"):
        head.learn(head.init(D, C), x, y, weight)


def test_what_a_head_was_not_made_for_is_refused_by_name(x64):
    x, y = rows(20)
    state = learnt(HEADS["gram"], x, y)
    with pytest.raises(ValueError, match="forget_class needs per_class=True"):
        HEADS["gram"].forget_class(state, 0)
    for verb in ("merge", "reduce"):
        with pytest.raises(ValueError, match=f"{verb} needs state='gram'"):
            getattr(HEADS["inverse"], verb)(state, state)
    with pytest.raises(ValueError, match=r"needs integer labels \(n,\), got targets \(20, 3\)"):
        PER_CLASS.learn(PER_CLASS.init(D, C), x, np.eye(C)[y])
    with pytest.raises(ValueError, match="expected counts >= 1, got features=0"):
        HEADS["gram"].init(0, C)
    with pytest.raises(ValueError, match="dual_stream: expected compensation >= 0, got -1"):
        dual_stream(gamma=1.0, compensation=-1)


def test_the_public_name_is_the_builder():
    assert ju.analytic_head is analytic_head
