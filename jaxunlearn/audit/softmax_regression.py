"""The linear probe itself: softmax regression on frozen features, for all models at once.

With x_i in R^d the features of example i, standardised on the training examples, and y_i its label,

    min_{W, b}  sum_i [ logsumexp_c (W'x_i + b)_c - (W'x_i + b)_{y_i} ] + l2/2 |W|_F^2

The sum over examples is strictly convex in W, so the optimum is a property of the features and of
nothing else: no learning rate, no number of epochs, no seed. Two probes can be compared.

Newton's method, each step by conjugate gradients, with backtracking until the objective falls. In
the principal axes of the features X'X is diagonal, and so is the preconditioner

    a_c |X_j|^2 + l2,     a_c = mean_i p_ic (1 - p_ic)

which is the diagonal of the Hessian if the curvature of all examples were the same. A model that
has reached the tolerance is left alone, so no model's probe depends on its company.

Source: conjugate-gradient Newton for logistic regression, P. Komarek and A. W. Moore (2005),
"Making logistic regression a core data mining tool"; the batched form is this project's own.

| input                                     | result                                            |
|-------------------------------------------|---------------------------------------------------|
| two classes                               | a binary logistic regression with penalty l2/2    |
| a feature that never varies               | weight 0                                          |
| a class below `num_classes` without rows  | logit -Inf: probability 0                         |
| all training examples of one class        | TooFew                                            |
| l2 = 0                                    | ValueError: separable features have no optimum    |
| a model with NaN or Inf in its features   | NaN logits for that model                         |
| a model that did not reach the tolerance  | its `residual` says so, and its logits are NaN    |

NumPy float64 on the host.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from .errors import TooFew
from .neighbours import as_labelled, finite_models
from .similarity import as_features

_INNER_STEPS = 200  # products with the Hessian in one Newton step
_HALVINGS = 40


class Probe(NamedTuple):
    """M linear classifiers, one on the features of each model; classes C."""

    weight: np.ndarray  # (M, d, C) float64, on standardised features; NaN for a broken model
    bias: np.ndarray  # (M, C) float64; -Inf for a class without training examples
    centre: np.ndarray  # (M, d) float64, mean of the training features
    spread: np.ndarray  # (M, d) float64, standard deviation of the training features, or 1
    residual: np.ndarray  # (M,) float64, |gradient| at the end over |gradient| at W = 0, b = 0


def fit_probe(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    num_classes: int | None = None,
    l2: float = 1.0,
    tolerance: float = 1e-6,
    max_steps: int = 50,
) -> Probe:
    """The optimum of the module's objective, for every model.

    Args:
        features: (M, n, d) any float dtype.
        labels: (n,) integers >= 0, shared by all models; at least two different ones.
        num_classes: C, at least the largest label + 1; None for exactly that.
        l2: > 0, weight of the penalty; scikit-learn's C is 1 / l2 (for two classes 2 / l2).
        tolerance: the gradient's norm is to fall below this share of its norm at zero.
        max_steps: Newton steps at most; ten are usual.

    Returns:
        `Probe`; apply it with `probe_logits`.

    Raises:
        TooFew: one class only. ValueError: see the table; shapes, labels.

    Cost: an eigenproblem of size min(n, d) for each model, then about 100 passes over the features,
    each n d C multiplications; memory two copies of the features in float64.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(2, 60, 5))
        >>> probe = fit_probe(x, (x[0, :, 0] > 0).astype(int))
        >>> probe.weight.shape, bool(probe.residual.max() < 1e-6)
        ((2, 5, 2), True)
    """
    x, y = as_labelled(features, labels, "fit_probe")
    present, y = np.unique(y, return_inverse=True)
    if present.size < 2:
        raise TooFew(
            f"fit_probe: one class only ({present.tolist()}); a probe needs examples of two."
        )
    if not (np.isfinite(l2) and l2 > 0):
        raise ValueError(
            f"fit_probe: expected l2 > 0, got {l2}. Without a penalty, features that separate the "
            "classes have no best probe."
        )
    size = int(present[-1]) + 1 if num_classes is None else num_classes
    if size <= present[-1]:
        raise ValueError(
            f"fit_probe: expected labels in [0, {size}) for num_classes={size}, got {present[-1]}."
        )
    finite = finite_models(x)
    x = np.where(finite[:, None, None], x.astype(np.float64), 0.0)
    centre, spread = x.mean(axis=1), x.std(axis=1)
    constant = spread <= 1e-7 * np.abs(x).max(axis=1, initial=0.0)
    spread = np.where(constant, 1.0, spread)
    x = np.where(constant[:, None, :], 0.0, (x - centre[:, None, :]) / spread[:, None, :])
    x, axes = _principal_axes(x)
    found, residual = _newton(x, y, present.size, l2, tolerance, max_steps)
    good = finite & (residual <= tolerance)
    weight = np.zeros((len(x), axes.shape[1], size))
    bias = np.full((len(x), size), -np.inf)
    weight[:, :, present] = axes @ found[:, :-1]
    bias[:, present] = found[:, -1] - found[:, -1].mean(axis=1, keepdims=True)
    weight[~good], bias[~good] = np.nan, np.nan
    return Probe(weight, bias, centre, spread, np.where(finite, residual, np.nan))


def probe_logits(probe: Probe, features: ArrayLike) -> np.ndarray:
    """What the probe of each model says: logits, to be audited like those of any model.

        z = W' (x - centre) / spread + b

    Args:
        probe: of M models. features: (M, m, d) of the same models.

    Returns:
        (M, m, C) float64; NaN for a broken model, or one with non-finite features here.

    Example:
        >>> import numpy as np
        >>> x = np.array([[[0.0], [1.0], [2.0], [3.0]]])
        >>> probe_logits(fit_probe(x, [0, 0, 1, 1]), x).argmax(axis=2)
        array([[0, 0, 1, 1]])
    """
    x = as_features(features, "probe_logits")
    if (x.shape[0], x.shape[2]) != probe.centre.shape:
        raise ValueError(
            f"probe_logits: expected features ({probe.centre.shape[0]}, m, "
            f"{probe.centre.shape[1]}) like those of the fit, got {x.shape}."
        )
    finite = finite_models(x)
    x = np.where(finite[:, None, None], x.astype(np.float64), 0.0)
    standard = (x - probe.centre[:, None, :]) / probe.spread[:, None, :]
    logits = standard @ probe.weight + probe.bias[:, None, :]
    return np.where(finite[:, None, None], logits, np.nan)


def _principal_axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x Q (M, n, r) with orthogonal columns, and Q (M, d, r) with Q'Q = 1; r = min(n, d)."""
    if x.shape[1] >= x.shape[2]:
        _, axes = np.linalg.eigh(x.transpose(0, 2, 1) @ x)
        return x @ axes, axes
    left, scale, axes = np.linalg.svd(x, full_matrices=False)
    return left * scale[:, None, :], axes.transpose(0, 2, 1)


