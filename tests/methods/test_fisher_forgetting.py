"""Fisher forgetting: its variances by hand, its noise by statistics, the last layer by name."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.methods.edits.fisher_forgetting import (
    fisher_forgetting,
    last_layer,
    noise_variance,
    whole_classes,
)
from tests.suite import cases, laws

KEY = jax.random.key(0)


def unlearn(case, key=KEY, **options):
    return fisher_forgetting(**options).unlearn(case.model, case.params, case.request, key)


def softmax_regression(scale=1.0, n=20, classes=3):
    rng = np.random.default_rng(0)
    x = scale * rng.standard_normal((n, 4))
    y = (np.arange(n) % classes).astype(np.int32)
    model = cases.by_hand(lambda p, b: b["x"] @ p["w"] + p["b"][None], None)
    params = {"w": rng.standard_normal((4, classes)), "b": rng.standard_normal(classes)}
    data = ju.data.in_memory({"x": x.astype(np.float32), "y": y})
    request = ju.Request(data.take(np.arange(6)), data.take(np.arange(6, n)))
    return cases.Case(model, jax.tree.map(jnp.float32, params), request)


def fisher_by_hand(case):
    """mean_x sum_c p_c (p - e_c)^2 x^2, one class at a time, in NumPy."""
    x = np.asarray(case.request.retain["x"], np.float64)
    z = x @ np.asarray(case.params["w"]) + np.asarray(case.params["b"])
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    square = sum(p[:, [c]] * (p - np.eye(p.shape[1])[c]) ** 2 for c in range(p.shape[1]))
    return {"w": (x**2).T @ square / len(x), "b": square.mean(axis=0)}


# ------------------------------------------------------------------------------------ the formula


def test_the_standard_deviation_is_that_of_the_equation():
    """Many draws against sqrt(10 alpha mean_inputs min(1/F, 100)) with F by hand."""
    case, alpha = softmax_regression(scale=3.0), 1e-3
    fisher = fisher_by_hand(case)
    method = fisher_forgetting(alpha=alpha)
    draw = jax.jit(jax.vmap(method.unlearn, in_axes=(None, None, None, 0)), static_argnums=())
    out = draw(case.model, case.params, case.request, jax.random.split(KEY, 4000)).params
    inverse = {k: np.minimum(1 / f, 100) for k, f in fisher.items()}
    expected = {
        "w": np.sqrt(10 * alpha * np.broadcast_to(inverse["w"].mean(axis=0), (4, 3))),
        "b": np.sqrt(10 * alpha * inverse["b"]),
    }
    for name, deviation in expected.items():
        np.testing.assert_allclose(out[name].std(axis=0), deviation, rtol=0.06)
        off = np.abs(np.asarray(out[name].mean(axis=0)) - np.asarray(case.params[name]))
        assert (off < 5 * deviation / np.sqrt(4000)).all()
    flat = np.concatenate([np.asarray(out["w"]).reshape(4000, -1), np.asarray(out["b"])], axis=1)
    correlation = np.corrcoef(flat.T) - np.eye(15)
    assert np.abs(correlation).max() < 0.1  # every entry draws for itself


def test_the_variance_of_one_layer_by_hand(x64):
    fisher = jnp.asarray([[1.0, 0.0, 1e-9], [0.5, 1e-2, 4.0]])
    inverse = np.array([[1.0, 1e3, 1e3], [2.0, 1e2, 0.25]])
    pooled = np.broadcast_to(inverse.mean(axis=0), (2, 3))
    check = np.testing.assert_allclose
    check(noise_variance(fisher, 0.1, head=False), 0.1 * pooled, rtol=1e-12)
    check(noise_variance(fisher, 0.1, head=False, average=False), 0.1 * inverse, rtol=1e-12)
    clamped = np.minimum(inverse, 1e2)
    check(
        noise_variance(fisher, 0.1, head=True),
        np.broadcast_to(clamped.mean(axis=0), (2, 3)),
        rtol=1e-12,
    )
    check(noise_variance(fisher[1], 0.1, head=False), inverse[1], rtol=1e-12)  # a vector: x 10
    check(noise_variance(fisher[1], 0.1, head=True), clamped[1], rtol=1e-12)


def test_a_convolution_is_averaged_over_its_input_channels_only(x64):
    fisher = jnp.asarray(np.random.default_rng(0).gamma(1.0, size=(3, 3, 5, 2)) + 0.1)
    expected = np.broadcast_to((1 / np.asarray(fisher)).mean(axis=2, keepdims=True), fisher.shape)
    np.testing.assert_allclose(noise_variance(fisher, 1.0, head=False), expected, rtol=1e-12)


def test_what_retain_needs_moves_less():
    """Input 0 is large on R, input 3 is silent on R: the Fisher holds the first in place."""
    case = softmax_regression()
    x = np.array(case.request.retain["x"]) * np.float32([10, 1, 1, 0])
    case = dataclasses.replace(
        case, request=case.request._replace(retain=case.request.retain.replace(x=x))
    )
    method = fisher_forgetting(alpha=1e-4, average=False)
    keys = jax.random.split(KEY, 300)
    out = jax.vmap(method.unlearn, in_axes=(None, None, None, 0))(
        case.model, case.params, case.request, keys
    ).params
    deviation = np.asarray(out["w"].std(axis=0)).mean(axis=1)
    assert deviation[0] < 0.3 * deviation[3]
    np.testing.assert_allclose(deviation[3], np.sqrt(10 * 1e-4 * 100), rtol=0.15)


def test_the_forget_set_and_the_labels_do_not_matter_without_the_rule(case):
    method = fisher_forgetting(alpha=1e-3, whole_class_rule=False)
    assert method.needs == {"retain", "key"}
    expected = method.unlearn(case.model, case.params, case.request, KEY)
    other = ju.Request(case.request.forget.take(np.arange(3)), case.request.retain.drop("y"))
    laws.bits(method.unlearn(case.model, case.params, other, KEY).params, expected.params)


def test_more_alpha_is_more_noise_in_proportion_to_its_root(single):
    outs = [unlearn(single, alpha=a, whole_class_rule=False) for a in (1e-4, 4e-4)]
    steps = [jax.tree.map(jnp.subtract, out.params, single.params) for out in outs]
    chex.assert_trees_all_close(jax.tree.map(lambda s: 2 * s, steps[0]), steps[1], rtol=1e-3)
    np.testing.assert_allclose(outs[1].info.deviation, 2 * outs[0].info.deviation, rtol=1e-4)


@pytest.mark.parametrize("traced", [False, True])
def test_alpha_zero_is_the_identity_also_for_a_whole_class(case, traced):
    def run(alpha):
        return unlearn(case, alpha=alpha)

    out = jax.jit(run)(0.0) if traced else run(0.0)
    laws.bits(out.params, case.params)
    assert not np.asarray(out.info.classes).any() and float(out.info.deviation) == 0


# --------------------------------------------------------------------------------- whole classes


def test_the_outputs_of_a_forgotten_class_are_drawn_anew():
    """Class 0 is in F and not in R: its column has mean 0 and variance 10 times 1e-4."""
    case = cases.tuple_case()
    method = fisher_forgetting(alpha=1e-12)
    keys = jax.random.split(KEY, 2000)
    out = jax.vmap(method.unlearn, in_axes=(None, None, None, 0))(
        case.model, case.params, case.request, keys
    )
    (w,), b = out.params
    np.testing.assert_allclose(np.asarray(w[..., 0]).std(axis=0), np.sqrt(1e-3), rtol=0.1)
    assert (np.abs(np.asarray(w[..., 0]).mean(axis=0)) < 5 * np.sqrt(1e-3 / 2000)).all()
    np.testing.assert_allclose(np.asarray(b[..., 0]).std(), np.sqrt(1e-3), rtol=0.1)
    np.testing.assert_allclose(w[..., 1:], np.broadcast_to(case.params[0][0][:, 1:], (2000, 4, 2)),
                               atol=1e-3)  # fmt: skip
    np.testing.assert_array_equal(out.info.classes[0], [True, False, False])


def test_only_the_last_layer_is_drawn_anew(case):
    out = unlearn(case, alpha=1e-12).params
    chex.assert_trees_all_close(out["body"], case.params["body"], atol=1e-4)
    assert (np.abs(np.float32(out["head"]["w"][:, 0])) < 0.2).all()
    chex.assert_trees_all_close(out["head"]["w"][:, 1:], case.params["head"]["w"][:, 1:], atol=1e-3)


def test_a_class_of_which_examples_remain_is_not_erased():
    case = softmax_regression()
    out = unlearn(case, alpha=1e-12)
    assert not np.asarray(out.info.classes).any()
    chex.assert_trees_all_close(out.params, case.params, atol=1e-4)


def test_the_rule_can_be_switched_off():
    case = cases.tuple_case()
    out = unlearn(case, alpha=1e-12, whole_class_rule=False)
    chex.assert_trees_all_close(out.params, case.params, atol=1e-4)


def test_classes_are_read_off_the_rows_that_count():
    def some(y, weight=None):
        columns = {"x": np.arange(float(len(y))), "y": np.asarray(y)}
        return columns if weight is None else columns | {"weight": np.float32(weight)}

    cases_ = [
        (some([0, 2]), some([1, 1]), [True, False, True, False]),
        (some([0, 2]), some([1, 2]), [True, False, False, False]),
        (some([0, 2]), some([1, 2], [1, 0]), [True, False, True, False]),
        (some([0, 2], [0, 1]), some([1, 1]), [False, False, True, False]),
        (some([[0, 2], [0, 1]]), some([[1, 1]]), [True, False, True, False]),
    ]
    for forget, retain, expected in cases_:
        in_memory = [ju.data.in_memory(c) for c in (forget, retain)]
        streams = [ju.data.from_batches([c]) for c in (forget, retain)]
        for pair in (in_memory, streams):
            np.testing.assert_array_equal(whole_classes(*pair, 4), expected)


# ---------------------------------------------------------------------------------- the last layer


def tree(**shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def test_the_last_layer_is_found_by_its_shape():
    params = tree(a=(4, 6), b=(6,), w=(6, 3), c=(3,))
    assert last_layer(params, 3) == {"a": False, "b": False, "w": True, "c": True}
    assert not any(last_layer(params, 5).values())  # none: all of the last layer is frozen


def test_a_hidden_layer_as_wide_as_the_classes_must_be_told_apart():
    params = tree(hidden=(4, 3), head=(3, 3), b1=(3,), head_b=(3,))
    with pytest.raises(ValueError, match=r"\['head'\] and \['hidden'\] all end in 3.*head='"):
        last_layer(params, 3)
    with pytest.raises(ValueError, match=r"\['b'\] and \['c'\] all end in 3"):
        last_layer(tree(w=(4, 3), b=(3,), c=(3,)), 3)
    found = last_layer(params, 3, head="head")
    assert found == {"hidden": False, "head": True, "b1": False, "head_b": True}


def test_a_name_that_cannot_be_the_last_layer_is_refused(case):
    with pytest.raises(ValueError, match=r"no leaf has head='top' in its path.*\['body'\]\['b'\]"):
        unlearn(case, head="top")
    with pytest.raises(ValueError, match=r"\['body'\]\['b'\] has head='body'.*\(6,\).*end in 3"):
        unlearn(case, head="body")


def test_naming_the_last_layer_is_the_same_as_finding_it(case):
    laws.bits(unlearn(case, head="['head']").params, unlearn(case).params)


def test_with_a_frozen_last_layer_the_rest_still_moves(case):
    masked = ju.masked(fisher_forgetting(alpha=1e-3), {"body": True, "head": False})
    out = laws.run(masked, case)
    laws.bits(out.params["head"], case.params["head"])
    assert laws.different(out.params["body"], case.params["body"])


# ---------------------------------------------------------------------------------------- the edges


def test_a_weight_without_fisher_gets_the_clamped_variance_and_is_counted():
    case = softmax_regression()
    x = np.array(case.request.retain["x"]) * np.float32([1, 1, 1, 0])
    request = case.request._replace(retain=case.request.retain.replace(x=x))
    out = unlearn(dataclasses.replace(case, request=request), alpha=1e-6)
    fisher = fisher_by_hand(dataclasses.replace(case, request=request))
    expected = sum((f <= 1e-2).sum() for f in fisher.values()) / 15
    assert expected >= 3 / 15
    np.testing.assert_allclose(out.info.clamped, expected, rtol=1e-6)


def test_where_the_fisher_is_not_finite_there_is_no_noise():
    fisher = jnp.asarray([[jnp.nan, 1.0], [0.5, jnp.inf]])
    np.testing.assert_allclose(noise_variance(fisher, 1.0, head=False), [[0, 1], [2, 0]])
    np.testing.assert_allclose(
        noise_variance(fisher, 1.0, head=False, average=False), [[0, 1], [2, 0]]
    )


def test_an_overflowing_fisher_is_reported_and_leaves_its_weights():
    """Input 0 is 1e30 on a retained row, and its square is beyond float32."""
    case = softmax_regression()
    x = np.zeros((14, 4), np.float32)
    x[:, 1:] = np.asarray(case.request.retain["x"])[:, 1:]
    x[0, 0] = 1e30
    params = case.params | {"w": case.params["w"].at[0].set(0.0)}
    request = case.request._replace(retain=case.request.retain.replace(x=x))
    out = unlearn(dataclasses.replace(case, params=params, request=request), alpha=1e-3)
    np.testing.assert_allclose(out.info.unusable, 3 / 15, rtol=1e-6)
    np.testing.assert_array_equal(out.params["w"][0], np.zeros(3))
    assert np.isfinite(out.params["w"]).all() and (out.params["w"][1:] != params["w"][1:]).all()


def test_padding_does_not_count(single):
    padded = single.request.retain.replace(weight=np.float32([1] * 10 + [0] * 6))
    fewer = single.request.retain.take(np.arange(10))
    one, other = (
        unlearn(dataclasses.replace(single, request=single.request._replace(retain=r)))
        for r in (padded, fewer)
    )
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-6)


def test_regression_is_refused(case):
    retain = case.request.retain.replace(y=np.zeros((16, 3), np.float32))
    forget = case.request.forget.replace(y=np.zeros((8, 3), np.float32))
    model = dataclasses.replace(case.model, loss=lambda p, b: case.model.outputs(p, b).sum(axis=1))
    other = dataclasses.replace(case, model=model, request=ju.Request(forget, retain))
    with pytest.raises(ValueError, match="labels must be integer classes, got float32"):
        unlearn(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1e-6}, "alpha must be finite and >= 0, got -1e-06"),
        ({"alpha": float("inf")}, "got inf"),
        ({"alpha": float("nan")}, "got nan"),
        ({"micro_batch": 0}, "micro_batch must be >= 1 or None, got 0"),
    ],
)
def test_constants_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fisher_forgetting(**options)
