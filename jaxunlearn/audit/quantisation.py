"""Does forgetting survive compression? Post-training quantisation as an attack.

Unlearning moves weights a little; rounding them to a few bits may move them back. With b bits,
the weights of a group g share a step, and each is rounded to the nearest multiple:

    Delta_g = max_{w in g} |w| / (2^{b-1} - 1),   c(w) = round(w / Delta_g),   Q(w) = Delta_g c(w)

Let theta_u = theta_0 + delta be an unlearned model. Q(theta_u) = Q(theta_0) if and only if every
weight stays in its rounding cell and no group's largest weight moves: then the quantised model is
that of the original, bit for bit, and all that was forgotten is back. A cell of 4 bits is 127 / 7
= 18 times as wide as one of 8. How many weights leave their cells, and what came back, is measured
in `crossing`.

It is a condition to test, not a law: with large steps of unlearning nothing returns. Rounding
itself costs accuracy, so quantise the original and the oracles as well, and compare like with like.
Adapters are merged into the weights first; quantising the base alone answers another question.

Source: Z. Zhang et al. (2024), arXiv:2410.16454, Sec. 4; *reconstruction* from secondary
descriptions and code. Departures: 1. `scale="symmetric"` uses the 2^b - 1 codes that are symmetric
about 0; the paper's max|w| / 2^{b-1} is `scale="paper"`, which as written has 2^b + 1 codes.
2. Ties go to the even code (`jnp.round`), not away from zero. 3. An entry whose code is the largest
becomes the group's largest weight itself, which no product of rounded numbers need give: it makes
Q(Q(w)) = Q(w) to the bit. 4. Blocks never straddle two output features; bitsandbytes cuts the
flattened tensor, which is the same where the block divides the fan-in. 5. Which leaves stay is said
in `leaves`. 6. qwix stretches the range by half a step by default, max|w| / 127.5; with
`calibration_method=f"absmax,{127.5 / 127}"` its codes are these.

| input                                | result                                                 |
|--------------------------------------|--------------------------------------------------------|
| a group of zeros                     | codes 0, scale 0, values 0                             |
| a non-finite weight                  | NaN for its whole group, and for no other              |
| a group below about 1e-36            | may become zeros: its step underflows                  |
| bf16, float16 leaves                 | rounded in float32, returned in their dtype            |
| nothing to quantise                  | ValueError                                             |
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.typing import Array, Params, check_between

from .codebooks import CODEBOOKS
from .leaves import Keep, compressible, norms_biases_embeddings

SCALES = ("symmetric", "paper")
LEVELS = ("int", *CODEBOOKS)


class Codes(NamedTuple):
    """What is stored of one leaf."""

    codes: Array  # the leaf's shape, int32; for a codebook the index of the level, from 0
    scale: Array  # the leaf's shape, float32: Delta of each entry; for a codebook the largest |w|


class _Rule(NamedTuple):
    """How a leaf is quantised."""

    bits: int | Array
    group: str | int
    scale: str
    levels: str


def _largest(magnitude: Array, group: str | int) -> Array:
    """The largest entry of each entry's group, in the shape of the leaf."""
    if magnitude.size == 0:
        return magnitude
    if group == "tensor":
        return jnp.broadcast_to(jnp.max(magnitude), magnitude.shape)
    last_axis = magnitude if magnitude.ndim > 1 else magnitude.reshape(-1, 1)
    moved = jnp.moveaxis(last_axis, -1, 0)
    rows = moved.reshape(moved.shape[0], -1)
    fan_in = rows.shape[1]
    block = fan_in if group == "row" else min(int(group), fan_in)
    blocks = jnp.pad(rows, ((0, 0), (0, -fan_in % block))).reshape(len(rows), -1, block)
    each = jnp.repeat(jnp.max(blocks, axis=-1), block, axis=1)[:, :fan_in]
    return jnp.moveaxis(each.reshape(moved.shape), 0, -1).reshape(magnitude.shape)


def _encode(leaf: Array, rule: _Rule) -> tuple[Codes, Array]:
    """Codes of a leaf, and the values that they stand for."""
    w = leaf.astype(jnp.result_type(leaf, jnp.float32))
    largest = _largest(jnp.abs(w), rule.group)
    if rule.levels == "int":
        top = (1 << (rule.bits - 1)) - (rule.scale == "symmetric")
        scale = largest * jnp.asarray(1 / top).astype(w.dtype)
        code = jnp.clip(jnp.round(w / jnp.where(scale > 0, scale, 1)), -top, top)
        value = jnp.where(jnp.abs(code) == top, jnp.copysign(largest, w), code * scale)
    else:
        table = CODEBOOKS[rule.levels].astype(w.dtype)
        between = (table[1:] + table[:-1]) / 2
        scale = largest
        code = jnp.searchsorted(between, w / jnp.where(largest > 0, largest, 1))
        value = largest * jnp.asarray(table)[code]
    finite = jnp.isfinite(largest)
    codes = jnp.where(finite, code, 0).astype(jnp.int32)
    return Codes(codes, scale), jnp.where(finite, value, jnp.nan).astype(leaf.dtype)


