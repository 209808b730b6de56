"""MIA-efficacy: scikit-learn's regression on the same draw, thresholds by search, edges."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, mia_efficacy


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(1, 1, (2, 90)), rng.normal(size=(2, 40)), rng.normal(0.4, 1, (2, 25))


def test_the_share_is_that_of_scikit_learns_regression_on_balanced_classes(sets):
    linear_model = pytest.importorskip("sklearn.linear_model")
    retained, held_out, forgotten = sets
    found = mia_efficacy(*sets, rng=np.random.default_rng(5))
    draw = np.random.default_rng(5)
    kept, others = draw.permutation(90)[:40], draw.permutation(40)
    unbalanced = []
    for m in range(2):
        x = np.r_[retained[m, kept], held_out[m, others]]
        model = linear_model.LogisticRegression(tol=1e-10)
        model.fit(((x - x.mean()) / x.std())[:, None], np.repeat([1, 0], 40))
        called = model.predict(((forgotten[m] - x.mean()) / x.std())[:, None])
        assert found[m] == pytest.approx(1 - called.mean())
        both = np.r_[retained[m], held_out[m]]
        model.fit(both[:, None], np.repeat([1, 0], [90, 40]))
        unbalanced.append(1 - model.predict(forgotten[m][:, None]).mean())
    assert (found > np.array(unbalanced) + 0.1).all()  # more members than not: fewer called not


def test_the_threshold_is_the_one_with_the_largest_balanced_accuracy(sets):
    retained, held_out, forgotten = sets
    found = mia_efficacy(*sets, rule="threshold", rng=np.random.default_rng(0))
    for m in range(2):
        candidates = np.r_[retained[m], held_out[m]]
        gains = [(retained[m] >= t).mean() - (held_out[m] >= t).mean() for t in candidates]
        assert found[m] == (forgotten[m] < candidates[np.argmax(gains)]).mean()


@pytest.mark.parametrize("rule", ["logistic", "threshold"])
def test_remembered_examples_score_low_and_forgotten_ones_high(rule):
    rng = np.random.default_rng(1)
    retained, held_out = rng.normal(5, 1, (1, 200)), rng.normal(size=(1, 200))
    remembered, forgotten = rng.normal(5, 1, (1, 50)), rng.normal(size=(1, 50))
    assert mia_efficacy(retained, held_out, remembered, rule=rule, rng=rng)[0] < 0.1
    assert mia_efficacy(retained, held_out, forgotten, rule=rule, rng=rng)[0] > 0.9
    # the roles of retained and held-out examples swapped: an attack far below 1/2
    swapped = mia_efficacy(held_out, retained, remembered, rule="logistic", rng=rng)[0]
    assert swapped > 0.9


@pytest.mark.parametrize("rule", ["logistic", "threshold"])
def test_where_the_rule_cannot_tell_half_are_called_and_broken_models_are_undefined(rule):
    rng = np.random.default_rng(2)
    flat = np.ones((2, 9))
    np.testing.assert_array_equal(mia_efficacy(flat, flat, flat, rule=rule, rng=rng), 0.5)
    for broken in range(3):
        sets = [rng.normal(size=(2, 9)) for _ in range(3)]
        sets[broken][0, 4] = np.nan
        undefined = np.isnan(mia_efficacy(*sets, rule=rule, rng=rng))
        assert undefined.tolist() == [True, False]
    assert mia_efficacy([1.0, 2.0], [0.0], [-1.0], rule=rule, rng=rng).shape == ()


def test_empty_sets_and_unknown_rules_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(TooFew, match="mia_efficacy: there are no forgotten examples"):
        mia_efficacy([1.0], [0.0], [], rng=rng)
    with pytest.raises(TooFew, match="mia_efficacy: one class only: there are no members"):
        mia_efficacy([], [0.0], [1.0], rng=rng)
    with pytest.raises(ValueError, match="rule must be one of .* got 'svc'"):
        mia_efficacy([1.0], [0.0], [1.0], rule="svc", rng=rng)
    with pytest.raises(ValueError, match=r"forgotten signals of the same models, got \(3, 1\)"):
        mia_efficacy(np.ones((2, 4)), np.ones((2, 4)), np.ones((3, 1)), rng=rng)
