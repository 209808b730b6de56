"""Named ratings and what to forget of them: files of every format, refusals, tasks from text."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.data import (
    RatingSource,
    RatingTask,
    load_ratings,
    parse_rating_task,
    ratings,
    time_split,
)

USER = np.array([196, 22, 22, 7, 196, 22, 7, 7])
ITEM = np.array([242, 302, 10, 9, 51, 242, 302, 242])
VALUE = np.array([3.0, 4.5, 1.0, 2.0, 5.0, 3.5, 0.5, 4.0])
TIME = 880_000_000 + np.array([5, 3, 9, 1, 2, 8, 7, 4])
ROWS = list(zip(USER, ITEM, VALUE, TIME, strict=True))


def lines(delimiter, header=""):
    return header + "\n".join(delimiter.join(map(str, row)) for row in ROWS) + "\n"


def store(folder, which):
    files = {
        "100k": ("ml-100k/u.data", lines("\t")),
        "latest_small": (
            "ml-latest-small/ratings.csv",
            lines(",", "userId,movieId,rating,timestamp\n"),
        ),
        "1m": ("ml-1m/ratings.dat", lines("::")),
    }
    if which in files:
        path = folder / files[which][0]
        path.parent.mkdir(parents=True)
        path.write_text(files[which][1])
        return f"movielens:{which}"
    path = folder / "movielens" / "ml100k.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, user=USER, item=ITEM, rating=VALUE, timestamp=TIME, item_title=["x"])
    return "movielens:100k"


EVERYTHING = ratings(USER, ITEM, VALUE, TIME)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["100k", "latest_small", "1m", "npz"])
def test_every_format_of_the_same_ratings_is_the_same_source(tmp_path, which):
    source = load_ratings(store(tmp_path, which), tmp_path, test=0.4)
    train, test = time_split(EVERYTHING, test=0.4)
    assert source.train.digest == train.digest and source.test.digest == test.digest
    assert source.kind == "explicit" and len(test) == 2
    assert load_ratings("movielens", tmp_path, test=0.4).digest == source.digest


def test_the_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    name = store(tmp_path, "npz")
    monkeypatch.setenv("JAXUNLEARN_DATA", str(tmp_path))
    assert load_ratings(name).digest == load_ratings(name, tmp_path).digest


def test_implicit_makes_a_count_of_every_rating(tmp_path):
    name = store(tmp_path, "1m")
    source = load_ratings(f"{name}:implicit", tmp_path)
    assert source.kind == "implicit" and (source.train.value == 1).all()
    assert len(source.train) == len(load_ratings(name, tmp_path).train)
    counts = load_ratings("ratings:implicit")
    assert counts.kind == "implicit" and counts.train.value.max() > 1
    assert counts.digest != load_ratings("ratings").digest


@pytest.mark.parametrize("split", ["user", "time"])
def test_the_embedded_ratings_need_nothing(split, monkeypatch):
    monkeypatch.delenv("JAXUNLEARN_DATA", raising=False)
    source = load_ratings("ratings", by=split)
    assert (source.train.users, source.train.items) == (300, 200)
    assert len(source.train) + len(source.test) == 6000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "u.data holds no ratings"),
        ("user\titem", "u.data holds no ratings"),
        ("1\t2\t3\t4\n1\tfive\t3\t4\n", "u.data: expected lines of user, item.*'five'.*row 1"),
        ("1\t2\t3\n", "u.data: expected lines of user, item"),
        ("1\t2\tnan\t4\n", "u.data: ratings: value must be finite, but row 0 has nan"),
        ("1\t2\t3\t4\n1\t2\t5\t6\n", "rows 0 and 1 are both of user 1 and item 2"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path, text, message):
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "u.data").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_ratings("movielens:100k", tmp_path)


def test_a_pickle_is_not_read(tmp_path):
    np.savez(
        tmp_path / "ml100k.npz", user=USER, item=ITEM, rating=VALUE.astype(object), timestamp=0
    )
    with pytest.raises(ValueError, match="'rating': an array of Python objects is refused"):
        load_ratings("movielens", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("movielens:100", "no ratings are called 'movielens:100'. Did you mean 'movielens:100k'"),
        ("rating", "Did you mean 'ratings'"),
        ("ratings:7", "no ratings are called 'ratings:7'"),
        ("../ratings", "expected a plain name.*not a path"),
        ("tfds:../x", "not a path"),
        ("tfds", "no ratings are called 'tfds'"),
    ],
)
def test_unknown_names_and_paths_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        load_ratings(name)


def test_missing_data_say_where_they_were_looked_for(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError,
        match=f"Looked for: {tmp_path}/ml1m.npz, .*ratings.dat.*--data-dir.*Nothing is ever",
    ):
        load_ratings("movielens:1m", tmp_path)
    monkeypatch.delenv("JAXUNLEARN_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="nowhere, since no folder was given"):
        load_ratings("movielens")


@pytest.mark.skipif(
    not os.environ.get("JAXUNLEARN_DATA"), reason="JAXUNLEARN_DATA names no folder of data files"
)
@pytest.mark.parametrize(
    ("which", "users", "items", "count", "mean"),
    [("100k", 943, 1682, 100_000, 3.52986), ("latest_small", 610, 9724, 100_836, 3.50156)],
)
def test_movielens_is_as_published(which, users, items, count, mean):
    try:
        source = load_ratings(f"movielens:{which}")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert (source.train.users, source.train.items) == (users, items)
    values = np.concatenate([source.train.value, source.test.value])
    assert len(values) == count
    np.testing.assert_allclose(values.mean(dtype=np.float64), mean, atol=1e-5)


# --- TFDS -----------------------------------------------------------------------------------------


def write_tfds(root, *, text=True, features=("user_id", "movie_id", "user_rating", "timestamp")):
    tfds = pytest.importorskip("tensorflow_datasets")
    named = tfds.features.Text() if text else tfds.features.Scalar(np.int32)
    kinds = {"user_id": named, "movie_id": named, "user_rating": np.float32, "timestamp": np.int64}
    kinds = {name: kind for name, kind in kinds.items() if name in features}
    columns = dict(zip(("user_id", "movie_id", "user_rating", "timestamp"), ROWS[0], strict=True))

    class Movielens(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("0.1.1")
        code_path = None  # else TFDS looks for checksums beside this file

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for key, row in enumerate(ROWS):
                example = dict(zip(columns, row, strict=True))
                if text:
                    example |= {name: str(example[name]) for name in ("user_id", "movie_id")}
                yield key, {name: example[name] for name in kinds}

    builder = Movielens(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return Path(str(builder.data_path))


@pytest.mark.parametrize("text", [True, False])
def test_a_tfds_directory_is_the_same_source(tmp_path, text):
    """Ids that are decimal text are numbers: 9 comes before 10."""
    write_tfds(tmp_path, text=text)
    source = load_ratings("tfds:movielens/0.1.1", tmp_path, test=0.4)
    order = np.lexsort((ITEM, USER))
    columns = (USER[order], ITEM[order], VALUE[order], TIME[order])
    assert source.train.digest == time_split(ratings(*columns), test=0.4)[0].digest
    assert source.train.item_ids.tolist() == [9, 10, 51, 242, 302]
    assert load_ratings("tfds:movielens:implicit", tmp_path).kind == "implicit"


def test_tensorflow_is_never_imported(tmp_path):
    write_tfds(tmp_path)
    program = (
        "import sys; from jaxunlearn.data import load_ratings; "
        f"load_ratings('tfds:movielens', {str(tmp_path)!r}); sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_tfds_directory_of_something_else_is_refused(tmp_path):
    directory = write_tfds(tmp_path, features=("user_id", "movie_id", "timestamp"))
    with pytest.raises(ValueError, match="expected a split 'train' with the features.*user_rating"):
        load_ratings("tfds:movielens", tmp_path)
    features = json.loads((directory / "features.json").read_text())
    features["pythonClassName"] = "antigravity.Feature"
    (directory / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="antigravity.Feature.*not TFDS's own"):
        load_ratings("tfds:movielens", tmp_path)
    with pytest.raises(FileNotFoundError, match="Nothing is ever downloaded"):
        load_ratings("tfds:netflix", tmp_path)


def test_a_tfds_directory_without_random_access_is_refused_with_the_cure(tmp_path):
    directory = write_tfds(tmp_path)
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="without random access.*file_format='array_record'"):
        load_ratings("tfds:movielens", tmp_path)


# --- sources --------------------------------------------------------------------------------------


def source(**changes):
    train, test = time_split(EVERYTHING, test=0.4)
    given = {"name": "small", "train": train, "test": test, "kind": "explicit", "words": "eight"}
    return RatingSource(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "explict"}, "kind='explict' is unknown. Did you mean 'explicit'"),
        ({"train": EVERYTHING.take([])}, "small.train has no entries"),
        ({"test": ratings([0], [0], users=3, items=5)}, "must have the same users and items"),
        (
            {"train": EVERYTHING, "test": EVERYTHING.take([5, 2])},
            "2 test entries are in train too, the first is row 0, user 22 and item 242",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        source(**changes)


@pytest.mark.parametrize("count", [0, -2])
def test_counts_of_nothing_are_refused_for_implicit_feedback(count):
    train = source().train
    bad = dataclasses.replace(train, value=np.array([1, count, *train.value[2:]], np.float32))
    with pytest.raises(ValueError, match=f"counts > 0, but row 1 has {count}.0. Leave out"):
        source(train=bad, kind="implicit")
    assert source(train=bad).kind == "explicit"  # as a rating it is one like any other


# --- tasks ----------------------------------------------------------------------------------------


def test_users_and_items_are_named_by_what_they_were_called():
    task = parse_rating_task(source(), "user:22")
    train, test = task.source.train, task.source.test
    assert (train.user_ids[train.user[task.forget]] == 22).all() and len(task.forget) == 2
    assert (test.user_ids[test.user[task.test_forget]] == 22).all() and len(task.test_forget) == 1
    assert task.users.tolist() == [1] and task.items.tolist() == [] and task.kind == "user"
    both = parse_rating_task(source(), "item:302,242")
    assert both.items.tolist() == [3, 4] and both.name == "item:242,302"
    assert set(train.item_ids[both.forgotten.item]) <= {242, 302}
    assert not np.isin(train.item_ids[both.retained.item], [242, 302]).any()
    assert len(both.retained) + len(both.forgotten) == len(train)


def test_a_share_drawn_with_the_same_seed_contains_a_smaller_one():
    embedded = load_ratings("ratings")
    few, more = (parse_rating_task(embedded, f"random:{s}:seed=3") for s in (0.01, 0.1))
    assert len(few.forget) == 49 and set(few.forget) < set(more.forget)
    assert len(few.test_forget) == 0 and few.name == "random:0.01:seed=3"
    other = parse_rating_task(embedded, "random:0.01:seed=4")
    assert set(other.forget) != set(few.forget)


@pytest.mark.parametrize("text", ["user:7", "user:196,22", "item:51", "random:0.4", "entries:3,0"])
def test_a_name_gives_its_task_back(text):
    task = parse_rating_task(source(), text)
    again = parse_rating_task(source(), task.name)
    assert (again.name, again.digest) == (task.name, task.digest)
    assert isinstance(again, RatingTask)
    assert not task.forget.flags.writeable


def test_order_and_repetition_do_not_matter():
    for one, other in (("user:22,7", "user:7,22,7"), ("entries:3,1", "entries:1,3,3")):
        assert parse_rating_task(source(), one).digest == parse_rating_task(source(), other).digest


def test_a_digest_tells_tasks_apart():
    texts = ["user:22", "user:7", "item:242", "random:0.4", "random:0.4:seed=1", "entries:1,2"]
    tasks = [parse_rating_task(source(), text) for text in texts]
    for same in (tasks[0], tasks[3]):  # the same entries, another kind
        rows = ",".join(map(str, same.forget))
        tasks += [parse_rating_task(source(), f"entries:{rows}")]
    tasks += [parse_rating_task(source(kind="implicit"), "user:22")]
    assert len({task.digest for task in tasks}) == len(tasks)


def test_a_task_in_words():
    assert parse_rating_task(source(), "user:22").describe() == (
        "Forget user 22 of small: 2 of 6 training entries, 4 retained. Test: 1 of the same kind, "
        "1 others."
    )
    assert "Forget a random 40 % of small" in parse_rating_task(source(), "random:0.4").describe()
    assert "Forget 1 entry of small" in parse_rating_task(source(), "entries:2").describe()


@pytest.mark.parametrize("text", ["random:0", "item:9"])
def test_nothing_to_forget_is_a_task(text):
    train, test = EVERYTHING.without(ITEM == 9), EVERYTHING.take(ITEM == 9)
    task = parse_rating_task(source(train=train, test=test), text)
    assert len(task.forget) == 0 and task.retained.digest == train.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("usr:1", "no kind 'usr'. Did you mean 'user'"),
        ("user", "expected user:42 or"),
        ("user:", "expected user:42 or"),
        ("user:22:seed=1", "expected user:42 or"),
        ("user:23", "no user is called '23'; there are 3, such as 7"),
        ("item:x", "no item is called 'x'"),
        ("entries:6", "no row 6 among the 6 training entries"),
        ("entries:-1", "no row -1"),
        ("entries:a", "expected an integer, got 'a'; the form is entries:1,2,3"),
        ("random:x", "expected a number, got 'x'"),
        ("random:1.0", r"expected a share in \[0, 1\), got 1.0"),
        ("random:nan", r"expected a share in \[0, 1\), got nan"),
        ("random:0.1:sed=1", "expected random:0.01 or"),
        ("random:0.1:seed=-1", "expected random:0.01 or"),
        ("user:22,7,196", "forgets all 6 training entries of small: nothing would be retained"),
        ("random:0.99", "forgets all 6 training entries"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rating_task(source(), text)


def test_a_name_close_to_a_name_is_suggested():
    named = ratings(["anna", "bob"], [0, 1])
    with pytest.raises(ValueError, match="no user is called 'ana'; did you mean 'anna'"):
        parse_rating_task(source(train=named, test=named.take([])), "user:ana")


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [6], [-1]])
def test_rows_that_break_the_rules_are_refused(rows):
    task = parse_rating_task(source(), "entries:1")
    with pytest.raises(ValueError, match=r"forget must be sorted, distinct.*\[0, 6\)"):
        dataclasses.replace(task, forget=np.array(rows, np.int64))
