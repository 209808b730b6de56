"""How near a network of finite width is to its kernel machine, after training without F.

    f(x) = sqrt(2 / width) sum_r v_r relu(w_r . x),     v and w of variance 1     (two layers)
    L    = (lambda/2) |theta - theta_0|^2 + mean over S of l(y_i, f(x_i) - f_0(x_i))

The network is trained by full-batch (sub)gradient descent on S = all rows but F, from the start
that it had; the kernel of the infinitely wide network does the same steps on all rows and then
forgets F (squared loss: the closed form of `kernel_ridge`, of the minimum), or does them on S
(hinge: `subgradient_descent`, step by step). Rms over test points of the difference, centred.

The third number of a width compares the network with the machine of its OWN kernel at the start:
what is left is that a network's kernel moves while it learns.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.curvature import tangent_kernel
from jaxunlearn.kernels.dynamics import subgradient_descent
from jaxunlearn.kernels.functions import relu_tangent
from jaxunlearn.kernels.losses import KernelLoss, hinge, squared
from jaxunlearn.methods.exact.kernel import kernel_ridge
from jaxunlearn.model import Model
from jaxunlearn.typing import Array, Key, Params

ROWS, TEST, FORGET, INPUTS = 30, 50, 6, 4
DECAY = 0.1
LOSSES = {"squared": squared(), "hinge": hinge()}
RATES = {"squared": 0.5, "hinge": 0.05}  # a subgradient chatters at the margin by its rate
_KERNEL = relu_tangent(scale=2**0.5)


def outputs(params: Params, batch: Any) -> Array:
    """f (n,), of width v.size."""
    hidden = jax.nn.relu(batch["x"] @ params["w"].T)
    return hidden @ params["v"] * (2 / params["v"].size) ** 0.5


NETWORK = Model(outputs=outputs, loss=lambda p, b: (outputs(p, b) - b["y"]) ** 2 / 2)


def start(key: Key, width: int) -> Params:
    """theta_0, every entry of variance 1."""
    of_w, of_v = jax.random.split(key)
    w = jax.random.normal(of_w, (width, INPUTS))
    return {"w": w, "v": jax.random.normal(of_v, (width,))}


def problem(seed: int = 0) -> tuple[Array, Array, Array]:
    """x (ROWS, d) and test points (TEST, d) on the unit sphere, y (ROWS,) of -1 and 1."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((ROWS + TEST, INPUTS))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    y = np.sign(points[:ROWS, 0] * points[:ROWS, 1] + 0.1 * rng.standard_normal(ROWS))
    return jnp.asarray(points[:ROWS]), jnp.asarray(points[ROWS:]), jnp.asarray(y)


def descend(theta: Params, x: Array, y: Array, loss: KernelLoss, steps: int) -> Params:
    """Full-batch (sub)gradient descent on L from theta_0."""
    at_start = outputs(theta, {"x": x})

    def fit_term(p: Params) -> Array:
        f = outputs(p, {"x": x}) - at_start
        return (jax.lax.stop_gradient(loss.slope(y, f)) * f).mean()

    rate = RATES[loss.name]

    def step(p: Params, _: None) -> tuple[Params, None]:
        slope = jax.grad(fit_term)(p)
        return jax.tree.map(lambda a, b, g: a - rate * (g + DECAY * (a - b)), p, theta, slope), None

    return jax.lax.scan(step, theta, None, steps)[0]


@partial(jax.jit, static_argnames=("width", "name", "steps"))
def differences(key: Key, width: int, name: str, steps: int) -> Array:
    """(2,) rms over test points: from the infinitely wide kernel, from the network's own."""
    x, test, y = problem()
    loss, kept = LOSSES[name], jnp.arange(ROWS) >= FORGET
    theta = start(key, width)
    trained = descend(theta, x[FORGET:], y[FORGET:], loss, steps)
    change = outputs(trained, {"x": test}) - outputs(theta, {"x": test})

    def own(left: Array, right: Array) -> Array:
        block = None if width * INPUTS <= 512 else 16
        batches = ({"x": left}, {"x": right})
        return tangent_kernel(NETWORK, theta, *batches, outputs="trace", block=block)

    def rms(kernel: Any) -> Array:
        if name == "squared":  # the minimum: a mean over S, so rho = |S| lambda
            machine = kernel_ridge(kernel=kernel, rho=(ROWS - FORGET) * DECAY)
            state = machine.forget(machine.init(x, y), jnp.arange(FORGET))
            predicted = machine.predict(state, test)
        else:
            batches = jnp.broadcast_to(jnp.arange(ROWS), (steps, ROWS))
            options = {"decay": DECAY, "learning_rate": RATES[name], "kept": kept}
            alpha, _ = subgradient_descent(kernel(x, x), y, batches, loss=loss, **options)
            predicted = kernel(test, x) @ alpha
        return jnp.sqrt(jnp.mean((change - predicted) ** 2))

    return jnp.stack([rms(_KERNEL), rms(own)])


def _steps(name: str, steps: int) -> int:
    """As much time for every loss: steps at the rate of the squared loss, more at a lower one."""
    return round(steps * RATES["squared"] / RATES[name])


def table(widths: tuple[int, ...], seeds: int, steps: int, name: str) -> list[dict[str, Any]]:
    """For each width, the rms over seeds of both differences, as plain data."""
    rows, steps = [], _steps(name, steps)
    for width in widths:
        keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in range(seeds)]
        found = np.array([differences(key, width, name, steps) for key in keys])
        limit, own = np.sqrt((found**2).mean(axis=0)).tolist()
        rows.append({"width": width, "limit": limit, "own": own, "seeds": seeds})
    return rows


def moved(name: str, steps: int) -> float:
    """Rms over test points of what forgetting F changes in the machine: the effect itself."""
    x, test, y = problem()
    steps = _steps(name, steps)
    across = _KERNEL(test, x)
    if name == "squared":
        fitted = kernel_ridge(kernel=_KERNEL, rho=(ROWS - FORGET) * DECAY)
        state = fitted.init(x, y)
        change = fitted.predict(state, test) - fitted.predict(
            fitted.forget(state, jnp.arange(FORGET)), test
        )
    else:
        batches = jnp.broadcast_to(jnp.arange(ROWS), (steps, ROWS))
        options = {"decay": DECAY, "learning_rate": RATES[name], "loss": LOSSES[name]}
        gram, kept = _KERNEL(x, x), jnp.arange(ROWS) >= FORGET
        both = [
            subgradient_descent(gram, y, batches, kept=which, **options)[0]
            for which in (jnp.ones(ROWS, bool), kept)
        ]
        change = across @ (both[0] - both[1])
    return float(jnp.sqrt(jnp.mean(change**2)))
