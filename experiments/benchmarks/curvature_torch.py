"""The rivals: the same networks in PyTorch, and the ways to a sum of squared gradients there.

    torch.func vmap(grad)             every g_i at once, squared, summed: n x params in memory
    torch.func vmap(grad), by rows    the same for a few rows at a time, added up
    BackPACK SumGradSquared           layer by layer inside one backward pass

Modules are named as in `curvature_networks`, so that weights and results carry over by name.
Attention is written out: its gradient takes the same time as that of PyTorch's fused attention on
a CPU at these sizes, and the fused one has no batching rule, so `vmap` would run it row by row.

BackPACK 1.7 knows linear, convolutional and embedding layers. Group and layer normalisation and
bare parameters get rules from us here, by the mechanism that its guide describes for that, so that
it does the whole job; weights used twice (tied) it cannot do.

This module needs PyTorch; BackPACK is imported where it is used.
"""

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
EPSILON = 1e-6  # of the normalisations, as Flax has it


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        sizes = (784, width, width)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups where each gets at least two channels, else one group."""
    groups = 32 if channels >= 64 and channels % 32 == 0 else 1
    return nn.GroupNorm(groups, channels, EPSILON)


class ResidualBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.norm1 = group_norm(b)
        self.conv2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norm2 = group_norm(b)
        self.projects = stride != 1 or a != b
        if self.projects:
            self.conv3 = nn.Conv2d(a, b, 1, stride, 0, bias=False)
            self.norm3 = group_norm(b)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.norm3(self.conv3(x)) if self.projects else x
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + shortcut)


class ResNet18(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.stem_norm = group_norm(width)
        blocks, a = [], width
        for stage, (stride, b) in enumerate((s, width * 2**k) for k in range(4) for s in (2, 1)):
            blocks.append(ResidualBlock(a, b, 1 if stage == 0 else stride))
            a = b
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(a, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean((2, 3)))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (n, T, heads d), the positions in `mask` left out."""
    n, tokens, dim = q.shape
    q, k, v = (a.reshape(n, tokens, heads, dim // heads).transpose(1, 2) for a in (q, k, v))
    scores = (q * (dim // heads) ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, dim)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(self.query(x), self.key(x), self.value(x), self.heads))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPSILON), nn.LayerNorm(dim, EPSILON)
        self.attention = Attention(dim, heads)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class Added(nn.Module):
    """x + weight: learned positions."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, tokens, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Prepended(nn.Module):
    """One more token, the same for every example, before the others."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.weight.expand(len(x), -1, -1), x], 1)


class ViT(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, side: int, patch: int = 4):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch * 3, dim)
        self.cls = Prepended(dim)
        self.positions = Added((side // patch) ** 2 + 1, dim)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, EPSILON)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, side, _ = x.shape
        p, k = self.patch, side // self.patch
        x = x.reshape(n, channels, k, p, k, p).permute(0, 2, 4, 3, 5, 1)
        h = self.positions(self.cls(self.embed(x.reshape(n, k * k, p * p * channels))))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


class CausalBlock(nn.Module):
    mask: Tensor

    def __init__(self, dim: int, heads: int, tokens: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPSILON), nn.LayerNorm(dim, EPSILON)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.contract = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.register_buffer("mask", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(attend(q, k, v, self.heads, self.mask))
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(
        self, vocabulary: int, tokens: int, dim: int, depth: int, heads: int, *, tied: bool
    ):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.positions = Added(tokens, dim)
        self.blocks = nn.ModuleList([CausalBlock(dim, heads, tokens) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, EPSILON)
        self.head = None if tied else nn.Linear(dim, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.positions(self.embed(x))
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        return h @ self.embed.weight.T if self.head is None else self.head(h)


def build(name: str, size: Mapping[str, int], weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The twin of a network of `curvature_networks`, with its weights (`as_torch`).

    Raises:
      RuntimeError: names or shapes of the weights are not those of the twin.
    """
    rest = {key: value for key, value in size.items() if key != "n"}
    if name == "mlp":
        model: nn.Module = MLP(**rest)
    elif name in ("small_resnet", "resnet18"):
        model = ResNet18(size["width"])
    elif name == "vit":
        model = ViT(**rest)
    else:
        model = Decoder(**rest, tied=name == "decoder_tied")
    state = {key: torch.tensor(value) for key, value in weights.items()}
    masks = {key: value for key, value in model.named_buffers()}
    model.load_state_dict(state | masks)
    return model


def tensors(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(x, y) of a batch of `curvature_networks`: images get their channels first."""
    x, y = torch.tensor(np.asarray(batch["x"])), torch.tensor(np.asarray(batch["y"])).long()
    return (x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x), y


def summed_loss(logits: Tensor, y: Tensor) -> Tensor:
    """sum over examples, and over the positions of each, of the cross-entropy in nats."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="sum")


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """sum_i g_i by one ordinary backward pass."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(summed_loss(model(x), y), parameters), strict=True))


def vmap_squares(
    model: nn.Module, x: Tensor, y: Tensor, rows: int | None = None
) -> dict[str, Tensor]:
    """sum_i g_i^2 by `torch.func.vmap(torch.func.grad(...))` over all rows, or `rows` at a time."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def single(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x[None],))
        return summed_loss(logits, y[None])

    each = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0, 0))
    sums: dict[str, Tensor] = {}
    for part_x, part_y in zip(x.split(rows or len(x)), y.split(rows or len(y)), strict=True):
        for name, g in each(parameters, part_x, part_y).items():
            squares = g.square().sum(0)  # not in place: two leaves may share one gradient
            sums[name] = sums[name].add_(squares) if name in sums else squares
    return sums


def backpack_squares(model: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """(x, y) -> sum_i g_i^2 by BackPACK's SumGradSquared; the model is changed (hooks).

    Raises:
      ImportError: BackPACK is not installed.
      NotImplementedError: a weight is used twice.
    """
    if getattr(model, "head", True) is None:
        raise NotImplementedError("a weight that is used twice: its square needs the cross terms")
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    for module in model.modules():
        if not list(module.children()):
            extend(module)
    extension = SumGradSquared()
    for kind, rule in _rules().items():
        extension.set_module_extension(kind, rule)

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        with warnings.catch_warnings(), backpack(extension):
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # the first layer's
            summed_loss(model(x), y).backward()
        return {name: getattr(p, extension.savefield) for name, p in model.named_parameters()}

    return run


def _rules() -> dict[type[nn.Module], Any]:
    """Squares for the modules that BackPACK has no rule for: positions summed, then squared."""
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class Scaled(FirstOrderModuleExtension):
        """weight * normalised + bias along the last axis (`channels` = -1) or the second one."""

        def __init__(self, channels: int):
            self.channels = channels
            super().__init__(params=["weight", "bias"])

        def squares(self, each: Tensor) -> Tensor:
            positions = [a for a in range(1, each.ndim) if a != self.channels % each.ndim]
            return each.sum(positions).square().sum(0)

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            x = module.input0
            if isinstance(module, nn.GroupNorm):
                normalised = F.group_norm(x, module.num_groups, eps=module.eps)
            else:
                normalised = F.layer_norm(x, module.normalized_shape, eps=module.eps)
            return self.squares(normalised * g_out[0])

        def bias(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return self.squares(g_out[0])

    class Bare(FirstOrderModuleExtension):
        """A parameter that enters the first `tokens` positions of every example as it is."""

        def __init__(self):
            super().__init__(params=["weight"])

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return g_out[0][:, : module.weight.shape[1]].square().sum(0, keepdim=True)

    return {nn.GroupNorm: Scaled(1), nn.LayerNorm: Scaled(-1), Added: Bare(), Prepended: Bare()}
