"""Archives of images: MNIST, CIFAR-10 and CIFAR-100 as `.npz` files, read without trusting them.

`<data_dir>/<name>/<name>.npz` or `<data_dir>/<name>.npz`, with `data_dir` the argument or else the
environment variable JAXUNLEARN_DATA. Members, for each split in (`train`, `test`):

| member              | holds                                                                      |
|---------------------|----------------------------------------------------------------------------|
| `<split>_images`    | uint8 (n, H, W) or (n, H, W, C)                                            |
| `<split>_residual`  | or instead uint8 (3, n, H, W): the same images, filtered (`unfilter`)      |
| `<split>_labels`    | integers (n,); for CIFAR-100 `<split>_fine` and `<split>_coarse`           |
| `class_names`       | optional names of the labels; for CIFAR-100 `fine_names`, `coarse_names`   |

The id of a training row is its place in the archive; test rows continue the count. Images are
scaled as `jaxunlearn.data.images` says.
"""

import contextlib
import dataclasses
import functools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.images import image_source
from jaxunlearn.data.sources import Source
from jaxunlearn.naming import did_you_mean

MAX_ARCHIVE_BYTES = 2**31  # more than all of CIFAR-10, less than what a small machine chokes on
# What reading a damaged zip file can raise (NotImplementedError is a RuntimeError).
_DAMAGE = (
    *(ValueError, OSError, EOFError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, struct.error, lzma.LZMAError, zlib.error),
)
_ORIGINS = {
    "mnist": "http://yann.lecun.com/exdb/mnist",
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
}


def read_npz(
    path: str | Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    max_bytes: int = MAX_ARCHIVE_BYTES,
) -> dict[str, np.ndarray]:
    """Members of an `.npz` archive, checked before anything of their size is allocated; no code can
    run.

    | archive                                        | what happens                              |
    |------------------------------------------------|-------------------------------------------|
    | not a zip file (a pickle, a broken download)   | `ValueError`: pickles are never read      |
    | a required member is absent                    | `ValueError` naming it, and what is there |
    | a member of Python objects                     | `ValueError`: refused                     |
    | header and stored size disagree                | `ValueError` before allocation            |
    | the members read exceed `max_bytes`            | `ValueError` before allocation            |
    | bytes flipped or missing                       | `ValueError` naming the member            |

    Args:
      path: the file.
      required, optional: member names without `.npy`.
      max_bytes: most that the members read may take together.

    Returns:
      member name -> array, the required ones and those optional ones that are there.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
        except _DAMAGE as error:
            raise ValueError(
                f"{path} is not a readable .npz archive ({error}). Pickles are never read: convert "
                "the data once, where you trust it, with np.savez(path, name=array, ...)."
            ) from error
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [name for name in required if name not in members]
        if missing:
            raise ValueError(f"{path}: members {missing} are missing; it has {sorted(members)}.")
        wanted = [name for name in (*required, *optional) if name in members]
        total = sum(members[name].file_size for name in wanted)
        if total > max_bytes:
            raise ValueError(f"{path} unpacks to {total} bytes; at most {max_bytes} are accepted.")
        arrays: dict[str, np.ndarray] = {}
        for name in wanted:
            try:
                with archive.open(members[name]) as stream:
                    _check_npy_header(stream, members[name].file_size)
                with archive.open(members[name]) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            except _DAMAGE as error:
                raise ValueError(f"{path}, member '{name}': {error}") from error
    return arrays


def _check_npy_header(stream: Any, file_size: int) -> None:
    """Refuse arrays of objects, and shapes that do not account for exactly the stored bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version} is not accepted; save it again with np.savez.")
    read_header: Callable[..., Any] = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is refused, since reading it can run code.")
    size = functools.reduce(lambda product, length: product * length, shape, dtype.itemsize)
    if min(shape, default=0) < 0 or size + stream.tell() != file_size:
        raise ValueError(
            f"its header announces {shape} {dtype}, {size} bytes, but "
            f"{file_size - stream.tell()} are stored."
        )


def unfilter(residual: np.ndarray) -> np.ndarray:
    """Undo the reversible image filter: uint8 (3, n, H, W) -> uint8 (n, H, W, 3), exactly.

    The filter makes images compress better: planes G, R - G, B - G, each replaced by its
    differences down the rows and then along the columns, all modulo 256. Running sums undo it.

    Example:
      >>> unfilter(np.array([5, 250, 1], np.uint8).reshape(3, 1, 1, 1)).ravel().tolist()
      [255, 5, 6]
    """
    planes = np.cumsum(residual, axis=2, dtype=np.uint8)
    np.cumsum(planes, axis=3, dtype=np.uint8, out=planes)
    green = planes[0]
    return np.stack([green + planes[1], green, green + planes[2]], axis=-1)


def mnist(*, data_dir: str | Path | None = None, validation: float = 0.1) -> Source:
    """MNIST from `mnist.npz`. Arguments, ids and errors as for `cifar100`."""
    return _from_archive("mnist", {"y": "labels"}, {}, data_dir, validation)


