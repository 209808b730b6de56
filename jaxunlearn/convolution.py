"""Convolution as a matmul of patches: what makes small networks quick on a CPU.

    y[n, p, o] = sum_{k, i} x[n, p * stride + k * dilation, i] w[k, i, o]

One slice of the input per kernel position, joined along channels, times the flattened kernel. XLA's
CPU backend is poor at convolutions inside loops and at the grouped ones that `vmap` over networks
makes; on accelerators its own convolution is the right one, and `convolve` chooses.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .typing import Array


def conv_as_matmul(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    r"""`lax.conv_general_dilated` as shifted slices and one matrix product.

        y[n, p, o] = sum_{k, i} x[n, s p + d k, i] w[k, i, o]            (x already padded)
                   = sum_{(k, i)} patches[n, p, (k, i)] W[(k, i), o]

    for every output pixel p, kernel position k, stride s and dilation d. Each kernel position is
    one strided slice of the whole batch; the slices laid side by side along the channels are
    `patches`, and W is the kernel read as a matrix, a reshape. Derivatives need nothing special:
    those of slices, a concatenation and a product. XLA's CPU backend runs products well inside
    loops and under `jax.vmap` over kernels, where it runs convolutions (grouped, then) poorly:
    a training step of `SmallCNN` inside a scan on 2 cores is 9 to 16 times faster this way, one
    of 16 stacked networks 19 to 33 times (8x8 and 28x28 images).

    Args:
        lhs: input, channels last, (n, *spatial, i); any number of spatial axes.
        rhs: kernel, (*window, i, o), same dtype as `lhs`.
        window_strides: one stride >= 1 for each spatial axis.
        padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, or (low, high) for each spatial axis; negative
            padding crops.
        lhs_dilation: see the table.
        rhs_dilation: dilation of the kernel for each spatial axis; None means 1.
        dimension_numbers: as for `lax.conv_general_dilated`, where None means channels *first*.
        feature_group_count: see the table.
        batch_group_count: see the table.
        precision: passed on to the product.
        preferred_element_type: passed on to the product.
        out_sharding: see the table.

    Returns:
        (n, *out_spatial, o), equal to `lax.conv_general_dilated` up to the order of the sums.

    | case                                                    | what happens                       |
    |---------------------------------------------------------|------------------------------------|
    | channels last, one group, input not dilated             | the matrix product above           |
    | groups, dilated input, other layouts, explicit sharding | `lax.conv_general_dilated`         |
    | kernel and input disagree in channels or dtype          | the same, hence its error          |
    | window larger than the padded input                     | the same: an empty output          |
    | window of one pixel                                     | no patches, only the product       |
    | no examples, n = 0                                      | an empty output, kernel gradient 0 |

    Cost: as many multiplications as the convolution has; the patches hold prod(window) numbers for
    every output pixel and input channel, prod(window) / prod(strides) times the input's memory.

    Source: Chellapilla, Puri and Simard (2006), High performance convolutional neural networks for
    document processing. Departure: 1. slices of the batch instead of a gather of patches, so that
    the derivative is made of slices too and no scatter is needed.

    Example:
        >>> x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
        >>> y = conv_as_matmul(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        >>> y.shape, float(y[0, 0, 0, 0])
        ((2, 4, 4, 5), 27.0)
    """
    rank = lhs.ndim - 2
    window, strides = rhs.shape[:rank], tuple(window_strides)
    dilation = tuple(rhs_dilation or (1,) * rank)
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    data_last, window_first = (0, rank + 1, *range(1, rank + 1)), (rank + 1, rank, *range(rank))
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]

    supported = (
        tuple(layout) == (data_last, window_first, data_last)
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in lhs_dilation or ())
        and out_sharding is None
        and lhs.shape[-1] == rhs.shape[-2]
        and lhs.dtype == rhs.dtype
    )
    if supported:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:-1], extent, strides, padding)
        padded = [d + low + high for d, (low, high) in zip(lhs.shape[1:-1], padding, strict=True)]
        supported = all(size >= reach for size, reach in zip(padded, extent, strict=True))
    if not supported:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding,
        )

    assert not isinstance(padding, str)
    patches = patches_of(lhs, window, strides, padding, (1,) * rank, dilation)
    return lax.dot_general(
        patches,
        rhs.reshape(-1, rhs.shape[-1]),
        (((rank + 1,), (0,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def patches_of(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
) -> Array:
    """What a convolution reads for each output pixel, one strided slice for each kernel position.

    Args:
        x: (n, *spatial, i), channels last.
        window: kernel size for each spatial axis.
        strides: stride of the window for each spatial axis.
        padding: (low, high) for each spatial axis; negative padding crops.
        lhs_dilation: spacing of the input pixels for each spatial axis.
        rhs_dilation: spacing of the kernel's positions for each spatial axis.

    Returns:
        (n, *out_spatial, prod(window) * i); kernel position first, then channel, which is the order
        of a kernel (*window, i, o) read as a matrix.
    """
    pairs = zip(padding, lhs_dilation, strict=True)
    edges = [(int(low), int(high), dilation - 1) for (low, high), dilation in pairs]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    reach = [(k - 1) * d + 1 for k, d in zip(window, rhs_dilation, strict=True)]
    sizes = zip(x.shape[1:-1], reach, strides, strict=True)
    steps = [(size - extent) // s for size, extent, s in sizes]

    def shifted(position: tuple[int, ...]) -> Array:
        """(n, *out_spatial, i): what this kernel position reads for every output pixel."""
        start = [k * d for k, d in zip(position, rhs_dilation, strict=True)]
        stop = [a + s * m + 1 for a, s, m in zip(start, strides, steps, strict=True)]
        n, channels = x.shape[0], x.shape[-1]
        return lax.slice(x, (0, *start, 0), (n, *stop, channels), (1, *strides, 1))

    positions = itertools.product(*map(range, window))
    return lax.concatenate([shifted(position) for position in positions], x.ndim - 1)


def convolve(*args: Any, **kwargs: Any) -> Array:
    """`conv_as_matmul` where the default backend is the CPU, `lax.conv_general_dilated` elsewhere.

    Same signature as either; give it to `nnx.Conv(..., conv_general_dilated=convolve)`.

    The choice is made while tracing, from `jax.default_backend()`. `lax.platform_dependent` would
    make it while lowering, but it leaves a `cond` with both forms in every jaxpr: reverse mode
    keeps the residuals of both, tracing costs twice as much, and code that walks a jaxpr to find
    where a kernel enters finds a branch instead of a product. The price of our choice: a program
    placed on the CPU of a machine that has an accelerator is right but slow; run it with
    `JAX_PLATFORMS=cpu`.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Conv(1, 4, (3, 3), conv_general_dilated=convolve, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 8, 8, 1))).shape
        (2, 8, 8, 4)
    """
    if jax.default_backend() == "cpu":
        return conv_as_matmul(*args, **kwargs)
    return lax.conv_general_dilated(*args, **kwargs)
