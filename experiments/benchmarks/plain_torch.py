"""The rival: the same trainings in PyTorch, a loop over epochs and batches, one model at a time.

The data are tensors before the clock starts, there is no data loader, and the initial weights
follow the law of Flax (LeCun normal, cut at two standard deviations; biases 0), so that both sides
do one job. PyTorch is optional; it is imported when a run is made.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def plain_torch(
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    *,
    layers: Sequence[int],
    learning_rate: float,
    batch_size: int,
    epochs: int,
    models: int,
    threads: int,
    fused: bool = False,
) -> Callable[[int], tuple[float, np.ndarray]]:
    """Trainings of a ReLU network by Adam, one after another.

    Args:
      train, test: columns "x" (n, ...) and "y" (n,).
      layers: sizes, from the input to the logits.
      learning_rate, batch_size, epochs: the recipe; each epoch is a new order, the last batch of
        which may be short.
      models: how many to train in a run, >= 1.
      threads: for `torch.set_num_threads`.
      fused: Adam as one kernel, which is not PyTorch's default on a CPU.

    Returns:
      A function seed -> (seconds, accuracies (models,) on `test`).
    """
    import torch

    def tensors(columns: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
        x = torch.tensor(columns["x"]).reshape(len(columns["y"]), -1)
        return x, torch.tensor(columns["y"]).long()

    (x, y), (test_x, test_y) = tensors(train), tensors(test)

    def network() -> Any:
        modules: list[Any] = []
        for a, b in itertools.pairwise(layers):
            layer = torch.nn.Linear(a, b)
            std = a**-0.5 / 0.87962566103423978  # of the normal whose cut at 2 std has 1 / sqrt(a)
            torch.nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            torch.nn.init.zeros_(layer.bias)
            modules += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*modules[:-1])

    def one() -> Any:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=fused)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(batch_size):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        return model

    def run(seed: int) -> tuple[float, np.ndarray]:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        begin = time.perf_counter()
        trained = [one() for _ in range(models)]
        seconds = time.perf_counter() - begin
        with torch.no_grad():
            right = [(m(test_x).argmax(1) == test_y).float().mean().item() for m in trained]
        return seconds, np.array(right)

    return run
