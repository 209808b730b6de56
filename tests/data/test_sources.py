"""Sources: embedded digits, splitting, names, the checks on what comes in."""

import numpy as np
import pytest

from jaxunlearn.data.archives import cifar100
from jaxunlearn.data.sources import SPLITS, Source, digits, load, stratified_split, thinned


def small(**changes):
    """A valid Source of 4 + 2 + 2 rows; `changes` are column -> function of the training column."""
    rng = np.random.default_rng(0)
    splits = []
    for start, rows in ((0, 4), (4, 2), (6, 2)):
        splits.append(
            {
                "x": rng.random((rows, 2, 2)).astype(np.float32),
                "y": (np.arange(rows) % 2).astype(np.int32),
                "id": np.arange(start, start + rows, dtype=np.int32),
            }
        )
    for column, change in changes.items():
        splits[0][column] = change(splits[0][column].copy())
    return Source("small", *splits, label_names={"y": ("a", "b")})


def with_value(row, value):
    def change(column):
        column[row] = value
        return column

    return change


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_rows_over_sixteen():
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    source = digits()
    for split in SPLITS:
        columns = getattr(source, split)
        np.testing.assert_array_equal(columns["x"] * 16, bunch.images[columns["id"]])
        np.testing.assert_array_equal(columns["y"], bunch.target[columns["id"]])


def test_digits_splits_share_out_all_rows_and_every_class_fairly():
    source = digits()
    ids = np.concatenate([getattr(source, split)["id"] for split in SPLITS])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1797))
    total = np.bincount(np.concatenate([getattr(source, s)["y"] for s in SPLITS]))
    for split, size in zip(SPLITS, (1200, 297, 300), strict=True):
        counts = np.bincount(getattr(source, split)["y"], minlength=10)
        assert counts.sum() == size
        assert np.abs(counts - total * size / 1797).max() <= 1


def test_label_sets_of_digits_share_one_split_and_keep_the_digit():
    plain = digits()
    for labels, rule in (
        ("odd_even", lambda digit: digit % 2),
        ("loop", lambda digit: np.isin(digit, [0, 6, 8, 9])),
    ):
        source = digits(labels)
        for split in SPLITS:
            np.testing.assert_array_equal(getattr(source, split)["id"], getattr(plain, split)["id"])
            np.testing.assert_array_equal(
                getattr(source, split)["fine"], getattr(plain, split)["y"]
            )
            np.testing.assert_array_equal(
                getattr(source, split)["y"], rule(getattr(plain, split)["y"])
            )
        assert source.num_classes == 2
        assert source.label_columns == ("y", "fine")


def test_unknown_labels_name_the_nearest():
    with pytest.raises(ValueError, match="no labels 'odd'.*Known: digit, odd_even, loop"):
        digits("odd")
    with pytest.raises(ValueError, match="no labels 'fin'. Did you mean 'fine'"):
        cifar100("fin")


# --- the split --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(50, 50), (90, 10), (33, 33, 34), (100, 0)])
def test_a_stratified_split_gives_each_part_its_share_within_one_row(sizes):
    strata = np.random.default_rng(1).choice([2, 5, 9], 100, p=[0.7, 0.2, 0.1])
    parts = stratified_split(strata, sizes, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))
    for part, size in zip(parts, sizes, strict=True):
        assert len(part) == size
        for value in (2, 5, 9):
            share = (strata == value).sum() * size / 100
            assert abs((strata[part] == value).sum() - share) <= 1


def test_a_stratified_split_is_random_and_follows_its_seed():
    strata = np.zeros(1000, int)
    a, b, c = (stratified_split(strata, (500, 500), seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert 400 < np.isin(a, np.arange(0, 1000, 2)).sum() * 2 < 600


def test_a_stratified_split_must_use_every_row():
    with pytest.raises(ValueError, match=r"add up to 5 rows, got \(2, 2\)"):
        stratified_split(np.zeros(5), (2, 2))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../mnist", "/etc/passwd", "a/b", "a\\b", "tfds:../x", "tfds:a/b", "..", "", "digits:"]
)
def test_a_path_in_place_of_a_name_is_refused(name):
    with pytest.raises(ValueError, match="expected a plain name"):
        load(name)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="no source is called 'minst'. Did you mean 'mnist'"):
        load("minst")
    with pytest.raises(ValueError, match="no source is called 'zzz'. Known: digits, mnist"):
        load("zzz")


