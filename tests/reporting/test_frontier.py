"""The front of forgetting, damage and cost, and its picture."""

import numpy as np
import pytest

from jaxunlearn.reporting import pareto_front, report
from jaxunlearn.reporting.frontier import _staircase, frontier, unbeaten
from jaxunlearn.reporting.tables import lines

from .test_report import FLOORS, plausible


def priced(**prices):
    """A record whose methods have (forget, collateral, share of retraining)."""
    record = plausible(methods=len(prices))
    rows = [row for row in record["rows"] if row["role"] == "method"]
    for row, (name, (forget, kept, share)) in zip(rows, prices.items(), strict=True):
        row["label"] = name
        energies = {part: kept * floor for part, floor in FLOORS.items()}
        row["verdict"]["energies"] = energies | {"forget": forget * FLOORS["forget"]}
        row["seconds"]["of_retraining"] = share
    return record


RECORD = priced(
    quick=(50.0, 1.0, 0.01), right=(2.0, 2.0, 0.1), rude=(1.0, 40.0, 0.1), slow=(3.0, 2.5, 0.3)
)


def test_the_unbeaten_are_those_that_none_is_better_than_in_all_three():
    assert unbeaten(RECORD) == ["quick", "right", "rude"]


def test_the_staircase_takes_the_gentle_ones_only():
    shares = {row["label"]: row["seconds"]["of_retraining"] for row in RECORD["rows"]}
    found = [(line, shares[line.label]) for line in lines(RECORD) if line.role == "method"]
    np.testing.assert_allclose(_staircase(found), [(0.01, 50.0), (0.1, 2.0)], rtol=1e-6)


def test_the_picture_is_the_same_every_time_and_stands_in_the_report():
    assert frontier(RECORD) == frontier(RECORD)
    assert frontier(RECORD) != frontier(priced(a=(50.0, 1.0, 0.01), b=(2.0, 2.0, 0.1)))
    page = report.html(RECORD)
    assert "What each budget buys" in page
    assert "than quick, right, rude." in page


def test_without_times_there_is_no_picture():
    record = priced(a=(50.0, 1.0, None), b=(2.0, 2.0, None))
    assert frontier(record) is None and unbeaten(record) == []
    assert "What each budget buys" not in report.html(record)


def test_the_front_is_what_nobody_beats():
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 6, (40, 3)).astype(float)
    expected = [
        not any((other <= own).all() and (other < own).any() for other in costs) for own in costs
    ]
    np.testing.assert_array_equal(pareto_front(costs), expected)


def test_an_undefined_cost_is_on_no_front_and_pushes_nobody_off_it():
    np.testing.assert_array_equal(pareto_front([[np.nan, 0], [1, 1]]), [False, True])


def test_a_front_needs_a_matrix():
    with pytest.raises(ValueError, match=r"\(points, costs\) matrix, got \(2,\)"):
        pareto_front([1.0, 2.0])
