"""Bootstrap intervals over models."""

import numpy as np
import pytest

from jaxunlearn.audit import bootstrap_weights, mean_interval, percentile_interval


def test_weights_are_the_counts_of_drawing_with_replacement():
    w = bootstrap_weights(np.random.default_rng(0), 5, 2000)
    counts = w * 5
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-12)
    np.testing.assert_allclose(w.sum(axis=1), 1)
    np.testing.assert_allclose(w.mean(axis=0), 0.2, atol=0.02)
    assert counts.var() == pytest.approx(0.8, rel=0.1)  # multinomial: n p (1 - p)


def test_the_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    interval = mean_interval(values, rng=np.random.default_rng(0), resamples=4000)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.value == pytest.approx(half, rel=0.1)
    assert interval.value - interval.low == pytest.approx(half, rel=0.1)
    assert interval.count == 400


def test_the_interval_equals_that_of_scipy_in_its_own_resampling():
    import scipy.stats

    values = np.random.default_rng(2).exponential(size=30)
    ours = mean_interval(values, rng=np.random.default_rng(0), resamples=9000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_same_generator_state_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(3).normal(size=12)
    first, again, other = (
        mean_interval(values, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_undefined_models_are_left_out_and_nothing_gives_none():
    rng = np.random.default_rng(0)
    assert mean_interval([], rng=rng) is None
    assert mean_interval([np.nan, np.inf], rng=rng) is None
    some = mean_interval([1.0, np.nan, 1.0], rng=rng)
    assert some == (1.0, 1.0, 1.0, 2)
    assert mean_interval([0.3], rng=rng) == (0.3, 0.3, 0.3, 1)


def test_undefined_replicates_are_left_out():
    interval = percentile_interval(0.0, [np.nan, -1.0, 1.0], count=2, level=0.999)
    assert interval.low == pytest.approx(-1, abs=0.01)
    assert np.isnan(percentile_interval(0.0, [np.nan], count=2).low)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"strictly between 0 and 1, got 1\.5"):
        mean_interval([1.0, 2.0], rng=np.random.default_rng(0), level=1.5)
    with pytest.raises(ValueError, match=r"shape \(M,\), got \(2, 2\)"):
        mean_interval(np.ones((2, 2)), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="size >= 1 and resamples >= 1, got 0 and 5"):
        bootstrap_weights(np.random.default_rng(0), 0, 5)


WAYS = ("percentile", "expanded", "student", "studentised")


def coverage(how, models, draw, mean, trials=400):
    rng = np.random.default_rng(4)
    found = [
        mean_interval(row, rng=rng, how=how, resamples=400) for row in draw(rng, (trials, models))
    ]
    return np.mean([i.low <= mean <= i.high for i in found])


def normal(rng, size):
    return rng.normal(2, 3, size)


def skewed(rng, size):
    return rng.exponential(size=size)


def test_with_eight_models_the_percentile_interval_is_too_narrow_and_others_are_not():
    found = {how: coverage(how, 8, normal, 2.0) for how in WAYS}
    assert found["percentile"] < 0.92  # 0.885 in the long run
    for how in ("expanded", "student", "studentised"):
        assert found[how] == pytest.approx(0.95, abs=0.025), how


def test_skewed_models_are_for_the_studentised_interval():
    found = {how: coverage(how, 8, skewed, 1.0) for how in WAYS}
    assert found["percentile"] < 0.88 and max(found["expanded"], found["student"]) < 0.93
    assert found["studentised"] > 0.91


def test_with_many_models_all_intervals_agree():
    values = np.random.default_rng(5).normal(size=400)
    ends = np.array([mean_interval(values, rng=np.random.default_rng(0), resamples=4000,
                                   how=how)[1:3] for how in WAYS])  # fmt: skip
    assert np.ptp(ends, axis=0).max() < 0.01


def test_the_student_interval_is_that_of_scipy_and_needs_no_random_number():
    import scipy.stats

    values = np.array([0.2, 0.9, 0.4, 0.7, 0.1])
    ours = mean_interval(values, rng=np.random.default_rng(0), how="student", level=0.9)
    theirs = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_the_expanded_interval_holds_the_percentile_one_and_stays_within_the_range():
    values = np.r_[np.ones(7), 0.6]
    rng = np.random.default_rng
    narrow = mean_interval(values, rng=rng(0))
    wide = mean_interval(values, rng=rng(0), how="expanded")
    assert wide.low <= narrow.low < narrow.high <= wide.high <= 1
    assert mean_interval(values, rng=rng(0), how="student").high > 1


def test_no_spread_gives_no_width_and_one_model_no_ends():
    for how in WAYS[1:]:
        rng = np.random.default_rng(0)
        assert mean_interval([0.3] * 4, rng=rng, how=how) == (0.3, 0.3, 0.3, 4)
        alone = mean_interval([0.3, np.nan], rng=rng, how=how)
        assert alone.value == 0.3 and np.isnan([alone.low, alone.high]).all() and alone.count == 1
        assert mean_interval([], rng=rng, how=how) is None
        two = mean_interval([0.0, 1.0], rng=rng, how=how)
        assert np.isnan(two.low) == (how != "student") and two.count == 2
        four = mean_interval([0.0, 1.0, 0.2, 0.3], rng=rng, how=how)
        assert four.low < 0.375 < four.high
    with pytest.raises(ValueError, match=r"how must be one of .* got 'bca'"):
        mean_interval([1.0, 2.0], rng=np.random.default_rng(0), how="bca")
