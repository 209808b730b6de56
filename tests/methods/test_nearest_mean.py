"""Nearest means: sums that are order-free and forget, and the rules that they make."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.covariance import empirical_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

import jaxunlearn as ju
from jaxunlearn.linalg.solution import Solved
from jaxunlearn.methods.exact.nearest_mean import COVARIANCES, nearest_mean
from jaxunlearn.methods.exact.pairs import value

D, C = 4, 5
OPTIONS = {
    "none": {},
    "shared": {"covariance": "shared", "shrinkage": (0.1, 0.0)},
    "class": {"covariance": "class", "shrinkage": (1.0, 1.0), "correlation": True},
}
LEARNERS = {name: nearest_mean(**options) for name, options in OPTIONS.items()}
RAW = nearest_mean(normalise=False)
every = pytest.mark.parametrize("name", COVARIANCES)


def blobs(n=60, seed=0, away=2.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    centres = away * np.random.default_rng(9).standard_normal((C, D))
    return centres[y] + rng.standard_normal((n, D)), y


def learnt(learner, x, y, dtype=None):
    return learner.learn(learner.init(D, C, dtype), x, y)


def close(one, other, tolerance=1e-12):
    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    check(value(one.sum), value(other.sum))
    check(value(one.second), value(other.second))
    check(one.count, other.count)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --------------------------------------------------------------------------- the state, by the card


@every
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 1e-5)])
def test_order_batches_and_interleaving_do_not_matter(name, x64, tolerance):
    learner, (x, y) = LEARNERS[name], blobs()
    with jax.enable_x64(x64):
        once = learnt(learner, x[20:], y[20:])
        order = np.random.default_rng(1).permutation(60)
        state = learner.init(D, C)
        state = learner.learn(state, x[order[:40]], y[order[:40]])
        early = order[:40][order[:40] < 20]
        late = order[40:][order[40:] < 20]
        padded = np.zeros(40, int), np.zeros(40)
        padded[0][: len(early)], padded[1][: len(early)] = early, 1
        state = learner.forget(state, x[padded[0]], y[padded[0]], padded[1])
        state = learner.learn(state, x[order[40:]], y[order[40:]])
        state = learner.forget(state, x[late], y[late])
        close(state, once, tolerance)
        both = learner.merge(learnt(learner, x[:40], y[:40]), learnt(learner, x[40:], y[40:]))
        close(both, learnt(learner, x, y), tolerance)


@every
def test_adding_and_deleting_is_the_identity_and_a_deleted_set_leaves_its_complement(x64, name):
    learner, (x, y) = LEARNERS[name], blobs()
    state = learnt(learner, x[:40], y[:40])
    close(learner.forget(learner.learn(state, x[40:], y[40:]), x[40:], y[40:]), state)
    close(learner.forget(learnt(learner, x, y), x[40:], y[40:]), state)
    assert learner.guarantee == "exact(1e-12)"


def test_deleting_everything_returns_the_start_state_exactly():
    learner, (x, y) = LEARNERS["none"], blobs()
    state = learnt(learner, x[:40], y[:40])
    state = learner.forget(learner.learn(state, x[40:], y[40:]), x[:20], y[:20])
    state = learner.forget(state, x[20:], y[20:])
    jax.tree.map(np.testing.assert_array_equal, state, learner.init(D, C))


@every
def test_a_class_leaves_whole_without_its_examples(x64, name):
    learner, (x, y) = LEARNERS[name], blobs()
    whole = learner.forget_class(learnt(learner, x, y), 3)
    close(whole, learnt(learner, x[y != 3], y[y != 3]))


def test_requests_are_a_scan_and_single_precision_does_not_drift():
    """A thousand rows of one class come and go; plain sums in float32 lose digits."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((250, 4, D)).astype(np.float32)
    y = np.zeros((250, 4), np.int32)
    start = learnt(RAW, *blobs(20))

    @jax.jit
    def stream(state):
        def there(s, r):
            return RAW.learn(s, *r), None

        def back(s, r):
            return RAW.forget(s, *r), None

        return jax.lax.scan(back, jax.lax.scan(there, state, (1e3 * x, y))[0], (1e3 * x, y))[0]

    end = stream(start)
    np.testing.assert_allclose(RAW.means(end), RAW.means(start), rtol=1e-4, atol=1e-4)
    plain = np.float32(RAW.means(start)[0] * start.count[0])
    for sign in (1, -1):
        for row in 1e3 * x.reshape(-1, D):
            plain = np.float32(plain + sign * row)
    assert np.abs(plain / float(start.count[0]) - RAW.means(start)[0]).max() > 1e-3


