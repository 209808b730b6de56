"""Losses that mix the examples of a batch are refused; those that do not are let through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.curvature import CoupledError, second_moment
from jaxunlearn.curvature.coupling import check_independent
from jaxunlearn.data import in_memory
from jaxunlearn.networks import ResNet18
from tests.curvature.zoo import ZOO

X = {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}


def batch_norm(p, b):
    h = b["x"] @ p
    return ((h - h.mean(axis=0)[None]) / (h.std(axis=0)[None] + 1e-3)).sum(axis=1)


COUPLED = {
    "normalised over the batch": batch_norm,
    "the mean repeated": lambda p, b: jnp.broadcast_to((b["x"] @ p).mean(), b["y"].shape),
    "softmax over the batch": lambda p, b: jax.nn.softmax((b["x"] @ p).sum(axis=1), axis=0),
    "every pair": lambda p, b: jnp.tanh((b["x"] @ p) @ (b["x"] @ p).T).sum(axis=1),
    "running sum": lambda p, b: jnp.cumsum((b["x"] @ p).sum(axis=1)),
    "sorted": lambda p, b: jnp.sort((b["x"] @ p).sum(axis=1)),
    "reversed": lambda p, b: (b["x"] @ p)[::-1].sum(axis=1),
    "shifted": lambda p, b: jnp.roll((b["x"] @ p).sum(axis=1), 1),
    "inside of a jit": lambda p, b: jax.jit(batch_norm)(p, b),
    "inside of a remat": lambda p, b: jax.checkpoint(batch_norm)(p, b),
    "carried by a scan": lambda p, b: jax.lax.scan(
        lambda c, x: (c + (x @ p).sum(), c + (x @ p).sum()), jnp.zeros(()), b["x"]
    )[1],
}

INDEPENDENT = {
    "mapped": lambda p, b: jax.lax.map(lambda x: (x @ p).sum(), b["x"]),
    "a batch statistic that is not used": lambda p, b: (
        (b["x"] @ p).mean(),
        (b["x"] @ p).sum(axis=1),
    )[1],
    "indexed by row": lambda p, b: (b["x"] @ p)[jnp.arange(len(b["y"])), b["y"]],
    "flattened and back": lambda p, b: (b["x"].reshape(-1, 1) * p[0, 0]).reshape(-1, 3).sum(1),
    "batch last": lambda p, b: (p.T @ b["x"].T).sum(axis=0),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_loss_that_mixes_examples_is_refused(name):
    with pytest.raises(CoupledError, match="depends on the others of its batch: .*shape|: \\("):
        check_independent(COUPLED[name], jnp.ones((3, 2)), X)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_loss_that_does_not_is_let_through(name):
    check_independent(INDEPENDENT[name], jnp.ones((3, 2)), X)


@pytest.mark.parametrize("name", ZOO)
def test_no_network_of_the_zoo_is_refused(name):
    network = ZOO[name]()
    check_independent(network.loss_fn, network.params, network.columns)


@pytest.mark.parametrize("strategy", ["taps", "vmap"])
def test_no_moments_are_computed_of_such_a_loss(strategy):
    data = in_memory({k: np.asarray(v) for k, v in X.items()})
    with pytest.raises(CoupledError, match="batch normalisation in training mode"):
        second_moment(batch_norm, jnp.ones((3, 2)), data, strategy=strategy)


def test_a_mean_over_the_batch_is_refused_with_its_shape():
    data = in_memory({k: np.asarray(v) for k, v in X.items()})
    with pytest.raises(ValueError, match=r"got shape \(\) for a batch of n = 7919"):
        second_moment(lambda p, b: (b["x"] @ p).mean(), jnp.ones((3, 2)), data)


def test_batch_normalisation_in_training_mode_is_refused_and_in_evaluation_mode_is_not():
    from jaxunlearn import from_nnx

    model = from_nnx(lambda rngs: ResNet18(1, 2, width=2, rngs=rngs))
    params = jax.eval_shape(model.init, jax.random.key(0))
    images = {"x": jnp.ones((2, 8, 8, 1)), "y": jnp.zeros(2, int)}
    check_independent(model.loss, params, images)
    with pytest.raises(CoupledError):
        check_independent(lambda p, b: model.train(p, b, jax.random.key(0))[0], params, images)
