"""A small continual-learning run: which penalty keeps what, with and without a pretrained start.

    python -m experiments.continual                       split digits: minutes on two cores
    python -m experiments.continual --data-dir DIR        and split CIFAR-100, from CIFAR-10

The classes of a source, in a random order per seed, are cut into tasks that come one after another;
no example of an older task is kept. Task k is trained with

    loss + mu R,    R against the model at the end of task k - 1    (R = 0 in the first task)

| what           | choices                                                                      |
|----------------|------------------------------------------------------------------------------|
| penalty R      | none; L2; EWC offline and online; distillation of predictions, of features   |
| loss           | local: cross-entropy among the classes of the task; full: among all so far   |
| start          | fresh; pretrained on other examples (the head is drawn anew)                 |
| mu             | a log grid; the best final accuracy on validation data, mean over seeds      |
| score          | test accuracy after the last task, mean over tasks; and forgetting           |
| task-aware     | the answer is taken among the classes of the example's own task              |
| task-agnostic  | among all classes; mu is chosen for each of the two scores apart             |

    A = mean_j a_{K,j},    F = mean_{j < K} max_{j <= k < K} a_{k,j} - a_{K,j}

a_{k,j} is the accuracy on task j after task k. Columns of the head whose class has not been seen
are left out of every penalty. EWC takes the Fisher of the model's own label distribution (among the
classes of its loss), scaled to mean 1: exact, or sampled once where `Setting.sampled` says so.

| source   | tasks   | network                      | pretrained on                                |
|----------|---------|------------------------------|----------------------------------------------|
| digits   | 5 x 2   | MLP 128-64                   | a third of the training rows, transposed     |
| cifar100 | 10 x 10 | small CNN on images of 16x16 | CIFAR-10 (16x16)                             |

The run is one program per penalty and loss: starts, seeds and strengths are its leading axis.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import machine
from jaxunlearn import compare, distillation, ensemble, from_nnx, networks, penalties
from jaxunlearn.curvature import fisher_diagonal
from jaxunlearn.data import InMemory, Source, in_memory, load
from jaxunlearn.losses import local_cross_entropy
from jaxunlearn.model import Model
from jaxunlearn.objectives import Objective, mean_loss, weighted_sum
from jaxunlearn.training import fit, train

SCHEMA = 1
KIND = "jaxunlearn continual learning"
PENALTIES = ("none", "l2", "ewc offline", "ewc online", "predictions", "features")
LOSSES = ("local", "full")
SCORES = ("task-agnostic", "task-aware")
STRENGTHS = tuple(10.0**k for k in range(-4, 4))


class Setting(NamedTuple):
    """What is learnt, and how; every source has its own."""

    tasks: int  # the classes are cut into so many
    batch_size: int
    epochs: int  # per task
    learning_rate: float  # of Adam, begun anew for each task
    pretraining: int  # epochs
    chunk: int  # models at once: bounds memory
    seeds: int  # each draws weights, an order of the classes and an order of the examples
    sampled: bool = False  # the Fisher of the full loss by one draw per example


class Problem(NamedTuple):
    """Arrays of a source, ready to be cut into tasks; host NumPy."""

    model: Model
    train: dict[str, np.ndarray]  # x, y; equally many rows of each class, ordered by class
    held_out: dict[str, dict[str, np.ndarray]]  # "validation" and "test": x, y
    pretraining: dict[str, np.ndarray] | None  # x, y; None: no pretrained start
    num_classes: int


SETTINGS = {
    "digits": Setting(5, 32, 20, 2e-3, 60, 40, 10),
    "cifar100": Setting(10, 64, 5, 1e-3, 10, 8, 3, sampled=True),
}


# ------------------------------------------------------------------------------------- the problem


def problem(name: str, data_dir: Path | None) -> Problem:
    """The data of a source; deterministic.

    Raises:
      FileNotFoundError: the data of the source are not on this machine.
    """
    if name == "digits":
        source = load("digits")
        spared = np.arange(len(source.train["y"])) % 3 == 0
        pretraining = {k: source.train[k][spared] for k in ("x", "y")}
        pretraining["x"] = pretraining["x"].swapaxes(1, 2)
        return _problem(source, "mlp", ~spared, lambda x: x, pretraining)
    source = load("cifar100", data_dir=data_dir)
    everything = np.ones(len(source.train["y"]), bool)
    try:
        other = load("cifar10", data_dir=data_dir)
        pretraining = {"x": _halved(other.train["x"]), "y": other.train["y"]}
    except FileNotFoundError:
        pretraining = None
    return _problem(source, "cnn", everything, _halved, pretraining)


def _halved(x: np.ndarray) -> np.ndarray:
    """Images of half the height and width, means over 2 x 2 pixels."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _problem(
    source: Source,
    network: str,
    rows: np.ndarray,
    prepare: Callable[[np.ndarray], np.ndarray],
    pretraining: dict[str, np.ndarray] | None,
) -> Problem:
    x, y = prepare(source.train["x"][rows]), source.train["y"][rows]
    fewest = int(np.bincount(y, minlength=source.num_classes).min())
    chosen = np.concatenate([np.flatnonzero(y == c)[:fewest] for c in range(source.num_classes)])
    held_out = {
        split: {"x": prepare(getattr(source, split)["x"]), "y": getattr(source, split)["y"]}
        for split in ("validation", "test")
    }
    model = from_nnx(networks.build(network, x.shape[1:], source.num_classes))
    train_columns = {"x": x[chosen], "y": y[chosen]}
    return Problem(model, train_columns, held_out, pretraining, source.num_classes)


