"""Ratings: raw columns to a checked matrix of entries, planted ones, and cuts in time."""

import dataclasses

import numpy as np
import pytest

from jaxunlearn.data import Ratings, low_rank_ratings, ratings, time_split
from jaxunlearn.data import low_rank as module

USER = np.array([30, 10, 30, 20, 10], np.int64)
ITEM = np.array(["b", "a", "a", "c", "c"])
VALUE = [5, 4, 3, 2, 1]
TIME = [50, 40, 30, 20, 10]


def small(**options):
    return ratings(USER, ITEM, VALUE, TIME, **options)


def planted(**options):
    given = {"users": 60, "items": 40, "rank": 3, "density": 0.25, "noise": 0.1, "seed": 0}
    return low_rank_ratings(**(given | options))


# --- entries --------------------------------------------------------------------------------------


def test_raw_ids_of_any_kind_become_rows_and_come_back():
    r = small()
    assert (r.users, r.items, len(r)) == (3, 3, 5)
    np.testing.assert_array_equal(r.user_ids[r.user], USER)
    np.testing.assert_array_equal(r.item_ids[r.item], ITEM)
    types = {"user": "int32", "item": "int32", "value": "float32", "time": "int64"}
    assert {name: str(getattr(r, name).dtype) for name in types} == types
    for name in (*types, "user_ids", "item_ids"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(r, name)[:1] = getattr(r, name)[:1]


def test_row_numbers_keep_rows_without_entries():
    r = ratings([4, 0], [1, 1], users=6, items=2)
    assert (r.users, r.items) == (6, 2)
    np.testing.assert_array_equal(r.matrix().toarray()[[0, 4]], [[0, 1], [0, 1]])
    assert r.matrix().nnz == 2 and r.matrix().dtype == np.float32
    np.testing.assert_array_equal(r.user_ids, np.arange(6))


def test_taking_entries_away_keeps_the_shape_and_the_names():
    r = small()
    rest, gone = r.without([3, 1, 3]), r.take([3, 1])
    assert rest.value.tolist() == [5, 3, 1] and gone.value.tolist() == [2, 4]
    assert rest.time.tolist() == [50, 30, 10]
    for part in (rest, gone, r.without(np.ones(5, bool))):
        assert (part.users, part.items) == (3, 3)
        assert part.user_ids is not None and part.user_ids.tolist() == [10, 20, 30]
    np.testing.assert_array_equal((rest.matrix() + gone.matrix()).toarray(), r.matrix().toarray())
    assert len(r.take([])) == 0 and r.without([]).digest == r.digest


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.without([0]),
        lambda r: r.take([1, 0, 2, 3, 4]),
        lambda r: dataclasses.replace(r, value=r.value + 1),
        lambda r: dataclasses.replace(r, time=r.time + 1),
        lambda r: dataclasses.replace(r, time=None),
        lambda r: dataclasses.replace(r, user_ids=r.user_ids + 1),
        lambda r: dataclasses.replace(r, item_ids=np.array(["a", "b", "d"])),
        lambda r: dataclasses.replace(r, users=4, user_ids=None),
    ],
)
def test_a_digest_sees_every_change(change):
    assert change(small()).digest != small().digest
    assert (
        small().digest == ratings(USER.astype(np.int32).astype(np.int64), ITEM, VALUE, TIME).digest
    )


@pytest.mark.parametrize(
    ("duplicates", "value"), [("sum", [6, 2, 9]), ("mean", [2, 2, 9]), ("last", [4, 2, 9])]
)
def test_entries_of_the_same_pair_are_merged_in_the_place_of_the_first(duplicates, value):
    columns = ([1, 0, 1, 1, 0], [5, 6, 5, 5, 5], [1, 2, 1, 4, 9])
    merged = ratings(*columns, [7, 1, 9, 9, 3], duplicates=duplicates)
    assert merged.value.tolist() == value
    assert merged.user.tolist() == [1, 0, 0] and merged.item.tolist() == [0, 1, 0]
    assert merged.time.tolist() == [9, 1, 3]
    assert ratings(*columns, duplicates=duplicates).value.tolist() == value


