"""What a deletion from an analytic head costs, and how far its states drift.

    OPENBLAS_NUM_THREADS=1 python -m experiments.benchmarks.analytic       minutes on two cores
    python -m experiments.benchmarks.analytic --features 64 --learnt 1000 --refit 2000   a smoke run

    request = forget one example, and the head after it         after 1e4, 1e5, 1e6 examples learnt
    ratio   = seconds of a refit (Gram of all rows, Cholesky) / seconds of a request
    drift   = max |W - W*| / max |W*|, W* a float64 solve of the rows that are there, 1000 requests

| fairness          | how                                                                          |
|-------------------|------------------------------------------------------------------------------|
| rival at its best | the refit is one product X^T X and one Cholesky solve in single floats, XLA  |
| same answer       | the head after the request is compared with the refit in the same run        |
| one BLAS thread   | for factors and solves of all programs (products use every core): two wait   |
|                   | for each other, up to a second, where another process takes a core           |
| nothing prepared  | compilation apart; medians of repeats, programs in turns                     |
| large N           | the states are filled by plain sums, for time; the request is the default's  |
| drift             | learn and forget in turns, blocks of random sizes, scales of 1 to 1e-2       |
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import machine
from experiments.comparisons import RESULTS
from jaxunlearn import compare
from jaxunlearn.methods.exact.analytic import STATES, analytic_head

SCHEMA = 1
KIND = "jaxunlearn analytic benchmark"
THREADS = "OPENBLAS_NUM_THREADS"
CLASSES, GAMMA, BLOCK = 10, 0.1, 8
DRIFTING = ("gram", "gram, plain sums", "cholesky", "inverse", "inverse, never made anew")


def rows(key: jax.Array, n: int, d: int) -> tuple[jax.Array, jax.Array]:
    """(x (n, d) float32, labels (n,)) of random ReLU features."""
    first, second = jax.random.split(key)
    return jax.nn.relu(jax.random.normal(first, (n, d))), jax.random.randint(
        second, (n,), 0, CLASSES
    )


def refit(x: jax.Array, y: jax.Array) -> jax.Array:
    """W by one product and one Cholesky factor, in single floats: the plain way."""
    gram = x.T @ x + GAMMA * jnp.eye(x.shape[1])
    return jax.scipy.linalg.cho_solve(
        jax.scipy.linalg.cho_factor(gram), x.T @ jax.nn.one_hot(y, CLASSES)
    )


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Medians over `repeats` turns, after one call of each that compiles."""
    for call in calls.values():
        jax.block_until_ready(call())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in found.items()}


