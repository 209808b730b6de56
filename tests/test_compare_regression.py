"""The comparison of a regression: its record, its distances, what it refuses.

One small comparison is run once and asked many things; what is measured is tested on predictions
that are made up.
"""

import dataclasses

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from jaxunlearn import audit, compare, data, presets, results, scoring_regression
from jaxunlearn.presets import Recipe, parse_methods
from jaxunlearn.reporting import report, tables, views
from jaxunlearn.scoring import Group, Part
from jaxunlearn.scoring_regression import RegressionMetrics, judge_regression

TARGET = data.Target("age", 40.0, 20.0)
RECIPE = Recipe(learning_rate=0.02, batch_size=20, epochs=30)
SETTINGS = compare.Settings(RECIPE, seeds=3, oracles=6, permutations=99, resamples=50)
METHODS = "retrain,blind_model,gaussian_amnesiac"
SPREAD = {"value", "low", "high", "per_model"}


def source() -> data.Source:
    """Age is linear in three of four inputs, with some noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((180, 4))
    age = 40 + 20 * (x @ [0.7, 0.5, -0.5, 0.0] + 0.2 * rng.standard_normal(180))
    columns = {
        "x": x.astype(np.float32),
        "y": data.standardised(TARGET, age),
        "id": np.arange(180, dtype=np.int32),
    }
    cuts = [slice(0, 120), slice(120, 120), slice(120, 180)]
    splits = [{name: column[cut] for name, column in columns.items()} for cut in cuts]
    return data.Source("ages", *splits, label_names={}, target=TARGET)


SOURCE = source()
TASK = data.range_task(SOURCE, 60, 200)


@pytest.fixture(scope="module")
def run():
    return compare.compare(TASK, parse_methods(METHODS), SETTINGS)


# ------------------------------------------------------------------------------------- the record


def test_a_regression_is_compared_like_everything_else(run):
    assert run.informative, run.status
    labels = [each.label for each in parse_methods(METHODS)]
    variants = [f"oracle, {words}" for words in RECIPE.variants()]
    assert [row["label"] for row in run.rows] == ["original", "oracle", *variants, *labels]
    assert run.record["task"]["target"] == TARGET._asdict()
    assert list(run.record["parts"]) == ["forget", "retain", "test", "forget_test"]
    assert "Asked to forget age from 60 to 200 of ages" in run.record["headline"]
    assert all(floor["value"] > 0 for floor in run.record["floors"].values())


def test_the_original_knows_what_the_oracles_do_not(run):
    rmse = {row["label"]: row["scores"]["rmse"]["forget"]["value"] for row in run.rows}
    assert rmse["original"] < 0.7 * rmse["oracle"]
    assert run.row("retrain")["verdict"]["gap_closed"]["value"] > 0.8
    assert run.row("original")["verdict"]["gap_closed"]["value"] < 0.2
    assert run.row("gaussian_amnesiac")["seconds"]["of_retraining"] > 0


def test_every_row_has_errors_and_all_but_the_oracle_have_distances(run):
    for row in run.rows:
        near = {"wasserstein", "prediction_distance"} if row["role"] != "oracle" else set()
        assert set(row["scores"]) == {"rmse", "mae", "explained"} | near
        for parts in row["scores"].values():
            assert list(parts) == list(run.record["parts"])
            assert all(set(s) == SPREAD and len(s["per_model"]) == row["models"]
                       for s in parts.values())  # fmt: skip
    assert set(run.record["floor"]) == {
        "rmse", "mae", "explained", "wasserstein", "prediction_distance"
    }  # fmt: skip


def test_the_blind_model_is_a_row_of_its_own(run):
    assert run.row("blind_model")["arguments"] == {"learning_rate": 0.02, "epochs": 3}
    assert run.row("blind_model")["guarantee"] == "empirical"


def test_the_record_survives_writing_and_is_shown_as_errors(run, tmp_path):
    again = results.read(results.write(run, tmp_path / "results.json"))
    assert again.record == run.record
    assert views.column(run.record).title == "RMSE" and views.whole(run.record) == ()
    text = " ".join(tables.table(run.record).split())
    assert "RMSE on" in text and "share of the variance of the training targets" in text
    page = report.html(run.record)
    for words in ("Wasserstein-1 distance to the oracles", "The error attack", "(age)"):
        assert words in page
    for words in ("nats", "Tug of war", "ratings"):
        assert words not in page


# ---------------------------------------------------------------------------- what is refused


def test_what_needs_classes_is_refused_by_name_before_anything_is_trained():
    with pytest.raises(ValueError, match="method random_labels does not forget from a regression"):
        compare.compare(TASK, parse_methods("finetune,random_labels"), SETTINGS)
    classes = data.class_task(data.digits(), 3)
    with pytest.raises(ValueError, match="method gaussian_amnesiac is for regressions"):
        compare.compare(classes, parse_methods("gaussian_amnesiac"), SETTINGS)


def test_a_network_of_images_is_refused():
    images = dataclasses.replace(SETTINGS, recipe=Recipe("cnn"))
    with pytest.raises(ValueError, match="network 'cnn' reads images"):
        compare.compare(TASK, parse_methods("finetune"), images)


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.REGRESSION_METHODS)
def test_every_default_method_of_regressions_runs_and_stays_finite(name):
    """On data that are easy: none of them may end in numbers that are not any."""
    found = compare.compare(TASK, parse_methods(name), SETTINGS).rows[-1]
    assert np.isfinite(found["scores"]["rmse"]["test"]["per_model"]).all()


# --------------------------------------------------------------------------- what is measured


def made_up(offset=0.0, models=4, seed=0, role="oracle"):
    """Groups whose outputs are known: targets, noise of size 0.1, and an offset."""
    rng = np.random.default_rng(seed)
    logits = {}
    for part, entry in PARTS.items():
        y = entry.columns["y"]
        logits[part] = y[None] + 0.1 * rng.standard_normal((models, *y.shape)) + offset
    return Group(role, role, logits, 0.0, 0.0, {})


PARTS: dict[str, Part] = results.parts_of(TASK, 10_000, 0)


def metrics(oracle):
    return RegressionMetrics(oracle, PARTS, TARGET, 1.0, SETTINGS)


def test_errors_and_distances_are_in_the_unit_of_the_target():
    oracle, other = made_up(), made_up(0.5, 2, 1, "method")
    scores = metrics(oracle).scores(other)
    y = PARTS["test"].columns["y"][:, 0]
    f, g = other.logits["test"][..., 0], oracle.logits["test"][..., 0]
    error = data.in_units(TARGET, f) - data.in_units(TARGET, y)[None]
    rmse, mae = np.sqrt((error**2).mean(axis=1)), np.abs(error).mean(axis=1)
    near = [np.mean([wasserstein_distance(20 * a, 20 * b) for b in g]) for a in f]
    far = [np.mean([20 * np.sqrt(((a - b) ** 2).mean()) for b in g]) for a in f]
    for name, expected in (
        ("rmse", rmse),
        ("mae", mae),
        ("explained", 1 - rmse**2 / 400),
        ("wasserstein", near),
        ("prediction_distance", far),
    ):
        np.testing.assert_allclose(scores[name]["test"]["per_model"], expected, rtol=1e-5)


def test_models_are_points_at_scaled_root_mean_square_differences():
    groups = [made_up(role="original"), made_up(0.0, 4, 1), made_up(0.3, 3, 2, "method")]
    judged = judge_regression(groups, PARTS, 2.0, SETTINGS)
    together = np.concatenate([g.logits["forget"][..., 0] for g in groups])
    gaps = together[:, None] - together[None]
    np.testing.assert_allclose(
        judged.matrices["forget"], np.sqrt((gaps**2).mean(axis=2)) / 2.0, atol=1e-7
    )
    y = PARTS["forget"].columns["y"][:, 0]
    np.testing.assert_allclose(
        judged.accuracies["forget"], 1 - ((together - y[None]) ** 2).mean(axis=1) / 4.0, rtol=1e-6
    )
    assert judged.chance == 0.0


@pytest.mark.parametrize(
    ("method", "paired"), [("finetune", True), ("blind_model", False), ("retrain", False)]
)
def test_models_made_from_nothing_are_not_paired_with_the_originals(method, paired, monkeypatch):
    seen = []
    judge = audit.judge
    monkeypatch.setattr(audit, "judge", lambda *a, **k: seen.append(k["paired"]) or judge(*a, **k))
    groups = [made_up(role="original"), made_up(0.0, 4, 1)]
    groups.append(made_up(0.3, 4, 2, "method")._replace(facts={"method": method}))
    judge_regression(groups, PARTS, 1.0, SETTINGS)(groups[2])
    assert seen == [paired]


def test_the_floor_is_half_of_the_oracles_against_the_other():
    oracle = made_up(models=6)
    floor = metrics(oracle).floor()
    f = oracle.logits["test"][..., 0]
    expected = [np.mean([wasserstein_distance(20 * a, 20 * b) for b in f[3:]]) for a in f[:3]]
    found = floor["wasserstein"]["test"]["per_model"]
    reverse = [np.mean([wasserstein_distance(20 * a, 20 * b) for b in f[1::2]]) for a in f[::2]]
    assert np.allclose(found, expected) or np.allclose(found, reverse)


def test_the_error_attack_sees_memory_and_not_its_absence():
    honest = made_up()
    memory = made_up()
    memory.logits["forget"][:] = PARTS["forget"].columns["y"][None]
    auc = [metrics(honest).membership(g)["error"]["auc"]["value"] for g in (honest, memory)]
    assert abs(auc[0] - 0.5) < 0.15 and auc[1] == 1.0
    curve = metrics(honest).curve(memory)
    assert curve["tpr"][0] == curve["tpr"][-1] == 1.0


def test_too_few_to_attack_is_undefined_and_nobody_to_attack_is_none():
    few = {name: part for name, part in PARTS.items() if name != "forget_test"}
    columns = {name: column[:3] for name, column in PARTS["test"].columns.items()}
    few["test"] = PARTS["test"]._replace(columns=columns)
    group = made_up()
    group.logits["test"] = group.logits["test"][:, :3]
    three = RegressionMetrics(None, few, TARGET, 1.0, SETTINGS)
    assert "3 examples of one kind for 5 folds" in three.membership(group)["undefined"]
    none = {"forget": PARTS["forget"]}
    assert RegressionMetrics(None, none, TARGET, 1.0, SETTINGS).membership(group) is None
    assert RegressionMetrics(None, none, TARGET, 1.0, SETTINGS).curve(group) is None
    assert RegressionMetrics(None, none, TARGET, 1.0, SETTINGS).floor() == {}


def test_a_source_whose_targets_are_all_equal_has_the_unit_one():
    flat = {
        split: dict(getattr(SOURCE, split)) | {"y": np.zeros_like(getattr(SOURCE, split)["y"])}
        for split in ("train", "validation", "test")
    }
    assert scoring_regression.deviation_of(dataclasses.replace(SOURCE, **flat)) == 1.0
    assert scoring_regression.deviation_of(data.diabetes()) == pytest.approx(1.0, abs=1e-5)


def test_nothing_to_forget_is_said(tmp_path):
    nothing = data.index_task(SOURCE, [])
    brief = dataclasses.replace(SETTINGS, recipe=dataclasses.replace(RECIPE, epochs=1))
    found = compare.compare(nothing, parse_methods("finetune(epochs=1)"), brief)
    assert found.status == "nothing to forget"
    assert set(found.rows[0]["scores"]) == {"rmse", "mae", "explained"}