def test_the_last_in_time_is_not_the_last_row():
    assert ratings([0, 0], [0, 0], [1, 2], [9, 3], duplicates="last").value.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], []), ValueError, "no entries at all"),
        (([0, 1], [0]), ValueError, r"expected item \(N,\) like user \(2,\), got \(1,\)"),
        (([0, 1], [0, 1], [1, np.nan]), ValueError, r"value must be finite, but row 1 has nan \(1"),
        (([0, 1], [0, 1], [1e300, 1]), ValueError, "value must be finite, but row 0 has inf"),
        (([0.5, 1], [0, 1]), TypeError, "expected user of integers or text, got float64"),
        (([0, 1], [None, 1]), TypeError, "expected item of integers or text, got object"),
        (([0, 1], [0, 1], ["1", "2"]), TypeError, "expected value of numbers, got <U1"),
        (([0, 1], [0, 1], None, [0.5, 1.0]), TypeError, "expected time of integers, got float64"),
        (([1, 0, 1], [2, 2, 2]), ValueError, "rows 0 and 2 are both of user 1 and item 2.*'mean'"),
    ],
)
def test_raw_columns_that_cannot_be_ratings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ratings(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"users": 3}, ValueError, r"user must lie in \[0, 3\), but row 1 has 3 \(1 rows in all"),
        ({"items": 2}, ValueError, r"item must lie in \[0, 2\), but row 0 has -1"),
        ({"duplicates": "firts"}, ValueError, "'firts' is unknown. Known: raise, sum, mean, last"),
    ],
)
def test_row_numbers_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ratings([0, 3], [-1, 1], **options)


def test_text_is_no_row_number():
    with pytest.raises(TypeError, match="items=3 says that item is row numbers, got text"):
        ratings(USER, ITEM, items=3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"user": np.arange(5)}, TypeError, r"expected user int32 \(5,\), got int64"),
        ({"value": np.ones(4, np.float32)}, TypeError, r"expected value float32 \(5,\).*\(4,\)"),
        ({"users": 0}, ValueError, "expected users to be an integer >= 1, got 0"),
        ({"users": 2}, ValueError, r"user must lie in \[0, 2\), but row 0 has 2"),
        ({"user_ids": np.array([1, 1, 2])}, ValueError, r"expected user_ids \(3,\), distinct"),
        ({"item_ids": np.array([1, 2])}, ValueError, r"expected item_ids \(3,\).*got int64 \(2,\)"),
        ({"value": np.full(5, np.inf, np.float32)}, ValueError, "value must be finite, but row 0"),
    ],
)
def test_columns_that_break_the_rules_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(small(), **changes)


def test_a_matrix_of_users_is_no_column():
    square = np.zeros((2, 2), np.int32)
    with pytest.raises(TypeError, match=r"expected user int32 \(N,\), got \(2, 2\)"):
        Ratings(user=square, item=square, value=np.ones((2, 2), np.float32), users=1, items=1)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([5], ValueError, "row 5 is outside the 5 entries"),
        ([-1], ValueError, "row -1 is outside"),
        ([0.5], TypeError, "expected integer row numbers"),
        ([True, False], ValueError, r"expected a mask \(5,\), got one of \(2,\)"),
    ],
)
def test_rows_that_are_not_there_are_refused(rows, error, message):
    for verb in (small().take, small().without):
        with pytest.raises(error, match=message):
            verb(rows)


def test_an_entry_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="rows 0 and 1 are both of user 10 and item a"):
        small().take([1, 1])


