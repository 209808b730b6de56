"""Every method, and the small problems on which every method is tried.

A case is a model, trained-looking params and a request: 24 rows in four dimensions, three classes,
eight of them to be forgotten (class 0). The registry lives here and not in the library: a new
builder must be added by hand, and a test fails until it is.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxunlearn as ju
from jaxunlearn import objectives

TX = optax.adam(0.05)

# name -> the method, small enough to compile in a second; every public builder at least once
METHODS: dict[str, ju.Method] = {
    "retrain": ju.retrain(TX, epochs=1),
    "acu": ju.acu(gamma=1.0),
    "blindspot": ju.blindspot(TX, blind_tx=TX, blind_epochs=1),
    "blind_model": ju.blind_model(TX, epochs=1),
    "gaussian_amnesiac": ju.gaussian_amnesiac(TX),
    "finetune": ju.finetune(epochs=2),
    "forsaken": ju.forsaken(learning_rate=0.5, share=0.3, steps=2),
    "gradient_ascent": ju.gradient_ascent(optax.sgd(0.1), epochs=2),
    "jit_lipschitz": ju.jit_lipschitz(optax.sgd(0.1), samples=3),
    "info_theoretic": ju.info_theoretic(optax.sgd(0.1), samples=3),
    "mox": ju.mox(optax.sgd(0.1), alpha=1.0, epochs=1),
    "neggrad_plus": ju.neggrad_plus(TX, epochs=1),
    "random_labels": ju.random_labels(TX, epochs=1),
    "pgu": ju.pgu(optax.sgd(0.5), rho=0.7, epochs=1, stop="retain", drop=1.0),
    "entanglement": ju.entanglement(TX, recovery_rate=0.1, recovery_epochs=1, batches=2),
    "hamu": ju.hamu(learning_rate=0.1, ratio=0.1, infeasible="fallback", epochs=1),
    "salun": ju.salun(TX, epochs=1),
    "scrub": ju.scrub(optax.sgd(0.1), epochs=2, msteps=1, forget_batch=3),
    "bad_teacher": ju.bad_teacher(optax.sgd(0.1)),
    "amnesiac": ju.amnesiac(TX, epochs=1),
    "pseudo_label": ju.pseudo_label(TX, rehearse="labels", epochs=1),
    "l1_sparse": ju.l1_sparse(TX, alpha=0.01, epochs=1),
    "unsir": ju.unsir(TX, samples=4, copies=1, noise_steps=2),
    "boundary_shrink": ju.boundary_shrink(TX, epochs=1),
    "boundary_expand": ju.boundary_expand(TX, epochs=1),
    "shrink_perturb": ju.shrink_perturb(TX, epochs=1),
    "features_labels": ju.features_labels(curvature="ggn", l2=1.0, damping=5.0, tolerance=1e-5),
    "influence": ju.influence(curvature="ggn", damping=1.0, tolerance=1e-5),
    "ssd": ju.ssd(alpha=1.2, effective_batch=64),
    "lfssd": ju.lfssd(alpha=1.1, reference="retain"),
    "assd": ju.assd(),
    "fisher_forgetting": ju.fisher_forgetting(alpha=1e-3),
    "win_u": ju.win_u(damping=2.0, micro_batch=4),
    "tmu": ju.tmu(TX, epochs=1, twin_epochs=1, short_epochs=1, judge_epochs=5, attack_steps=2),
    "cf_k": ju.cf_k(TX, epochs=1),
    "eu_k": ju.eu_k(TX, epochs=1),
    "descent": ju.descent(partial(objectives.neggrad_plus, alpha=0.5), TX, steps=3),
}
HEAD_ONLY = ("acu",)  # moves the last layer and nothing else
REGRESSIONS = ("gaussian_amnesiac",)  # made for real targets and refusing classes
DESCENTS = (
    "amnesiac",
    "bad_teacher",
    "blindspot",
    "boundary_expand",
    "boundary_shrink",
    "cf_k",
    "descent",
    "entanglement",
    "finetune",
    "forsaken",
    "gaussian_amnesiac",
    "gradient_ascent",
    "hamu",
    "info_theoretic",
    "jit_lipschitz",
    "l1_sparse",
    "mox",
    "neggrad_plus",
    "pgu",
    "pseudo_label",
    "random_labels",
    "salun",
    "scrub",
    "shrink_perturb",
    "tmu",
    "unsir",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what it should forget."""

    model: ju.Model
    params: Any
    request: ju.Request


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(3), 8).astype(np.int32)
    x = (2.0 * np.eye(3, 4)[y] + 0.7 * rng.standard_normal((24, 4))).astype(np.float32)
    return {"x": x, "y": y, "id": np.arange(100, 124, dtype=np.int32)}


