"""Trees of arrays on disk: whole or not there at all, and checked before they are believed.

    load(save(path, tree), like=tree)  =  tree        bit for bit, or an error and nothing applied

A checkpoint is one directory::

    path/manifest.json      names, shapes, dtypes, hashes, your metadata; JSON, sealed by a hash
    path/arrays-<owner>/    the arrays, written and read by orbax

Leaves go by their key path, ``dense/bias`` or ``0/mu/kernel``: a flat dictionary, whatever the
containers were, so orbax never sees the structure and the ``like`` of ``load`` gives it back.

============================================  =====================================================
guarantee                                     how
============================================  =====================================================
a kill leaves the whole checkpoint or none    built in a temporary sibling, fsynced, one ``rename``
``overwrite=True`` never leaves a gap         new arrays move in beside the old; replacing one file,
                                              the manifest, switches; then the old arrays go
damage is noticed before arrays are parsed    sha256 of every file, and of the bytes of every leaf
no code is run                                JSON and arrays only; a pickle is refused by name
remains of killed writers go away             the next ``save`` beside them sweeps (see `sweep`)
============================================  =====================================================

Hashes find damage, not malice: who can write the files can also write the hashes.

Seal, in this and every later schema: sha256 of the canonical JSON (`canonical_json`) of the
manifest without its ``seal``. Content: the same of its ``leaves``; equal trees, equal contents.

Cost: a host copy of what is not on the host already; a save hashes the bytes twice and writes them
once; a load hashes them twice. Programs of several processes are refused.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SCHEMA = 1  # Version of the layout; a newer one is refused.

_FORMAT = "jaxunlearn.checkpoint"
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 * 2**20  # Some 300 000 leaves.
_ABANDONED_AFTER = 24 * 3600.0  # seconds, for owners whose life cannot be asked about
_TEMPORARY = re.compile(r"\..+\.tmp-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}", re.DOTALL)
_ARRAYS = re.compile(r"arrays-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}")
_WIDENED = {"uint4": np.uint8, "uint2": np.uint8}  # Dtypes that the storage does not know.
_WIDE = ("int64", "uint64", "float64", "complex128")  # Only in the 64-bit mode of JAX.
_STORABLE = (np.number, np.bool_, jax.dtypes.prng_key)


class CheckpointError(OSError):
    """A checkpoint could not be written, or what is there is not one that can be read."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint is sound, but it is of another tree than the one asked for."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a tree of arrays to the directory ``path``, all of it or nothing.

    Args:
      path: A directory that does not exist yet; its parents are made. On a mounted file system.
      tree: Any pytree whose leaves are arrays, of JAX (typed keys too, any sharding within this
        process) or of NumPy, of any numeric dtype, any shape (0-d and empty ones too).
      metadata: JSON data to keep beside the arrays: step, configuration, where it came from.
        Tuples come back as lists. `read_manifest` gives it back.
      overwrite: Replace the checkpoint that is at ``path``. Readers see the old one until the new
        one is complete. Anything but a sound checkpoint is left alone and refused.

    Returns:
      The absolute path.

    Raises:
      TypeError: A leaf is not an array of numbers, or ``metadata`` is not JSON data.
      ValueError: ``path`` is a URL, or two leaves have one name (``{"a/b": .}`` and
        ``{"a": {"b": .}}``).
      FileExistsError: Something is at ``path`` and ``overwrite`` is False.
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
    path, leaves, metadata = _absolute(path), _named_leaves(tree), dict(metadata or {})
    canonical_json(metadata, "metadata")
    if os.path.lexists(path):
        if not overwrite:
            raise FileExistsError(
                f"{path} exists already: choose another path, or pass overwrite=True to replace it"
            )
        read_manifest(path)  # Raises unless it is ours to replace.
    _refuse_several_processes()
    data = {name: _bits(leaf) for name, leaf in leaves.items()}
    owner = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    arrays, temporary = f"arrays-{owner}", path.parent / f".{path.name}.tmp-{owner}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary.mkdir()
        described = {name: _describe(leaf, data[name]) for name, leaf in leaves.items()}
        _write_arrays(temporary / arrays, data)
        for child in sorted((temporary / arrays).rglob("*")):
            _fsync(child)
        manifest = {
            "format": _FORMAT,
            "schema": SCHEMA,
            "arrays": arrays,
            "leaves": described,
            "content": _sha256(canonical_json(described).encode()),
            "files": _files(temporary / arrays),
            "metadata": metadata,
        }
        manifest["seal"] = _seal(manifest)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
        for child in (temporary / _MANIFEST, temporary / arrays, temporary):
            _fsync(child)
        published = _publish(temporary, path, arrays, overwrite)
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
    """Reads a checkpoint into the structure of ``like``, after checking all of it.

    Args:
      path: What `save` wrote.
      like: A tree with the expected names, shapes and dtypes. A leaf says what is made of it:

        ==============================================  ===========================================
        leaf of ``like``                                leaf that comes back
        ==============================================  ===========================================
        ``jax.ShapeDtypeStruct`` with a sharding        JAX array, so sharded
        ``jax.ShapeDtypeStruct`` without                JAX array, on the default device
        JAX array put on a device or mesh on purpose    JAX array, sharded like it
        any other JAX array                             JAX array, on the default device
        NumPy array or scalar                           NumPy array (of shape ``()`` for a scalar)
        ==============================================  ===========================================

    Returns:
      A new tree of the structure of ``like``; ``like`` itself is only looked at.

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
    jaxunlearn.checkpoint.CheckpointMismatchError: ...'w': expected float32[2,4], came ...
    """
    path = _absolute(path)
    manifest = read_manifest(path)
    expected = _named_leaves(like)
    problems = differences(specs(like), _recorded_specs(manifest))
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


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint, its seal verified; the arrays are not touched.

    Returns:
      ``schema``, ``leaves`` (name -> shape, dtype, sha256 of the bytes in C order), ``content``,
      ``files`` (name -> bytes, sha256), ``metadata`` as given to `save`, and the rest of the table.

    Raises:
      FileNotFoundError: Nothing is at ``path``.
      CheckpointError: Not a checkpoint, a damaged manifest, or one of a newer schema.
    """
    path = _absolute(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no checkpoint at {path}: save one there, or correct the path")
    if not path.is_dir():
        raise CheckpointError(_not_a_directory(path))
    file = path / _MANIFEST
    if not file.is_file():
        if (path / "_METADATA").exists() or (path / "_CHECKPOINT_METADATA").exists():
            hint = "It is a bare orbax checkpoint: restore it with orbax, then `save` the tree."
        else:
            hint = "Another program's directory, or the rest of a deleted checkpoint?"
        raise CheckpointError(f"{path} is not a checkpoint: it has no {_MANIFEST}. {hint}")
    if (size := file.stat().st_size) > _MAX_MANIFEST_BYTES:
        raise CheckpointError(
            f"{file} has {size:,} bytes, expected at most {_MAX_MANIFEST_BYTES:,}: not read"
        )
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"{path} is not a checkpoint: 'format' in its {_MANIFEST} is "
                f"{manifest['format']!r}, expected {_FORMAT!r}"
            )
        if manifest["seal"] != _seal(manifest):
            raise _damaged(path, [f"{_MANIFEST}: edited or damaged, its seal does not match"])
        if manifest["schema"] > SCHEMA:
            raise CheckpointError(
                f"checkpoint {path} has schema {manifest['schema']}, this version reads up to "
                f"{SCHEMA}: update jaxunlearn"
            )
        _recorded_specs(manifest)
        if not _ARRAYS.fullmatch(manifest["arrays"]):  # Keeps every later path inside `path`.
            raise ValueError(f"arrays in {manifest['arrays']!r}, which is no name of ours")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, [f"{_MANIFEST}: not what was written ({error!r})"]) from error
    return manifest


def specs(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name, shape and dtype of each leaf.

    >>> specs({"w": np.zeros((2, 3)), "b": [np.zeros(1, np.int8)]})
    {'b/0': ((1,), 'int8'), 'w': ((2, 3), 'float64')}
    """
    return {n: (tuple(x.shape), x.dtype.name) for n, x in _named_leaves(tree).items()}


