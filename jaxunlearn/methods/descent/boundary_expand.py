"""Boundary expand: an extra class takes the forget set over, and is then deleted.

    min_{theta, w, b}  mean_{i in F} -log softmax([f_theta(x_i), w . h_theta(x_i) + b])_{C+1}

f are the C logits and h the features that they are computed from. Drawn towards the shadow class,
the forget examples move away from all real ones; when its row (w, b) is thrown away what is left is
a model of C classes again. Only the forget inputs are read, not their labels.

Weak. The shadow logit rises as fast as the true one falls (their gradients are 1 - p_{C+1} and
-p_y), and the loss is gone when they have crossed. So about half of the margin over the other
classes is still there when the row is deleted: confidence falls, decisions often stay. On three
separable clouds that is what is measured, at every rate and length that was tried.

Chen et al. (2023), "Boundary Unlearning", CVPR 2023, arXiv:2303.11570, with the constants of the
code that compares to it (SGD, 10 epochs, learning rates 1e-5 ... 1e-3).

Departures: 1. The network is not rebuilt with a wider head: the extra logit is computed beside it
from `model.features`, which is the same function for a head that is linear in them, and works for
any Model. 2. Evaluation mode; running statistics stay as they are.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.losses import weighted_mean
from jaxunlearn.method import Method, Request, Unlearned, method
from jaxunlearn.methods.descent.descent import sgd
from jaxunlearn.model import Model
from jaxunlearn.objectives import Batches, Objective, bind
from jaxunlearn.training import fit
from jaxunlearn.typing import Array, Batch, Key, Params, check_between

Shadow = tuple[Array, Array]  # w (d,), b [], the row of the extra class


def boundary_expand(tx: optax.GradientTransformation | None = None, *, epochs: int = 10) -> Method:
    """min over theta, w, b of the loss of F in the shadow class C + 1; theta is handed out.

    Args:
      tx: optax transformation of theta and the shadow row together; default SGD with learning rate
        1e-5, momentum 0.9, weight decay 5e-4.
      epochs: passes over the forget set, >= 0.

    Returns:
      A Method that needs forget, features and the key; neither labels nor retained data. Info is a
      `training.FitInfo`.

    Raises:
      ValueError: epochs < 0; (when called) outputs that are not (n, C), or features not (n, d).

    | edge case              | result                                                        |
    |------------------------|---------------------------------------------------------------|
    | epochs = 0             | params bit-identical                                          |
    | shadow logit very high | loss and gradient 0: the shadow row has done all the work     |
    | divergence             | last finite params, `info.status == DIVERGED`                 |

    Cost: `epochs` passes over the forget set, and d + 1 numbers more than the model.

    Source: Chen et al. (2023), arXiv:2303.11570; departures in the module.

    Example:
      >>> sorted(boundary_expand(epochs=3).needs)
      ['features', 'forget', 'key']
    """
    check_between("boundary_expand", "epochs", epochs, at_least=0)
    steps = sgd(1e-5) if tx is None else tx

    def unlearn(
        model: Model,
        params: Params,
        request: Request,
        key: Key,
        score: Callable[[Params], Array] | None = None,
    ) -> Unlearned:
        forget = request.forget
        assert model.features is not None
        shadow_key, fit_key = jax.random.split(key)
        batch = next(iter(forget))
        start = params, fresh_row(jax.eval_shape(model.features, params, batch), shadow_key)
        out = fit(
            Objective(_no_state, bind(_shadow_mean, model), _without_shadow),
            steps,
            start,
            {"forget": forget},
            key=fit_key,
            epochs=epochs,
            score=score,
        )
        return Unlearned(model, out.params, out.info)

    return method(unlearn, needs=("forget", "features", "key"), name="boundary_expand", scored=True)


def fresh_row(features: Any, key: Key) -> Shadow:
    """(w, b) uniform in [-1 / sqrt d, 1 / sqrt d], as a linear layer starts: `features` is (n, d).

    Raises:
      ValueError: features of another shape.
    """
    if len(features.shape) != 2:
        raise ValueError(
            "boundary_expand: model.features must return (n, d), one vector an example, got "
            f"{tuple(features.shape)}."
        )
    d = features.shape[1]
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    row = jax.random.uniform(key, (d + 1,), dtype, -1, 1) / jnp.sqrt(d).astype(dtype)
    return row[:d], row[d]


def shadow_loss(model: Model, params: Params, shadow: Shadow, batch: Batch) -> Array:
    """l_i = -log softmax([f(x_i), w . h(x_i) + b])_{C+1} = log(1 + exp(logsumexp f(x_i) - s_i)).

    Args:
      model: with features.
      params, shadow: theta and (w (d,), b []).
      batch: with what the model reads; no labels.

    Returns:
      (n,) float, nats.

    Raises:
      ValueError: outputs that are not (n, C).

    Example:
      >>> model = Model(lambda p, b: b["x"], lambda p, b: b["x"][:, 0], lambda p, b: b["x"])
      >>> zero = jnp.zeros(3), jnp.zeros(())
      >>> print(jnp.exp(-shadow_loss(model, (), zero, {"x": jnp.zeros((1, 3))})))
      [0.25]
    """
    assert model.features is not None
    w, b = shadow
    logits = model.outputs(params, batch)
    if logits.ndim != 2:
        raise ValueError(
            f"boundary_expand: model.outputs must be logits (n, C), got shape {logits.shape}."
        )
    s = model.features(params, batch).astype(w.dtype) @ w + b
    return jax.nn.softplus(jax.nn.logsumexp(logits.astype(w.dtype), axis=1) - s)


def _shadow_mean(
    model: Model, both: tuple[Params, Shadow], batches: Batches, state: tuple, key: Key
) -> tuple[Array, tuple]:
    del key
    batch = batches["forget"]
    return weighted_mean(shadow_loss(model, *both, batch), batch), state


def _no_state(both: tuple[Params, Shadow]) -> tuple:
    del both
    return ()


def _without_shadow(both: tuple[Params, Shadow], state: tuple) -> Params:
    del state
    return both[0]
