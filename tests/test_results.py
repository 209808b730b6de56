"""Results as a file: plain data, whole or absent, and nothing that another program made up."""

import enum
import json
import os
import pickle
import stat
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data, results
from jaxunlearn.results import SCHEMA, Results, parts_of, plain, read, write


class Pair(NamedTuple):
    a: object
    b: object


def record(**changes) -> dict:
    """A record as small as one can be."""
    return {
        "schema": SCHEMA,
        "kind": "jaxunlearn compare",
        "status": "informative",
        "headline": "Nothing was found.",
        "task": {"name": "class:3", "words": "class 3"},
        "settings": {"seeds": 2},
        "versions": {"jaxunlearn": "0"},
        "metrics": {"energy": "1"},
        "seconds": 1.5,
        "parts": {"forget": {"examples": 3, "available": 3, "words": "to forget"}},
        "floors": {"forget": {"value": 0.1}},
        "floor": {},
        "rows": [{"label": "original", "role": "original"}, {"label": "ssd", "role": "method"}],
        "curves": {},
        "notes": ["one", "zwölf"],
    } | changes


# --- Plain data -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_numbers_that_are_not_finite_become_null(value):
    assert plain(value) is None
    assert plain({"a": [value, 1.0]}) == {"a": [None, 1.0]}


def test_named_tuples_become_objects_and_sequences_lists():
    assert plain(Pair(1, Pair((2, 3), [range(2)]))) == {"a": 1, "b": {"a": [2, 3], "b": [[0, 1]]}}


def test_arrays_and_numpy_numbers_become_numbers():
    found = plain({"a": np.arange(3), "b": np.float64(0.5), "c": np.bool_(True), "d": np.int8(3)})
    assert found == {"a": [0, 1, 2], "b": 0.5, "c": True, "d": 3}
    assert [type(found[key]) for key in "bcd"] == [float, bool, int]
    assert plain(np.array([[1.0, np.nan]])) == [[1.0, None]]


def test_arrays_of_jax_become_numbers():
    assert plain({"a": jnp.arange(2), "b": jnp.float32(0.5)}) == {"a": [0, 1], "b": 0.5}


def test_booleans_stay_booleans_and_keys_become_text():
    assert plain({1: True, None: None}) == {"1": True, "None": None}
    assert plain(True) is True


@pytest.mark.parametrize("value", [object(), len, {1, 2}, 1j, b"x"], ids=lambda v: type(v).__name__)
def test_what_is_no_data_is_refused_by_its_type(value):
    with pytest.raises(TypeError, match=f"results: {type(value).__name__} is not plain data"):
        plain({"a": [value]})


def test_a_word_of_an_enumeration_becomes_the_word():
    class Word(enum.Enum):
        YES = "yes, indeed"

    assert plain(Pair(Word.YES, 1)) == {"a": "yes, indeed", "b": 1}


# --- Reading what was written -----------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    path = write(Results(record()), tmp_path / "results.json")
    assert path == tmp_path / "results.json"
    found = read(path)
    assert found.record == record()
    assert found.informative and found.status == "informative"
    assert found.row("ssd")["role"] == "method" and len(found.rows) == 2


def test_numbers_survive_to_the_last_bit(tmp_path):
    numbers = np.random.default_rng(0).standard_normal(100) * 10.0 ** np.arange(-50, 50)
    path = write(Results(record(seconds=numbers.tolist())), tmp_path / "results.json")
    np.testing.assert_array_equal(read(path).record["seconds"], numbers)


def test_the_file_is_json_that_every_program_reads(tmp_path):
    path = write(Results(record()), tmp_path / "results.json")

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["schema"] == SCHEMA
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("status", "informative"),
    [("informative", True), ("nothing to forget", True), ("not informative: at chance", False)],
)
def test_only_a_reason_makes_results_uninformative(status, informative):
    assert Results(record(status=status)).informative is informative


# --- Whole or not at all ----------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_no_remains(tmp_path, monkeypatch, step):
    path = write(Results(record(headline="old")), tmp_path / "results.json")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write(Results(record(headline="new")), path)
    monkeypatch.undo()
    assert read(path).record["headline"] == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_an_interruption_while_writing_leaves_the_old_file_too(tmp_path, monkeypatch):
    path = write(Results(record(headline="old")), tmp_path / "results.json")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(Results(record()), path)
    assert os.listdir(tmp_path) == ["results.json"]
    assert read(path).record["headline"] == "old"


