"""The sharded training that is killed: what it learns, and a program that forgets when told to.

    python -m tests.methods.shards_child

Each line of its input is a directory. For each a fork learns what is there, says "ready", forgets
`IDS` and says "done"; the test kills it somewhere in between. JAX is imported before the forks and
computes in them only.
"""

import functools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.methods.exact.shard_trainer import Trainer, gradient_trainer
from jaxunlearn.methods.exact.shards import Shards, ShardsState, shards
from jaxunlearn.model import Model

IDS = (104, 111, 117, 123, 130)
SEED = 3


def columns(n: int = 48) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = 2 * np.eye(3, 4)[y] + 0.7 * rng.standard_normal((n, 4))
    return {"x": x.astype(np.float32), "y": y.astype(np.int32), "id": 100 + np.arange(n)}


def without(data: dict[str, np.ndarray], ids) -> dict[str, np.ndarray]:
    keep = ~np.isin(data["id"], list(ids))
    return {name: column[keep] for name, column in data.items()}


def model(scale: float = 1.0) -> Model:
    def loss(p, batch):
        log_p = jax.nn.log_softmax(batch["x"] @ p)
        return -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]

    def init(key):
        return scale * jax.random.normal(key, (4, 3))

    return Model(outputs=lambda p, batch: batch["x"] @ p, loss=loss, init=init)


@functools.cache
def trainer(rate: float = 0.1, epochs: int = 2, scale: float = 1.0) -> Trainer:
    return gradient_trainer(model(scale), optax.adam(rate), epochs=epochs)


def learner(directory, how: Trainer | None = None, **options) -> Shards:
    sizes = {"num_shards": 2, "num_slices": 3, "batch_size": 16} | options
    return shards(how or trainer(), directory, **sizes)


def learnt(directory) -> tuple[Shards, ShardsState]:
    made = learner(directory)
    return made, made.learn(made.init(jax.random.key(SEED)), columns())[0]


def main() -> None:
    print("started", flush=True)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            made, state = learnt(line.strip())
            print("ready", flush=True)
            made.forget(state, IDS)
            print("done", flush=True)
            os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    import orbax.checkpoint  # noqa: F401

    import tests.conftest  # noqa: F401  the settings of JAX that the tests have

    main()
