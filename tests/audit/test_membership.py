"""The simple membership attack: scikit-learn's regression and folds, theory, edges."""

import numpy as np
import pytest

from jaxunlearn.audit import (
    TooFew,
    attack,
    attack_accuracy,
    auc,
    distance_from_oracle,
    halves,
)
from jaxunlearn.audit.membership import fit_logistic


@pytest.fixture
def signals():
    rng = np.random.default_rng(0)
    return rng.normal(0.8, 1, size=(3, 60)).round(1), rng.normal(size=(3, 45)).round(1)  # with ties


def test_the_logistic_regression_is_that_of_scikit_learn(signals):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = np.concatenate(signals, axis=1)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    separable = np.r_[np.full(60, 1.0), np.full(45, -1.0)] + 0.01 * x[0]
    x = np.concatenate([x, separable[None]])
    sign = np.r_[np.ones(60), -np.ones(45)]
    w, b = fit_logistic(x, sign)
    for m in range(4):
        theirs = linear_model.LogisticRegression(C=1.0, tol=1e-10).fit(x[m][:, None], sign)
        assert w[m] == pytest.approx(theirs.coef_.item(), rel=1e-4)
        assert b[m] == pytest.approx(theirs.intercept_.item(), abs=1e-4)


def test_the_attack_accuracy_is_that_of_scikit_learn_on_the_same_folds():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    members, nonmembers = rng.normal(1, 1, size=(2, 53)), rng.normal(size=(2, 53))
    ours = attack_accuracy(members, nonmembers, rng=np.random.default_rng(7))
    draw = np.random.default_rng(7)
    first, second = draw.permutation(53), draw.permutation(53)
    for m in range(2):
        x = np.r_[members[m, first], nonmembers[m, second]][:, None]
        sign, fold = np.repeat([1, -1], 53), np.tile(np.arange(53) % 5, 2)
        hits = []
        for k in range(5):
            train, held = fold != k, fold == k
            mean, sd = x[train].mean(), x[train].std()
            model = linear_model.LogisticRegression(tol=1e-10)
            model.fit((x[train] - mean) / sd, sign[train])
            hits.append(model.score((x[held] - mean) / sd, sign[held]))
        assert ours[m] == pytest.approx(np.mean(hits))


def test_the_attack_accuracy_approaches_theory():
    rng = np.random.default_rng(3)
    members, nonmembers = rng.normal(1, 1, size=4000), rng.normal(0, 1, size=9000)
    accuracy = attack_accuracy(members, nonmembers, rng=rng)
    assert accuracy == pytest.approx(0.6915, abs=0.02)  # Phi(1 / 2)
    null = attack_accuracy(nonmembers[:4000], nonmembers[4000:], rng=rng)
    assert null == pytest.approx(0.5, abs=0.03)


def test_signals_without_information_score_one_half():
    rng = np.random.default_rng(4)
    flat = np.ones((2, 30))
    np.testing.assert_array_equal(attack_accuracy(flat, flat, rng=rng), 0.5)


def test_an_auc_far_below_one_half_is_a_leak_too(signals):
    members, nonmembers = signals
    oracle = np.array([0.49, 0.51])
    up = distance_from_oracle(auc(members, nonmembers), oracle)
    down = distance_from_oracle(auc(nonmembers, members), oracle)
    np.testing.assert_allclose(up, down)
    assert (up > 0.1).all()
    np.testing.assert_allclose(distance_from_oracle([0.2], [0.1, np.nan, 0.1]), [0.1])
    first, second = halves([0.5, 0.52, 0.48, 0.5])
    np.testing.assert_allclose(distance_from_oracle(first, second), [0.01, 0.03])


def test_the_attack_on_an_ensemble_finds_members_and_marks_broken_models():
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, size=80)
    z = rng.normal(size=(3, 80, 3))
    z[0, np.arange(40), y[:40]] += 4  # the first model remembers the first forty
    z[2, 0, 0] = np.nan
    result = attack(z[:, :40], y[:40], z[:, 40:], y[40:], score="loss", rng=rng)
    assert result.auc[0] > 0.85 and result.accuracy[0] > 0.75 and result.tpr[0] > 0.4
    assert abs(result.auc[1] - 0.5) < 0.25
    assert all(np.isnan(field[2]) for field in result)


def test_the_attack_tells_three_low_rates_and_none_that_is_not_resolved():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(2, 1150, 3))
    z[:, :50, 0] += 3
    y = np.zeros(1150, int)
    found = attack(z[:, :50], y[:50], z[:, 50:], y[50:], rng=rng)
    assert (found.tpr >= found.tpr_at_percent).all() and (found.tpr_at_percent > 0).all()
    assert np.isfinite(found.tpr_at_permille).all()
    fewer = attack(z[:, :50], y[:50], z[:, 50:149], y[50:149], rng=rng)
    assert np.isfinite(fewer.tpr).all() and np.isnan(fewer.tpr_at_percent).all()
    enough = attack(z[:, :50], y[:50], z[:, 50:150], y[50:150], rng=rng)
    assert np.isfinite(enough.tpr_at_percent).all() and np.isnan(enough.tpr_at_permille).all()
    nine = attack(z[:, :50], y[:50], z[:, 50:59], y[50:59], rng=rng)
    assert np.isnan(nine.tpr).all() and np.isfinite(nine.auc).all()


def test_the_privacy_of_retained_data_is_the_same_attack_with_retained_members():
    rng = np.random.default_rng(7)
    y = np.zeros(60, int)
    forgotten, retained, held_out = (rng.normal(size=(1, 60, 2)) for _ in range(3))
    retained[..., 0] += 3  # forgetting made the model cling to the rest
    exposed = attack(retained, y, held_out, y, score="margin", rng=rng)
    assert exposed.auc[0] > 0.9
    assert abs(attack(forgotten, y, held_out, y, score="margin", rng=rng).auc[0] - 0.5) < 0.15


def test_the_same_generator_state_gives_the_same_accuracy(signals):
    first, again, other = (
        attack_accuracy(*signals, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_class_only_and_fewer_samples_than_folds_are_typed_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(TooFew, match="attack_accuracy: one class only: there are no members"):
        attack_accuracy(np.zeros(0), np.zeros(4), rng=rng)
    with pytest.raises(TooFew, match="4 examples of one kind for 5 folds"):
        attack_accuracy(np.zeros(9), np.zeros(4), rng=rng)
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        attack_accuracy(np.zeros(9), np.zeros(9), folds=1, rng=rng)
    with pytest.raises(TooFew, match="no oracle with a finite value"):
        distance_from_oracle([0.5], [np.nan])
    z, y = np.zeros((2, 0, 3)), np.zeros(0, int)
    assert attack(z, y, np.zeros((2, 9, 3)), np.zeros(9, int), rng=rng) is None
