r"""The small networks that comparisons train, and the convolution that makes them quick on a CPU.

Every network is a Flax NNX module with four functions of a batch of n examples,

    features(x) -> (n, d)        what the last layer reads
    __call__(x) -> (n, C)        logits = head(features(x))
    middle(x) -> (n, t, e)       activations of t tokens half-way up
    resume(h) -> (n, C)          the rest of the way: resume(middle(x)) = __call__(x)

and no hidden randomness: none has dropout, so with batch statistics frozen (`.eval()`) the logits
are a function of the parameters and of `x` alone, and each row depends on its own example only.

| `build` name  | network                    | normalisation | parameters, (28, 28) to 10 classes |
|---------------|----------------------------|---------------|------------------------------------|
| `mlp`         | `MLP`, 128-64              | none          | 109386                             |
| `cnn`         | `SmallCNN`, 16-32-32, 64   | none          | 115114                             |
| `resnet18`    | `ResNet18(norm="batch")`   | batch         | 11172810                           |
| `resnet18_gn` | `ResNet18(norm="group")`   | group         | 11172810                           |
| `vit`         | `SmallViT`, 4 blocks of 64 | layer         | 138890                             |

| network    | half-way is after                    | tokens                   | class token      |
|------------|--------------------------------------|--------------------------|------------------|
| `MLP`      | the first hidden layer and its relu  | 1                        | none             |
| `SmallCNN` | the last convolution and its relu    | its positions            | none             |
| `ResNet18` | the second of the four stages        | positions, square images | none             |
| `SmallViT` | block ceil(depth / 2)                | patches                  | `pool="cls"`: 1st |

Sharp edge: in training mode batch normalisation couples the rows of a batch. Per-example losses
and gradients then mean nothing, and rows of weight 0 enter the statistics. The group-normalised
twin has neither problem; prefer it wherever a method needs per-example gradients.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen, nnx

from .convolution import conv_as_matmul as conv_as_matmul
from .convolution import convolve as convolve
from .naming import closest
from .typing import Array

_Conv = partial(nnx.Conv, conv_general_dilated=convolve)


def _images(x: Array, channels: int, network: nnx.Module) -> Array:
    """`x` as (n, H, W, channels); (n, H, W) gets its channel axis."""
    images = x[..., None] if x.ndim == 3 else x
    if images.ndim != 4 or images.shape[-1] != channels:
        expected = f"(n, H, W, {channels})" + (" or (n, H, W)" if channels == 1 else "")
        raise ValueError(
            f"{type(network).__name__} expected images of shape {expected}, got {x.shape}. "
            "Put the channels last, or rebuild the network for this input shape."
        )
    return images


def _flat(x: Array) -> Array:
    """(n, prod of the rest), also when n is 0."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _positions(h: Array) -> Array:
    """(n, H W, d) from (n, H, W, d)."""
    n, height, width, channels = h.shape
    return h.reshape(n, height * width, channels)


