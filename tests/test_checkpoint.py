"""A checkpoint comes back bit for bit, or is refused by name: never in part, never as code."""

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn
from jaxunlearn import checkpoint
from jaxunlearn.checkpoint import CheckpointError, CheckpointMismatchError, load, save

DTYPES = [
    *("bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4", "uint2"),
]


class Moments(NamedTuple):
    mu: Any
    nu: Any


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Any bit pattern that the dtype has, NaN payloads and -0.0 included."""
    rng, kind = np.random.default_rng(seed), dtype_of(dtype)
    if dtype in ("bool", "int4", "uint4", "uint2"):
        return rng.integers(0, 2, shape).astype(kind)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(rng.bytes(size), kind).reshape(shape)


def bits(leaf: Any) -> bytes:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()


def assert_same(came: Any, expected: Any) -> None:
    """Same structure, and in every leaf the same kind of array, shape, dtype and bits."""
    assert jax.tree.structure(came) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert bits(a) == bits(b)


def small(value: float = 1.0) -> dict[str, Any]:
    return {"w": jnp.full((3, 4), value), "b": np.full(5, value, np.float32)}


def reseal(path: Path, **changes: Any) -> None:
    """Edits a manifest and seals it again, by the rule in the docstring, on our own."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    del manifest["seal"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


# ------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    tree = {"many": random_bits(dtype, (3, 5)), "one": random_bits(dtype, ()), "none": None}
    assert_same(load(save(tmp_path / "c", tree), tree), tree)


trees = st.recursive(
    st.tuples(
        st.sampled_from(["float32", "bfloat16", "int8", "bool", "uint32", "float64"]),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        st.integers(0, 9),
    ).map(lambda leaf: random_bits(*leaf)),
    lambda child: st.one_of(
        st.dictionaries(st.sampled_from(["a", "é/x", "..", " ", "w'"]), child, max_size=3),
        st.lists(child, max_size=3),
        st.tuples(child, child).map(lambda pair: Moments(*pair)),
    ),
    max_leaves=6,
)


@settings(
    derandomize=True,
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tree=trees)
def test_any_tree_comes_back_bit_for_bit(tmp_path, tree):
    path = save(tmp_path / "c", tree, overwrite=True)
    assert_same(load(path, tree), tree)


def test_optimiser_state_nnx_state_and_keys_come_back(tmp_path):
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    tree = {
        "params": params,
        "opt": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
    }
    came = load(save(tmp_path / "c", tree), tree)
    assert_same(came, tree)
    assert jax.random.uniform(came["key"]) == jax.random.uniform(tree["key"])
    assert "params/kernel/value" in checkpoint.read_manifest(tmp_path / "c")["leaves"]


def test_an_abstract_like_is_enough(tmp_path):
    def make(key):
        return {"key": key, "w": jax.random.normal(key, (3,), jnp.bfloat16)}

    tree = make(jax.random.key(0))
    like = jax.eval_shape(make, jax.random.key(0))
    assert_same(load(save(tmp_path / "c", tree), like), tree)


def test_a_tree_without_leaves_and_a_bare_array_are_trees_too(tmp_path):
    assert load(save(tmp_path / "empty", {"a": {}, "b": ()}), {"a": {}, "b": ()}) == {
        "a": {},
        "b": (),
    }
    assert_same(load(save(tmp_path / "bare", jnp.arange(3)), jnp.arange(3)), jnp.arange(3))


def test_containers_do_not_matter_names_do(tmp_path):
    path = save(tmp_path / "c", Moments(mu=np.arange(3), nu=np.ones(2)))
    assert_same(load(path, {"mu": np.empty(3, int), "nu": np.empty(2)})["mu"], np.arange(3))


def test_arrays_in_foreign_byte_order_or_with_strides_come_back_by_value(tmp_path):
    tree = {"big": np.arange(5, dtype=">f4"), "view": np.arange(12).reshape(3, 4).T[::2]}
    came = load(save(tmp_path / "c", tree), tree)
    assert (came["big"] == tree["big"]).all() and (came["view"] == tree["view"]).all()


def test_shardings_are_taken_from_like_and_the_bits_stay(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:4]), ("m",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("m")), NamedSharding(mesh, P())
    tree = {"x": jax.device_put(jnp.arange(8.0), rows), "y": jnp.arange(3.0)}
    path = save(tmp_path / "c", tree)
    came = load(path, tree)
    assert came["x"].sharding == rows and came["x"].committed and not came["y"].committed
    like = {"x": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=whole), "y": tree["y"]}
    resharded = load(path, like)
    assert resharded["x"].sharding == whole
    assert_same(resharded, tree)


