"""Gram matrices beside a model: kept on disk, and checked before they are believed.

    load_grams(save_grams(path, grams, params), params)  =  grams        for these params alone

What enters a weight changes with every training step, so Grams say nothing about other parameters
than those that they were measured at, or that the last request left; the checkpoint holds a
fingerprint of them.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.curvature import Gram
from jaxunlearn.data.streams import InMemory, is_traced
from jaxunlearn.manifest import array_sha256, canonical_json, named_leaves, read_manifest
from jaxunlearn.methods.descent.subspaces import Grams
from jaxunlearn.typing import Data, Params


def check_grams(where: str, grams: Any) -> None:
    """Raises `TypeError` unless `grams` maps paths to Grams, or is None."""
    if grams is None:
        return
    if not isinstance(grams, Mapping) or not all(isinstance(g, Gram) for g in grams.values()):
        kind = type(grams).__name__
        raise TypeError(
            f"{where}: grams must be those of the whole training set (see grams_of), got {kind}."
        )


def check_enough(where: str, grams: Grams, forget: Data) -> None:
    """Raises `ValueError` unless the Grams hold more examples than are to be forgotten."""
    gone = forget.num_examples
    if isinstance(forget, InMemory) and "weight" in forget:
        gone = forget["weight"].sum()
    counts = [gram.count for gram in grams.values()]
    if not is_traced((gone, counts)) and any(not float(n) > float(gone) for n in counts):
        raise ValueError(
            f"{where}: the grams hold {float(min(counts)):g} examples, no more than the "
            f"{float(gone):g} to be forgotten. Store those of the whole training set."
        )


def save_grams(
    path: str | os.PathLike[str], grams: Grams, params: Params, *, overwrite: bool = False
) -> Path:
    """Writes Grams as a checkpoint, with the fingerprint of the params that they serve.

    Args:
      path: a directory that does not exist yet.
      grams: from `grams_of`, or what a request left (`info.grams`).
      params: the model's, all of them, that the next request starts from.
      overwrite, Returns, Raises: as for `checkpoint.save`.
    """
    axes = {name: [int(a) for a in gram.axes] for name, gram in grams.items()}
    shapes = {name: [int(n) for n in gram.matrix.shape] for name, gram in grams.items()}
    arrays = [(grams[name].matrix, jnp.asarray(grams[name].count)) for name in sorted(grams)]
    about = {"params": _fingerprint(params), "axes": axes, "shapes": shapes}
    about["dtypes"] = [[str(array.dtype) for array in pair] for pair in arrays]
    return checkpoint.save(path, arrays, metadata={"grams": about}, overwrite=overwrite)


def load_grams(path: str | os.PathLike[str], params: Params) -> Grams:
    """Reads what `save_grams` wrote, for exactly these params.

    Raises:
      ValueError: the checkpoint holds something else, or Grams for other params.
      CheckpointError, FileNotFoundError: as for `checkpoint.load`.

    Example:
      >>> import tempfile
      >>> ones, grams = jnp.ones((2, 1)), {"": Gram(jnp.eye(2), (0,), jnp.ones(()))}
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     print(load_grams(save_grams(f"{directory}/grams", grams, ones), ones)[""].axes)
      (0,)
    """
    about = read_manifest(path)["metadata"].get("grams")
    if about is None:
        raise ValueError(f"{path} holds no Grams. save_grams writes them.")
    if about["params"] != _fingerprint(params):
        raise ValueError(
            f"the Grams in {path} are for other parameters than these. Compute them again with "
            "grams_of, or save those of the last request with the parameters it left."
        )
    names = sorted(about["axes"])
    like = [
        (jax.ShapeDtypeStruct(tuple(about["shapes"][name]), m), jax.ShapeDtypeStruct((), n))
        for name, (m, n) in zip(names, about["dtypes"], strict=True)
    ]
    loaded = checkpoint.load(path, like)
    return {
        name: Gram(matrix, tuple(about["axes"][name]), count)
        for name, (matrix, count) in zip(names, loaded, strict=True)
    }


def _fingerprint(params: Params) -> str:
    """sha256 over names and bytes of the leaves."""
    leaves = named_leaves(params)
    hashes = {name: array_sha256(np.asarray(leaf, order="C")) for name, leaf in leaves.items()}
    return hashlib.sha256(canonical_json(hashes, "params").encode()).hexdigest()
