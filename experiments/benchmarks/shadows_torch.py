"""The rival: the protocol of the shadow models in PyTorch, one model and one method after another.

As anybody would write it: a loop over epochs and batches with data already in tensors, the initial
weights by the law of Flax, Adam as in the recipe. Four methods are short enough to be written down
again; what they minimise and how long is read from the presets of `jaxunlearn`:

    finetune          mean_R l                       passes over R
    gradient_ascent   -mean_F l                      passes over F, until a batch is at chance
    neggrad_plus      alpha mean_R l - (1 - alpha) mean_F l        passes over R, F cycled
    random_labels     mean over R and F, labels of F drawn anew    passes over both

PyTorch is optional; it is imported when a run is made.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

REBUILT = ("finetune", "neggrad_plus", "gradient_ascent", "random_labels")
_ENDLESS = 10**9  # passes over the forget rows, which are cycled


def torch_protocol(
    columns: Mapping[str, np.ndarray],
    trained: np.ndarray,
    forgotten: np.ndarray,
    targets: np.ndarray,
    *,
    layers: Sequence[int],
    learning_rate: float,
    batch_size: int,
    epochs: int,
    settings: Mapping[str, Mapping[str, Any]],
    threads: int,
    seed: int,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Trains M shadows one by one, and has each unlearn by every method of `settings`.

    Args:
      columns: "x" (n, ...) and "y" (n,) of the training split.
      trained: (M, m) rows of each shadow. forgotten: (M, f) rows that it unlearns.
      targets: (t,) rows whose margins are read.
      layers: sizes, from the input to the logits.
      learning_rate, batch_size, epochs: of the training, by Adam.
      settings: method of `REBUILT` -> its arguments, see `presets.settings`.
      threads: for `torch.set_num_threads`.
      seed: of everything.

    Returns:
      Seconds and margins (M, t) of "training" and of each method, for all M models together.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    x = torch.tensor(columns["x"]).reshape(len(columns["y"]), -1)
    y = torch.tensor(columns["y"]).long()
    loss = torch.nn.functional.cross_entropy

    def network() -> Any:
        modules: list[Any] = []
        for a, b in itertools.pairwise(layers):
            layer = torch.nn.Linear(a, b)
            std = a**-0.5 / 0.87962566103423978  # of the normal whose cut at 2 std has 1 / sqrt(a)
            torch.nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            torch.nn.init.zeros_(layer.bias)
            modules += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*modules[:-1])

    def passes(rows: Any, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield from rows[torch.randperm(len(rows))].split(batch_size)

    def descend(model: Any, rate: float, losses: Iterator[Any]) -> None:
        """Steps of Adam down the losses, which are computed as they are asked for."""
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for value in losses:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    def plain(model: Any, rows: Any, count: int) -> Iterator[Any]:
        return (loss(model(x[b]), y[b]) for b in passes(rows, count))

    def finetune(model: Any, retain: Any, forget: Any, epochs: int) -> Iterator[Any]:
        return plain(model, retain, epochs)

    def gradient_ascent(
        model: Any, retain: Any, forget: Any, epochs: int, stop_at_chance: int
    ) -> Iterator[Any]:
        for value in plain(model, forget, epochs):
            yield -value
            if value.item() >= math.log(stop_at_chance):
                return

    def neggrad_plus(
        model: Any, retain: Any, forget: Any, epochs: int, alpha: float
    ) -> Iterator[Any]:
        pairs = zip(plain(model, retain, epochs), plain(model, forget, _ENDLESS), strict=False)
        return (alpha * down - (1 - alpha) * up for down, up in pairs)

    def random_labels(model: Any, retain: Any, forget: Any, epochs: int) -> Iterator[Any]:
        asked = torch.zeros(len(y), dtype=torch.bool)
        asked[forget] = True
        for b in passes(torch.cat([forget, retain]), epochs):
            drawn = torch.randint(layers[-1], b.shape)
            yield loss(model(x[b]), torch.where(asked[b], drawn, y[b]))

    methods: dict[str, Callable[..., Iterator[Any]]] = dict(
        zip(REBUILT, (finetune, neggrad_plus, gradient_ascent, random_labels), strict=True)
    )
    seconds = dict.fromkeys(("training", *settings), 0.0)
    margins: dict[str, list[np.ndarray]] = {stage: [] for stage in seconds}

    def timed(
        stage: str, start: Any, rate: float, losses: Callable, *arguments: Any, **options: Any
    ) -> Any:
        begin = time.perf_counter()
        model = network()
        if start is not None:
            model.load_state_dict(start.state_dict())
        descend(model, rate, losses(model, *arguments, **options))
        seconds[stage] += time.perf_counter() - begin
        with torch.no_grad():
            z = model(x[targets])
            own = z.gather(1, y[targets][:, None])
            others = z.scatter(1, y[targets][:, None], -math.inf).logsumexp(1)
            margins[stage].append((own[:, 0] - others).numpy())
        return model

    for mine, gone in zip(trained, forgotten, strict=True):
        rows, forget = torch.tensor(mine).long(), torch.tensor(gone).long()
        retain = rows[~torch.isin(rows, forget)]
        shadow = timed("training", None, learning_rate, plain, rows, epochs)
        for name, arguments in settings.items():
            options = dict(arguments)
            rate = options.pop("learning_rate")
            timed(name, shadow, rate, methods[name], retain, forget, **options)
    return seconds, {stage: np.stack(found) for stage, found in margins.items()}