# --- planted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
@pytest.mark.parametrize("cells", ["few", "many"])
def test_planted_ratings_are_as_many_as_asked_and_the_same_for_the_same_seed(
    kind, cells, monkeypatch
):
    if cells == "many":
        monkeypatch.setattr(module, "_DENSE", 0)
    r = planted(kind=kind)
    assert len(r) == 600 and (r.users, r.items) == (60, 40)
    assert planted(kind=kind).digest == r.digest != planted(kind=kind, seed=1).digest
    assert (np.diff(r.user.astype(int) * r.items + r.item) > 0).all()
    scale = np.arange(0.5, 5.5, 0.5) if kind == "explicit" else np.arange(1, 1000)
    assert np.isin(r.value, scale).all() and len(np.unique(r.value)) > 5
    assert np.ptp(r.time) < 1000 * 86_400
    assert max(np.ptp(r.time[r.user == u]) for u in np.unique(r.user)) <= 60 * 86_400


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_both_ways_of_drawing_have_the_same_law(kind, monkeypatch):
    """How often items and users are seen, over many seeds; repeated draws are common here."""
    options = {"users": 20, "items": 6, "density": 0.3, "kind": kind, "popularity": 1.5}
    seen = []
    for dense in (2**22, 0):
        monkeypatch.setattr(module, "_DENSE", dense)
        drawn = [planted(seed=seed, **options) for seed in range(400)]
        counts = [np.sort(np.bincount(r.item, minlength=6))[::-1] for r in drawn]
        seen.append(np.column_stack([counts, [r.user.sum() for r in drawn]]))
    error = np.sqrt(sum(counts.var(0) for counts in seen) / 400)
    assert (np.abs(seen[0].mean(0) - seen[1].mean(0)) < 4 * error).all()
    assert (seen[0].mean(0)[0] - seen[0].mean(0)[5]) > 20 * error[:6].max()  # and are not uniform


def test_the_planted_rank_is_the_rank():
    """Without noise and rounding, the matrix of all ratings minus 3.5 has the planted rank."""
    r = planted(density=1.0, noise=0.0, users=200)
    inside = r.matrix().toarray().astype(np.float64) - 3.5
    share = np.cumsum(np.linalg.svd(inside, compute_uv=False) ** 2)
    assert share[2] / share[-1] > 0.95 > share[1] / share[-1]
    noisy = planted(density=1.0, noise=1.0, users=200).matrix().toarray().astype(np.float64) - 3.5
    share = np.cumsum(np.linalg.svd(noisy, compute_uv=False) ** 2)
    assert share[2] / share[-1] < 0.8


def test_popular_items_are_popular_and_what_is_liked_is_seen():
    even = np.bincount(planted(popularity=0.0).item)
    steep = np.bincount(planted(popularity=1.2).item, minlength=40)
    assert steep.max() > 1.5 * even.max() and steep.min() < even.min()
    # implicit entries lie where the planted score is high, so counts are larger than by chance
    assert planted(kind="implicit", density=0.1).value.mean() > (
        1.2 * planted(kind="implicit", density=1.0).value.mean()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "expected users to be an integer >= 1, got 0"),
        ({"rank": 1.5}, "expected rank to be an integer >= 1, got 1.5"),
        ({"seed": -1}, "expected seed to be an integer >= 0, got -1"),
        ({"density": 0.0}, r"expected density in \(0, 1\].*density=0.0"),
        ({"noise": np.nan}, "noise >= 0.*noise=nan"),
        ({"kind": "explict"}, "kind='explict' is unknown. Did you mean 'explicit'"),
    ],
)
def test_what_cannot_be_planted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        planted(**options)


# --- cuts in time ---------------------------------------------------------------------------------


def test_nobody_is_tested_on_their_own_past():
    r = planted()
    train, test = time_split(r, test=0.3)
    assert len(train) + len(test) == len(r)
    for user in range(r.users):
        before, after = train.time[train.user == user], test.time[test.user == user]
        assert len(after) == int(0.3 * (len(before) + len(after)) + 1e-9)
        assert not len(after) or before.max() <= after.min()


def test_a_cut_at_one_moment_learns_nothing_from_the_future():
    r = planted()
    train, test = time_split(r, test=0.3, by="time")
    assert train.time.max() < test.time.min()
    assert len(train) == 420 and len(test) == 180
    tied = ratings(range(4), range(4), time=[1, 2, 2, 3])
    assert len(time_split(tied, test=0.5, by="time")[0]) == 3  # equal times stay together


@pytest.mark.parametrize("by", ["user", "time"])
def test_a_share_of_nothing_holds_nothing_out(by):
    train, test = time_split(planted(), test=0.0, by=by)
    assert train.digest == planted().digest and len(test) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 1.0}, r"expected a share test in \[0, 1\), got 1.0"),
        ({"by": "tim"}, "by='tim' is unknown. Did you mean 'time'"),
    ],
)
def test_cuts_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        time_split(planted(), **options)
    with pytest.raises(ValueError, match="have no times"):
        time_split(ratings([0], [0]))