def split(columns: dict[str, Any], order: Any, tasks: int) -> dict[str, Any]:
    """Columns (tasks, rows per task, ...): task k has the classes order[k C/K : (k + 1) C/K].

    Example:
        >>> columns = {"y": np.array([0, 0, 1, 1])}
        >>> split(columns, np.array([1, 0]), 2)["y"].tolist()
        [[1, 1], [0, 0]]
    """
    per_class = {k: v.reshape(len(order), -1, *v.shape[1:])[order] for k, v in columns.items()}
    return {k: v.reshape(tasks, -1, *v.shape[2:]) for k, v in per_class.items()}


# -------------------------------------------------------------------------------------- the learner


def _penalty(
    kind: str, model: Model, memory: penalties.EWCState, mask: Any, seen: Any
) -> Objective:
    """R against `memory`, whose anchor is the old model except for offline EWC."""
    if kind == "l2":
        return penalties.l2_anchor(memory.anchor, mask)
    if kind in ("ewc offline", "ewc online"):
        return penalties.ewc(memory.anchor, memory.fisher, mask)
    if kind == "predictions":
        return distillation.prediction_distillation(model, None, classes=seen)
    return distillation.feature_distillation(model, None)


def _seen_columns(params: Any, seen: jax.Array) -> Any:
    """The mask of everything but the columns of the head whose class is new."""

    def mask(path: Any, leaf: jax.Array) -> jax.Array:
        new = "head" in jax.tree_util.keystr(path)
        return jnp.broadcast_to(seen, leaf.shape) if new else jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(mask, params)


def learn(
    model: Model,
    setting: Setting,
    kind: str,
    loss: str,
    columns: dict[str, jax.Array],
    classes: jax.Array,
    params: Any,
    mu: jax.Array,
    key: jax.Array,
) -> Any:
    """The params after each task, leaves (K, ...): traceable.

    Args:
      model, setting, kind, loss: static; `kind` of PENALTIES and `loss` of LOSSES.
      columns: x and y, (K, rows per task, ...).
      classes: (K, C / K) int, the classes of each task.
      params: where the first task starts.
      mu: [] strength of the penalty, from the second task on.
      key: orders the examples.
    """
    num_classes = classes.size

    def one(carry: tuple, task: tuple) -> tuple:
        params, memory, seen = carry
        k, rows, own = task
        now = seen.at[own].set(True)
        among = jnp.zeros_like(seen).at[own].set(True) if loss == "local" else now

        def per_example(p: Any, batch: Any) -> jax.Array:
            return local_cross_entropy(model.outputs(p, batch), batch["y"], among)

        data = InMemory(rows, setting.batch_size)
        terms: list[tuple[Any, Objective]] = [(1.0, mean_loss(Model(model.outputs, per_example)))]
        if kind != "none":
            if kind in ("predictions", "features"):
                data = distillation.with_old_outputs(model, params, data)
            penalty = _penalty(kind, model, memory, _seen_columns(params, seen), seen)
            terms.append((jnp.where(k > 0, mu, 0.0), penalty))
        tx, step_key = optax.adam(setting.learning_rate), jax.random.fold_in(key, k)
        done = fit(
            weighted_sum(*terms), tx, params, data, key=step_key, epochs=setting.epochs
        ).params
        if kind in ("ewc offline", "ewc online"):
            fisher = _fisher(model, setting, loss, done, rows, own, now, step_key)
            memory = penalties.ewc_update(memory, done, fisher, mode=kind.removeprefix("ewc "))
        else:
            memory = memory._replace(anchor=done)
        return (done, memory, now), done

    start = params, penalties.ewc_init(params), jnp.zeros(num_classes, bool)
    tasks = jnp.arange(len(classes)), columns, classes
    return jax.lax.scan(one, start, tasks)[1]


