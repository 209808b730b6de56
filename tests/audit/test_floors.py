"""The recipe floor and the two numbers to remember."""

import numpy as np
import pytest

from jaxunlearn.audit import Groups, TooFew, energy, permutation_test, recipe_floor
from jaxunlearn.audit.groups import as_models
from jaxunlearn.audit.scores import scores


def points(x):
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def world(seed=0, *, method=0.0, recipe=0.0, test_damage=0.0):
    """Originals 0-11 at e_1, oracles 12-35 at 0, method 36-47, recipe 48-59; forget and test."""
    rng = np.random.default_rng(seed)
    x, y = 0.2 * rng.normal(size=(2, 60, 3))
    x[:12, 0] += 1
    x[36:48, 0] += method
    y[36:48, 0] += test_damage
    y[48:, 1] += recipe
    x[48:, 1] += recipe
    groups = Groups(range(12), range(12, 36), range(36, 48), [range(48, 60)])
    return {"forget": points(x), "test": points(y)}, groups


def test_the_floor_is_the_largest_recipe_energy_when_recipes_differ():
    D, _ = world(recipe=0.5)
    recipes = [range(48, 54), range(54, 60)]
    floors = recipe_floor(D, range(12, 36), recipes, seed=0)
    for part, floor in floors.items():
        expected = max(energy(D[part], recipe, range(12, 36)) for recipe in recipes)
        assert floor.value == floor.recipe == pytest.approx(expected)
        assert floor.resolution < floor.recipe


def test_the_floor_is_never_below_what_sampling_resolves():
    for seed in range(6):
        D, groups = world(seed)
        floors = recipe_floor(D, groups.oracle, groups.recipes, seed=0)
        for part, floor in floors.items():
            null = permutation_test(D, range(48, 60), range(12, 36), seed=1).null_quantiles[part]
            assert floor.value >= floor.resolution > 0
            assert floor.resolution == pytest.approx(null, rel=0.5)


def test_without_recipes_the_floor_is_that_of_two_halves_of_the_oracles():
    D, _ = world()
    floor = recipe_floor(D, range(12, 36), seed=0)["test"]
    null = permutation_test(D, range(12, 24), range(24, 36), seed=0).null_quantiles["test"]
    assert floor.recipe is None and floor.value == floor.resolution == null
    with pytest.raises(TooFew, match="needs at least 4, got 3"):
        recipe_floor(D, [0, 1, 2], seed=0)


def test_the_floor_of_equal_models_is_finite_and_positive():
    floor = recipe_floor({"retain": np.zeros((8, 8))}, range(4), [range(4, 8)], seed=0)["retain"]
    assert floor.value == 1e-8 and floor.recipe == 0


def evaluate(D, groups, **options):
    models = as_models(groups, 60, "test")
    floors = recipe_floor(D, groups.oracle, groups.recipes, permutations=199, seed=0)
    return scores(D, models, floors, seed=1, **options), floors


def test_gap_closed_and_collateral_are_ratios_of_energies_inside_their_intervals():
    D, groups = world(method=0.4, recipe=0.2, test_damage=0.5)
    result, floors = evaluate(D, groups)
    start = energy(D["forget"], groups.original, groups.oracle)
    end = energy(D["forget"], groups.method, groups.oracle)
    damage = energy(D["test"], groups.method, groups.oracle)
    assert result.gap_closed.value == pytest.approx(1 - end / start)
    assert result.collateral.value == pytest.approx(damage / floors["test"].value)
    for interval in (result.gap_closed, result.collateral):
        assert interval.low < interval.value < interval.high and interval.count == 12


def test_collateral_is_counted_in_the_resolution_where_recipes_agree():
    lucky = [seed for seed in range(6) if _floor(seed).recipe < _floor(seed).resolution]
    assert lucky  # the recipe is the oracles' own, so its energy is often below the resolution
    for seed in lucky:
        D, groups = world(seed, test_damage=0.5)
        result, floors = evaluate(D, groups)
        damage = energy(D["test"], groups.method, groups.oracle)
        assert result.collateral.value == pytest.approx(damage / floors["test"].resolution)
        assert 0 < result.collateral.low < result.collateral.high < 1000


def _floor(seed):
    D, groups = world(seed)
    return recipe_floor(D, groups.oracle, groups.recipes, permutations=199, seed=0)["test"]


def test_the_untouched_original_has_closed_nothing_with_certainty():
    D, groups = world()
    result, _ = evaluate(D, groups._replace(method=groups.original))
    assert result.gap_closed[:3] == (0, 0, 0)


def test_intervals_cover_the_gap_closed_of_other_seeds():
    values = [evaluate(*world(seed, method=0.4))[0].gap_closed for seed in range(20)]
    truth = np.mean([v.value for v in values])
    covered = sum(v.low <= truth <= v.high for v in values)
    assert covered >= 16


def test_one_model_borrows_the_scatter_of_the_oracles():
    D, groups = world(method=0.4)
    result, _ = evaluate(D, groups._replace(method=[36]))
    o = np.arange(12, 36)
    within = D["forget"][np.ix_(o, o)].sum() / (24 * 23)
    expected = 2 * (D["forget"][36, o].mean() - within)
    assert result.energies["forget"] == pytest.approx(expected)


def test_without_other_parts_there_is_no_collateral_and_without_a_gap_none_is_closed():
    D, groups = world()
    forget = {"forget": D["forget"]}
    assert evaluate(forget, groups)[0].collateral is None
    same = {"forget": np.zeros((60, 60))}
    assert evaluate(same, groups)[0].gap_closed is None
