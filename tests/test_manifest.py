"""A manifest says what was saved, cannot be edited in silence, and is the first thing believed."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import manifest
from jaxunlearn.checkpoint import CheckpointError, load, read_manifest, save
from tests.checkpoints import assert_same, bits, reseal, small


def test_content_hash_depends_on_the_leaves_alone(tmp_path):
    one, same, other = (
        read_manifest(save(tmp_path / str(i), tree, metadata={"i": i}))["content"]
        for i, tree in enumerate([small(), small(), small(2.0)])
    )
    assert one == same != other


def test_leaf_hash_is_the_sha256_of_the_bytes(tmp_path):
    leaves = read_manifest(save(tmp_path / "c", small()))["leaves"]
    assert leaves["w"]["sha256"] == hashlib.sha256(bits(small()["w"])).hexdigest()


@pytest.mark.parametrize(
    "leaf, message",
    [
        (3, "leaf 'a/0' must be an array, got int"),
        ("text", "leaf 'a/0' must be an array, got str"),
        (np.array([None]), "array of numbers, got dtype object"),
        (np.array(["x"]), "array of numbers, got dtype <U1"),
    ],
)
def test_leaves_that_are_not_arrays_of_numbers_are_refused(tmp_path, leaf, message):
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "c", {"a": [leaf]})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "value, message",
    [
        ({"f": [1, max]}, r"metadata\['f'\]\[1\] must be JSON data .* got builtin_function"),
        ({"x": float("nan")}, r"metadata\['x'\] must be JSON data .* got nan"),
        ({"x": np.float64(1)}, r"metadata\['x'\] must be JSON data .* got"),
        ({"x": {1: 2}}, r"metadata\['x'\] must be JSON data .* got the key 1"),
    ],
)
def test_metadata_is_data_only(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "c", small(), metadata=value)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*absent"):
        load(tmp_path / "absent", small())


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["EXPLOITED"]),))


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "weights", "weights.npy"])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.setenv("EXPLOITED", str(tmp_path / "exploited"))
    if name.endswith(".npy"):
        np.save(tmp_path / name, np.array([Exploit()]), allow_pickle=True)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(Exploit()))
    message = "allow_pickle=False" if name.endswith(".npy") else "looks like a pickle.*Export"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name, small())
    assert not (tmp_path / "exploited").exists()


def test_other_files_and_directories_are_refused_with_a_pointer(tmp_path):
    import orbax.checkpoint as ocp

    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="is a file, expected a directory"):
        load(tmp_path / "text", small())
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"it has no manifest\.json"):
        load(tmp_path / "empty", small())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "bare", {"w": np.ones(2)})
    with pytest.raises(CheckpointError, match="bare orbax checkpoint: restore it with orbax"):
        load(tmp_path / "bare", small())
    (tmp_path / "empty" / "manifest.json").write_text('{"format": "web app"}')
    with pytest.raises(CheckpointError, match="'format' in its manifest.json is 'web app'"):
        load(tmp_path / "empty", small())
    with pytest.raises(ValueError, match="mounted file system, got the URL gs://"):
        load("gs://bucket/c", small())


def test_a_newer_schema_is_refused(tmp_path):
    path = save(tmp_path / "c", small())
    reseal(path, schema=manifest.SCHEMA)
    assert_same(load(path, small()), small())  # Control: the seal rule is the documented one.
    reseal(path, schema=manifest.SCHEMA + 1)
    with pytest.raises(CheckpointError, match="schema 2, this version reads up to 1: update"):
        load(path, small())


@pytest.mark.parametrize("arrays", ["..", "../other", "/etc", "arrays-x", ""])
def test_a_manifest_cannot_lead_out_of_its_directory(tmp_path, arrays):
    (tmp_path / "other").mkdir()
    path = save(tmp_path / "c", small())
    reseal(path, arrays=arrays)
    with pytest.raises(CheckpointError, match="no name of ours"):
        load(path, small())
    with pytest.raises(CheckpointError, match="no name of ours"):
        save(path, small(), overwrite=True)
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"format": 1', "\xff"])
def test_a_manifest_that_is_not_one_is_damage(tmp_path, text):
    path = save(tmp_path / "c", small())
    (path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: not what was written"):
        load(path, small())


def test_an_enormous_manifest_is_not_read(tmp_path):
    path = save(tmp_path / "c", small())
    os.truncate(path / "manifest.json", 2**40)  # Sparse: takes no disk.
    with pytest.raises(CheckpointError, match="expected at most 67,108,864: not read"):
        load(path, small())


def test_an_edited_manifest_is_noticed(tmp_path):
    path = save(tmp_path / "c", small(), metadata={"epsilon": 8.0})
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("8.0", "1.0"))
    with pytest.raises(CheckpointError, match="its seal does not match"):
        read_manifest(path)
