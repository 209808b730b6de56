"""SalUn: random labels, but only the weights move that the forget set has a say in.

    m = |sum_{i in F} grad l_i(theta_0)|  among the q P largest of all P entries
    theta' = where(m, random_labels(theta_0), theta_0)

Fan et al. (2024), "SalUn: Empowering Machine Unlearning via Gradient-Based Weight Saliency in Both
Image Classification and Generation", arXiv:2310.12508, and its code. The mask is its own primitive,
and `salient` puts it around any method.

Departures: 1. The gradient is the sum over examples, so that batches do not matter; the published
code sums gradients of batch means, which differ where the last batch is short. 2. Frozen entries
are never given to the optimiser's decay or momentum (`masked`); the published code puts them back
after each step, an earlier version did not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.curvature.products import gradient_sum
from jaxunlearn.method import Method, Request, Unlearned, keep_best, masked, method
from jaxunlearn.methods.descent.random_labels import random_labels
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Key, Params, check_between


def saliency_mask(
    model: Model, params: Params, request: Request, fraction: float | Array = 0.5
) -> Params:
    """m_j = [|sum_{i in F} w_i dl_i/dtheta_j| is among the q P largest of all P entries].

    Args:
      model: its loss, in evaluation mode.
      params: theta_0, without running statistics.
      request: of which the forget set is read.
      fraction: q in [0, 1], of all entries of all leaves together; q P is rounded.

    Returns:
      A tree of bool arrays of the leaves' shapes, for `masked`; traceable with in-memory Data.

    Raises:
      ValueError: q outside [0, 1].

    | edge case                     | result                                                  |
    |-------------------------------|---------------------------------------------------------|
    | q = 1, q = 0                  | all True, all False                                     |
    | ties                          | the earlier entry, in the order of the leaves           |
    | an entry whose gradient is NaN | last: False unless q = 1                               |
    | the loss times a constant     | the same mask                                           |

    Cost: one backward pass over F and one sort of P numbers; memory 4 x params.

    Source: Fan et al. (2024), arXiv:2310.12508; departures in the module.

    Example:
      >>> from jaxunlearn.data import in_memory
      >>> model = Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"] @ p)
      >>> forget = in_memory({"x": jnp.array([[1.0, -3.0, 2.0, 0.0]])}, 1)
      >>> print(saliency_mask(model, jnp.ones(4), Request(forget), 0.5))
      [False  True  True False]
    """
    check_between("saliency_mask", "fraction", fraction, at_least=0, at_most=1)
    leaves, tree = jax.tree.flatten(gradient_sum(model.loss, params, request.forget))
    sizes = [g.size for g in leaves]
    entries = jnp.concatenate([jnp.abs(g).ravel() for g in leaves])
    order = jnp.argsort(-entries, stable=True)
    rank = jnp.zeros(entries.size, jnp.int32).at[order].set(jnp.arange(entries.size))
    chosen = rank < jnp.round(fraction * entries.size)
    parts = jnp.split(chosen, [sum(sizes[:i]) for i in range(1, len(sizes))])
    shaped = [part.reshape(g.shape) for part, g in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(tree, shaped)


def salient(each: Method, fraction: float | Array = 0.5) -> Method:
    """`each`, moving only the entries that the forget gradient at theta_0 is largest on.

        masked(each, saliency_mask(model, theta_0, request, fraction))

    Args:
      each: any Method that keeps the model.
      fraction: q in [0, 1], of all entries.

    Returns:
      A Method that needs what `each` needs, and forget and labels.

    Raises:
      ValueError: q outside [0, 1].
      TypeError: not a Method, or one that replaces the model.

    | edge case | result                                                                   |
    |-----------|--------------------------------------------------------------------------|
    | q = 1     | what `each` gives                                                        |
    | q = 0     | params bit-identical                                                     |
    | the rest  | entries outside the mask are bit-identical under decay, momentum, noise  |

    Cost: that of `each` and of `saliency_mask`.

    Example:
      >>> from jaxunlearn.methods import finetune
      >>> salient(finetune(epochs=1), fraction=0.3).name
      'salient(finetune)'
    """
    if not hasattr(each, "unlearn"):
        raise TypeError(
            f"salient: expected a Method, got {type(each).__name__}. Was a builder not called?"
        )
    return _salient(each, fraction, f"salient({each.name})")


def _salient(each: Method, fraction: float | Array, name: str) -> Method:
    check_between(name, "fraction", fraction, at_least=0, at_most=1)

    def unlearn(
        model: Model,
        weights: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        inner = masked(each, saliency_mask(model, weights, request, fraction))
        best = inner if score is None else keep_best(inner, lambda _, some: score(some))
        return best.unlearn(model, weights, request, key)

    return method(unlearn, needs=each.needs | {"forget", "labels"}, name=name, scored=True)


def salun(
    tx: optax.GradientTransformation | None = None,
    *,
    fraction: float = 0.5,
    epochs: int = 10,
    order: str = "union",
    wrong_only: bool = False,
) -> Method:
    """theta' = where(m, random_labels(theta_0), theta_0), m the saliency mask of the forget set.

    Args:
      tx, epochs, order, wrong_only: as for `random_labels`.
      fraction: q in [0, 1], the part of all entries that may move.

    Returns:
      A Method that needs forget, retain, labels and the key.

    Raises:
      ValueError: q outside [0, 1], an unknown order.

    | edge case  | result                                                             |
    |------------|--------------------------------------------------------------------|
    | q = 1      | `random_labels`                                                    |
    | epochs = 0 | params bit-identical                                               |
    | divergence | last finite params, `info.status == DIVERGED`                      |

    Cost: `epochs` passes over all data, one more over the forget set.

    Source: Fan et al. (2024), arXiv:2310.12508; departures in the module.

    Example:
      >>> sorted(salun(fraction=0.3, epochs=1).needs)
      ['forget', 'key', 'labels', 'retain']
    """
    inner = random_labels(tx, epochs=epochs, order=order, wrong_only=wrong_only)
    return _salient(inner, fraction, "salun")
