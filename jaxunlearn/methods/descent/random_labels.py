"""Random labels: teach the forget set something else, and rehearse the rest.

    min_theta  mean_{i in F and R} l_i(theta; y~_i),    y~_i uniform if i in F, else the true label

Golatkar et al. (2020), "Eternal Sunshine of the Spotless Net", arXiv:1911.04933, and the scripts of
Fan et al. (2024), "SalUn", arXiv:2310.12508, whose constants these are (learning rate 0.013, 10
epochs, SGD 0.9, weight decay 5e-4).

Departures: 1. With `order="sequential"` the batch in which the forget set ends is filled up with
retained rows instead of being short. 2. On streaming Data the order is always sequential, since
there is no shuffling across two streams. 3. Batches have the retained data's batch size.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory, Stream, concatenate
from jaxunlearn.method import Method, Request
from jaxunlearn.methods.descent.descent import descent, sgd
from jaxunlearn.typing import Array, Batch, Data, Key


def random_labels(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 10,
    order: str = "union",
    wrong_only: bool = False,
) -> Method:
    """min_theta of the mean loss over F with fresh random labels and R with its own, from theta_0.

    Args:
      tx: optax transformation; default SGD with learning rate 0.013, momentum 0.9, weight decay
        5e-4.
      epochs: passes over F and R together, >= 0.
      order: "union" (shuffled together; CIFAR-100 and TinyImageNet in the source) or "sequential"
        (each epoch first F, then R, each shuffled; CIFAR-10 and SVHN in the source).
      wrong_only: draw from the C - 1 wrong labels instead of all C.

    Returns:
      A Method that needs forget, retain, labels and the key.

    Raises:
      ValueError: an unknown order.

    Edge cases: epochs = 0 gives params bit-identical. A new label is drawn each time a row is seen.
    Cost: `epochs` passes over all data.

    Source: Golatkar et al. (2020), arXiv:1911.04933; Fan et al. (2024), arXiv:2310.12508;
    departures in the module.

    Example:
      >>> sorted(random_labels(epochs=1).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if order not in ("union", "sequential"):
        raise ValueError(f"random_labels: order must be 'union' or 'sequential', got {order!r}.")

    return descent(
        partial(objectives.random_labels, wrong_only=wrong_only),
        sgd(0.013) if tx is None else tx,
        epochs=epochs,
        on=("forget", "retain"),
        streams=_flagged,
        shuffle=_forget_first if order == "sequential" else True,
        name="random_labels",
    )


def _forget_first(request: Request) -> Callable[[Key, int], Array]:
    return _ForgetFirst(request.forget.num_examples)


@dataclasses.dataclass(frozen=True)
class _ForgetFirst:
    """(key, n) -> the first `forgotten` rows in random order, then the others in random order."""

    forgotten: int

    def __call__(self, key: Key, n: int) -> Array:
        first, rest = jax.random.split(key)
        after = self.forgotten + jax.random.permutation(rest, n - self.forgotten)
        return jnp.concatenate([jax.random.permutation(first, self.forgotten), after])


def _flagged(request: Request) -> dict[str, Data]:
    assert request.retain is not None
    both = concatenate(_flag(request.forget, True), _flag(request.retain, False))
    if isinstance(both, InMemory) and isinstance(request.retain, InMemory):
        both = dataclasses.replace(both, batch_size=request.retain.batch_size)
    return {"data": both}


def _flag(data: Data, value: bool) -> Data:
    """The same Data with a boolean column "relabel"."""
    if isinstance(data, InMemory):
        weight = data.arrays.get("weight", jnp.ones(data.num_examples, jnp.float32))
        flag = jnp.full(data.num_examples, value)
        return InMemory(data.arrays | {"relabel": flag, "weight": weight}, data.batch_size)

    def add(batch: Batch) -> Batch:
        return dict(batch) | {"relabel": jnp.full(batch["y"].shape[:1], value)}

    rows = max(batch["y"].shape[0] for batch in data)
    return Stream(lambda: iter(data), data.num_examples, data.num_batches, rows, add)
