"""Forgetting quality: a literal loop over rules, the analytic supremum, null, final score."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.audit import TooFew
from jaxunlearn.audit.decision_rules import (
    EPSILON_CAP,
    epsilon_ceiling,
    epsilon_of_rates,
    forgetting_epsilons,
)
from jaxunlearn.audit.forgetting_quality import (
    challenge_score,
    forgetting_floor,
    forgetting_null,
    forgetting_points,
    forgetting_quality,
)


def loop_epsilon(unlearned, retrained, delta, rules="intervals"):
    """Every rule "unlearned inside [a, b]" and its opposite, with the conventions as they are told.

    a and b run over all margins and both infinities; single thresholds have an infinite end.
    """
    points = sorted({*unlearned, *retrained})
    found = [0.0]
    lows = [-np.inf, *points] if rules == "intervals" else [-np.inf]
    for a in lows:
        for b in [*points, np.inf]:
            inside_u = np.mean([a <= v <= b for v in unlearned])
            inside_r = np.mean([a <= v <= b for v in retrained])
            for fpr, fnr in ((inside_r, 1 - inside_u), (1 - inside_r, inside_u)):
                fpr, fnr = round(fpr, 12), round(fnr, 12)
                if fpr == 0 and fnr == 0:
                    return np.inf
                if fpr == 0 or fnr == 0:
                    continue
                for above, below in ((1 - delta - fpr, fnr), (1 - delta - fnr, fpr)):
                    if above > 0:
                        found.append(math.log(above / below))
    return max(found)


@pytest.fixture
def ensembles():
    rng = np.random.default_rng(0)
    oracle, method = rng.normal(size=(8, 12)), rng.normal(0.8, 1.3, size=(6, 12))
    oracle[:, 8:], method[:, 8:] = oracle[:, 8:].round(), method[:, 8:].round()  # ties
    return oracle, method


@pytest.mark.parametrize("rules", ["intervals", "thresholds"])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.2])
def test_epsilon_is_the_literal_loop_over_all_rules(ensembles, rules, delta):
    oracle, method = ensembles
    found = forgetting_epsilons(oracle, method, delta=delta, rules=rules, cap=math.inf)
    expected = [loop_epsilon(u, r, delta, rules) for u, r in zip(method.T, oracle.T, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_loop_tells_apart_what_the_rules_are_made_of(ensembles):
    oracle, method = ensembles
    both = forgetting_epsilons(oracle, method, delta=0.0)
    single = forgetting_epsilons(oracle, method, delta=0.0, rules="thresholds")
    assert (both >= single).all() and (both > single).any()  # intervals are not forgotten
    assert (forgetting_epsilons(oracle, method, delta=0.2) < both).any()  # nor is delta
    fewer = forgetting_epsilons(oracle[:-1], method, delta=0.0)
    assert (fewer != both).any()  # nor a seed


def test_the_conventions_for_rates_of_zero_and_negative_arguments():
    with np.errstate(all="raise"):
        found = epsilon_of_rates([0, 0, 0.5, 0.2, 0.9, 0.5], [0, 0.5, 0, 0.3, 0.9, 0.4], 0.15)
    assert found[0] == np.inf and np.isnan(found[1:3]).all()
    assert found[3] == pytest.approx(max(math.log(0.65 / 0.3), math.log(0.55 / 0.2)))
    assert np.isnan(found[4])  # 1 - delta - 0.9 < 0 in both terms
    assert found[5] < 0  # a rule worse than none: the largest over rules is cut at 0


def test_one_zero_rate_discards_the_rule_and_two_are_a_perfect_separation():
    # all but one of the unlearned are tied with the retrained: the only rule has one zero rate
    oracle, method = np.zeros((4, 1)), np.array([[0.0], [0.0], [0.0], [1.0]])
    assert forgetting_epsilons(oracle, method, delta=0.0) == 0
    assert forgetting_epsilons(oracle, oracle + 1, delta=0.9) == EPSILON_CAP == 50
    assert forgetting_epsilons(oracle, oracle + 1, delta=0.9, cap=math.inf) == np.inf
    assert forgetting_epsilons(oracle, oracle, delta=0.0) == 0


def test_a_narrow_ensemble_in_a_gap_of_the_other_needs_an_interval():
    oracle = np.r_[np.linspace(-3, -2, 8), np.linspace(2, 3, 8)][:, None]
    method = np.linspace(-1e-6, 1e-6, 16)[:, None]  # no grid of thresholds would find it
    assert forgetting_epsilons(oracle, method, delta=1e-3) == 50
    # a threshold has half of the oracles on the wrong side, and must lose one of the 16 models
    best = math.log((1 - 1e-3 - 8 / 16) / (1 / 16))
    single = forgetting_epsilons(oracle, method, delta=1e-3, rules="thresholds")
    assert single == pytest.approx(best)


@pytest.mark.parametrize(("d", "delta"), [(0.5, 0.05), (1.0, 0.1), (2.0, 0.3)])
def test_the_supremum_over_thresholds_of_two_gaussians_is_the_analytic_one(d, delta):
    """sup_t of log (1 - delta - FNR) / FPR with FPR = 1 - Phi(t), FNR = Phi(t - d)."""
    t = np.linspace(-4, 6, 10_001)
    above = 1 - delta - scipy.stats.norm.cdf(t - d)
    sup = np.log(above[above > 0] / scipy.stats.norm.sf(t[above > 0])).max()
    size = 20_000
    even = scipy.stats.norm.ppf((np.arange(size) + 0.5) / size)[:, None]  # no sampling error
    found = forgetting_epsilons(even, even + d, delta=delta, rules="thresholds")
    assert found == pytest.approx(sup, rel=0.001)
    reverse = forgetting_epsilons(even + d, even, delta=delta, rules="thresholds")
    assert reverse == pytest.approx(found)  # both directions
    rng = np.random.default_rng(1)
    sample = rng.normal(size=(size, 4)), rng.normal(d, 1, size=(size, 4))
    noisy = forgetting_epsilons(*sample, delta=delta, rules="thresholds")
    assert (noisy > sup - 0.01).all()  # a maximum over noise: never below, up to its own error
    np.testing.assert_allclose(noisy, sup, atol=0.2)
    other = forgetting_epsilons(even, even + d, delta=delta / 2, rules="thresholds")
    assert other > sup + 0.05  # another delta is noticed


def test_one_law_and_many_models_give_epsilon_zero_once_delta_outweighs_the_sampling_error():
    rng = np.random.default_rng(2)
    means = []
    for size in (16, 64, 256):
        pair = rng.normal(size=(size, 40)), rng.normal(size=(size, 40))
        means.append(forgetting_epsilons(*pair, delta=0.15, rules="thresholds").mean())
    assert means[0] > 0.3 and means[-1] < 0.03
    huge = rng.normal(size=(20_000, 2)), rng.normal(size=(20_000, 2))
    assert (forgetting_epsilons(*huge, delta=0.05, rules="thresholds") == 0).all()


def test_monotone_maps_and_the_order_of_models_and_groups_change_nothing(ensembles):
    oracle, method = ensembles
    plain = forgetting_epsilons(oracle, method, delta=0.01)
    for mapped in (
        forgetting_epsilons(np.exp(oracle), np.exp(method), delta=0.01),
        forgetting_epsilons(-2 * oracle + 5, -2 * method + 5, delta=0.01),
        forgetting_epsilons(oracle[::-1], method[::-1], delta=0.01),
        forgetting_epsilons(method, oracle, delta=0.01),
    ):
        np.testing.assert_allclose(mapped, plain, atol=1e-12)
    moved = forgetting_epsilons(oracle, method[:, ::-1], delta=0.01)
    assert not np.allclose(moved, plain)  # examples swapped


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("rules", ["intervals", "thresholds"])
def test_any_chunk_gives_the_same_bits(ensembles, chunk, held_out, rules):
    whole, parts = (
        forgetting_epsilons(*ensembles, rules=rules, held_out=held_out, chunk=c)
        for c in (None, chunk)
    )
    np.testing.assert_array_equal(whole, parts)


def test_held_out_the_rule_comes_from_one_half_and_the_rates_from_the_other():
    # fit halves: separated at 1/2; measured: 1 of 4 unlearned below, 1 of 4 retrained above
    oracle = np.array([0.0, 0, 0, 0, 0, 0, 0, 1])[:, None]
    method = np.array([1.0, 1, 1, 1, 1, 1, 1, 0])[:, None]
    found = forgetting_epsilons(oracle, method, delta=0.0, held_out=True)
    assert found == pytest.approx(math.log(0.75 / 0.25))
    # no error of one kind: the term that would divide by it is discarded, the other one stays
    found = forgetting_epsilons(oracle, np.ones((8, 1)), delta=0.0, held_out=True)
    assert found == pytest.approx(math.log(1 / 0.25))
    # the rule of the first half points the wrong way in the second: nothing was shown
    flipped = np.r_[np.zeros(4), np.ones(4)][:, None]
    assert forgetting_epsilons(flipped, 1 - flipped, delta=0.0, held_out=True) == 0
    assert forgetting_epsilons(flipped, 1 - flipped, delta=0.0) == 0
    separated = np.zeros((8, 1)), np.ones((8, 1))
    assert forgetting_epsilons(*separated, held_out=True) == 50
    assert forgetting_epsilons(separated[0], separated[0], held_out=True) == 0


def test_held_out_the_null_is_far_smaller_and_a_shift_stands_out_better():
    null = {h: forgetting_null(64, 64, delta=1e-3, seed=0, held_out=h) for h in (False, True)}
    assert null[False].summary.mean > 2 and null[True].summary.mean < 0.35
    rng = np.random.default_rng(3)
    pair = rng.normal(size=(64, 300)), rng.normal(0.5, 1, size=(64, 300))
    shifted = {h: forgetting_quality(*pair, delta=1e-3, held_out=h) for h in (False, True)}
    drop = {h: null[h].quality - shifted[h].quality for h in null}
    assert drop[True] > 0.1 > 0.03 > drop[False]


def test_points_halve_every_half_unit_and_stop_at_the_thirteenth_bin():
    eps = np.array([0, 0.49, 0.5, 0.99, 1.0, 5.99, 6.0, 6.5, 50, np.inf])
    expected = [1, 1, 0.5, 0.5, 0.25, 2.0**-11, 2.0**-12, 2.0**-12, 2.0**-12, 2.0**-12]
    np.testing.assert_array_equal(forgetting_points(eps), expected)
    for bad in (-0.1, np.nan):
        with pytest.raises(ValueError, match="epsilons >= 0 without NaN"):
            forgetting_points([bad])


def test_the_quality_is_the_mean_of_the_points_with_delta_one_over_the_examples(ensembles):
    oracle, method = ensembles
    found = forgetting_quality(oracle, method)
    assert found.delta == 1 / 12
    np.testing.assert_array_equal(found.epsilons, forgetting_epsilons(oracle, method, delta=1 / 12))
    assert found.quality == forgetting_points(found.epsilons).mean()
    assert found.summary.worst == found.epsilons.max()
    assert forgetting_quality(oracle[:, :1], method[:, :1]).delta == 0
    assert forgetting_quality(oracle, oracle).quality == 1
    assert forgetting_quality(oracle, oracle + 100).quality == 2.0**-12


def test_the_null_is_that_of_any_continuous_law_and_differs_by_size():
    null = forgetting_null(16, 12, delta=0.01, examples=600, seed=0)
    rng = np.random.default_rng(4)
    for law in (rng.normal, rng.exponential):
        pair = forgetting_epsilons(law(size=(16, 600)), law(size=(12, 600)), delta=0.01)
        error = math.hypot(pair.std(), null.epsilons.std()) / math.sqrt(600)
        assert abs(pair.mean() - null.summary.mean) < 3.5 * error
    # read as if unbiased, or with fewer models, it would be another number
    assert null.summary.mean > 20 * null.epsilons.std() / math.sqrt(600)
    small = forgetting_null(6, 6, delta=0.01, examples=600, seed=0)
    assert np.median(small.epsilons) < np.median(null.epsilons) - 0.2
    again, other = (forgetting_null(16, 12, delta=0.01, examples=600, seed=s) for s in (0, 1))
    assert again.quality == null.quality != other.quality


def test_the_floor_is_the_quality_between_two_halves_of_the_oracles(ensembles):
    oracle = ensembles[0]
    floor, direct = forgetting_floor(oracle), forgetting_quality(oracle[4:], oracle[:4])
    np.testing.assert_array_equal(floor.epsilons, direct.epsilons)
    assert forgetting_floor(oracle, held_out=True, delta=0.1).delta == 0.1
    with pytest.raises(TooFew, match="holds 7 model.*needs at least 8"):
        forgetting_floor(oracle[:7], held_out=True)
    with pytest.raises(TooFew, match="forgetting_floor: .* needs at least 4"):
        forgetting_floor(oracle[:3])


def test_no_finite_epsilon_passes_the_ceiling_and_it_is_reached():
    for n, m, delta in ((8, 8, 0.0), (5, 16, 0.01), (16, 5, 0.01), (3, 3, 0.5)):
        outlier = np.r_[np.zeros(n - 1), 1.0][:, None], np.r_[np.ones(m - 1), 0.0][:, None]
        found = forgetting_epsilons(*outlier, delta=delta)
        assert found == pytest.approx(epsilon_ceiling(n, m, delta))
        null = forgetting_null(n, m, delta=delta, seed=0).epsilons
        assert null[null < EPSILON_CAP].max() <= epsilon_ceiling(n, m, delta) + 1e-12
    assert epsilon_ceiling(512, 512, 0.0) == pytest.approx(math.log(511))
    with pytest.raises(TooFew, match="at least 2 models on each side, got 1 and 9"):
        epsilon_ceiling(1, 9, 0.0)


def test_the_final_score_multiplies_ratios_of_mean_accuracies():
    found = challenge_score(0.5, [0.8, 1.0], [0.9], [0.9, 0.9], [0.6], runtime_share=0.2)
    assert found.score == pytest.approx(0.5 * 1 * 1.5) and found.test_ratio > 1
    assert found.eligible and challenge_score(1, 1, 1, 1, 1).eligible is None
    assert challenge_score(1, 1, 1, 1, 1, runtime_share=0.21).eligible is False
    assert challenge_score(1, [0.5, np.nan], 1, 1, 1).retain_ratio == 0.5
    assert challenge_score(1, 0.5, 0.0, 1, 1) is None
    assert challenge_score(1, [np.nan], 1, 1, 1) is None
    assert (
        challenge_score(0.5, 0.9, 1, 0.8, 0.8).score != challenge_score(0.5, 1, 0.9, 0.8, 0.8).score
    )  # groups swapped
    with pytest.raises(ValueError, match=r"expected test_accuracy in \[0, 1\], got 98"):
        challenge_score(1, 1, 1, 98, 1)
    with pytest.raises(ValueError, match="runtime_share >= 0, got -1"):
        challenge_score(1, 1, 1, 1, 1, runtime_share=-1)


def test_saturated_and_constant_margins_are_finite():
    up, down = np.full((5, 2), np.inf), np.full((4, 2), -np.inf)
    assert forgetting_quality(up, down).quality == 2.0**-12
    assert forgetting_quality(up, np.full((4, 2), 150.0)).quality == 1


def test_nothing_is_undefined_and_bad_input_is_refused(ensembles):
    oracle, method = ensembles
    assert forgetting_epsilons(oracle[:, :0], method[:, :0]) is None
    assert forgetting_quality(oracle[:, :0], method[:, :0]) is None
    with pytest.raises(TooFew, match=r"forgetting_epsilons: method_margins holds 1 model\(s\)"):
        forgetting_quality(oracle, method[:1])
    with pytest.raises(TooFew, match="holds 3 model.*needs at least 4"):
        forgetting_quality(oracle, method[:3], held_out=True)
    with pytest.raises(ValueError, match="same examples on both sides, got 12 and 11"):
        forgetting_quality(oracle, method[:, :11])
    with pytest.raises(ValueError, match=r"delta in \[0, 1\), got 1"):
        forgetting_quality(oracle, method, delta=1)
    with pytest.raises(ValueError, match=r"rules must be one of .* got 'grid'"):
        forgetting_quality(oracle, method, rules="grid")
    with pytest.raises(ValueError, match="cap > 0 .*got 0"):
        forgetting_epsilons(oracle, method, cap=0)
    broken = oracle.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"oracle_margins is NaN for models \[7\]"):
        forgetting_quality(broken, method)
    with pytest.raises(ValueError, match="examples >= 1, got 0"):
        forgetting_null(5, 5, delta=0.1, examples=0, seed=0)