def _fisher(
    model: Model,
    setting: Setting,
    loss: str,
    params: Any,
    rows: dict[str, jax.Array],
    own: jax.Array,
    now: jax.Array,
    key: jax.Array,
) -> Any:
    """Of the model's own label distribution, among the classes that its loss compares."""

    def outputs(p: Any, batch: Any) -> jax.Array:
        z = model.outputs(p, batch)
        if loss == "local":
            return jnp.take(z, own, axis=1)
        return jnp.where(now[None], z, jnp.finfo(z.dtype).min / 4)

    sampled = setting.sampled and loss == "full"
    return fisher_diagonal(
        None,
        params,
        InMemory(rows, setting.batch_size),
        kind="mc" if sampled else "exact",
        outputs=outputs,
        key=key if sampled else None,
    )


def accuracies(
    model: Model, params: Any, data: dict[str, jax.Array], classes: jax.Array, task: jax.Array
) -> jax.Array:
    """(2, K) accuracy on each task after task number `task`: task-agnostic, task-aware."""
    tasks, num_classes = classes.shape[0], classes.size
    task_of = jnp.zeros(num_classes, int).at[classes].set(jnp.arange(tasks)[:, None])
    owner = task_of[data["y"]]
    z = model.outputs(params, data)
    seen, own = (task_of <= task)[None], task_of[None] == owner[:, None]
    right = jnp.stack([
        jnp.where(allowed, z, -jnp.inf).argmax(axis=1) == data["y"] for allowed in (seen, own)
    ]).astype(jnp.float32)  # fmt: skip
    member = jax.nn.one_hot(owner, tasks)
    return right @ member / member.sum(axis=0)[None]


def final_and_forgetting(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and F of accuracies (..., K, K), [k, j] on task j after task k.

    Example:
        >>> final_and_forgetting(np.array([[0.9, 0.0], [0.5, 0.8]]))
        (np.float64(0.65), np.float64(0.4))
    """
    tasks = table.shape[-1]
    after = np.tril(np.ones((tasks, tasks), bool))[:-1, :-1]
    best = np.where(after, table[..., :-1, :-1], -np.inf).max(axis=-2)
    final = table[..., -1, :]
    return final.mean(axis=-1), (best - final[..., :-1]).mean(axis=-1)


# ------------------------------------------------------------------------------------------ the run


def _starts(made: Problem, setting: Setting, keys: jax.Array) -> dict[str, Any]:
    """{"fresh": params (seeds, ...), "pretrained": the same with a body that has seen more}."""
    assert made.model.init is not None
    fresh = jax.vmap(made.model.init)(keys)
    if made.pretraining is None:
        return {"fresh": fresh}
    data = in_memory(made.pretraining, setting.batch_size)
    tx = optax.adam(setting.learning_rate)

    def pretrain(key: jax.Array) -> Any:
        return train(made.model, tx, data, key=key, epochs=setting.pretraining).params

    trained = jax.jit(ensemble(pretrain, how="vmap"))(keys)

    def body(path: Any, new: jax.Array, old: jax.Array) -> jax.Array:
        return new if "head" in jax.tree_util.keystr(path) else old

    return {
        "fresh": fresh,
        "pretrained": jax.tree_util.tree_map_with_path(body, fresh, trained),
    }


def study(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one source, as plain data.

    Raises:
      FileNotFoundError: its data are not on this machine.
    """
    begin, setting, made = time.perf_counter(), SETTINGS[name], problem(name, options.data_dir)
    if options.epochs is not None:
        setting = setting._replace(epochs=options.epochs, pretraining=options.epochs)
    if options.seeds is not None:
        setting = setting._replace(seeds=options.seeds)
    rng = np.random.default_rng(options.seed)
    orders = [rng.permutation(made.num_classes) for _ in range(setting.seeds)]
    seed_keys = jax.random.split(jax.random.key(options.seed), setting.seeds)
    starts = _starts(made, setting, seed_keys)
    whole = {k: jnp.asarray(v) for k, v in made.train.items()}
    held = [{k: jnp.asarray(v) for k, v in c.items()} for c in made.held_out.values()]
    tasks = setting.tasks

    def run(kind: str, loss: str, strengths: np.ndarray) -> np.ndarray:
        """Accuracies (starts, seeds, strengths, split, score, K, K)."""

        shape = (len(starts), setting.seeds, len(strengths))
        start, seed, strength = (jnp.asarray(i.ravel()) for i in np.indices(shape))

        @jax.jit
        def many(whole: Any, held: Any, stacked: Any, *args: jax.Array) -> jax.Array:
            def one(s: Any, k: Any, order: jax.Array, mu: jax.Array, key: jax.Array) -> jax.Array:
                classes, params = order.reshape(tasks, -1), jax.tree.map(lambda p: p[s, k], stacked)
                rows = split(whole, order, tasks)
                after = learn(made.model, setting, kind, loss, rows, classes, params, mu, key)

                def score(task: tuple) -> jax.Array:
                    return jnp.stack(
                        [accuracies(made.model, task[0], d, classes, task[1]) for d in held]
                    )

                return jnp.moveaxis(jax.lax.map(score, (after, jnp.arange(tasks))), 0, 2)

            return ensemble(one, how="vmap", chunk=setting.chunk)(*args)

        mus = jnp.asarray(strengths, jnp.float32)[strength]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts.values())
        found = many(
            whole, held, stacked, start, seed, jnp.stack(orders)[seed], mus, seed_keys[seed]
        )
        return np.asarray(found).reshape(*shape, *found.shape[1:])

    rows = []
    for loss in options.losses:
        for kind in options.penalties:
            strengths = np.zeros(1) if kind == "none" else np.array(options.strengths)
            seconds = time.perf_counter()
            found = run(kind, loss, strengths)
            seconds = time.perf_counter() - seconds
            for place, start in enumerate(starts):
                rows.append(
                    {"start": start, "loss": loss, "penalty": kind, "seconds": seconds}
                    | {s: chosen(found[place, :, :, :, i], strengths) for i, s in enumerate(SCORES)}
                )
            _say(f"{name}: {loss} loss, {kind}", seconds)
    return {
        "source": name,
        "setting": setting._asdict(),
        "classes": made.num_classes,
        "rows_per_class": len(made.train["y"]) // made.num_classes,
        "pretraining_rows": 0 if made.pretraining is None else len(made.pretraining["y"]),
        "held_out": {s: len(c["y"]) for s, c in made.held_out.items()},
        "network": "MLP 128-64" if name == "digits" else "small CNN",
        "rows": rows,
        "seconds": time.perf_counter() - begin,
    }