def differences(
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    came: Mapping[str, tuple[tuple[int, ...], str]],
) -> list[str]:
    """A line for each leaf in which two `specs` differ by presence, shape or dtype.

    >>> differences(specs({"w": np.zeros(2), "b": np.zeros(1)}), specs({"w": np.zeros(3)}))
    ["missing 'b': expected float64[1]", "mismatch 'w': expected float64[2], came float64[3]"]
    """

    def show(spec: tuple[tuple[int, ...], str]) -> str:
        return f"{spec[1]}[{','.join(map(str, spec[0]))}]"

    both = [name for name in expected if name in came and expected[name] != came[name]]
    return (
        [f"missing {n!r}: expected {show(expected[n])}" for n in expected if n not in came]
        + [f"extra {n!r}: came {show(came[n])}" for n in came if n not in expected]
        + [f"mismatch {n!r}: expected {show(expected[n])}, came {show(came[n])}" for n in both]
    )


def sweep(directory: str | os.PathLike[str]) -> list[Path]:
    """Removes the temporaries that killed writers left in ``directory``; returns their paths.

    A temporary says in its name who owns it, ``.<name>.tmp-<machine>-<process>-<nonce>``;
    nothing else is touched.

    ==========================================  ========================================
    owner                                       removed
    ==========================================  ========================================
    a process of this machine, dead             at once
    a process of this machine, alive            never (a reused process id delays it)
    unknown (another machine or container)      when untouched for 24 hours
    ==========================================  ========================================
    """
    left = [p for p in sorted(Path(directory).iterdir()) if _abandoned(_TEMPORARY, p)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return left


def canonical_json(data: Any, where: str = "data") -> str:
    """The one JSON text of some data: sorted keys, no blanks, ASCII; what hashes are taken of.

    Raises:
      TypeError: Something in it is not JSON data; the message says which entry.

    >>> canonical_json({"b": (1, 2.0), "a": None})
    '{"a":null,"b":[1,2.0]}'
    """
    _require_json(data, where)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
    """Reads arrays of exactly the shapes and dtypes of ``abstract``, whose values do not matter."""
    stored = _as_stored(abstract)
    if stored:
        with _orbax() as checkpointer:
            there = dict(checkpointer.metadata(directory).item_metadata)
            for n, x in stored.items():  # Orbax would return NumPy arrays of any other shape.
                if (tuple(there[n].shape), there[n].dtype) != (x.shape, x.dtype):
                    raise ValueError(f"{n!r} is stored as {there[n].dtype}{list(there[n].shape)}")
            stored = checkpointer.restore(directory, stored)
    return {n: np.asarray(stored.get(n, x)).view(x.dtype) for n, x in abstract.items()}


# --------------------------------------------------------------------------- leaves and names


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, in the order in which the tree is flattened."""
    named: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves of the tree are named {name!r}: rename one of the keys")
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(
                f"leaf {name!r} must be an array, got {type(leaf).__name__}: make it one "
                "(jnp.asarray), or keep it in `metadata`"
            )
        if not any(jnp.issubdtype(leaf.dtype, kind) for kind in _STORABLE):
            raise TypeError(
                f"leaf {name!r} must be an array of numbers, got dtype {leaf.dtype}: objects and "
                "text are not stored (that would need pickle); keep text in `metadata`"
            )
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _recorded_specs(manifest: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {n: (tuple(leaf["shape"]), leaf["dtype"]) for n, leaf in manifest["leaves"].items()}


def _bits(leaf: Any) -> np.ndarray:
    """A leaf on the host, in C order and native byte order; of a typed key its integers."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf, order="C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _describe(leaf: Any, bits: np.ndarray) -> dict[str, Any]:
    described = {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sha256": _array_sha256(bits)}
    return described | ({"impl": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {})


def _place(bits: np.ndarray, like: Any, described: Mapping[str, Any]) -> Any:
    """Makes of verified bits what the leaf of ``like`` asks for; the table in `load`."""
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


# ------------------------------------------------------------------------ hashes and checks


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _array_sha256(array: np.ndarray) -> str:
    return _sha256(np.asarray(array, order="C").reshape(-1).view(np.uint8))


def _seal(manifest: Mapping[str, Any]) -> str:
    return _sha256(canonical_json({k: v for k, v in manifest.items() if k != "seal"}).encode())


def _files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file below a directory."""
    described = {}
    for file in sorted(directory.rglob("*")):
        if not file.is_dir():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            name = file.relative_to(directory).as_posix()
            described[name] = {"bytes": file.stat().st_size, "sha256": digest}
    return described


def _verified_arrays(
    path: Path, manifest: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Reads the arrays: first every file is hashed, then orbax may parse, then each leaf is."""
    directory = path / manifest["arrays"]
    try:
        present = _files(directory)
        recorded = manifest["files"]
        broken = [f for f in recorded if present.get(f) != recorded[f]]
        broken += [f for f in present if f not in recorded]
        if broken:
            raise _damaged(
                path, [f"{directory.name}/{f}: {_how(f, recorded, present)}" for f in broken]
            )
        data = _read_arrays(directory, {n: _abstract(leaf) for n, leaf in expected.items()})
    except (FileNotFoundError, ValueError, RuntimeError, KeyError) as error:
        raise _damaged(path, [f"{directory.name}: {error}"]) from error
    hashes = {name: leaf["sha256"] for name, leaf in manifest["leaves"].items()}
    if broken := [name for name in data if _array_sha256(data[name]) != hashes[name]]:
        raise _damaged(
            path, [f"leaf {name!r}: its bytes do not have their hash" for name in broken]
        )
    return data


def _abstract(leaf: Any) -> np.ndarray:
    """An array of the shape and dtype that `_bits` of such a leaf has; its values are not set."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return np.empty(leaf.shape, np.dtype(leaf.dtype).newbyteorder("="))


def _how(file: str, recorded: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    if file not in present:
        return "missing"
    if file not in recorded:
        return "does not belong here"
    if present[file]["bytes"] != recorded[file]["bytes"]:
        return f"has {present[file]['bytes']:,} bytes, expected {recorded[file]['bytes']:,}"
    return "its bytes do not have their hash"


def _damaged(path: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} is damaged; nothing was loaded:\n  "
        + "\n  ".join(problems)
        + "\nDelete it and make it again, or take it from a backup."
    )


def _not_a_directory(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(6)
    expected = f"{path} is a file, expected a directory written by `save`. "
    if path.suffix in (".npy", ".npz") or head == b"\x93NUMPY":
        return expected + "Read it by numpy.load(..., allow_pickle=False), then `save` the arrays."
    pickles = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")
    if path.suffix in pickles or head[:1] == b"\x80" or head[:2] == b"PK":
        return expected + (
            "It looks like a pickle, which can run any code when read: never read here. Export the "
            "arrays as .npz or .safetensors in the program that made it, then `save` them."
        )
    return expected + "Read it by the program that made it, then `save` the arrays."


def _require_json(data: Any, where: str) -> None:
    if data is None or type(data) in (str, bool, int):
        return
    if type(data) is float and math.isfinite(data):
        return
    got = repr(data) if isinstance(data, float) else type(data).__name__
    if isinstance(data, dict):
        odd = [key for key in data if type(key) is not str]
        for key, value in () if odd else data.items():
            _require_json(value, f"{where}[{key!r}]")
        if not odd:
            return
        got = f"the key {odd[0]!r}"
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            _require_json(value, f"{where}[{i}]")
        return
    raise TypeError(
        f"{where} must be JSON data (str, bool, int, finite float, None, list, dict with str "
        f"keys), got {got}: give .tolist() or a hash of an array, the name of a function"
    )


# --------------------------------------------------------------------------- files and owners


def _absolute(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path):
        raise ValueError(f"expected a path on a mounted file system, got the URL {path!s}")
    return Path(os.path.abspath(path))


def _refuse_several_processes() -> None:
    if jax.process_count() > 1:
        raise CheckpointError(
            f"checkpoints are for one process, this program has {jax.process_count()}: use "
            "orbax.checkpoint directly, where all processes take part"
        )


def _publish(temporary: Path, path: Path, arrays: str, overwrite: bool) -> bool:
    """Switches to the new checkpoint in one step; False if somebody else's is there already.

    What comes before the switch may fail, and changes nothing then; what follows may not.
    """
    try:
        os.rename(temporary, path)  # Refused by the system where a directory with content is.
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not overwrite:
            return False
        replaced = path / read_manifest(path)["arrays"]
        try:
            os.rename(temporary / arrays, path / arrays)
            _fsync(path)
            os.replace(temporary / _MANIFEST, path / _MANIFEST)
        except BaseException:
            shutil.rmtree(path / arrays, ignore_errors=True)
            raise
        orphans = [p for p in path.iterdir() if p.name != arrays and _abandoned(_ARRAYS, p)]
        for old in (replaced, *orphans):
            shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):  # After a power cut: the old one or the new one.
        _fsync(path)
        _fsync(path.parent)
    return True


def _replaced_meanwhile(path: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        return read_manifest(path)["seal"] != manifest["seal"]
    except OSError:
        return False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _could_not_save(path: Path, data: Mapping[str, np.ndarray], error: Exception) -> str:
    needed, free = sum(x.nbytes for x in data.values()), "unknown"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(path.parent).free:,}"
    return (
        f"could not save checkpoint {path}: {error}. It needs {needed:,} bytes; free there: "
        f"{free}. Nothing was published, what was there before is untouched. Free some space or "
        "choose another directory, and save again."
    )


def _host() -> str:
    """Eight hex digits for the set of processes whose ids can be compared with ours."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return _sha256(f"{platform.node()}:{namespace}".encode())[:8]


def _abandoned(pattern: re.Pattern[str], path: Path) -> bool:
    if not (owned := pattern.fullmatch(path.name)):
        return False
    host, process = owned.groups()
    try:
        if host != _host():
            return time.time() - path.lstat().st_mtime > _ABANDONED_AFTER
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # Gone meanwhile, or somebody else's process: alive.
        return False
    return False
