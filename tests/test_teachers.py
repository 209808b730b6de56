"""Several teachers: every row learns from its own, whoever that is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import jaxunlearn as ju
from jaxunlearn import teachers
from jaxunlearn.distillation import prediction_distillation, with_old_outputs
from jaxunlearn.teachers import chosen, multi_teacher
from jaxunlearn.training import Status

KEY = jax.random.key(0)
MODEL = ju.Model(outputs=lambda p, b: b["x"] @ p, loss=lambda p, b: b["x"][:, 0])


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def batch(**columns):
    return {"x": array(0, 6, 3)} | columns


def value(objective, params, rows, state=None):
    state = objective.init(params) if state is None else state
    return objective.loss(params, {"data": rows}, state, KEY)[0]


def divergence(told, said, t=1.0):
    """T^2 KL(softmax(told / T) || softmax(said / T)) of each row, by SciPy."""
    p, q = (special.softmax(np.asarray(z) / t, axis=1) for z in (told, said))
    return t**2 * special.rel_entr(p, q).sum(axis=1)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_each_row_learns_from_the_teacher_that_it_names(dtype, x64):
    """Theta_0, another model and a column, over rows of different weight."""
    w, other, said = array(1, 3, 4), array(2, 3, 4), array(3, 6, 4)
    choice = np.array([0, 1, 2, 2, 1, 0], dtype)
    weight = jnp.array([1.0, 2.0, 1.0, 0.0, 1.0, 1.0])
    rows = batch(teacher=jnp.asarray(choice), weight=weight, said=said)
    taught = multi_teacher(MODEL, (None, other, "said"), temperature=3.0)
    student = array(4, 3, 4)
    x = rows["x"]
    told = np.stack([x @ w, x @ other, said])[choice, np.arange(6)]
    expected = np.average(divergence(told, x @ student, 3.0), weights=weight)
    np.testing.assert_allclose(value(taught, student, rows, taught.init(w)), expected, rtol=1e-10)
    turned = rows | {"teacher": jnp.asarray(2 - choice)}
    assert abs(value(taught, student, turned, taught.init(w)) - expected) > 1e-2


def test_a_bool_column_chooses_between_two():
    rows = batch(flag=jnp.array([True, False, True, False, False, True]))
    numbers = rows | {"teacher": rows["flag"].astype(jnp.int32)}
    pair, student = (array(1, 3, 4), array(2, 3, 4)), array(4, 3, 4)
    flagged = value(multi_teacher(MODEL, pair, choice="flag"), student, rows)
    np.testing.assert_allclose(flagged, value(multi_teacher(MODEL, pair), student, numbers))


def test_the_model_as_it_was_has_nothing_to_learn_from_itself(x64):
    """Whatever the other teacher says, as long as no row asks it."""
    w, wild = array(1, 3, 4), 100 * array(2, 3, 4)
    taught = multi_teacher(MODEL, (None, wild))

    def total(p, choice):
        return value(taught, p, batch(teacher=choice), taught.init(w))

    here, slope = jax.value_and_grad(total)(w, jnp.zeros(6, jnp.int32))
    np.testing.assert_allclose(here, 0, atol=1e-14)
    np.testing.assert_allclose(slope, 0, atol=1e-14)
    assert total(w, jnp.zeros(6, jnp.int32).at[2].set(1)) > 0.1


def test_one_teacher_is_distillation_and_reads_no_choice(x64):
    w, student = array(1, 3, 4), array(2, 3, 4)
    taught = value(multi_teacher(MODEL, (w,), temperature=2.0), student, batch())
    plain = value(prediction_distillation(MODEL, w, temperature=2.0), student, batch())
    np.testing.assert_allclose(taught, plain, rtol=1e-14)


def test_what_a_teacher_says_may_be_computed_once(x64):
    old, student = array(1, 3, 4), array(2, 3, 4)
    told = with_old_outputs(MODEL, old, ju.data.in_memory(batch(), batch_size=4))
    cached = value(multi_teacher(MODEL, ("old_outputs",)), student, told.arrays)
    np.testing.assert_allclose(cached, value(multi_teacher(MODEL, (old,)), student, batch()))


def test_a_teacher_is_not_taught(x64):
    student, old, rows = array(2, 3, 4), array(1, 3, 4), batch()
    taught = multi_teacher(MODEL)
    slope = jax.grad(lambda p: value(taught, p, rows, (old + 0 * p,)))(student)
    moving = jax.grad(lambda p: value(taught, p, rows, (old + p - student,)))(student)
    np.testing.assert_allclose(slope, moving, rtol=1e-12)
    assert abs(slope).max() > 1e-2


def test_a_choice_of_nobody_ends_the_run():
    data = ju.data.in_memory(batch(teacher=jnp.array([0, 1, 0, 2, 0, 1])), batch_size=6)
    taught = multi_teacher(MODEL, (array(1, 3, 4), array(2, 3, 4)))
    out = ju.fit(taught, optax.sgd(0.1), array(3, 3, 4), data, key=KEY, epochs=2)
    assert out.info.status == Status.DIVERGED and out.info.steps == 0
    np.testing.assert_array_equal(out.params, array(3, 3, 4).astype(out.params.dtype))


def test_rows_of_weight_zero_are_not_heard():
    """Even if their teacher is nobody, in value and gradient."""
    weight = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    rows = batch(teacher=jnp.array([0, 1, 1, 1, 0, 1]), weight=weight)
    taught = multi_teacher(MODEL, (array(1, 3, 4), array(2, 3, 4)))
    loud = rows | {"x": rows["x"].at[2].set(1e3)}
    one, other = (jax.value_and_grad(lambda p, r=r: value(taught, p, r))(array(3, 3, 4))
                  for r in (rows, loud))  # fmt: skip
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-6)


def test_positions_have_the_teacher_of_their_example():
    told = [jnp.zeros((2, 3, 4)), jnp.ones((2, 3, 4))]
    heard = chosen(told, jnp.array([1, 0]))
    np.testing.assert_array_equal(heard, jnp.stack([told[1][0], told[0][1]]))


def test_other_teachers_are_not_another_program():
    calls = []

    def noted(p, b):
        calls.append(1)
        return b["x"] @ p

    model = dataclasses.replace(MODEL, outputs=noted)
    compiled = jax.jit(lambda loss, p, s: loss(p, {"data": rows}, s, KEY)[0], static_argnums=0)
    rows, seen = batch(teacher=jnp.arange(6) % 2), []
    for seed in (1, 5):
        taught = multi_teacher(model, (None, array(seed, 3, 4)))
        seen.append(float(compiled(taught.loss, array(3, 3, 4), taught.init(array(2, 3, 4)))))
    assert len(calls) == 3  # the student and two teachers, traced once
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multi_teacher(MODEL, ()), "expected at least one teacher"),
        (lambda: multi_teacher(MODEL, temperature=0.0), "temperature must be .*> 0, got 0.0"),
        (lambda: multi_teacher(MODEL, temperature=float("nan")), "temperature must be a finite"),
        (
            lambda: multi_teacher(dataclasses.replace(MODEL, statistics=True)),
            "keeps running statistics.*freeze_statistics",
        ),
        (lambda: value(multi_teacher(MODEL, ("said",)), array(1, 3, 4), batch()), "column 'said'"),
        (
            lambda: value(multi_teacher(MODEL, (None, None)), array(1, 3, 4), batch()),
            r"column 'teacher', but the batch has \['x'\]",
        ),
        (
            lambda: chosen([jnp.zeros((2, 3)), jnp.zeros((2, 4))], jnp.zeros(2)),
            "must agree in shape",
        ),
        (lambda: chosen([jnp.zeros((2, 3))] * 2, jnp.zeros(3)), r"shape \(2,\).*got \(3,\)"),
    ],
)
def test_what_cannot_teach_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_module_is_public():
    assert ju.teachers is teachers
