"""The probe's optimum: scikit-learn, its own stationarity, one model apart from its company."""

import numpy as np
import pytest
from scipy.special import softmax

from jaxunlearn.audit import TooFew, fit_probe, probe_logits


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 90)
    mix = rng.normal(size=(3, 7, 7))
    x = np.maximum((rng.normal(size=(3, 4, 7))[:, y] + rng.normal(size=(3, 90, 7))) @ mix, 0)
    return x, y


def standardised(x, probe, model):
    return (x[model] - probe.centre[model]) / probe.spread[model]


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_probabilities_agree_with_scikit_learn(examples, l2):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = examples
    probe = fit_probe(x, y, l2=l2)
    found = softmax(probe_logits(probe, x), axis=-1)
    for model in range(3):
        features = standardised(x, probe, model)
        reference = linear.LogisticRegression(C=1 / l2, tol=1e-8, max_iter=10_000)
        expected = reference.fit(features, y).predict_proba(features)
        np.testing.assert_allclose(found[model], expected, atol=1e-4)
    doubled = softmax(probe_logits(fit_probe(x, y, l2=2 * l2), x), axis=-1)
    assert np.abs(doubled - found).max() > 1e-3  # a wrong penalty would be noticed


def test_two_classes_are_a_binary_regression_with_half_the_penalty(examples):
    linear = pytest.importorskip("sklearn.linear_model")
    x, y = examples
    probe = fit_probe(x, y % 2, l2=3.0)
    found = softmax(probe_logits(probe, x), axis=-1)
    features = standardised(x, probe, 0)
    reference = linear.LogisticRegression(C=2 / 3, tol=1e-8, max_iter=10_000).fit(features, y % 2)
    np.testing.assert_allclose(found[0], reference.predict_proba(features), atol=1e-4)


@pytest.mark.parametrize("width", [7, 120])
def test_the_gradient_vanishes_at_the_optimum_with_few_and_with_many_features(examples, width):
    x, y = examples
    rng = np.random.default_rng(1)
    wide = x @ rng.normal(size=(3, 7, width)) + 0.1 * rng.normal(size=(3, 90, width))
    probe = fit_probe(wide, y, l2=0.5, tolerance=1e-9)
    assert (probe.residual <= 1e-9).all()
    for model in range(3):
        features = standardised(wide, probe, model)
        p = softmax(features @ probe.weight[model] + probe.bias[model], axis=1)
        miss = p - np.eye(4)[y]
        gradient = features.T @ miss + 0.5 * probe.weight[model]
        start = np.linalg.norm(features.T @ (0.25 - np.eye(4)[y]))
        assert np.linalg.norm(gradient) < 2e-9 * start
        assert np.abs(miss.sum(axis=0)).max() < 2e-9 * start  # the intercept is not penalised
        unpenalised = features.T @ miss
        assert np.linalg.norm(unpenalised) > 1e-4 * start


def test_a_model_has_the_same_probe_alone_and_in_company(examples):
    x, y = examples
    together = fit_probe(x, y)
    alone = fit_probe(x[1:2], y)
    np.testing.assert_allclose(together.weight[1:2], alone.weight, atol=1e-12)
    np.testing.assert_allclose(together.bias[1:2], alone.bias, atol=1e-12)


def test_separable_features_have_a_finite_optimum(examples):
    _, y = examples
    x = 50.0 * np.eye(4)[y][None]
    probe = fit_probe(x, y, l2=1e-6)
    assert probe.residual.max() <= 1e-6 and np.isfinite(probe.weight).all()
    assert (probe_logits(probe, x).argmax(2) == y[None, :]).all()


def test_an_affine_map_of_single_features_changes_no_probability(examples):
    x, y = examples
    scale, shift = np.array([1e-4, 1, 1e4, 1, 2, 3, 4.0]), np.arange(7.0)
    mapped = x * scale[None, None, :] + shift[None, None, :]
    np.testing.assert_allclose(
        probe_logits(fit_probe(mapped, y), mapped), probe_logits(fit_probe(x, y), x), atol=1e-4
    )


def test_a_constant_feature_has_no_weight_and_an_absent_class_no_probability(examples):
    x, y = examples
    x = x.copy()
    x[:, :, 2] = 0.1
    probe = fit_probe(x, np.where(y == 1, 0, y), num_classes=6)
    np.testing.assert_array_equal(np.abs(probe.weight[:, 2]) < 1e-12, True)
    logits = probe_logits(probe, x)
    assert logits.shape == (3, 90, 6) and np.isneginf(logits[:, :, [1, 4, 5]]).all()
    assert np.isfinite(logits[:, :, [0, 2, 3]]).all()


def test_broken_models_are_nan_and_leave_the_others_alone(examples):
    x, y = examples
    broken = x.copy()
    broken[1, 5, 5] = np.nan
    probe = fit_probe(broken, y)
    logits = probe_logits(probe, x)
    assert np.isnan(logits[1]).all() and np.isnan(probe.residual[1])
    np.testing.assert_allclose(logits[[0, 2]], probe_logits(fit_probe(x, y), x)[[0, 2]], atol=1e-10)
    assert np.isnan(probe_logits(fit_probe(x, y), broken)[1]).all()


def test_a_probe_that_did_not_converge_says_so(examples):
    x, y = examples
    probe = fit_probe(x, y, max_steps=1)
    assert (probe.residual > 1e-6).all() and np.isnan(probe_logits(probe, x)).all()


def test_bad_input_is_refused(examples):
    x, y = examples
    with pytest.raises(TooFew, match=r"one class only \(\[2\]\)"):
        fit_probe(x, np.full(90, 2))
    with pytest.raises(TooFew, match=r"one class only \(\[\]\)"):
        fit_probe(x[:, :0], y[:0])
    with pytest.raises(ValueError, match="expected l2 > 0, got 0"):
        fit_probe(x, y, l2=0)
    with pytest.raises(ValueError, match=r"labels in \[0, 3\) for num_classes=3, got 3"):
        fit_probe(x, y, num_classes=3)
    with pytest.raises(ValueError, match=r"expected features \(3, m, 7\) .* got \(3, 90, 6\)"):
        probe_logits(fit_probe(x, y), x[:, :, :6])
