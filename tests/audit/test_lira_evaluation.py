"""U-LiRA's verdicts: accuracy by loop, AUC by scikit-learn, intervals by refitting, coverage."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxunlearn.audit import (
    TooFew,
    roc_curve,
    tpr_at_fpr,
    unlearned_lira,
    world_lira,
    world_lira_floor,
)
from jaxunlearn.audit.lira import pair_left_out


def shadows(rng, models=24, targets=30, shift=1.0):
    """A random half of the models unlearned each target; models differ as a whole too."""
    member = rng.permuted(np.tile(np.arange(models)[:, None] % 2 == 0, (1, targets)), axis=0)
    phi = rng.normal(size=(models, targets)) + 0.5 * rng.normal(size=(models, 1))
    return phi + shift * member + 3 * rng.normal(size=targets), member


def test_the_numbers_are_those_of_loops_and_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    phi, member = shadows(rng)
    found = unlearned_lira(phi, member, rng=rng)
    scores = pair_left_out(phi, member, pooled=None, who="t")
    np.testing.assert_array_equal(found.scores, scores)
    for x in range(30):
        ones, zeros = scores[member[:, x], x], scores[~member[:, x], x]
        assert found.examples[x] == pytest.approx(((ones > 0).mean() + (zeros < 0).mean()) / 2)
    right = (scores > 0) == member
    np.testing.assert_allclose(found.models, right.mean(axis=1))
    np.testing.assert_allclose(found.totals, scores.sum(axis=1))
    assert found.accuracy.value == pytest.approx(found.examples.mean())
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(member.ravel(), scores.ravel()))
    assert found.examples[found.worst] == found.examples.max() and found.accuracy.count == 24
    for fpr in (0.01, 0.1):
        expected = tpr_at_fpr(scores[member], scores[~member], fpr=fpr)
        assert found.tpr[fpr].value == expected
    assert found.tpr[0.001] is None  # 360 cells of models that never saw the target
    curve = roc_curve(scores[member], scores[~member])
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(found.auc.value)


def test_labels_swapped_without_refitting_give_one_minus_the_area():
    rng = np.random.default_rng(1)
    phi, member = shadows(rng)
    found = unlearned_lira(phi, member, rng=rng)
    swapped = unlearned_lira(phi, ~member, rng=rng)  # both names swapped: the same attack
    assert swapped.auc.value == pytest.approx(found.auc.value)
    np.testing.assert_allclose(swapped.examples, found.examples)
    curve = roc_curve(found.scores[~member], found.scores[member])
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(1 - found.auc.value)


def test_perfect_unlearning_is_guessed_and_the_untouched_original_is_not():
    rng = np.random.default_rng(2)
    phi, member = shadows(rng, models=32, targets=200, shift=0.0)
    null = unlearned_lira(phi, member, rng=rng)
    assert null.accuracy.value == pytest.approx(0.5, abs=0.03)
    assert null.auc.low < 0.5 < null.auc.high and null.accuracy.low < 0.5 < null.accuracy.high
    original = unlearned_lira(phi + 4 * member, member, rng=rng)
    assert original.accuracy.low > 0.9 and original.tpr[0.001].low > 0.3
    far = norm.cdf(2 / np.sqrt(1.25))  # two deviations of a model and its targets
    assert original.accuracy.value == pytest.approx(far, abs=0.03)


def test_one_forget_set_is_judged_world_against_world():
    rng = np.random.default_rng(3)
    unlearned, oracle = rng.normal(1, 1, (20, 40)), rng.normal(size=(30, 40))
    unlearned[:, 7] += 5
    found = world_lira(unlearned, oracle, rng=rng)
    assert found.worst == 7 and found.examples[7] == 1
    assert np.delete(found.examples, 7).mean() == pytest.approx(norm.cdf(0.5), abs=0.04)
    assert found.scores.shape == (50, 40) and found.models.shape == (50,)
    assert (found.totals[:20] > 0).all() and (found.totals[20:] < 0).all()
    mirrored = world_lira(oracle, unlearned, rng=rng)
    np.testing.assert_allclose(mirrored.examples, found.examples)


def test_the_floor_is_one_half_of_the_oracles_against_the_other():
    rng = np.random.default_rng(4)
    oracle = rng.normal(size=(16, 300)) + 0.3 * rng.normal(size=(16, 1))
    floor = world_lira_floor(oracle, rng=np.random.default_rng(0))
    halves = world_lira(oracle[:8], oracle[8:], rng=np.random.default_rng(0))
    np.testing.assert_array_equal(floor.examples, halves.examples)
    assert floor.accuracy == halves.accuracy
    assert floor.accuracy.low < 0.5 < floor.accuracy.high
    assert floor.examples.max() > 0.75  # the worst of many examples is far from 1/2 by chance


def test_the_interval_is_the_spread_of_refits_without_each_eighth_of_the_models():
    rng = np.random.default_rng(5)
    phi, member = shadows(rng, models=20)
    found = unlearned_lira(phi, member, rng=np.random.default_rng(9))
    groups = np.random.default_rng(9).permutation(20) % 8
    areas = []
    for group in range(8):
        kept = groups != group
        refit = unlearned_lira(phi[kept], member[kept], pooled="global", rng=rng)
        areas.append((refit.accuracy.value, refit.auc.value))
    half = 2.3646 * np.sqrt(7 * np.var(areas, axis=0))  # t with 7 degrees of freedom
    assert found.accuracy.low == pytest.approx(found.accuracy.value - half[0], abs=1e-4)
    assert found.auc.high == pytest.approx(min(1, found.auc.value + half[1]), abs=1e-4)


def test_refits_with_fewer_models_pool_the_variance_as_the_whole_does():
    rng = np.random.default_rng(8)
    phi, member = shadows(rng, models=130, targets=6)  # 65 in each world, 57 without an eighth
    ends = {
        pooled: unlearned_lira(phi, member, pooled=pooled, rng=np.random.default_rng(0)).auc
        for pooled in (None, "example", "global")
    }
    assert ends[None] == ends["example"] != ends["global"]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_covers_the_expected_value_where_a_bootstrap_of_scored_models_does_not(shift):
    rng = np.random.default_rng(6)
    values, ends, boots = [], [], []
    for _ in range(100):
        phi, member = shadows(rng, models=16, targets=20, shift=shift)
        found = unlearned_lira(phi, member, fprs=(), rng=rng)
        values.append(found.accuracy.value)
        ends.append((found.accuracy.low, found.accuracy.high))
        draws = found.models[rng.integers(0, 16, size=(200, 16))].mean(axis=1)
        boots.append(np.quantile(draws, [0.025, 0.975]))
    truth = np.mean(values)

    def coverage(intervals):
        low, high = np.transpose(intervals)
        return ((low <= truth) & (truth <= high)).mean()

    assert coverage(ends) >= 0.93 and coverage(boots) <= 0.9


def test_broken_models_and_few_models_are_undefined_and_not_zero():
    rng = np.random.default_rng(7)
    phi, member = shadows(rng, models=16)
    phi[3, 2] = np.nan
    found = unlearned_lira(phi, member, rng=rng)
    assert np.isnan([found.models[3], found.totals[3], *found.scores[3]]).all()
    assert found.accuracy.count == 15 and np.isfinite(found.accuracy).all()
    three = world_lira(rng.normal(size=(3, 40)), rng.normal(size=(9, 40)), rng=rng)
    assert np.isfinite(three.accuracy.value)
    assert np.isnan([three.accuracy.low, three.auc.high]).all()
    four = world_lira(rng.normal(size=(4, 40)), rng.normal(size=(9, 40)), rng=rng)
    assert four.accuracy.low < four.accuracy.value < four.accuracy.high
    saturated = world_lira(np.full((6, 4), 1e9), np.full((9, 4), np.inf), rng=rng)
    assert (saturated.examples == 0.5).all() and saturated.auc[:3] == (0.5, 0.5, 0.5)


def test_bad_designs_are_refused():
    rng = np.random.default_rng(0)
    phi, member = shadows(rng)
    with pytest.raises(TypeError, match="`member` must say True .* got dtype int64"):
        unlearned_lira(phi, member.astype(int), rng=rng)
    with pytest.raises(ValueError, match=r"of one shape \(models, targets\), got \(24, 30\) and"):
        unlearned_lira(phi, member[:, :5], rng=rng)
    with pytest.raises(ValueError, match=r"examples in both worlds, got \(4, 3\) and \(4, 2\)"):
        world_lira(np.ones((4, 3)), np.ones((4, 2)), rng=rng)
    with pytest.raises(TooFew, match="world_lira: expected a target with 3 .* the most is 2"):
        world_lira(np.ones((2, 3)), np.ones((9, 3)), rng=rng)
    with pytest.raises(TooFew, match="the most is 0"):
        world_lira(np.ones((0, 3)), np.ones((9, 3)), rng=rng)
    with pytest.raises(TooFew, match="world_lira: .* the most is 2"):
        world_lira_floor(np.ones((5, 3)), rng=rng)
    with pytest.raises(ValueError, match=r"rates strictly in \(0, 1\), got \(0.1, 1.0\)"):
        unlearned_lira(phi, member, fprs=(0.1, 1.0), rng=rng)
    with pytest.raises(ValueError, match="coverage strictly between 0 and 1, got 95"):
        unlearned_lira(phi, member, level=95, rng=rng)