def request(batch_size: int = 6) -> ju.Request:
    data = ju.data.in_memory(columns(), batch_size)
    fresh = np.random.default_rng(4).standard_normal((6, 4)).astype(np.float32)
    unseen = {"x": fresh, "y": np.arange(6, dtype=np.int32) % 3, "id": np.arange(6) + 200}
    return ju.Request(
        forget=data.take(np.arange(8)),
        retain=data.take(np.arange(8, 24)),
        adjacent=data.take(np.arange(8, 14)),
        held_out=ju.data.in_memory(unseen, batch_size),
    )


def suited(name: str, case: Case) -> Case:
    """The case itself, or the same rows and model with real targets, which x almost explains."""
    if name not in REGRESSIONS:
        return case
    outputs = case.model.outputs

    def loss(params: Any, batch: Any) -> jax.Array:
        return ju.losses.squared_error(outputs(params, batch), batch["y"])

    def with_targets(data: Any) -> Any:
        return data.replace(y=data["x"][:, :3] + 0.1 * data["x"][:, 3:])

    fields = (None if data is None else with_targets(data) for data in case.request)
    model = dataclasses.replace(case.model, loss=loss)
    return Case(model, case.params, ju.Request(*fields))


def mlp(params: Any, batch: Any) -> jax.Array:
    """4-6-3; params are a nested dict."""
    head = params["head"]
    return (mlp_features(params, batch) @ head["w"] + head["b"][None]).astype(jnp.float32)


def mlp_features(params: Any, batch: Any) -> jax.Array:
    return jnp.tanh(batch["x"] @ params["body"]["w"] + params["body"]["b"][None])


def mlp_init(key: jax.Array) -> Any:
    """One bfloat16 leaf, so that a method which casts is noticed."""
    first, second = jax.random.split(key)
    body = {"w": 0.5 * jax.random.normal(first, (4, 6)), "b": jnp.full(6, 0.1)}
    head = {"w": 0.5 * jax.random.normal(second, (6, 3)), "b": jnp.full(3, 0.1, jnp.bfloat16)}
    return {"body": body, "head": head}


def by_hand(outputs: Any, init: Any, features: Any = lambda params, batch: batch["x"]) -> ju.Model:
    def loss(params: Any, batch: Any) -> jax.Array:
        return ju.losses.cross_entropy(outputs(params, batch), batch["y"])

    return ju.Model(outputs=outputs, loss=loss, features=features, init=init)


def dict_case() -> Case:
    return Case(by_hand(mlp, mlp_init, mlp_features), mlp_init(jax.random.key(0)), request())


def tuple_case() -> Case:
    def outputs(params: Any, batch: Any) -> jax.Array:
        (w,), b = params
        return batch["x"] @ w + b[None]

    def init(key: jax.Array) -> Any:
        return ((jax.random.normal(key, (4, 3)),), jnp.zeros(3))

    return Case(by_hand(outputs, init), init(jax.random.key(0)), request())


class Normalised(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.dense(x)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.features(x))


def nnx_case() -> Case:
    from jaxunlearn.networks import MLP

    model = ju.from_nnx(lambda rngs: MLP(4, 3, hidden=(6,), rngs=rngs))
    return Case(model, model.init(jax.random.key(0)), request())


def statistics_case() -> Case:
    model = ju.from_nnx(lambda rngs: Normalised(rngs))
    params = model.init(jax.random.key(0))
    moved = jax.tree.map(lambda s: s + 0.3, params["batch_stats"])
    return Case(model, params | {"batch_stats": moved}, request())
