"""Every verdict of the table, from models that are made up; what is in doubt; what is noted."""

import dataclasses
import json

import numpy as np
import pytest

from jaxunlearn import audit
from jaxunlearn.auditing import judging, planted, suite
from jaxunlearn.auditing.judging import Book, Row, Settings
from jaxunlearn.results import plain
from tests.auditing import made_up

SETTINGS = Settings(permutations=199, resamples=49, shadows=0)
AUDITS = len(suite.AUDITS) - 2  # all but those of adjacent and remote rows
GONE = {key: [0.0, *(1.0 for _ in places[1:])] for key, places in made_up.CURVES.items()}


def row(measured, label="m", role="method", expected=None, paired=False):
    return Row(label, role, "", expected, paired, measured)


@pytest.fixture(scope="module")
def groups():
    return {
        "original": row(made_up.measured(6, 1, far=1.0), "original", "original", planted.FLAGGED),
        "oracle": row(made_up.measured(8, 2), "oracle", "oracle"),
    }


def opened(groups, *recipes, bench=None, settings=SETTINGS):
    book = Book(made_up.bench() if bench is None else bench, settings, 0)
    for each in (groups["original"], groups["oracle"], *recipes):
        book.add(each)
    return book


@pytest.fixture(scope="module")
def book(groups):
    """Without other recipes; only `judged` is asked of it, which changes nothing."""
    return opened(groups)


def said(book, far=0.0, *, models=6, seed=3, curves=None, paired=False, **changes):
    made = made_up.measured(models, seed, far, curves=curves)._replace(**changes)
    return book.judged(row(made, paired=paired))["finding"]


# --- The table --------------------------------------------------------------------------------


def test_models_like_the_oracles_are_indistinguishable_from_retraining(book):
    found = said(book)
    assert found["verdict"] == "indistinguishable from retraining"
    assert found["flagged"] == [] == found["came_back"] and found["p_value"] > 0.05
    assert found["words"].startswith(f"indistinguishable from retraining: none of {AUDITS} audits")


def test_models_that_lie_towards_the_original_have_traces(book):
    found = said(book, {"probes": 0.6})
    assert found["verdict"] == "forgotten traces remain" and found["flagged"] == ["probes"]
    assert "on probes they lie towards the original" in found["words"]
    assert f"1 of {AUDITS} audits" in found["words"]


def test_the_untouched_original_has_traces_and_never_came_back(groups, book):
    found = book.judged(groups["original"])["finding"]
    assert found["verdict"] == "forgotten traces remain" and found["came_back"] == []
    assert len(found["flagged"]) == AUDITS and f"and {AUDITS - 3} more" in found["words"]


@pytest.mark.parametrize("key", suite.DURABLE)
def test_what_an_attack_brings_back_came_back(book, key):
    line = {key: GONE[key]} if key in ("pruning", "quantisation") else {
        key: [1.0 for _ in made_up.CURVES[key]]
    }  # fmt: skip
    found = said(book, curves=line)
    assert found["verdict"] == "came back" and found["came_back"] == [key]
    title = suite.AUDITS[key].title
    assert f"under {title[:1].lower() + title[1:]} it knows more" in found["words"]


def test_what_was_there_before_the_attack_did_not_come_back(book):
    found = said(book, {key: 0.8 for key in suite.DURABLE})
    assert set(found["flagged"]) == set(suite.DURABLE) and found["came_back"] == []
    assert found["verdict"] == "forgotten traces remain"


def test_models_that_never_seemed_to_have_forgotten_did_not_come_back(book):
    known = [0.6 for _ in made_up.CURVES["pruning"]]
    found = said(book, curves={"pruning": known, "relearning": [1.0, 1.0, 1.0, 1.0]})
    assert "relearning" in found["flagged"] and found["came_back"] == []


def test_an_attack_that_brings_back_no_more_than_was_there_is_no_return(book):
    line = {key: [0.3 for _ in made_up.CURVES[key]] for key in ("pruning", "relearning")}
    found = said(book, curves=line)
    assert "relearning" in found["flagged"] and found["came_back"] == []


