"""Calibration: the rule of choice, what it is computed from, and that no oracle is asked for."""

import numpy as np
import pytest

from jaxunlearn import audit, calibration, compare, data, grids, presets, results
from jaxunlearn.calibration import Trial, choose
from jaxunlearn.sweeps import grid


def trial(gap, collateral, cost=0.1, **settings):
    return Trial(settings, [gap, gap], [collateral, collateral], cost)


GENTLE, STRONG, RUDE = trial(0.5, 1.0), trial(0.9, 2.5, cost=0.3), trial(0.99, 40.0)


def test_the_largest_gap_within_the_limit_is_chosen():
    assert choose("m", [GENTLE, STRONG, RUDE], limit=3).chosen is STRONG


def test_the_limit_decides():
    assert choose("m", [GENTLE, STRONG, RUDE], limit=2).chosen is GENTLE
    assert choose("m", [GENTLE, STRONG, RUDE], limit=100).chosen is RUDE


def test_the_budget_decides_first():
    assert choose("m", [GENTLE, STRONG, RUDE], budget=0.2, limit=3).chosen is GENTLE


def test_where_none_keeps_to_the_limit_the_least_collateral_is_chosen():
    found = choose("m", [RUDE, STRONG], limit=1)
    assert found.chosen is STRONG and "no setting has at most 1 floors" in found.words


def test_where_none_keeps_to_the_budget_nothing_is_chosen():
    found = choose("m", [GENTLE], budget=0.01, limit=3)
    assert found.chosen is None and "no setting costs at most 0.01" in found.words
    assert calibration.specified(found) is None


def test_a_broken_setting_is_never_chosen():
    broken = Trial({}, [np.nan, 1.0], [np.inf, 0.0], 0.1)
    assert choose("m", [broken, GENTLE], limit=3).chosen is GENTLE
    assert "every setting broke" in choose("m", [broken], limit=3).words


def test_a_broken_model_has_no_gap_and_endless_collateral():
    outputs = {"forget": np.zeros((2, 3, 2)), "retain": np.full((2, 3, 2), np.nan)}
    proxy = calibration.Proxy(None, None, None, audit.hellinger_matrix, outputs, {}, 1.0, 0.0)
    gap, collateral = calibration._judged(proxy, outputs)
    assert np.isnan(gap) and collateral == np.inf


def test_gap_and_collateral_are_those_of_the_audit():
    """Against `audit.judge` on the same outputs."""
    rng = np.random.default_rng(0)
    sizes = {"forget": 1.0, "retain": 0.2, "test": 0.1}

    def group(count, size):
        def logits(part):
            noise = 0.3 * rng.normal(size=(count, 20, 3))
            return noise + size * sizes[part] * np.array([1.0, 0, 0])[None, None]

        return {part: logits(part) for part in sizes}

    oracle, recipe, original, method = group(8, 0), group(6, 0.2), group(6, 2), group(6, 1)
    matrices, (o, r, g, m) = calibration._distances(
        audit.hellinger_matrix, oracle, recipe, original, method
    )
    floors = audit.recipe_floor(matrices, o, [r], permutations=199, seed=0)
    judged = audit.judge(matrices, audit.Groups(g, o, m, [r]), floors=floors, seed=0)
    start = calibration._energies(audit.hellinger_matrix, oracle, original)["forget"]
    proxy = calibration.Proxy(None, None, None, audit.hellinger_matrix, oracle, floors, start, 0.0)
    gap, collateral = calibration._judged(proxy, method)
    np.testing.assert_allclose(gap, judged.gap_closed.value, rtol=1e-6)
    np.testing.assert_allclose(collateral, judged.collateral.value, rtol=1e-6)


def test_doing_nothing_is_never_too_much():
    proxy = calibration.Proxy(None, None, None, None, {}, {}, 1.0, 0.0)
    proxies = [proxy._replace(idle=idle) for idle in (10.0, 30.0)]
    found = calibration.References(None, None, "subclass", None, proxies, 1.0)
    assert calibration.raised(3.0, found) == 20.0
    assert calibration.raised(25.0, found) == 25.0


def test_requests_are_padded_with_rows_that_count_nothing():
    source = data.digits()
    requests = [data.class_task(source, c).request(64) for c in (2, 3)]
    assert requests[0].forget.num_examples != requests[1].forget.num_examples
    alike = calibration._alike(requests)
    for field in ("forget", "retain", "held_out"):
        sizes = {getattr(request, field).num_examples for request in alike}
        assert len(sizes) == 1
        for before, after in zip(requests, alike, strict=True):
            b, a = getattr(before, field), getattr(after, field)
            assert float(a["weight"].sum()) == b.num_examples
            counted = np.asarray(a["weight"]) > 0
            np.testing.assert_array_equal(np.asarray(a["id"])[counted], b["id"])
    assert all(request.adjacent is None for request in alike)


