"""Forgetting tasks: parts, identity, what bad requests get."""

import dataclasses
import os
import time

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxunlearn.data.sources import SPLITS, Source, digits, mnist
from jaxunlearn.data.tasks import (
    Task,
    class_task,
    group_task,
    index_task,
    parse_task,
    random_task,
    subclass_task,
)


def small(rows=60, copies=()):
    """Fine classes 0..5 nested in labels 0..2, a group column, ids that are not row numbers.

    `copies`: pairs (from, to) of training rows; x and every label of `to` become those of `from`.
    """
    rng = np.random.default_rng(0)
    splits = []
    for split, count in enumerate((rows, 18, 24)):
        fine = (rng.permutation(count) % 6).astype(np.int32)
        splits.append(
            {
                "x": rng.random((count, 3)).astype(np.float32),
                "y": fine // 2,
                "fine": fine,
                "user": (np.arange(count) % 7).astype(np.int32),
                "id": (1000 * (split + 1) + rng.permutation(count)).astype(np.int32),
            }
        )
    for source, target in copies:
        for column in ("x", "y", "fine"):
            splits[0][column][target] = splits[0][column][source]
    names = {"y": ("low", "mid", "high"), "fine": tuple("abcdef")}
    return Source("small", *splits, label_names=names)


SOURCE = small()
TASKS = {
    "class:1": lambda: class_task(SOURCE, 1),
    "class:0,2": lambda: class_task(SOURCE, (2, 0)),
    "subclass:3": lambda: subclass_task(SOURCE, 3),
    "subclass:0,5": lambda: subclass_task(SOURCE, ["f", "a"]),
    "group:user=4": lambda: group_task(SOURCE, "user", 4),
    "random:0.2:seed=1": lambda: random_task(SOURCE, 0.2, seed=1),
    "ids:1003,1007": lambda: index_task(SOURCE, [1007, 1003]),
}


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_forget_and_retain_share_out_every_row_of_every_split(name):
    task = TASKS[name]()
    for split in SPLITS:
        ids = [task.columns(split, p)["id"] for p in ("forget", "retain") if p in task.parts(split)]
        whole = getattr(SOURCE, split)["id"]
        np.testing.assert_array_equal(np.sort(np.concatenate(ids)), np.sort(whole))
        assert len(np.unique(np.concatenate(ids))) == len(whole)


@pytest.mark.parametrize("name", TASKS)
def test_a_name_gives_its_task_back(name):
    task = TASKS[name]()
    again = parse_task(SOURCE, task.name)
    assert task.name == again.name == name
    assert task.digest == again.digest
    assert task.describe() == again.describe()


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


# --- random ---------------------------------------------------------------------------------------


def test_a_random_task_takes_its_share_follows_its_seed_and_nests():
    draws = {
        (f, s): set(random_task(SOURCE, f, seed=s).train_parts["forget"].tolist())
        for f in (0.1, 0.3)
        for s in range(3)
    }
    for (fraction, seed), rows in draws.items():
        assert len(rows) == round(60 * fraction)
        again = random_task(SOURCE, fraction, seed=seed)
        assert rows == set(again.train_parts["forget"].tolist())
    assert len({frozenset(rows) for rows in draws.values()}) == 6
    for seed in range(3):
        assert draws[0.1, seed] < draws[0.3, seed]


def test_random_rows_are_drawn_uniformly():
    counts = np.zeros(60)
    for seed in range(300):
        counts[random_task(SOURCE, 0.25, seed=seed, duplicates="keep").train_parts["forget"]] += 1
    # Binomial(300, 1/4): mean 75, deviation 7.5; five deviations either way.
    assert counts.sum() == 300 * 15
    assert 37 < counts.min() and counts.max() < 113


@pytest.mark.parametrize("fraction", [1.5, -0.1, 1.0, float("nan"), True])
def test_a_fraction_out_of_range_says_the_range(fraction):
    with pytest.raises(ValueError, match=r"a fraction of the training rows in \[0, 1\), got"):
        random_task(SOURCE, fraction, seed=0)


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_a_seed_must_be_a_whole_number(seed):
    with pytest.raises(ValueError, match="expected an integer seed >= 0, got"):
        random_task(SOURCE, 0.1, seed=seed)


# --- ids ------------------------------------------------------------------------------------------


