"""The bounds of numbers that are passed in."""

import jax
import pytest

from jaxunlearn.typing import check_between


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"above": 0}, "half: alpha must be a finite number > 0, got 0"),
        (-1, {"at_least": 0}, ">= 0, got -1"),
        (1.5, {"at_least": 0, "at_most": 1}, ">= 0 and <= 1, got 1.5"),
        (1, {"below": 1}, "< 1, got 1"),
        (float("nan"), {}, "a finite number, got nan"),
        (float("inf"), {"above": 0}, "got inf"),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name(value, bounds, message):
    with pytest.raises(ValueError, match=message):
        check_between("half", "alpha", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(0, {"at_least": 0}), (1, {"at_most": 1}), (0.5, {"above": 0, "below": 1}), (-7, {})],
)
def test_a_number_within_bounds_passes(value, bounds):
    check_between("half", "alpha", value, **bounds)


def test_a_traced_number_passes():
    def f(alpha):
        check_between("half", "alpha", alpha, above=10)
        return alpha

    assert jax.jit(f)(1.0) == 1
