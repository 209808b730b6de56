"""Bad teacher: forget like somebody who never learnt, remember like somebody who did.

    min_theta  mean_{i in F and S} KL(softmax(t_i) || softmax(f_theta(x_i)))
               t_i = f_d(x_i), i in F;   t_i = f_0(x_i), i in S;   S a random 30 % of R

f_0 is the trained model, the competent teacher, and f_d the same network with fresh parameters, the
incompetent one. The student starts as f_0. No label is read.

Chundawat et al. (2023), "Can Bad Teaching Induce Forgetting?", arXiv:2205.08096. A *reconstruction*
from the paper's description; constants (Adam 1e-4, one epoch, 30 %, temperature 1; batches of 256)
are the ones its authors and later comparisons report.

Departures: 1. Evaluation mode. 2. The divergence is summed over classes; released scripts average
over them too, 1 / C of this, which Adam hardly notices and SGD does. 3. Frozen leaves and running
statistics are those of f_0 in the incompetent teacher too. 4. Of streaming retained Data whole
batches are drawn, not rows, and F comes first.

What a fresh network says is nearly the same for every x, so F is taught one answer. It is not what
a network says that was trained without F, and examples of a forgotten class become conspicuous.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.streams import InMemory, Stream, as_data
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.union import union
from jaxunlearn.model import Model
from jaxunlearn.teachers import multi_teacher
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Batch, Data, Key, Params, check_between


def bad_teacher(
    tx: optax.GradientTransformation | None = None,
    *,
    epochs: int = 1,
    share: float = 0.3,
    temperature: float = 1.0,
) -> Method:
    """min_theta mean_{F and S} T^2 KL(softmax(t_i / T) || softmax(f_theta(x_i) / T)), from theta_0.

    Args:
      tx: optax transformation; default Adam with learning rate 1e-4.
      epochs: passes over F and S together, >= 0.
      share: |S| / |R|, in (0, 1]; a Python number, since it is the shape of a batch of S. S is
        drawn once, and has at least one row.
      temperature: T > 0.

    Returns:
      A Method that needs forget, retain, the key and the model's `init`; no labels. Batches have
      the retained data's size; info is a `training.FitInfo`; the params after each epoch are
      candidates for `keep_best`.

    Raises:
      ValueError: a constant outside its range.

    | edge case              | result                                                           |
    |------------------------|------------------------------------------------------------------|
    | epochs = 0             | params bit-identical                                             |
    | f_d says nothing (z=0) | F is driven to the uniform distribution                          |
    | divergence             | last finite params, `info.status == Status.DIVERGED`             |

    Cost: `epochs` passes over F and S, each with two more forward passes; memory of 3 models.

    Source: Chundawat et al. (2023), arXiv:2205.08096; a *reconstruction*, see the module.

    Example:
      >>> sorted(bad_teacher(epochs=2).needs)
      ['forget', 'init', 'key', 'retain']
    """
    check_between("bad_teacher", "share", share, above=0, at_most=1)
    check_between("bad_teacher", "temperature", temperature, above=0)
    if epochs < 0:
        raise ValueError(f"bad_teacher: epochs must be >= 0, got {epochs}.")
    tx = optax.adam(1e-4) if tx is None else tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        assert request.retain is not None and model.init is not None
        fresh, draw, run = jax.random.split(key, 3)
        teachers = (None, model.init(fresh))
        out = fit(
            multi_teacher(model, teachers, choice="forget", temperature=temperature),
            tx,
            params,
            union(request.forget, subset(request.retain, share, draw)),
            key=run,
            epochs=epochs,
            score=score,
        )
        return Unlearned(model, out.params, out.info)

    return method(
        unlearn, needs={"forget", "retain", "key", "init"}, name="bad_teacher", scored=True
    )


def subset(data: Data, share: float, key: Key) -> InMemory | Stream:
    """ceil(share n) rows of in-memory Data at random, or as large a share of a stream's batches.

    Args:
      data: any Data; traced arrays are fine.
      share: in (0, 1].
      key: typed key. The same one draws the same rows, pass after pass.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> subset(in_memory({"x": jnp.arange(10)}), 0.25, jax.random.key(0)).num_examples
      3
    """
    data = as_data(data)
    if isinstance(data, InMemory):
        rows = jax.random.permutation(key, data.num_examples)[: _part(share, data.num_examples)]
        return InMemory(
            {name: column[rows] for name, column in data.arrays.items()}, data.batch_size
        )
    kept = np.zeros(data.num_batches, bool)
    kept[np.asarray(jax.random.permutation(key, len(kept)))[: _part(share, len(kept))]] = True
    open_all = data.open

    def open() -> Iterator[Batch]:
        return (batch for batch, keep in zip(open_all(), kept, strict=True) if keep)

    counts = [int(jnp.sum(batch["weight"] > 0)) for batch in data]
    rows = sum(count for count, keep in zip(counts, kept, strict=True) if keep)
    return dataclasses.replace(data, open=open, num_examples=rows, num_batches=int(kept.sum()))


def _part(share: float, n: int) -> int:
    return max(1, math.ceil(round(share * n, 9)))  # 0.3 * 10 is a little above 3