# ----------------------------------------------------------------------------------------- the rule


def test_the_rule_is_that_of_scikit_learns_nearest_centroid(x64):
    x, y = blobs()
    state, peer = learnt(LEARNERS["none"], x, y), NearestCentroid().fit(unit(x), y)
    np.testing.assert_allclose(LEARNERS["none"].means(state), peer.centroids_, rtol=1e-10)
    np.testing.assert_array_equal(LEARNERS["none"].predict(state, x), peer.predict(unit(x)))
    raw = learnt(RAW, x, y)
    np.testing.assert_array_equal(RAW.predict(raw, x), NearestCentroid().fit(x, y).predict(x))


@pytest.mark.parametrize("name", ["none", "shared", "cosine"])
def test_the_linear_head_is_the_same_rule(x64, name):
    learner = nearest_mean(normalise_mean=True) if name == "cosine" else LEARNERS[name]
    x, y = blobs()
    state = learnt(learner, x[y != 2], y[y != 2])
    w, b = (np.asarray(each) for each in learner.linear_head(state))
    z = unit(np.random.default_rng(3).standard_normal((200, D)))
    scores = np.asarray(learner.scores(state, z))
    np.testing.assert_array_equal((z @ w + b).argmax(1), scores.argmax(1))
    there = [0, 1, 3, 4]
    linear = (z @ w + b)[:, there]
    np.testing.assert_allclose(  # they differ by a number of the row alone
        linear - linear.mean(1, keepdims=True),
        scores[:, there] - scores[:, there].mean(1, keepdims=True),
        atol=1e-9,
    )
    if name == "cosine":
        np.testing.assert_allclose(np.linalg.norm(learner.means(state)[np.array(there)], axis=1), 1)


def test_a_shared_covariance_is_the_linear_discriminant(x64):
    learner, (x, y) = nearest_mean(normalise=False, **OPTIONS["shared"]), blobs()
    state = learnt(learner, x, y)
    within = sum((y == c).sum() * empirical_covariance(x[y == c]) for c in range(C)) / len(y)
    sigma = within + 0.1 * np.trace(within) / D * np.eye(D)
    means = np.stack([x[y == c].mean(0) for c in range(C)])
    away = x[:, None] - means[None]
    expected = -np.einsum("ncd,de,nce->nc", away, np.linalg.inv(sigma), away)
    np.testing.assert_allclose(learner.scores(state, x), expected, rtol=1e-8)
    sharp = nearest_mean(normalise=False, covariance="shared", shrinkage=(1e-12, 0.0))
    peer = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(C, 1 / C)).fit(x, y)
    got = sharp.predict(learnt(sharp, x, y), x)
    np.testing.assert_array_equal(got, peer.predict(x))


def test_covariances_of_classes_are_shrunk_correlations(x64):
    learner, (x, y) = LEARNERS["class"], blobs()
    state, z = learnt(learner, x, y), unit(x)
    expected = np.empty((len(x), C))
    for c in range(C):
        own = z[y == c]
        sigma = empirical_covariance(own)
        off = ~np.eye(D, dtype=bool)
        shrunk = sigma + np.trace(sigma) / D * np.eye(D) + sigma[off].mean() * off
        root = np.sqrt(np.diag(shrunk))
        away = z - own.mean(0)
        inverse = np.linalg.inv(shrunk / np.outer(root, root))
        expected[:, c] = -np.einsum("nd,de,ne->n", away, inverse, away)
    np.testing.assert_allclose(learner.scores(state, x), expected, rtol=1e-8)


@every
def test_a_class_without_rows_is_never_predicted(name):
    learner, (x, y) = LEARNERS[name], blobs()
    state = learnt(learner, x, y)
    for c in range(C - 1):
        state = learner.forget_class(state, c)
        assert (np.asarray(learner.predict(state, x)) > c).all()
    assert (np.asarray(learner.predict(state, -x)) == C - 1).all()  # all but one: constant
    assert np.isfinite(learner.scores(state, x)).all()


@pytest.mark.parametrize("name", ["none", "class"])
def test_without_a_competitor_no_row_of_another_class_gets_worse(name):
    """Ten blobs in the card; every right answer for a retained class stays right, row by row."""
    learner, (x, y) = LEARNERS[name], blobs(300, away=0.7)
    state = learnt(learner, x, y)
    before = np.asarray(learner.predict(state, x))
    after = np.asarray(learner.predict(learner.forget_class(state, 3), x))
    assert (after[before != 3] == before[before != 3]).all() and (before == 3).any()
    kept = y != 3
    for c in (0, 1, 2, 4):
        own = kept & (y == c)
        assert (after[own] == c).mean() >= (before[own] == c).mean()


