"""The attacker's signals: each equation by loop, the published slips, masks, broken models."""

import math

import numpy as np
import pytest

from jaxunlearn.audit import attack_signal, margins
from jaxunlearn.audit.signals import SCORES


@pytest.fixture
def outputs():
    rng = np.random.default_rng(1)
    return rng.normal(scale=2, size=(2, 5, 3)), rng.integers(0, 3, size=5)


def probabilities(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_every_signal_equals_its_equation(outputs):
    logits, labels = outputs
    for m in range(2):
        for x in range(5):
            p, y = probabilities(logits[m, x]), labels[x]
            others = [c for c in range(3) if c != y]
            expected = {
                "loss": math.log(p[y]),
                "confidence": p[y],
                "entropy": sum(c * math.log(c) for c in p),
                "modified_entropy": (1 - p[y]) * math.log(p[y])
                + sum(p[c] * math.log(1 - p[c]) for c in others),
                "margin": math.log(p[y] / (1 - p[y])),
            }
            assert set(expected) == set(SCORES)
            for score, value in expected.items():
                got = attack_signal(logits, labels, score=score)[m, x]
                assert got == pytest.approx(value, rel=1e-9), score


def test_the_slips_of_the_published_modified_entropy_give_other_numbers(outputs):
    logits, labels = outputs
    p = probabilities(logits)
    correct = attack_signal(logits, labels, score="modified_entropy")

    def with_slips(log_slip, column_slip):
        reverse = np.log(p) if log_slip else np.log1p(-p)
        modified, modified_log = p.copy(), reverse.copy()
        for m in range(2):
            for x in range(5):
                columns = np.unique(labels) if column_slip else labels[x]
                modified[m, x, columns] = (1 - p[m, x])[columns]
                modified_log[m, x, columns] = np.log(p[m, x])[columns]
        return (modified * modified_log).sum(axis=-1)

    np.testing.assert_allclose(correct, with_slips(False, False), rtol=1e-12)
    for log_slip, column_slip in ((True, False), (False, True), (True, True)):
        slipped = with_slips(log_slip, column_slip)
        assert np.abs(slipped - correct).max(axis=1).min() > 0.1


def test_modified_entropy_tells_confidently_right_from_confidently_wrong():
    z = np.array([[[9.0, 0, 0], [9.0, 0, 0]]])
    right, wrong = attack_signal(z, [0, 1], score="modified_entropy")[0]
    assert right > -0.01 and wrong < -5
    same = attack_signal(z, [0, 1], score="entropy")[0]  # which entropy cannot do
    assert same[0] == same[1]


def test_the_margin_is_that_of_the_other_audits_and_clipped_where_saturated(outputs):
    logits, labels = outputs
    np.testing.assert_allclose(
        attack_signal(logits, labels, score="margin"), margins(logits, labels)
    )
    certain = np.array([[[500.0, 0.0], [-np.inf, 0.0], [0.0, -np.inf]]])
    found = attack_signal(certain, [0, 0, 0], score="margin")
    np.testing.assert_array_equal(found, [[100.0, -100.0, 100.0]])


@pytest.mark.parametrize("score", SCORES)
def test_signals_are_finite_for_masked_classes_and_undefined_for_broken_models(score):
    z = np.array([[[-np.inf, 500.0, 0.0]], [[np.nan, 1.0, 0.0]], [[np.inf, 1.0, 0.0]]])
    signal = attack_signal(z, [0], score=score)
    assert np.isfinite(signal[0]).all() and np.isnan(signal[1:]).all()
    if score == "loss":
        assert signal[0, 0] == -100


@pytest.mark.parametrize("score", SCORES)
def test_any_chunk_gives_the_same_bits_and_a_model_broken_in_one_block_is_undefined_in_all(score):
    rng = np.random.default_rng(2)
    z = rng.normal(scale=3, size=(3, 4, 5, 6)).astype(np.float32)
    y = rng.integers(0, 6, size=(4, 5))
    z[1, 1, 2] = np.nan
    whole = attack_signal(z, y, score=score)
    assert whole.shape == (3, 4, 5) and np.isnan(whole[1]).all() and np.isfinite(whole[2]).all()
    for chunk in (1, 7, 20, 1000):
        np.testing.assert_array_equal(attack_signal(z, y, score=score, chunk=chunk), whole)


def test_no_example_has_no_signal_and_bad_input_is_refused():
    assert attack_signal(np.zeros((2, 0, 3)), np.zeros(0, int), score="loss").shape == (2, 0)
    with pytest.raises(ValueError, match=r"score must be one of .* got 'logit'"):
        attack_signal(np.zeros((1, 2, 2)), [0, 0], score="logit")
    with pytest.raises(ValueError, match="chunk >= 1 examples, or None, got 0"):
        attack_signal(np.zeros((1, 2, 2)), [0, 0], score="loss", chunk=0)
    with pytest.raises(ValueError, match=r"attack_signal: expected labels in \[0, 2\), got 0 to 2"):
        attack_signal(np.zeros((1, 2, 2)), [0, 2], score="loss", chunk=1)
    with pytest.raises(ValueError, match=r"want labels of shape \(2,\), got \(3,\)"):
        attack_signal(np.zeros((1, 2, 2)), [0, 0, 0], score="loss")
