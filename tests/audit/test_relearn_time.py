"""Relearn times and their ratio: a loop, values worked by hand, coverage, every kind of cap."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew
from jaxunlearn.audit.relearn_time import anamnesis_index, relearn_time, steps_needed

INF, NAN = np.inf, np.nan


def needed(curves, target, steps=(0, 1, 2, 3), rising=False, **options):
    return steps_needed(curves, target, steps, rising=rising, **options)


def test_the_first_step_at_the_target_is_found_as_by_a_loop():
    rng = np.random.default_rng(0)
    curves, steps = rng.normal(size=(40, 6)), [0, 1, 3, 4, 8, 20]
    for rising in (False, True):
        loop = [
            next(
                (s for s, v in zip(steps, row, strict=True) if (v >= 0.9 if rising else v <= 0.9)),
                INF,
            )
            for row in curves
        ]
        np.testing.assert_array_equal(needed(curves, 0.9, steps, rising), loop)


def test_the_table_of_curves_holds():
    curves = [
        [1, 5, 5, 5],
        [5, 1, 5, 5],
        [5, 5, 5, 5],
        [5, 4, NAN, NAN],
        [5, 1, NAN, NAN],
        [NAN] * 4,
    ]
    np.testing.assert_array_equal(needed(curves, 1.0), [0, 1, INF, NAN, 1, NAN])
    np.testing.assert_array_equal(needed([[5, 4, 3, 2]] * 2, [4, 2.5]), [1, 3])
    assert needed([[2.0, 3.0]], 2.0, (0, 5))[0] == 0  # exactly at the target counts
    assert needed([[INF, 1.0]], 2.0, (0, 5), interpolate=True)[0] == 5


def test_interpolation_is_exact_on_straight_lines_and_keeps_the_ends():
    steps = np.array([0, 4, 10])
    lines = 3 - np.array([[0.1], [0.25]]) * steps
    np.testing.assert_allclose(needed(lines, 2.5, steps, interpolate=True), [5, 2])
    np.testing.assert_allclose(needed(-lines, -2.5, steps, rising=True, interpolate=True), [5, 2])
    np.testing.assert_array_equal(needed(lines, 9.0, steps, interpolate=True), [0, 0])
    np.testing.assert_array_equal(needed(lines, -9.0, steps, interpolate=True), [INF, INF])


def test_the_threshold_is_five_percent_above_the_loss_of_the_originals():
    curves = [[1.0, 0.43, 0.421, 0.41]]
    assert relearn_time(curves, [0.3, 0.5], range(4))[0] == 3  # 1.05 x 0.4 = 0.42
    assert relearn_time(curves, [0.3, 0.5], range(4), margin=0.0525)[0] == 2
    knows = [[0.1, 0.8, 0.84, 0.86]]
    assert relearn_time(knows, [0.9], range(4), quantity="knowledge")[0] == 3  # 0.85
    assert relearn_time(knows, [0.9, NAN], range(4), quantity="knowledge", margin=0.1)[0] == 1


def test_equal_times_have_the_index_one_and_untouched_originals_zero():
    same = anamnesis_index([3, 4, 8], [3, 4, 8], cap=10, seed=0)
    assert same.ratio.value == 1.0 and same.ratio.low < 1 < same.ratio.high
    assert anamnesis_index([0, 0], [3, 4], cap=10, seed=0).ratio[:3] == (0, 0, 0)
    skewed = anamnesis_index([1, 2, 9], [4, 4, 10], cap=10, average="median", seed=0)
    assert skewed.ratio.value == 0.5
    swapped = anamnesis_index([4, 4, 10], [1, 2, 9], cap=10, average="median", seed=0)
    assert swapped.ratio.value == 2.0


def test_capped_runs_are_said_and_bound_the_ratio():
    slow = anamnesis_index([2, INF], [3, 3], cap=10, seed=0)
    assert slow.ratio.value == 2.0 and slow.bound == ">=" and slow.method_capped == 1
    assert "AIN >= 2; 1 of 2 method's runs did not get there within 10 steps" in slow.words
    fast = anamnesis_index([2, 2], [INF, 6, 8], cap=10, seed=0)
    assert fast.ratio.value == 0.25 and fast.bound == "<=" and fast.oracle_capped == 1
    known = anamnesis_index([2, 2], [INF, 6, 8], cap=10, average="median", seed=0)
    assert known.ratio.value == 0.25 and known.bound == "="  # the median run is not capped
    neither = anamnesis_index([INF], [INF], cap=10, seed=0)
    assert neither.ratio is None and "neither group got there" in neither.words  # not 1


def test_an_index_without_a_meaning_is_none_with_the_reason():
    known = anamnesis_index([1, 2], [0, 0], cap=10, seed=0)
    assert known.ratio is None and "know as much without relearning" in known.words
    lost = anamnesis_index([NAN, NAN], [1, 2], cap=10, seed=0)
    assert lost.ratio is None and "2 of 2 method's runs diverged" in lost.words
    partly = anamnesis_index([NAN, 3], [1, 2], cap=10, seed=0)
    assert partly.ratio.value == 2.0 and partly.ratio.count == 1 and "diverged" in partly.words


@pytest.mark.parametrize("average", ["mean", "median"])
def test_the_interval_covers_the_ratio(average):
    trials, covered, narrow = 200, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        method, oracle = (scale * rng.gamma(9, size=20) for scale in (1.0, 2.0))
        found = anamnesis_index(
            method, oracle, cap=1e3, average=average, resamples=200, seed=seed
        ).ratio
        covered += found.low <= 0.5 <= found.high
        # the mutant that resamples one group only
        half = anamnesis_index(
            method, np.full(20, getattr(np, average)(oracle)), cap=1e3, average=average,
            resamples=200, seed=seed,
        ).ratio  # fmt: skip
        narrow += half.low <= 0.5 <= half.high
    assert 0.88 * trials <= covered <= 0.99 * trials
    assert narrow < 0.88 * trials


@pytest.mark.parametrize(
    ("curves", "target", "steps", "message"),
    [
        ([1, 2], 1, [0, 1], r"shape \(models, records\).*got \(2,\) and \(2,\)"),
        ([[1, 2]], 1, [0], r"got \(1, 2\) and \(1,\)"),
        (np.zeros((2, 0)), 1, [], r"at least one, got \(2, 0\)"),
        ([[1, 2]], 1, [1, 1], "steps must increase from >= 0"),
        ([[1, 2]], 1, [-1, 1], "steps must increase from >= 0"),
        ([[1, 2]], [1, 2], [0, 1], "one for each of 1 models"),
        ([[1, 2]], NAN, [0, 1], "none of them NaN"),
    ],
)
def test_curves_that_do_not_fit_are_refused(curves, target, steps, message):
    with pytest.raises(ValueError, match=message):
        needed(curves, target, steps)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="quantity must be one of .*got 'acc'"):
        relearn_time([[1.0]], [1.0], [0], quantity="acc")
    with pytest.raises(ValueError, match="margin must be a finite number >= 0, got -1"):
        relearn_time([[1.0]], [1.0], [0], margin=-1)
    with pytest.raises(ValueError, match="needs a loss >= 0, got -1"):
        relearn_time([[1.0]], [-1.0], [0])
    with pytest.raises(TooFew, match="at least one original with a finite number"):
        relearn_time([[1.0]], [NAN], [0])
    with pytest.raises(ValueError, match="average must be one of .*got 'mode'"):
        anamnesis_index([1], [1], cap=2, average="mode", seed=0)
    with pytest.raises(ValueError, match="cap must be a finite number > 0, got inf"):
        anamnesis_index([1], [1], cap=INF, seed=0)
    with pytest.raises(ValueError, match=r"times of the oracle must be .*in \[0, cap=2\].*\[3.0\]"):
        anamnesis_index([1], [3], cap=2, seed=0)
