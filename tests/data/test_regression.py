"""Regressions: the embedded source, its unit, and the tasks that forget from it."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from jaxunlearn.data import (
    Source,
    Target,
    class_task,
    diabetes,
    digits,
    in_units,
    load,
    parse_task,
    random_task,
    range_task,
    standardised,
    subclass_task,
)

DIABETES = diabetes()
SPLITS = ("train", "validation", "test")


def targets(split):
    return in_units(DIABETES.target, getattr(DIABETES, split)["y"])[:, 0]


def test_every_patient_is_there_once_with_the_stored_target():
    stored = load_diabetes(scaled=False)
    ids = np.concatenate([getattr(DIABETES, split)["id"] for split in SPLITS])
    assert sorted(ids) == list(range(442))
    for split in SPLITS:
        part = getattr(DIABETES, split)
        np.testing.assert_allclose(targets(split), stored.target[part["id"]], atol=1e-4)
        np.testing.assert_array_equal(part["sex"], stored.data[part["id"], 1] - 1)
    assert DIABETES.input_shape == (10,) and DIABETES.num_outputs == 1


def test_inputs_and_target_are_standardised_by_the_training_rows_alone():
    train = DIABETES.train
    for column in ("x", "y"):
        np.testing.assert_allclose(train[column].mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(train[column].std(axis=0), 1, atol=1e-6)
    everything = np.concatenate([getattr(DIABETES, split)["y"] for split in SPLITS])
    assert abs(everything.mean()) > 1e-4
    assert DIABETES.target.name == "progression"
    assert DIABETES.target.deviation == pytest.approx(targets("train").std(), abs=1e-3)


def test_the_split_is_fixed_and_fair_to_all_targets():
    assert DIABETES.digest == diabetes().digest == load("diabetes").digest
    assert [len(getattr(DIABETES, split)["y"]) for split in SPLITS] == [312, 50, 80]
    quartiles = np.quantile(np.concatenate([targets(s) for s in SPLITS]), [0.25, 0.5, 0.75])
    for split in SPLITS:
        shares = [(targets(split) < q).mean() for q in quartiles]
        np.testing.assert_allclose(shares, [0.25, 0.5, 0.75], atol=0.05)


def test_the_unit_is_part_of_the_digest():
    other = dataclasses.replace(DIABETES, target=DIABETES.target._replace(deviation=1.0))
    assert other.digest != DIABETES.digest
    assert dataclasses.replace(DIABETES, name="renamed").digest == DIABETES.digest


# ------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(("low", "high"), [(200, math.inf), (-math.inf, 60), (100, 151)])
def test_a_range_is_forgotten_in_every_split(low, high):
    task = range_task(DIABETES, low, high)
    for split in SPLITS:
        inside = (targets(split).round(3) >= low) & (targets(split).round(3) < high)
        np.testing.assert_array_equal(task.parts(split)["forget"], np.flatnonzero(inside))
    assert 0 < len(task.train_parts["forget"]) < 312


def test_an_end_of_the_range_belongs_to_it_only_below():
    value = float(np.median(targets("train")).round())
    assert (targets("train").round(3) == value).any()
    below, above = range_task(DIABETES, 0, value), range_task(DIABETES, value, 999)
    ids = [set(task.columns("train", "forget")["id"].tolist()) for task in (below, above)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 312


@pytest.mark.parametrize("name", ["range:200:inf", "range:-inf:60", "range:100.5:151",
                                  "random:0.1:seed=1", "ids:1,3", "group:sex=1"])  # fmt: skip
def test_a_name_gives_its_task_back(name):
    rows = DIABETES.train["id"][:2]
    name = name.replace("1,3", ",".join(map(str, sorted(rows.tolist()))))
    task = parse_task(DIABETES, name)
    assert task.name == name and parse_task(DIABETES, task.name).digest == task.digest
    assert task.request(32).forget["y"].shape[1:] == (1,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("range:200", "expected range:200:350 or range:200:inf"),
        ("range::350", "expected range:200:350"),
        ("range:350:200", "range: expected low < high, got 350 and 200"),
        ("range:nan:200", "range: expected low < high, got nan and 200"),
        ("range:low:200", "expected a number, got 'low'; the form is range:200:350"),
        ("range:400:500", r"no training target of diabetes lies in \[400, 500\); they lie in"),
        ("range:0:999", "forgets the whole training set"),
        ("range:200:350:seed=1", "no option 'seed'. Known: duplicates"),
        ("class:3", "no kind 'class'. Known: range, random, group, ids"),
        ("rnge:200:350", "no kind 'rnge'. Did you mean 'range'"),
    ],
)
def test_what_is_no_task_of_a_regression_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_task(DIABETES, spec)


def test_classes_and_numbers_do_not_mix():
    with pytest.raises(ValueError, match="digits has classes, and a range is of a real target"):
        range_task(digits(), 0, 5)
    with pytest.raises(ValueError, match="no kind 'range'"):
        parse_task(digits(), "range:0:5")
    for make in (class_task, subclass_task):
        with pytest.raises(ValueError, match="diabetes has no label column"):
            make(DIABETES, 3)
    with pytest.raises(ValueError, match="diabetes is a regression of progression: no classes"):
        _ = DIABETES.num_classes
    with pytest.raises(ValueError, match="'diabetes' has one target only; 'sugar' is unknown"):
        load("diabetes:sugar")


def test_held_out_patients_of_the_forgotten_range_are_in_the_request():
    request = range_task(DIABETES, 200, math.inf).request(32)
    y = in_units(DIABETES.target, np.asarray(request.held_out["y"]))
    assert len(y) and (y.round(3) >= 200).all()
    assert random_task(DIABETES, 0.1, seed=0).request(32).held_out.num_examples == 50


# ------------------------------------------------------------------------------------------ sources


def source(**changes):
    def split(rows, first):
        return {
            "x": np.ones((rows, 2), np.float32) * np.arange(rows, dtype=np.float32)[:, None],
            "y": standardised(Target("age", 1.0, 2.0), np.arange(rows)),
            "id": np.arange(first, first + rows, dtype=np.int32),
        }

    splits = {"train": split(4, 0), "validation": split(0, 4), "test": split(2, 4)}
    given = {"name": "small", "label_names": {}, "target": Target("age", 1.0, 2.0)} | splits
    return Source(**(given | changes))


def test_a_source_of_ones_own_is_a_regression_if_it_has_a_target():
    made = source()
    assert made.num_outputs == 1 and made.label_columns == ()
    assert in_units(made.target, made.train["y"])[:, 0].tolist() == [0, 1, 2, 3]
    assert digits().num_outputs == 10 and digits().target is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"label_names": {"y": ("a",)}}, ValueError, "must not name 'y', since it has a real"),
        ({"target": None}, ValueError, "label_names needs 'y'"),
        ({"target": Target("age", 0.0, 0.0)}, ValueError, "finite deviation > 0"),
        ({"target": Target("age", 0.0, math.nan)}, ValueError, "finite deviation > 0"),
    ],
)
def test_a_target_that_cannot_be_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        source(**changes)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (np.zeros((4, 1), np.int32), TypeError, r"train\['y'\]: expected float32, got int32"),
        (np.zeros(4, np.float32), ValueError, r"expected targets \(n, 1\), got \(4,\)"),
        (np.full((4, 1), np.nan, np.float32), ValueError, "holds NaN or Inf"),
    ],
)
def test_targets_of_another_kind_are_refused(column, error, message):
    with pytest.raises(error, match=message):
        source(train=dict(source().train) | {"y": column})
