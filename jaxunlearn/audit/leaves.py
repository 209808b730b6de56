"""Which leaves of a network are compressed, and which stay as they are.

Weights that are multiplied with activations are compressed; what is small, or looked up, stays in
full precision: biases, the scales and running statistics of normalisation layers, embeddings of
tokens and positions. This is what libraries for low-bit inference do by default, with one
exception: they spare the output layer of a language model as well, and the head of a classifier,
where much of what is forgotten has its seat, is compressed here.

A leaf is known by its path, as `jax.tree_util.keystr` writes it: `['head']['kernel'].value`.

| leaf                                                    | stays   | because of            |
|---------------------------------------------------------|---------|-----------------------|
| kernel of a dense, convolutional or attention layer     | no      |                       |
| anything with fewer than two axes                       | yes     | its shape             |
| bias with several axes (attention), scale               | yes     | its name              |
| inside a normalisation layer, running statistics        | yes     | `norm`, `batch_stats` |
| `embedding`, `position...`, `token...`, `cls`           | yes     | its name              |
| integers, booleans, keys, complex numbers               | always  | its dtype             |
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array, Params

Keep: TypeAlias = Callable[[str, Array], bool]

_STAYS = re.compile(r"\b(bias|scale|batch_stats|cls)\b|norm|embedding|position|token", re.I)


def names_on(path: tuple) -> list[str]:
    """The names on the path of a leaf, from the root: of keys, attributes and places in a list.

    Args:
        path: as `jax.tree_util.tree_map_with_path` gives it.

    Example:
        >>> ((path, _),), _ = jax.tree_util.tree_flatten_with_path({"head": [0]})
        >>> names_on(path)
        ['head', '0']
    """
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]


def norms_biases_embeddings(path: str, leaf: Array) -> bool:
    """Whether a leaf stays in full precision: the table of the module.

    Args:
        path: of the leaf in its tree, as `jax.tree_util.keystr` writes it.
        leaf: an array, a tracer or a `ShapeDtypeStruct`; only its shape is read.

    Example:
        >>> import jax.numpy as jnp
        >>> norms_biases_embeddings("['head']['kernel']", jnp.ones((3, 2)))
        False
        >>> norms_biases_embeddings("['attention']['query']['bias']", jnp.ones((4, 16)))
        True
    """
    return len(leaf.shape) < 2 or _STAYS.search(path) is not None


def compressible(
    params: Params, keep: Keep, where: str
) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], Params]]:
    """The leaves to be compressed, by path, and a function that puts others in their place.

    Args:
        params: any pytree of arrays.
        keep: (path, leaf) -> True for leaves that stay as they are.
        where: the caller's name, for errors.

    Returns:
        {path: leaf} in the order of the tree, and `put_back({path: new leaf})`, the tree with the
        new leaves and, as the very same arrays, all others.

    Raises:
        TypeError: `keep` is not a function of (path, leaf).
        ValueError: nothing is left to compress. An audit that changes nothing would be passed by
            every model.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
        >>> chosen, put_back = compressible(params, norms_biases_embeddings, "prune")
        >>> list(chosen)
        ["['kernel']"]
        >>> print(put_back({"['kernel']": jnp.zeros((2, 2))})["bias"])
        [1. 1.]
    """
    if not callable(keep):
        raise TypeError(
            f"{where}: keep must be a function (path, leaf) -> bool, got {type(keep).__name__}. "
            "`lambda path, leaf: 'head' in path` keeps the leaves of a head."
        )
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]
    chosen = {
        path: jnp.asarray(leaf)
        for path, leaf in leaves
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and not keep(path, leaf)
    }
    if not chosen:
        raise ValueError(
            f"{where}: nothing to compress: keep holds all {len(leaves)} leaves "
            f"{[path for path, _ in leaves][:8]}. Give another `keep`, for tables of embeddings "
            "say `keep=lambda path, leaf: False`."
        )

    def put_back(new: Mapping[str, Array]) -> Any:
        return tree.unflatten([new.get(path, leaf) for path, leaf in leaves])

    return chosen, put_back
