"""The laws that every method obeys: functions (method, case) that raise if it does not.

Each is a function and not a test, so that `test_mutants.py` can show which broken method it
catches.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju

from .cases import Case

KEY = jax.random.key(11)
CLOSE = {"rtol": 2e-2, "atol": 2e-3}  # bfloat16 leaves; the float32 ones are held to 1e-4 below


def run(method: ju.Method, case: Case, key: Any = KEY) -> ju.Unlearned:
    return method.unlearn(case.model, case.params, case.request, key)


def close(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        half = a.dtype == jnp.bfloat16
        tolerance = CLOSE if half else {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance)


def bits(one: Any, other: Any) -> None:
    chex.assert_trees_all_equal(one, other, strict=True)


def different(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(np.float32(a), np.float32(b)) for a, b in pairs)


def keeps_tree_shapes_and_dtypes(method: ju.Method, case: Case) -> None:
    out = run(method, case)
    chex.assert_trees_all_equal_structs(out.params, case.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(out.params, case.params)
    assert out.model == case.model
    chex.assert_tree_all_finite(out.params)


def does_something(method: ju.Method, case: Case) -> None:
    assert different(run(method, case).params, case.params), f"{method.name} is a no-op"


def jit_equals_eager(method: ju.Method, case: Case) -> None:
    close(jax.jit(method.unlearn)(case.model, case.params, case.request, KEY).params,
          run(method, case).params)  # fmt: skip


def traces_once(method: ju.Method, case: Case) -> None:
    """A repeated call, outside a trace and with other values, never runs the model again."""
    calls = []

    def counted(function: Any) -> Any:
        def wrapped(params: Any, batch: Any) -> Any:
            calls.append(function)
            return function(params, batch)

        return wrapped

    model = dataclasses.replace(
        case.model, outputs=counted(case.model.outputs), loss=counted(case.model.loss)
    )
    method.unlearn(model, case.params, case.request, KEY)
    before = len(calls)
    other = jax.tree.map(lambda p: p * 1.5, case.params)
    method.unlearn(model, other, case.request, jax.random.key(99))
    assert before > 0 and len(calls) == before, f"{len(calls) - before} calls of the model more"


def jitted_once(method: ju.Method, case: Case) -> None:
    """Under `jax.jit`, two calls are one trace."""
    jitted = jax.jit(chex.assert_max_traces(method.unlearn, n=1))
    for seed in (0, 1):
        jitted(case.model, case.params, case.request, jax.random.key(seed))


def _many(case: Case, count: int) -> tuple[Any, jax.Array]:
    scale = 1 + 0.1 * jnp.arange(count)

    def stack(p: jax.Array) -> jax.Array:
        return p[None] * scale.reshape(-1, *([1] * p.ndim)).astype(p.dtype)

    return jax.tree.map(stack, case.params), jax.random.split(KEY, count)


def vmap_equals_loop_on_any_number_of_devices(method: ju.Method, case: Case) -> None:
    params, keys = _many(case, 9)
    batched = jax.vmap(method.unlearn, in_axes=(None, 0, None, 0))
    together = jax.jit(batched)(case.model, params, case.request, keys).params
    for i in (0, 8):
        one, row = (jax.tree.map(lambda p: p[i], tree) for tree in (params, together))  # noqa: B023
        close(row, run(method, dataclasses.replace(case, params=one), keys[i]).params)

    def alone(p: Any, key: Any) -> Any:
        return method.unlearn(case.model, p, case.request, key).params

    eight = ju.ensemble(alone, how="shard", devices=jax.devices()[:8])
    close(jax.jit(eight)(params, keys), together)


def leaves_inputs_alone(method: ju.Method, case: Case) -> None:
    def snapshot() -> Any:
        return jax.tree.map(np.array, (case.params, case.request))

    before, structure = snapshot(), jax.tree.structure(case.params)
    run(method, case)
    assert jax.tree.structure(case.params) == structure
    bits(snapshot(), before)


def streams(method: ju.Method, case: Case) -> None:
    """A list of batches gives the same kind of result as arrays in memory."""
    lists = ju.Request(*(None if d is None else list(d) for d in case.request))
    out = run(method, dataclasses.replace(case, request=lists))
    inside = run(method, case)
    chex.assert_trees_all_equal_shapes_and_dtypes(out.params, inside.params)
    assert type(out.info) is type(inside.info)
    if "key" not in method.needs:  # no order to differ in
        close(out.params, inside.params)


def _raise(*args: Any) -> Any:
    raise AssertionError("read what it does not need")


POISON = ju.data.Stream(_raise, num_examples=8, num_batches=1, batch_size=8)


def reads_only_what_it_needs(method: ju.Method, case: Case) -> None:
    """Absent or poisoned, what `needs` does not name changes not one bit."""

    full = run(method, case).params
    functions = {f: _raise for f in ("init", "features") if f not in method.needs}
    model = dataclasses.replace(case.model, **functions)
    for absent in (None, POISON):
        fields = {
            f: getattr(case.request, f) if f in method.needs else absent for f in ju.Request._fields
        }
        if "labels" not in method.needs:
            fields = {f: d.drop("y") if f in method.needs else d for f, d in fields.items()}
        out = method.unlearn(model, case.params, ju.Request(**fields), KEY)
        bits(out.params, full)


def obeys_its_key(method: ju.Method, case: Case) -> None:
    """Same key, same bits; another key, other bits exactly if the key is needed."""
    first, again, other = (run(method, case, k).params for k in (KEY, KEY, jax.random.key(5)))
    bits(first, again)
    assert different(first, other) == ("key" in method.needs), "the key is needed and ignored"


def forgets_nothing_for_nothing(method: ju.Method, case: Case) -> None:
    nothing = case.request._replace(forget=case.request.forget.take(np.arange(0)))
    bits(run(method, dataclasses.replace(case, request=nothing)).params, case.params)


def leaves_statistics_alone(method: ju.Method, case: Case) -> None:
    out = run(method, case)
    bits(out.params["batch_stats"], case.params["batch_stats"])
    chex.assert_trees_all_equal_shapes_and_dtypes(out.params, case.params)


def leaves_masked_alone(masked: ju.Method, case: Case, mask: Any) -> None:
    """Where the mask is False, bits; somewhere else, movement."""
    out = run(masked, case).params

    def check(m: Any, new: Any, old: Any) -> bool:
        frozen = np.broadcast_to(~np.asarray(m), old.shape)
        new, old = np.float32(new), np.float32(old)
        np.testing.assert_array_equal(new[frozen], old[frozen])
        return bool((new[~frozen] != old[~frozen]).any())

    moved = jax.tree.leaves(jax.tree.map(check, mask, out, case.params))
    assert any(moved) or not any(np.any(m) for m in jax.tree.leaves(mask)), "nothing moved"


LAWS = (
    keeps_tree_shapes_and_dtypes,
    does_something,
    jit_equals_eager,
    vmap_equals_loop_on_any_number_of_devices,
    leaves_inputs_alone,
    streams,
    reads_only_what_it_needs,
    obeys_its_key,
    forgets_nothing_for_nothing,
    traces_once,
)