def test_order_and_repeats_of_ids_change_nothing_but_the_notes():
    plain = index_task(SOURCE, [1003, 1007, 1020])
    for ids in ([1020, 1003, 1007], [1007] * 3 + [1020, 1003], {1003, 1007, 1020}):
        task = index_task(SOURCE, ids)
        assert task.digest == plain.digest
        assert task.name == plain.name
    assert plain.notes == ()
    task = index_task(SOURCE, [1003, 1003, 1003, 1007, 1020])
    assert task.notes == ("2 repeated ids dropped",)
    assert task.describe().endswith("Note: 2 repeated ids dropped.")


def test_a_boolean_mask_names_the_rows_it_selects():
    mask = np.zeros(60, bool)
    mask[[5, 9]] = True
    by_mask = index_task(SOURCE, mask)
    assert by_mask.train_parts["forget"].tolist() == [5, 9]
    assert by_mask.digest == index_task(SOURCE, SOURCE.train["id"][[9, 5]]).digest


def test_ids_are_ids_and_not_positions():
    task = index_task(SOURCE, int(SOURCE.train["id"][17]))
    assert task.train_parts["forget"].tolist() == [17]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1003, 5], ValueError, r"ids \[5\] are not training examples.*lie in \[1000, 1059\]"),
        ([1003, 3001], ValueError, r"ids \[3001\].*some of those named are in test"),
        ([2001], ValueError, "in validation. Only what was trained on can be forgotten"),
        ([-1, 1003], ValueError, r"ids \[-1\] are negative"),
        ([1003.0], TypeError, r"expected integers \(k,\), got float64 \(1,\)"),
        (["1003"], TypeError, "expected integers"),
        ([[1003]], TypeError, r"got int64 \(1, 1\)"),
        (np.ones(59, bool), ValueError, r"one entry a training row, shape \(60,\), got \(59,\)"),
        (np.arange(3000, 3010), ValueError, r"ids \[3000, 3001, 3002, 3003, 3004\]\.\.\."),
    ],
)
def test_bad_ids_are_named(ids, error, message):
    with pytest.raises(error, match=message):
        index_task(SOURCE, ids)


def test_many_ids_get_a_short_name():
    ids = SOURCE.train["id"][:30]
    name = index_task(SOURCE, ids).name
    assert name.startswith("ids:30-") and len(name) < 20
    assert name == index_task(SOURCE, ids[::-1]).name
    assert name != index_task(SOURCE, SOURCE.train["id"][1:31]).name


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


@pytest.mark.parametrize("dimensions", [(4, 3), (40,)])
def test_near_duplicates_are_those_that_all_pairs_of_distances_find(dimensions):
    rng = np.random.default_rng(5)
    centres = rng.random((40, *dimensions))
    radius = 0.05 * 0.3
    splits, start = [], 0
    for rows in (400, 0, 300):
        spread = rng.choice([0, 0.5, 1.0, 1.5, 3.0], (rows, *[1] * len(dimensions))) * radius
        x = centres[rng.integers(0, 40, rows)] + spread * rng.standard_normal((rows, *dimensions))
        splits.append(
            {
                "x": x.astype(np.float32),
                "y": rng.integers(0, 2, rows).astype(np.int32),
                "id": np.arange(start, start + rows, dtype=np.int32),
            }
        )
        start += rows
    source = Source("near", *splits, label_names={"y": ("a", "b")})
    task = random_task(source, 0.1, seed=0, duplicates="keep")
    found = task.near_duplicates()
    forget = task.columns("train", "forget")["x"].reshape(40, -1).astype(np.float64)
    for x, equal, near in (
        (task.columns("train", "retain")["x"], found.retain_equal, found.retain_near),
        (source.test["x"], found.test_equal, found.test_near),
    ):
        distance = cdist(x.reshape(len(x), -1).astype(np.float64), forget).min(axis=1)
        assert equal == (distance == 0).sum() > 0
        rms = distance / np.sqrt(forget.shape[1])
        assert near == ((distance > 0) & (rms <= found.radius)).sum() > 0
    assert found.radius == pytest.approx(0.05 * source.train["x"].std())
    strict = task.near_duplicates(tolerance=0)
    assert (strict.retain_near, strict.test_near) == (0, 0)
    assert (strict.retain_equal, strict.test_equal) == (found.retain_equal, found.test_equal)


