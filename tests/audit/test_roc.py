"""ROC tools: the area by pairs and by scikit-learn, low rates, what k non-members resolve."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, auc, roc_curve, tpr_at_fpr
from jaxunlearn.audit.roc import allowed_false_positives


@pytest.fixture
def signals():
    rng = np.random.default_rng(0)
    return rng.normal(0.8, 1, size=(3, 60)).round(1), rng.normal(size=(3, 45)).round(1)  # with ties


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


def test_an_attack_whose_members_and_nonmembers_are_swapped_has_one_minus_the_area(signals):
    members, nonmembers = signals
    swapped = auc(nonmembers, members)
    np.testing.assert_allclose(swapped, 1 - auc(members, nonmembers))
    assert (abs(swapped - auc(members, nonmembers)) > 0.2).all()


def test_a_rate_that_the_nonmembers_do_not_resolve_is_undefined_and_not_zero():
    rng = np.random.default_rng(1)
    members, nonmembers = rng.normal(5, 1, (2, 30)), rng.normal(size=(2, 99))
    assert np.isnan(tpr_at_fpr(members, nonmembers, fpr=0.01)).all()
    enough = np.concatenate([nonmembers, np.zeros((2, 1))], axis=1)
    assert (tpr_at_fpr(members, enough, fpr=0.01) > 0.9).all()
    assert (tpr_at_fpr(members, nonmembers, fpr=0.0) > 0.9).all()  # above all that are there
    assert allowed_false_positives(0.01, 99) is None
    assert allowed_false_positives(0.01, 100) == 1 == allowed_false_positives(0.1, 19)
    assert allowed_false_positives(0.0, 5) == 0


def test_a_tie_at_the_threshold_is_not_a_true_positive():
    members, nonmembers = np.array([1.0, 1.0, 2.0]), np.r_[np.zeros(9), 1.0, 1.0, 1.0]
    # one of twelve may pass; three are equal, so none does, and no member equal to them either
    assert tpr_at_fpr(members, nonmembers, fpr=0.1) == pytest.approx(1 / 3)
    assert (members >= 1.0).mean() == 1  # what counting ties as found would give
    assert tpr_at_fpr(members, nonmembers, fpr=1.0) == 1


def test_signals_without_information_and_broken_models():
    flat = np.ones((2, 30))
    np.testing.assert_array_equal(auc(flat, flat), 0.5)
    np.testing.assert_array_equal(tpr_at_fpr(flat, flat), 0)
    broken = flat.copy()
    broken[1, 4] = np.nan
    assert np.isnan(auc(broken, flat)).tolist() == [False, True]
    assert np.isnan(tpr_at_fpr(flat, broken)).tolist() == [False, True]


def test_one_class_only_and_other_bad_input_have_typed_errors():
    with pytest.raises(TooFew, match="auc: one class only: there are no members"):
        auc(np.zeros((2, 0)), np.zeros((2, 4)))
    with pytest.raises(TooFew, match="roc_curve: one class only: there are no non-members"):
        roc_curve(np.zeros(3), np.zeros(0))
    with pytest.raises(TooFew, match="tpr_at_fpr: one class only"):
        tpr_at_fpr(np.zeros(3), np.zeros(0))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(1, 3\)"):
        auc(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"expected fpr in \[0, 1\], got 2"):
        tpr_at_fpr(np.zeros(3), np.zeros(3), fpr=2)
    with pytest.raises(ValueError, match=r"one model, signals \(m,\), got \(2, 3\)"):
        roc_curve(np.zeros((2, 3)), np.zeros((2, 3)))