def test_an_attack_that_gives_less_than_retrained_models_get_is_no_return(book):
    found = said(book, curves={"relearning": [-0.1, -0.6, -0.6, -0.6]})
    assert found["flagged"] == ["relearning"] and found["came_back"] == []
    assert found["verdict"] == "differs from retraining"


def test_outputs_beyond_the_oracles_are_over_forgotten(book):
    found = said(book, {"outputs_forget": -0.6})
    assert found["verdict"] == "over-forgotten" and found["flagged"] == ["outputs_forget"]
    assert "none towards the original" in found["words"]


def test_another_difference_is_called_that(book):
    found = said(book, {"membership": -0.6})
    assert found["verdict"] == "differs from retraining" and found["flagged"] == ["membership"]
    assert "most of all membership of forgotten rows" in found["words"]


def test_models_without_finite_outputs_have_collapsed(book):
    made = made_up.measured(6, 3)
    made.logits["forget"][:2] = np.nan
    done = book.judged(row(made))
    found = done["finding"]
    assert found["verdict"] == "collapsed" and found["p_value"] is None
    assert found["words"] == "collapsed: 2 of 6 models gave non-finite outputs"
    assert done["evidence"] == {} and done["examples"] is None


def test_dead_features_are_a_difference_and_no_collapse(book):
    features = {key: 0 * values for key, values in made_up.measured(6, 3).features.items()}
    done = book.judged(row(made_up.measured(6, 3)._replace(features=features)))
    found = done["finding"]
    assert done["evidence"]["features_forget"]["direction"] is None  # nowhere, so in no direction
    assert set(found["flagged"]) == {"features_forget", "features_test"}
    assert found["verdict"] == "differs from retraining"


def test_a_number_that_is_undefined_tells_models_apart_and_gives_no_direction(book):
    made = made_up.measured(6, 3)
    made.places["probes"][:] = np.nan
    done = book.judged(row(made))
    assert done["finding"]["flagged"] == ["probes"]
    assert done["finding"]["verdict"] == "differs from retraining"
    assert done["evidence"]["probes"]["direction"] is None
    assert done["evidence"]["pruning"]["direction"] is not None


def test_broken_oracles_are_not_held_against_the_method(groups):
    made = made_up.measured(8, 2)
    made.logits["test"][0] = np.inf
    found = said(opened(groups | {"oracle": row(made, "oracle", "oracle")}))
    assert found["verdict"] == "not informative" and found["flagged"] == []


# --- Other recipes ----------------------------------------------------------------------------


def test_no_farther_than_another_recipe_is_within_recipe_noise(groups):
    far = [
        row(made_up.measured(4, 7, {"membership": t, "outputs_test": t}), f"recipe {t}", "recipe")
        for t in (0.1, 0.7)
    ]
    book = opened(groups, *far)
    assert said(book, {"membership": 0.5})["verdict"] == "within recipe noise"
    assert said(book, {"outputs_test": 0.4})["verdict"] == "within recipe noise"
    assert said(book, {"membership": 0.5})["flagged"] == ["membership"]  # still told
    assert said(book, {"probes": 0.5})["verdict"] == "forgotten traces remain"  # recipes agree here
    both = said(book, {"membership": 0.5, "probes": 0.5})
    assert both["verdict"] == "forgotten traces remain"


def test_the_recipe_floor_is_in_the_unit_of_the_row(groups):
    """Distances of numbers are in deviations over the models that are pooled: a recipe that is
    hardly different must not excuse a method that is far more so."""
    near = row(made_up.measured(4, 7, {"membership": 0.15}), "recipe", "recipe")
    farther = row(made_up.measured(6, 1, far=5.0), "original", "original", planted.FLAGGED)
    book = opened(groups | {"original": farther}, near)
    done = book.judged(row(made_up.measured(6, 3, {"membership": 0.4})))
    assert done["finding"]["verdict"] == "forgotten traces remain"
    done = done["evidence"]["membership"]
    assert 0 < 2 * done["recipe"] < done["energy"]
    pooled = [near.measured, groups["oracle"].measured]
    alone = audit.energy(suite.distances(pooled)["membership"], range(4), range(4, 12))
    assert alone > done["energy"]  # pooled apart, the unit is another one


