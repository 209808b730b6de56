"""Per-example losses: functions of a model's outputs and the labels, one number per example.

    cross_entropy    l_i = -log softmax(z_i)[y_i]       nats, summed over positions if there are any
    squared_error    l_i = sum_k (f_ik - y_ik)^2        in the squared unit of the target
    local_cross_entropy, binary_cross_entropy           over some of the classes, nats
    unlikelihood     l_i = -log(1 - softmax(z_i)[y_i] + o)   of a label that is to become unlikely
    entropy          H_i = -sum_k p_ik log p_ik              of the prediction, no label read

Nothing here averages over examples: a loss that mixes examples has no per-example gradient, and
unlearning needs those. `weighted_mean` is the one reduction, and the only place where `"weight"` is
read.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.typing import Array, Batch, Params, check_between


def _sum_of_each(values: Array) -> Array:
    return values.sum(axis=tuple(range(1, values.ndim)))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """l_i = logsumexp(z_i) - z_i[y_i], summed over the positions of example i.

    Args:
      logits: (n, ..., C) float.
      labels: (n, ...) integers in [0, C). A label >= C gives NaN, a negative one counts from the
        end; `check_labels` refuses both before training.

    Returns:
      (n,) float, nats.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes do not fit (checked while tracing, so that nothing broadcasts silently).

    Example:
      >>> print(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])))
      [1.3862944 1.3862944]
    """
    _check_classes("cross_entropy", logits, labels)
    return _sum_of_each(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def _check_classes(where: str, logits: Array, labels: Array) -> None:
    """Raises unless labels are integers of the shape of the logits without the class axis."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{where}: labels must be integer classes, got dtype {labels.dtype}. "
            "For real targets use losses.squared_error."
        )
    if logits.ndim < 2 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{where}: labels must have the shape of the logits without the class axis, "
            f"got logits {logits.shape} and labels {labels.shape}."
        )


def class_mask(classes: Sequence[int] | Array | None, num_classes: int) -> Array:
    """Which of C classes are meant, as a bool array (C,).

    Args:
      classes: integers in [0, C), each counted once; or a bool array (C,), which may be traced, so
        that one compiled program serves every set of classes; or None for all.
      num_classes: C.

    Raises:
      ValueError: an integer outside [0, C), or an array that is not bool (C,).

    Example:
      >>> print(class_mask((0, 2), 3))
      [ True False  True]
    """
    if classes is None:
        return jnp.ones(num_classes, bool)
    if isinstance(classes, jax.Array | np.ndarray):
        if classes.dtype != bool or classes.shape != (num_classes,):
            raise ValueError(
                f"classes: expected integers, or a bool array of shape ({num_classes},), one entry "
                f"a class, got an array of {classes.dtype} {classes.shape}."
            )
        return jnp.asarray(classes)
    chosen = [int(c) for c in classes]
    outside = [c for c in chosen if not 0 <= c < num_classes]
    if outside:
        raise ValueError(
            f"classes: expected integers in [0, {num_classes}), the classes of the model's "
            f"outputs, got {outside[0]}."
        )
    return jnp.asarray(np.isin(np.arange(num_classes), chosen))


def local_cross_entropy(
    logits: Array, labels: Array, classes: Sequence[int] | Array | None = None
) -> Array:
    """l_i = log sum_{k in K} exp z_ik - z_i[y_i]: cross-entropy among the classes K only.

    What continual learning trains a new task with: the logits of other classes are not pushed down
    by examples that could not have been theirs.

    Args:
      logits: (n, ..., C) float.
      labels: (n, ...) integers in K.
      classes: K, as for `class_mask`; None: all, which is `cross_entropy`.

    Returns:
      (n,) float, nats, summed over positions. NaN, with zero gradient, for an example with a label
      outside K, so that a run ends there and nothing wrong is learnt silently.

    Raises:
      TypeError, ValueError: as for `cross_entropy` and `class_mask`.

    Example:
      >>> print(local_cross_entropy(jnp.zeros((1, 4)), jnp.array([1]), classes=(0, 1)))
      [0.6931472]
    """
    mask = class_mask(classes, logits.shape[-1])
    among = jnp.broadcast_to(mask, logits.shape)
    losses = cross_entropy(jnp.where(among, logits, jnp.finfo(logits.dtype).min / 4), labels)
    outside = (labels < 0) | (labels >= mask.size) | ~mask[jnp.clip(labels, 0, mask.size - 1)]
    return jnp.where(outside.reshape(losses.shape[0], -1).any(axis=1), jnp.nan, losses)


