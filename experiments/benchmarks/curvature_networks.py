"""The networks of the curvature benchmark in JAX, with a loss for each and a batch to take it on.

| name           | network                                                    | positions | n   |
|----------------|------------------------------------------------------------|-----------|-----|
| `mlp`          | MLP 784-width-width-10                                     | 1         | 256 |
| `small_resnet` | the 18 layers of `ResNet18`, width 16, group norm, 32x32   | 1024-16   | 32  |
| `resnet18`     | the same at its usual width 64                             | 1024-16   | 8   |
| `vit`          | `SmallViT`: patches of 4, 6 blocks of 192, a class token   | 65        | 32  |
| `decoder`      | causal transformer, 4 blocks of 256, 1000 tokens, own head | 128       | 16  |
| `decoder_tied` | the same with the embedding as its head                    | 128       | 16  |

Inputs are noise and labels are drawn at random: neither time nor memory depends on them. The
weights are those of initialisation. Everything follows from the seed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn import from_nnx, networks

CLASSES = 10
SIZES: dict[str, dict[str, int]] = {
    "mlp": {"n": 256, "width": 1024},
    "small_resnet": {"n": 32, "width": 16, "side": 32},
    "resnet18": {"n": 8, "width": 64, "side": 32},
    "vit": {"n": 32, "dim": 192, "depth": 6, "heads": 3, "side": 32},
    "decoder": {"n": 16, "dim": 256, "depth": 4, "heads": 4, "tokens": 128, "vocabulary": 1000},
}
SIZES["decoder_tied"] = SIZES["decoder"]
CONVOLUTIONAL = ("small_resnet", "resnet18")


class Network(NamedTuple):
    """A per-example loss, where to take it, and on what."""

    loss_fn: Callable[[Any, Mapping[str, Any]], Any]  # (params, batch) -> (n,)
    params: Any  # nnx.State of float32
    batch: dict[str, jax.Array]  # "x" (n, ...), "y" (n,) or (n, tokens)


class CausalBlock(nnx.Module):
    """h = x + attention to what came before;  h + mlp(norm(h)). One product makes q, k and v."""

    def __init__(self, dim: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(dim, rngs=rngs)
        self.qkv = nnx.Linear(dim, 3 * dim, rngs=rngs)
        self.out = nnx.Linear(dim, dim, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, rngs=rngs)
        self.expand = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.contract = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, tokens, dim = x.shape
        three = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = (three[:, :, i] for i in range(3))
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(h.reshape(n, tokens, dim))
        return x + self.contract(jax.nn.gelu(self.expand(self.norm2(x))))


class Decoder(nnx.Module):
    """Tokens (n, T) to logits (n, T, vocabulary) of the token after each."""

    def __init__(
        self,
        vocabulary: int,
        tokens: int,
        dim: int,
        depth: int,
        heads: int,
        *,
        tied: bool,
        rngs: nnx.Rngs,
    ):
        self.embed = nnx.Embed(vocabulary, dim, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, dim)))
        self.blocks = nnx.List([CausalBlock(dim, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(dim, rngs=rngs)
        self.tied = tied
        if not tied:
            self.head = nnx.Linear(dim, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.embed(x) + self.positions[...]
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        return self.embed.attend(h) if self.tied else self.head(h)


def build(
    name: str, sizes: Mapping[str, int] | None = None, *, seed: int = 0, lax_conv: bool = False
) -> Network:
    """A network by its name in the table.

    Args:
      name: one of `SIZES`.
      sizes: what to change in `SIZES[name]`.
      seed: of weights and batch.
      lax_conv: whether convolutions are XLA's own on every backend, instead of the library's
        `convolve`.

    Raises:
      ValueError: a name or a size that is not there.

    Example:
      >>> network = build("mlp", {"n": 3, "width": 4})
      >>> network.loss_fn(network.params, network.batch).shape
      (3,)
    """
    size = all_sizes(name, sizes)

    def module(rngs: nnx.Rngs) -> nnx.Module:
        made = _module(name, size, rngs)
        for _, part in nnx.iter_graph(made):
            if lax_conv and isinstance(part, nnx.Conv):
                part.conv_general_dilated = jax.lax.conv_general_dilated
        return made

    model = from_nnx(module)
    assert model.init is not None  # `module` is a factory
    return Network(model.loss, model.init(jax.random.key(seed)), _batch(name, size, seed))


def all_sizes(name: str, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """`SIZES[name]` with some of them changed."""
    if name not in SIZES:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(SIZES)}.")
    unknown = set(sizes or {}) - set(SIZES[name])
    if unknown:
        raise ValueError(
            f"network {name!r} has the sizes {', '.join(SIZES[name])}; it has no {unknown.pop()!r}."
        )
    return SIZES[name] | dict(sizes or {})


def _module(name: str, size: Mapping[str, int], rngs: nnx.Rngs) -> nnx.Module:
    if name == "mlp":
        return networks.MLP(784, CLASSES, hidden=(size["width"], size["width"]), rngs=rngs)
    if name in CONVOLUTIONAL:
        return networks.ResNet18(3, CLASSES, norm="group", width=size["width"], rngs=rngs)
    shape = {key: size[key] for key in ("dim", "depth")}
    if name == "vit":
        image, rest = (size["side"], size["side"], 3), {"num_heads": size["heads"], "pool": "cls"}
        return networks.SmallViT(
            image, CLASSES, patch=4, mlp_dim=4 * size["dim"], **shape, **rest, rngs=rngs
        )
    shape |= {key: size[key] for key in ("vocabulary", "tokens", "heads")}
    return Decoder(**shape, tied=name == "decoder_tied", rngs=rngs)


def _batch(name: str, size: Mapping[str, int], seed: int) -> dict[str, jax.Array]:
    rng, n = np.random.default_rng(seed), size["n"]
    if "vocabulary" in size:
        text = jnp.asarray(rng.integers(size["vocabulary"], size=(n, size["tokens"] + 1)))
        return {"x": text[:, :-1], "y": text[:, 1:]}
    shape = (784,) if name == "mlp" else (size["side"], size["side"], 3)
    x = jnp.asarray(rng.standard_normal((n, *shape)), jnp.float32)
    return {"x": x, "y": jnp.asarray(rng.integers(CLASSES, size=n))}


def count(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def as_torch(tree: Any) -> dict[str, np.ndarray]:
    """A tree like the params by the names and in the layout of the twin in PyTorch.

        dense kernel (I, O) -> weight (O, I)          of heads (I, H, D) -> (H D, I)
        conv kernel (kh, kw, I, O) -> (O, I, kh, kw)  out of heads (H, D, O) -> (O, H D)

    Example:
      >>> found = as_torch(build("mlp", {"n": 1, "width": 4}).params)
      >>> found["head.weight"].shape, found["layers.0.bias"].shape
      ((10, 4), (4,))
    """
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(tree))[0]
    return dict(_twin([str(key.key) for key in path], np.asarray(leaf)) for path, leaf in leaves)


def _twin(path: list[str], leaf: np.ndarray) -> tuple[str, np.ndarray]:
    *place, last = path
    if last == "kernel" and leaf.ndim == 4:
        leaf = leaf.transpose(3, 2, 0, 1)
    elif last == "kernel":
        rows = leaf.shape[0] if leaf.ndim == 2 or place[-1] != "out" else leaf[..., 0].size
        leaf = leaf.reshape(rows, -1).T
    elif last == "bias":
        leaf = leaf.reshape(-1)
    elif last not in ("scale", "embedding"):  # a bare parameter: a module of its own over there
        place = path
    return ".".join([*place, "bias" if last == "bias" else "weight"]), leaf