def _newton(
    x: np.ndarray, y: np.ndarray, num_classes: int, l2: float, tolerance: float, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Optimum (M, r + 1, C), the intercept last, and the relative gradient norms (M,)."""
    x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    penalty = np.append(np.full(x.shape[2] - 1, l2), 0.0)[None, :, None]
    one_hot = np.eye(num_classes)[y]
    squares = np.square(x).sum(axis=1)[:, :, None]  # x has orthogonal columns

    def evaluate(x, V):
        log_p = log_softmax(x @ V, axis=2)
        value = (penalty * V * V).sum(axis=(1, 2)) / 2 - (one_hot * log_p).sum(axis=(1, 2))
        return value, np.exp(log_p)

    def gradient(x, V, p):
        return x.transpose(0, 2, 1) @ (p - one_hot) + penalty * V

    V = np.zeros((len(x), x.shape[2], num_classes))
    value, p = evaluate(x, V)
    g = gradient(x, V, p)
    start = np.maximum(_norm(g), 1e-8 * len(y))  # features that know nothing begin at the optimum
    for _ in range(max_steps):
        at = np.flatnonzero(_norm(g) > tolerance * start)
        if at.size == 0:
            break
        mine = x[at]
        left = _norm(g[at]) / start[at]
        forcing = np.maximum(np.minimum(0.1, np.sqrt(left)), 0.5 * tolerance / left)
        step = _newton_step(mine, p[at], g[at], penalty, squares[at], forcing)
        slope = (g[at] * step).sum(axis=(1, 2))
        length = np.ones(at.size)
        for _ in range(_HALVINGS):
            trial = V[at] + length[:, None, None] * step
            new_value, new_p = evaluate(mine, trial)
            allowed = value[at] + 1e-4 * length * slope + 1e-14 * np.abs(value[at])
            if (new_value <= allowed).all():
                break
            length = np.where(new_value <= allowed, length, length / 2)
        V[at], value[at], p[at] = trial, new_value, new_p
        g[at] = gradient(mine, trial, new_p)
    return V, _norm(g) / start


def _newton_step(
    x: np.ndarray,
    p: np.ndarray,
    g: np.ndarray,
    penalty: np.ndarray,
    squares: np.ndarray,
    forcing: np.ndarray,
) -> np.ndarray:
    """-H^{-1} g by preconditioned conjugate gradients, to |H s + g| <= forcing |g| per model."""
    curvature = np.maximum((p * (1 - p)).mean(axis=1), 1e-10)[:, None, :]
    scale = curvature * squares + penalty

    def hessian(direction):
        u = x @ direction
        u = p * (u - (p * u).sum(axis=2, keepdims=True))
        return x.transpose(0, 2, 1) @ u + penalty * direction

    step, rest = np.zeros_like(g), -g
    towards = preconditioned = rest / scale
    inner = (rest * preconditioned).sum(axis=(1, 2))
    goal = forcing * _norm(g)
    for _ in range(_INNER_STEPS):
        live = _norm(rest) > goal
        if not live.any():
            break
        image = hessian(towards)
        bend = (towards * image).sum(axis=(1, 2))
        length = np.where(live & (bend > 0), inner / np.where(bend > 0, bend, 1.0), 0.0)
        step = step + length[:, None, None] * towards
        rest = rest - length[:, None, None] * image
        preconditioned = rest / scale
        previous, inner = inner, (rest * preconditioned).sum(axis=(1, 2))
        turn = np.where(live, inner / np.where(previous > 0, previous, 1.0), 0.0)
        towards = preconditioned + turn[:, None, None] * towards
    return step


def _norm(g: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(g).sum(axis=(1, 2)))
