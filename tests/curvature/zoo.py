"""Small networks of every build: where a weight can enter a loss, one way at a time.

    ZOO[name]() -> Network(loss_fn, params, columns, ...)          loss_fn(params, batch) -> (n,)

Each is there for a reason, said in its docstring: a primitive, a path that a parameter takes before
it meets the data, a structure of the program around it, or a trap for shortcuts. They are made from
the fixed bits of NumPy in the dtype in force, so that they are float64 inside `x64`; no leaf is at
a special point (a bias of 0, a scale of 1), or mistakes would hide there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS, CLASSES = 5, 3


class Network(NamedTuple):
    """A loss, its parameters and a few rows."""

    name: str
    loss_fn: Callable[[Any, Any], jax.Array]  # (params, batch) -> (n,), rows on their own
    params: Any  # tree of float arrays, fewer than 3000 numbers
    columns: dict[str, np.ndarray]  # "x" and "y", 5 rows
    unused: tuple[str, ...] = ()  # keystr of the leaves whose gradient is 0 everywhere
    rtol: float = 1e-6  # with which two exact routes must agree when the rest is in float64


ZOO: dict[str, Callable[[], Network]] = {}


def _network(build: Callable[[], tuple]) -> Callable[[], Network]:
    """Lists `build`, which returns (loss_fn, params, columns, ...), under its own name."""

    def made() -> Network:
        return Network(build.__name__, *build())

    ZOO[build.__name__] = made
    return made


# ------------------------------------------------------------------------------- shared by several


class _Draw:
    """Weights and rows from one stream of NumPy's, in the dtype in force."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float = 0.5, around: float = 0.0) -> jax.Array:
        return jnp.asarray(around + scale * self.rng.standard_normal(shape))

    def rows(self, *shape: int, classes: int = CLASSES) -> dict[str, np.ndarray]:
        x = self.rng.standard_normal((ROWS, *shape)).astype(jnp.result_type(float))
        return {"x": x, "y": (np.arange(ROWS) % classes).astype(np.int32)}

    def sentences(self, length: int, words: int) -> dict[str, np.ndarray]:
        """Ids with repetitions inside every row: `words` is smaller than `length`."""
        x = self.rng.integers(0, words, (ROWS, length)).astype(np.int32)
        assert words < length
        return {"x": x, "y": (np.arange(ROWS) % CLASSES).astype(np.int32)}


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """(...,) from (..., C): no one-hot product, which would look like a layer."""
    picked = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def _along(v: jax.Array, h: jax.Array) -> jax.Array:
    """`v` (d,) with as many axes as `h` (..., d)."""
    return v.reshape((1,) * (h.ndim - 1) + v.shape)


def _dense(p: Any, h: jax.Array) -> jax.Array:
    """h W + b over the last axis."""
    h = h @ p["w"]
    return h + _along(p["b"], h)


