"""Trees of arrays on disk: whole or not there at all, and checked before they are believed.

    load(save(path, tree), like=tree)  =  tree        bit for bit, or an error and nothing applied

A checkpoint is one directory::

    path/manifest.json      names, shapes, dtypes, hashes, your metadata (`jaxunlearn.manifest`)
    path/arrays-<owner>/    the arrays, written and read by orbax

Leaves go by their key path, `dense/bias` or `0/mu/kernel`: a flat dictionary, whatever the
containers were, so orbax never sees the structure and the `like` of `load` gives it back.

============================================  =====================================================
guarantee                                     how
============================================  =====================================================
a kill leaves the whole checkpoint or none,   see `jaxunlearn.publishing`
`overwrite=True` never leaves a gap
damage is noticed before arrays are parsed    sha256 of every file, and of the bytes of every leaf
no code is run                                JSON and arrays only; a pickle is refused by name
remains of killed writers go away             the next `save` beside them sweeps
============================================  =====================================================

Cost: a host copy of what is not on the host already; a save hashes the bytes twice and writes them
once; a load hashes them twice. Programs of several processes are refused.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.manifest import (
    CheckpointError,
    CheckpointMismatchError,
    absolute,
    array_sha256,
    canonical_json,
    damaged,
    differences,
    named_leaves,
    read_manifest,
    recorded_specs,
    specs,
    verify_files,
    write_manifest,
)
from jaxunlearn.publishing import new_owner, publish, sweep, temporary_beside

_WIDENED = {"uint4": np.uint8, "uint2": np.uint8}  # Dtypes that the storage does not know.
_WIDE = ("int64", "uint64", "float64", "complex128")  # Only in the 64-bit mode of JAX.


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a tree of arrays to the directory `path`, all of it or nothing.

    Args:
      path: A directory that does not exist yet; its parents are made. On a mounted file system.
      tree: Any pytree whose leaves are arrays, of JAX (typed keys too, any sharding within this
        process) or of NumPy, of any numeric dtype, any shape (0-d and empty ones too).
      metadata: JSON data to keep beside the arrays: step, configuration, where it came from.
        Tuples come back as lists. `read_manifest` gives it back.
      overwrite: Replace the checkpoint that is at `path`. Readers see the old one until the new
        one is complete. Anything but a sound checkpoint is left alone and refused.

    Returns:
      The absolute path.

    Raises:
      TypeError: A leaf is not an array of numbers, or `metadata` is not JSON data.
      ValueError: `path` is a URL, or two leaves have one name (`{"a/b": .}` and
        `{"a": {"b": .}}`).
      FileExistsError: Something is at `path` and `overwrite` is False.
      CheckpointError: Disk full, directory read-only, ...; what was there before is untouched.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3, jnp.bfloat16)}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = save(f"{directory}/step-10", params, metadata={"step": 10})
    ...     step = read_manifest(path)["metadata"]["step"]
    ...     restored = load(path, like=params)
    >>> step, restored["b"].dtype
    (10, dtype(bfloat16))
    """
    path, leaves, metadata = absolute(path), named_leaves(tree), dict(metadata or {})
    canonical_json(metadata, "metadata")
    if os.path.lexists(path):
        if not overwrite:
            raise FileExistsError(
                f"{path} exists already: choose another path, or pass overwrite=True to replace it"
            )
        read_manifest(path)  # Raises unless it is ours to replace.
    _refuse_several_processes()
    data = {name: _bits(leaf) for name, leaf in leaves.items()}
    owner = new_owner()
    arrays, temporary = f"arrays-{owner}", temporary_beside(path, owner)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary.mkdir()
        _write_arrays(temporary / arrays, data)
        described = {name: _describe(leaf, data[name]) for name, leaf in leaves.items()}
        write_manifest(temporary, arrays, described, metadata)
        published = publish(temporary, path, arrays, overwrite=overwrite)
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(_could_not_save(path, data, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not published:
        raise FileExistsError(f"{path} appeared meanwhile: another process saved it first")
    return path


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Reads a checkpoint into the structure of `like`, after checking all of it.

    Args:
      path: What `save` wrote.
      like: A tree with the expected names, shapes and dtypes. A leaf says what is made of it:

        ==============================================  ===========================================
        leaf of `like`                                leaf that comes back
        ==============================================  ===========================================
        `jax.ShapeDtypeStruct` with a sharding        JAX array, so sharded
        `jax.ShapeDtypeStruct` without                JAX array, on the default device
        JAX array put on a device or mesh on purpose    JAX array, sharded like it
        any other JAX array                             JAX array, on the default device
        NumPy array or scalar                           NumPy array (of shape `()` for a scalar)
        ==============================================  ===========================================

    Returns:
      A new tree of the structure of `like`; `like` itself is only looked at.

    Raises:
      FileNotFoundError: Nothing is there.
      CheckpointMismatchError: Lists every leaf missing, extra, or of another shape or dtype.
      CheckpointError: Not a checkpoint (a pickle, another program's directory), damaged, or made
        by a newer version.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = save(f"{directory}/head", {"w": np.ones((2, 3), np.float32)})
    ...     load(path, like={"w": jax.ShapeDtypeStruct((2, 4), np.float32)})
    Traceback (most recent call last):
    jaxunlearn.manifest.CheckpointMismatchError: ...'w': expected float32[2,4], came ...
    """
    path = absolute(path)
    manifest = read_manifest(path)
    expected = named_leaves(like)
    problems = differences(specs(like), recorded_specs(manifest))
    problems += [
        f"{name!r}: JAX would narrow {leaf.dtype} now; load under jax.enable_x64(True)"
        for name, leaf in expected.items()
        if _narrowed(leaf)
    ]
    if problems:
        raise CheckpointMismatchError(
            f"checkpoint {path} is not of the tree asked for; nothing was loaded:\n  "
            + "\n  ".join(problems)
            + "\nWas it made with another model, head or optimiser?"
        )
    _refuse_several_processes()
    try:
        data = _verified_arrays(path, manifest, expected)
    except CheckpointError:
        if _replaced_meanwhile(path, manifest):
            return load(path, like)
        raise
    leaves = [_place(data[n], leaf, manifest["leaves"][n]) for n, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _verified_arrays(
    path: Path, manifest: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Reads the arrays: first every file is hashed, then orbax may parse, then each leaf is."""
    arrays = manifest["arrays"]
    try:
        verify_files(path, manifest)
        data = _read_arrays(path / arrays, {n: _abstract(leaf) for n, leaf in expected.items()})
    except (FileNotFoundError, ValueError, RuntimeError, KeyError) as error:
        raise damaged(path, [f"{arrays}: {error}"]) from error
    hashes = {name: leaf["sha256"] for name, leaf in manifest["leaves"].items()}
    if broken := [name for name in data if array_sha256(data[name]) != hashes[name]]:
        raise damaged(path, [f"leaf {name!r}: its bytes do not have their hash" for name in broken])
    return data


def _replaced_meanwhile(path: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        return read_manifest(path)["seal"] != manifest["seal"]
    except OSError:
        return False


def _refuse_several_processes() -> None:
    if jax.process_count() > 1:
        raise CheckpointError(
            f"checkpoints are for one process, this program has {jax.process_count()}: use "
            "orbax.checkpoint directly, where all processes take part"
        )


def _could_not_save(path: Path, data: Mapping[str, np.ndarray], error: Exception) -> str:
    needed, free = sum(x.nbytes for x in data.values()), "unknown"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(path.parent).free:,}"
    return (
        f"could not save checkpoint {path}: {error}. It needs {needed:,} bytes; free there: "
        f"{free}. Nothing was published, what was there before is untouched. Free some space or "
        "choose another directory, and save again."
    )


# ------------------------------------------------------------------------ orbax: only here


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """A checkpointer. Imported late, as it is slow; silent, as its errors come as exceptions."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)


def _as_stored(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What orbax takes: no empty arrays (the manifest says all about them), no unsigned nibbles."""
    return {n: x.view(_WIDENED.get(x.dtype.name, x.dtype)) for n, x in arrays.items() if x.size}


def _write_arrays(directory: Path, data: Mapping[str, np.ndarray]) -> None:
    stored = _as_stored(data)
    if not stored:
        directory.mkdir()
        return
    with _orbax() as checkpointer:
        checkpointer.save(directory, stored)


def _read_arrays(directory: Path, abstract: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads arrays of exactly the shapes and dtypes of `abstract`, whose values do not matter."""
    stored = _as_stored(abstract)
    if stored:
        with _orbax() as checkpointer:
            there = dict(checkpointer.metadata(directory).item_metadata)
            for n, x in stored.items():  # Orbax would return NumPy arrays of any other shape.
                if (tuple(there[n].shape), there[n].dtype) != (x.shape, x.dtype):
                    raise ValueError(f"{n!r} is stored as {there[n].dtype}{list(there[n].shape)}")
            stored = checkpointer.restore(directory, stored)
    return {n: np.asarray(stored.get(n, x)).view(x.dtype) for n, x in abstract.items()}


# ----------------------------------------------------- leaves, on the host and where they belong


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _bits(leaf: Any) -> np.ndarray:
    """A leaf on the host, in C order and native byte order; of a typed key its integers."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _describe(leaf: Any, bits: np.ndarray) -> dict[str, Any]:
    described = {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sha256": array_sha256(bits)}
    return described | ({"impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {})


def _place(bits: np.ndarray, like: Any, described: Mapping[str, Any]) -> Any:
    """Makes of verified bits what the leaf of `like` asks for; the table in `load`."""
    if isinstance(like, np.ndarray | np.generic):
        return bits
    leaf = bits
    if _is_key(like):
        leaf = jax.random.wrap_key_data(jnp.asarray(bits), impl=described["impl"])
    on_purpose = isinstance(like, jax.ShapeDtypeStruct) or getattr(like, "committed", False)
    return jax.device_put(leaf, like.sharding if on_purpose else None)


def _narrowed(leaf: Any) -> bool:
    """Whether JAX would silently make another dtype of it, as with float64 in 32-bit mode."""
    on_device = not isinstance(leaf, np.ndarray | np.generic)
    return on_device and leaf.dtype.name in _WIDE and not jax.config.read("jax_enable_x64")


def _abstract(leaf: Any) -> np.ndarray:
    """An array of the shape and dtype that `_bits` of such a leaf has; its values are not set."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return np.empty(leaf.shape, np.dtype(leaf.dtype).newbyteorder("="))
