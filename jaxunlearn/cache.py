"""Ensembles that are trained once: a store addressed by everything that decides the result.

    name = label-sha256(schema:canonical JSON of key)

The key says what the result depends on: hashes of data and split, configuration, random keys,
`code_version` of the code that trains. Another ingredient, another address: an old result is
missed, never mistaken. Entries are checkpoints (`jaxunlearn.checkpoint`): published whole, verified
when read, with the key in the manifest for people to read.

===================================  ==============================================================
what is met                          what happens
===================================  ==============================================================
a sound entry                        read, verified, returned: a hit
nothing                              made, published, returned
a damaged or partial entry           moved to `root/quarantine`, `DamagedEntryWarning`, made again
another process publishes it first   theirs is read and returned, ours dropped: all see one result
disk full or read-only               `UnsavedEntryWarning`; the result is returned all the same
remains of a killed process          swept away when something is next published
an entry of another tree             `CheckpointMismatchError`: the key lacks an ingredient
===================================  ==============================================================

Two processes that miss at the same moment both make the result; nobody waits for a lock, so no dead
process can hold one.
"""

import hashlib
import importlib.metadata
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from jaxunlearn import checkpoint, manifest

_MAX_LABEL = 48  # Characters; with the address a name stays far below the 255 of file systems.


class DamagedEntryWarning(UserWarning):
    """An entry could not be believed, was set aside, and is made again."""


class UnsavedEntryWarning(UserWarning):
    """A result could not be stored; it is returned, but the next run will make it again."""


class Cached(NamedTuple):
    """What `Cache.get_or_make` returns."""

    tree: Any  # of the structure of `like`
    hit: bool  # whether it was read instead of made
    name: str  # of the entry, a directory below the root
    seconds: float  # wall time of reading, or of making and storing


@dataclass(frozen=True)
class Cache:
    """A directory of results. Made when first written to; safe to delete at any time.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> like = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = Cache(directory)
    ...     for seed in (0, 0, 1):
    ...         made = cache.get_or_make({"seed": seed}, lambda: {"w": jnp.ones(3)}, like)
    ...         print(made.hit)
    False
    True
    False
    """

    root: str | os.PathLike[str]

    def get_or_make(
        self,
        key: Mapping[str, Any],
        make: Callable[[], Any],
        like: Any,
        *,
        label: str = "entry",
    ) -> Cached:
        """Reads the result of `make()` if it was made before under this key, else makes it.

        Args:
          key: JSON data, all that `make` depends on. Order of the entries does not matter.
          make: Makes the tree of arrays; called at most once.
          like: A tree of the same names, shapes and dtypes, as for `checkpoint.load`;
            `jax.eval_shape` of what `make` computes is one.
          label: How the name begins, for people. Every character outside `A-Za-z0-9._-` becomes
            `_`, so that nothing is ever written outside the root.

        Raises:
          TypeError: The key is not JSON data; the message says which entry.
          CheckpointMismatchError: `make` returned, or the entry is of, another tree.
          ValueError: A link inside the root leads out of it.
        """
        start = time.perf_counter()
        name = entry_name(key, label)
        found = self._read(name, like)
        if found is not None:
            return Cached(found, True, name, time.perf_counter() - start)
        tree = make()
        if problems := manifest.differences(manifest.specs(like), manifest.specs(tree)):
            raise checkpoint.CheckpointMismatchError(
                f"make() returned another tree than `like` for cache entry {name}; nothing was "
                "stored:\n  " + "\n  ".join(problems)
            )
        tree = self._publish(name, tree, like, key)
        return Cached(tree, False, name, time.perf_counter() - start)

    def _read(self, name: str, like: Any) -> Any | None:
        """The verified tree, or None where there is none; what is damaged is set aside."""
        try:
            return checkpoint.load(self._inside(name), like)
        except FileNotFoundError:
            return None
        except checkpoint.CheckpointMismatchError as error:
            error.add_note(
                f"Cache entry {name} was made under the same key: add to the key what has changed."
            )
            raise
        except checkpoint.CheckpointError as error:
            self._set_aside(name, error)
            return None

    def _publish(self, name: str, tree: Any, like: Any, key: Mapping[str, Any]) -> Any:
        """Stores the tree; returns it, or the one that another process stored first."""
        try:
            try:
                checkpoint.save(self._inside(name), tree, metadata={"key": dict(key)})
            except FileExistsError:
                theirs = self._read(name, like)
                if theirs is not None:
                    return theirs
                checkpoint.save(self._inside(name), tree, metadata={"key": dict(key)})
        except (FileExistsError, checkpoint.CheckpointError) as error:
            if isinstance(error, checkpoint.CheckpointMismatchError):
                raise
            warnings.warn(
                f"cache entry {name} was not stored, its result is used all the same: {error}",
                UnsavedEntryWarning,
                stacklevel=3,
            )
        return tree

    def _set_aside(self, name: str, error: Exception) -> None:
        quarantine = self._inside("quarantine")
        n = 1
        while os.path.lexists(aside := quarantine / f"{name}-{n}"):
            n += 1
        try:
            quarantine.mkdir(exist_ok=True)
            os.rename(self._inside(name), aside)
            outcome = f"it was moved to {aside}"
        except FileNotFoundError:
            return  # Another process has set it aside.
        except OSError as failure:
            outcome = f"it could not be moved away ({failure}), delete it"
        warnings.warn(
            f"cache entry {name} could not be used and is made again; {outcome}. Reason: {error}",
            DamagedEntryWarning,
            stacklevel=4,
        )

    def _inside(self, name: str) -> Path:
        path = Path(os.path.abspath(self.root)) / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link that may lead out of the cache: remove it")
        return path


