"""Agreement with the oracle ensemble: against loops and SciPy, floors, edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from jaxunlearn.audit import (
    TooFew,
    activation_distance,
    agreement,
    agreement_floor,
    halves,
    jensen_shannon,
    prediction_agreement,
    tug_of_war,
)

MEASURES = [jensen_shannon, activation_distance, prediction_agreement]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 6, 4)), rng.normal(size=(5, 6, 4))


def test_jensen_shannon_is_the_square_of_scipys_distance(logits):
    p, q = softmax(logits[0][0]), softmax(logits[1][0])
    expected = [scipy.spatial.distance.jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(jensen_shannon(jnp.array(p), jnp.array(q)), expected, rtol=1e-4)


def test_measures_reach_the_ends_of_their_ranges():
    a, b = jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 1.0])
    assert float(jensen_shannon(a, b)) == pytest.approx(math.log(2))
    assert float(activation_distance(a, b)) == pytest.approx(math.sqrt(2))
    assert float(prediction_agreement(a, b)) == 0
    for measure, end in zip(MEASURES, (0, 0, 1), strict=True):
        assert float(measure(a, a)) == end


@pytest.mark.parametrize("measure", MEASURES)
def test_agreement_is_the_mean_over_oracles_and_examples(measure, logits):
    ours, oracles = logits
    result = agreement(measure, ours, oracles)
    for m in range(3):
        pairs = [
            float(measure(jnp.array(softmax(ours[m, x])), jnp.array(softmax(oracles[o, x]))))
            for o in range(5)
            for x in range(6)
        ]
        assert float(result[m]) == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_agreement_is_jittable_and_the_same_in_any_order_of_oracles(measure, logits):
    ours, oracles = logits
    plain = agreement(measure, ours, oracles)
    jitted = jax.jit(lambda z, o: agreement(measure, z, o))(ours, oracles)
    np.testing.assert_allclose(jitted, plain, rtol=1e-6)
    np.testing.assert_allclose(agreement(measure, ours, oracles[::-1]), plain, rtol=1e-5)


def test_the_floor_judges_one_half_of_the_oracles_by_the_other(logits):
    oracles = logits[1]
    floor = agreement_floor(activation_distance, oracles)
    np.testing.assert_array_equal(floor, agreement(activation_distance, oracles[:2], oracles[2:]))
    assert floor.shape == (2,) and (np.asarray(floor) > 0).all()
    first, second = halves(np.arange(7))
    assert sorted([*first, *second]) == list(range(7)) and len(first) == 3


def test_a_non_finite_model_is_undefined_and_says_nothing_about_the_others(logits):
    ours, oracles = logits
    broken = ours.copy()
    broken[1, 0, 0] = np.nan
    for measure in MEASURES:
        result = np.asarray(agreement(measure, broken, oracles))
        assert np.isnan(result[1]) and np.isfinite(result[[0, 2]]).all()
    masked = ours.copy()
    masked[:, :, 0] = -np.inf
    assert np.isfinite(agreement(jensen_shannon, masked, oracles)).all()


def test_half_precision_logits_are_compared_in_single(logits):
    half = jnp.asarray(logits[0], jnp.bfloat16)
    assert agreement(jensen_shannon, half, half).dtype == jnp.float32


def test_nothing_is_undefined_and_missing_oracles_are_named(logits):
    ours, oracles = logits
    assert agreement(jensen_shannon, ours[:, :0], oracles[:, :0]) is None
    with pytest.raises(TooFew, match="no oracle to compare with"):
        agreement(jensen_shannon, ours, oracles[:0])
    with pytest.raises(TooFew, match="at least 2 oracles, got 1"):
        agreement_floor(jensen_shannon, oracles[:1])
    with pytest.raises(ValueError, match=r"got \(3, 6, 4\) and \(5, 5, 4\)"):
        agreement(jensen_shannon, ours, oracles[:, :5])


def test_tug_of_war_multiplies_the_closeness_of_the_parts():
    ours = {"forget": [0.3, 0.0], "retain": [0.9, 1.0], "test": [0.8, 0.9]}
    oracle = {"forget": [0.0, 0.2], "retain": [1.0, 1.0], "test": [0.9, 0.9]}
    expected = [(1 - 0.2) * (1 - 0.1) * (1 - 0.1), (1 - 0.1) * 1 * 1]
    np.testing.assert_allclose(tug_of_war(ours, oracle), expected)
    assert tug_of_war({"test": [0.9]}, {"test": [0.9]}) == 1
    assert tug_of_war({**ours, "forget": None}, oracle) is None
    with pytest.raises(ValueError, match=r"got \['test'\] and \['retain'\]"):
        tug_of_war({"test": [1.0]}, {"retain": [1.0]})
