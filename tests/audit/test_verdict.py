"""The verdict: every word reached by a constructed case, every sentence read, rule by rule."""

import time

import numpy as np
import pytest

from jaxunlearn.audit import (
    METRIC_VERSIONS,
    RULE_VERSION,
    Groups,
    Verdict,
    judge,
    recipe_floor,
)

PARTS = ("forget", "retain", "test")
ORIGINAL, ORACLE, METHOD = range(0, 12), range(12, 36), range(36, 48)
RECIPES = [range(48, 60), range(60, 72)]
GROUPS = Groups(ORIGINAL, ORACLE, METHOD, RECIPES)


def points(x):
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def world(seed=0, *, method=(0, 0), damage=0.0, recipe=0.15, gap=1.0, contaminated=0, sd=0.1):
    """Points of 72 models per part: originals at `gap` e_1 on forget, oracles at 0.

    The method sits at `method` on forget and at `damage` on test; recipes are `recipe` off.
    """
    rng = np.random.default_rng(seed)
    x = {part: sd * rng.normal(size=(72, 4)) for part in PARTS}
    x["forget"][:12, 0] += gap
    x["forget"][36:48, : len(method)] += method
    x["forget"][36 : 36 + contaminated, 0] += gap
    x["test"][36:48, 1] += damage
    for part in PARTS:
        x[part][48:60, 2] += recipe
        x[part][60:72, 2] -= recipe
    return {part: points(values) for part, values in x.items()}


def accuracies(*, test=0.95, forget=0.97, method=0.95):
    by_part = {"test": np.full(72, test), "forget": np.full(72, forget)}
    by_part["test"] += 0.001 * np.arange(72) / 72
    by_part["test"][36:48] = method
    return {"accuracies": by_part, "chance": 0.1}


def verdict(matrices, groups=GROUPS, **options):
    return judge(matrices, groups, seed=0, **options)


def test_a_method_like_the_oracles_is_indistinguishable_and_says_what_it_could_have_shown():
    result = verdict(world(), **accuracies())
    assert result.verdict is Verdict.INDISTINGUISHABLE
    assert result.p_value > 0.05 and result.damages == ()
    found = result.contamination
    assert 1 <= found.count <= 6 and found.size == 12
    assert result.words.startswith("indistinguishable from retraining: p = ")
    assert f"{found.count} untouched original" in result.words
    assert result.gap_closed.low < 1 < result.gap_closed.high


def test_models_that_could_show_nothing_say_so():
    few_and_near = GROUPS._replace(original=range(2))  # at most 2 of 12 can be replaced
    result = verdict(world(gap=0.3), few_and_near)
    assert result.verdict is Verdict.INDISTINGUISHABLE and result.contamination is None
    assert "even originals hidden among the 12 models would not have shown" in result.words


def test_a_difference_smaller_than_another_recipe_is_recipe_noise():
    result = verdict(world(method=(0, 0.12), recipe=0.3), **accuracies())
    assert result.verdict is Verdict.RECIPE_NOISE and result.p_value <= 0.05
    assert result.damages == () and result.contamination is None
    assert all(result.energies[part] <= result.floors[part].value for part in PARTS)
    assert "no farther from it on any part than another training recipe" in result.words
    # the mutant without recipes has no such excuse
    bare = verdict(world(method=(0, 0.12), recipe=0.3), GROUPS._replace(recipes=()))
    assert bare.verdict is Verdict.ELSEWHERE


def test_the_untouched_original_is_under_forgotten():
    result = verdict(world(), GROUPS._replace(method=ORIGINAL), **accuracies())
    assert result.verdict is Verdict.UNDER_FORGOTTEN
    assert result.gap_closed[:3] == (0, 0, 0)
    assert result.displacement.along.value == pytest.approx(1)
    assert result.words == (
        f"under-forgotten: still 1 of the way back to the original on forget data "
        f"(p = {result.p_value:.2g})"
    )


def test_half_way_back_is_under_forgotten_and_damage_is_said_separately():
    result = verdict(world(method=(0.5, 0), damage=0.6), **accuracies())
    assert result.verdict is Verdict.UNDER_FORGOTTEN and result.damages == ("test",)
    units = result.energies["test"] / result.floors["test"].value
    assert result.collateral.value == pytest.approx(units)
    assert result.words.startswith("under-forgotten: still 0.5")
    assert result.words.endswith(f"; damages test data ({units:.1f} recipe floors)")


