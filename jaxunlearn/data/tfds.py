"""TFDS directories as sources, read by random access, without TensorFlow.

    record i on disk is not example i of the source

TFDS shuffles by a hash when it writes, so positions mean nothing; what is to be forgotten is named
by an id that travels with the example. Rows are sorted by that id, so the order on disk never
shows.

| the id feature   | id of a row                                                                   |
|------------------|-------------------------------------------------------------------------------|
| integers         | its value, shifted past the ids of the earlier splits where they collide      |
| text             | its place in the sorted texts of its split, counting on over the splits       |
| none             | as for text, sorting the sha256 of its content (equal rows interchangeable)   |

So `"train_00042"` of a complete training split has id 42, whatever the order on disk.

TensorFlow is never imported. Only the formats with random access will do, array_record and parquet:
prepare a data set with `file_format="array_record"`. Images stored as PNG or JPEG need Pillow or
OpenCV to be decoded. Nothing is downloaded and nothing is prepared here.

To write such a directory without TensorFlow, let a `tfds.core.GeneratorBasedBuilder` yield the
*bytes* of PNG files (an array would be encoded by TensorFlow), an integer `id`, and a label, and
call `builder.download_and_prepare(file_format="array_record")`.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.images import image_source
from jaxunlearn.data.sources import SPLITS, Source
from jaxunlearn.naming import did_you_mean


def tfds_source(
    name_or_directory: str | Path,
    *,
    data_dir: str | Path | None = None,
    image: str = "image",
    label: str = "label",
    id: str | None = None,
    splits: Mapping[str, str] | None = None,
    validation: float = 0.1,
    maximum: float = 255.0,
    standardise: bool = True,
) -> Source:
    """A prepared TFDS data set as a `Source`.

    Args:
      name_or_directory: a name to find under `data_dir`, or (a `Path`, or a string with a
        separator) the directory itself. Of several versions the highest is taken.
      data_dir: where names are looked for; default the environment variables JAXUNLEARN_DATA and
        TFDS_DATA_DIR, then `~/tensorflow_datasets`.
      image, label: the features that become `"x"` and `"y"`. Every other scalar integer feature
        becomes a column of its own name.
      id: the feature that becomes `"id"`; None: the feature `"id"` where there is one, else the
        content.
      splits: our split -> theirs, for instance `{"train": "train", "test": "validation"}`; default
        equal names.
      validation: share of the training rows split off, where the data set has no validation split.
      maximum, standardise: scaling of uint8 images, as in `scale_images`. A last axis of one
        channel is dropped.

    Raises:
      ModuleNotFoundError: tensorflow-datasets is not installed.
      FileNotFoundError: no such data set; says where it looked.
      ValueError: no random access, an absent feature or split, images of several sizes, an id that
        repeats, a feature type that is not TFDS's own.

    Example:
      A data set prepared as this module says is `tfds_source("digits_png", data_dir="~/data")`.

      >>> tfds_source("digits_png", data_dir="empty")
      Traceback (most recent call last):
      FileNotFoundError: no prepared TFDS data set 'digits_png'. Looked for dataset_info.json under:
      empty/digits_png. ...
    """
    directory = _find_directory(name_or_directory, data_dir)
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TFDS directories are read with tensorflow-datasets: pip install 'jaxunlearn[data]'."
        ) from error
    _refuse_foreign_features(directory)
    builder: Any = tfds.builder_from_directory(str(directory))
    features = dict(builder.info.features.items())
    for wanted in (image, label, *([id] if id else [])):
        if wanted not in features:
            raise ValueError(
                f"{directory}: no feature '{wanted}'. {did_you_mean(wanted, features)}"
            )
    id = id or ("id" if "id" in features else None)
    extra = [
        name
        for name, feature in features.items()
        if name not in (image, label, id)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.integer)
    ]
    stored = list(builder.info.splits)
    names = dict(splits or {split: split for split in SPLITS if split in stored})
    for split in ("train", "test", *names):
        if split not in SPLITS or names.get(split) not in stored:
            raise ValueError(
                f"{directory} has the splits {stored}; splits={names} must name one of them for "
                "'train' and 'test', and may for 'validation'."
            )
    parts: dict[str, dict[str, np.ndarray]] = {}
    taken = np.array([], np.int64)
    for split in (split for split in SPLITS if split in names):
        try:
            rows = builder.as_data_source(split=names[split])
        except NotImplementedError as error:
            raise ValueError(
                f"{directory} is stored in a format without random access. Prepare it again with "
                "file_format='array_record'; tfrecord can be read by TensorFlow only."
            ) from error
        where = f"{directory}, split '{names[split]}'"
        parts[split] = _columns(rows, image, label, id, extra, taken, where)
        taken = np.concatenate([taken, parts[split]["id"]])
    label_names = {"y": _names(features[label], [part["y"] for part in parts.values()])}
    label_names |= {
        name: tuple(features[name].names)
        for name in extra
        if getattr(features[name], "names", None)
    }
    return image_source(
        f"tfds:{builder.name}",
        parts["train"],
        parts.get("validation"),
        parts["test"],
        label_names,
        validation=validation,
        maximum=maximum,
        standardise=standardise,
    )


def _columns(
    rows: Any,
    image: str,
    label: str,
    id: str | None,
    extra: Sequence[str],
    taken: np.ndarray,
    where: str,
) -> dict[str, np.ndarray]:
    """One split as columns sorted by id, inputs as stored under `"u"`; ids avoid those `taken`."""
    records = list(rows.__getitems__(range(len(rows)))) if len(rows) else []
    shapes = {np.shape(record[image]) for record in records}
    if len(shapes) != 1:
        raise ValueError(
            f"{where}: expected inputs of one shape, got {sorted(shapes)[:5]}. "
            "Prepare a data set with images of one size."
        )
    u = np.stack([record[image] for record in records])
    columns = {"u": u[..., 0] if u.ndim == 4 and u.shape[3] == 1 else u}
    for column, feature in {"y": label, **{name: name for name in extra}}.items():
        columns[column] = _narrow(np.array([int(record[feature]) for record in records]))
    keys = [_key(record, id, (image, label, *extra), where) for record in records]
    if id is not None and len(set(keys)) < len(keys):
        raise ValueError(f"{where}: feature '{id}' repeats; an id names one example.")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    columns = {name: column[order] for name, column in columns.items()}
    ids, free = np.arange(len(keys), dtype=np.int64), taken.max(initial=-1) + 1
    if isinstance(keys[0], int):
        ids = np.array([keys[row] for row in order], np.int64)
    if np.isin(ids, taken).any():
        ids += free
    columns["id"] = _narrow(ids)
    return columns


def _narrow(values: np.ndarray) -> np.ndarray:
    """As int32 where that loses nothing."""
    return values.astype(np.int32) if np.abs(values).max() < 2**31 else values


def _key(
    record: Mapping[str, Any], id: str | None, content: Sequence[str], where: str
) -> int | bytes:
    """What a row is sorted by: its integer id, its text id, or the hash of its content."""
    if id is None:
        state = hashlib.sha256()
        for name in content:
            state.update(np.asarray(record[name]).tobytes())
        return state.digest()
    value = record[id]
    if isinstance(value, str | bytes):
        return value.encode() if isinstance(value, str) else value
    if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer):
        return int(value)
    raise ValueError(f"{where}: feature '{id}' must hold one integer or text a row, got {value!r}.")


def _names(feature: Any, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    named = getattr(feature, "names", None)
    return tuple(named or map(str, range(1 + max(int(y.max(initial=0)) for y in labels))))


def _find_directory(name: str | Path, data_dir: str | Path | None) -> Path:
    """The version directory (with `dataset_info.json`) of a data set given by name or directory."""
    if isinstance(name, Path) or os.sep in name or "/" in name:
        places = [Path(name).expanduser()]
    else:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or ".." in name:
            raise ValueError(
                f"TFDS data set {name!r}: expected a plain name, or a path with a separator."
            )
        variables = [os.environ.get(v) for v in ("JAXUNLEARN_DATA", "TFDS_DATA_DIR")]
        roots = [data_dir] if data_dir else [*filter(None, variables), "~/tensorflow_datasets"]
        places = [Path(root).expanduser() / name for root in roots]
    for place in places:
        found = [
            file.parent
            for depth in ("", "*/", "*/*/")
            for file in place.glob(f"{depth}dataset_info.json")
        ]
        if len({version.parent for version in found}) > 1:
            raise ValueError(
                f"{place} holds several configurations: {sorted({v.parent.name for v in found})}. "
                "Give the directory of one of them."
            )
        if found:
            return max(
                found, key=lambda version: [int(n) for n in re.findall(r"\d+", version.name)]
            )
    raise FileNotFoundError(
        f"no prepared TFDS data set {str(name)!r}. Looked for dataset_info.json under: "
        f"{', '.join(map(str, places))}. Nothing is ever downloaded: prepare it where there is a "
        "network, with file_format='array_record', and give the folder as data_dir=... (command "
        "line: --data-dir)."
    )


def _refuse_foreign_features(directory: Path) -> None:
    """TFDS imports the module of every feature class that a data set names: only its own pass."""

    def classes(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [str(node["pythonClassName"])] if "pythonClassName" in node else []
            return own + [name for child in node.values() for name in classes(child)]
        return [name for child in node for name in classes(child)] if isinstance(node, list) else []

    file = directory / "features.json"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no features.json; it was written by a TFDS older than 4.0."
        )
    foreign = [
        name
        for name in classes(json.loads(file.read_text(encoding="utf-8")))
        if not name.startswith("tensorflow_datasets.")
    ]
    if foreign:
        raise ValueError(
            f"{file} names the feature types {foreign}, which are not TFDS's own: reading them "
            "would import code that a data set chose. Store plain Image, Tensor, Scalar, Text and "
            "ClassLabel features."
        )
