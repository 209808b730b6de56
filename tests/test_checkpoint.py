"""A checkpoint comes back bit for bit, or is refused by name: never in part, never as code."""

import shutil
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

from jaxunlearn import checkpoint
from jaxunlearn.checkpoint import (
    CheckpointError,
    CheckpointMismatchError,
    load,
    read_manifest,
    save,
)
from tests.checkpoints import assert_same, files_of, reseal, small

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
    assert "params/kernel/value" in read_manifest(tmp_path / "c")["leaves"]


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
    assert read_manifest(path)["metadata"] == given_


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


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two leaves of the tree are named 'a/b'"):
        save(tmp_path / "c", {"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def test_an_existing_path_is_refused_and_left_alone(tmp_path):
    path = save(tmp_path / "c", small(1.0))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(path, small(2.0))
    assert_same(load(path, small()), small(1.0))


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
    leaves = read_manifest(path)["leaves"]
    leaves["w"]["sha256"] = "0" * 64
    reseal(path, leaves=leaves)
    with pytest.raises(CheckpointError, match="leaf 'w': its bytes do not have their hash"):
        load(path, small())


def test_arrays_of_another_shape_than_the_manifest_says_are_not_cut_to_fit(tmp_path):
    path = save(tmp_path / "c", small())
    leaves = read_manifest(path)["leaves"]
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


def test_a_reader_overtaken_by_a_writer_reads_the_new_one(tmp_path, monkeypatch):
    path = save(tmp_path / "c", small(1.0))

    def overtaken(*args, original=checkpoint._verified_arrays):
        monkeypatch.setattr(checkpoint, "_verified_arrays", original)
        save(path, small(2.0), overwrite=True)
        return original(*args)

    monkeypatch.setattr(checkpoint, "_verified_arrays", overtaken)
    assert_same(load(path, small()), small(2.0))
