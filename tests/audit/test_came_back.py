"""From relearning curves to a statement: enumeration, simulated level, power, coverage, mutants."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxunlearn.audit.came_back import CAME_BACK, NO_MORE, UNDEFINED, came_back

RECORDS = np.linspace(0, 1, 5)
ORIGINAL = np.full(5, 0.95)
ORACLE = 0.1 + 0.8 * (1 - np.exp(-3 * RECORDS))


def draw(rng, mean, models, scatter=0.1):
    """Curves around a mean: a model has an offset of its own and a little noise at each record."""
    offset = scatter * rng.normal(size=(models, 1))
    return mean + offset + 0.2 * scatter * rng.normal(size=(models, len(mean)))


def world(seed, share=0.0, sizes=(6, 8, 6), scatter=0.1):
    """Method (that share of the way back), oracles, originals."""
    rng = np.random.default_rng(seed)
    method = ORACLE + share * (ORIGINAL - ORACLE)
    means = (method, ORACLE, ORIGINAL)
    return [draw(rng, mean, n, scatter) for mean, n in zip(means, sizes, strict=True)]


def judged(groups, seed=0, **options):
    return came_back(*groups, seed=seed, **({"permutations": 199, "resamples": 20} | options))


def test_the_p_value_is_the_share_of_all_relabellings_with_the_direction_of_each():
    one_direction_would_differ = False
    for seed in range(6):
        rng = np.random.default_rng(seed)
        method, oracle, original = (
            level + rng.normal(size=(n, 3)) for n, level in ((4, 0.5), (5, 0.0), (3, 2.0))
        )
        pool, g = np.concatenate([method, oracle]), original.mean(0)
        moved, lines = [], []
        for chosen in itertools.combinations(range(9), 4):
            o = pool[[i for i in range(9) if i not in chosen]].mean(0)
            moved.append(pool[list(chosen)].mean(0) - o)
            lines.append((g - o) / np.sqrt(((g - o) ** 2).sum()))
        statistics = np.array([v @ u for v, u in zip(moved, lines, strict=True)])
        exact = np.mean(statistics >= statistics[0] - 1e-12)
        assert judged((method, oracle, original)).p_value == pytest.approx(exact, abs=1e-12)
        fixed = np.array(moved) @ lines[0]
        one_direction_would_differ |= np.mean(fixed >= fixed[0] - 1e-12) != exact
    assert one_direction_would_differ
    drawn = judged((method, oracle, original), permutations=100)  # fewer than there are
    assert drawn.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact / 100) + 0.02)


def test_retrained_models_are_said_to_have_come_back_in_five_percent_of_trials_at_most():
    trials = 400
    alarms = sum(judged(world(s), s, permutations=99).verdict == CAME_BACK for s in range(trials))
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], trials, 0.05)
    assert low <= alarms <= high
    # the mutant that takes each record of a model for a model of its own
    mutant = 0
    for seed in range(100):
        means = (ORACLE, ORACLE, ORIGINAL - 0.5)
        records = [(v - mean).reshape(-1) for v, mean in zip(world(seed), means, strict=True)]
        mutant += judged(records, seed, permutations=99).verdict == CAME_BACK
    assert mutant > 15


def test_originals_and_models_half_way_back_are_found():
    for share, least in ((1.0, 40), (0.5, 38)):
        found = sum(judged(world(s, share), s).verdict == CAME_BACK for s in range(40))
        assert found >= least


def test_swapped_groups_are_noticed():
    method, oracle, original = world(1, share=0.6)
    assert judged((method, oracle, original)).verdict == CAME_BACK
    assert judged((oracle, method, original)).verdict == NO_MORE
    backwards = judged((method, original, oracle))
    assert backwards.verdict == UNDEFINED and "do not know more than retrained" in backwards.words
    assert judged((original, oracle, method)).effect.value > 1.2


def test_originals_that_are_overtaken_late_still_know_more():
    late = np.r_[0.1, 0.5, np.full(12, 0.9)], np.r_[0.7, 0.7, np.full(12, 0.82)]  # mean is lower
    rng = np.random.default_rng(0)
    oracle, original = (draw(rng, mean, 6, 0.02) for mean in late)
    method = draw(rng, 0.5 * (late[0] + late[1]), 6, 0.02)
    assert judged((method, oracle, original)).verdict == CAME_BACK
    assert judged((method, original, oracle)).verdict == UNDEFINED


def test_one_seed_fewer_than_enough_is_undefined_with_the_reason():
    three = world(2, share=1.0, sizes=(3, 3, 3), scatter=0.01)
    assert judged(three).verdict == CAME_BACK and judged(three).p_value == 0.05
    fewer = judged((three[0][:2], *three[1:]))
    assert fewer.verdict == UNDEFINED and fewer.p_value is None and fewer.effect is None
    assert "2 models of the method against 3 oracles cannot give" in fewer.words
    assert "below 0.1" in fewer.words and "train more seeds" in fewer.words
    assert "2 originals against 3" in judged((three[0], three[1], three[2][:2])).words
    assert judged((three[0][:0], *three[1:])).verdict == UNDEFINED
    one = world(3, share=1.0, sizes=(1, 19, 4), scatter=0.01)
    assert judged(one).verdict == CAME_BACK and judged(one).p_value == 0.05


def test_where_originals_equal_oracles_nothing_could_come_back():
    rng = np.random.default_rng(3)
    same = [draw(rng, ORACLE, n) for n in (6, 8, 6)]
    found = judged(same)
    assert found.verdict == UNDEFINED and "nothing that could come back" in found.words
    constant = judged([np.full((6, 5), 0.5)] * 3)
    assert constant.verdict == UNDEFINED and "p = 1" in constant.words


def test_the_originals_themselves_are_all_the_way_back():
    _, oracle, original = world(4)
    found = judged((original, oracle, original))
    assert found.verdict == CAME_BACK and found.effect.value == 1.0
    # and where originals are no different, they raise no alarm for being their own direction
    trials = 200
    alarms = 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        g, o = draw(rng, ORACLE, 6), draw(rng, ORACLE, 6)
        alarms += judged((g, o, g), seed).verdict == CAME_BACK
    assert alarms <= scipy.stats.binom.ppf(0.9995, trials, 0.05)


def test_a_method_far_beyond_the_originals_is_found_as_well():
    rng = np.random.default_rng(5)
    oracle, original = draw(rng, ORACLE, 6, 0.01), draw(rng, ORACLE + 0.05, 6, 0.01)
    method = draw(rng, ORACLE + 5.0, 6, 0.01)
    found = judged((method, oracle, original), permutations=2000)
    assert found.p_value <= 3 / 924  # without the unit length of the direction it is about a half
    pool, g = np.concatenate([method, oracle]), original.mean(0)
    mutant = []
    for chosen in itertools.combinations(range(12), 6):
        m = pool[list(chosen)].mean(0)
        o = pool[[i for i in range(12) if i not in chosen]].mean(0)
        mutant.append((m - o) @ (g - o))
    assert np.mean(np.array(mutant) >= mutant[0]) > 0.05


def test_the_effect_is_the_share_of_the_gap_and_has_no_bias_from_noise():
    method, oracle, original = world(6, share=0.4, scatter=1e-4)
    found = judged((method, oracle, original))
    assert found.effect.value == pytest.approx(0.4, abs=0.01)
    assert found.before.value == pytest.approx(0.4, abs=0.01)
    debiased, plugged = [], []
    for seed in range(60):  # no way back at all, and noise of its own at each of forty records
        rng = np.random.default_rng(seed)
        groups = [level + 0.5 * rng.normal(size=(5, 40)) for level in (0.0, 0.0, 0.4)]
        effect = judged(groups, resamples=1, level=0.5).effect
        m, o, g = (v.mean(0) for v in groups)
        debiased.append(effect.value)
        plugged.append((m - o) @ (g - o) / ((g - o) @ (g - o)))
    assert abs(np.median(debiased)) < 0.05
    assert np.median(plugged) > 0.15  # the noise of the oracles, on both sides of the product


def test_the_interval_of_the_effect_covers():
    share, covered, trials = 0.3, 0, 150
    for seed in range(trials):
        groups = world(seed, share, sizes=(16, 16, 16))
        effect = judged(groups, seed, permutations=19, resamples=200).effect
        covered += effect.low <= share <= effect.high
    assert 0.86 * trials <= covered <= 0.99 * trials


def test_diverged_runs_stand_at_their_last_record_and_are_counted():
    method, oracle, original = world(7, share=0.8)
    method[2, 3:] = np.nan
    oracle[0, 2:] = np.inf
    found = judged((method, oracle, original))
    assert found.diverged == (1, 1, 0) and "1 runs of the method, 1 of the oracles" in found.words
    carried, held = method.copy(), oracle.copy()
    carried[2, 3:], held[0, 2:] = method[2, 2], oracle[0, 1]
    assert found.p_value == judged((carried, held, original)).p_value
    assert "diverged" not in judged((carried, held, original)).words
    method[1] = np.nan
    collapsed = judged((method, oracle, original))
    assert collapsed.verdict == UNDEFINED
    assert "no finite number before relearning for 1 of 6 method's models" in collapsed.words


def test_units_and_the_order_of_models_do_not_matter():
    groups = world(8, share=0.25, sizes=(4, 5, 4))
    found = judged(groups)
    small = judged([1e-9 * v for v in groups])
    assert small.p_value == found.p_value and small.verdict == found.verdict
    turned = judged([v[::-1] for v in groups])
    assert turned.p_value == pytest.approx(found.p_value)
    assert turned.effect.value == pytest.approx(found.effect.value)


def test_a_single_number_per_model_is_a_curve_of_one_record():
    groups = world(9, share=0.5)
    column = judged([v[:, :1] for v in groups])
    assert judged([v[:, 0] for v in groups]) == column
    assert "before relearning" not in column.words and "before relearning" in judged(groups).words


def test_bad_arguments_are_named():
    method, oracle, original = world(0)
    with pytest.raises(ValueError, match="must have the same records, got 4, 5 and 5"):
        judged((method[:, 1:], oracle, original))
    with pytest.raises(ValueError, match=r"oracle must hold curves.*got shape \(2, 2, 2\)"):
        judged((method, np.zeros((2, 2, 2)), original))
    with pytest.raises(ValueError, match=r"method must hold curves.*got shape \(3, 0\)"):
        judged((np.zeros((3, 0)), oracle, original))
    with pytest.raises(ValueError, match="level must lie strictly between 0 and 1, got 1"):
        judged((method, oracle, original), level=1)