def cifar10(*, data_dir: str | Path | None = None, validation: float = 0.1) -> Source:
    """CIFAR-10 from `cifar10.npz`. Arguments, ids and errors as for `cifar100`."""
    return _from_archive("cifar10", {"y": "labels"}, {"y": "class_names"}, data_dir, validation)


def cifar100(
    labels: str = "fine", *, data_dir: str | Path | None = None, validation: float = 0.1
) -> Source:
    """CIFAR-100, or a part of it, from `cifar100.npz` or `cifar100_part.npz`.

    Args:
      labels: `"fine"` (100 classes; the superclass is kept as column `"coarse"`) or `"coarse"` (20
        superclasses; the class is kept as column `"fine"`, which is what `subclass_task` wants).
      data_dir: where to look; default the environment variable JAXUNLEARN_DATA.
      validation: share of the archive's training rows that become the validation split, in [0, 1),
        stratified by class with seed 0. With 0 every training row stays, as published lists of
        indices expect.

    Raises:
      FileNotFoundError: nothing there; says where it looked and how to get the data.
      ValueError: unknown `labels`, a damaged archive, or members of the wrong shape.
    """
    columns = {"fine": ("fine", "coarse"), "coarse": ("coarse", "fine")}
    if labels not in columns:
        raise ValueError(f"cifar100 has no labels '{labels}'. {did_you_mean(labels, columns)}")
    main, other = columns[labels]
    names = {"y": f"{main}_names", other: f"{other}_names"}
    source = _from_archive("cifar100", {"y": main, other: other}, names, data_dir, validation)
    return source if labels == "fine" else dataclasses.replace(source, name="cifar100:coarse")


def _find_archive(name: str, data_dir: str | Path | None, label_members: Iterable[str]) -> Path:
    root = data_dir or os.environ.get("JAXUNLEARN_DATA")
    files = (f"{name}/{name}.npz", f"{name}.npz", f"{name}/{name}_part.npz")
    places = [Path(root).expanduser() / file for file in files] if root else []
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places)) or "nowhere, since no folder was given"
    members = ", ".join(
        f"{s}_{m}={s}_{m}" for s in ("train", "test") for m in ("images", *label_members)
    )
    raise FileNotFoundError(
        f"no data for '{name}'. Looked for: {looked}. Give the folder as data_dir=... (command "
        "line: --data-dir) or in the environment variable JAXUNLEARN_DATA. Nothing is ever "
        f"downloaded: get the originals from {_ORIGINS[name]} and store them once with "
        f"np.savez_compressed('{name}.npz', {members}): images uint8 (n, H, W) or (n, H, W, C), "
        "labels integers (n,)."
    )


def _from_archive(
    name: str,
    label_members: Mapping[str, str],
    name_members: Mapping[str, str],
    data_dir: str | Path | None,
    validation: float,
) -> Source:
    """A Source from an archive; two mappings say column -> member of its labels, of their names."""
    path = _find_archive(name, data_dir, label_members.values())
    labels = [
        f"{split}_{member}" for split in ("train", "test") for member in label_members.values()
    ]
    kinds = ("images", "residual")
    optional = [f"{split}_{kind}" for split in ("train", "test") for kind in kinds]
    stored = read_npz(path, labels, [*optional, *name_members.values()])

    def pixels(split: str) -> np.ndarray:
        kind = next((kind for kind in kinds if f"{split}_{kind}" in stored), None)
        if kind is None:
            raise ValueError(f"{path}: expected a member {split}_images or {split}_residual.")
        u = stored.pop(f"{split}_{kind}")
        fits = u.ndim in (3, 4) if kind == "images" else u.ndim == 4 and len(u) == 3
        if u.dtype != np.uint8 or not fits:
            raise ValueError(
                f"{path}: expected {split}_images uint8 (n, H, W) or (n, H, W, C), or "
                f"{split}_residual uint8 (3, n, H, W); got {u.dtype} {u.shape}."
            )
        return u if kind == "images" else unfilter(u)

    def columns(split: str, u: np.ndarray, start: int) -> dict[str, np.ndarray]:
        out = {"u": u, "id": np.arange(start, start + len(u), dtype=np.int32)}
        for column, member in label_members.items():
            label = stored[f"{split}_{member}"]
            if label.shape != (len(u),) or not np.issubdtype(label.dtype, np.integer):
                raise ValueError(
                    f"{path}: expected {split}_{member} integers ({len(u)},), got {label.dtype} "
                    f"{label.shape}."
                )
            out[column] = label.astype(np.int32)
        return out

    train = columns("train", pixels("train"), 0)
    test = columns("test", pixels("test"), len(train["u"]))
    label_names = {}
    for column in label_members:
        count = 1 + max(int(part[column].max(initial=0)) for part in (train, test))
        names = stored.get(name_members.get(column, ""), np.arange(count))
        label_names[column] = tuple(str(word) for word in names)
    return image_source(name, train, None, test, label_names, validation=validation)
