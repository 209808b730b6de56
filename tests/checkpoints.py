"""What the tests of checkpoints share: small trees, and a second road to the seal."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
