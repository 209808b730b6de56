r"""A GPU kernel for the sum of squared products: one pass of matmuls and no traffic between.

    F[i, o] = sum_n phi(P_n[i, o]),         P_n = sum_t x[n, t, i] d[n, t, o],     phi = ^2 or |.|

One program owns one tile of F. It walks the examples of its segment; for each it adds up the whole
product over the positions in one register tile, applies phi, and adds that to a second register
tile: the n x I x O numbers of the per-example gradients never exist in memory. phi comes after the
last position, never before, since it does not commute with the sum over them.

    for n in segment:                      sequential, in the program
        P = 0
        for a block of positions:          P += x[n, block, tile_i]^T d[n, block, tile_o]
        acc += phi(P)

Where F has few tiles (the first layers of a convolutional network), the examples are divided into
segments too, each with a partial F of its own, and the partial sums are added afterwards.

*Not measured on a GPU.* The program is checked in interpret mode on the CPU, and it lowers to
Triton; what it gains there nobody has timed, so `sum_of_squared_products` takes it on request only.
From jax 0.12 on, lowering it on a GPU warns that Pallas will drop Triton: a sharp edge where
warnings are errors, and one more reason to leave the default alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from jaxunlearn.typing import Array

TILE_I, TILE_O, BLOCK_T = 64, 128, 64  # two float32 tiles: 128 registers a thread of 4 warps
PROGRAMS = 512  # enough to fill the largest GPU of today a few times


def block_size(size: int, most: int) -> int:
    """A power of two from 16 to `most`: the one that pads `size` least, the largest of equals."""
    powers = [b for b in (16, 32, 64, 128) if b <= most]
    return min(powers, key=lambda b: (-(-size // b) * b, -b))


def squared_products_kernel(
    x: Array, d: Array, phi: Callable[[Array], Array], *, interpret: bool = False
) -> Array:
    """F[g] = sum_n phi(x[n, g]^T d[n, g]) elementwise, by tiles.

    Args:
        x: (n, G, T, I) float; n, G, T, I >= 1.
        d: (n, G, T, O) float of the same dtype; O >= 1.
        phi: elementwise, phi(0) = 0.
        interpret: run the kernel as ordinary JAX, on any backend: for tests, slow.

    Returns:
        (G, I, O), float32, float64 from float64.

    | sizes                      | what happens                                                   |
    |----------------------------|----------------------------------------------------------------|
    | I, O or T no block's multiple | padded with zeros by less than one block (a copy of x or d)  |
    | fewer than 16 of anything  | padded to 16, the least that the tensor cores take             |
    | few tiles, many examples   | up to 512 programs; at most 512 tiles of partial sums in memory |

    Cost: the multiplications of the weight gradient; x is read ceil(O / 128) times, d is read
    ceil(I / 64) times, and nothing else moves.
    """
    (n, groups, length, wide_i), wide_o = x.shape, d.shape[-1]
    bt, bi, bo = block_size(length, BLOCK_T), block_size(wide_i, TILE_I), block_size(wide_o, TILE_O)
    x, d = _pad(x, bt, bi), _pad(d, bt, bo)
    steps, tiles_i, tiles_o = x.shape[2] // bt, x.shape[3] // bi, d.shape[3] // bo
    segments = max(1, min(n, PROGRAMS // (groups * tiles_i * tiles_o)))
    rows = -(-n // segments)
    segments = -(-n // rows)
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def kernel(x_ref, d_ref, out_ref):
        first = pl.program_id(0) * rows

        def one_example(row, acc):
            def one_block(step, product):
                at = pl.ds(step * bt, bt)
                return product + lax.dot_general(
                    x_ref[row, at, :],
                    d_ref[row, at, :],
                    (((0,), (0,)), ((), ())),
                    preferred_element_type=dtype,
                )

            zeros = jnp.zeros((bi, bo), dtype)
            return acc + phi(lax.fori_loop(0, steps, one_block, zeros))

        last = jnp.minimum(first + rows, n)
        out_ref[...] = lax.fori_loop(first, last, one_example, jnp.zeros((bi, bo), dtype))

    # A block names the part of x that a program may read; the slices above are what it loads.
    partial_sums = pl.pallas_call(
        kernel,
        grid=(segments, groups, tiles_i, tiles_o),
        in_specs=[
            pl.BlockSpec((n, None, x.shape[2], bi), lambda s, g, i, o: (0, g, 0, i)),
            pl.BlockSpec((n, None, d.shape[2], bo), lambda s, g, i, o: (0, g, 0, o)),
        ],
        out_specs=pl.BlockSpec((None, None, bi, bo), lambda s, g, i, o: (s, g, i, o)),
        out_shape=jax.ShapeDtypeStruct((segments, groups, tiles_i * bi, tiles_o * bo), dtype),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="sum_of_squared_products",
    )(x, d)
    return partial_sums.sum(axis=0)[:, :wide_i, :wide_o]


def _pad(a: Array, block_t: int, block: int) -> Array:
    """Zeros at the end of the last two axes, up to multiples of their blocks: phi(0) = 0."""
    after = (-a.shape[2] % block_t, -a.shape[3] % block)
    pads = [(0, 0, 0), (0, 0, 0), *((0, more, 0) for more in after)]
    return lax.pad(a, jnp.zeros((), a.dtype), pads) if any(after) else a