def entry_name(key: Mapping[str, Any], label: str = "entry") -> str:
    """The name of an entry: a harmless form of the label, then 64 hex digits of the key's hash.

    >>> name = entry_name({"seed": 0}, "../oracles of class 3")
    >>> name[:19], len(name)
    ('oracles_of_class_3-', 83)
    """
    key_text = manifest.canonical_json(dict(key), "cache key")
    text = f"{manifest.SCHEMA}:{key_text}"
    harmless = re.sub(r"[^A-Za-z0-9._-]", "_", label).lstrip("._-")[:_MAX_LABEL]
    return f"{harmless or 'entry'}-{hashlib.sha256(text.encode()).hexdigest()}"


def code_version(*modules: ModuleType) -> str:
    """Hash of the code that decides a result: the given modules, JAX, the kind of device.

    Of a module the bytes of its source file, of a package those of every `.py` file in it, as
    they are on disk now; the versions of jax and jaxlib; the backend and kind of the default
    device; the settings of JAX that change numbers (64 bit, precision of products, random bits).

    Returns:
      64 hex digits.

    Raises:
      ValueError: A module has no Python source.

    >>> code_version(checkpoint) == code_version(checkpoint)
    True
    """
    environment = {
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        **{name: str(getattr(jax.config, name)) for name in _NUMERIC_SETTINGS},
    }
    digest = hashlib.sha256(manifest.canonical_json(environment).encode())
    for module in sorted(modules, key=lambda module: module.__name__):
        for name, source in _sources(module):
            digest.update(f"\0{module.__name__}\0{name}\0{len(source)}\0".encode())
            digest.update(source)
    return digest.hexdigest()


_NUMERIC_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def _sources(module: ModuleType) -> list[tuple[str, bytes]]:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ValueError(
            f"module {module.__name__!r} has no Python source (its file: {file}): pass modules "
            "written in Python, and put the version of others into the key"
        )
    if not hasattr(module, "__path__"):
        return [(Path(file).name, Path(file).read_bytes())]
    package = Path(file).parent
    return [
        (f.relative_to(package).as_posix(), f.read_bytes()) for f in sorted(package.rglob("*.py"))
    ]


def default_root() -> Path:
    """`$JAXUNLEARN_CACHE`, else `$XDG_CACHE_HOME/jaxunlearn`, else `~/.cache/jaxunlearn`.

    Empty variables count as unset, as does a relative `XDG_CACHE_HOME` (its standard says so).
    """
    if chosen := os.environ.get("JAXUNLEARN_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".cache") / "jaxunlearn"