@pytest.mark.slow
def test_searching_copies_among_sixty_thousand_images_takes_seconds():
    rng = np.random.default_rng(0)
    prototypes = rng.random((200, 28, 28), np.float32)
    x = prototypes[rng.integers(0, 200, 60_000)]
    x += 0.3 * rng.random(x.shape, np.float32)
    columns = {
        "x": x,
        "y": rng.integers(0, 10, 60_000).astype(np.int32),
        "id": np.arange(60_000, dtype=np.int32),
    }
    none = {name: column[:0] for name, column in columns.items()}
    source = Source("large", columns, none, none, label_names={"y": tuple("0123456789")})
    start = time.monotonic()
    task = random_task(source, 0.1, seed=0)
    found = task.near_duplicates()
    assert found.retain_equal == 0
    assert time.monotonic() - start < 60  # all pairs would take many minutes


# --- unknown columns and values -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: class_task(SOURCE, 42), ValueError, "no class 42: they are numbered 0 to 2"),
        (lambda: class_task(SOURCE, -1), ValueError, "no class -1"),
        (
            lambda: class_task(SOURCE, "hihg"),
            ValueError,
            "class called 'hihg'. Did you mean 'high'",
        ),
        (lambda: class_task(SOURCE, 1.0), TypeError, "expected a number or a name, got 1.0"),
        (lambda: class_task(SOURCE, True), TypeError, "expected a number or a name, got True"),
        (lambda: subclass_task(SOURCE, 6), ValueError, "no 'fine' 6: they are numbered 0 to 5"),
        (lambda: subclass_task(digits(), 3), ValueError, "no label column 'fine'. Known: y"),
        (lambda: group_task(SOURCE, "usr", 1), ValueError, "'usr'. Did you mean 'user'"),
        (lambda: group_task(SOURCE, "x", 1), ValueError, "no integer column 'x'"),
        (
            lambda: group_task(SOURCE, "user", 7),
            ValueError,
            r"no \[7\] in train; its 7 values .*0, 6",
        ),
        (lambda: group_task(SOURCE, "user", 1.5), TypeError, "expected integers"),
    ],
)
def test_unknown_columns_and_values_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- text -----------------------------------------------------------------------------------------


def test_text_and_functions_say_the_same():
    for text, task in (
        ("class:high,low", class_task(SOURCE, (0, 2))),
        ("subclass:d", subclass_task(SOURCE, 3)),
        ("subclass:0:column=y", subclass_task(SOURCE, 0, column="y")),
        ("group:fine=a,c", group_task(SOURCE, "fine", [0, 2])),
        ("group:user=3,1", group_task(SOURCE, "user", [1, 3])),
        ("random:0.1", random_task(SOURCE, 0.1, seed=0)),
        ("random:1e-1:seed=5", random_task(SOURCE, 0.1, seed=5)),
        ("ids:1004,1001,1004", index_task(SOURCE, [1001, 1004])),
    ):
        parsed = parse_task(SOURCE, text)
        assert isinstance(parsed, Task)
        assert parsed.digest == task.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clas:3", "no kind 'clas'. Did you mean 'class'"),
        ("", "no kind ''. Known: class, subclass, random, group, ids"),
        ("class", "expected class:3 or class:3,5"),
        ("class:", "expected class:3"),
        ("class:42", "no class 42: they are numbered 0 to 2"),
        ("class:1:seed=3", "no option 'seed'. Known: duplicates"),
        ("random:1.5", r"in \[0, 1\), got 1.5"),
        ("random:nan", r"in \[0, 1\), got nan"),
        ("random:lots", "expected a number, got 'lots'; the form is random:0.05"),
        ("random:0.1:sede=1", "no option 'sede'. Did you mean 'seed'"),
        ("random:0.1:seed=x", "expected an integer, got 'x'"),
        ("group:user", "expected group:column=value"),
        ("group:user=x", "expected an integer, got 'x'; the form is group"),
        ("ids:1001,__import__('os')", "expected an integer, got '__import__"),
        ("ids:1001;2", "expected an integer, got '1001;2'"),
    ],
)
def test_text_that_is_no_task_is_refused_with_the_form_or_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse_task(SOURCE, text)


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("JAXUNLEARN_DATA"), reason="JAXUNLEARN_DATA names no folder of data files"
)
def test_mnist_has_no_copies_that_a_random_task_would_leave_behind():
    task = random_task(mnist(validation=0), 0.1, seed=0)
    assert task.near_duplicates()[:4] == (0, 0, 0, 0)