def test_past_the_oracles_is_over_forgotten_and_swapped_roles_reverse_it():
    result = verdict(world(method=(-0.5, 0)), **accuracies())
    assert result.verdict is Verdict.OVER_FORGOTTEN
    assert "of the way past retraining on forget data (p = 0.001)" in result.words
    # a mutant that takes the originals for the oracles calls the same models under-forgotten
    swapped = Groups(range(12, 24), ORIGINAL, METHOD, ())
    assert verdict(world(method=(-0.5, 0)), swapped).verdict is Verdict.UNDER_FORGOTTEN


def test_a_sideways_move_and_damage_alone_are_elsewhere():
    aside = verdict(world(method=(0, 0.8)), **accuracies())
    assert aside.verdict is Verdict.ELSEWHERE
    assert "neither towards the original nor away from it" in aside.words
    assert aside.displacement.sideways == pytest.approx(0.8, abs=0.1)
    damaged = verdict(world(damage=0.9), **accuracies())
    assert damaged.verdict is Verdict.ELSEWHERE and damaged.damages == ("test",)
    assert "most visibly on test data; forget data is within recipe noise" in damaged.words


def test_non_finite_outputs_are_collapsed_however_they_are_told():
    D = world()
    told = verdict(D, finite=[True] * 9 + [False] * 3)
    assert told.verdict is Verdict.COLLAPSED and told.energies is None
    assert told.words == "collapsed: 3 of 12 models gave non-finite outputs"
    for part in D:
        D[part][40, np.arange(72) != 40] = np.nan
        D[part][np.arange(72) != 40, 40] = np.nan
    seen = verdict(D)
    assert seen.words == "collapsed: 1 of 12 models gave non-finite outputs"
    assert seen.p_value is None and seen.gap_closed is None


def test_test_accuracy_below_half_way_from_chance_to_the_oracles_is_collapsed():
    low = verdict(world(method=(3, 0)), **accuracies(method=0.5))
    assert low.verdict is Verdict.COLLAPSED and low.energies is not None
    assert "test accuracy 0.50 is below 0.53, half-way from chance (0.10)" in low.words
    high = verdict(world(method=(3, 0)), **accuracies(method=0.55))
    assert high.verdict is Verdict.UNDER_FORGOTTEN


@pytest.mark.parametrize(
    "change, reason",
    [
        (accuracies(test=0.11, method=0.11), "the original is at chance on test data"),
        (accuracies(forget=0.1), "the forget data was never learnt"),
        ({"unavailable": "the oracle is of another split"}, "the oracle is of another split"),
        ({"groups": GROUPS._replace(oracle=[])}, "there is no oracle to compare with"),
        ({"groups": GROUPS._replace(oracle=[12])}, "needs at least two of each"),
        ({"groups": GROUPS._replace(oracle=[12, 13, 14], method=[36, 37])}, "p-value below 0.1"),
        ({"groups": GROUPS._replace(method=[36], oracle=range(12, 30))}, "below 0.053; train more"),
        ({"groups": GROUPS._replace(oracle=[12, 13, 14], recipes=())}, "give no floor"),
        ({"groups": GROUPS._replace(recipes=[[48]])}, "fewer than two models"),
    ],
)
def test_nothing_to_measure_with_is_not_informative_and_has_no_score(change, reason):
    options = dict(change)
    result = verdict(world(), options.pop("groups", GROUPS), **options)
    assert result.verdict is Verdict.NOT_INFORMATIVE
    assert result.words.startswith("not informative: ") and reason in result.words
    assert result[2:9] == (None,) * 7 and result.damages == () and result.contamination is None


def test_an_original_like_the_oracles_has_nothing_to_forget_and_is_not_informative():
    result = verdict(world(gap=0.0), **accuracies())
    assert result.verdict is Verdict.NOT_INFORMATIVE
    assert "the original cannot be told from retraining on any part (p = " in result.words


def test_a_broken_reference_is_not_informative_rather_than_a_collapse_of_the_method():
    for index, name in ((0, "original"), (20, "oracle"), (65, "alternative recipe")):
        D = world()
        for part in D:
            D[part][index, np.arange(72) != index] = np.nan
            D[part][np.arange(72) != index, index] = np.nan
        result = verdict(D)
        assert result.words == f"not informative: outputs of the {name} models are not finite"


def test_an_empty_forget_set_leaves_nothing_to_forget():
    D = world()
    for matrices in ({**D, "forget": None}, {"test": D["test"]}, {}):
        result = verdict(matrices)
        assert result.verdict is Verdict.NOTHING_TO_FORGET
        assert result.words == "nothing to forget: there is no forget example"