class MLP(nnx.Module):
    """Fully connected: h_0 = x flattened, h_{l+1} = relu(h_l W_l + b_l), logits = h_L W_L + b_L.

    Args:
        in_features: numbers in one example after flattening.
        num_classes: C, the number of logits.
        hidden: widths of the hidden layers; `()` is a linear classifier and `features` the input.
        rngs: source of the initial weights (LeCun normal; biases 0).

    Example:
        >>> network = MLP(64, 10, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((3, 8, 8))
        >>> network(x).shape, network.features(x).shape
        ((3, 10), (3, 64))
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        hidden: Sequence[int] = (128, 64),
        rngs: nnx.Rngs,
    ):
        sizes = (in_features, *hidden)
        self.in_features = in_features
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.head = nnx.Linear(sizes[-1], num_classes, rngs=rngs)

    def _rise(self, h: Array, layers: slice) -> Array:
        """Through some of the hidden layers."""
        for layer in self.layers[layers]:
            h = jax.nn.relu(layer(h))
        return h

    def _inputs(self, x: Array) -> Array:
        """(n, in_features)"""
        h = _flat(x)
        if h.shape[1] != self.in_features:
            raise ValueError(
                f"MLP expected {self.in_features} numbers an example, got {h.shape[1]} in an input "
                f"of shape {x.shape}. The first axis counts examples; rebuild it for this input."
            )
        return h

    def middle(self, x: Array) -> Array:
        """(n, 1, hidden[0]): the first hidden layer after its relu; the input if there is none."""
        return self._rise(self._inputs(x), slice(1))[:, None]

    def resume(self, h: Array) -> Array:
        """(n, C) logits from what `middle` returned."""
        return self.head(self._rise(h[:, 0], slice(1, None)))

    def features(self, x: Array) -> Array:
        """(n, hidden[-1]) from (n, ...): the last hidden layer after its relu."""
        return self._rise(self._inputs(x), slice(None))

    def __call__(self, x: Array) -> Array:
        """(n, C) logits."""
        return self.head(self.features(x))


class SmallCNN(nnx.Module):
    """A few 3x3 convolutions, each after the first halving the image, then one hidden layer.

    Strided convolutions instead of pooling: nothing but products, slices and relu, which is quick
    on a CPU in both directions. 30 epochs of the embedded digits (1078 images of 8x8, batches of
    64) take 0.3 s on 2 cores once compiled and reach 0.98 accuracy on the rest.

    Args:
        image_shape: (H, W, channels) of one example; H and W must be those of the input, since the
            hidden layer reads every pixel. An input (n, H, W) is taken as one channel.
        num_classes: C, the number of logits.
        channels: output channels of the convolutions; the first has stride 1, the others stride 2.
        hidden: width of the layer between the flattened image and the head; `features` has it.
        rngs: source of the initial weights.

    Example:
        >>> network = SmallCNN((8, 8, 1), 10, rngs=nnx.Rngs(0))
        >>> nnx.jit(SmallCNN.features)(network, jnp.ones((3, 8, 8))).shape
        (3, 64)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: Sequence[int] = (16, 32, 32),
        hidden: int = 64,
        rngs: nnx.Rngs,
    ):
        height, width, self.in_channels = image_shape
        strides = (1, *(2 for _ in channels[1:]))
        sizes = (self.in_channels, *channels)
        self.convs = nnx.List(
            [
                _Conv(a, b, (3, 3), strides=s, rngs=rngs)
                for (a, b), s in zip(itertools.pairwise(sizes), strides, strict=True)
            ]
        )
        for s in strides:
            height, width = -(-height // s), -(-width // s)
        self.dense = nnx.Linear(height * width * sizes[-1], hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, num_classes, rngs=rngs)

    def _map(self, x: Array) -> Array:
        """(n, H', W', channels[-1]): the last convolution after its relu."""
        h = _images(x, self.in_channels, self)
        for conv in self.convs:
            h = jax.nn.relu(conv(h))
        return h

    def middle(self, x: Array) -> Array:
        """(n, H' W', channels[-1]): positions of the last convolution, rows first, after relu."""
        return _positions(self._map(x))

    def resume(self, h: Array) -> Array:
        """(n, C) logits from what `middle` returned."""
        return self.head(jax.nn.relu(self.dense(_flat(h))))

    def features(self, x: Array) -> Array:
        """(n, hidden) from (n, H, W, channels)."""
        return jax.nn.relu(self.dense(_flat(self._map(x))))

    def __call__(self, x: Array) -> Array:
        """(n, C) logits."""
        return self.head(self.features(x))


def _batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)


def _group_norm(channels: int, rngs: nnx.Rngs) -> nnx.Module:
    """32 groups where each gets at least two channels, else one group.

    A group of one channel over one pixel would be normalised to 0 whatever came in.
    """
    groups = 32 if channels >= 64 and channels % 32 == 0 else 1
    return nnx.GroupNorm(channels, num_groups=groups, rngs=rngs)


_NORMS: dict[str, Callable[[int, nnx.Rngs], nnx.Module]] = {
    "batch": _batch_norm,
    "group": _group_norm,
}
_he_normal = jax.nn.initializers.he_normal()


class _ResidualBlock(nnx.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), the shortcut 1x1 where shapes change."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, norm, rngs: nnx.Rngs):
        conv = partial(_Conv, use_bias=False, kernel_init=_he_normal, rngs=rngs)
        self.conv1 = conv(fan_in, fan_out, (3, 3), strides=stride, padding=1)
        self.norm1 = norm(fan_out, rngs)
        self.conv2 = conv(fan_out, fan_out, (3, 3), padding=1)
        self.norm2 = norm(fan_out, rngs)
        self.projects = stride != 1 or fan_in != fan_out
        if self.projects:
            self.conv3 = conv(fan_in, fan_out, (1, 1), strides=stride, padding=0)
            self.norm3 = norm(fan_out, rngs)

    def __call__(self, x: Array) -> Array:
        shortcut = self.norm3(self.conv3(x)) if self.projects else x
        h = jax.nn.relu(self.norm1(self.conv1(x)))
        return jax.nn.relu(self.norm2(self.conv2(h)) + shortcut)


