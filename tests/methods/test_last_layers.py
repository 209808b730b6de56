"""The last k layers: which they are, on networks of every kind; and the two baselines on them."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import objectives
from jaxunlearn.methods.descent.last_layers import last_layers, layers
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(4)
TX = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


def unlearn(method, case, request=None, key=KEY):
    return method.unlearn(case.model, case.params, request or case.request, key)


def of(outputs, params, x):
    """The layers of a function (params, x), as sets of paths without quotes and brackets."""
    model = ju.Model(lambda p, b: outputs(p, b["x"]), lambda p, b: b["x"][:, 0])
    clean = str.maketrans({"'": None, "[": "/", "]": None})
    return [{n.translate(clean) for n in layer} for layer in layers(model, params, {"x": x})]


def arrays(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


ROWS = jnp.ones((2, 4))


# ------------------------------------------------------------------------------ which they are


def test_names_do_not_matter_and_the_program_does():
    """Alphabetical order would begin with the last layer."""
    linear = lambda p, h: h @ p["w"] + p["b"][None]  # noqa: E731
    params = {name: arrays(w=(4, 4), b=(4,)) for name in ("a_last", "m_second", "z_first")}
    outputs = lambda p, x: linear(p["a_last"], linear(p["m_second"], linear(p["z_first"], x)))  # noqa: E731
    found = of(outputs, params, ROWS)
    assert found == [{f"/{n}/w", f"/{n}/b"} for n in ("z_first", "m_second", "a_last")]


def test_a_flat_tree_is_cut_where_a_product_begins():
    params = arrays(b1=(4,), b2=(4,), scale=(4,), w1=(4, 4), w2=(4, 4))

    def outputs(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b1"][None]) * p["scale"][None]
        return h @ p["w2"] + p["b2"][None]

    assert of(outputs, params, ROWS) == [{"/w1", "/b1", "/scale"}, {"/w2", "/b2"}]


def test_lists_of_leaves_are_cut_too():
    params = {"w": [jnp.ones((4, 4))] * 2, "b": [jnp.ones(4)] * 2}

    def outputs(p, x):
        for w, b in zip(p["w"], p["b"], strict=True):
            x = x @ w + b[None]
        return x

    assert of(outputs, params, ROWS) == [{"/w/0", "/b/0"}, {"/w/1", "/b/1"}]


def test_a_norm_belongs_to_the_layer_before_and_the_first_to_the_next():
    params = {
        "norm0": arrays(scale=(4,)),
        "dense": arrays(w=(4, 4), b=(4,)),
        "norm1": arrays(scale=(4,), b=(4,)),
        "head": arrays(w=(4, 3)),
    }

    def outputs(p, x):
        x = x * p["norm0"]["scale"][None]
        x = x @ p["dense"]["w"] + p["dense"]["b"][None]
        x = x * p["norm1"]["scale"][None] + p["norm1"]["b"][None]
        return x @ p["head"]["w"]

    first = {"/norm0/scale", "/dense/w", "/dense/b", "/norm1/scale", "/norm1/b"}
    assert of(outputs, params, ROWS) == [first, {"/head/w"}]


def test_products_beside_each_other_are_one_layer():
    params = {"attention": arrays(q=(4, 4), k=(4, 4), out=(4, 4)), "head": arrays(w=(4, 3))}

    def outputs(p, x):
        a = p["attention"]
        return ((x @ a["q"]) * (x @ a["k"])) @ a["out"] @ p["head"]["w"]

    assert [len(layer) for layer in of(outputs, params, ROWS)] == [3, 1]


def test_a_tied_table_belongs_to_its_first_layer():
    params = {"table": jnp.ones((5, 4)), "w": jnp.ones((4, 4))}
    outputs = lambda p, x: jnp.tanh(p["table"][x] @ p["w"]) @ p["table"].T  # noqa: E731
    assert of(outputs, params, jnp.zeros(2, jnp.int32)) == [{"/table"}, {"/w"}]


def test_a_scanned_stack_is_one_layer_and_what_is_not_used_none():
    params = arrays(stack=(3, 4, 4), head=(4, 2), spare=(4,), stopped=(4,))

    def outputs(p, x):
        h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["stack"])[0]
        return (h + jax.lax.stop_gradient(p["stopped"])[None]) @ p["head"]

    assert of(jax.checkpoint(outputs), params, ROWS) == [{"/stack"}, {"/head"}]


def test_what_meets_no_data_is_in_the_last_layer():
    params = arrays(w=(4, 3), v=(3, 2), prior=(2,))
    model = ju.Model(lambda p, b: p["prior"][None], lambda p, b: b["x"][:, 0])
    assert layers(model, params, {"x": ROWS}) == (("['prior']",),)


def test_the_layers_of_a_convolutional_network_are_those_of_its_code():
    from jaxunlearn import networks

    model = ju.from_nnx(networks.build("cnn", (8, 8), 10))
    params = jax.eval_shape(model.init, KEY)
    weights = params["params"] if model.statistics else params
    found = layers(model, params, {"x": jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)})
    assert sum(map(len, found)) == len(jax.tree.leaves(weights))
    assert all("'head'" in name for name in found[-1]) and len(found) >= 3


@pytest.mark.parametrize(
    "make", [cases.dict_case, cases.nnx_case, cases.tuple_case, cases.statistics_case],
    ids=["dict", "nnx", "tuple", "statistics"],
)  # fmt: skip
def test_a_mask_of_the_last_layer_is_the_head(make):
    case = make()
    batch = case.request.retain.arrays
    weights = case.params["params"] if case.model.statistics else case.params
    mask = last_layers(case.model, case.params, batch, 1)
    assert jax.tree.structure(mask) == jax.tree.structure(weights)
    moving = {
        jax.tree_util.keystr(path): m for path, m in jax.tree_util.tree_leaves_with_path(mask)
    }
    single = len(layers(case.model, case.params, batch)) == 1
    assert all(m == (single or "'head'" in name) for name, m in moving.items())
    assert all(jax.tree.leaves(last_layers(case.model, case.params, batch, 99)))


def test_all_layers_are_all_leaves_used_or_not(case):
    params = case.params | {"spare": jnp.ones(2)}
    batch = case.request.retain.arrays
    assert not last_layers(case.model, params, batch, 1)["spare"]
    assert last_layers(case.model, params, batch, 2)["spare"]


@pytest.mark.parametrize("k", [0, -1, 1.0, True])
def test_a_number_of_layers_is_at_least_one(k, case):
    for build in (ju.cf_k, ju.eu_k):
        with pytest.raises(ValueError, match=f"{build.__name__}: k, the number of layers, must be"):
            build(k=k)
    with pytest.raises(ValueError, match="last_layers: k, the number of layers, must be"):
        last_layers(case.model, case.params, case.request.retain.arrays, k)


def test_a_model_without_layers_is_refused():
    model = ju.Model(lambda p, b: b["x"], lambda p, b: b["x"][:, 0])
    with pytest.raises(ValueError, match="no parameter reaches the model's outputs"):
        last_layers(model, jnp.ones(2), {"x": ROWS}, 1)


# ------------------------------------------------------------------------------------ the methods


def retained(case, params, data, mask, epochs, key, name):
    """SGD with decay and momentum on the leaves that move, step by step, with a dense mask."""
    frozen = jax.tree.map(lambda m: not m, mask)
    tx = optax.chain(TX, optax.masked(optax.set_to_zero(), frozen))
    loss = objectives.mean_loss(case.model, name)
    return ju.fit(loss, tx, params, {name: data}, key=key, epochs=epochs)


def test_cf_k_moves_the_last_layers_and_no_other_bit(case):
    head = {"body": {"w": False, "b": False}, "head": {"w": True, "b": True}}
    out = unlearn(ju.cf_k(TX, k=1, epochs=2), case)
    laws.bits(out.params["body"], case.params["body"])
    fitted = retained(case, case.params, case.request.retain, head, 2, KEY, "retain")
    laws.close(out.params, fitted.params)
    assert laws.different(out.params["head"], case.params["head"])


def test_cf_k_of_all_layers_is_fine_tuning(case):
    out, tuned = (unlearn(m, case) for m in (ju.cf_k(TX, k=2, epochs=2), ju.finetune(TX, epochs=2)))
    laws.bits(out.params, tuned.params)


def test_eu_k_makes_the_last_layers_anew_and_keeps_the_rest(case):
    first, second = jax.random.split(KEY)
    fresh = case.model.init(first)["head"]
    zero = unlearn(ju.eu_k(TX, epochs=0), case)
    laws.bits(zero.params, case.params | {"head": fresh})
    out = unlearn(ju.eu_k(TX, epochs=2), case)
    head = {"body": {"w": False, "b": False}, "head": {"w": True, "b": True}}
    start = case.params | {"head": fresh}
    fitted = retained(case, start, case.request.retain, head, 2, second, "data")
    laws.close(out.params, fitted.params)
    laws.bits(out.params["body"], case.params["body"])
    other = case.params | {"head": jax.tree.map(lambda p: p + 1, case.params["head"])}
    laws.bits(
        ju.eu_k(TX, epochs=2).unlearn(case.model, other, case.request, KEY).params, out.params
    )


def test_eu_k_of_all_layers_is_retraining(case):
    out, again = (unlearn(m, case) for m in (ju.eu_k(TX, k=9, epochs=2), ju.retrain(TX, epochs=2)))
    laws.bits(out.params, again.params)


def test_running_statistics_are_those_of_the_original_and_k_counts_weights():
    case = cases.statistics_case()
    out = unlearn(ju.eu_k(TX, k=1, epochs=1), case)
    laws.bits(out.params["batch_stats"], case.params["batch_stats"])
    laws.bits(out.params["params"]["dense"], case.params["params"]["dense"])
    assert laws.different(out.params["params"]["head"], case.params["params"]["head"])


@pytest.mark.parametrize("build", [ju.cf_k, ju.eu_k])
def test_the_best_epoch_can_be_kept(build, case):
    """The score is given all params, those that do not move too."""

    def score(model, params):
        chex.assert_trees_all_equal_shapes(params, case.params)
        return -jnp.abs(params["head"]["w"]).sum()

    method = build(optax.sgd(-1.0), epochs=2)  # away from the minimum
    out, best = unlearn(method, case), unlearn(ju.keep_best(method, score), case)
    assert score(None, best.params) > score(None, out.params)


@pytest.mark.parametrize("build", [ju.cf_k, ju.eu_k])
def test_a_run_that_diverges_keeps_the_last_finite_params(build, single):
    far = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e38))
    out = unlearn(build(far, epochs=3), single)
    assert out.info.status == Status.DIVERGED and out.info.steps == 1
    chex.assert_tree_all_finite(out.params)


@pytest.mark.parametrize("build", [ju.cf_k, ju.eu_k])
def test_a_negative_length_is_refused_by_name(build):
    with pytest.raises(ValueError, match=f"{build.__name__}: the length of a run must be >= 0"):
        build(epochs=-1)