def test_a_chosen_setting_is_written_as_a_person_would():
    found = choose("finetune", [trial(1.0, 0.0, learning_rate=0.01, epochs=3)], limit=3)
    assert calibration.specified(found).label == "finetune(learning_rate=0.01, epochs=3)"
    plain = calibration.specified(choose("assd", [trial(1.0, 0.0)], limit=3))
    assert plain == presets.parse_methods("assd")[0]


def test_proxies_must_share_a_source():
    mixed = [data.class_task(data.digits(), 1), data.class_task(data.digits("odd_even"), 1)]
    for tasks in ([], mixed):
        with pytest.raises(ValueError, match="one or more proxies on one source"):
            calibration.references(tasks)


def test_every_grid_is_one_that_its_method_takes():
    recipe = presets.Recipe()
    for name, axes in grids.GRIDS.items():
        for point in grid(**axes(recipe)):
            presets.build(name, point, "class", recipe, 10)


def test_what_needs_siblings_is_not_applicable_without_them():
    plain = [data.class_task(data.digits(), 3)]
    entangled = [data.subclass_task(data.digits("odd_even"), 3)]
    assert calibration.applicable("finetune", plain)
    needing = [n for n, e in presets.catalogue().items() if "adjacent" in e.needs]
    for name in needing:
        assert not calibration.applicable(name, plain) and calibration.applicable(name, entangled)


@pytest.mark.slow
def test_a_calibration_finds_the_strength_that_proxies_ask_for():
    """Too weak, right and far too strong, on two proxies; the request's own rows stay retained."""
    task = data.class_task(data.digits(), 3)
    settings = compare.Settings(
        recipe=presets.Recipe(epochs=8, learning_rate=5e-3), seeds=4, oracles=8, permutations=99
    )
    found = calibration.references(data.proxies(task, 2), settings)
    assert found.retraining > 0
    own = set(task.columns("train", "forget")["id"].tolist())
    for proxy in found.proxies:
        assert not own & set(np.asarray(proxy.request.forget["id"]).tolist())
    points = grid(learning_rate=[1e-6, 2e-3, 1.0], alpha=[0.99], epochs=[2])
    result = calibration.calibrate("neggrad_plus", points, found)
    weak, right, wild = result.trials
    assert np.mean(np.abs(weak.gap_closed)) < 0.1 and max(weak.collateral) < 5
    assert np.mean(right.gap_closed) > 0.3
    assert min(wild.collateral) > 5
    assert result.chosen is right or np.mean(right.collateral) > 3
    assert all(0 < t.cost < 3 for t in result.trials)


def test_a_comparison_says_how_its_settings_were_chosen():
    record = {"notes": ["first"], "rows": []}
    tried = [
        choose("finetune", [trial(1.0, 0.5, epochs=3)], limit=3),
        choose("ssd", [trial(1.0, 9.0)], limit=3),
        choose("acu", [trial(1.0, 0.5)], budget=0.01, limit=3),
    ]
    by = calibration.Calibrated([], tried, ["class:5"], compare.Settings(), 7.0)
    told = calibration.told(results.Results(record), by).record
    assert told["notes"][0] == "first" and record["notes"] == ["first"]
    assert "2 methods were chosen on the proxies class:5" in told["notes"][1]
    assert told["notes"][2].startswith("acu is left out: no setting costs at most 0.01")
    assert told["notes"][3].startswith("ssd: no setting has at most 3 floors")
    assert told["calibration"]["tried"][0]["trials"][0]["settings"] == {"epochs": 3}


def test_a_method_that_lacks_its_data_is_refused_before_anything_is_trained():
    needing = next(n for n, e in presets.catalogue().items() if "adjacent" in e.needs)
    with pytest.raises(ValueError, match=f"{needing} is left out: it needs adjacent data"):
        calibration.calibrated(data.class_task(data.digits(), 3), presets.parse_methods(needing))


@pytest.mark.slow
def test_named_methods_get_settings_and_others_stay_as_they_are(monkeypatch):
    monkeypatch.setitem(grids.GRIDS, "finetune", lambda r: {"learning_rate": [1e-4, 1e-2]})
    recipe = presets.Recipe(epochs=4, learning_rate=5e-3)
    settings = compare.Settings(recipe=recipe, seeds=4, oracles=8, permutations=99)
    asked = presets.parse_methods("finetune,retrain,neggrad_plus(alpha=0.9)")
    found = calibration.calibrated(
        data.random_task(data.digits(), 0.1, seed=0), asked, settings, count=2
    )
    assert [each.name for each in found.methods] == ["finetune", "retrain", "neggrad_plus"]
    assert "learning_rate" in found.methods[0].changes and found.methods[1:] == asked[1:]
    assert len(found.proxies) == 2 and found.seconds > 0