def filled(n: int, d: int, key: jax.Array) -> dict[str, Any]:
    """The states after n examples, learnt in chunks by plain sums; one chunk is held at a time."""
    heads = {
        name: analytic_head(gamma=GAMMA, state=name, compensated=False, refresh=10**6)
        for name in STATES
    }
    states = {name: head.init(d, CLASSES) for name, head in heads.items()}
    chunk = min(n, 10_000)
    for i in range(n // chunk):
        x, y = rows(jax.random.fold_in(key, i), chunk, d)
        states = {name: heads[name].learn(state, x, y) for name, state in states.items()}
    return states


def requests(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of one deletion, by state and by how many examples had been learnt."""
    key, d, found = jax.random.key(options.seed), options.features, []
    heads = {name: analytic_head(gamma=GAMMA, state=name, refresh=10**6) for name in STATES}
    for n in options.learnt:
        x, y = rows(jax.random.fold_in(key, 0), min(n, 10_000), d)
        states = filled(n, d, key)

        def call(name: str, states: Any = states, x: Any = x, y: Any = y) -> Any:
            after = heads[name].forget(states[name], x[:1], y[:1])
            return heads[name].weights(after).x

        calls = {name: partial(call, name) for name in STATES}
        found.append({"learnt": n, "seconds": seconds(calls, options.repeats)})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def against_refit(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of fitting all rows anew, and how far the states are from that answer."""
    key, d, n = jax.random.key(options.seed), options.features, options.refit
    x, y = rows(key, n, d)
    compiled = jax.jit(refit)
    spent = seconds({"refit": lambda: compiled(x[1:], y[1:])}, max(3, options.repeats // 5))
    w = np.asarray(compiled(x[1:], y[1:]))
    error = {}
    for name in STATES:
        head = analytic_head(gamma=GAMMA, state=name)
        state = head.learn(head.init(d, CLASSES), x, y)
        mine = np.asarray(head.weights(head.forget(state, x[:1], y[:1])).x)
        error[name] = float(np.abs(mine - w).max() / np.abs(w).max())
    print(spent, error, file=sys.stderr, flush=True)
    return {"rows": n, "seconds": spent["refit"], "disagreement": error}


def drift(options: argparse.Namespace, double: bool) -> dict[str, float]:
    """max |W - W*| / max |W*| of every state after learn and forget requests in turns."""
    d, count = options.drift_features, options.requests
    rng = np.random.default_rng(options.seed)
    scales = np.geomspace(1, 1e-2, d)
    x = (rng.standard_normal((10 * d + count * BLOCK, d)) * scales).astype(np.float32)
    y = rng.integers(0, CLASSES, len(x))
    start = 10 * d
    blocks = np.arange(start, start + count // 2 * BLOCK).reshape(-1, BLOCK)
    sizes = rng.integers(1, BLOCK + 1, (len(blocks), 1))
    weight = (np.arange(BLOCK)[None] < sizes).astype(np.float32)
    lag = len(blocks) // 20 + 1  # a block is forgotten so many requests after it was learnt
    there = np.concatenate([np.arange(start), blocks[-lag:][weight[-lag:] > 0]])
    wide = x[there].astype(np.float64)
    gram = wide.T @ wide + GAMMA * np.eye(d)
    exact = np.linalg.solve(gram, wide.T @ np.eye(CLASSES)[y[there]])
    found = {}
    with jax.enable_x64(double):
        for name in DRIFTING:
            never = {"refresh": 10**6, "tolerance": 1e6} if "never" in name else {}
            head = analytic_head(
                gamma=GAMMA,
                state=name.split(",")[0],
                compensated="plain" not in name,
                verify=False,
                **never,
            )

            @jax.jit
            def stream(state: Any, head: Any = head) -> Any:
                def turn(state: Any, i: jax.Array) -> tuple[Any, None]:
                    for verb, at in ((head.learn, i), (head.forget, i - lag)):
                        there = jnp.asarray(blocks)[at]
                        live = jnp.asarray(weight)[at] * (at >= 0)
                        state = verb(state, jnp.asarray(x)[there], jnp.asarray(y)[there], live)
                    return state, None

                return jax.lax.scan(turn, state, jnp.arange(len(blocks)))[0]

            state = head.learn(head.init(d, CLASSES), x[:start], y[:start])
            w = np.asarray(head.weights(stream(state)).x, np.float64)
            found[name] = float(np.abs(w - exact).max() / np.abs(exact).max())
    print("float64" if double else "float32", found, file=sys.stderr, flush=True)
    return found


def command() -> str:
    """How this run was started, with the setting that the times depend on."""
    threads = os.environ.get(THREADS)
    started = "python -m experiments.benchmarks.analytic"
    return started if threads is None else f"{THREADS}={threads} {started}"


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement as plain data."""
    begin = time.perf_counter()
    names = ("features", "learnt", "refit", "repeats", "drift_features", "requests", "seed")
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "command": command(),
        "date": machine.today(),
        "machine": machine.description(),
        "versions": compare.versions(),
        "settings": {name: getattr(options, name) for name in names}
        | {"classes": CLASSES, "gamma": GAMMA},
        "against": against_refit(options),
        "requests": requests(options),
        "drift": {"float32": drift(options, False), "float64": drift(options, True)},
        "seconds": time.perf_counter() - begin,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes `analytic.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.analytic", allow_abbrev=False
    )
    add = parser.add_argument
    whole = partial(add, type=int)
    whole("--features", default=1024)
    whole("--learnt", nargs="+", default=[10_000, 100_000, 1_000_000])
    whole("--refit", default=100_000, help="rows that are fitted anew")
    whole("--repeats", default=15)
    whole("--drift-features", default=64)
    whole("--requests", default=1000)
    whole("--seed", default=0)
    add("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(benchmark(options), indent=1) + "\n"
    (options.out / "analytic.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
