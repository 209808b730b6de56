"""Three kinds of feedback as one form: each against the double sum of its definition."""

import numpy as np
import pytest

from jaxunlearn.factorisation.feedback import feedback_of

X, OFFSET = np.array([0.3, -1.2, 2.0]), np.array([0.1, 0.0, -0.4])
ZERO = np.zeros(3)
COUNT = np.array([1.0, 4.0, 2.5])
L, A, A0 = 0.3, 0.7, 0.2


def share(kind, x, offset=ZERO, unobserved=A0):
    """What a rating adds to what is summed over all pairs."""
    feedback = feedback_of(kind, L, None, A, unobserved, False)
    w, s, c = feedback.terms(COUNT, np.ones(3), offset)
    return w * x**2 - 2 * s * x + c


def test_a_rating_is_the_square_of_what_the_offset_and_the_factors_leave():
    np.testing.assert_allclose(share("explicit", X, OFFSET), (COUNT - OFFSET - X) ** 2, rtol=1e-13)


def test_a_count_is_a_confidence_in_a_one_instead_of_the_weight_of_a_zero():
    expected = (1 + A * COUNT) * (1 - X) ** 2 - A0 * X**2
    np.testing.assert_allclose(share("implicit", X), expected, rtol=1e-13)
    np.testing.assert_allclose(share("ials", X), (1 - X) ** 2, rtol=1e-13)


def test_equal_confidence_everywhere_is_ridge_regression_of_zeros_and_ones():
    feedback = feedback_of("implicit", L, None, 0.0, 1.0, False)
    w, s, c = feedback.terms(COUNT, np.ones(3), np.zeros(3))
    np.testing.assert_array_equal([w, s, c], [np.zeros(3), np.ones(3), np.ones(3)])


@pytest.mark.parametrize("kind", ["explicit", "implicit", "ials"])
def test_a_rating_of_weight_zero_says_nothing_whatever_its_value(kind):
    feedback = feedback_of(kind, L, None, A, A0, False)
    value = np.array([np.nan, np.inf, 1e300])
    np.testing.assert_array_equal(feedback.terms(value, np.zeros(3), OFFSET), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("kind", "exponent", "expected"),
    [
        ("explicit", None, [L, L]),
        ("explicit", 1.0, [4 * L, 9 * L]),
        ("explicit", 0.5, [2 * L, 3 * L]),
        ("implicit", None, [L, L]),
        ("implicit", 1.0, [(4 + A0 * 50) * L, (9 + A0 * 50) * L]),
        ("ials", None, [(4 + A0 * 50) * L, (9 + A0 * 50) * L]),
    ],
)
def test_the_penalty_of_a_row_grows_with_what_is_known_of_it(kind, exponent, expected):
    feedback = feedback_of(kind, L, exponent, A, A0, False)
    np.testing.assert_allclose(feedback.penalty(np.array([4.0, 9.0]), 50), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("implict", L, None, A, A0, False), "no feedback is called 'implict'.*implicit"),
        (("explicit", -1.0, None, A, A0, False), "expected regularisation .* >= 0, got -1"),
        (("explicit", np.nan, None, A, A0, False), "expected regularisation .* got nan"),
        (("explicit", L, -0.5, A, A0, False), "expected exponent .* got -0.5"),
        (("implicit", L, None, np.inf, A0, False), "expected alpha .* got inf"),
        (("ials", L, None, A, -0.1, False), "expected unobserved .* got -0.1"),
        (("implicit", L, None, A, 1.5, False), r"unobserved in \[0, 1\] for implicit .* got 1.5"),
        (("implicit", L, None, A, A0, True), "biases belong to explicit feedback, not to 'imp"),
    ],
)
def test_what_is_no_objective_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        feedback_of(*given)


def test_unobserved_pairs_may_weigh_more_than_one_where_that_stays_convex():
    assert feedback_of("ials", L, None, A, 1.5, False).unobserved == 1.5