def test_keys_are_sharded_too(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("m",), axis_types=(AxisType.Auto,))
    keys = jax.device_put(jax.random.split(jax.random.key(0), 4), NamedSharding(mesh, P("m")))
    came = load(save(tmp_path / "c", keys), keys)
    assert_same(came, keys)
    assert came.sharding == keys.sharding


def test_metadata_comes_back_as_data(tmp_path):
    given_ = {"step": 3, "lr": 0.1, "note": "é\n", "nested": {"list": [1, None, True]}}
    path = save(tmp_path / "c", small(), metadata=given_)
    assert checkpoint.read_manifest(path)["metadata"] == given_


def test_content_hash_depends_on_the_leaves_alone(tmp_path):
    one, same, other = (
        checkpoint.read_manifest(save(tmp_path / str(i), tree, metadata={"i": i}))["content"]
        for i, tree in enumerate([small(), small(), small(2.0)])
    )
    assert one == same != other


def test_leaf_hash_is_the_sha256_of_the_bytes(tmp_path):
    leaves = checkpoint.read_manifest(save(tmp_path / "c", small()))["leaves"]
    assert leaves["w"]["sha256"] == hashlib.sha256(bits(small()["w"])).hexdigest()


# --------------------------------------------------------------------------- what is refused


def test_all_differences_are_listed_at_once_and_nothing_is_loaded(tmp_path):
    path = save(tmp_path / "c", {"a": np.ones(2), "b": np.ones((2, 3)), "c": np.ones(1)})
    like = {"a": np.ones(2, np.float32), "b": np.ones((3, 2)), "d": np.ones(4)}
    with pytest.raises(CheckpointMismatchError, match="nothing was loaded") as error:
        load(path, like)
    for line in (
        "missing 'd': expected float64[4]",
        "extra 'c': came float64[1]",
        "mismatch 'a': expected float32[2], came float64[2]",
        "mismatch 'b': expected float64[3,2], came float64[2,3]",
    ):
        assert line in str(error.value)


def test_a_key_of_another_kind_is_a_mismatch(tmp_path):
    path = save(tmp_path / "c", jax.random.key(0))
    with pytest.raises(CheckpointMismatchError, match=r"expected key<rbg>\[\], came key<fry>\[\]"):
        load(path, jax.random.key(0, impl="rbg"))


def test_doubles_are_never_narrowed_in_silence(tmp_path):
    tree = {"w": np.array([1 + 1e-12])}
    path = save(tmp_path / "c", tree)
    like = {"w": jax.ShapeDtypeStruct((1,), np.float64)}
    with pytest.raises(CheckpointMismatchError, match="load under jax.enable_x64"):
        load(path, like)
    with jax.enable_x64(True):
        assert load(path, like)["w"][0] == 1 + 1e-12


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


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two leaves of the tree are named 'a/b'"):
        save(tmp_path / "c", {"a/b": np.ones(1), "a": {"b": np.ones(1)}})


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


def test_an_existing_path_is_refused_and_left_alone(tmp_path):
    path = save(tmp_path / "c", small(1.0))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(path, small(2.0))
    assert_same(load(path, small()), small(1.0))


@pytest.mark.parametrize("what", ["file", "directory", "other manifest", "damaged"])
def test_only_a_sound_checkpoint_is_overwritten(tmp_path, what):
    path = tmp_path / "c"
    if what == "file":
        path.write_text("mine")
    elif what == "damaged":
        (save(path, small()) / "manifest.json").write_text("{")
    else:
        path.mkdir()
        (path / "precious").write_text("mine")
        if what == "other manifest":
            (path / "manifest.json").write_text('{"format": "web app"}')
    before = {file: file.read_bytes() for file in files_of(tmp_path)}
    with pytest.raises(CheckpointError):
        save(path, small(), overwrite=True)
    assert {file: file.read_bytes() for file in files_of(tmp_path)} == before


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
    reseal(path, schema=checkpoint.SCHEMA)
    assert_same(load(path, small()), small())  # Control: the seal rule is the documented one.
    reseal(path, schema=checkpoint.SCHEMA + 1)
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
        checkpoint.read_manifest(path)


@pytest.mark.parametrize("damage", ["flip first", "flip last", "truncate", "empty", "remove"])
def test_damage_in_any_file_is_noticed_and_the_file_named(tmp_path, damage):
    sound = save(tmp_path / "sound", small())
    for number, file in enumerate(files_of(sound)):
        path = tmp_path / str(number)
        shutil.copytree(sound, path)
        victim = path / file.relative_to(sound)
        content = bytearray(victim.read_bytes())
        if damage == "remove" or not content:
            victim.unlink()
        elif damage.startswith("flip"):
            content[0 if damage == "flip first" else -1] ^= 1
            victim.write_bytes(content)
        else:
            victim.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
        with pytest.raises(CheckpointError, match=victim.name):
            load(path, small())


