"""Stored images as inputs of a network, and a `Source` of them.

    x = (u / 255 - mean_c) / std_c        u stored pixel, mean_c and std_c of channel c over the
    training split

Scaling is fixed once per source, over its whole training split, forget rows included: original,
oracle and unlearned model all see the same inputs. Validation rows never enter it.
"""

from collections.abc import Mapping

import numpy as np

from jaxunlearn.data.sources import Source, stratified_split


def scale_images(
    train: np.ndarray, *others: np.ndarray, maximum: float = 255.0, standardise: bool = True
) -> tuple[np.ndarray, ...]:
    """Stored pixels as float32: u / maximum, then per channel less the mean and over the deviation
    of `train`.

    Args:
      train, *others: uint8 (n, H, W) or (n, H, W, C). Grey images have one channel.
      maximum: the stored value that becomes 1.
      standardise: False leaves u / maximum as it is. A constant channel is only centred.

    Returns:
      `train` and `others`, scaled, of the same shapes. Moments come from a 256-bin histogram, in
      float64.

    Example:
      >>> x, = scale_images(np.array([[[0, 255]]], np.uint8))
      >>> x.tolist()
      [[[-1.0, 1.0]]]
    """
    values = np.arange(256) / maximum
    channels = train.shape[3] if train.ndim == 4 else 1
    tables = np.tile(values, (channels, 1))
    for table, plane in zip(
        tables, np.moveaxis(train.reshape(*train.shape[:3], channels), 3, 0), strict=True
    ):
        if not standardise or plane.size == 0:
            continue
        pieces = np.array_split(plane, len(plane) // 4096 + 1)
        share = sum(np.bincount(piece.ravel(), minlength=256) for piece in pieces) / plane.size
        mean = share @ values
        table -= mean
        table /= np.sqrt(share @ (values - mean) ** 2) or 1.0
    tables = tables.astype(np.float32)
    channel = np.zeros((), np.int64) if train.ndim == 3 else np.arange(channels)
    return tuple(
        np.concatenate([tables[channel, piece] for piece in np.array_split(u, len(u) // 4096 + 1)])
        for u in (train, *others)
    )


def image_source(
    name: str,
    train: dict[str, np.ndarray],
    validation_columns: dict[str, np.ndarray] | None,
    test: dict[str, np.ndarray],
    label_names: Mapping[str, tuple[str, ...]],
    *,
    validation: float = 0.1,
    maximum: float = 255.0,
    standardise: bool = True,
) -> Source:
    """A Source from columns with raw inputs `"u"` in place of `"x"`.

    uint8 inputs are scaled as `scale_images` says; inputs of any other dtype are only made float32.
    Without `validation_columns`, the share `validation` of the training rows is split off,
    stratified by `"fine"` where there is such a column and else by `"y"`.

    Raises:
      ValueError: `validation` outside [0, 1), or anything `Source` refuses.
    """
    if not 0 <= validation < 1:
        raise ValueError(
            f"validation: expected a share of the training rows in [0, 1), got {validation}."
        )
    if validation_columns is None:
        rows = len(train["y"])
        held_out = round(validation * rows)
        keep, hold = stratified_split(train.get("fine", train["y"]), (rows - held_out, held_out))
        validation_columns = {key: column[hold] for key, column in train.items()}
        train = {key: column[keep] for key, column in train.items()}
    splits = [dict(train), dict(validation_columns), dict(test)]
    raw = [split.pop("u") for split in splits]
    if raw[0].dtype == np.uint8 and raw[0].ndim in (3, 4):
        scaled = scale_images(*raw, maximum=maximum, standardise=standardise)
    else:
        scaled = tuple(u.astype(np.float32) for u in raw)
    for split, x in zip(splits, scaled, strict=True):
        split["x"] = x
    return Source(name, *splits, label_names=dict(label_names))
