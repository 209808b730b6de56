"""U-LiRA's likelihood ratios: by hand, by SciPy, by refitting cell by cell, and under the null."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxunlearn.audit import TooFew, lira
from jaxunlearn.audit.lira import pair_left_out


def worlds(rng, ones, zeros, targets, shift=0.0):
    """(K, n) margins of which the first `ones` models are shifted, and who they are."""
    phi = rng.normal(size=(ones + zeros, targets))
    member = np.repeat([True, False], [ones, zeros])[:, None] & np.ones(phi.shape, bool)
    return phi + shift * member, member


def balanced(scores, member):
    right = (scores > 0) == member
    return (right[member].mean() + right[~member].mean()) / 2


def test_a_ratio_worked_by_hand():
    # means 2 and -2, variances 2 and 8, phi = 1: -1/4 + 9/16 + log(8 / 2) / 2
    found = lira([[1.0], [3.0]], [[-4.0], [0.0]], [[1.0]])
    assert found.item() == pytest.approx(5 / 16 + np.log(2))


@pytest.mark.parametrize("pooled", ["global", "example"])
def test_the_ratio_is_that_of_two_gaussians_of_scipy(pooled):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 2, (5, 4)), rng.normal(size=(9, 4))
    fresh = rng.normal(size=(3, 4))
    found = lira(inside, outside, fresh, pooled=pooled)
    expected = 0.0
    for sign, world in ((1, inside), (-1, outside)):
        variance = world.var(axis=0, ddof=1)
        if pooled == "global":  # equally many models for all targets: the mean of the variances
            variance = np.full(4, variance.mean())
        expected = expected + sign * norm.logpdf(fresh, world.mean(axis=0), np.sqrt(variance))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    biased = norm.logpdf(fresh, inside.mean(0), inside.std(0)) - norm.logpdf(
        fresh, outside.mean(0), outside.std(0)
    )
    assert np.abs(found - biased).max() > 0.05


def test_variances_are_pooled_below_64_models_and_each_targets_own_from_there_on():
    rng = np.random.default_rng(1)
    many, few = rng.normal(size=(64, 3)), rng.normal(size=(63, 3))
    fresh = rng.normal(size=(1, 3))
    for inside, outside, how in ((many, few, "global"), (many, many + 1, "example")):
        found = lira(inside, outside, fresh)
        np.testing.assert_array_equal(found, lira(inside, outside, fresh, pooled=how))
        other = {"global": "example", "example": "global"}[how]
        assert np.abs(found - lira(inside, outside, fresh, pooled=other)).max() > 1e-3


def test_the_pooled_variance_is_that_within_targets_and_not_over_all_margins():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, size=50)  # targets differ far more than models do
    inside, outside = (rng.normal(s, 1, size=(8, 50)) + hard for s in (2, 0))
    fresh = rng.normal(2, 1, size=(20, 50)) + hard
    assert (lira(inside, outside, fresh) > 0).mean() > 0.75
    widest = [norm.logpdf(fresh, w.mean(0), w.std()) for w in (inside, outside)]
    assert np.abs(lira(inside, outside, fresh)).mean() > 5 * np.abs(widest[0] - widest[1]).mean()


def test_swapped_worlds_change_the_sign_so_that_p_becomes_one_minus_p():
    rng = np.random.default_rng(3)
    inside, outside, fresh = (rng.normal(s, 1, size=(6, 4)) for s in (1, 0, 0.5))
    ratio, swapped = lira(inside, outside, fresh), lira(outside, inside, fresh)
    np.testing.assert_allclose(1 / (1 + np.exp(swapped)), 1 - 1 / (1 + np.exp(ratio)))
    phi, member = worlds(rng, 5, 7, 6, shift=1.0)
    left = pair_left_out(phi, member, pooled=None, who="t")
    right = pair_left_out(phi, ~member, pooled=None, who="t")
    np.testing.assert_allclose(right, -left)


def refitted(phi, member, pooled):
    """Cell by cell: remove the model (and, at this target, its partner), fit, score."""
    K, n = phi.shape
    scores = np.empty((K, n))
    for k in range(K):
        for x in range(n):
            densities = []
            mine = np.flatnonzero(member[:, x] == member[k, x])
            others = np.flatnonzero(member[:, x] != member[k, x])
            partner = others[mine.tolist().index(k) % len(others)]
            for side in (True, False):
                groups = []
                for target in range(n):
                    gone = {k, partner} if target == x else {k}
                    rows = [i for i in range(K) if member[i, target] == side and i not in gone]
                    groups.append(phi[rows, target])
                if pooled == "global":
                    squares = sum(((g - g.mean()) ** 2).sum() for g in groups)
                    variance = squares / sum(len(g) - 1 for g in groups)
                else:
                    variance = groups[x].var(ddof=1)
                densities.append(norm.logpdf(phi[k, x], groups[x].mean(), np.sqrt(variance)))
            scores[k, x] = densities[0] - densities[1]
    return scores


@pytest.mark.parametrize("pooled", ["global", "example"])
def test_every_cell_is_scored_by_the_other_models_as_if_they_were_fitted_anew(pooled):
    rng = np.random.default_rng(4)
    for design in ("random", "worlds"):
        phi, member = worlds(rng, 4, 7, 5, shift=0.5)
        if design == "random":
            member = rng.permuted(member, axis=0)
            member[0, 1], member[:3, 1] = ~member[0, 1], True
        found = pair_left_out(phi, member, pooled=pooled, who="t")
        np.testing.assert_allclose(found, refitted(phi, member, pooled), rtol=1e-9)


@pytest.mark.parametrize(("ones", "zeros"), [(3, 3), (3, 12), (8, 8)])
@pytest.mark.parametrize("pooled", ["global", "example"])
def test_equal_worlds_are_told_apart_by_guessing_only_whatever_their_sizes(ones, zeros, pooled):
    rng = np.random.default_rng(5)
    phi, member = worlds(rng, ones, zeros, 8000)
    found = balanced(pair_left_out(phi, member, pooled=pooled, who="t"), member)
    assert found == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(8000 * 3))


def test_fits_that_saw_the_scored_model_or_left_it_out_alone_are_noticed():
    rng = np.random.default_rng(6)
    phi, member = worlds(rng, 3, 3, 8000)
    seen = lira(phi[:3], phi[3:], phi, pooled="global")
    assert balanced(seen, member) > 0.6
    alone = np.concatenate(
        [
            lira(
                np.delete(phi[:3], k, 0) if k < 3 else phi[:3],
                phi[3:] if k < 3 else np.delete(phi[3:], k - 3, 0),
                phi[k : k + 1],
                pooled="global",
            )
            for k in range(6)
        ]
    )
    assert balanced(alone, member) < 0.5 - 4 * 0.5 / np.sqrt(8000 * 6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_two_gaussians_a_distance_d_apart_are_told_with_accuracy_phi_of_d_half(shift):
    rng = np.random.default_rng(7)
    phi, member = worlds(rng, 64, 64, 100, shift)
    found = balanced(pair_left_out(phi, member, pooled="global", who="t"), member)
    assert found == pytest.approx(norm.cdf(shift / 2), abs=0.015)
    assert balanced(lira(phi[:64], phi[64:], phi + 0.0), member) >= found - 0.005


def test_saturated_constant_and_infinite_margins_stay_finite():
    up, down = np.full((4, 3), np.inf), np.full((4, 3), -np.inf)
    assert np.isfinite(lira(up, down, up)).all() and (lira(up, down, up) > 0).all()
    np.testing.assert_array_equal(lira(up, np.full((5, 3), 250.0), down), 0.0)
    phi = np.concatenate([up, down])
    _, member = worlds(np.random.default_rng(0), 4, 4, 3)
    assert ((pair_left_out(phi, member, pooled=None, who="t") > 0) == member).all()
    same = pair_left_out(np.ones((8, 3)), member, pooled=None, who="t")
    np.testing.assert_array_equal(same, 0.0)


def test_a_broken_model_is_as_if_absent_and_a_rare_target_is_undefined():
    rng = np.random.default_rng(8)
    phi, member = worlds(rng, 5, 6, 4, shift=1.0)
    member[:4, 3] = False  # one model left that unlearned the last target
    broken = phi.copy()
    broken[2, 1] = np.nan
    found = pair_left_out(broken, member, pooled=None, who="t")
    rest = np.delete(np.arange(11), 2)
    assert np.isnan(found[2]).all() and np.isnan(found[:, 3]).all()
    kept = pair_left_out(phi[rest][:, :3], member[rest][:, :3], pooled=None, who="t")
    np.testing.assert_allclose(found[np.ix_(rest, [0, 1, 2])], kept)
    fresh = lira(phi[:5], phi[5:], broken)
    assert np.isnan(fresh[2, 1]) and np.isfinite(fresh[[0, 1, 3]]).all()


def test_too_few_models_and_misfits_are_refused():
    with pytest.raises(TooFew, match=r"lira: phi_out holds 1 model\(s\), needs at least 2"):
        lira(np.ones((3, 2)), np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"same targets in all three, got \[2, 3, 2\]"):
        lira(np.ones((3, 2)), np.ones((3, 3)), np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"phi_in is NaN for models \[1\]. Leave them out"):
        lira([[1.0], [np.nan]], np.ones((2, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"fresh of shape \(models, targets\) .* got \(2,\)"):
        lira(np.ones((3, 2)), np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match="at least one target"):
        lira(np.ones((3, 0)), np.ones((3, 0)), np.ones((1, 0)))
    with pytest.raises(ValueError, match=r"pooled must be one of .* or None, got 'all'"):
        lira(np.ones((3, 2)), np.ones((3, 2)), np.ones((1, 2)), pooled="all")
    phi, member = worlds(np.random.default_rng(0), 2, 9, 3)
    with pytest.raises(TooFew, match="3 models or more in both worlds, the most is 2"):
        pair_left_out(phi, member, pooled=None, who="t")
