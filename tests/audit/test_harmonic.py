"""The harmonic summary: values worked by hand, no trading of features for outputs."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, harmonic_agreement


def test_the_summary_is_the_harmonic_mean_of_two_mean_agreements():
    found = harmonic_agreement(
        {"forget": [0.3, 0.9], "test": [0.8, 0.6]},
        {"forget": [0.0, 0.2], "test": [0.9, 0.9]},
        {"knn": [0.5, 0.5]},
        {"knn": [0.9, 0.7]},
    )
    np.testing.assert_allclose(found.logits, [0.85, 0.45])  # (0.8 + 0.9) / 2, (0.2 + 0.7) / 2
    np.testing.assert_allclose(found.representations, [0.7, 0.7])
    np.testing.assert_allclose(found.harmonic, [2 * 0.85 * 0.7 / 1.55, 2 * 0.45 * 0.7 / 1.15])
    arithmetic = (found.logits + found.representations) / 2
    assert (found.harmonic < arithmetic).all()


def test_right_outputs_do_not_buy_wrong_features():
    found = harmonic_agreement({"a": [1.0]}, {"a": [1.0]}, {"cka": [-0.4]}, {"cka": [0.9]})
    assert found.logits == 1 and found.representations == 0 and found.harmonic == 0
    both = harmonic_agreement({"a": [0.0]}, {"a": [1.0]}, {"cka": [0.0]}, {"cka": [1.0]})
    assert both.harmonic == 0  # 0 / 0 is no agreement


def test_either_side_of_the_oracles_counts_the_same():
    above, below = (
        harmonic_agreement({"a": [v]}, {"a": [0.4, 0.6]}, {"b": [0.5]}, {"b": [0.5]}).harmonic
        for v in (0.7, 0.3)
    )
    assert above == pytest.approx(below) and above < 1


def test_undefined_stays_undefined_and_broken_models_are_nan():
    good = {"a": [0.5, 0.5]}
    assert harmonic_agreement({"a": None}, {"a": None}, good, good) is None
    assert harmonic_agreement(good, good, {"a": [0.1, 0.2]}, {"a": None}) is None
    found = harmonic_agreement({"a": [0.5, np.nan]}, {"a": [0.5, np.nan]}, good, good)
    assert found.harmonic[0] == 1 and np.isnan(found.harmonic[1])


def test_bad_input_is_refused():
    good = {"a": [0.5]}
    with pytest.raises(ValueError, match=r"metrics of logits on both sides, got \['a'\] and \[\]"):
        harmonic_agreement(good, {}, good, good)
    with pytest.raises(ValueError, match="metrics of representations on both sides"):
        harmonic_agreement(good, good, {}, {})
    with pytest.raises(TooFew, match="no oracle has a finite 'a' of logits"):
        harmonic_agreement(good, {"a": [np.nan]}, good, good)
    with pytest.raises(ValueError, match=r"every metric of logits, got shapes \[\(1,\), \(2,\)\]"):
        harmonic_agreement({"a": [1], "b": [1, 1]}, {"a": [1], "b": [1]}, good, good)
    with pytest.raises(ValueError, match="same models in logits and representations, got 1 and 2"):
        harmonic_agreement(good, good, {"a": [1, 1]}, good)
