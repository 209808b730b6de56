"""Who is who: the groups of models that a verdict compares, checked once at the boundary.

All models of an audit are numbered 0..M-1; every matrix of distances and every list of accuracies
uses these numbers, and a group is a list of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .errors import TooFew

PARTS = ("forget", "retain", "adjacent", "remote", "test", "forget_test")
KEPT = ("retain", "adjacent", "remote", "test")  # what should have stayed: collateral
NAMES = {
    "forget": "forget data",
    "retain": "retained data",
    "adjacent": "adjacent data",
    "remote": "remote data",
    "test": "test data",
    "forget_test": "test data of the forgotten kind",
}


class Groups(NamedTuple):
    """Which rows of the matrices are whose: lists of model numbers.

    Example:
        >>> Groups(original=range(2), oracle=range(2, 6), method=[6, 7]).recipes
        ()
    """

    original: ArrayLike  # trained on everything
    oracle: ArrayLike  # retrained without the forget data
    method: ArrayLike  # the models judged; may be the same list as `original`
    recipes: Sequence[ArrayLike] = ()  # groups of oracles trained by alternative recipes


class Models(NamedTuple):
    """`Groups` after checking."""

    original: np.ndarray  # (n,) int64
    oracle: np.ndarray  # (n,) int64
    method: np.ndarray  # (n,) int64, at least one
    recipes: list[np.ndarray]
    untouched: bool  # the method is the very list of the originals


def present_parts(matrices: Mapping[str, ArrayLike | None], who: str) -> dict[str, np.ndarray]:
    """The parts that have a matrix, checked, in the order of `PARTS`."""
    unknown = sorted(set(matrices) - set(PARTS))
    if unknown:
        raise ValueError(f"{who}: unknown parts {unknown}; expected some of {PARTS}.")
    present = {}
    for part in PARTS:
        D = matrices.get(part)
        if D is not None:
            present[part] = as_matrix(D, f"{who}: matrices[{part!r}]")
    sizes = {part: len(D) for part, D in present.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{who}: expected the same models in every part, got sizes {sizes}.")
    return present


def as_models(groups: Groups, size: int, who: str) -> Models:
    """Check the groups against `size` models: in range, disjoint, somebody to judge."""
    original = as_indices(groups.original, size, f"{who}: group 'original'")
    oracle = as_indices(groups.oracle, size, f"{who}: group 'oracle'")
    method = as_indices(groups.method, size, f"{who}: group 'method'")
    recipes = [as_indices(r, size, f"{who}: recipe {i}") for i, r in enumerate(groups.recipes)]
    if method.size == 0:
        raise ValueError(f"{who}: group 'method' is empty; there is no model to judge.")
    untouched = np.array_equal(method, original)
    pool = np.concatenate([original, oracle, *recipes, *([] if untouched else [method])])
    if np.unique(pool).size != pool.size:
        raise ValueError(
            f"{who}: original, oracle, method and recipes share models. Only the method may be "
            "the very list of the originals."
        )
    return Models(original, oracle, method, recipes, untouched)


def broken_models(present: Mapping[str, np.ndarray], group: np.ndarray) -> np.ndarray:
    """(n,) bool: models with non-finite outputs, those without a distance to any other model."""
    broken = np.zeros(group.size, dtype=bool)
    for D in present.values():
        others = len(D) - 1
        if others:
            broken |= np.isnan(D[group]).sum(axis=1) == others
    return broken


def as_stack(
    matrices: Mapping[str, ArrayLike], who: str, *, least: int = 2, **groups: ArrayLike
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The matrices restricted to the models of the groups, (parts, m, m), and new indices."""
    if not matrices:
        raise ValueError(f"{who}: expected at least one part in matrices, got none.")
    checked = {part: as_matrix(D, _place(who, part)) for part, D in matrices.items()}
    sizes = {part: D.shape[0] for part, D in checked.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{who}: expected the same models in every part, got sizes {sizes}.")
    indices = as_groups(next(iter(sizes.values())), who, least=least, **groups)
    pool = np.concatenate(indices)
    stack = np.stack([D[np.ix_(pool, pool)] for D in checked.values()])
    for part, D in zip(checked, stack, strict=True):
        if not np.isfinite(D).all():
            raise ValueError(
                f"{_place(who, part)}: distances of these models are not finite. A model with "
                "non-finite outputs has no distance: leave it out, or call it collapsed."
            )
    splits = np.cumsum([index.size for index in indices])[:-1]
    return stack, np.split(np.arange(pool.size), splits)


def _place(who: str, part: str) -> str:
    return f"{who}: matrices[{part!r}]" if part else who


def as_matrix(D: ArrayLike, who: str) -> np.ndarray:
    """Check: a square, symmetric, non-negative matrix with a zero diagonal; NaN allowed off it."""
    D = np.asarray(D, dtype=np.float64)
    if D.ndim != 2 or D.shape[0] != D.shape[1]:
        raise ValueError(f"{who}: expected a square matrix of distances, got shape {D.shape}.")
    if np.diag(D).any() or (D < 0).any() or not np.allclose(D, D.T, equal_nan=True):
        raise ValueError(
            f"{who}: expected distances: symmetric, >= 0, and exactly 0 on the diagonal."
        )
    return D


def as_groups(size: int, who: str, *, least: int = 2, **groups: ArrayLike) -> list[np.ndarray]:
    """Check groups of model numbers: in range, disjoint, at least `least` models each."""
    checked: dict[str, np.ndarray] = {}
    for name, group in groups.items():
        index = as_indices(group, size, f"{who}: group {name!r}")
        if index.size < least:
            raise TooFew(
                f"{who}: group {name!r} has {index.size} model(s), needs at least {least}. "
                "Train more seeds."
            )
        checked[name] = index
    pool = np.concatenate(list(checked.values()))
    if np.unique(pool).size != pool.size:
        raise ValueError(f"{who}: groups {' and '.join(map(repr, checked))} share models.")
    return list(checked.values())


def as_indices(group: ArrayLike, size: int, who: str) -> np.ndarray:
    """A list of model numbers: whole, in [0, size), without repetition."""
    index = np.asarray(list(group) if isinstance(group, range) else group)
    if index.size == 0:
        return np.zeros(0, dtype=np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise ValueError(
            f"{who}: expected a list of model numbers, got dtype {index.dtype} and shape "
            f"{index.shape}. A mask becomes numbers with numpy.flatnonzero."
        )
    if index.min() < 0 or index.max() >= size:
        raise ValueError(
            f"{who}: model numbers must be in [0, {size}), got {index.min()} to {index.max()}."
        )
    if np.unique(index).size != index.size:
        raise ValueError(f"{who}: a model is listed twice.")
    return index.astype(np.int64)