def test_a_file_that_does_not_belong_is_noticed(tmp_path):
    path = save(tmp_path / "c", small())
    (next(path.glob("arrays-*")) / "intruder").write_text("x")
    with pytest.raises(CheckpointError, match="intruder: does not belong here"):
        load(path, small())


def test_leaves_are_verified_after_parsing_too(tmp_path):
    path = save(tmp_path / "c", small())
    leaves = checkpoint.read_manifest(path)["leaves"]
    leaves["w"]["sha256"] = "0" * 64
    reseal(path, leaves=leaves)
    with pytest.raises(CheckpointError, match="leaf 'w': its bytes do not have their hash"):
        load(path, small())


def test_arrays_of_another_shape_than_the_manifest_says_are_not_cut_to_fit(tmp_path):
    path = save(tmp_path / "c", small())
    leaves = checkpoint.read_manifest(path)["leaves"]
    leaves["w"]["shape"] = [2, 4]
    reseal(path, leaves=leaves)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path, small() | {"w": jnp.zeros((2, 4))})


def test_a_copy_that_stopped_anywhere_is_refused(tmp_path):
    sound = save(tmp_path / "sound", small())
    files = files_of(sound)
    for copied in range(len(files)):
        for order, chosen in (("first", files[:copied]), ("last", files[copied + 1 :])):
            partial = tmp_path / f"{order}-{copied}"
            partial.mkdir()
            for file in chosen:
                target = partial / file.relative_to(sound)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
            with pytest.raises(CheckpointError):
                load(partial, small())


def test_several_processes_are_refused_instead_of_hanging(tmp_path, monkeypatch):
    path = save(tmp_path / "c", small())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for use in (lambda: save(tmp_path / "d", small()), lambda: load(path, small())):
        with pytest.raises(CheckpointError, match="for one process, this program has 2"):
            use()


# ------------------------------------------------------------------- when writing goes wrong


def test_overwriting_replaces_and_leaves_nothing_behind(tmp_path):
    path = save(tmp_path / "c", small(1.0), metadata={"step": 1})
    save(path, {"other": np.arange(3)}, metadata={"step": 2}, overwrite=True)
    assert_same(load(path, {"other": np.arange(3)}), {"other": np.arange(3)})
    assert len(os.listdir(path)) == 2 and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_at_any_step_leaves_the_old_or_the_new(tmp_path, monkeypatch, overwrite):
    """Fails the n-th call that makes something durable or visible, for every n in turn."""
    path, outcomes = tmp_path / "c", []
    for n in range(1, 1000):
        shutil.rmtree(path, ignore_errors=True)
        if overwrite:
            save(path, small(1.0))
        calls = 0

        def counted(original, n=n):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                save(path, small(2.0), overwrite=overwrite)
                outcomes.append("new")
            except CheckpointError as error:
                assert "68 bytes" in str(error) and str(path) in str(error)
                assert "No space left on device" in str(error)
                outcomes.append("old")
        if outcomes[-1] == "new":
            assert_same(load(path, small()), small(2.0))
        elif overwrite:
            assert_same(load(path, small()), small(1.0))
        else:
            assert not path.exists()
        assert [name for name in os.listdir(tmp_path) if name != "c"] == []
        if outcomes[-1] == "new":
            assert len(os.listdir(path)) == 2
        if calls < n:
            break
    assert outcomes.count("old") > 5 and outcomes[-1] == "new"


