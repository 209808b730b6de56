"""Numbers of one ensemble against the oracles: what they are, and what they are without."""

import numpy as np
import pytest

from jaxunlearn import audit
from jaxunlearn.auditing.distinguishing import against_oracles, floors_of
from tests.auditing import made_up

LEFT = {"outputs_forget": 1.0, "outputs_forget_test": 1.0, "features_forget": 0.7}
SLOW, FAST = ({"relearning": line} for line in ([0.0, 0.4, 0.8, 1.1], [0.0, 1.1, 1.1, 1.1]))


@pytest.fixture(scope="module")
def groups():
    return {
        "original": made_up.measured(6, 1, far=1.0),
        "oracle": made_up.measured(8, 2, curves=SLOW),
        "left": made_up.measured(6, 3, far=LEFT, curves=FAST),
        "fresh": made_up.measured(6, 4, curves=SLOW),
    }


def asked(groups, own, oracle="oracle", original="original", bench=None):
    bench = made_up.bench() if bench is None else bench
    reference = groups.get(original)
    return against_oracles(
        bench, groups[own], groups[oracle], reference, resamples=49, seed=0
    )  # fmt: skip


@pytest.fixture(scope="module")
def left(groups):
    return asked(groups, "left")


@pytest.fixture(scope="module")
def fresh(groups):
    return asked(groups, "fresh")


def margins(groups, name, part="forget"):
    return audit.margins(groups[name].logits[part], made_up.LABELS[part])


def test_each_number_is_the_audit_of_that_name(groups, left):
    numbers, _ = left
    own, oracle = (margins(groups, name) for name in ("left", "oracle"))
    assert numbers["klom"]["value"] == pytest.approx(audit.klom(oracle, own).mean())
    distance = audit.margin_distance(oracle, own)
    assert numbers["wasserstein"]["value"] == pytest.approx(distance.wasserstein.mean())
    assert numbers["margin_energy"]["value"] == pytest.approx(distance.energy.mean())
    quality = audit.forgetting_quality(oracle, own)
    assert numbers["forgetting_quality"]["value"] == pytest.approx(quality.points.mean())
    stack = np.concatenate([groups[name].features["forget"] for name in ("left", "oracle")])
    similar = audit.mean_cka(audit.cka_matrix(stack), range(6, 14))[:6]
    assert numbers["cka_forget"]["value"] == pytest.approx(similar.mean())
    for found in numbers.values():
        assert found is None or set(found) == {"value", "low", "high"}


def test_what_was_left_is_seen_and_fresh_oracles_are_not(left, fresh):
    high, low = left[0], fresh[0]
    for name in ("klom", "wasserstein", "margin_energy", "ks_rejected", "lira_accuracy"):
        assert high[name]["value"] > low[name]["value"], name
    assert high["forgetting_quality"]["value"] < low["forgetting_quality"]["value"]
    assert high["cka_forget"]["value"] < low["cka_forget"]["value"] - 0.2
    assert high["lira_accuracy"]["low"] > 0.9 > low["lira_accuracy"]["value"]
    assert low["ks_rejected"]["value"] == 0 and high["ks_rejected"]["value"] > 0.5
    assert low["epsilon"]["value"] == 0


def test_enough_models_bound_epsilon_away_from_zero_and_say_how_far_they_could():
    many = {
        name: made_up.measured(24, seed, far=far)
        for name, seed, far in (("oracle", 1, 0.0), ("left", 2, LEFT), ("fresh", 3, 0.0))
    }
    known, unknown = (asked(many, name)[0]["epsilon"] for name in ("left", "fresh"))
    assert 0 == unknown["value"] < known["value"] <= known["high"] == unknown["high"]


def test_retained_rows_that_nobody_touched_stay_as_private_as_they_were(left):
    numbers, examples = left
    assert numbers["lira_retain"]["value"] < 0.7 < numbers["lira_accuracy"]["value"]
    assert examples["forget"]["score"].mean() > 0.9 > 0.7 > examples["retain"]["score"].mean()


