"""The continual-learning run: its scores by hand, a tiny run whole, its section from its record."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmarks_md, continual, continual_section
from experiments.continual import PENALTIES, SCORES
from jaxunlearn.model import Model
from tests.experiments.records import record as comparison


def found(rng, seeds=4, level=None):
    accuracy = rng.uniform(0.2, 0.9, seeds) if level is None else level + rng.normal(0, 1e-3, seeds)
    return {
        "mu": float(10.0 ** rng.integers(-3, 5)),
        "at_edge": bool(rng.integers(2)),
        "accuracy": accuracy.tolist(),
        "forgetting": rng.uniform(0.2, 0.9, seeds).tolist(),
        "grid": {"mu": [1.0], "validation": [0.5], "test": [0.5]},
    }


def made(seed=0, levels=None, starts=("fresh", "pretrained")):
    """A record of numbers that mean nothing; `levels` fixes the accuracy of some penalties."""
    rng = np.random.default_rng(seed)
    rows = [
        {"start": start, "loss": loss, "penalty": kind, "seconds": 1.0}
        | {score: found(rng, level=(levels or {}).get(kind)) for score in SCORES}
        for start in starts
        for loss in ("local", "full")
        for kind in PENALTIES
    ]
    study = {
        "source": "digits", "setting": continual.SETTINGS["digits"]._asdict(), "classes": 10,
        "rows_per_class": 77, "pretraining_rows": 400, "network": "MLP 128-64", "seconds": 5.0,
        "held_out": {"validation": 297, "test": 300}, "rows": rows,
    }  # fmt: skip
    facts = {k: comparison()[k] for k in ("date", "machine", "versions", "seconds")}
    return facts | {
        "schema": continual.SCHEMA,
        "kind": continual.KIND,
        "command": "python -m experiments.continual --seeds 4",
        "studies": [study],
    }


# Scores


def test_forgetting_is_counted_from_the_best_that_an_older_task_had():
    table = np.array([[0.8, 0.95, 0.9], [0.9, 0.7, 0.9], [0.5, 0.6, 1.0]])
    final, forgetting = continual.final_and_forgetting(table)
    assert final == pytest.approx(0.7)
    assert forgetting == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)  # 0.95 before it is luck


def test_accuracy_is_taken_among_all_seen_or_among_the_own_task():
    model = Model(outputs=lambda p, batch: batch["x"], loss=lambda p, batch: batch["x"][:, 0])
    classes = jnp.array([[2, 0], [1, 3]])
    x = jnp.array([[5.0, 9, 1, 0], [5, 0, 1, 9], [0, 7, 0, 8.0]])
    data = {"x": x, "y": jnp.array([0, 0, 1])}
    after_first = continual.accuracies(model, (), data, classes, jnp.array(0))
    after_second = continual.accuracies(model, (), data, classes, jnp.array(1))
    np.testing.assert_allclose(after_first, [[1, 0], [1, 0]])
    np.testing.assert_allclose(after_second, [[0, 0], [1, 0]])


def test_tasks_hold_their_own_classes_in_the_order_given():
    columns = {"y": np.repeat(np.arange(4), 3), "x": np.arange(12)[:, None]}
    cut = continual.split(columns, np.array([2, 0, 3, 1]), 2)
    np.testing.assert_array_equal(cut["y"], [[2, 2, 2, 0, 0, 0], [3, 3, 3, 1, 1, 1]])
    np.testing.assert_array_equal(cut["x"][0, :, 0], [6, 7, 8, 0, 1, 2])


def test_the_strength_is_chosen_on_validation_data_and_scored_on_test_data():
    table = np.zeros((2, 3, 2, 2, 2))  # seeds, strengths, split, tasks, tasks
    table[:, 1, 0, -1] = 0.9  # best on validation
    table[:, 2, 1, -1] = 0.8  # best on test
    table[:, 1, 1, -1] = 0.3
    out = continual.chosen(table, np.array([0.1, 1.0, 10.0]))
    assert out["mu"] == 1.0 and not out["at_edge"]
    np.testing.assert_allclose(out["accuracy"], [0.3, 0.3])


def test_a_new_class_is_left_out_of_the_penalty_on_parameters():
    params = {"body": jnp.ones((2, 3)), "head": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}}
    mask = continual._seen_columns(params, jnp.array([True, False]))
    assert mask["body"].all() and mask["head"]["b"].tolist() == [True, False]
    np.testing.assert_array_equal(mask["head"]["w"], [[True, False]] * 3)


# A run


@pytest.mark.slow
def test_a_tiny_run_writes_a_record_that_becomes_a_section(tmp_path):
    options = ["--sources", "digits", "--epochs", "1", "--seeds", "2", "--strengths", "0.1", "1e4"]
    options += ["--penalties", "l2", "--losses", "local", "--out", str(tmp_path)]
    assert continual.main(options) == 0
    record = continual_section.read(tmp_path / "continual.json")
    rows = record["studies"][0]["rows"]
    assert [(r["start"], r["penalty"]) for r in rows] == [("fresh", "l2"), ("pretrained", "l2")]
    for row in rows:
        for score in SCORES:
            values = row[score]["accuracy"] + row[score]["grid"]["validation"]
            assert len(row[score]["accuracy"]) == 2 and all(0 <= v <= 1 for v in values)
    aware, agnostic = (
        np.mean([r[score]["accuracy"] for r in rows]) for score in ("task-aware", "task-agnostic")
    )
    assert aware > 0.6 > agnostic  # two classes at a time, or ten
    assert "### digits" in continual_section.continual(record)


def features(p, batch):
    return jnp.tanh(batch["x"] @ p["body"])


def outputs(p, batch):
    return features(p, batch) @ p["head"]


def task_columns(clusters):
    """Two tasks of 24 rows: classes 0 and 1, then the same clouds as classes 2 and 3."""
    rows = np.flatnonzero(clusters["y"] < 2)
    tasks = [rows[:24], rows[24:48]]
    return {
        "x": jnp.stack([clusters["x"][r] for r in tasks]),
        "y": jnp.stack([clusters["y"][r] + 2 * k for k, r in enumerate(tasks)]),
    }


def two_tasks(kind, mu, clusters):
    model = Model(outputs=outputs, loss=lambda p, b: b["x"][:, 0], features=features)
    keys = jax.random.split(jax.random.key(0))
    params = {
        "body": jax.random.normal(keys[0], (4, 5)),
        "head": jax.random.normal(keys[1], (5, 4)),
    }
    return continual.learn(
        model,
        continual.Setting(2, 16, 4, 1e-2, 0, 1, 1),
        kind,
        "local",
        task_columns(clusters),
        jnp.array([[0, 1], [2, 3]]),
        params,
        mu,
        jax.random.key(1),
    )


@functools.cache
def _without_penalty(x, y, shape):
    clusters = {"x": np.frombuffer(x, np.float32).reshape(shape), "y": np.frombuffer(y, np.int32)}
    return jax.jit(lambda: two_tasks("none", jnp.array(0.0), clusters))()


def without_penalty(clusters):
    """Compiled once for all penalties."""
    x, y = clusters["x"], clusters["y"]
    return _without_penalty(x.tobytes(), y.tobytes(), x.shape)


@pytest.mark.parametrize("kind", [k for k in PENALTIES if k != "none"])
def test_a_strength_of_zero_is_no_penalty_and_a_large_one_moves_less(kind, clusters):
    """Two tasks of a tiny model; the first task is the same whatever mu."""
    mus = jnp.array([0.0, 1e3])
    both = jax.jit(jax.vmap(lambda mu: two_tasks(kind, mu, clusters)))(mus)
    free, bound = (jax.tree.map(lambda a, i=i: a[i], both) for i in range(2))
    plain = without_penalty(clusters)
    for name in ("body", "head"):
        np.testing.assert_allclose(free[name], plain[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(bound[name][0], plain[name][0], rtol=1e-3, atol=1e-4)
    batch = {"x": task_columns(clusters)["x"][1]}

    def change(after):  # what the penalty is about: outputs on the old classes, on the new data
        at = [jax.tree.map(lambda a, i=i: a[i], after) for i in range(2)]
        if kind == "features":
            return float(jnp.square(features(at[1], batch) - features(at[0], batch)).sum())
        if kind == "predictions":
            old, new = (jax.nn.log_softmax(outputs(p, batch)[:, :2]) for p in at)
            return float(jnp.square(new - old).sum())
        return float(jnp.square(at[1]["body"] - at[0]["body"]).sum())

    assert change(bound) < 0.8 * change(free)


def test_a_source_without_data_is_left_out_or_refused_if_it_was_asked_for(tmp_path, capsys):
    arguments = ["--sources", "cifar100", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    assert continual.main(arguments) == 2
    assert "no data for 'cifar100'" in capsys.readouterr().err
    assert not (tmp_path / "continual.json").exists()


# The section


def test_every_cell_shows_the_numbers_of_the_record():
    record = made()
    text = continual_section.continual(record)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    for row in record["studies"][0]["rows"]:
        for score in SCORES:
            each = row[score]
            words = f"(F {100 * np.mean(each['forgetting']):.1f}"
            line = next(
                line for line in lines
                if f"{100 * np.mean(each['accuracy']):.1f} ±" in line and words in line
            )  # fmt: skip
            assert continual_section._NAMES[row["penalty"]] in line
            if row["penalty"] != "none":
                assert f"mu {each['mu']:g}{'*' if each['at_edge'] else ''})" in line


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ({"l2": 0.8, "ewc offline": 0.5, "ewc online": 0.5, "features": 0.5}, "is reproduced here"),
        ({"l2": 0.5, "ewc offline": 0.8, "ewc online": 0.8, "features": 0.8}, "NOT reproduced"),
        ({"l2": 0.5, "ewc offline": 0.5, "ewc online": 0.2, "features": 0.2}, "reproduced in part"),
    ],
)
def test_the_published_claim_is_judged_by_the_record(levels, words):
    text = " ".join(continual_section.continual(made(levels=levels)).split())
    assert words in text


def test_without_a_pretrained_start_the_claim_is_not_judged():
    text = " ".join(continual_section.continual(made(starts=("fresh",))).split())
    assert "Not asked here" in text


def test_a_difference_counts_only_outside_its_interval():
    assert continual_section.compared([0.8, 0.81, 0.79], [0.5, 0.5, 0.5])[0] == "ahead of"
    assert continual_section.compared([0.5, 0.5, 0.5], [0.8, 0.81, 0.79])[0] == "behind"
    assert continual_section.compared([0.9, 0.1, 0.5], [0.5, 0.5, 0.4])[0] == "level with"
    assert continual_section.compared([0.9], [0.1])[0] == "level with"


def test_the_page_has_the_section_where_the_file_is_there(tmp_path):
    (tmp_path / "continual.json").write_text(json.dumps(made()))
    page = tmp_path / "page.md"
    assert benchmarks_md.main(["--results", str(tmp_path), "--out", str(page)]) == 0
    assert "## Continual learning without stored examples" in page.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a results file"),
        ('{"kind": "other"}', "expected kind 'jaxunlearn continual learning' of schema 1, got 'o"),
    ],
)
def test_a_foreign_record_is_refused(tmp_path, text, message):
    (tmp_path / "continual.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        continual_section.read(tmp_path / "continual.json")
