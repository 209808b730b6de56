"""Ways to say what to forget: random shares, ids, columns, and what bad requests get."""

import numpy as np
import pytest

from jaxunlearn.data import class_task, digits, group_task, index_task, random_task, subclass_task
from tests.data.cases import SOURCE

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