def test_rows_of_zeros_and_very_small_rows_are_no_division_by_zero():
    x = np.array([[0.0] * D, [1e-30] * D, [1e30] * D], np.float32)
    state = learnt(LEARNERS["none"], x, np.array([0, 1, 1]))
    np.testing.assert_allclose(LEARNERS["none"].means(state)[1], 0.5, rtol=1e-6)
    assert np.isfinite(LEARNERS["none"].scores(state, x)).all()


# --------------------------------------------------------------------------------------- publishing


def test_published_means_have_noise_of_the_sensitivity_over_the_count():
    learner, (x, y) = LEARNERS["none"], blobs(59)
    y = np.where(np.arange(59) < 40, 0, 1)
    state = learnt(learner, x, y)
    draw = jax.jit(jax.vmap(partial(learner.publish, state, noise_multiplier=0.5)))
    noise = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    noise = noise - np.asarray(learner.means(state))
    np.testing.assert_allclose(noise[:, 0].std(), 0.5 * 2 / 40, rtol=0.05)
    np.testing.assert_allclose(noise[:, 1].std(), 0.5 * 2 / 19, rtol=0.05)
    assert (noise[:, 2:] == 0).all()


def test_one_example_moves_a_mean_by_no_more_than_the_sensitivity(x64):
    learner, (x, y) = LEARNERS["none"], blobs()
    state, other = learnt(learner, x, y), x.copy()
    other[0] = -x[0]
    moved = np.linalg.norm(learner.means(learnt(learner, other, y)) - learner.means(state), axis=1)
    np.testing.assert_allclose(moved[y[0]], 2 / (y == y[0]).sum(), rtol=1e-10)  # it is reached


# ---------------------------------------------------------------------------------------- bad input


def test_deleting_what_was_never_learnt_raises():
    learner, (x, y) = LEARNERS["none"], blobs()
    state = learnt(learner, x[:20], y[:20])
    once = learner.forget_class(state, 2)
    with pytest.raises(ValueError, match="nearest_mean.forget: more would be removed than was"):
        learner.forget(once, x[y == 2][:1], np.array([2]))
    alone = learnt(learner, x[:1], y[:1])
    with pytest.raises(ValueError, match="something left of a class without rows"):
        learner.forget(alone, -x[:1], y[:1])
    traced = jax.jit(learner.forget)(once, x[y == 2][:1], np.array([2]))
    assert int(traced.status) == Solved.INDEFINITE
    jax.tree.map(np.testing.assert_array_equal, traced[:3], once[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "full"}, "covariance must be among .*got 'full'"),
        ({"shrinkage": (-1.0, 0.0)}, r"expected shrinkage >= 0.*got \(-1.0, 0.0\)"),
        ({"covariance": "class", "shrinkage": (0.0, 1.0)}, "the first > 0 with covariances"),
        ({"correlation": True}, "correlation is of covariance='class', not 'none'"),
    ],
)
def test_a_constant_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=f"nearest_mean: .*{message}"):
        nearest_mean(**options)


def test_what_cannot_be_done_is_refused_by_name():
    learner = LEARNERS["none"]
    state = learner.init(D, C)
    with pytest.raises(ValueError, match="labels must lie in .0, 5., row 0 has 9"):
        learner.learn(state, np.ones((1, D)), np.array([9]))
    with pytest.raises(ValueError, match=r"expected integer labels \(n,\), got \(1, 5\)"):
        learner.learn(state, np.ones((1, D)), np.ones((1, C)))
    with pytest.raises(ValueError, match="x holds NaN or Inf, first in row 0"):
        learner.learn(state, np.full((1, D), np.nan), np.array([0]))
    with pytest.raises(ValueError, match="linear_head: .*quadratic rule; use scores"):
        LEARNERS["class"].linear_head(LEARNERS["class"].init(D, C))
    with pytest.raises(ValueError, match="publish: the sensitivity 2/n_c is that of means of unit"):
        RAW.publish(RAW.init(D, C), jax.random.key(0), noise_multiplier=1.0)
    with pytest.raises(TypeError, match="nearest_mean.publish: expected one typed key"):
        learner.publish(state, 0, noise_multiplier=1.0)


def test_the_public_name_is_the_builder():
    assert ju.nearest_mean is nearest_mean
    assert len(jax.tree.leaves(LEARNERS["none"].init(D, C))) == 6
    assert jnp.isfinite(
        LEARNERS["none"].scores(LEARNERS["none"].init(D, C), jnp.ones((1, D)))
    ).all()
