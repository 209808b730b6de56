"""SalUn: which weights may move, that no other does, and random labels where all may."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.training import Status
from tests.suite import cases, laws

KEY = jax.random.key(4)
DECAYED = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


def unlearn(method, case, request=None):
    return method.unlearn(case.model, case.params, request or case.request, KEY)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)])


def saliency(case):
    """|sum over the forget examples of the gradient|, one example after the other."""

    def of_one(params, i):
        row = {k: v[i : i + 1] for k, v in case.request.forget.arrays.items()}
        return case.model.loss(params, row)[0]

    grad = jax.jit(jax.grad(of_one), static_argnums=1)
    total = sum(flat(grad(case.params, i)) for i in range(8))
    return np.abs(total)


# The mask


def test_the_mask_is_the_top_of_the_summed_gradient_over_all_leaves(single):
    """15 entries: q = 0.4 is six of them, wherever they are."""
    values = saliency(single)
    mask = flat(ju.saliency_mask(single.model, single.params, single.request, 0.4))
    assert mask.dtype == bool and values.size == 15
    expected = np.zeros(15, bool)
    expected[np.argsort(-values)[:6]] = True
    np.testing.assert_array_equal(mask, expected)
    per_leaf = [m.sum() for m in jax.tree.leaves(
        ju.saliency_mask(single.model, single.params, single.request, 0.4))]  # fmt: skip
    assert per_leaf != [5, 1], "the same fraction of every leaf would not tell the difference"


LINEAR = ju.Model(
    outputs=lambda p, b: jnp.zeros((b["x"].shape[0], 2)),
    loss=lambda p, b: b["x"][:, :3] @ p["a"] + b["x"][:, 3:] @ p["b"],
)
ZEROS = {"a": jnp.zeros(3), "b": jnp.zeros(2)}


def mask_of(x, fraction, weight=None, model=LINEAR, batch_size=2):
    """Of a loss whose gradient is x: the saliency is |sum_i w_i x_i|."""
    columns = {"x": np.asarray(x, np.float32)}
    if weight is not None:
        columns["weight"] = np.asarray(weight, np.float32)
    request = ju.Request(ju.data.in_memory(columns, batch_size))
    return flat(ju.saliency_mask(model, ZEROS, request, fraction)).tolist()


def test_batches_and_weights_enter_as_sums_over_examples():
    """Three rows in batches of two: the last one counts as much as the others."""
    x = [[1.0, 0, 3, 0, 0], [1.0, 0, 0, 0, 0], [0.0, 0, 0, 2.5, 0]]
    assert mask_of(x, 0.4) == [False, False, True, True, False]
    assert mask_of(x, 0.4, batch_size=3) == mask_of(x, 0.4, batch_size=1) == mask_of(x, 0.4)
    assert mask_of(x, 0.4, weight=[1, 2, 1]) == [True, False, True, False, False]
    assert mask_of(x, 0.4, weight=[1, 1, 0]) == [True, False, True, False, False]


def test_opposed_gradients_cancel_before_their_size_is_taken():
    x = [[5.0, 1, 0, 0, 0], [-5.0, 1, 0, 0, 0]]
    assert mask_of(x, 0.2) == [False, True, False, False, False]


def test_exactly_the_fraction_is_chosen_among_ties_zeros_and_nan():
    assert mask_of([[1.0, 1, 1, 1, 1]], 0.6) == [True, True, True, False, False]
    assert mask_of([[0.0, 0, 7, 0, 0]], 0.6) == [True, True, True, False, False]
    nan = ju.Model(LINEAR.outputs, lambda p, b: LINEAR.loss(p, b) + jnp.nan * p["a"][0])
    assert mask_of([[9.0, 1, 0, 0, 0]], 0.6, model=nan) == [False, True, True, True, False]
    assert mask_of([[9.0, 1, 0, 0, 0]], 1.0, model=nan) == [True] * 5
    assert mask_of([[1.0, 1, 1, 1, 1]], 0.0) == [False] * 5


def test_a_factor_of_the_loss_changes_no_mask(single):
    scaled = ju.Model(
        outputs=single.model.outputs, loss=lambda p, b: -1e-3 * single.model.loss(p, b)
    )
    one, other = (
        flat(ju.saliency_mask(model, single.params, single.request))
        for model in (single.model, scaled)
    )
    np.testing.assert_array_equal(one, other)
    assert one.sum() == 8  # half of 15, rounded to even


# The method


def test_without_a_mask_it_is_random_labels(single):
    """q = 1; every option arrives."""
    options = {"epochs": 2, "order": "sequential", "wrong_only": True}
    ours = unlearn(ju.salun(DECAYED, fraction=1.0, **options), single)
    theirs = unlearn(ju.random_labels(DECAYED, **options), single)
    laws.bits(ours.params, theirs.params)
    np.testing.assert_allclose(ours.info.losses, theirs.info.losses, rtol=1e-6)


@pytest.mark.parametrize("fraction", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_entries_outside_the_mask_keep_their_bits_under_decay_and_momentum(fraction, single):
    mask = flat(ju.saliency_mask(single.model, single.params, single.request, fraction))
    out = unlearn(ju.salun(DECAYED, fraction=fraction, epochs=3), single)
    before, after = flat(single.params), flat(out.params)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).all()


def test_a_mask_on_gradients_alone_would_let_the_decay_through(single):
    """Mutant: what an early version of the published code did."""
    mask = ju.saliency_mask(single.model, single.params, single.request, 0.3)
    hide = optax.stateless(lambda g, _: jax.tree.map(lambda m, x: jnp.where(m, x, 0), mask, g))
    out = unlearn(ju.random_labels(optax.chain(hide, DECAYED), epochs=1), single)
    frozen = ~flat(mask)
    assert (flat(out.params)[frozen] != flat(single.params)[frozen]).any()


def test_any_method_can_be_salient(single):
    """An edit moves the entries of the mask as it would, and no other."""
    edit = ju.ssd(alpha=1.2, effective_batch=64)
    method = ju.salient(edit, 0.4)
    assert method.needs == edit.needs | {"forget", "labels"}
    assert ju.salient(ju.finetune()).needs == {"forget", "retain", "labels", "key"}
    chosen = flat(ju.saliency_mask(single.model, single.params, single.request, 0.4))
    alone, before = flat(unlearn(edit, single).params), flat(single.params)
    np.testing.assert_allclose(
        flat(unlearn(method, single).params), np.where(chosen, alone, before), rtol=1e-5
    )
    assert (alone[chosen] != before[chosen]).any() and (alone[~chosen] != before[~chosen]).any()


def test_streaming_data_give_the_same_mask(single):
    lists = ju.Request(list(single.request.forget))
    mask = ju.saliency_mask(single.model, single.params, lists, 0.4)
    same = ju.saliency_mask(single.model, single.params, single.request, 0.4)
    np.testing.assert_array_equal(flat(mask), flat(same))


@pytest.mark.slow
def test_the_best_candidate_of_a_salient_run_can_be_kept(single):
    """By nearness to the start, which is therefore what comes back."""
    method = ju.salient(ju.gradient_ascent(optax.sgd(0.1), epochs=2), 0.4)

    def nearness(model, params):
        return -sum(abs(a - b).sum() for a, b in zip(params[0], single.params[0], strict=True))

    kept = unlearn(ju.keep_best(method, nearness), single)
    laws.bits(kept.params, single.params)
    assert kept.info.best_score == 0 and kept.info.steps == 2


@pytest.mark.slow
def test_divergence_keeps_the_last_finite_params(single):
    out = unlearn(ju.salun(optax.sgd(1e38), epochs=5), single)
    assert out.info.status == Status.DIVERGED
    assert np.isfinite(flat(out.params)).all()


@pytest.mark.slow
def test_a_salient_method_obeys_the_laws():
    method = ju.salient(ju.neggrad_plus(cases.TX, epochs=1))
    for law in laws.LAWS:
        law(method, cases.dict_case())


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction):
    for build in (
        lambda: ju.salun(fraction=fraction),
        lambda: ju.salient(ju.finetune(), fraction),
        lambda: mask_of([[1.0] * 5], fraction),
    ):
        with pytest.raises(ValueError, match="fraction must be a finite number >= 0 and <= 1, got"):
            build()


def test_a_builder_that_was_not_called_is_refused():
    with pytest.raises(TypeError, match="salient: expected a Method, got function"):
        ju.salient(ju.finetune)  # type: ignore[arg-type]