def quantise(
    params: Params,
    *,
    bits: int | Array = 4,
    group: str | int = "row",
    scale: str = "symmetric",
    levels: str = "int",
    keep: Keep = norms_biases_embeddings,
) -> Params:
    """Params rounded to the nearest codes and turned back into numbers ("fake quantisation").

        Q(w) = Delta round(w / Delta),   Delta = max_{group} |w| / (2^{b-1} - 1)

    Args:
        params: of one model, any pytree of arrays. Stacked models: `jax.vmap`, or else groups would
            reach across models.
        bits: b, an integer from 2 to 16, or a traced one (a grid of bits is one `vmap`).
        group: "row", all weights of one output feature, which is the *last* axis of a Flax kernel,
            (fan_in, out) or (height, width, in, out); "tensor", one scale for a leaf; or the size
            of blocks, an integer >= 1: consecutive weights of one output feature, the last block
            shorter. Attention kernels (in, heads, size) share a row among the heads; a leaf with
            one axis is one row.
        scale: "symmetric" or "paper", see the module.
        levels: "int", evenly spaced; "nf4" or "fp4", see `codebooks`.
        keep: (path, leaf) -> True for leaves that stay in full precision.

    Returns:
        The same tree, dtypes and shapes. The caller compiles.

    Raises:
        ValueError: an argument out of its range; a codebook with other than 4 bits or with
            `scale="paper"`; nothing to quantise.

    | guarantee                                        | where                              |
    |--------------------------------------------------|------------------------------------|
    | Q(Q(w)) = Q(w), to the bit                       | float32; bf16 up to 8 bits         |
    | |w - Q(w)| <= Delta / 2 (up to rounding)         | levels="int", float32              |
    | Q(-w) = -Q(w), Q(2 w) = 2 Q(w)                   | levels="int"                       |
    | the largest weight of a group is unchanged       | always                             |
    | equal for leaves taken alone, vmapped, compiled  | always                             |

    Cost: one pass over the parameters; no more memory than a few copies of the largest leaf.

    Source: (arXiv:2410.16454), Sec. 4.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[7.0, 0.7], [3.4, 0.44]]), "bias": jnp.array([0.123, 0])}
        >>> print(quantise(params, bits=4)["kernel"])
        [[7.  0.7]
         [3.  0.4]]
    """
    rule = _checked("quantise", bits, group, scale, levels)
    chosen, put_back = compressible(params, keep, "quantise")
    return put_back({path: _encode(leaf, rule)[1] for path, leaf in chosen.items()})


def codes(
    params: Params,
    *,
    bits: int | Array = 4,
    group: str | int = "row",
    scale: str = "symmetric",
    levels: str = "int",
    keep: Keep = norms_biases_embeddings,
) -> dict[str, Codes]:
    """The integers that a quantised model would store, and their scales.

        w  ~  scale * code           or, with a codebook L,     w  ~  scale * L[code]

    Args:
        As `quantise`.

    Returns:
        {path of the leaf: `Codes`}, the path as `jax.tree_util.keystr` writes it; leaves that stay
        in full precision are left out.

    Cost: one pass over the parameters; two arrays of each leaf's shape.

    Example:
        >>> import jax.numpy as jnp
        >>> found = codes({"kernel": jnp.array([[7.0, -0.7], [3.4, 0.44]])}, bits=4)
        >>> print(found["['kernel']"].codes)
        [[ 7 -7]
         [ 3  4]]
    """
    rule = _checked("codes", bits, group, scale, levels)
    chosen, _ = compressible(params, keep, "codes")
    return {path: _encode(leaf, rule)[0] for path, leaf in chosen.items()}


def _checked(where: str, bits: Any, group: Any, scale: str, levels: str) -> _Rule:
    """The rule, after all checks of values that are known."""
    if isinstance(bits, bool | float):
        raise ValueError(f"{where}: bits must be an integer from 2 to 16, got {bits}.")
    check_between(where, "bits", bits, at_least=2, at_most=16)
    known = isinstance(group, str) and group in ("row", "tensor")
    block = isinstance(group, int | np.integer) and not isinstance(group, bool) and group >= 1
    if not (known or block):
        raise ValueError(
            f"{where}: group must be 'row', 'tensor' or the size of blocks, an integer of at least "
            f"1, got {group!r}."
        )
    if scale not in SCALES:
        raise ValueError(f"{where}: scale must be one of {SCALES}, got {scale!r}.")
    if levels not in LEVELS:
        raise ValueError(f"{where}: levels must be one of {LEVELS}, got {levels!r}.")
    if levels != "int" and (isinstance(bits, Tracer) or bits != 4):
        raise ValueError(f"{where}: levels={levels!r} has 4 bits, got bits={bits}.")
    if levels != "int" and scale != "symmetric":
        raise ValueError(
            f"{where}: levels={levels!r} reach from -1 to 1 times the largest weight and take no "
            f"scale={scale!r}. Leave scale out."
        )
    return _Rule(
        bits if isinstance(bits, jax.Array) else int(bits),
        group if isinstance(group, str) else int(group),
        scale,
        levels,
    )
