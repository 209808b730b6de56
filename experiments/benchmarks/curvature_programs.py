"""What is timed: a gradient, our Fisher diagonal, the plain ways to it, and the rivals' ways.

| program               | of           | what runs                                             |
|-----------------------|--------------|-------------------------------------------------------|
| `gradient`            | `gradient`   | `jax.grad` of the summed loss, compiled: the unit     |
| `fisher_diagonal`     | `ours`       | the library's, `strategy="taps"`                      |
| `second_moment`       | `ours`       | the same with the mean gradient beside it             |
| `second_moment, vmap` | `reference`  | the library's own slow road, `strategy="vmap"`        |
| `jax.vmap(jax.grad)`  | `plain jax`  | all g_i, squared, summed, compiled as one program     |
| `..., lax.conv`       | as above     | with XLA's convolution instead of products of patches |
| `gradient, torch`     | `gradient`   | PyTorch's backward pass                               |
| `torch.func ...`      | `torch.func` | `vmap(grad)` over all rows, and over a few at a time  |
| `BackPACK ...`        | `BackPACK`   | `SumGradSquared`                                      |

JAX programs are compiled ahead and take params and batch as arguments. Everything else is eager, as
PyTorch is used.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import curvature_networks as networks
from jaxunlearn.curvature import fisher_diagonal, second_moment
from jaxunlearn.data import in_memory

NO_TORCH = "PyTorch is not installed"
NO_BACKPACK = "BackPACK is not installed"
TORCH_ROWS = 8  # rows at a time in the thrifty form of vmap(grad)

Arrays = dict[str, np.ndarray]


class Program(NamedTuple):
    """Something to time."""

    name: str
    of: str  # see the table
    base: str  # name of the gradient that it is a multiple of; its own name for a gradient
    run: Callable[[], Any]  # returns when the result is there
    squares: Callable[[Any], Arrays] | None  # result -> mean of squares by PyTorch's names
    facts: dict[str, Any]  # "compile" seconds, "xla" bytes; empty for PyTorch


def _compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], dict[str, Any]]:
    """(run, {"compile": seconds, "xla": bytes}) of a function of these arguments."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    facts: dict[str, Any] = {"compile": time.perf_counter() - begin}
    found = program.memory_analysis()
    if found is not None:
        facts["xla"] = {
            "arguments": found.argument_size_in_bytes,
            "output": found.output_size_in_bytes,
            "temporary": found.temp_size_in_bytes,
        }
    return lambda: jax.block_until_ready(program(*args)), facts


def ours(network: networks.Network, kinds: tuple[str, ...], suffix: str = "") -> list[Program]:
    """The programs in JAX of these kinds (column "of")."""
    loss_fn, params, batch = network
    n = len(batch["y"])
    data = in_memory(batch, batch_size=n)

    def gradient(params: Any, batch: Any) -> Any:
        return jax.grad(lambda p: loss_fn(p, batch).sum())(params)

    def plain(params: Any, batch: Any) -> Any:
        def single(p: Any, row: Any) -> Any:
            return loss_fn(p, jax.tree.map(lambda a: a[None], row))[0]

        each = jax.vmap(jax.grad(single), in_axes=(None, 0))(params, batch)
        return jax.tree.map(lambda g: jnp.square(g).mean(axis=0), each)

    def fisher(params: Any, data: Any) -> Any:
        return fisher_diagonal(loss_fn, params, data, strategy="taps")

    def moments(strategy: str) -> Callable:
        return lambda params, data: second_moment(loss_fn, params, data, strategy=strategy)

    def square(result: Any) -> Arrays:
        return networks.as_torch(result.square)

    wanted = [
        ("gradient", "gradient", gradient, batch, None),
        ("fisher_diagonal", "ours", fisher, data, networks.as_torch),
        ("second_moment", "ours", moments("taps"), data, square),
        ("second_moment, vmap", "reference", moments("vmap"), data, square),
        ("jax.vmap(jax.grad)", "plain jax", plain, batch, networks.as_torch),
    ]
    return [
        Program(name + suffix, of, "gradient" + suffix, run, squares, facts)
        for name, of, function, given, squares in wanted
        if of in kinds
        for run, facts in [_compiled(function, params, given)]
    ]


def rivals(
    name: str, size: dict[str, int], network: networks.Network, threads: int
) -> tuple[list[Program], dict[str, str]]:
    """(the programs in PyTorch, {what could not be run: why})."""
    if importlib.util.find_spec("torch") is None:
        return [], {"torch.func": NO_TORCH, "BackPACK": NO_TORCH}
    import torch

    from experiments.benchmarks import curvature_torch as twin

    torch.set_num_threads(threads)
    weights, n = networks.as_torch(network.params), len(network.batch["y"])
    x, y = twin.tensors(network.batch)
    model = twin.build(name, size, weights)

    def mean(result: Any) -> Arrays:
        return {key: value.numpy() / n for key, value in result.items()}

    def program(name: str, of: str, run: Callable[[], Any]) -> Program:
        squares = None if of == "gradient" else mean
        return Program(name, of, "gradient, torch", run, squares, {})

    made = [
        program("gradient, torch", "gradient", lambda: twin.gradient(model, x, y)),
        program("torch.func vmap(grad)", "torch.func", lambda: twin.vmap_squares(model, x, y)),
    ]
    if n > TORCH_ROWS:
        words = f"torch.func vmap(grad), {TORCH_ROWS} rows at a time"
        run = lambda: twin.vmap_squares(model, x, y, TORCH_ROWS)  # noqa: E731
        made.append(program(words, "torch.func", run))
    if importlib.util.find_spec("backpack") is None:
        return made, {"BackPACK": NO_BACKPACK}
    try:
        squares = twin.backpack_squares(twin.build(name, size, weights))
    except NotImplementedError as reason:
        return made, {"BackPACK": str(reason)}
    return [*made, program("BackPACK SumGradSquared", "BackPACK", lambda: squares(x, y))], {}


def programs(
    name: str,
    sizes: dict[str, int],
    *,
    kinds: tuple[str, ...],
    seed: int,
    threads: int,
) -> tuple[networks.Network, list[Program], dict[str, str]]:
    """(network, all programs of these kinds, {what could not be run: why})."""
    size = networks.all_sizes(name, sizes)
    network = networks.build(name, size, seed=seed)
    made, left_out = ours(network, kinds), {}
    if name in networks.CONVOLUTIONAL and "lax.conv" in kinds:
        other = networks.build(name, size, seed=seed, lax_conv=True)
        made += ours(other, ("gradient", "ours"), ", lax.conv")
    if "torch" in kinds:
        found, left_out = rivals(name, size, network, threads)
        made += found
    return network, made, left_out


def disagreement(found: Arrays, reference: Arrays) -> float:
    """max over leaves of max |found - reference| / max(max |reference|, 1e-8 of the largest leaf).

    The floor is for leaves whose gradient is 0 by symmetry (the bias of an attention's keys), where
    both are squares of rounding.

    Raises:
      ValueError: the leaves differ in name or shape.
    """
    shapes = [{key: value.shape for key, value in tree.items()} for tree in (found, reference)]
    if shapes[0] != shapes[1]:
        wrong = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(f"expected the leaves of the reference; these differ: {wrong}.")
    largest = max(float(np.abs(leaf).max()) for leaf in reference.values())
    return max(
        float(np.abs(found[key] - leaf).max()) / max(float(np.abs(leaf).max()), 1e-8 * largest)
        for key, leaf in reference.items()
    )