class ResNet18(nnx.Module):
    """Residual network of 18 weight layers in the form used for 32x32 images.

    A 3x3 stem without pooling, four stages of two blocks with 1, 2, 4 and 8 times `width` channels
    (each stage after the first halves the image), mean over pixels, head. Explicit padding of 1 as
    in the common PyTorch form, so that weights can be carried over; biases in norms and head only.

    Args:
        in_channels: channels of the images; their size is free.
        num_classes: C, the number of logits.
        norm: `"batch"` (momentum 0.9; stored statistics after `.eval()`, updated in training mode)
            or `"group"` (32 groups, one in a layer too thin for that), each example by itself.
        width: channels of the first stage; 64 is the usual network, 4 is one for tests.
        rngs: source of the initial weights (He normal for convolutions).

    Raises:
        ValueError: `norm` is not one of the two.

    Source: He, Zhang, Ren and Sun (2015), arXiv:1512.03385, with section 4.2's stem and Table 1's
    18-layer stages; group normalisation of Wu and He (2018), arXiv:1803.08494.

    Example:
        >>> def features(x):
        ...     return ResNet18(3, 10, norm="group", rngs=nnx.Rngs(0)).features(x)
        >>> jax.eval_shape(features, jnp.ones((2, 32, 32, 3))).shape
        (2, 512)
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: str = "batch",
        width: int = 64,
        rngs: nnx.Rngs,
    ):
        if norm not in _NORMS:
            raise ValueError(f"ResNet18 expected norm to be 'batch' or 'group', got {norm!r}.")
        make_norm = _NORMS[norm]
        self.in_channels = in_channels
        self.stem = _Conv(
            in_channels,
            width,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.stem_norm = make_norm(width, rngs)
        blocks, fan_in = [], width
        for stage in range(4):
            for stride in (1 if stage == 0 else 2, 1):
                fan_out = width * 2**stage
                blocks.append(_ResidualBlock(fan_in, fan_out, stride, make_norm, rngs))
                fan_in = fan_out
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(fan_in, num_classes, rngs=rngs)

    def _stages(self, x: Array, blocks: slice) -> Array:
        """The stem and some of the blocks: (n, H, W, in_channels) -> (n, H', W', channels)."""
        h = jax.nn.relu(self.stem_norm(self.stem(_images(x, self.in_channels, self))))
        for block in self.blocks[blocks]:
            h = block(h)
        return h

    def middle(self, x: Array) -> Array:
        """(n, H W / 4, 2 * width): positions after the second stage, rows first; square images.

        Raises:
            ValueError: the image is not square. A number of positions does not tell its sides, and
                `resume` has nothing else.
        """
        h = self._stages(x, slice(4))
        if h.shape[1] != h.shape[2]:
            raise ValueError(
                f"ResNet18.middle expected square images, got {x.shape[1]} x {x.shape[2]} pixels. "
                "Pad or crop them."
            )
        return _positions(h)

    def resume(self, h: Array) -> Array:
        """(n, C) logits from what `middle` returned."""
        side = math.isqrt(h.shape[1])
        h = h.reshape(h.shape[0], side, side, h.shape[2])
        for block in self.blocks[4:]:
            h = block(h)
        return self.head(h.mean((1, 2)))

    def features(self, x: Array) -> Array:
        """(n, 8 * width) from (n, H, W, in_channels): the mean over pixels of the last stage."""
        return self._stages(x, slice(None)).mean((1, 2))

    def __call__(self, x: Array) -> Array:
        """(n, C) logits."""
        return self.head(self.features(x))


class _TransformerBlock(nnx.Module):
    """h = x + attention(norm(x));  h + mlp(norm(h))."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, dim, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.expand = nnx.Linear(dim, mlp_dim, rngs=rngs)
        self.contract = nnx.Linear(mlp_dim, dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(jax.nn.gelu(self.expand(self.norm2(x))))


class SmallViT(nnx.Module):
    """Vision transformer: patches to tokens, learned positions, pre-norm blocks, pooled, head.

    Args:
        image_shape: (H, W, channels) of one example; `patch` divides H and W.
        num_classes: C, the number of logits.
        patch: side of a square patch, pixels. H W / patch^2 tokens; attention costs its square.
        dim: width of a token.
        depth: number of blocks.
        num_heads: attention heads; divides `dim`.
        mlp_dim: width of the hidden layer in each block.
        pool: `"mean"` over the tokens, or `"cls"`, a learned extra token read at the end.
        rngs: source of the initial weights (positions normal with standard deviation 0.02).

    Raises:
        ValueError: `patch` does not divide the image, or `pool` is not one of the two.

    Source: Dosovitskiy et al. (2020), arXiv:2010.11929, eq. 1-4. Departures: 1. mean pooling by
    default; 2. no dropout.

    Example:
        >>> network = SmallViT((8, 8, 1), 10, patch=2, depth=1, rngs=nnx.Rngs(0))
        >>> nnx.jit(SmallViT.features)(network, jnp.ones((3, 8, 8))).shape
        (3, 64)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        patch: int = 4,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_dim: int = 128,
        pool: str = "mean",
        rngs: nnx.Rngs,
    ):
        height, width, self.in_channels = image_shape
        if height % patch or width % patch:
            raise ValueError(
                f"SmallViT expected a patch that divides the image, got patch {patch} for "
                f"{height} x {width} pixels. Choose a divisor of {math.gcd(height, width)}."
            )
        if pool not in ("mean", "cls"):
            raise ValueError(f"SmallViT expected pool to be 'mean' or 'cls', got {pool!r}.")
        self.patch, self.pool = patch, pool
        tokens = (height // patch) * (width // patch) + (pool == "cls")
        self.embed = nnx.Linear(patch * patch * self.in_channels, dim, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, dim)))
        if pool == "cls":
            self.cls = nnx.Param(jnp.zeros((1, 1, dim)))
        self.blocks = nnx.List(
            [_TransformerBlock(dim, num_heads, mlp_dim, rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.head = nnx.Linear(dim, num_classes, rngs=rngs)

    @property
    def _half(self) -> int:
        """How many blocks are half of them, the middle one included."""
        return (len(self.blocks) + 1) // 2

    def _patches(self, x: Array) -> Array:
        """(n, tokens, patch^2 channels); in a patch rows first, then columns, then channels."""
        n, height, width, channels = x.shape
        p = self.patch
        x = x.reshape(n, height // p, p, width // p, p, channels).swapaxes(2, 3)
        return x.reshape(n, (height // p) * (width // p), p * p * channels)

    def middle(self, x: Array) -> Array:
        """(n, tokens, dim) after block ceil(depth / 2): the class token, if any, and the patches.

        With mean pooling there is no class token: all tokens are patches.
        """
        h = self.embed(self._patches(_images(x, self.in_channels, self)))
        if self.pool == "cls":
            cls = jnp.broadcast_to(self.cls[...], (h.shape[0], 1, h.shape[2]))
            h = jnp.concatenate([cls, h], axis=1)
        h = h + self.positions[...]
        for block in self.blocks[: self._half]:
            h = block(h)
        return h

    def _pooled(self, h: Array) -> Array:
        """(n, dim) from what `middle` returned: the other blocks and the pooling."""
        for block in self.blocks[self._half :]:
            h = block(h)
        h = self.norm(h)
        return h[:, 0] if self.pool == "cls" else h.mean(1)

    def resume(self, h: Array) -> Array:
        """(n, C) logits from what `middle` returned."""
        return self.head(self._pooled(h))

    def features(self, x: Array) -> Array:
        """(n, dim) from (n, H, W, channels)."""
        return self._pooled(self.middle(x))

    def __call__(self, x: Array) -> Array:
        """(n, C) logits."""
        return self.head(self.features(x))


class LinenMLP(linen.Module):
    """The Linen twin of `MLP`: the same function when given the same weights.

    `layers_0`, `layers_1`, ... and `head` in the params dict are `layers[0]`, `layers[1]`, ... and
    `head` there, each with `kernel` and `bias`. The input's size is found at `init`.

    Args:
        num_classes: C, the number of logits.
        hidden: widths of the hidden layers.

    Example:
        >>> network = LinenMLP(num_classes=10)
        >>> variables = network.init(jax.random.key(0), jnp.ones((1, 8, 8)))
        >>> network.apply(variables, jnp.ones((3, 8, 8)), method="features").shape
        (3, 64)
    """

    num_classes: int
    hidden: Sequence[int] = (128, 64)

    def setup(self):
        self.layers = [linen.Dense(width) for width in self.hidden]
        self.head = linen.Dense(self.num_classes)

    def _rise(self, h: Array, layers: slice) -> Array:
        for layer in self.layers[layers]:
            h = jax.nn.relu(layer(h))
        return h

    def middle(self, x: Array) -> Array:
        """(n, 1, hidden[0]): the first hidden layer after its relu; the input if there is none."""
        return self._rise(_flat(x), slice(1))[:, None]

    def resume(self, h: Array) -> Array:
        """(n, C) logits from what `middle` returned."""
        return self.head(self._rise(h[:, 0], slice(1, None)))

    def features(self, x: Array) -> Array:
        """(n, hidden[-1]) from (n, ...)."""
        return self._rise(_flat(x), slice(None))

    def __call__(self, x: Array) -> Array:
        """(n, C) logits."""
        return self.head(self.features(x))


def _patch_side(height: int, width: int) -> int:
    """The largest common divisor of both sides that is at most 4 and leaves 4 patches to a side."""
    most = max(1, min(4, height // 4, width // 4))
    return max(p for p in range(1, most + 1) if height % p == 0 and width % p == 0)


_NETWORKS: dict[str, Callable[[tuple[int, int, int], int], Callable[..., nnx.Module]]] = {
    "cnn": lambda image, c: partial(SmallCNN, image, c),
    "resnet18": lambda image, c: partial(ResNet18, image[2], c, norm="batch"),
    "resnet18_gn": lambda image, c: partial(ResNet18, image[2], c, norm="group"),
    "vit": lambda image, c: partial(SmallViT, image, c, patch=_patch_side(*image[:2])),
}


def build(
    name: str, input_shape: Sequence[int], num_classes: int
) -> Callable[[nnx.Rngs], nnx.Module]:
    """A network by name: `build("cnn", (28, 28), 10)(nnx.Rngs(0))`.

    Args:
        name: `"mlp"`, `"cnn"`, `"resnet18"`, `"resnet18_gn"` or `"vit"` (table at the top).
        input_shape: shape of one example, without the batch axis.
        num_classes: C >= 1, the number of logits.

    Returns:
        A function from `nnx.Rngs` to the network with its default sizes.

    | input_shape | `mlp`     | the others                                       |
    |-------------|-----------|--------------------------------------------------|
    | `(d,)`      | as it is  | refused: they read images                        |
    | `(H, W)`    | flattened | one channel; the network takes (n, H, W) as such |
    | `(H, W, C)` | flattened | channels last                                    |

    Raises:
        ValueError: unknown name (the nearest one is named), a flat shape for a network of images,
            or a size below 1.

    Example:
        >>> network = build("mlp", (8, 8), 10)(nnx.Rngs(0))
        >>> network(jnp.ones((3, 8, 8))).shape
        (3, 10)
    """
    names = ("mlp", *_NETWORKS)
    shape = tuple(int(size) for size in input_shape)
    if name not in names:
        near = closest(str(name).lower(), names)
        raise ValueError(
            f"unknown network {name!r}: did you mean {near!r}? Expected one of {', '.join(names)}."
        )
    if not shape or min(shape) < 1 or num_classes < 1:
        raise ValueError(
            f"network {name!r} expected sizes of at least 1, got input_shape {shape} and "
            f"num_classes {num_classes}. Give the shape of one example, without the batch axis."
        )
    if name == "mlp":
        network: Callable[..., nnx.Module] = partial(MLP, math.prod(shape), num_classes)
    elif len(shape) in (2, 3):
        image = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
        network = _NETWORKS[name](image, num_classes)
    else:
        raise ValueError(
            f"network {name!r} reads images: expected input_shape (H, W) or (H, W, C), got "
            f"{shape}. Reshape the examples to images, or choose 'mlp'."
        )
    return lambda rngs: network(rngs=rngs)