def test_false_alarms_are_as_rare_as_the_level_says_with_other_recipes_in_the_matrix(groups):
    """Oracles, row and recipes are fresh in each of 200 trials; 5 % are 10, 20 is the 99.9 %."""
    alarms = 0
    for trial in range(200):
        book = Book(made_up.bench(), dataclasses.replace(SETTINGS, resamples=19), trial)
        book.original = groups["original"]
        book.oracle = row(made_up.measured(8, 10_000 + trial), "oracle", "oracle")
        book.recipes = [row(made_up.measured(4, 20_000 + trial, 0.5), "recipe", "recipe")]
        found, _ = book._evidence(row(made_up.measured(6, 30_000 + trial)))
        alarms += bool(found.flagged(SETTINGS.level))
    assert 1 <= alarms <= 20


def test_the_largest_recipe_counts_and_a_broken_one_does_not(groups):
    recipes = [
        row(made_up.measured(4, 7, {"probes": t}), f"recipe {t}", "recipe") for t in (0.0, 0.7)
    ]
    recipes[0].measured.logits["test"][0] = np.nan
    book = opened(groups, *recipes)
    assert said(book, {"probes": 0.5})["verdict"] == "within recipe noise"
    evidence = book.judged(row(made_up.measured(6, 3)))["evidence"]
    assert evidence["outputs_test"]["recipe"] is not None
    assert evidence["outputs_test"]["recipe"] < 0.5 * evidence["probes"]["recipe"]


def test_without_other_recipes_there_is_no_recipe_noise(book):
    done = book.judged(row(made_up.measured(6, 3, {"membership": 0.5})))
    assert done["finding"]["verdict"] == "forgotten traces remain"
    assert {each["recipe"] for each in done["evidence"].values()} == {None}


# --- The record -------------------------------------------------------------------------------


def test_rows_wait_for_the_recipes_and_come_in_order(groups):
    recipe = row(made_up.measured(4, 7, {"probes": 2.0}), "recipe", "recipe")
    book = opened(groups, recipe)
    assert book.rows == []
    book.add(row(made_up.measured(6, 3), "m"))
    told = book.told()
    assert [each["label"] for each in told["rows"]] == ["original", "oracle", "m"]
    first = told["rows"][0]
    assert first["evidence"]["probes"]["recipe"] > first["evidence"]["probes"]["energy"]


def test_the_oracles_are_not_judged_by_themselves(groups, book):
    done = book.judged(groups["oracle"])
    assert done["finding"] is None and done["evidence"] == {} and done["examples"] is None
    assert done["models"] == 8 and done["curves"].keys() == made_up.CURVES.keys()


def test_the_record_describes_all_that_its_rows_speak_of_and_is_data(groups):
    book = opened(groups)
    book.add(row(made_up.measured(6, 3, {"probes": 0.5}), "m"))
    told = json.loads(json.dumps(plain(book.told()), allow_nan=False))
    for each in told["rows"]:
        assert each["evidence"].keys() <= told["audits"].keys()
        assert each["measures"].keys() <= told["measures"].keys()
        for key, line in each["curves"].items():
            axis = told["curves"][key]["x"]
            assert len(axis) == len(line["value"]) == len(line["low"]) == len(line["high"])
    assert told["floors"].keys() <= told["measures"].keys()
    assert "not_for_people" not in told["measures"]
    assert told["curves"]["quantisation"]["ticks"] == ["32 bits", "8 bits", "4 bits"]
    assert told["curves"]["relearning"]["ticks"] is None