def test_what_is_no_json_is_never_begun(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(Results(record(seconds=float("nan"))), tmp_path / "results.json")
    assert not os.listdir(tmp_path)


def test_a_link_is_replaced_and_what_it_led_to_is_not_touched(tmp_path):
    target = tmp_path / "elsewhere.json"
    target.write_text("precious")
    path = tmp_path / "results.json"
    path.symlink_to(target)
    write(Results(record()), path)
    assert target.read_text() == "precious" and not path.is_symlink()


# --- Files that are not ours ------------------------------------------------------------------


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(record(schema=SCHEMA + 1)))
    message = f"results.json: schema {SCHEMA + 1} is newer than {SCHEMA}.*Upgrade jaxunlearn"
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write(Results(record()), tmp_path / "results.json")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="results.json: not a results file"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"\x80\x04.", b"\xff\xfe", b"hello", b"PK\x03\x04", b"[" * 100_000]
)
def test_what_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="results.json: not a results file"):
        read(path)


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, proof = tmp_path / "results.json", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Trap(proof), protocol))
    with pytest.raises(ValueError, match="results.json: not a results file"):
        read(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "3",
        "null",
        '"schema"',
        '{"schema": "1", "kind": "jaxunlearn compare"}',
        '{"schema": 1.0, "kind": "jaxunlearn compare"}',
        '{"schema": true, "kind": "jaxunlearn compare"}',
        '{"schema": 1, "kind": "something else"}',
        '{"schema": 1}',
    ],
)
def test_json_of_another_program_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="not the results of a jaxunlearn comparison"):
        read(path)


@pytest.mark.parametrize(
    ("field", "edit"),
    [
        ("rows", lambda rows: rows[:1]),
        ("headline", lambda text: "Everything was forgotten."),
        ("seconds", lambda value: value + 1e-9),
        ("floors", lambda floors: {"forget": {"value": 1.0}}),
        ("task", lambda task: None),
    ],
)
def test_an_edited_file_is_refused_and_the_field_named(tmp_path, field, edit):
    path = write(Results(record()), tmp_path / "results.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored[field] = edit(stored[field])
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=f"results.json: '{field}' .*edited"):
        read(path)


@pytest.mark.parametrize("field", ["rows", "headline"])
def test_a_file_with_a_field_less_or_more_is_refused_and_the_field_named(tmp_path, field):
    path = write(Results(record()), tmp_path / "results.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in stored.items() if k != field}))
    with pytest.raises(ValueError, match=f"results.json: '{field}' .*edited"):
        read(path)
    path.write_text(json.dumps(stored | {"praise": "best"}))
    with pytest.raises(ValueError, match="results.json: 'praise' .*edited"):
        read(path)


def test_another_layout_of_the_same_data_is_no_edit(tmp_path):
    path = write(Results(record()), tmp_path / "results.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True))
    assert read(path).record == record()


def test_a_missing_file_is_said_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        read(tmp_path / "nowhere.json")


# --- The parts that are evaluated -------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def ids(parts) -> dict:
    return {part: entry.columns["id"].tolist() for part, entry in parts.items()}


def test_parts_are_those_of_the_task(digits):
    task = data.class_task(digits, 3)
    parts = parts_of(task, 10_000, seed=0)
    assert set(parts) == {"forget", "retain", "test", "forget_test"}
    for part, split, name in (("forget", "train", "forget"), ("test", "test", "retain")):
        np.testing.assert_array_equal(parts[part].columns["x"], task.columns(split, name)["x"])
    assert {part: entry.available for part, entry in parts.items()} == {
        part: len(entry.columns["y"]) for part, entry in parts.items()
    }


def test_siblings_are_a_part_of_their_own():
    parts = parts_of(data.subclass_task(data.digits("odd_even"), 3), 10_000, seed=0)
    held_out = {"test", "forget_test", "adjacent_test"}
    assert set(parts) == {"forget", "retain", "adjacent", "remote"} | held_out
    ids = {part: set(parts[part].columns["id"]) for part in ("retain", "adjacent", "remote")}
    assert ids["adjacent"] | ids["remote"] == ids["retain"]
    assert not ids["adjacent"] & ids["remote"]


def test_a_random_task_has_no_test_examples_of_the_forgotten_kind(digits):
    parts = parts_of(data.random_task(digits, 0.05, seed=0), 10_000, seed=0)
    assert set(parts) == {"forget", "retain", "test"}
    assert parts["test"].words == "test examples"


def test_an_empty_forget_part_is_kept_empty(digits):
    assert len(parts_of(data.index_task(digits, []), 50, seed=0)["forget"].columns["y"]) == 0


def test_thinning_is_a_fixed_choice_of_the_seed(digits):
    task = data.class_task(digits, 3)
    first, again, other = (ids(parts_of(task, 50, seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(len(rows) == 50 for part, rows in first.items() if part != "forget_test")
    assert first["retain"] != other["retain"] and first["forget"] != other["forget"]
    assert first["forget_test"] == other["forget_test"]  # 31 of them: nothing to choose


def test_thinning_takes_rows_of_the_part_once_and_in_order_with_all_columns(digits):
    task = data.class_task(digits, 3)
    thin, whole = parts_of(task, 50, seed=3)["retain"], parts_of(task, 10_000, seed=3)["retain"]
    chosen = np.array([np.flatnonzero(whole.columns["id"] == i)[0] for i in thin.columns["id"]])
    assert len(chosen) == 50 and (np.diff(chosen) > 0).all()
    assert thin.available == whole.available == len(whole.columns["id"])
    for column, values in thin.columns.items():
        np.testing.assert_array_equal(values, whole.columns[column][chosen])


def test_the_module_says_what_a_record_holds():
    for key in record():
        if key not in ("kind", "seconds"):
            assert key in results.__doc__