def test_a_file_system_that_stops_taking_bytes_gives_one_clear_error(tmp_path, capfd):
    """A real limit of the kernel, met by the writer's own threads."""
    tree = {"w": np.random.default_rng(0).standard_normal(500_000)}
    path = save(tmp_path / "c", small(1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"needs 4,000,000 bytes; free there: [\d,]+\. "):
            save(path, tree, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(load(path, small()), small(1.0))
    assert os.listdir(tmp_path) == ["c"]
    assert "Traceback" not in capfd.readouterr().err
    assert_same(load(save(path, tree, overwrite=True), tree), tree)  # The tree is still usable.


def test_a_read_only_directory_gives_one_clear_error(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # Root may write anywhere but here.
        closed = Path("/sys/kernel")
    with pytest.raises(CheckpointError, match="could not save checkpoint .*needs 68 bytes"):
        save(closed / "c", small())


def test_a_parent_that_is_a_file_is_not_taken_for_an_existing_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not save"):
        save(tmp_path / "file" / "c", small())


def test_the_first_of_two_savers_wins(tmp_path, monkeypatch):
    def slow(*args, original=checkpoint._write_arrays):
        original(*args)
        monkeypatch.setattr(checkpoint, "_write_arrays", original)
        save(tmp_path / "c", small(1.0))

    monkeypatch.setattr(checkpoint, "_write_arrays", slow)
    with pytest.raises(FileExistsError, match="appeared meanwhile"):
        save(tmp_path / "c", small(2.0))
    assert_same(load(tmp_path / "c", small()), small(1.0))
    assert os.listdir(tmp_path) == ["c"]


def test_a_reader_overtaken_by_a_writer_reads_the_new_one(tmp_path, monkeypatch):
    path = save(tmp_path / "c", small(1.0))

    def overtaken(*args, original=checkpoint._verified_arrays):
        monkeypatch.setattr(checkpoint, "_verified_arrays", original)
        save(path, small(2.0), overwrite=True)
        return original(*args)

    monkeypatch.setattr(checkpoint, "_verified_arrays", overtaken)
    assert_same(load(path, small()), small(2.0))


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path):
    here, dead = checkpoint._host(), dead_process()
    gone = [f".c.tmp-{here}-{dead}-01234567", ".c.tmp-deadbeef-1-01234567"]
    kept = [
        f".c.tmp-{here}-{os.getpid()}-01234567",  # alive
        f".c.tmp-{here}-1-01234567",  # alive, somebody else's
        ".c.tmp-deadbeef-2-01234567",  # another machine's, and fresh
        f"arrays-{here}-{dead}-01234567",  # may be the arrays of a checkpoint
        f".c.tmp-{here}-{dead}-0123456",  # not our pattern
        "c",
        ".git",
    ]
    for name in gone + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    yesterday = time.time() - 25 * 3600
    os.utime(tmp_path / gone[1], (yesterday, yesterday))
    assert checkpoint.sweep(tmp_path) == sorted(tmp_path / name for name in gone)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_arrays_orphaned_by_a_kill_go_with_the_next_overwrite(tmp_path):
    path = save(tmp_path / "c", small(1.0))
    orphan = path / f"arrays-{checkpoint._host()}-{dead_process()}-01234567"
    orphan.mkdir()
    assert_same(load(path, small()), small(1.0))
    save(path, small(2.0), overwrite=True)
    assert not orphan.exists() and len(os.listdir(path)) == 2


# -------------------------------------------------------------------------------- real kills

WRITER = """
import itertools, os, sys
import numpy as np, orbax.checkpoint
from jaxunlearn import checkpoint

def write(directory):
    acknowledged = os.open(directory + "/acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for k in itertools.count(1):
        tree = {"w": np.full((64, 64), k), "b": [np.full(1000, k)]}
        checkpoint.save(directory + "/latest", tree, overwrite=True)
        os.write(acknowledged, b"latest %d\\n" % k)
        checkpoint.save(directory + f"/step-{k}", tree)
        os.write(acknowledged, b"step-%d %d\\n" % (k, k))

print("ready", flush=True)
for line in sys.stdin:  # Imported once; each writer is a fork that the test kills.
    if (pid := os.fork()) == 0:
        write(line.strip())
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def kill_writers(tmp_path: Path, kills: int, seed: int) -> None:
    """Kills a writer at a random moment, again and again, and looks at what it left."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
    }
    like = {"w": np.empty((64, 64), int), "b": [np.empty(1000, int)]}
    moments, interrupted, completed = random.Random(seed), 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        for number in range(kills):
            directory = tmp_path / str(number)
            directory.mkdir()
            process.stdin.write(f"{directory}\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            time.sleep(moments.uniform(0.1, 0.6))
            os.kill(pid, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"

            acknowledged = {}
            if (directory / "acknowledged").exists():
                lines = (directory / "acknowledged").read_text().splitlines()
                acknowledged = {name: int(k) for name, k in (line.split() for line in lines)}
            visible = {p.name for p in directory.iterdir() if p.name[0] != "."} - {"acknowledged"}
            assert acknowledged.keys() <= visible  # What was reported saved is there,
            for name in visible:  # and what is there is whole, not older, and of one save.
                tree = load(directory / name, like)
                (k,) = set(tree["w"].ravel()) | set(tree["b"][0])
                assert k >= acknowledged.get(name, 1)
                assert name in ("latest", f"step-{k}")
            interrupted += any(p.name[0] == "." for p in directory.iterdir())
            completed += len(acknowledged)
            save(directory / "after", small())
            assert not any(p.name[0] == "." for p in directory.iterdir())
        process.stdin.close()
    assert interrupted and completed  # Control: the moments did hit saves, and not only those.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_killed_savers_leave_whole_checkpoints_or_none(tmp_path):
    kill_writers(tmp_path, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")
def test_fifty_killed_savers_leave_whole_checkpoints_or_none(tmp_path):
    kill_writers(tmp_path, kills=50, seed=1)