def test_a_band_is_the_mean_over_models_with_its_interval(book):
    made = made_up.measured(6, 3)
    band = book.judged(row(made))["curves"]["pruning"]
    np.testing.assert_allclose(band["value"], made.curves["pruning"].mean(axis=0))
    assert (np.array(band["low"]) < band["value"]).all()
    assert (np.array(band["high"]) > band["value"]).all()


def test_model_i_is_paired_with_the_original_that_it_was_made_from(groups, book):
    """The originals with their noise, moved a little: pairing makes the displacement certain."""
    models = groups["original"].measured
    made = models._replace(places={**models.places, "probes": models.places["probes"] - 0.5})
    ends = [
        book.judged(row(made, paired=paired))["evidence"]["probes"]["along"]
        for paired in (True, False)
    ]
    widths = [along["high"] - along["low"] for along in ends]
    assert widths[0] < widths[1]


def test_equal_seeds_judge_equally(groups):
    records = []
    for _ in range(2):
        book = opened(groups)
        book.add(row(made_up.measured(6, 3, {"probes": 0.3})))
        records.append(json.dumps(plain(book.told())))
    assert records[0] == records[1]


# --- Doubt, and planted groups ----------------------------------------------------------------


def planted_row(far, expected=planted.NOT_FLAGGED, label="oracle again"):
    return row(made_up.measured(6, 5, far), label, "control", expected)


def test_contaminated_oracles_differ_from_fresh_ones_and_are_no_reference(groups):
    seen = row(made_up.measured(8, 2, far=0.5), "oracle", "oracle")
    settings = dataclasses.replace(SETTINGS, permutations=999)
    book = opened(groups | {"oracle": seen}, settings=settings)
    book.add(planted_row(0.0))
    assert "freshly trained oracles differ from those of the run (p = 0.001)" in book.doubt()


def test_fresh_oracles_like_those_of_the_run_leave_no_doubt(groups):
    book = opened(groups)
    assert book.doubt() is None  # nothing was planted
    book.add(planted_row(0.0))
    assert book.doubt() is None and book.told()["notes"] == []


def test_a_false_alarm_of_the_usual_rate_is_a_note_and_no_doubt(groups, monkeypatch):
    book = opened(groups)
    book.add(planted_row({"probes": 0.6}))
    assert book.rows[-1]["finding"]["p_value"] == 1 / 200 <= judging._IN_DOUBT
    assert book.doubt()
    monkeypatch.setattr(judging, "_IN_DOUBT", 0.001)
    assert book.doubt() is None
    assert book.told()["notes"] == [
        "The planted group 'oracle again' was not judged as it must be: a false alarm, so trust "
        "this audit less."
    ]


def test_a_planted_group_that_nobody_saw_is_noted_and_a_collapsed_one_is_not(groups):
    book = opened(groups)
    book.add(planted_row(0.0, planted.FLAGGED, "half-contaminated oracle"))
    book.add(planted_row(0.8, planted.FLAGGED, "seen"))
    broken = planted_row(0.0, planted.FLAGGED, "broken")
    broken.measured.logits["test"][:] = np.nan
    book.add(broken)
    (note,) = book.told()["notes"]
    assert "'half-contaminated oracle' was not judged as it must be" in note
    assert "cannot show a difference of that size here; train more" in note


# --- Settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"permutations": 18}, "permutations: expected at least 19, got 18"),
        ({"resamples": 1}, "resamples: expected at least 19"),
        ({"rows": 3}, "rows: expected at least 4"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"shadows": -1}, "shadows: expected at least 0"),
        ({"shadows": 3}, "shadows: expected 0 or at least 4 pairs, got 3"),
        ({"level": 0.0}, "level: expected a number between 0 and 1"),
        ({"level": 0.01, "permutations": 50}, "nothing could be flagged. Take at least 99"),
    ],
)
def test_settings_with_which_nothing_can_be_said_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Settings(**changes)


def test_the_smallest_settings_are_accepted():
    Settings(permutations=19, resamples=19, rows=4, steps=1, shadows=0)
    Settings(level=0.01, permutations=99, shadows=4)