def _dense_params(draw: _Draw, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    return {"w": draw(fan_in, fan_out), "b": draw(fan_out)}


def _layer_norm(p: Any, h: jax.Array) -> jax.Array:
    h = h - h.mean(axis=-1, keepdims=True)
    h = h * lax.rsqrt(jnp.square(h).mean(axis=-1, keepdims=True) + 1e-5)
    return h * _along(p["scale"], h) + _along(p["shift"], h)


def _norm_params(draw: _Draw, width: int) -> dict[str, jax.Array]:
    return {"scale": draw(width, around=1.0), "shift": draw(width)}


def _attention(qkv: jax.Array, heads: int, causal: bool = False) -> jax.Array:
    """(n, T, D) from fused (n, T, 3 D)."""
    n, length, width = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(n, length, 3, heads, width // 3 // heads), 2, 0)
    scores = jnp.einsum("nthd,nshd->nhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        seen = jnp.tril(jnp.ones((1, 1, length, length), bool))
        scores = jnp.where(seen, scores, -1e9)
    mixed = jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(scores, axis=-1), v)
    return mixed.reshape(n, length, width // 3)


def _block_params(draw: _Draw, width: int, hidden: int) -> dict[str, Any]:
    return {
        "norm1": _norm_params(draw, width),
        "qkv": _dense_params(draw, width, 3 * width),
        "out": _dense_params(draw, width, width),
        "norm2": _norm_params(draw, width),
        "up": _dense_params(draw, width, hidden),
        "down": _dense_params(draw, hidden, width),
    }


def _block(p: Any, h: jax.Array, causal: bool = False) -> jax.Array:
    """A pre-norm transformer block with fused queries, keys and values."""
    qkv = _dense(p["qkv"], _layer_norm(p["norm1"], h))
    h = h + _dense(p["out"], _attention(qkv, heads=2, causal=causal))
    return h + _dense(p["down"], jax.nn.gelu(_dense(p["up"], _layer_norm(p["norm2"], h))))


def _conv(x: jax.Array, w: jax.Array, strides: int = 1, padding: Any = "SAME", **options: Any):
    """Channels last."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (strides, strides), padding, dimension_numbers=layout, **options
    )


def _drawn_like(draw: _Draw, shapes: Any) -> Any:
    """A leaf for every shape of a module that was never initialised: that would compile."""
    return jax.tree.map(lambda s: draw(*s.shape, around=0.2), shapes)


def _from_nnx(draw: _Draw, build: Callable[[Any], Any], rows: dict[str, np.ndarray]) -> tuple:
    from flax import nnx

    from jaxunlearn.model import freeze_statistics, from_nnx

    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    model = from_nnx(module)
    weights = _drawn_like(draw, nnx.state(module, nnx.Param))
    if model.statistics:
        moved = _drawn_like(draw, nnx.state(module, nnx.BatchStat))
        moved = jax.tree.map(lambda s: jnp.asarray(np.abs(s) + 0.3), moved)
        model = freeze_statistics(model, moved)
    return model.loss, weights, rows


# ------------------------------------------------------------------------------- dense, by library


@_network
def linear_regression():
    """One weight vector, a squared loss: the diagonal has a closed form."""
    draw = _Draw(1)
    rows = draw.rows(4)

    def loss(p, batch):
        return 0.5 * jnp.square(batch["x"] @ p["w"] + p["b"] - batch["y"])

    return loss, {"w": draw(4), "b": draw()}, rows


@_network
def mlp():
    """Dense layers without positions, from a nested tuple of dicts."""
    draw = _Draw(2)
    params = (_dense_params(draw, 4, 6), (_dense_params(draw, 6, 5), _dense_params(draw, 5, 3)))

    def loss(p, batch):
        first, (second, head) = p
        h = jnp.tanh(_dense(second, jnp.tanh(_dense(first, batch["x"]))))
        return _cross_entropy(_dense(head, h), batch["y"])

    return loss, params, draw.rows(4)


@_network
def mlp_nnx():
    """Flax NNX: params are an `nnx.State`, biases are reshaped before they are added."""
    from jaxunlearn.networks import MLP

    draw = _Draw(3)
    return _from_nnx(draw, lambda r: MLP(4, CLASSES, hidden=(6, 5), rngs=r), draw.rows(2, 2))


@_network
def mlp_linen():
    """Flax Linen: params are a dict of dicts."""
    from jaxunlearn.model import from_linen
    from jaxunlearn.networks import LinenMLP

    draw = _Draw(4)
    rows = draw.rows(4)
    model = from_linen(LinenMLP(CLASSES, hidden=(6, 5)), jnp.asarray(rows["x"][:1]))
    assert model.init is not None
    return model.loss, _drawn_like(draw, jax.eval_shape(model.init, jax.random.key(0))), rows


@_network
def mlp_equinox():
    """Equinox: weights (out, in) times one example under `vmap`, None for what is fixed."""
    import pytest

    eqx = pytest.importorskip("equinox")
    draw = _Draw(5)
    build = functools.partial(eqx.nn.MLP, 4, CLASSES, width_size=6, depth=2)
    module = eqx.filter_eval_shape(build, key=jax.random.key(0))
    shapes, fixed = eqx.partition(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def loss(p, batch):
        logits = jax.vmap(eqx.combine(p, fixed))(batch["x"])
        return _cross_entropy(logits, batch["y"])

    return loss, _drawn_like(draw, shapes), draw.rows(4)


# ------------------------------------------------------------------------------------ convolutions


def _conv_net(seed: int, kernel: tuple[int, ...], rows: tuple[int, ...], features, width: int):
    """conv + bias, tanh, mean over pixels, head; `features(x, w)` is the convolution."""
    draw = _Draw(seed)
    params = {"w": draw(*kernel), "b": draw(width), "head": _dense_params(draw, width, CLASSES)}

    def loss(p, batch):
        h = features(batch["x"], p["w"])
        h = jnp.tanh(h + _along(p["b"], h)).mean(axis=(1, 2))
        return _cross_entropy(_dense(p["head"], h), batch["y"])

    return loss, params, draw.rows(*rows)


@_network
def conv_same_stride():
    """A convolution with stride 2 and padding SAME, which is uneven on 6 pixels."""
    return _conv_net(10, (3, 3, 2, 4), (6, 5, 2), lambda x, w: _conv(x, w, 2), 4)


@_network
def conv_explicit_padding():
    """Uneven strides, padding by hand and a kernel that is not square."""

    def features(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (2, 1), [(2, 0), (1, 1)], dimension_numbers=layout)

    return _conv_net(11, (3, 2, 2, 4), (6, 5, 2), features, 4)


@_network
def conv_dilated():
    """A dilated kernel: neighbouring weights read pixels two apart."""

    def features(x, w):
        return _conv(x, w, padding="VALID", rhs_dilation=(2, 1))

    return _conv_net(12, (3, 2, 2, 4), (7, 5, 2), features, 4)


@_network
def conv_transposed():
    """A dilated input, as in decoders of images."""

    def features(x, w):
        return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return _conv_net(13, (3, 3, 2, 4), (3, 4, 2), features, 4)


@_network
def conv_grouped():
    """Two groups: a weight sees the channels of its own group only."""
    return _conv_net(
        14, (3, 3, 2, 6), (5, 4, 4), lambda x, w: _conv(x, w, feature_group_count=2), 6
    )


@_network
def conv_depthwise():
    """As many groups as channels, two outputs for each, and a pointwise convolution after it."""
    draw = _Draw(15)
    params = {"depth": draw(3, 3, 1, 6), "point": draw(1, 1, 6, 4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(_conv(batch["x"], p["depth"], feature_group_count=3))
        h = jnp.tanh(_conv(h, p["point"])).mean(axis=(1, 2))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(5, 4, 3)


@_network
def conv_channels_first():
    """Another layout of data and kernel, in one dimension."""
    draw = _Draw(16)
    params = {"w": draw(4, 2, 3), "b": draw(4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        h = lax.conv_general_dilated(batch["x"], p["w"], (2,), "SAME")  # NCH, OIH
        h = jnp.tanh(h + p["b"].reshape(1, 4, 1)).mean(axis=2)
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(2, 7)


@_network
def conv_as_matmul():
    """`SmallCNN`: on a CPU its kernels are reshaped and multiplied with patches."""
    from jaxunlearn.networks import SmallCNN

    draw = _Draw(17)
    build = functools.partial(SmallCNN, (6, 5, 2), CLASSES, channels=(3, 4), hidden=5)
    return _from_nnx(draw, lambda r: build(rngs=r), draw.rows(6, 5, 2))


@_network
def pooling():
    """Max-pooling and average-pooling between the layers: windows that reduce, not layers."""
    draw = _Draw(18)
    params = {"w1": draw(2, 2, 2, 3), "w2": draw(2, 2, 3, 4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        window, strides = (1, 2, 2, 1), (1, 2, 2, 1)
        h = _conv(batch["x"], p["w1"])
        h = lax.reduce_window(h, -jnp.inf, lax.max, window, strides, "VALID")
        h = jnp.tanh(_conv(h, p["w2"]))
        h = lax.reduce_window(h, 0.0, lax.add, window, strides, "VALID") / 4
        return _cross_entropy(h.sum(axis=(1, 2)) @ p["head"], batch["y"])

    return loss, params, draw.rows(8, 8, 2)


def _resnet(seed: int, norm: str):
    """Stem, an identity block and a projecting block of `ResNet18` at width 4."""
    from flax import nnx

    from jaxunlearn.networks import ResNet18

    def build(rngs):
        module = ResNet18(2, CLASSES, norm=norm, width=4, rngs=rngs)
        module.blocks = nnx.List([module.blocks[0], module.blocks[2]])
        module.head = nnx.Linear(8, CLASSES, rngs=rngs)
        return module

    draw = _Draw(seed)
    return _from_nnx(draw, build, draw.rows(6, 6, 2))


@_network
def resnet_group_norm():
    """Residual blocks with a shortcut of their own; scales and shifts over pixels."""
    return _resnet(19, "group")


@_network
def resnet_batch_norm():
    """The same with stored statistics: in evaluation mode rows are on their own."""
    return _resnet(20, "batch")


# ------------------------------------------------------------------------- tokens and transformers


@_network
def transformer_fused_qkv():
    """LayerNorm, one dense for queries, keys and values, residual streams: positions everywhere."""
    draw = _Draw(30)
    params = {"in": _dense_params(draw, 3, 4), "block": _block_params(draw, 4, 6)}
    params |= {"norm": _norm_params(draw, 4), "head": _dense_params(draw, 4, CLASSES)}

    def loss(p, batch):
        h = _block(p["block"], _dense(p["in"], batch["x"]))
        h = _layer_norm(p["norm"], h).mean(axis=1)
        return _cross_entropy(_dense(p["head"], h), batch["y"])

    return loss, params, draw.rows(5, 3)


def _vit(seed: int, pool: str):
    from jaxunlearn.networks import SmallViT

    draw = _Draw(seed)
    build = functools.partial(SmallViT, (4, 4, 1), CLASSES, patch=2, dim=4, depth=1)
    build = functools.partial(build, num_heads=2, mlp_dim=6, pool=pool)
    return _from_nnx(draw, lambda r: build(rngs=r), draw.rows(4, 4))


@_network
def vit_mean():
    """`nnx.MultiHeadAttention`: kernels (D, heads, d) in `dot_general` with two contracted axes."""
    return _vit(31, "mean")


@_network
def vit_cls():
    """A learned token, broadcast over the rows and concatenated before the others."""
    return _vit(32, "cls")


@_network
def decoder_tied():
    """Gathered embedding and head are one leaf; the loss is a sum over the tokens of a sentence."""
    draw = _Draw(33)
    words, length, width = 5, 6, 4
    params = {
        "embed": draw(words, width),
        "positions": draw(length, width),
        "block": _block_params(draw, width, 6),
        "norm": _norm_params(draw, width),
    }

    def loss(p, batch):
        ids = batch["x"]
        h = p["embed"][ids] + p["positions"][None]
        h = _layer_norm(p["norm"], _block(p["block"], h, causal=True))
        logits = h @ p["embed"].T
        return _cross_entropy(logits[:, :-1], ids[:, 1:]).sum(axis=1)

    return loss, params, draw.sentences(length, words)


@_network
def embedding_repeated():
    """One word several times in a sentence: its row's gradients are added before the square."""
    draw = _Draw(34)
    params = {"embed": draw(4, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(jnp.take(p["embed"], batch["x"], axis=0)).mean(axis=1)
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.sentences(7, 4)


@_network
def one_hot_embedding():
    """The same as a product with one-hot rows."""
    draw = _Draw(35)
    params = {"embed": draw(4, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        one_hot = jax.nn.one_hot(batch["x"], 4, dtype=p["embed"].dtype)
        h = jnp.tanh(one_hot @ p["embed"]).mean(axis=1)
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.sentences(7, 4)


@_network
def mask_token():
    """A learned token put in by `jnp.where` at places that depend on the row."""
    draw = _Draw(36)
    params = {"token": draw(3), "w": draw(3, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        x = batch["x"]
        hidden = (x[..., :1] > 0.3) & jnp.ones(x.shape, bool)
        h = jnp.where(hidden, jnp.broadcast_to(p["token"], x.shape), x)
        return _cross_entropy(jnp.tanh(h @ p["w"]).mean(axis=1) @ p["head"], batch["y"])

    return loss, params, draw.rows(4, 3)


@_network
def flattened_positions():
    """Rows and positions in one axis before the product: a trap for T = 1 formulas."""
    draw = _Draw(37)
    params = {"w": draw(3, 5), "b": draw(5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        n, length, width = batch["x"].shape
        h = batch["x"].reshape(n * length, width) @ p["w"]
        h = jnp.tanh(h + p["b"][None]).reshape(n, length, 5).sum(axis=1)
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4, 3)


@_network
def time_major():
    """The axis of the rows is not the first where the weight is met."""
    draw = _Draw(38)
    params = {"w": draw(3, 5), "b": draw(5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        x = jnp.moveaxis(batch["x"], 0, 1)  # T, n, D
        h = jnp.tanh(jnp.einsum("tnd,de->tne", x, p["w"]) + _along(p["b"], x))
        return _cross_entropy(h.mean(axis=0) @ p["head"], batch["y"])

    return loss, params, draw.rows(4, 3)


@_network
def heads_with_weights_of_their_own():
    """A batch axis in the weight: one matrix per head, `dot_general` with batch dimensions."""
    draw = _Draw(39)
    params = {"w": draw(2, 3, 4), "b": draw(2, 4), "head": draw(8, CLASSES)}

    def loss(p, batch):
        h = jnp.einsum("nthd,hde->nthe", batch["x"], p["w"]) + p["b"][None, None]
        h = jnp.tanh(h).mean(axis=1)
        return _cross_entropy(h.reshape(h.shape[0], 8) @ p["head"], batch["y"])

    return loss, params, draw.rows(4, 2, 3)


@_network
def contracted_over_positions():
    """A mixer: the weight contracts the positions, the channels are what shares it."""
    draw = _Draw(40)
    params = {"tokens": draw(4, 5), "b": draw(5), "channels": draw(3, CLASSES)}

    def loss(p, batch):
        h = jnp.einsum("ntd,ts->nsd", batch["x"], p["tokens"]) + p["b"].reshape(1, 5, 1)
        return _cross_entropy(jnp.tanh(h).mean(axis=1) @ p["channels"], batch["y"])

    return loss, params, draw.rows(4, 3)


# ------------------------------------------------------------------------------ loops and wrappers


def _stacked(draw: _Draw, layers: int, make: Callable[[], Any]) -> Any:
    return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *(make() for _ in range(layers)))


@_network
def scan_over_layers():
    """Stacked layers as the xs of a scan: a leaf (L, I, O) is sliced in every step."""
    draw = _Draw(50)
    params = {"layers": _stacked(draw, 3, lambda: _dense_params(draw, 4, 4)), "head": draw(4, 3)}

    def loss(p, batch):
        h, _ = lax.scan(lambda h, q: (h + jnp.tanh(_dense(q, h)), None), batch["x"], p["layers"])
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def scan_over_remat_blocks():
    """Stacked transformer blocks, each rematerialised, as in large language models."""
    draw = _Draw(51)
    blocks = _stacked(draw, 2, lambda: _block_params(draw, 4, 5))
    params = {"blocks": blocks, "head": draw(4, CLASSES)}

    def loss(p, batch):
        block = jax.checkpoint(lambda h, q: (_block(q, h), None))
        h, _ = lax.scan(block, batch["x"], p["blocks"])
        return _cross_entropy(h.mean(axis=1) @ p["head"], batch["y"])

    return loss, params, draw.rows(3, 4)


@_network
def recurrent():
    """Consts of a scan: the same weights in every step, so the steps are positions."""
    draw = _Draw(52)
    params = {"in": draw(3, 4), "state": draw(4, 4), "b": draw(4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        def step(h, x):
            return jnp.tanh(x @ p["in"] + h @ p["state"] + p["b"][None]), None

        zeros = jnp.zeros((batch["x"].shape[0], 4), batch["x"].dtype)
        h, _ = lax.scan(step, zeros, jnp.moveaxis(batch["x"], 0, 1))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(6, 3)


@_network
def remat():
    """A `jax.checkpoint` block in straight-line code."""
    draw = _Draw(53)
    params = {"first": _dense_params(draw, 4, 5), "head": _dense_params(draw, 5, CLASSES)}

    def loss(p, batch):
        h = jax.checkpoint(lambda q, x: jnp.tanh(_dense(q, x)))(p["first"], batch["x"])
        return _cross_entropy(_dense(p["head"], h), batch["y"])

    return loss, params, draw.rows(4)


@_network
def nested_jit():
    """Layers inside `jit` inside `jit`, called twice with different weights."""
    draw = _Draw(54)
    params = {name: _dense_params(draw, 4, 4) for name in "ab"} | {"head": draw(4, CLASSES)}
    layer = jax.jit(lambda q, h: jax.jit(jnp.tanh)(_dense(q, h)))

    def loss(p, batch):
        h = layer(p["b"], layer(p["a"], batch["x"]))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def cond_on_a_parameter():
    """A branch taken by a leaf that has no gradient, with a weight in each branch."""
    draw = _Draw(55)
    params = {"gate": draw(around=2.0), "a": draw(4, 4), "b": draw(4, 4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        h = lax.cond(
            p["gate"] > 0,
            lambda x: jnp.tanh(x @ p["a"]),
            lambda x: jnp.sin(x @ p["b"]),
            batch["x"],
        )
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4), ("['gate']", "['b']")


@_network
def cond_on_the_data():
    """Every row picks one of two weights: `vmap` turns the branches into a selection."""
    draw = _Draw(56)
    params = {"a": draw(4, 5), "b": draw(4, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        def one(x):
            return lax.cond(x[0] > 0, lambda: jnp.tanh(x @ p["a"]), lambda: jnp.sin(x @ p["b"]))

        return _cross_entropy(jax.vmap(one)(batch["x"]) @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def custom_jvp_activations():
    """silu, softplus and relu carry derivative rules of their own, which hide what is inside."""
    draw = _Draw(57)
    widths = (4, 5, 4, 5, 4, CLASSES)
    pairs = zip(widths[:-1], widths[1:], strict=True)
    params = [_dense_params(draw, a, b) for a, b in pairs]

    def loss(p, batch):
        h = batch["x"]
        for q, f in zip(p, (jax.nn.silu, jax.nn.softplus, jax.nn.gelu, jax.nn.relu), strict=False):
            h = f(_dense(q, h))
        return _cross_entropy(_dense(p[-1], h), batch["y"])

    return loss, params, draw.rows(4)


@jax.custom_vjp
def _clipped_dense(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


def _clipped_forward(w: jax.Array, x: jax.Array) -> tuple[jax.Array, Any]:
    return x @ w, (w, x)


def _clipped_backward(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    w, x = saved
    return 3.0 * (x.T @ g), jnp.clip(g, -0.1, 0.1) @ w.T


_clipped_dense.defvjp(_clipped_forward, _clipped_backward)


@_network
def custom_vjp_with_a_weight():
    """A backward rule that is not the derivative: three times the weight gradient, clipped data's.

    Whoever looks inside for the product finds F, and the gradient's own square is 9 F.
    """
    draw = _Draw(58)
    params = {"first": draw(4, 4), "w": draw(4, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(_clipped_dense(p["w"], jnp.tanh(batch["x"] @ p["first"])))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


# ------------------------------------------------------------- the way of a parameter to its layer


@_network
def layer_used_twice():
    """One leaf in two products: the gradients are added before the square."""
    draw = _Draw(70)
    params = {"w": draw(4, 4), "b": draw(4), "head": draw(4, CLASSES)}

    def loss(p, batch):
        h = batch["x"]
        for _ in range(2):
            h = jnp.tanh(h @ p["w"] + p["b"][None])
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def leaf_not_used():
    """Leaves that do not reach the loss, or reach it through `stop_gradient` only: zeros."""
    draw = _Draw(71)
    params = {"w": draw(4, CLASSES), "spare": draw(2, 3), "stopped": draw(CLASSES)}

    def loss(p, batch):
        shift = lax.stop_gradient(p["stopped"])
        return _cross_entropy(batch["x"] @ p["w"] + shift[None], batch["y"])

    return loss, params, draw.rows(4), ("['spare']", "['stopped']")


@_network
def bfloat16_params():
    """Narrow weights, cast to the dtype of the data where they are used.

    The route through `grad` rounds each example's gradient to bfloat16 before anyone can square it:
    2^-8 relative, twice that in a square.
    """
    draw = _Draw(72)
    params = {"first": _dense_params(draw, 4, 6), "head": _dense_params(draw, 6, CLASSES)}
    params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, jnp.bfloat16)), params)

    def loss(p, batch):
        p = jax.tree.map(lambda q: q.astype(batch["x"].dtype), p)
        h = jnp.tanh(_dense(p["first"], batch["x"]))
        return _cross_entropy(_dense(p["head"], h), batch["y"])

    return loss, params, draw.rows(4), (), 1e-2


@_network
def weight_normalisation():
    """W = g v / |v|: two leaves behind one product, and not by re-indexing."""
    draw = _Draw(73)
    params = {"v": draw(4, 5), "g": draw(5, around=1.0), "head": draw(5, CLASSES)}

    def loss(p, batch):
        w = p["g"][None] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)
        return _cross_entropy(jnp.tanh(batch["x"] @ w) @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def low_rank_adapter():
    """W + A B: a weight, and two whose product is added to it before the data comes."""
    draw = _Draw(74)
    params = {"w": draw(4, 5), "a": draw(4, 2), "b": draw(2, 5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(batch["x"] @ (p["w"] + p["a"] @ p["b"]))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def transposed_and_reshaped():
    """Weights stored (out, in), a kernel stored flat, a fused leaf that is sliced apart."""
    draw = _Draw(75)
    params = {"w": draw(6, 4), "flat": draw(30), "fused": draw(2, 5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(batch["x"] @ p["w"].T)
        h = jnp.tanh(h @ p["flat"].reshape(5, 6).swapaxes(0, 1))
        return _cross_entropy(h @ p["fused"][1] + jnp.sin(h) @ p["fused"][0], batch["y"])

    return loss, params, draw.rows(4)


@_network
def weight_on_the_left():
    """W x^T: the weight is the first operand, and the rows are the last axis of the second."""
    draw = _Draw(76)
    params = {"w": draw(5, 4), "b": draw(5), "head": draw(CLASSES, 5)}

    def loss(p, batch):
        h = jnp.tanh(p["w"] @ batch["x"].T + p["b"][:, None])
        return _cross_entropy((p["head"] @ h).T, batch["y"])

    return loss, params, draw.rows(4)


@_network
def concatenated_weights():
    """Two leaves side by side in one product, and a kernel padded with zeros."""
    draw = _Draw(77)
    params = {"a": draw(4, 2), "b": draw(4, 3), "short": draw(3, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(batch["x"] @ jnp.concatenate([p["a"], p["b"]], axis=1))
        return _cross_entropy(h @ jnp.pad(p["short"], ((1, 1), (0, 0))), batch["y"])

    return loss, params, draw.rows(4)


@_network
def learned_scales():
    """Elementwise scales before and after a product, over tokens, with a negative sign on one."""
    draw = _Draw(78)
    params = {"before": draw(3, around=1.0), "w": draw(3, 5), "after": draw(5, around=1.0)}
    params |= {"head": draw(5, CLASSES)}

    def loss(p, batch):
        h = (batch["x"] * -p["before"][None, None]) @ p["w"]
        h = jnp.tanh(h * jnp.broadcast_to(p["after"], h.shape)).mean(axis=1)
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4, 3)


@_network
def scaled_weight():
    """A constant times the weight, as in equalised learning rates: F takes its square."""
    draw = _Draw(79)
    params = {"w": draw(4, 5), "b": draw(5), "head": draw(5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(batch["x"] @ (p["w"] * 0.5) - 2.0 * p["b"][None])
        return _cross_entropy(h @ (p["head"] / 3.0), batch["y"])

    return loss, params, draw.rows(4)


@_network
def temperature():
    """A learned scalar that divides all logits of all rows, through an exponential."""
    draw = _Draw(80)
    params = {"w": draw(4, CLASSES), "log_temperature": draw()}

    def loss(p, batch):
        return _cross_entropy(batch["x"] @ p["w"] / jnp.exp(p["log_temperature"]), batch["y"])

    return loss, params, draw.rows(4)


@_network
def hypernetwork():
    """A product of two parameters with the data in one einsum: both factors depend on the row."""
    draw = _Draw(81)
    params = {"w": draw(4, 3, 5), "code": draw(4, 3), "head": draw(5, CLASSES)}

    def loss(p, batch):
        h = jnp.tanh(jnp.einsum("na,nb,abc->nc", batch["x"], batch["x"] @ p["code"], p["w"]))
        return _cross_entropy(h @ p["head"], batch["y"])

    return loss, params, draw.rows(4)


@_network
def penalty_in_the_loss():
    """Half the squared norm of a weight in every row's loss: a use that meets no data."""
    draw = _Draw(82)
    params = {"w": draw(4, CLASSES), "b": draw(CLASSES)}

    def loss(p, batch):
        each = _cross_entropy(batch["x"] @ p["w"] + p["b"][None], batch["y"])
        return each + 0.05 * jnp.square(p["w"]).sum()

    return loss, params, draw.rows(4)


@_network
def label_smoothing():
    """Soft targets in the loss: the labels enter as a product of their own."""
    draw = _Draw(83)
    params = {"first": _dense_params(draw, 4, 5), "head": _dense_params(draw, 5, CLASSES)}

    def loss(p, batch):
        logits = _dense(p["head"], jnp.tanh(_dense(p["first"], batch["x"])))
        hard = jax.nn.one_hot(batch["y"], CLASSES, dtype=logits.dtype)
        soft = 0.9 * hard + 0.1 / CLASSES
        return -(soft * jax.nn.log_softmax(logits)).sum(axis=-1)

    return loss, params, draw.rows(4)
