"""The attack on single entries: signals by hand, planted leaks found, none where none is."""

import numpy as np
import pytest

from jaxunlearn import audit
from jaxunlearn.audit.entry_membership import ENTRY_SCORES

BEFORE, AFTER, RATINGS = [[4.0, 2.0]], [[3.5, 2.5]], [5.0, 2.0]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("change", [0.5, -0.5]),
        ("size", [0.5, 0.5]),
        ("residual", [0.5, 0.5]),
        ("alone", [3.5, 2.5]),
        ("misfit", [-1.5, -0.5]),
    ],
)
def test_a_signal_is_what_its_name_says(score, expected):
    found = audit.entry_signal(BEFORE, AFTER, score=score, ratings=RATINGS)
    np.testing.assert_allclose(found, [expected])


@pytest.mark.parametrize("score", ENTRY_SCORES)
def test_a_planted_leak_is_found_and_no_leak_is_a_guess(score):
    rng = np.random.default_rng(0)
    ratings = rng.normal(size=2000)
    before = ratings + 0.1 * rng.normal(size=(3, 2000))
    after = before + 0.1 * rng.normal(size=(3, 2000))
    plain = audit.entry_signal(before, after, score=score, ratings=ratings)
    none = audit.entry_attack(plain[:, :1000], plain[:, 1000:])
    assert (abs(none.auc - 0.5) < 0.05).all() and (none.tpr < 0.05).all()
    leak = 5 * np.eye(3)[0][:, None] * (np.arange(2000) < 1000)  # the first model's members
    sign = 1 if score == "alone" else -1
    moved = audit.entry_signal(before, after + sign * leak, score=score, ratings=ratings)
    found = audit.entry_attack(moved[:, :1000], moved[:, 1000:])
    far = 0.01 if score == "misfit" else 0.99  # who is misfitted looks like a member no more
    assert abs(found.auc[0] - far) < 0.011
    np.testing.assert_array_equal(found.auc[1:], none.auc[1:])


def test_a_hundredth_of_the_others_may_be_called_deleted():
    others = np.arange(200.0)[None]  # two of them
    assert audit.entry_attack([[198.0, 197.5, 197.0, 0.0]], others).tpr == [0.5]
    assert audit.entry_attack([[60.0, 58.0]], others[:, :60]).tpr == [0.5]  # none of sixty


def test_a_model_that_is_not_finite_is_undefined_and_the_others_are_not():
    before, after = np.ones((3, 4)), np.ones((3, 4))
    before[0, 1], after[1, 2] = np.inf, np.nan
    for score, broken in (("change", [True, True, False]), ("alone", [False, True, False])):
        signal = audit.entry_signal(before, after, score=score)
        assert np.isnan(signal).all(axis=1).tolist() == broken
        assert np.isnan(audit.entry_attack(signal, signal).auc).tolist() == broken


def test_without_members_or_others_there_is_no_attack():
    assert audit.entry_attack(np.zeros((2, 0)), np.zeros((2, 3))) is None
    assert audit.entry_attack(np.zeros((2, 3)), np.zeros((2, 0))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "loss"}, "score must be one of .*change.*got 'loss'"),
        ({"after": [[1.0]]}, r"of the same models, got \(1, 2\) and \(1, 1\)"),
        ({"ratings": None}, r"score 'residual' needs ratings \(2,\), got none"),
        ({"ratings": [1.0]}, r"needs ratings \(2,\), got \(1,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"before": BEFORE, "after": AFTER, "score": "residual", "ratings": RATINGS} | change
    with pytest.raises(ValueError, match=message):
        audit.entry_signal(given.pop("before"), given.pop("after"), **given)
