"""The comparison: what its record holds, what it refuses to say, and what it does not depend on.

One small comparison is run once and asked many things. Its source is ten clouds of points: enough
to learn in a few epochs, and ten classes of one size, where the bound of `ssd` bites.
"""

import dataclasses
import json
import math
from functools import partial

import jax
import numpy as np
import pytest

from jaxunlearn import audit, compare, data, ensemble, networks, results
from jaxunlearn.cache import Cache, DamagedEntryWarning
from jaxunlearn.compare import Settings
from jaxunlearn.model import from_nnx
from jaxunlearn.presets import Recipe, parse_methods, rule_of, settings

CLASSES = 10
RECIPE = Recipe(learning_rate=0.01, batch_size=50, epochs=6)
SETTINGS = Settings(RECIPE, seeds=3, oracles=6, permutations=199, resamples=100)
BRIEF = dataclasses.replace(SETTINGS, seeds=2, oracles=4, recipe=Recipe(batch_size=50, epochs=1))
IDLE = "ssd(alpha=10, effective_batch=1)"
ABSURD = "gradient_ascent(learning_rate=1.0, stop_at_chance=None)"
METHODS = f"retrain,neggrad_plus,{IDLE},{ABSURD}"


def clouds() -> data.Source:
    rng = np.random.default_rng(0)
    centres = 3.0 * rng.standard_normal((CLASSES, 6))

    def split(rows: int, first: int) -> dict[str, np.ndarray]:
        y = rng.permutation(np.repeat(np.arange(CLASSES), rows // CLASSES))
        x = centres[y] + 0.8 * rng.standard_normal((rows, 6))
        return {
            "x": x.astype(np.float32),
            "y": y.astype(np.int32),
            "id": np.arange(first, first + rows, dtype=np.int32),
        }

    names = {"y": tuple("abcdefghij")}
    return data.Source("clouds", split(200, 0), split(0, 200), split(100, 200), names)


@pytest.fixture(scope="module")
def source():
    return clouds()


@pytest.fixture(scope="module")
def task(source):
    return data.class_task(source, 3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def run(task, cache, said):
    return compare.compare(
        task, parse_methods(METHODS), SETTINGS, cache=cache, say=lambda *line: said.append(line)
    )


def without_times(record: dict) -> dict:
    """The record without the clock."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record["rows"]]
    return {k: v for k, v in record.items() if k != "seconds"} | {"rows": rows}


def numbers(value) -> list[float]:
    """Every number inside, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


# --- The record -------------------------------------------------------------------------------


def test_there_is_a_row_for_every_group_in_order(run):
    variants = [f"oracle, {words}" for words in RECIPE.variants()]
    labels = [each.label for each in parse_methods(METHODS)]
    assert [row["label"] for row in run.rows] == ["original", "oracle", *variants, *labels]
    assert [row["models"] for row in run.rows] == [3, 6, 3, 3, 3, 3, 3, 3]
    assert run.status == "informative" and run.informative


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_every_row_has_loss_and_accuracy_on_every_part_for_every_model(run, metric):
    for row in run.rows:
        scores = row["scores"][metric]
        assert list(scores) == ["forget", "retain", "test", "forget_test"]
        for summary in scores.values():
            assert len(summary["per_model"]) == row["models"]


@pytest.mark.parametrize(
    "metric", ["jensen_shannon", "activation_distance", "prediction_agreement"]
)
def test_every_row_but_the_oracle_agrees_or_not_with_the_oracles(run, metric):
    for row in run.rows:
        if row["label"] == "oracle":
            assert metric not in row["scores"]
            continue
        for summary in row["scores"][metric].values():
            assert len(summary["per_model"]) == row["models"]


def test_a_summary_is_the_mean_of_its_models_inside_its_interval(run):
    for row in run.rows:
        if row["verdict"] and row["verdict"]["verdict"] == "collapsed":
            continue
        for summary in row["scores"]["accuracy"].values():
            assert summary["value"] == pytest.approx(np.mean(summary["per_model"]))
            assert summary["low"] <= summary["value"] <= summary["high"]


def test_every_metric_stands_beside_its_floor(run):
    floor = run.record["floor"]
    compared = run.row("neggrad_plus")["scores"]
    assert set(floor) == set(compared) | {"tug_of_war"}
    for metric, parts in compared.items():
        assert set(floor[metric]) == set(parts)
        assert np.isfinite(numbers(floor[metric])).all()


def test_recipe_floors_are_finite_and_positive(run):
    floors = run.record["floors"]
    assert set(floors) == {"forget", "retain", "test"} | ({"forget_test"} & set(audit.PARTS))
    for floor in floors.values():
        assert 0 < floor["value"] < math.inf


def test_the_oracle_is_not_judged_and_recipes_are_references(run):
    assert run.row("oracle")["verdict"] is None
    for row in run.rows:
        if row["role"] == "recipe":
            assert row["verdict"]["verdict"] == "reference"
            assert row["recipe"] in [dataclasses.asdict(v) for v in RECIPE.variants().values()]


def test_membership_is_attacked_with_three_scores(run):
    for row in run.rows:
        assert set(row["membership"]) in ({"loss", "confidence", "entropy"}, {"undefined"})
        if "loss" in row["membership"]:
            assert {"auc", "accuracy", "tpr"} <= set(row["membership"]["loss"])
    curve = run.record["curves"]["original"]
    assert len(curve["fpr"]) == len(curve["tpr"]) and curve["tpr"][-1] == 1.0


def test_a_method_says_what_it_is_and_what_was_asked_of_it(run):
    row = run.row("neggrad_plus")
    assert row["family"] == "descent" and row["paper"] == "2302.09880"
    assert row["arguments"] == settings("neggrad_plus", {}, "class", RECIPE, CLASSES)
    assert row["preset"] == rule_of("neggrad_plus", "class", CLASSES)
    assert run.row(IDLE)["preset"] == "as given"
    assert run.row(IDLE)["arguments"] == {"alpha": 10, "effective_batch": 1}
    assert row["guarantee"] == "empirical" and run.row("retrain")["guarantee"] == "exact-bitwise"
    assert len(row["info"]["steps"]) == 3


def test_the_record_says_what_was_compared(run, task, source):
    record = run.record
    assert record["schema"] == results.SCHEMA
    assert record["task"]["digest"] == task.digest
    assert record["task"]["source_digest"] == source.digest
    assert record["settings"] == dataclasses.asdict(SETTINGS)
    assert record["parts"]["forget"] == {
        "examples": 20,
        "available": 20,
        "words": "training examples to forget",
    }
    assert {"jax", "jaxunlearn", "numpy", "python", "machine"} <= set(record["versions"])
    assert record["metrics"] == dict(audit.METRIC_VERSIONS)


def test_a_record_is_data_that_survives_a_file(run, tmp_path):
    path = results.write(run, tmp_path / "results.json")
    assert results.read(path).record == run.record
    assert json.loads(json.dumps(run.record, allow_nan=False)) == run.record


def test_time_is_told_as_a_share_of_retraining(run):
    retrain = run.row("retrain")["seconds"]
    assert retrain["of_retraining"] == 1.0 and retrain["run"] > 0
    assert run.row("original")["seconds"]["of_retraining"] is None


def test_progress_tells_of_every_stage_as_time_goes_on(run, said):
    texts, times = zip(*said, strict=True)
    assert "training 3 originals" in texts and "training 6 oracles (true retrainings)" in texts
    assert "unlearning with neggrad_plus" in texts and texts[-1] == "auditing"
    assert list(times) == sorted(times) and run.record["seconds"] >= times[-1]


# --- Verdicts ---------------------------------------------------------------------------------


def test_retraining_is_indistinguishable_and_the_untouched_original_is_not(run):
    assert run.row("retrain")["verdict"]["verdict"] == "indistinguishable from retraining"
    assert run.row("original")["verdict"]["verdict"] == "under-forgotten"
    accuracy = run.row("oracle")["scores"]["accuracy"]
    assert accuracy["forget"]["value"] == 0 and accuracy["test"]["value"] > 0.9


def test_ascent_at_an_absurd_rate_is_never_named_as_the_nearest(run):
    verdict = run.row(ABSURD)["verdict"]
    assert verdict["verdict"] in ("collapsed", "over-forgotten")
    assert "gradient_ascent" not in run.record["headline"]
    assert "class 3 (d) of clouds" in run.record["headline"]


def test_ssd_that_cannot_select_changes_nothing_and_is_noted(run):
    assert run.row(IDLE)["scores"] == run.row("original")["scores"]
    assert run.row(IDLE)["info"]["selected"] == [0.0] * 3
    (note,) = [note for note in run.record["notes"] if "I_f/I_full" in note]
    assert (
        note.startswith(f"{IDLE}: these importances")
        and "n/n_f = 10," in note
        and "effective_batch=64" in note
    )


def test_nothing_to_forget_changes_nothing_and_scores_nothing(source):
    found = compare.compare(data.index_task(source, []), parse_methods("retrain,ssd"), BRIEF)
    assert found.status == "nothing to forget" and found.informative
    assert found.record["headline"] == "The request is empty: there is nothing to forget."
    assert [row["label"] for row in found.rows] == ["original", "retrain", "ssd"]
    for row in found.rows:
        assert row["scores"] == found.row("original")["scores"]  # the same bits
        assert set(row["scores"]) == {"loss", "accuracy"} and "forget" not in row["scores"]["loss"]
        assert row["tug_of_war"] is None and row["membership"] is None
        assert row["verdict"]["verdict"] == "nothing to forget"
    assert found.record["floors"] == {} and found.record["floor"] == {}
    json.dumps(found.record, allow_nan=False)


def test_models_that_were_not_trained_tell_nothing(task):
    untrained = dataclasses.replace(SETTINGS, recipe=dataclasses.replace(RECIPE, epochs=0))
    found = compare.compare(task, parse_methods(IDLE), untrained)
    assert found.status.startswith("not informative: ") and not found.informative
    assert "chance" in found.status
    assert found.record["headline"].startswith("This comparison says nothing: ")
    for row in found.rows:
        assert not (row["verdict"] or {}).get("gap_closed")
        if row["role"] in ("original", "method"):
            assert row["verdict"]["verdict"] == "not informative"


# --- What it depends on, and what it does not -------------------------------------------------


def test_the_same_seed_gives_the_same_record(run, task):
    again = compare.compare(task, parse_methods(METHODS), SETTINGS)
    assert without_times(again.record) == without_times(run.record)


def test_another_seed_gives_other_models(run, task):
    other = compare.compare(task, [], dataclasses.replace(SETTINGS, seed=1))
    for label in ("original", "oracle"):
        ours, theirs = (r.row(label)["scores"]["loss"]["retain"]["per_model"] for r in (run, other))
        assert not set(ours) & set(theirs)
    assert other.record["headline"].endswith("; no approximate method was tried.")


def test_a_second_run_reads_what_was_trained_and_finds_the_same(run, task, cache):
    again = compare.compare(task, parse_methods(IDLE), SETTINGS, cache=cache)
    assert len(again.rows) == 5
    for row in again.rows:
        before = run.row(row["label"])
        for found in ("scores", "tug_of_war", "membership"):
            assert row[found] == before[found]  # the same bits
        if row["role"] != "method":
            assert row["seconds"]["run"] == 0.0 < before["seconds"]["run"]
        if row["verdict"]:
            assert row["verdict"]["verdict"] == before["verdict"]["verdict"]
            for part, energy in row["verdict"]["energies"].items():
                assert energy == pytest.approx(before["verdict"]["energies"][part], abs=1e-6)


def test_a_damaged_entry_is_made_again_with_the_same_result(run, task, cache):
    entries = [p for p in cache.root.iterdir() if p.is_dir() and p.name != "quarantine"]
    assert len(entries) == 4
    largest = max(entries[0].rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.warns(DamagedEntryWarning, match=f"{entries[0].name}.*made again"):
        again = compare.compare(task, [], SETTINGS, cache=cache)
    for row in again.rows:
        assert row["scores"] == run.row(row["label"])["scores"]
    assert sum(row["seconds"]["run"] > 0 for row in again.rows) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"part": "retain"},
        {"recipe": Recipe(epochs=7)},
        {"recipe": Recipe(batch_size=51)},
        {"recipe": Recipe(model="cnn")},
        {"recipe": Recipe(learning_rate=0.011)},
        {"recipe": Recipe(optimizer="sgd")},
        {"name": "oracle"},
        {"count": 4},
        {"seed": 1},
    ],
    ids=lambda change: "-".join(map(str, change)),
)
def test_what_a_trained_ensemble_depends_on_is_in_its_address(task, change):
    asked = {"part": "all", "used": Recipe(), "name": "original", "count": 3, "seed": 0}
    base = compare._address(task, *asked.values())
    if "recipe" in change:
        change = {"used": change["recipe"]}
    assert compare._address(task, *(asked | change).values()) != base
    assert compare._address(task, *asked.values()) == base


def test_oracles_of_another_task_or_source_have_another_address_and_originals_share_one(source):
    rows = source.test["x"].copy()
    rows[0, 0] += 1
    other = dataclasses.replace(source, train=dict(source.train), test=source.test | {"x": rows})
    three, four = (data.class_task(source, label) for label in (3, 4))
    same = data.class_task(other, 3)

    def address(task, part):
        return compare._address(task, part, RECIPE, "name", 3, 0)

    assert address(three, "all") == address(four, "all")
    assert address(three, "retain") != address(four, "retain")
    assert address(three, "all") != address(same, "all")


def test_other_code_has_another_address(task, monkeypatch):
    before = compare._address(task, "all", RECIPE, "original", 3, 0)
    monkeypatch.setattr(compare, "code_version", lambda *modules: "of tomorrow")
    assert compare._address(task, "all", RECIPE, "original", 3, 0) != before


def test_the_code_that_trains_is_part_of_the_address():
    names = {module.__name__ for module in compare._CODE_THAT_TRAINS}
    for name in ("training", "loop", "ensembles", "networks", "objectives", "losses", "presets"):
        assert f"jaxunlearn.{name}" in names


def test_more_oracles_keep_the_keys_of_the_first():
    few, many = (jax.random.key_data(compare.keys_of(0, "oracle", n)) for n in (4, 9))
    np.testing.assert_array_equal(few, many[:4])
    everything = np.concatenate(
        [
            jax.random.key_data(compare.keys_of(s, name, 9))
            for s in (0, 1)
            for name in ("oracle", "a")
        ]
    )
    assert len(np.unique(everything, axis=0)) == 36


def test_neither_more_oracles_nor_fewer_devices_change_the_first_ones(run, task, monkeypatch):
    assert jax.device_count() > 1
    monkeypatch.setattr(compare, "ensemble", partial(ensemble, devices=jax.devices()[:1]))
    network = from_nnx(networks.build("mlp", (6,), CLASSES))
    keys = compare.keys_of(SETTINGS.seed, "oracle", 7)
    retained = task.oracle_data(RECIPE.batch_size)
    params, _ = compare._trained(network, RECIPE, retained, keys, {}, None)
    for part, logits in compare.Evaluator(network, task, SETTINGS)(params).items():
        split, name = ("train", part) if part in ("forget", "retain") else (
            "test", "forget" if part == "forget_test" else "retain")  # fmt: skip
        found = audit.part_scores(logits, task.columns(split, name)["y"])
        before = run.row("oracle")["scores"]["loss"][part]["per_model"]
        np.testing.assert_allclose(found.loss[:6], before, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("rows", "models"), [(1000, 16), (7, 16), (1000, 2), (64, 3), (1, 1)])
def test_outputs_do_not_depend_on_how_many_are_computed_at_once(task, monkeypatch, rows, models):
    network = from_nnx(networks.build("mlp", (6,), CLASSES))
    params = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(0), 5))
    monkeypatch.setattr(compare, "_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(compare, "_MODELS_AT_ONCE", models)
    found = compare.Evaluator(network, task, SETTINGS)(params)
    for part, logits in found.items():
        x = results.parts_of(task, SETTINGS.rows, SETTINGS.seed)[part].columns["x"]
        assert logits.shape == (5, len(x), CLASSES)
        for i, outputs in enumerate(logits):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            np.testing.assert_allclose(
                outputs, network.outputs(one, {"x": x}), rtol=1e-4, atol=1e-5
            )


def test_no_more_rows_of_a_part_are_evaluated_than_asked_for(task):
    network = from_nnx(networks.build("mlp", (6,), CLASSES))
    params = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(0), 2))
    thin = compare.Evaluator(network, task, dataclasses.replace(SETTINGS, rows=7))(params)
    assert {logits.shape for logits in thin.values()} == {(2, 7, CLASSES)}


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "expected at least 2 seeds and 4 oracles, got 1 and 32"),
        ({"oracles": 3}, "expected at least 2 seeds and 4 oracles, got 16 and 3"),
        ({"rows": 0}, "rows: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ],
)
def test_too_few_of_anything_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ("ssd(alpa=1)", SETTINGS, "argument 'alpa' is unknown. Did you mean 'alpha'"),
        ("ssd(alpha='x')", SETTINGS, "ssd: alpha must be a number, got 'x'"),
        (
            "ssd",
            dataclasses.replace(SETTINGS, recipe=Recipe(model="mpl")),
            "unknown network 'mpl': did you mean 'mlp'",
        ),
        (
            "ssd",
            dataclasses.replace(SETTINGS, recipe=Recipe(model="cnn")),
            r"network 'cnn' reads images: expected input_shape .* got \(6,\)",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(task, methods, settings, message):
    said = []
    with pytest.raises(ValueError, match=message):
        compare.compare(task, parse_methods(methods), settings, say=lambda *line: said.append(line))
    assert not said


# --- The real thing ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_default_class_task_is_judged_as_it_should_be():
    found = compare.compare(
        data.class_task(data.digits(), 3),
        parse_methods("retrain,neggrad_plus,gradient_ascent,gradient_ascent(learning_rate=1.0, "
                      "stop_at_chance=None)"),
    )  # fmt: skip
    assert found.status == "informative"
    for label in ("original", "oracle"):
        assert found.row(label)["scores"]["accuracy"]["test"]["value"] >= 0.95
    assert found.row("oracle")["scores"]["accuracy"]["forget_test"]["value"] == 0
    assert all(0 < floor["value"] < math.inf for floor in found.record["floors"].values())
    assert found.row("retrain")["verdict"]["verdict"] == "indistinguishable from retraining"
    assert found.row("original")["verdict"]["verdict"] == "under-forgotten"
    assert found.row(ABSURD)["verdict"]["verdict"] in ("collapsed", "over-forgotten")
    assert "learning_rate=1.0" not in found.record["headline"]


@pytest.mark.slow
def test_driving_random_forget_data_to_zero_accuracy_is_over_forgetting():
    zeal = "random_labels(wrong_only=True, epochs=400, learning_rate=0.1, optimizer='sgd')"
    found = compare.compare(
        data.random_task(data.digits(), 0.05, seed=0), parse_methods(f"retrain,{zeal}")
    )
    accuracy = {
        row["label"]: {part: s["value"] for part, s in row["scores"]["accuracy"].items()}
        for row in found.rows
    }
    assert abs(accuracy["oracle"]["forget"] - accuracy["oracle"]["test"]) < 0.03
    assert accuracy[zeal]["forget"] < 0.05 and accuracy[zeal]["test"] > 0.9
    assert found.row(zeal)["verdict"]["verdict"] == "over-forgotten"
    assert found.row(zeal)["verdict"]["gap_closed"]["value"] < 0
    assert "random_labels" not in found.record["headline"]
    assert found.row("retrain")["verdict"]["verdict"] == "indistinguishable from retraining"


def test_methods_that_lack_their_data_are_left_out_of_the_usual_ones_and_named():
    source = data.digits()
    request = data.class_task(source, 3).request(64)
    names, notes = compare.possible(["finetune", "entanglement", "tmu"], request)
    assert names == ["finetune", "tmu"]
    assert notes == [
        "entanglement is left out: it needs adjacent data, of which this task has none."
    ]
    bare = request._replace(held_out=None)
    assert "held-out data" in compare.possible(["tmu"], bare)[1][0]
    usual = [each.name for each in compare.usual(data.class_task(source, 3), Recipe())]
    assert "entanglement" not in usual and "tmu" in usual and "gaussian_amnesiac" not in usual
