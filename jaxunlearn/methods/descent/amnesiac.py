"""Amnesiac unlearning: teach wrong labels, or take the updates back that the data had caused.

    min_theta  mean_{i in F and R} l_i(theta; y'_i),  y'_i a wrong label of i in F      `amnesiac`
    theta  =  theta_T - sum_{b in B(ids)} d_b,        d_b the change made by batch b
                                                      `record_updates`, `subtract_updates`

Wrong labels are drawn once, uniformly over the C - 1 others, and stay for the whole run: this is
what separates the method from `random_labels`, which draws a new one each time a row is seen.

The second form has to be prepared. While a model is trained, a ledger keeps what the batches with
watched examples did to the parameters; later any of these examples can be asked for, and every
batch with one of them is undone, its other examples with it. A few epochs of `finetune` on what is
retained repair that:

    recorded = record_updates(objectives.training(model), tx, params, data, ids=ids, ...)
    params, ledger = subtract_updates(recorded.params, recorded.ledger, ids=wanted)

The result equals training without those batches only if a batch changes the parameters by the same
amount wherever they are: plain SGD and a loss linear in theta. Otherwise, later batches have
answered to what is taken out, and the subtraction is a heuristic that gets worse with T.

Graves et al. (2021), "Amnesiac Machine Learning", arXiv:2010.10981. A *reconstruction* from the
paper's description; Adam 1e-4 for 3 epochs is what later papers run under this name.

Departures: 1. Evaluation mode. 2. The ledger is addressed by example, so that a batch with two
requested examples is undone once; what has been subtracted is erased from it. 3. Of streaming Data
the order is F, then R, since there is no shuffling across two streams.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import objectives
from jaxunlearn.data.streams import InMemory, Stream, as_data
from jaxunlearn.losses import num_classes
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.union import union
from jaxunlearn.methods.descent.update_ledger import Ledger as Ledger
from jaxunlearn.methods.descent.update_ledger import Recorded as Recorded
from jaxunlearn.methods.descent.update_ledger import record_updates as record_updates
from jaxunlearn.methods.descent.update_ledger import subtract_updates as subtract_updates
from jaxunlearn.model import Model
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Batch, Data, Key, Params


def amnesiac(tx: optax.GradientTransformation | None = None, *, epochs: int = 3) -> Method:
    """min_theta mean_{F and R} l_i(theta; y'_i), y'_i wrong on F and true on R, from theta_0.

    Args:
      tx: optax transformation; default Adam with learning rate 1e-4 (published: 1e-4 to 1e-3).
      epochs: passes over F and R together, >= 0 (published: 1 to 3).

    Returns:
      A Method that needs forget, retain, labels and the key. Batches have the retained data's size;
      info is a `training.FitInfo`; the params after each epoch are candidates for `keep_best`.

    Raises:
      ValueError: epochs < 0; (when called) a model that tells fewer than 2 classes apart, where no
        label is wrong.

    | edge case      | result                                                                   |
    |----------------|--------------------------------------------------------------------------|
    | epochs = 0     | params bit-identical                                                     |
    | two classes    | every forgotten example gets the other label                             |
    | divergence     | last finite params, `info.status == Status.DIVERGED`                     |

    Cost: `epochs` passes over all data.

    Source: Graves et al. (2021), arXiv:2010.10981; a *reconstruction*, see the module.

    Example:
      >>> sorted(amnesiac(epochs=1).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    if epochs < 0:
        raise ValueError(f"amnesiac: epochs must be >= 0, got {epochs}.")
    tx = optax.adam(1e-4) if tx is None else tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        draw, run = jax.random.split(key)
        assert request.retain is not None
        wrong = wrongly_labelled(model, params, request.forget, draw)
        data = union(wrong, request.retain)
        out = fit(
            objectives.mean_loss(model), tx, params, data, key=run, epochs=epochs, score=score
        )
        return Unlearned(model, out.params, out.info)

    return method(
        unlearn, needs={"forget", "retain", "labels", "key"}, name="amnesiac", scored=True
    )


def wrongly_labelled(model: Model, params: Params, data: Data, key: Key) -> InMemory | Stream:
    """`data` with each label replaced by one of the C - 1 others, the same in every pass.

    Args:
      model, params: their outputs say how many classes there are; they are not evaluated.
      data: with integer labels `"y"` (n, ...).
      key: typed key; draws uniformly, for a stream with `fold_in(key, place of the batch)`.

    Raises:
      ValueError: labels that are not classes of the outputs, or fewer than 2 classes.
    """
    data = as_data(data)
    example = data.arrays if isinstance(data, InMemory) else next(iter(data))
    classes = num_classes(model.outputs, params, example)
    if classes is None or classes < 2:
        raise ValueError(
            "amnesiac: wrong labels need integer classes and at least 2 of them, got "
            f"labels of {example['y'].dtype} {example['y'].shape} and {classes} classes."
        )

    def wrong(y: Array, key: Key) -> Array:
        shift = jax.random.randint(key, y.shape, 1, classes, jnp.int32)
        return ((jnp.asarray(y, jnp.int32) + shift) % classes).astype(y.dtype)

    if isinstance(data, InMemory):
        labels = wrong(data["y"], key)
        return InMemory(data.arrays | {"y": labels}, data.batch_size)

    def batches() -> Iterator[Batch]:
        for place, batch in enumerate(data):
            yield dict(batch) | {"y": wrong(batch["y"], jax.random.fold_in(key, place))}

    return Stream(batches, data.num_examples, data.num_batches, data.batch_size)
