"""Directories that appear whole or not at all, whatever kills the process that writes them.

    build in .<name>.tmp-<owner>/      fsync everything      rename to <name>/

============================================  =====================================================
guarantee                                     how
============================================  =====================================================
a kill leaves the whole directory or none     built in a temporary sibling, fsynced, one `rename`
replacing never leaves a gap                  new arrays move in beside the old; replacing one file,
                                              the manifest, switches; then the old arrays go
two writers never mix                         the second rename is refused by the system
remains of killed writers go away             `sweep`, before the next is built beside them
============================================  =====================================================

An owner is `<machine>-<process>-<nonce>`: eight hex digits for the set of processes whose ids can
be compared, a process id, and eight random hex digits. Owners are asked after only by name, so
nothing is locked and no dead process can hold a lock.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

from jaxunlearn.manifest import ARRAYS, MANIFEST, read_manifest

_ABANDONED_AFTER = 24 * 3600.0  # seconds, for owners whose life cannot be asked about
_TEMPORARY = re.compile(r"\..+\.tmp-([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}", re.DOTALL)


def new_owner() -> str:
    """A name for one act of writing by this process."""
    return f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def temporary_beside(path: Path, owner: str) -> Path:
    """Where to build what will be at `path`: on the same file system, and known to `sweep`."""
    return path.parent / f".{path.name}.tmp-{owner}"


def sweep(directory: str | os.PathLike[str]) -> list[Path]:
    """Removes the temporaries that killed writers left in `directory`; returns their paths.

    A temporary says in its name who owns it, `.<name>.tmp-<machine>-<process>-<nonce>`;
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


def publish(temporary: Path, path: Path, arrays: str, *, overwrite: bool) -> bool:
    """Makes all of `temporary` durable, then visible at `path` in one step.

    Args:
      temporary: A complete checkpoint: a manifest, and the directory `arrays`.
      path: On the same file system.
      arrays: Name of the directory of arrays, which no other checkpoint has.
      overwrite: Whether a sound checkpoint that is at `path` is replaced.

    Returns:
      False if something is at `path` and stays there.

    Raises:
      OSError: It could not be done; what was at `path` before is untouched.
      CheckpointError: What is at `path` is not a sound checkpoint to replace.
    """
    # What comes before the switch may fail, and changes nothing then; what follows may not.
    for written in (*sorted(temporary.rglob("*")), temporary):
        _fsync(written)
    try:
        os.rename(temporary, path)  # Refused by the system where a directory with content is.
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not overwrite:
            return False
        _replace(temporary, path, arrays)
    with contextlib.suppress(OSError):  # After a power cut: the old one or the new one.
        _fsync(path)
        _fsync(path.parent)
    return True


def _replace(temporary: Path, path: Path, arrays: str) -> None:
    replaced = path / read_manifest(path)["arrays"]
    try:
        os.rename(temporary / arrays, path / arrays)
        _fsync(path)
        os.replace(temporary / MANIFEST, path / MANIFEST)
    except BaseException:
        shutil.rmtree(path / arrays, ignore_errors=True)
        raise
    orphans = [p for p in path.iterdir() if p.name != arrays and _abandoned(ARRAYS, p)]
    for old in (replaced, *orphans):
        shutil.rmtree(old, ignore_errors=True)


def publish_text(path: Path, text: str) -> Path:
    """Writes one file whole or not at all: a temporary sibling, fsynced, then one rename."""
    temporary = path.with_name(f".{path.name}.tmp-{new_owner()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """Eight hex digits for the set of processes whose ids can be compared with ours."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()}:{namespace}".encode()).hexdigest()[:8]


def _abandoned(pattern: re.Pattern[str], path: Path) -> bool:
    if not (owned := pattern.fullmatch(path.name)):
        return False
    machine, process = owned.groups()
    try:
        if machine != _machine():
            return time.time() - path.lstat().st_mtime > _ABANDONED_AFTER
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # Gone meanwhile, or somebody else's process: alive.
        return False
    return False
