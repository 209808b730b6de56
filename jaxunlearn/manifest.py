"""The manifest of a checkpoint: names, shapes and hashes of its arrays, in sealed JSON.

    seal     =  sha256(canonical JSON of the manifest without its seal)
    content  =  sha256(canonical JSON of its leaves)              equal trees, equal contents

============  ===================================================================================
entry         what it holds
============  ===================================================================================
`format`    `"jaxunlearn.checkpoint"`
`schema`    version of this layout, an integer; a newer one is refused
`arrays`    name of the directory that holds the arrays, beside the manifest
`leaves`    name -> `shape`, `dtype`, `sha256` of the bytes in C order; `impl` of a key
`content`   see above
`files`     name, relative to `arrays` -> `bytes`, `sha256`
`metadata`  the caller's own JSON data
`seal`      see above
============  ===================================================================================

A leaf is named by its key path, `dense/bias` or `0/mu/kernel`. The rule of the seal is the same
in every later schema. Hashes find damage, not malice: who can write the files can also write the
hashes.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Specs: TypeAlias = dict[str, tuple[tuple[int, ...], str]]  # name -> shape, name of the dtype

SCHEMA = 1  # Version of the layout; a newer one is refused.
MANIFEST = "manifest.json"
ARRAYS = re.compile(r"arrays-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}")  # arrays-<owner>

_FORMAT = "jaxunlearn.checkpoint"
_MAX_BYTES = 64 * 2**20  # Some 300 000 leaves.
_STORABLE = (np.number, np.bool_, jax.dtypes.prng_key)


class CheckpointError(OSError):
    """A checkpoint could not be written, or what is there is not one that can be read."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint is sound, but it is of another tree than the one asked for."""


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path; ValueError for a URL."""
    if "://" in os.fspath(path):
        raise ValueError(f"expected a path on a mounted file system, got the URL {path!s}")
    return Path(os.path.abspath(path))


def write_manifest(
    directory: Path, arrays: str, leaves: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
    """Writes the sealed manifest of the arrays that lie in `directory/arrays`.

    Args:
      directory: Of the checkpoint.
      arrays: Name of the directory of its arrays, all of whose files are hashed here.
      leaves: name -> JSON description, see the module.
      metadata: JSON data.
    """
    manifest = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "arrays": arrays,
        "leaves": leaves,
        "content": _sha256(canonical_json(leaves).encode()),
        "files": _files(directory / arrays),
        "metadata": metadata,
    }
    manifest["seal"] = _seal(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a checkpoint, its seal verified; the arrays are not touched.

    Returns:
      The entries of the module's table.

    Raises:
      FileNotFoundError: Nothing is at `path`.
      CheckpointError: Not a checkpoint, a damaged manifest, or one of a newer schema.
    """
    path = absolute(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no checkpoint at {path}: save one there, or correct the path")
    if not path.is_dir():
        raise CheckpointError(_not_a_directory(path))
    file = path / MANIFEST
    if not file.is_file():
        if (path / "_METADATA").exists() or (path / "_CHECKPOINT_METADATA").exists():
            hint = "It is a bare orbax checkpoint: restore it with orbax, then `save` the tree."
        else:
            hint = "Another program's directory, or the rest of a deleted checkpoint?"
        raise CheckpointError(f"{path} is not a checkpoint: it has no {MANIFEST}. {hint}")
    if (size := file.stat().st_size) > _MAX_BYTES:
        raise CheckpointError(
            f"{file} has {size:,} bytes, expected at most {_MAX_BYTES:,}: not read"
        )
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"{path} is not a checkpoint: 'format' in its {MANIFEST} is "
                f"{manifest['format']!r}, expected {_FORMAT!r}"
            )
        if manifest["seal"] != _seal(manifest):
            raise damaged(path, [f"{MANIFEST}: edited or damaged, its seal does not match"])
        if manifest["schema"] > SCHEMA:
            raise CheckpointError(
                f"checkpoint {path} has schema {manifest['schema']}, this version reads up to "
                f"{SCHEMA}: update jaxunlearn"
            )
        recorded_specs(manifest)
        if not ARRAYS.fullmatch(manifest["arrays"]):  # Keeps every later path inside `path`.
            raise ValueError(f"arrays in {manifest['arrays']!r}, which is no name of ours")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, [f"{MANIFEST}: not what was written ({error!r})"]) from error
    return manifest


def verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """Hashes every file of the arrays.

    Raises:
      CheckpointError: Lists each file missing, changed, or not of this checkpoint.
    """
    recorded, present = manifest["files"], _files(path / manifest["arrays"])

    def problem(file: str) -> str:
        if file not in present:
            return "missing"
        if file not in recorded:
            return "does not belong here"
        if present[file]["bytes"] != recorded[file]["bytes"]:
            return f"has {present[file]['bytes']:,} bytes, expected {recorded[file]['bytes']:,}"
        return "its bytes do not have their hash"

    broken = [f for f in recorded | present if present.get(f) != recorded.get(f)]
    if broken:
        raise damaged(path, [f"{manifest['arrays']}/{file}: {problem(file)}" for file in broken])


def damaged(path: Path, problems: list[str]) -> CheckpointError:
    """The error that says what is wrong with a checkpoint, a line for each problem."""
    return CheckpointError(
        f"checkpoint {path} is damaged; nothing was loaded:\n  "
        + "\n  ".join(problems)
        + "\nDelete it and make it again, or take it from a backup."
    )


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name, in the order in which the tree is flattened.

    Raises:
      TypeError: A leaf is not an array of numbers (or typed keys).
      ValueError: Two leaves have one name.

    >>> list(named_leaves({"w": np.zeros(2), "b": [np.zeros(1)]}))
    ['b/0', 'w']
    """
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


def specs(tree: Any) -> Specs:
    """Name, shape and dtype of each leaf.

    >>> specs({"w": np.zeros((2, 3)), "b": [np.zeros(1, np.int8)]})
    {'b/0': ((1,), 'int8'), 'w': ((2, 3), 'float64')}
    """
    return {n: (tuple(x.shape), x.dtype.name) for n, x in named_leaves(tree).items()}


def recorded_specs(manifest: Mapping[str, Any]) -> Specs:
    """The `specs` of the tree that was saved."""
    return {n: (tuple(leaf["shape"]), leaf["dtype"]) for n, leaf in manifest["leaves"].items()}


def differences(expected: Specs, came: Specs) -> list[str]:
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


def canonical_json(data: Any, where: str = "data") -> str:
    """The one JSON text of some data: sorted keys, no blanks, ASCII; what hashes are taken of.

    Raises:
      TypeError: Something in it is not JSON data; the message says which entry.

    >>> canonical_json({"b": (1, 2.0), "a": None})
    '{"a":null,"b":[1,2.0]}'
    """
    _require_json(data, where)
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def array_sha256(array: np.ndarray) -> str:
    """sha256, hexadecimal, of the bytes of an array in C order."""
    return _sha256(np.asarray(array, order="C").reshape(-1).view(np.uint8))


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


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
    got = type(data).__name__
    if data is None or type(data) in (str, bool, int):
        return
    if isinstance(data, float):
        if type(data) is float and math.isfinite(data):
            return
        got = repr(data)
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            _require_json(value, f"{where}[{i}]")
        return
    elif isinstance(data, dict):
        odd = [key for key in data if type(key) is not str]
        if not odd:
            for key, value in data.items():
                _require_json(value, f"{where}[{key!r}]")
            return
        got = f"the key {odd[0]!r}"
    raise TypeError(
        f"{where} must be JSON data (str, bool, int, finite float, None, list, dict with str "
        f"keys), got {got}: give .tolist() or a hash of an array, the name of a function"
    )
