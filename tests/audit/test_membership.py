"""The simple membership attack: signals by loop, AUC and ROC by scikit-learn, edges."""

import math

import numpy as np
import pytest

from jaxunlearn.audit import (
    TooFew,
    attack,
    attack_accuracy,
    attack_signal,
    auc,
    distance_from_oracle,
    halves,
    roc_curve,
    tpr_at_fpr,
)
from jaxunlearn.audit.membership import fit_logistic


@pytest.fixture
def signals():
    rng = np.random.default_rng(0)
    return rng.normal(0.8, 1, size=(3, 60)).round(1), rng.normal(size=(3, 45)).round(1)  # with ties


def test_every_signal_equals_its_equation():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(scale=2, size=(2, 5, 3)), rng.integers(0, 3, size=5)
    for m in range(2):
        for x in range(5):
            p = np.exp(logits[m, x]) / np.exp(logits[m, x]).sum()
            y = labels[x]
            others = [c for c in range(3) if c != y]
            expected = {
                "loss": math.log(p[y]),
                "confidence": p[y],
                "entropy": sum(c * math.log(c) for c in p),
                "modified_entropy": (1 - p[y]) * math.log(p[y])
                + sum(p[c] * math.log(1 - p[c]) for c in others),
            }
            for score, value in expected.items():
                got = attack_signal(logits, labels, score=score)[m, x]
                assert got == pytest.approx(value, rel=1e-9), score


def test_modified_entropy_tells_confidently_right_from_confidently_wrong():
    z = np.array([[[9.0, 0, 0], [9.0, 0, 0]]])
    right, wrong = attack_signal(z, [0, 1], score="modified_entropy")[0]
    assert right > -0.01 and wrong < -5
    same = attack_signal(z, [0, 1], score="entropy")[0]  # which entropy cannot do
    assert same[0] == same[1]


def test_signals_are_finite_for_masked_classes_and_undefined_for_broken_models():
    z = np.array([[[-np.inf, 500.0, 0.0]], [[np.nan, 1.0, 0.0]]])
    for score in ("loss", "confidence", "entropy", "modified_entropy"):
        signal = attack_signal(z, [0], score=score)
        assert np.isfinite(signal[0]).all() and np.isnan(signal[1]).all()
    assert attack_signal(z, [0], score="loss")[0, 0] == -100


def test_auc_counts_pairs_with_ties_one_half(signals):
    members, nonmembers = signals
    for m in range(3):
        wins = [(a > b) + 0.5 * (a == b) for a in members[m] for b in nonmembers[m]]
        assert auc(members, nonmembers)[m] == pytest.approx(np.mean(wins))
    np.testing.assert_allclose(auc(nonmembers, members), 1 - auc(members, nonmembers))
    assert auc(np.ones(4), np.ones(9)) == 0.5


def test_auc_and_roc_agree_with_scikit_learn(signals):
    metrics = pytest.importorskip("sklearn.metrics")
    for members, nonmembers in zip(*signals, strict=True):
        truth = np.r_[np.ones(60), np.zeros(45)]
        both = np.r_[members, nonmembers]
        assert auc(members, nonmembers) == pytest.approx(metrics.roc_auc_score(truth, both))
        fpr, tpr, _ = metrics.roc_curve(truth, both, drop_intermediate=False)
        curve = roc_curve(members, nonmembers)
        np.testing.assert_allclose(curve.fpr, fpr)
        np.testing.assert_allclose(curve.tpr, tpr)
        for level in (0.0, 0.1, 0.37, 1.0):
            best = tpr[fpr <= level + 1e-12].max()
            assert tpr_at_fpr(members, nonmembers, fpr=level) == pytest.approx(best)


def test_the_area_under_the_curve_is_the_auc(signals):
    curve = roc_curve(signals[0][0], signals[1][0])
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(auc(signals[0][0], signals[1][0]))


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
    np.testing.assert_array_equal(auc(flat, flat), 0.5)
    np.testing.assert_array_equal(tpr_at_fpr(flat, flat), 0)


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


def test_the_same_generator_state_gives_the_same_accuracy(signals):
    first, again, other = (
        attack_accuracy(*signals, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_one_class_only_and_fewer_samples_than_folds_are_typed_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(TooFew, match="auc: one class only: there are no members"):
        auc(np.zeros((2, 0)), np.zeros((2, 4)))
    with pytest.raises(TooFew, match="roc_curve: one class only: there are no non-members"):
        roc_curve(np.zeros(3), np.zeros(0))
    with pytest.raises(TooFew, match="4 examples of one kind for 5 folds"):
        attack_accuracy(np.zeros(9), np.zeros(4), rng=rng)
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        attack_accuracy(np.zeros(9), np.zeros(9), folds=1, rng=rng)
    with pytest.raises(ValueError, match=r"score must be one of .* got 'margin'"):
        attack_signal(np.zeros((1, 2, 2)), [0, 0], score="margin")
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(1, 3\)"):
        auc(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"expected fpr in \[0, 1\], got 2"):
        tpr_at_fpr(np.zeros(3), np.zeros(3), fpr=2)
    with pytest.raises(ValueError, match=r"one model, signals \(m,\), got \(2, 3\)"):
        roc_curve(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(TooFew, match="no oracle with a finite value"):
        distance_from_oracle([0.5], [np.nan])
    z, y = np.zeros((2, 0, 3)), np.zeros(0, int)
    assert attack(z, y, np.zeros((2, 9, 3)), np.zeros(9, int), rng=rng) is None