def test_method_and_oracle_are_not_interchangeable(groups, left):
    turned = asked(groups, "oracle", "left")[0]
    assert turned["klom"]["value"] != pytest.approx(left[0]["klom"]["value"], rel=1e-3)
    assert turned["anamnesis"]["value"] > 1 > left[0]["anamnesis"]["value"]
    assert turned["relearn_steps"]["value"] > left[0]["relearn_steps"]["value"]


def test_steps_to_relearn_are_asked_of_the_originals_and_capped(groups, left, fresh):
    known = groups["original"].curves["relearning"][:, 0]
    times = audit.relearn_time(
        groups["left"].curves["relearning"], known, made_up.STEPS, quantity="knowledge"
    )
    assert np.isfinite(times).all() and times.max() == made_up.STEPS[1]
    assert left[0]["relearn_steps"]["value"] == pytest.approx(times.mean())
    assert fresh[0]["relearn_steps"]["value"] == 20
    never = made_up.measured(6, 5)
    found = asked(groups | {"never": never}, "never")[0]
    assert found["relearn_steps"]["value"] == made_up.STEPS[-1]
    assert not {"relearn_steps", "anamnesis"} & asked(groups, "left", original=None)[0].keys()


def test_each_example_has_a_score_and_a_floor_that_does_not_know_the_method(left, fresh):
    for part in ("forget", "retain"):
        count = made_up.SIZES[part]
        assert left[1][part]["score"].shape == left[1][part]["floor"].shape == (count,)
    floor = left[1]["forget"]["floor"]
    np.testing.assert_array_equal(floor, fresh[1]["forget"]["floor"])
    assert floor.mean() < 0.75


def test_the_floor_is_one_half_of_the_oracles_against_the_other(groups):
    found = floors_of(made_up.bench(), groups["oracle"], 49, 0)
    first, second = audit.halves(margins(groups, "oracle"))
    assert found["klom"]["value"] == pytest.approx(audit.klom(second, first).mean())
    assert found["lira_worst"]["value"] > 0.5  # the largest of many
    assert "relearn_steps" not in found and "anamnesis" not in found


def test_rows_bound_the_attack_on_examples_and_choose_the_same_for_all(groups):
    few = made_up.bench(rows=5)
    one, other = (asked(groups, name, bench=few)[1] for name in ("left", "fresh"))
    assert one["forget"]["score"].shape == (5,)
    np.testing.assert_array_equal(one["forget"]["floor"], other["forget"]["floor"])


def test_without_unseen_rows_or_features_their_numbers_are_absent(groups):
    alone = made_up.bench(outsiders=lambda: None)
    bare = {name: g._replace(features={}, curves={}) for name, g in groups.items()}
    numbers, examples = asked(bare, "left", bench=alone)
    assert not numbers.keys() & {"rmia_auc", "cka_forget", "cka_test", "relearn_steps"}
    assert numbers["klom"] is not None and examples is not None


def test_a_model_that_is_not_finite_leaves_nothing_to_say(groups):
    broken = groups["left"]._replace(logits={p: z.copy() for p, z in groups["left"].logits.items()})
    broken.logits["retain"][1] = np.nan
    assert asked(groups | {"left": broken}, "left") == ({}, None)


def test_a_likelihood_ratio_of_too_few_models_is_absent(groups):
    two, four = (made_up.some(groups["left"], np.arange(n)) for n in (2, 4))
    numbers, examples = asked(groups | {"left": two}, "left")
    assert examples is None and numbers["klom"] is not None
    assert not numbers.keys() & {"lira_accuracy", "lira_worst", "lira_retain", "epsilon"}
    oracles = made_up.some(groups["oracle"], np.arange(4))
    numbers, examples = asked(groups | {"left": four, "oracle": oracles}, "left")
    assert numbers["lira_accuracy"] is not None
    assert examples["forget"]["floor"] is None  # halves of two
    assert "lira_accuracy" not in floors_of(made_up.bench(), oracles, 49, 0)


def test_equal_seeds_give_equal_numbers_and_others_other_intervals(groups, left):
    again = asked(groups, "left")
    assert again[0] == left[0]
    other = against_oracles(
        made_up.bench(), groups["left"], groups["oracle"], groups["original"], resamples=49, seed=1
    )[0]
    assert other["klom"]["value"] == left[0]["klom"]["value"]
    assert other["klom"]["low"] != left[0]["klom"]["low"]