def binary_cross_entropy(
    logits: Array, labels: Array, classes: Sequence[int] | Array | None = None
) -> Array:
    """l_i = -sum_{k in K} [y_i = k] log s(z_ik) + [y_i != k] log(1 - s(z_ik)), s the logistic.

    One classifier per class, none of which competes with another; a label outside K says "none of
    these".

    Args:
      logits: (n, ..., C) float.
      labels: (n, ...) integers.
      classes: K, as for `class_mask`; None: all.

    Returns:
      (n,) float, nats, summed over K and over positions.

    Raises:
      TypeError, ValueError: as for `cross_entropy` and `class_mask`.

    Example:
      >>> print(binary_cross_entropy(jnp.zeros((1, 4)), jnp.array([1]), classes=(0, 1)))
      [1.3862944]
    """
    _check_classes("binary_cross_entropy", logits, labels)
    mask = jnp.broadcast_to(class_mask(classes, logits.shape[-1]), logits.shape)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return _sum_of_each(
        jnp.where(mask, optax.losses.sigmoid_binary_cross_entropy(logits, targets), 0)
    )


def squared_error(predictions: Array, targets: Array) -> Array:
    """l_i = |f_i - y_i|^2.

    Args:
      predictions: (n, ...) float.
      targets: (n, ...) of the same shape.

    Returns:
      (n,) float, in the squared unit of the targets.

    Raises:
      ValueError: shapes differ (an (n, 1) prediction against an (n,) target would broadcast to
        (n, n)).

    Example:
      >>> print(squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])))
      [5.]
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            "squared_error: predictions and targets must have one shape, "
            f"got {predictions.shape} and {targets.shape}. Reshape one of them."
        )
    return _sum_of_each(jnp.square(predictions - targets))


def weighted_mean(losses: Array, batch: Batch) -> Array:
    """sum_i w_i l_i / sum_i w_i over the rows with w_i > 0; 0 if there are none.

    Rows of weight 0 contribute exactly 0, to the value and to its gradient in `losses`, even where
    their loss is NaN or Inf.

    Args:
      losses: (n,) float.
      batch: the Batch they came from; without `"weight"` every row counts 1.

    Returns:
      [] float, at least float32: the sums of half-precision losses are not taken in half precision.

    Example:
      >>> batch = {"weight": jnp.array([2.0, 1.0, 0.0])}
      >>> print(weighted_mean(jnp.array([1.0, 4.0, jnp.nan]), batch))
      2.0
    """
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.float32))
    weight = batch.get("weight", jnp.ones(losses.shape)).astype(losses.dtype)
    total = weight.sum()
    return (jnp.where(weight > 0, losses, 0) * weight).sum() / jnp.where(total > 0, total, 1)


def check_per_example(loss: Callable[[Params, Batch], Array], params: Params, batch: Batch) -> None:
    """Raises unless `loss(params, batch)` has shape (n,): traced abstractly, nothing is computed.

    The batch is read for the shapes of its rows only; n = 3 of them are pretended, so that a mean
    of shape (1,) cannot pass for a batch of one row.

    Raises:
      ValueError: naming the shape that came; a mean over the batch has shape ().
    """
    rows = 3
    pretended = {
        name: jax.ShapeDtypeStruct((rows, *column.shape[1:]), column.dtype)
        for name, column in batch.items()
    }
    out = jax.eval_shape(loss, params, pretended)
    if getattr(out, "shape", None) != (rows,):
        raise ValueError(
            f"model.loss must return one number per example, shape ({rows},) for a batch of {rows} "
            f"rows, but returned {getattr(out, 'shape', type(out).__name__)}. "
            "Do not average: losses.weighted_mean does that where it is wanted."
        )


def num_classes(
    outputs: Callable[[Params, Batch], Array], params: Params, batch: Batch
) -> int | None:
    """C, the last axis of the model's outputs, if `"y"` holds classes; None for other targets.

    Classes are integers of the shape of the outputs without their last axis. Nothing is computed.
    """
    labels = batch["y"]
    shape = jax.eval_shape(outputs, params, batch).shape
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    return shape[-1] if integer and labels.shape == shape[:-1] else None


def check_labels(where: str, batch: Batch, classes: int) -> None:
    """Raises unless every label of positive weight lies in [0, classes). Needs concrete labels.

    Raises:
      ValueError: naming the first bad row and its label.
    """
    labels = np.asarray(batch["y"])
    bad = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1).any(axis=1)
    if "weight" in batch:
        bad &= np.asarray(batch["weight"]) > 0
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{where}: labels must lie in [0, {classes}), the classes of the model's outputs, "
            f"but row {row} has {labels[row]}."
        )


def saturated(losses: Array, clip: float | Array) -> Array:
    """C(l) = l with its gradient where l < clip, and with gradient exactly 0 from there on.

    The value is the loss itself, so that a curve shows what was reached; only the push ends. (The
    `clip` of `objectives.mean_loss` ends both.)

    Args:
      losses: (n,) float, or any shape.
      clip: nats, > 0; may be traced.

    Returns:
      The same numbers.

    Example:
      >>> print(jax.grad(lambda l: saturated(l, 2.0).sum())(jnp.array([1.0, 2.0, 3.0])))
      [1. 0. 0.]
    """
    return jnp.where(losses < clip, losses, jax.lax.stop_gradient(losses))


def unlikelihood(logits: Array, labels: Array, offset: float | Array = 0.0) -> Array:
    """l_i = -log(1 - p_i[y_i] + o), p = softmax(z), summed over the positions of example i.

    Small where the label is unlikely: what is minimised to unlearn a label. Its slope in p is at
    most 1 / o, so that examples of which the model is sure do not drown the others; its slope in z
    is at most 1, and for o > 0 goes to 0 as p goes to 1.

    Args:
      logits: (n, ..., C) float.
      labels: (n, ...) integers in [0, C), as for `cross_entropy`.
      offset: o >= 0; may be traced.

    Returns:
      (n,) float, nats; between -log(1 + o) and -log(o) for each position. 1 - p is the sum of the
      other probabilities, so that it keeps its digits where p rounds to 1.

    Raises:
      TypeError, ValueError: as for `cross_entropy`, and for a negative offset.

    Example:
      >>> print(f"{unlikelihood(jnp.zeros((1, 4)), jnp.array([2]))[0]:.3f}")
      0.288
    """
    _check_classes("unlikelihood", logits, labels)
    check_between("unlikelihood", "offset", offset, at_least=0)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    others = jnp.where(own, jnp.finfo(logits.dtype).min / 4, logits)
    rest = jax.nn.logsumexp(others, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    return -_sum_of_each(jnp.logaddexp(rest, jnp.log(jnp.asarray(offset, logits.dtype))))


def entropy(logits: Array) -> Array:
    """H_i = -sum_k p_ik log p_ik, p = softmax(z), summed over the positions of example i.

    Args:
      logits: (n, ..., C) float; -inf is a probability of exactly 0.

    Returns:
      (n,) float, nats, in [0, log C] for each position.

    Raises:
      ValueError: logits without an axis of classes behind that of the examples.

    Example:
      >>> print(f"{entropy(jnp.array([[0.0, 0.0, -jnp.inf]]))[0]:.3f}")
      0.693
    """
    if logits.ndim < 2:
        raise ValueError(f"entropy: expected logits (n, ..., C), got shape {logits.shape}.")
    logs = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(logs)
    return -_sum_of_each(p * jnp.where(p > 0, logs, 0))
