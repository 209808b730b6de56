"""Does forgetting survive pruning? Setting the smallest weights to zero, as an attack.

    P_s(w) = 0   if w is among the k = round(s n) entries of smallest |w|,   else w

Pruning is what happens to a network on its way to a small device. If unlearning hid knowledge
behind small changes of small weights, it is the changes that go first, and the knowledge may come
back; if it was taken out, pruning hurts the unlearned models as it hurts the retrained ones. So
prune both, at a grid of shares, and compare curves: a share that breaks every model says nothing.

The entries to be pruned are chosen by rank and not by a threshold, so their number is exact: equal
magnitudes go in the order of the tree, and within a leaf in the order of its entries.

Sources: magnitude pruning, S. Han et al. (2015), arXiv:1506.02626, who prune by a threshold for
each layer (`scope="leaf"`); one ranking over all layers (`scope="global"`) as in J. Frankle,
M. Carbin (2018), arXiv:1803.03635. Departures: 1. one shot, with no fine-tuning afterwards. As an
audit of unlearning it is this project's own.

| input                                | result                                                 |
|--------------------------------------|--------------------------------------------------------|
| share 0                              | the same bits                                          |
| share 1                              | every pruned leaf is 0                                 |
| weights that are 0 already           | count among the pruned, and are the first              |
| a non-finite weight                  | stays, at share 1 too: a broken model stays broken     |
| nothing to prune                     | ValueError                                             |
"""

import math

import jax
import jax.numpy as jnp

from jaxunlearn.typing import Array, Params, check_between

from .leaves import Keep, compressible, norms_biases_embeddings

SCOPES = ("global", "leaf")


def _smallest(magnitude: Array, share: float | Array) -> Array:
    """[n] bool: the round(share n) smallest of (n,), the first of equals first."""
    n = magnitude.size
    if isinstance(share, jax.Array):
        count = jnp.round(share * n).astype(jnp.int32)
    else:
        count = round(share * n)
    order = jnp.argsort(magnitude, stable=True)
    rank = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    return rank < count


def prune(
    params: Params,
    share: float | Array,
    *,
    scope: str = "global",
    keep: Keep = norms_biases_embeddings,
) -> Params:
    """Params with the given share of weights, those of smallest magnitude, set to zero.

        P_s(w) = w 1[ rank of |w| > round(s n) ]

    Args:
        params: of one model, any pytree of arrays. Stacked models: `jax.vmap`, or else models would
            compete for what is kept.
        share: s in [0, 1], a number, or a traced scalar (a grid of shares is one `vmap`, and one
            sort); a traced one outside acts as the nearer end, and picks round(s n) in float32: off
            by one entry where s n is half-way between integers, and beyond 2^24 entries.
        scope: "global", one ranking of the n entries of all leaves, so that some layers lose more
            than others; "leaf", a ranking and a share of every leaf of its own.
        keep: (path, leaf) -> True for leaves that are not pruned and do not count in n. Default:
            biases, normalisation, embeddings.

    Returns:
        The same tree, dtypes and shapes. The caller compiles.

    Raises:
        ValueError: a share outside [0, 1], another scope, nothing to prune, or more than 2^31 - 1
            entries in one ranking.

    | guarantee                                                  | where                      |
    |------------------------------------------------------------|----------------------------|
    | exactly round(s n) entries are chosen, ties included       | always                     |
    | an entry that stays has the same bits                      | always                     |
    | a larger share prunes what a smaller one does, and more    | always                     |
    | both scopes agree                                          | one leaf                   |

    Cost: a sort of n numbers; memory of three arrays of n.

    Source: (arXiv:1506.02626), (arXiv:1803.03635).

    Example:
        >>> import jax.numpy as jnp
        >>> print(prune({"kernel": jnp.array([[3.0, -1.0], [0.5, -2.0]])}, 0.5)["kernel"])
        [[ 3.  0.]
         [ 0. -2.]]
    """
    check_between("prune", "share", share, at_least=0, at_most=1)
    if scope not in SCOPES:
        raise ValueError(f"prune: scope must be one of {SCOPES}, got {scope!r}.")
    chosen, put_back = compressible(params, keep, "prune")
    magnitudes = {path: jnp.abs(leaf).ravel() for path, leaf in chosen.items()}
    largest = sum if scope == "global" else max
    if (entries := largest(m.size for m in magnitudes.values())) >= 2**31:
        raise ValueError(
            f"prune: ranks are int32, up to {2**31 - 1} entries, got {entries}. "
            "Prune with scope='leaf'."
        )
    if scope == "leaf":
        small = {path: _smallest(m, share) for path, m in magnitudes.items()}
    else:
        dtype = jnp.result_type(*magnitudes.values())
        together = _smallest(jnp.concatenate([m.astype(dtype) for m in magnitudes.values()]), share)
        ends = [math.prod(m.shape) for m in magnitudes.values()]
        cuts = [sum(ends[: i + 1]) for i in range(len(ends) - 1)]
        small = dict(zip(magnitudes, jnp.split(together, cuts), strict=True))

    def zeroed(path: str, leaf: Array) -> Array:
        gone = small[path].reshape(leaf.shape) & jnp.isfinite(leaf)
        return jnp.where(gone, jnp.zeros_like(leaf), leaf)

    return put_back({path: zeroed(path, leaf) for path, leaf in chosen.items()})