def chosen(found: np.ndarray, strengths: np.ndarray) -> dict[str, Any]:
    """The scores at the strength whose validation accuracy is best.

    Args:
      found: (seeds, strengths, 2, K, K), the axis of 2 validation and test.
      strengths: (strengths,).
    """
    final, forgetting = final_and_forgetting(found)
    best = int(final[:, :, 0].mean(axis=0).argmax())
    return {
        "mu": float(strengths[best]),
        "at_edge": len(strengths) > 1 and best in (0, len(strengths) - 1),
        "accuracy": final[:, best, 1].tolist(),
        "forgetting": forgetting[:, best, 1].tolist(),
        "grid": {
            "mu": strengths.tolist(),
            "validation": final[:, :, 0].mean(axis=0).tolist(),
            "test": final[:, :, 1].mean(axis=0).tolist(),
        },
    }


def _say(text: str, seconds: float) -> None:
    print(f"{seconds:7.1f} s  {text}", file=sys.stderr, flush=True)


def _command(options: argparse.Namespace) -> str:
    words = ["python -m experiments.continual"]
    words += [f"--seeds {options.seeds}"] if options.seeds is not None else []
    words += [f"--epochs {options.epochs}"] if options.epochs is not None else []
    words += ["--data-dir DIR"] if "cifar100" in options.sources else []
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every source that is here, writes `OUT/continual.json`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continual", allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path(__file__).parent / "results", help="folder")
    add("--data-dir", type=Path, help="folder of CIFAR; default $JAXUNLEARN_DATA")
    add("--sources", nargs="+", choices=SETTINGS, help="default: all whose data are here")
    add("--penalties", nargs="+", choices=PENALTIES, default=PENALTIES)
    add("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    add("--strengths", nargs="+", type=float, default=STRENGTHS, help="the grid of mu")
    add("--seeds", type=int, help="models each; default: `Setting.seeds` of the source")
    add("--seed", type=int, default=0)
    add("--epochs", type=int, help="per task and of pretraining, for a smoke run")
    options = parser.parse_args(arguments)
    wanted = options.sources or tuple(SETTINGS)
    begin, studies = time.perf_counter(), []
    for name in wanted:
        try:
            studies.append(study(name, options))
        except FileNotFoundError as error:
            if options.sources:
                print(f"continual: {error}", file=sys.stderr)
                return 2
            _say(f"{name}: left out, no data here", 0.0)
    options.sources = [each["source"] for each in studies]
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        "command": _command(options),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        "studies": studies,
        "seconds": time.perf_counter() - begin,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "continual.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
