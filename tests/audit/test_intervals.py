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
