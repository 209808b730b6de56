"""The one-run auditor: jax-privacy's bounds under our names, audited on mechanisms we know."""

import sys

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, auc, canary_interval, one_run_epsilon


@pytest.fixture
def auditing():
    return pytest.importorskip("jax_privacy.auditing")


def randomised_response(epsilon, m, models, seed=0):
    """Each canary's coin is told truly with probability 1 / (1 + e^-epsilon): pure DP, m times."""
    rng = np.random.default_rng(seed)
    truth = rng.random((models, 2 * m)) < 1 / (1 + np.exp(-epsilon))
    noise = 0.01 * rng.random((models, 2 * m))
    return truth[:, :m] + noise[:, :m], ~truth[:, m:] + noise[:, m:]


def test_the_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_privacy", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxunlearn\[audit\]'"):
        one_run_epsilon(np.ones(4), np.zeros(4), delta=1e-5, seed=0)
    with pytest.raises(ImportError, match=r"pip install 'jaxunlearn\[audit\]'"):
        canary_interval(np.ones(4), np.zeros(4), seed=0)


def test_each_model_has_the_bound_that_the_package_gives(auditing):
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 1, (3, 80)), rng.normal(0, 1, (3, 70))
    for curve, ask in (("any", "epsilon_one_run"), ("gaussian", "epsilon_one_run_fdp")):
        for how, strategy, extra in (
            ("split", auditing.Split(seed=5), {}),
            ("bonferroni", auditing.Bonferroni(), {}),
            ("given", auditing.Explicit(1.0), {"threshold": 1.0}),
        ):
            found = one_run_epsilon(
                a, b, delta=1e-4, confidence=0.9, how=how, curve=curve, seed=5, **extra
            )
            theirs = [
                getattr(auditing.CanaryScoreAuditor(x, y), ask)(
                    0.1, 1e-4, threshold_strategy=strategy
                )
                for x, y in zip(a, b, strict=True)
            ]
            np.testing.assert_allclose(found, theirs, atol=1e-5)
            one = one_run_epsilon(a[1], b[1], delta=1e-4, confidence=0.9, how=how, curve=curve,
                                  seed=5, **extra)  # fmt: skip
            assert one.shape == () and one == pytest.approx(found[1], abs=1e-5)


def test_the_bound_stays_below_the_truth_and_comes_near_it(auditing):
    a, b = randomised_response(1.5, 250, 100)
    found = one_run_epsilon(a, b, delta=1e-6, how="given", threshold=0.5, seed=0)
    assert (found <= 1.5).mean() >= 0.95 and found.mean() > 0.75 * 1.5
    assert (found > 1.0).mean() > 0.5  # a claim of 1 is refuted
    split = one_run_epsilon(a[:50], b[:50], delta=1e-6, seed=0)
    assert (split <= 1.5).mean() >= 0.95
    plug_in = np.log((a > 0.5).mean(1) / (b > 0.5).mean(1))  # no bound: above it half of the time
    assert (plug_in > 1.5).mean() > 0.3


def test_no_signal_and_swapped_canaries_show_nothing(auditing):
    a, b = randomised_response(0.0, 60, 60)
    assert (one_run_epsilon(a, b, delta=1e-6, how="bonferroni", seed=0) > 0).mean() <= 0.05
    a, b = randomised_response(3.0, 60, 5)
    assert (one_run_epsilon(a, b, delta=1e-6, seed=0) > 0.5).all()
    assert (one_run_epsilon(b, a, delta=1e-6, seed=0) == 0).all()


def test_the_interval_holds_the_value_and_shrinks_with_canaries(auditing):
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, (2, 300)), rng.normal(0, 1, (2, 300))
    found = canary_interval(a, b, resamples=100, seed=0)
    assert (found.value > auc(a, b)).all()  # the hull lies above the curve
    np.testing.assert_allclose(found.value, auc(a, b), atol=0.02)
    assert (found.low < found.value).all() and (found.value < found.high).all()
    few = canary_interval(a[:, :40], b[:, :40], resamples=100, seed=0)
    assert ((few.high - few.low) > 1.8 * (found.high - found.low)).all()
    again = canary_interval(a, b, resamples=100, seed=0)
    other = canary_interval(a, b, resamples=100, seed=1)
    assert (found.low == again.low).all() and (found.low != other.low).any()
    tpr = canary_interval(a[0], b[0], of="tpr", fpr=0.2, resamples=50, seed=0)
    barrier = np.sort(b[0])[-60]
    assert tpr.value == pytest.approx((a[0] >= barrier).mean(), abs=0.02)
    epsilon = canary_interval(a[0], b[0], of="epsilon", min_count=20, resamples=50, seed=0)
    assert 0 < epsilon.low <= epsilon.value


def test_a_broken_model_is_undefined_alone(auditing):
    a, b = randomised_response(2.0, 20, 2)
    a[0, 3] = np.nan
    found = one_run_epsilon(a, b, delta=1e-5, seed=0)
    assert np.isnan(found).tolist() == [True, False]
    assert np.isnan(canary_interval(a, b, resamples=5, seed=0).value).tolist() == [True, False]
    assert np.isnan(canary_interval(a[:1], b[:1], resamples=5, seed=0).high).all()


def test_bad_input_is_refused(auditing):
    a, b = np.ones(8), np.zeros(8)
    with pytest.raises(TooFew, match="one class only: there are no non-members"):
        one_run_epsilon(a, b[:0], delta=1e-5, seed=0)
    with pytest.raises(TooFew, match="1 members, needs at least 2"):
        one_run_epsilon(a[:1], b, delta=1e-5, seed=0)
    with pytest.raises(ValueError, match=r"expected delta in \(0, 1\), got 0"):
        one_run_epsilon(a, b, delta=0, seed=0)
    with pytest.raises(ValueError, match="confidence strictly between 0 and 1, got 0"):
        one_run_epsilon(a, b, delta=1e-5, confidence=0, seed=0)
    with pytest.raises(ValueError, match=r"how must be one of .* got 'multi'"):
        one_run_epsilon(a, b, delta=1e-5, how="multi", seed=0)
    with pytest.raises(ValueError, match=r"curve must be one of .* got 'laplace'"):
        one_run_epsilon(a, b, delta=1e-5, curve="laplace", seed=0)
    with pytest.raises(ValueError, match='threshold goes with how="given"'):
        one_run_epsilon(a, b, delta=1e-5, threshold=1.0, seed=0)
    with pytest.raises(ValueError, match=r"of must be one of .* got 'accuracy'"):
        canary_interval(a, b, of="accuracy", seed=0)
    with pytest.raises(ValueError, match="at least 1 resample, got 0"):
        canary_interval(a, b, resamples=0, seed=0)
    with pytest.raises(ValueError, match=r"signals \(models, examples\) of the same models"):
        one_run_epsilon(np.ones((2, 4)), np.ones((3, 4)), delta=1e-5, seed=0)
