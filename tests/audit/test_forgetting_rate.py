"""The forgetting rate: its extremes, its identity, and the threshold against brute force."""

import itertools

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, forgetting_rate, membership_threshold


def test_nothing_happened_is_zero():
    before = np.array([True, False, True])
    assert forgetting_rate(before, before) == 0


def test_one_exactly_if_nobody_is_recognised_any_more():
    """All pairs of judgements of four examples: FR = 1 iff no member is left, old or new."""
    judgements = [np.array(bits) for bits in itertools.product([False, True], repeat=4)]
    for before, after in itertools.product(judgements, judgements):
        rate = forgetting_rate(before, after)
        if not before.any():
            assert np.isnan(rate)
            continue
        assert (rate == 1) == (not after.any())
        assert rate <= 1
        np.testing.assert_allclose(rate, 1 - after.sum() / before.sum())


def test_an_example_that_became_recognisable_is_counted_against_it():
    assert forgetting_rate([True, False], [False, True]) == 0
    assert forgetting_rate([True, False, False], [True, True, True]) == -2


def test_many_models_are_many_rates():
    before = np.array([[True, True], [False, False], [True, False]])
    after = np.array([[False, True], [True, True], [False, False]])
    np.testing.assert_array_equal(forgetting_rate(before, after), [0.5, np.nan, 1.0])
    assert np.isnan(forgetting_rate(np.zeros((2, 0), bool), np.zeros((2, 0), bool))).all()


def test_signals_and_other_shapes_are_refused():
    with pytest.raises(TypeError, match=r"`before` must say True.*float64.*membership_threshold"):
        forgetting_rate([0.3, 0.2], [True, False])
    with pytest.raises(TypeError, match="`after` must say True"):
        forgetting_rate([True, False], [1, 0])
    with pytest.raises(ValueError, match=r"same models and examples, got \(2,\) and \(3,\)"):
        forgetting_rate([True, False], [True, False, True])


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        members = rng.integers(0, 6, 7).astype(float) + 1  # with ties
        others = rng.integers(0, 6, 5).astype(float)
        advantage = {
            t: round((members >= t).mean() - (others >= t).mean(), 9)
            for t in np.concatenate([members, others])
        }
        best = max(advantage.values())
        expected = max(t for t, gain in advantage.items() if gain == best)
        assert membership_threshold(members, others) == expected


def test_thresholds_of_many_models_are_their_own():
    members, others = np.array([[3.0, 2.0], [1.0, np.nan]]), np.array([[1.0], [0.0]])
    np.testing.assert_array_equal(membership_threshold(members, others), [2.0, np.nan])


def test_an_attack_of_one_class_has_no_threshold():
    for members, others, missing in (([], [1.0], "members"), ([1.0], [], "non-members")):
        with pytest.raises(TooFew, match=f"there are no {missing}"):
            membership_threshold(members, others)
    with pytest.raises(ValueError, match="signals"):
        membership_threshold(np.ones((2, 3)), np.ones((3, 3)))
