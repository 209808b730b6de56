"""Forgetting tasks: parts, identity, copies, the data that methods and oracles get."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxunlearn.data import (
    class_task,
    group_task,
    index_task,
    parse_task,
    random_task,
    subclass_task,
)
from jaxunlearn.data.sources import SPLITS
from tests.data.cases import SOURCE, TASKS, small

# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_forget_and_retain_share_out_every_row_of_every_split(name):
    task = TASKS[name]()
    for split in SPLITS:
        ids = [task.columns(split, p)["id"] for p in ("forget", "retain") if p in task.parts(split)]
        whole = getattr(SOURCE, split)["id"]
        np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.sort(whole))
        assert len(np.unique(np.concatenate(ids))) == len(whole)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("class:1", lambda row: row["y"] == 1),
        ("class:0,2", lambda row: row["y"] in (0, 2)),
        ("subclass:3", lambda row: row["fine"] == 3),
        ("subclass:0,5", lambda row: row["fine"] in (0, 5)),
        ("group:user=4", lambda row: row["user"] == 4),
    ],
)
def test_parts_are_what_a_loop_over_rows_finds(name, rule):
    task = TASKS[name]()
    for split in SPLITS:
        columns = getattr(SOURCE, split)
        rows = [{k: v[i] for k, v in columns.items()} for i in range(len(columns["y"]))]
        forget = {int(row["id"]) for row in rows if rule(row)}
        assert set(task.columns(split, "forget")["id"].tolist()) == forget


def test_adjacent_rows_are_the_siblings_of_a_sub_class():
    task = subclass_task(SOURCE, "d")  # fine 3, of label 1 with sibling 2
    for split in SPLITS:
        assert set(task.columns(split, "adjacent")["fine"]) == {2}
        assert np.isin(task.parts(split)["adjacent"], task.parts(split)["retain"]).all()
        assert len(task.parts(split)["adjacent"]) == (getattr(SOURCE, split)["fine"] == 2).sum()


def test_a_label_forgotten_whole_has_no_adjacent_part():
    assert "adjacent" not in subclass_task(SOURCE, (2, 3)).train_parts
    assert subclass_task(SOURCE, (2, 3)).request().adjacent is None


@pytest.mark.parametrize("name", ["random:0.2:seed=1", "ids:1003,1007"])
def test_a_kind_that_cannot_be_told_has_no_held_out_forget_part(name):
    task = TASKS[name]()
    assert set(task.test_parts) == set(task.validation_parts) == {"retain"}
    with pytest.raises(ValueError, match="has no part 'forget' in test.*Known: retain, all"):
        task.columns("test", "forget")


# --- nothing and everything -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", [lambda: random_task(SOURCE, 0, seed=0), lambda: index_task(SOURCE, [])]
)
def test_forgetting_nothing_is_allowed_and_retains_everything(task):
    task = task()
    assert len(task.train_parts["forget"]) == 0
    request = task.request(batch_size=16)
    assert request.forget.num_examples == 0
    assert request.retain.num_examples == 60
    assert set(request.forget.arrays) == set(request.retain.arrays)
    assert list(request.forget) == []
    assert task.near_duplicates()[:4] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "task",
    [
        lambda: class_task(SOURCE, (0, 1, 2)),
        lambda: subclass_task(SOURCE, range(6)),
        lambda: group_task(SOURCE, "user", range(7)),
        lambda: random_task(SOURCE, 0.999, seed=0),
        lambda: index_task(SOURCE, SOURCE.train["id"]),
    ],
)
def test_forgetting_everything_is_refused(task):
    with pytest.raises(ValueError, match=r"whole training set of small \(60 rows\): nothing would"):
        task()


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_request_holds_the_parts_with_all_their_columns(name):
    task = TASKS[name]()
    request = task.request(batch_size=16)
    for part in ("forget", "retain", "adjacent"):
        data = getattr(request, part)
        if part not in task.train_parts:
            assert data is None
            continue
        assert data.batch_size == 16
        for column, values in task.columns("train", part).items():
            np.testing.assert_array_equal(data[column], values)
            assert isinstance(data[column], jax.Array)


def test_the_oracle_is_trained_on_retain_and_the_original_on_everything():
    task = subclass_task(SOURCE, 3)
    original, oracle = task.train_data(32), task.oracle_data(32)
    np.testing.assert_array_equal(original["id"], SOURCE.train["id"])
    assert not (np.asarray(oracle["fine"]) == 3).any()
    assert oracle.num_examples + task.request().forget.num_examples == original.num_examples


def test_an_unknown_split_or_part_names_the_nearest():
    task = class_task(SOURCE, 1)
    with pytest.raises(ValueError, match="no split 'tset'. Did you mean 'test'"):
        task.columns("tset", "forget")
    with pytest.raises(ValueError, match="no part 'forgot' in train. Did you mean 'forget'"):
        task.columns("train", "forgot")


# --- identity -------------------------------------------------------------------------------------


def test_a_digest_tells_kind_rows_and_source_apart():
    tasks = [build() for build in TASKS.values()]
    tasks.append(class_task(small(rows=61), 1))
    tasks.append(group_task(SOURCE, "y", 1))  # the parts of class:1, of another kind
    tasks += [index_task(SOURCE, [i, j]) for i, j in ((1003, 1008), (1004, 1007))]  # other rows
    tasks.append(index_task(SOURCE, SOURCE.train["id"][SOURCE.train["y"] == 1]))
    assert len({task.digest for task in tasks}) == len(tasks)
    assert class_task(SOURCE, (2, 0)).digest == class_task(small(), ("low", "high")).digest


def test_a_task_in_words():
    assert subclass_task(SOURCE, "d").describe() == (
        "Forget sub-class 3 (d) of label 1 (mid) of small: 10 of 60 training rows, 50 retained, 10 "
        "of these adjacent. Test: 4 of the same kind, 20 others."
    )
    assert random_task(SOURCE, 0.05, seed=0).describe() == (
        "Forget a random 5 % of small: 3 of 60 training rows, 57 retained. Test: 0 of the same "
        "kind, 24 others."
    )


# --- parts made by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"forget": [0, 1], "retain": [1, *range(2, 60)]}, r"rows \[1\] are in both"),
        ({"forget": [0], "retain": [*range(2, 60)]}, "together must be the 60 rows"),
        ({"forget": [0], "retain": [*range(1, 61)]}, "together must be the 60 rows"),
        ({"forget": [1, 0], "retain": [*range(2, 60)]}, "sorted, distinct int64 row numbers"),
        ({"retain": [*range(60)]}, "expected parts .*'forget', 'retain'"),
        ({"forget": [], "retain": [*range(60)], "other": [1]}, "expected parts"),
        (
            {"forget": [0], "retain": [*range(1, 60)], "adjacent": [0]},
            "adjacent rows must be retained",
        ),
    ],
)
def test_parts_that_break_the_rules_are_refused(parts, message):
    parts = {part: np.array(rows, np.int64) for part, rows in parts.items()}
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(class_task(SOURCE, 1), train_parts=parts)


# --- copies ---------------------------------------------------------------------------------------


def test_a_retained_copy_of_a_forgotten_row_is_refused_forgotten_or_kept():
    source = small(copies=[(3, 30), (3, 41), (8, 9)])
    ids = source.train["id"]
    with pytest.raises(ValueError, match=f"2 retained rows equal.*{ids[30]}, {ids[41]}.*'forget'"):
        index_task(source, ids[3])
    together = index_task(source, ids[3], duplicates="forget")
    assert together.train_parts["forget"].tolist() == [3, 30, 41]
    assert together.notes == ("2 copies of forgotten rows are forgotten too",)
    kept = index_task(source, ids[3], duplicates="keep")
    assert kept.train_parts["forget"].tolist() == [3]
    assert kept.near_duplicates()[:2] == (2, 0)
    assert together.near_duplicates()[:2] == (0, 0)
    assert parse_task(source, f"ids:{ids[3]}:duplicates=forget").digest == together.digest
    index_task(source, ids[5])  # copies elsewhere do not matter
    with pytest.raises(ValueError, match="duplicates='kep' is unknown. Did you mean 'keep'"):
        index_task(source, ids[5], duplicates="kep")
