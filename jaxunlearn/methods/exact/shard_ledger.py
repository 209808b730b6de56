"""What a sharded training keeps on disk: which ids are forgotten, and what was trained.

    directory/forgotten/<hash>/              ids that must not come back: a set that only grows
    directory/shard-<s>/slice-<r>-<hash>/    the state after a stage, and the ids it was trained on

Everything is a checkpoint of `jaxunlearn.checkpoint`: published by one rename, so whole or absent,
and verified when it is read. There is no lock, because nothing is ever edited:

| situation                                | why it is harmless                                 |
|------------------------------------------|----------------------------------------------------|
| two processes forget different ids       | two entries; the set is their union                |
| two processes finish the same stage      | the same name and bits; the second is dropped      |
| a stage is published by a process that   | before it answers, that process reads the set      |
| had not seen a deletion yet              | again, and removes what it should not have made    |
| a process is killed while it learns more | the states it was to replace stay, and know nobody |
|                                          | forgotten; when they would, they are removed       |
| killed while entries are joined into one | the joint one is published before the parts go     |
| killed while a checkpoint is removed     | it was renamed first; the rest is swept away       |
| an entry of `forgotten` is damaged       | an error: what is to be forgotten is never guessed |
| a stage is damaged, or is something else | a warning names it; it is removed and run again    |
"""

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.manifest import CheckpointError, canonical_json, read_manifest
from jaxunlearn.publishing import new_owner, sweep, temporary_beside

_STAGE = re.compile(r"slice-[0-9]{3,}-[0-9a-f]{64}")


class DamagedStageWarning(UserWarning):
    """A checkpoint of a stage could not be believed; it is removed and the stage trained again."""


# --------------------------------------------------------------------------- what is forgotten


def forgotten(directory: Path) -> frozenset[int]:
    """All ids that were ever asked to be forgotten, finished or not.

    Raises:
      CheckpointError: an entry is damaged.
    """
    folder = directory / "forgotten"
    while True:
        names, ids = _entries(folder), set()
        with contextlib.suppress(FileNotFoundError):
            for name in names:
                ids |= set(read_manifest(folder / name)["metadata"]["ids"])
            if names == _entries(folder):  # A listing that overlaps a change can miss both sides.
                return frozenset(ids)


def ask_to_forget(directory: Path, ids: Iterable[int]) -> None:
    """Writes a request down. When this returns the ids are forgotten, whatever happens next."""
    _enter(directory / "forgotten", sorted(ids))


def join(directory: Path) -> None:
    """One entry in place of many, so that reading stays one file after a thousand requests."""
    folder = directory / "forgotten"
    parts = _entries(folder)
    if len(parts) < 2:
        return
    with contextlib.suppress(FileNotFoundError):  # Another process is joining them.
        ids = {i for name in parts for i in read_manifest(folder / name)["metadata"]["ids"]}
        whole = _enter(folder, sorted(ids))
        for name in parts - {whole}:
            discard(folder / name)


def _enter(folder: Path, ids: list[int]) -> str:
    name = hashlib.sha256(canonical_json(ids).encode()).hexdigest()
    with contextlib.suppress(FileExistsError):
        checkpoint.save(folder / name, {}, metadata={"ids": ids})
    return name


def _entries(folder: Path) -> frozenset[str]:
    if not folder.is_dir():
        return frozenset()
    return frozenset(n for n in os.listdir(folder) if re.fullmatch("[0-9a-f]{64}", n))


# ------------------------------------------------------------------------------ what was trained


def stage_path(directory: Path, shard: int, name: str) -> Path:
    """Where the checkpoint of a stage lies."""
    return directory / f"shard-{shard:04d}" / name


def save_stage(path: Path, state: Any, ids: np.ndarray, recipe: Mapping[str, Any]) -> None:
    """Publishes a state with the ids that it knows; an equal one that is there already stays.

    Raises:
      CheckpointError: disk full, directory read-only, ...; nothing was published.
    """
    metadata = {"ids": np.sort(ids).tolist(), "recipe": dict(recipe)}
    with contextlib.suppress(FileExistsError):
        checkpoint.save(path, state, metadata=metadata)


def load_stage(path: Path, like: Any) -> Any | None:
    """The verified state at `path`; None where there is none, or none that can be believed.

    Warns:
      DamagedStageWarning: what is there is damaged or something else; it is removed.
    """
    try:
        return checkpoint.load(path, like)
    except FileNotFoundError:
        return None
    except CheckpointError as error:
        warnings.warn(
            f"{path} could not be used: it is removed and the stage trained again. Reason: {error}",
            DamagedStageWarning,
            stacklevel=2,
        )
        discard(path)
        return None


def discard(path: Path) -> None:
    """Removes a checkpoint: out of sight in one rename, then its bytes."""
    aside = temporary_beside(path, new_owner())
    with contextlib.suppress(FileNotFoundError):  # Another process was first.
        os.rename(path, aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()


def remove_forgotten(directory: Path, ids: frozenset[int]) -> int:
    """Removes every stage that was trained on one of `ids`, or cannot say on what it was trained.

    Remains of killed processes are swept away on the way.

    Returns:
      How many stages were removed.

    Cost: reads the manifest of every stage, whose size is that of its list of ids.
    """
    if not directory.is_dir():
        return 0
    removed = 0
    folders = [*directory.glob("shard-*"), directory / "forgotten"]
    for folder in filter(Path.is_dir, folders):
        sweep(folder)
        for path in folder.iterdir():
            if _STAGE.fullmatch(path.name) and _knows(path, ids):
                discard(path)
                removed += 1
    return removed


def _knows(path: Path, ids: frozenset[int]) -> bool:
    try:
        return not ids.isdisjoint(read_manifest(path)["metadata"]["ids"])
    except FileNotFoundError:
        return False
    except (CheckpointError, KeyError, TypeError):
        return True