def test_labels_may_follow_a_colon_or_be_an_argument_but_not_disagree():
    assert load("digits:loop").digest == load("digits", labels="loop").digest
    with pytest.raises(ValueError, match="contradict each other"):
        load("digits:loop", labels="odd_even")
    with pytest.raises(ValueError, match="one set of labels only; 'coarse' is unknown"):
        load("mnist:coarse")
    with pytest.raises(ValueError, match="'tfds:NAME' and no labels"):
        load("tfds:mnist", labels="fine")


# --- what a Source refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"x": with_value(1, np.nan)},
            ValueError,
            r"train\['x'\] holds NaN or Inf in 1 of 4.*row 1",
        ),
        ({"x": with_value(3, np.inf)}, ValueError, "first at row 3"),
        ({"x": lambda x: x.astype(np.float64)}, TypeError, r"train\['x'\]: expected float32"),
        (
            {"y": with_value(2, 2)},
            ValueError,
            r"train\['y'\] must lie in \[0, 2\), but row 2 has 2",
        ),
        ({"y": with_value(0, -1)}, ValueError, "row 0 has -1"),
        ({"y": lambda y: y.astype(np.float32)}, TypeError, r"train\['y'\]: expected int32"),
        ({"y": lambda y: y[:, None]}, TypeError, r"expected integers \(n,\), got int32 \(4, 1\)"),
        ({"id": with_value(0, 7)}, ValueError, "ids must be unique.*1 occur more than once.* 7"),
        ({"id": with_value(0, -7)}, ValueError, r"\['id'\] must lie in \[0, 2147483648\)"),
        ({"id": lambda i: i.astype(np.float32)}, TypeError, "expected int32 or int64"),
        ({"id": lambda i: i[:3]}, ValueError, "'x' has 4 rows and 'id' has 3"),
        ({"x": lambda x: x.astype(object)}, TypeError, "expected numbers, got dtype object"),
    ],
)
def test_a_source_refuses_columns_that_break_its_rules(changes, error, message):
    with pytest.raises(error, match=message):
        small(**changes)


def test_a_source_needs_the_same_columns_in_every_split():
    source = small()
    with pytest.raises(ValueError, match="small.test: expected the columns x, y, id"):
        Source(
            "small",
            source.train,
            source.validation,
            {k: v for k, v in source.test.items() if k != "id"},
            label_names=source.label_names,
        )
    ints = dict(source.test) | {"x": source.test["x"], "id": source.test["id"].astype(np.int64)}
    with pytest.raises(TypeError, match="is int64, in train int32"):
        Source("small", source.train, source.validation, ints, label_names=source.label_names)
    flat = dict(source.test) | {"x": source.test["x"].reshape(-1, 4)}
    with pytest.raises(
        ValueError, match=r"test\['x'\] has rows of shape \(4,\), in train \(2, 2\)"
    ):
        Source("small", source.train, source.validation, flat, label_names=source.label_names)
    with pytest.raises(ValueError, match="label_names needs 'y'"):
        Source("small", source.train, source.validation, source.test, label_names={})
    none = {k: v[:0] for k, v in source.train.items()}
    with pytest.raises(ValueError, match="small.train has no rows"):
        Source("small", none, source.validation, source.test, label_names=source.label_names)


def test_a_digest_tells_any_change_of_content_and_nothing_else():
    base = small().digest
    assert small().digest == base
    for change in (
        {"x": with_value((0, 0, 0), 0.5)},
        {"y": with_value(0, 1)},
        {"id": with_value(0, 99)},
        {"id": lambda i: i[::-1].copy()},
    ):
        assert small(**change).digest != base
    source = small()
    splits = (source.train, source.validation, source.test)
    assert Source("other", *splits, label_names=source.label_names).digest == base
    assert Source("small", *splits, label_names={"y": ("a", "c")}).digest != base
    moved = (source.train, source.test, source.validation)
    assert Source("small", *moved, label_names=source.label_names).digest != base


def test_columns_of_a_source_cannot_be_written_to():
    source = small()
    with pytest.raises(ValueError, match="read-only"):
        source.train["x"][0] = 0


def test_a_thinned_source_keeps_some_training_rows_and_everything_else():
    whole = digits("odd_even")
    small = thinned(whole, 50)
    assert len(small.train["y"]) == 50 and small.name == "digits:odd_even (50 rows)"
    places = np.searchsorted(whole.train["id"], small.train["id"])
    for name, column in small.train.items():
        np.testing.assert_array_equal(column, whole.train[name][places])
    np.testing.assert_array_equal(small.test["x"], whole.test["x"])
    assert thinned(whole, 50).digest == small.digest != whole.digest
    assert thinned(whole, 50, seed=1).digest != small.digest
    assert thinned(whole, 10_000) is whole
    with pytest.raises(ValueError, match="at least 1 training row, got 0"):
        thinned(whole, 0)
