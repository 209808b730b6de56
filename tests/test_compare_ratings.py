"""Comparisons of recommenders: what is looked at, what is measured, what is said.

Most of it is tested on models that are tables of scores, so that what they know is planted. One
small factorisation is really fitted, forgotten from, and compared.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxunlearn import audit, data, rating_presets, results, scoring_ratings
from jaxunlearn.compare import keys_of
from jaxunlearn.compare_ratings import Settings, compare
from jaxunlearn.rating_presets import Factorisation, parse_methods
from jaxunlearn.reporting import report, tables, views

USERS, ITEMS = 24, 15


def source(kind="explicit") -> data.RatingSource:
    everything = data.low_rank_ratings(
        users=USERS, items=ITEMS, rank=2, density=0.6, noise=0.2, seed=0, kind=kind
    )
    train, test = data.time_split(everything, test=0.25)
    return data.RatingSource("planted", train, test, kind, "planted")


EXPLICIT, IMPLICIT = source(), source("implicit")


def task(spec="random:0.1", of=EXPLICIT) -> data.RatingTask:
    return data.parse_rating_task(of, spec)


def pairs(part) -> set:
    return set(zip(part.user.tolist(), part.item.tolist(), strict=True))


# --- What is looked at ------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["user:3", "item:2", "random:0.1", "entries:0,7"])
def test_parts_are_disjoint_and_together_are_everything(spec):
    found = scoring_ratings.plan(task(spec), 10_000, 0)
    sets = [pairs(part) for part in found.parts.values()]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert set().union(*sets) == pairs(EXPLICIT.train) | pairs(EXPLICIT.test)
    assert pairs(found.parts["forget"]) == pairs(task(spec).forgotten)
    for part in found.parts.values():
        assert part.available == len(part.user) == len(part.value)


def test_beside_a_user_lie_ratings_of_the_same_items_and_beside_an_item_of_the_same_users():
    for spec, side in (("user:3", "item"), ("item:2", "user")):
        parts = scoring_ratings.plan(task(spec), 10_000, 0).parts
        shared = set(getattr(parts["forget"], side).tolist())
        assert set(getattr(parts["adjacent"], side).tolist()) <= shared
        assert not set(getattr(parts["retain"], side).tolist()) & shared
    assert "adjacent" not in scoring_ratings.plan(task(), 10_000, 0).parts


def test_a_part_is_thinned_by_a_fixed_choice_of_the_seed():
    first, again, other = (scoring_ratings.plan(task(), 9, seed) for seed in (0, 0, 1))
    assert {len(part.user) for part in first.parts.values()} == {9}
    assert all(part.available > 9 for part in first.parts.values())
    assert [pairs(p) for p in first.parts.values()] == [pairs(p) for p in again.parts.values()]
    assert [pairs(p) for p in first.parts.values()] != [pairs(p) for p in other.parts.values()]


@pytest.mark.parametrize("spec", ["user:3", "item:2", "random:0.1"])
def test_strangers_never_were_and_are_of_the_same_users_or_items(spec):
    asked = task(spec)
    found = scoring_ratings.plan(asked, 10_000, 0)
    user, item = (side.tolist() for side in found.strangers)
    strangers = list(zip(user, item, strict=True))
    assert len(strangers) == len(set(strangers)) > 0
    assert not set(strangers) & (pairs(EXPLICIT.train) | pairs(EXPLICIT.test))
    own, theirs = (item, "item") if asked.kind == "item" else (user, "user")
    assert set(own) <= set(getattr(asked.forgotten, theirs).tolist())


def test_pairs_are_ranked_against_items_that_the_user_never_met():
    asked = task(of=IMPLICIT)
    met = pairs(IMPLICIT.train) | pairs(IMPLICIT.test)
    full = np.bincount([u for u, _ in met], minlength=USERS) == ITEMS
    for part in scoring_ratings.plan(asked, 10_000, 0).parts.values():
        assert part.others.shape[1] * len(part.user) >= 1000
        for u, i, others in zip(part.user, part.item, part.others, strict=True):
            ranked = {(int(u), int(o)) for o in others}
            assert ranked == {(int(u), int(i))} if full[u] else not ranked & met


def test_people_are_those_concerned_and_others():
    asked = task("item:2")
    people = scoring_ratings.plan(asked, 10_000, 0).people
    assert people["affected users"].tolist() == np.unique(asked.forgotten.user).tolist()
    together = [*people["affected users"], *people["other users"]]
    assert sorted(together) == np.unique(EXPLICIT.train.user).tolist()


# --- Models that are tables -------------------------------------------------------------------


class Tables(NamedTuple):
    """A learner whose state is a (users, items) table."""

    def predict(self, state, user, item):
        return state[user, item]

    def recommend(self, state, users, *, count):
        table = np.array(state)[users]
        best = np.argsort(-table, axis=1, kind="stable")[:, :count]
        return best, np.take_along_axis(table, best, axis=1)


def truth(of=EXPLICIT) -> np.ndarray:
    """What a perfect model says of every cell; the mean (or 0) where nobody knows."""
    table = np.full((USERS, ITEMS), of.train.value.mean() if of is EXPLICIT else 0.0)
    for part in (of.train, of.test):
        table[part.user, part.item] = part.value if of is EXPLICIT else 1.0
    return table


def planted(seed, count, asked, memory=0.0, noise=0.1) -> list[np.ndarray]:
    """Models that know all but the forgotten cells, of which they have a share `memory`."""
    rng = np.random.default_rng(seed)
    full, gone = truth(asked.source), asked.forgotten
    known = np.array(full)
    blank = asked.source.train.value.mean() if asked.source is EXPLICIT else 0.0
    known[gone.user, gone.item] = blank + memory * (full[gone.user, gone.item] - blank)
    return [known + noise * rng.normal(size=known.shape) for _ in range(count)]


def group(label, role, states, found, **facts) -> scoring_ratings.Group:
    said = scoring_ratings.answers(found, Tables(), states)
    return scoring_ratings.Group(label, role, **said, compile=0.0, run=1.0, facts=facts)


def compared(asked, methods) -> tuple:
    """(plan, groups) of planted originals, oracles, a recipe and methods."""
    found = scoring_ratings.plan(asked, 10_000, 0)
    groups = [
        group("original", "original", planted(0, 8, asked, 1.0), found),
        group("oracle", "oracle", planted(1, 12, asked), found),
        group("oracle, other", "recipe", planted(2, 6, asked), found),
    ]
    groups += [group(name, "method", states, found) for name, states in methods.items()]
    return found, groups


SETTINGS = Settings(seeds=8, oracles=12, permutations=199, resamples=100)


@pytest.mark.parametrize("asked", [task(), task(of=IMPLICIT), task("user:3")], ids=lambda t: t.name)
def test_what_was_planted_is_what_is_said(asked):
    methods = {
        "as retrained": planted(3, 8, asked),
        "half": planted(4, 8, asked, 0.5),
        "beyond": planted(5, 8, asked, -1.0),
        "destroyed": [0 * t for t in planted(6, 8, asked)],
        "broken": [t * np.nan for t in planted(7, 8, asked)],
    }
    found, groups = compared(asked, methods)
    judged: Any = scoring_ratings.judge(groups, found, SETTINGS)
    said = {g.label: judged(g) for g in groups}
    assert [said[name]["verdict"] for name in methods] == [
        "indistinguishable from retraining",
        "under-forgotten",
        "over-forgotten",
        "collapsed",
        "collapsed",
    ]
    assert said["original"]["verdict"] == "under-forgotten" and said["oracle"] is None
    assert said["half"]["gap_closed"].value == pytest.approx(0.5, abs=0.1)
    assert said["half"]["displacement"].along.value == pytest.approx(0.5, abs=0.1)


def test_originals_that_know_no_more_than_the_mean_tell_nothing():
    asked = task()
    found = scoring_ratings.plan(asked, 10_000, 0)
    flat = np.full((USERS, ITEMS), EXPLICIT.train.value.mean())
    rng = np.random.default_rng(0)
    made = [[flat + 0.01 * rng.normal(size=flat.shape) for _ in range(8)] for _ in range(2)]
    groups = [group(r, r, m, found) for r, m in zip(("original", "oracle"), made, strict=True)]
    judged: Any = scoring_ratings.judge(groups, found, SETTINGS)
    verdict = judged(groups[0])
    assert verdict["words"].startswith("not informative: the original is at chance on test data")


def test_a_distance_is_the_root_mean_square_of_what_two_models_say_in_deviations():
    asked = task()
    found, groups = compared(asked, {})
    matrix = scoring_ratings.judge(groups, found, SETTINGS).matrices["forget"]
    one, other = groups[0].predictions["forget"][2], groups[1].predictions["forget"][3]
    spread = asked.retained.value.astype(float).std()
    apart = np.sqrt(((one.astype(float) - other) ** 2).mean()) / spread
    assert matrix[2, 8 + 3] == pytest.approx(apart, rel=1e-6)


def test_no_floor_is_finer_than_anybody_could_see():
    asked = task()
    found = scoring_ratings.plan(asked, 10_000, 0)
    alike = [planted(seed, n, asked, noise=1e-5) for seed, n in ((1, 12), (2, 6))]
    near = [state + 3e-5 for state in planted(3, 8, asked, noise=1e-5)]
    groups = [
        group("original", "original", planted(0, 8, asked, 1.0, 1e-5), found),
        group("oracle", "oracle", alike[0], found),
        group("oracle, other", "recipe", alike[1], found),
        group("near", "method", near, found),
        group("off", "method", [state + 0.01 for state in near], found),
    ]
    judged: Any = scoring_ratings.judge(groups, found, SETTINGS)
    assert {f.value for f in judged.floors.values()} == {scoring_ratings.PRECISION}
    assert judged(groups[3])["verdict"] == "within recipe noise"
    assert judged(groups[4])["verdict"] in ("over-forgotten", "elsewhere")


def test_predictions_are_those_of_the_entries():
    found, groups = compared(task(of=IMPLICIT), {})
    states = planted(0, 8, task(of=IMPLICIT), 1.0)
    for name, part in found.parts.items():
        expected = [s[part.user, part.item] for s in states]
        np.testing.assert_allclose(groups[0].predictions[name], expected, rtol=1e-6)
        expected = [s[part.user[:, None], part.others] for s in states]
        np.testing.assert_allclose(groups[0].others[name], expected, rtol=1e-6)
    expected = [s[found.strangers] for s in states]
    np.testing.assert_allclose(groups[0].predictions["strangers"], expected, rtol=1e-6)


def scored(asked, **methods) -> dict:
    found, groups = compared(asked, methods)
    metrics = scoring_ratings.Metrics(groups[0], groups[1], found, SETTINGS)
    return {
        g.label: {"scores": metrics.scores(g), "attacks": metrics.membership(g),
                  "curve": metrics.curve(g)}
        for g in groups
    } | {"floor": metrics.floor()}  # fmt: skip


def test_metrics_of_ratings_are_errors_and_overlap():
    found = scored(task(), clean=planted(3, 8, task(), noise=0.0))
    clean = found["clean"]["scores"]
    assert set(clean) == {"rmse", "explained", "overlap@10"}
    assert clean["rmse"]["retain"]["value"] == pytest.approx(0, abs=1e-6)
    gone = task().forgotten.value.astype(float)
    expected = np.sqrt(((gone - EXPLICIT.train.value.mean()) ** 2).mean())
    assert clean["rmse"]["forget"]["value"] == pytest.approx(expected, rel=1e-5)
    assert set(clean["overlap@10"]) == {"affected users", "other users"}
    assert "overlap@10" not in found["oracle"]["scores"]
    assert set(found["floor"]) == set(clean)


def test_metrics_of_counts_are_rankings():
    found = scored(task("user:3", IMPLICIT), blind=[np.zeros((USERS, ITEMS))] * 8)
    original, blind = found["original"]["scores"], found["blind"]["scores"]
    assert set(original) == {"pair_accuracy", "recall@10", "ndcg@10", "overlap@10"}  # 15 items
    assert blind["pair_accuracy"]["test"]["value"] == 0.5
    assert original["pair_accuracy"]["test"]["value"] > 0.95
    assert set(original["recall@10"]) == {"test", "forget_test"}


def test_overlap_is_told_apart_for_those_concerned():
    found, groups = compared(task("user:3"), {"as retrained": planted(1, 12, task("user:3"))})
    metrics = scoring_ratings.Metrics(groups[0], groups[1], found, SETTINGS)
    same = groups[-1]  # the very oracles
    lists = np.array(same.lists)
    lists[:, 0] = -1  # the first of the people is the forgotten user: nothing is recommended
    first, moved = (
        metrics.scores(each)["overlap@10"] for each in (same, same._replace(lists=lists))
    )
    assert first["affected users"]["value"] > 0.2 and moved["affected users"]["value"] == 0
    assert first["other users"] == moved["other users"]


def test_the_attack_finds_what_moved_and_stands_beside_the_oracles():
    asked = task("random:0.2")
    found = scored(asked, untouched=planted(0, 8, asked, 1.0))
    names = {f"{score}, never met" for score in ("change", "size", "alone")}
    names |= {f"{s}, kept" for s in ("change", "size", "residual", "alone", "misfit")}
    for row in ("original", "oracle", "untouched"):
        assert set(found[row]["attacks"]) == names
    assert found["original"]["attacks"]["size, kept"] is None  # there is no model of after
    assert found["untouched"]["attacks"]["size, kept"]["auc"]["value"] == 0.5
    held = found["oracle"]["attacks"]
    assert held["size, kept"]["auc"]["value"] > 0.75 and held["size, kept"]["tpr"]["value"] > 0.3
    assert held["residual, kept"]["auc"]["value"] > 0.8
    assert held["misfit, kept"]["auc"]["value"] < 0.2
    assert found["original"]["attacks"]["misfit, kept"]["auc"]["value"] == pytest.approx(
        0.5, abs=0.1
    )
    assert np.mean(found["oracle"]["curve"]["tpr"]) > 0.75


def test_implicit_feedback_has_no_residual():
    asked = task(of=IMPLICIT)
    names = scored(asked)["oracle"]["attacks"]
    assert not [name for name in names if name.startswith(("residual", "misfit"))]


def test_every_attack_has_a_place_in_the_report():
    for asked in (task(), task(of=IMPLICIT)):
        found = scoring_ratings.plan(asked, 10_000, 0)
        shown = {
            key for _, columns in scoring_ratings.attack_tables(found) for key, _, _ in columns
        }
        assert shown == set(scored(asked)["oracle"]["attacks"])


# --- A real one -------------------------------------------------------------------------------

SMALL = Settings(
    Factorisation(rank=2, regularisation=1.0, sweeps=80),  # plenty: nothing moves any more
    seeds=3,
    oracles=4,
    permutations=99,
    resamples=50,
)
METHODS = parse_methods("retrain,als(mode='rows'),als,finetune(sweeps=1)")


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def run(said):
    return compare(task("user:3"), METHODS, SMALL, say=lambda text, seconds: said.append(text))


def test_there_is_a_row_for_every_group_in_order(run):
    assert [(row["label"], row["role"], row["models"]) for row in run.rows] == [
        ("original", "original", 3),
        ("oracle", "oracle", 4),
        ("oracle, 100 sweeps", "recipe", 2),
        ("oracle, scale 0.2", "recipe", 2),
        ("retrain", "method", 3),
        ("als(mode='rows')", "method", 3),
        ("als", "method", 3),
        ("finetune(sweeps=1)", "method", 3),
    ]
    assert run.status == "informative"


def test_a_deletion_that_converged_is_where_retraining_is(run):
    found = run.row("als")["verdict"]
    assert found["verdict"] in ("indistinguishable from retraining", "within recipe noise")
    assert found["gap_closed"]["value"] == pytest.approx(1, abs=1e-3)
    assert run.row("als(mode='rows')")["verdict"]["verdict"] == "under-forgotten"
    assert run.row("original")["verdict"]["verdict"] == "under-forgotten"


def test_every_row_says_what_it_promises_what_it_did_and_how_long(run):
    rows, done = run.row("als(mode='rows')"), run.row("als")
    assert rows["guarantee"] == "empirical" and done["guarantee"].startswith("exact(")
    assert done["info"]["converged"] == [1.0] * 3 and max(rows["info"]["sweeps"]) == 0
    assert done["sweeps"]["value"] == np.mean(done["info"]["sweeps"])
    assert run.row("finetune(sweeps=1)")["sweeps"]["value"] == 1
    assert run.row("retrain")["seconds"]["of_retraining"] == 1
    assert rows["seconds"]["of_retraining"] > 0 and done["seconds"]["of_retraining"] > 0
    assert all(row["seconds"]["compile"] >= 0 and row["seconds"]["run"] > 0 for row in run.rows)


def test_the_record_says_what_was_compared_and_survives_a_file(run, tmp_path):
    record = run.record
    assert record["task"]["users"] == USERS and record["task"]["name"] == "user:3"
    assert record["settings"]["recipe"]["regularisation"] == 1.0
    assert record["metrics"] == dict(audit.METRIC_VERSIONS)
    assert record["parts"]["adjacent"]["words"] == "retained training entries of the same items"
    assert results.read(results.write(run, tmp_path / "r.json")).record == record
    json.dumps(record, allow_nan=False)


def test_progress_tells_of_every_stage(run, said):
    assert said[0] == "fitting 3 originals" and said[-1] == "auditing"
    assert "fitting 4 oracles (true retrainings)" in said and "unlearning with als" in said


def test_the_report_speaks_of_errors_and_recommendations_and_not_of_accuracies(run):
    page, text = report.html(run.record), report.table(run.record, width=160)
    assert " RMSE on " in text and "accuracy on" not in text
    value = run.row("oracle")["scores"]["rmse"]["test"]["value"]
    assert f"{value:.3f} ±" in text and f"{value:.3f}<small>" in page
    for words in ("RMSE on every part", "Overlap@10", "affected users", "Sweeps",
                  "Against entries that never were", "size: TPR", "explained"):  # fmt: skip
        assert words in page, words
    assert "Tug of war" not in page and "near duplicates" not in page
    assert "--rank 2" in page and "--feedback explicit" in page


def test_the_picture_is_drawn(run, tmp_path):
    path = report.png(run.record, tmp_path / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_record_without_a_view_is_one_of_classifiers(run):
    assert views.column({}).heading == "accuracy, %" and views.whole({}) == ("tug_of_war",)
    assert views.column(run.record).heading == "RMSE"
    line = tables.lines(run.record)[0]
    assert line.accuracy["test"] == run.row("original")["scores"]["rmse"]["test"]


def test_nothing_to_forget_changes_nothing_and_scores_nothing():
    found = compare(task("random:0"), parse_methods("als(mode='rows')"), SMALL)
    assert found.status == "nothing to forget" and found.informative
    assert [row["label"] for row in found.rows] == ["original", "als(mode='rows')"]
    assert found.rows[0]["scores"] == found.rows[1]["scores"]
    assert "nothing to forget" in report.table(found.record) and report.html(found.record)


def test_the_same_seed_gives_the_same_models(run):
    again = compare(task("user:3"), METHODS[:1], SMALL)
    for label in ("original", "oracle", "retrain"):
        assert again.row(label)["scores"] == run.row(label)["scores"]
    assert again.row("retrain")["scores"]["rmse"] != run.row("oracle")["scores"]["rmse"]


def test_retraining_from_the_same_seed_begins_where_the_original_did():
    learner = SMALL.recipe.learner
    asked = task("random:0")
    first, other = (keys_of(0, name, 1)[0] for name in ("original", "x"))
    original, _ = SMALL.recipe.fit(learner, asked.source.train, first)
    given = rating_presets.Given(SMALL.recipe, learner, asked, original, first, other)
    retrain = rating_presets.METHODS["retrain"].run
    same, _ = retrain(given, same_seed=True)
    fresh, _ = retrain(given, same_seed=False)
    assert np.array_equal(same.user, original.user)
    assert not np.array_equal(fresh.user, original.user)


# --- What cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alls", "method: 'alls' is unknown. Did you mean 'als'"),
        ("ssd", "method: 'ssd' is unknown"),
        ("als(model='rows')", "method als: argument 'model' is unknown. Did you mean 'mode'"),
        ("als(mode='row')", "method als: mode 'row' is unknown. Did you mean 'rows'"),
        ("als(mode=3)", "method als: mode must be a string, got 3"),
        ("als(sweeps=-1)", "method als: expected sweeps >= 0, got -1"),
        ("als(tolerance=0.0)", "method als: expected a finite tolerance > 0, got 0.0"),
        ("retrain(same_seed=1)", "same_seed must be True or False, got 1"),
    ],
)
def test_a_method_that_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feedback": "explict"}, "feedback: 'explict' is unknown. Did you mean 'explicit'"),
        ({"rank": 0}, "rank: expected an integer >= 1, got 0"),
        ({"sweeps": 0}, "sweeps: expected an integer >= 1, got 0"),
        ({"regularisation": float("nan")}, "regularisation: expected a finite number > 0"),
        ({"scale": -1.0}, "scale: expected a finite number > 0"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Factorisation(**change)


@pytest.mark.parametrize(
    ("of", "feedback", "message"),
    [
        (EXPLICIT, "ials", "is explicit; use 'explicit', or the source planted:implicit"),
        (IMPLICIT, "explicit", "is implicit; use 'implicit' or 'ials'"),
    ],
)
def test_feedback_that_the_source_does_not_have_is_refused(of, feedback, message):
    with pytest.raises(ValueError, match=message):
        compare(task(of=of), settings=Settings(Factorisation(feedback=feedback)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "at least 2 seeds and 4 oracles, got 1 and 32"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_too_few_of_anything_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_recipes_vary_their_sweeps_or_their_tolerance():
    assert list(Factorisation(sweeps=30).variants()) == ["38 sweeps", "scale 0.2"]
    assert list(Factorisation().variants()) == ["tolerance 0.0003", "scale 0.2"]