def test_one_model_alone_is_judged_by_its_rank():
    near = verdict(world(), GROUPS._replace(method=[36]))
    assert near.verdict is Verdict.INDISTINGUISHABLE
    assert near.words.endswith("one model alone beside 24 oracles")
    far = verdict(world(method=(0.6, 0)), GROUPS._replace(method=[36]))
    assert far.verdict is Verdict.UNDER_FORGOTTEN and far.p_value == pytest.approx(1 / 25)


def test_false_alarms_of_the_whole_rule_stay_near_five_percent():
    alarms = sum(
        judge(world(seed), GROUPS, permutations=99, resamples=20, seed=seed).verdict
        is not Verdict.INDISTINGUISHABLE
        for seed in range(60)
    )
    assert alarms <= 9  # 5 % of 60 is 3; more than 9 has a chance of 0.1 %
    hidden = [
        judge(world(seed, contaminated=5), GROUPS, permutations=99, resamples=20, seed=seed)
        for seed in range(20)
    ]
    assert sum(result.verdict is Verdict.UNDER_FORGOTTEN for result in hidden) >= 15


def test_equal_seeds_give_equal_judgements_and_floors_can_be_shared():
    D = world(method=(0.3, 0))
    first, again = verdict(D), verdict(D)
    assert first == again
    floors = recipe_floor(D, ORACLE, RECIPES, seed=[0, 1])
    assert verdict(D, floors=floors) == first
    assert judge(D, GROUPS, seed=1).gap_closed != first.gap_closed
    with pytest.raises(ValueError, match=r"floors has no \['retain', 'test'\]"):
        verdict(D, floors={"forget": floors["forget"]})


def test_judging_a_comparison_takes_a_fraction_of_a_second():
    D = world()
    start = time.process_time()
    verdict(D)
    assert time.process_time() - start < 3  # about 0.3 s; the bound leaves room for a busy machine


def test_arguments_that_cannot_be_meant_are_refused_by_name():
    D = world()
    with pytest.raises(ValueError, match=r"unknown parts \['train'\]"):
        verdict({**D, "train": D["test"]})
    with pytest.raises(ValueError, match="same models in every part"):
        verdict({**D, "test": D["test"][:5, :5]})
    with pytest.raises(ValueError, match="original, oracle, method and recipes share models"):
        verdict(D, GROUPS._replace(method=range(30, 40)))
    with pytest.raises(ValueError, match="group 'method' is empty"):
        verdict(D, GROUPS._replace(method=[]))
    with pytest.raises(ValueError, match=r"chance level in \[0, 1\), got None"):
        verdict(D, accuracies={"test": np.ones(72)})
    with pytest.raises(ValueError, match=r"accuracies\['test'\] has shape \(3,\)"):
        verdict(D, accuracies={"test": np.ones(3)}, chance=0.1)
    with pytest.raises(ValueError, match=r"finite has shape \(2,\), expected one value for each"):
        verdict(D, finite=[True, True])


def test_the_words_and_the_version_of_the_rule_are_fixed():
    assert [v.value for v in Verdict] == [
        "indistinguishable from retraining",
        "within recipe noise",
        "under-forgotten",
        "over-forgotten",
        "elsewhere",
        "collapsed",
        "not informative",
        "nothing to forget",
    ]
    assert RULE_VERSION == "1" == METRIC_VERSIONS["verdict"]
    assert verdict(world()).rule == "1"


def test_test_data_of_the_forgotten_kind_is_tested_but_is_never_collateral():
    """A method that differs from the oracles there alone is rejected, without damage."""
    rng = np.random.default_rng(5)
    groups = Groups(range(12), range(12, 36), range(36, 48), [range(48, 60)])

    def matrix(method: float, original: float) -> np.ndarray:
        x = rng.normal(size=60)
        x[:12] += original
        x[36:48] += method
        return np.abs(x[:, None] - x)

    matrices = {"forget": matrix(0, 8), "test": matrix(0, 0), "forget_test": matrix(8, 8)}
    judged = judge(matrices, groups, seed=0)
    assert judged.p_value is not None and judged.p_value <= 0.05
    assert judged.largest == "forget_test" and judged.verdict is Verdict.ELSEWHERE
    assert "test data of the forgotten kind" in judged.words
    assert judged.damages == ()
    without = judge({k: v for k, v in matrices.items() if k != "forget_test"}, groups, seed=0)
    assert judged.collateral == without.collateral
