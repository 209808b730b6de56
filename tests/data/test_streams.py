"""Streams of batches: every row exactly once, padding that cannot be felt, refusals by name."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data.columns import check_columns, is_traced
from jaxunlearn.data.streams import (
    InMemory,
    Stream,
    as_data,
    concatenate,
    from_batches,
    from_grain,
    in_memory,
)
from jaxunlearn.typing import Data


def table(n=5):
    """n rows with x (n, 2), y (n,) and id (n,), all distinct."""
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 1
    return {"x": x, "y": np.arange(n, dtype=np.int32), "id": 100 + np.arange(n, dtype=np.int32)}


def rows_that_count(data, column="id"):
    """The rows of weight > 0 of one pass, in order: what a user means by "the data"."""
    return np.concatenate([np.asarray(b[column])[np.asarray(b["weight"]) > 0] for b in data])


class Countdown:
    """A Data of somebody else's making: three batches of 2, 2 and 1 rows."""

    num_examples, num_batches = 5, 3

    def __iter__(self):
        columns = table()
        for start in (0, 2, 4):
            yield {name: column[start : start + 2] for name, column in columns.items()}


# --------------------------------------------------------------------------------- what is yielded


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_every_row_is_seen_exactly_once_whatever_the_batch_size(batch_size):
    data = in_memory(table(), batch_size)
    np.testing.assert_array_equal(rows_that_count(data), table()["id"])
    assert len(list(data)) == data.num_batches
    assert {b["x"].shape[0] for b in data} == {min(batch_size, 5)}


def test_a_reader_that_drops_the_short_last_batch_would_be_noticed():
    data = in_memory(table(), 2)
    dropped = list(data)[:-1]
    assert not np.array_equal(rows_that_count(dropped), rows_that_count(data))


@pytest.mark.parametrize(
    "make",
    [
        lambda: in_memory(table(), 2),
        lambda: from_batches(list(Countdown())),
        lambda: as_data(Countdown()),
        lambda: concatenate(in_memory(table(), 2), from_batches(list(Countdown()))),
    ],
)
def test_a_second_pass_yields_the_same_batches(make):
    data = make()
    assert isinstance(data, Data)
    chex.assert_trees_all_equal(list(data), list(data))


def test_a_list_of_batches_and_arrays_in_memory_count_the_same_rows():
    streamed, stored = from_batches(list(Countdown())), in_memory(table(), 2)
    assert (streamed.num_examples, streamed.num_batches, streamed.batch_size) == (5, 3, 2)
    for name in table():
        np.testing.assert_array_equal(
            rows_that_count(streamed, name), rows_that_count(stored, name)
        )


def test_padding_is_made_of_rows_that_count():
    for data in (in_memory(table(), 3), from_batches([table(3), table(2)])):
        for batch in data:
            assert (np.asarray(batch["x"]) > 0).all()  # a padding of zeros would show


def test_rows_of_weight_zero_reach_a_model_as_copies_of_a_row_that_counts():
    columns = table() | {"weight": np.array([0, 2, 0, 1, 1], np.float32)}
    columns["x"][0] = 1e30
    for data in (in_memory(columns, 5), from_batches([columns])):
        (batch,) = data
        np.testing.assert_array_equal(batch["weight"], columns["weight"])
        assert float(batch["x"].max()) < 1e30
        np.testing.assert_array_equal(rows_that_count(data), [101, 103, 104])
    assert float(in_memory(columns)["x"].max()) == np.float32(1e30)  # what is stored stays


def test_a_batch_in_which_no_row_counts_is_yielded_whole():
    batch = {"x": np.ones((2, 1)), "weight": np.zeros(2)}
    empty = {"x": np.ones((0, 1))}
    first, second = from_batches([batch, empty])
    assert float(first["weight"].sum()) == float(second["weight"].sum()) == 0
    assert first["x"].shape == second["x"].shape == (2, 1)
    assert from_batches([batch, empty]).num_examples == 0


def test_no_rows_at_all_is_data_without_batches():
    data = in_memory(table(0))
    assert data.num_examples == data.num_batches == 0 and list(data) == []


def test_in_memory_data_goes_through_jit_and_vmap_as_a_pytree():
    data = in_memory(table(), 2)
    doubled = jax.jit(lambda d: jax.tree.map(lambda a: 2 * a, d))(data)
    assert isinstance(doubled, InMemory) and doubled.batch_size == 2
    chex.assert_trees_all_equal(doubled["x"], 2 * data["x"])
    stacked = jax.tree.map(lambda a: jnp.stack([a, a + 1]), data)
    sums = jax.vmap(lambda d: d.gather(jnp.arange(5))["y"].sum())(stacked)
    np.testing.assert_array_equal(sums, [10, 15])


def test_inside_a_trace_values_are_not_looked_at():
    @jax.jit
    def total(x):
        assert is_traced({"x": x})
        return in_memory({"x": x}, 2)["x"].sum()

    assert jnp.isnan(total(jnp.array([jnp.nan, 1.0])))
    assert not is_traced({"x": jnp.ones(2), "n": 3})


# ------------------------------------------------------------------------------ rows and columns


def test_take_gives_the_rows_asked_for_in_the_order_asked_for():
    data = in_memory(table(), 2)
    np.testing.assert_array_equal(data.take([3, 0, 3, -1])["id"], [103, 100, 103, 104])
    np.testing.assert_array_equal(data.take(table()["y"] > 2)["id"], [103, 104])
    assert data.take([]).num_examples == 0
    assert data.take([1]).batch_size == 2


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([5], IndexError, "index 5 is outside the 5 rows"),
        ([0, -6], IndexError, "index -6 is outside the 5 rows"),
        ([True, False], IndexError, r"a mask needs shape \(5,\), .* got \(2,\)"),
        ([0.5], TypeError, r"expected integers \(k,\) or a boolean mask \(5,\), got float64"),
        ([[0]], TypeError, r"got int64 of shape \(1, 1\)"),
    ],
)
def test_take_refuses_rows_that_are_not_there(indices, error, message):
    with pytest.raises(error, match=message):
        in_memory(table()).take(indices)


def test_columns_are_replaced_added_and_dropped():
    data = in_memory(table(), 2)
    more = data.replace(y=np.zeros(5, np.int32), flag=np.ones(5, bool))
    assert "flag" in more and "flag" not in data and int(more["y"].sum()) == 0
    assert sorted(more.drop("flag", "id", "nothing").arrays) == ["x", "y"]
    with pytest.raises(ValueError, match="columns must share their leading axis"):
        data.replace(y=np.zeros(4))
    with pytest.raises(ValueError, match=r"dropping \['id', 'x', 'y'\] would leave no column"):
        data.drop("x", "y", "id")
    with pytest.raises(KeyError, match=r"no column 'z' in this data; it has \['id', 'x', 'y'\]"):
        data["z"]


def test_a_stream_drops_and_transforms_columns_of_every_batch():
    data = from_batches(list(Countdown())).drop("id").drop("y")
    assert {tuple(sorted(batch)) for batch in data} == {("weight", "x")}
    again = Stream(
        data.open, 5, 3, 2, transform=lambda b: {"twice": 2 * b["x"], "weight": b["weight"]}
    )
    np.testing.assert_array_equal(rows_that_count(again, "twice"), 2 * table()["x"])


# ----------------------------------------------------------------------------------- concatenation


def test_parts_in_memory_become_one_data_with_the_columns_they_share():
    first, second = in_memory(table(), 2), in_memory(table(3), 4).drop("y")
    both = concatenate(first, second)
    assert isinstance(both, InMemory) and both.batch_size == 2
    assert sorted(both.arrays) == ["id", "x"]
    np.testing.assert_array_equal(both["id"], [*table()["id"], *table(3)["id"]])


def test_a_weight_that_one_part_has_is_kept_and_the_other_part_counts_one():
    weighted = in_memory(table(2)).replace(weight=np.array([3.0, 0.0]))
    for one in (in_memory(table(1)), from_batches([table(1)])):
        both = concatenate(weighted, one)
        weights = np.concatenate([np.asarray(b["weight"]) for b in both])
        np.testing.assert_array_equal(weights[weights > 0], [3, 1])


def test_a_mix_of_memory_and_stream_streams_one_after_the_other():
    stored = in_memory(table(), 4).drop("y")
    mix = concatenate(stored, Countdown(), in_memory(table(0)))
    assert isinstance(mix, Stream)
    assert (mix.num_examples, mix.batch_size) == (10, 4)
    assert mix.num_batches == len(list(mix)) == 5
    np.testing.assert_array_equal(rows_that_count(mix), [*table()["id"], *table()["id"]])
    assert {tuple(sorted(batch)) for batch in mix} == {("id", "weight", "x")}
    assert {batch["x"].shape for batch in mix} == {(4, 2)}


def test_parts_that_do_not_fit_are_refused_by_name():
    data = in_memory(table())
    with pytest.raises(ValueError, match=r"with a column in common, got \[\]"):
        concatenate()
    with pytest.raises(ValueError, match="with a column in common"):
        concatenate(data.drop("x", "y"), data.drop("id"))
    for other in (np.zeros(5, np.float32), np.zeros((5, 2), np.int32)):
        with pytest.raises(ValueError, match="rows of column 'y' must have one shape and dtype"):
            concatenate(data, data.replace(y=other))


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({}, TypeError, "expected a non-empty mapping of arrays .* got dict"),
        ([1, 2], TypeError, "expected a non-empty mapping of arrays .* got list"),
        ({"x": [1, 2]}, TypeError, r"in_memory\['x'\]: expected an array, got list"),
        ({"x": np.array([None])}, TypeError, r"\['x'\]: expected numbers, got dtype object"),
        ({"x": np.array(["a"])}, TypeError, r"\['x'\]: expected numbers, got dtype <U1"),
        ({"x": np.float32(1)}, ValueError, r"in_memory\['x'\] is a scalar"),
        (
            {"x": np.ones((3, 2)), "y": np.ones(4)},
            ValueError,
            "leading axis, but 'x' has 3 rows and 'y' has 4",
        ),
        (
            {"x": np.array([[0.0, 1], [np.nan, 1], [1, np.inf]])},
            ValueError,
            r"in_memory\['x'\] holds NaN or Inf in 2 of 3 rows, first at row 1",
        ),
        ({"x": np.array([0.0, 1e300])}, ValueError, "NaN or Inf in 1 of 2 rows, first at row 1"),
        (
            {"x": jnp.array([1, jnp.inf], jnp.bfloat16)},
            ValueError,
            "NaN or Inf in 1 of 2 rows, first at row 1",
        ),
        (
            {"id": np.array([1, 2**40])},
            ValueError,
            r"in_memory\['id'\]: row 1 holds 1099511627776, which does not fit int32",
        ),
        (
            {"x": np.ones(2), "weight": np.array([1.0, -0.5])},
            ValueError,
            r"in_memory\['weight'\] must be >= 0 .* but row 1 has -0.5",
        ),
        (
            {"x": np.ones(2), "weight": np.array([1.0, np.nan])},
            ValueError,
            r"\['weight'\] holds NaN",
        ),
        (
            {"x": np.ones(2), "weight": np.ones((2, 1))},
            ValueError,
            r"\['weight'\]: expected shape \(2,\), got \(2, 1\)",
        ),
    ],
)
def test_columns_that_break_a_rule_are_refused_by_name(columns, error, message):
    with pytest.raises(error, match=message):
        in_memory(columns)


def test_columns_that_keep_the_rules_are_counted():
    assert check_columns({"x": np.ones((3, 2)), "id": np.arange(3), "b": np.ones(3, bool)}, "") == 3


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_batch_size_that_is_no_positive_integer_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got"):
        in_memory(table(), batch_size)


@pytest.mark.parametrize("door", [as_data, from_batches, from_grain])
def test_a_generator_is_refused_by_name(door):
    with pytest.raises(TypeError, match="a generator can be read only once"):
        door(batch for batch in Countdown())


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match="expected Data: .* got int"):
        as_data(3)
    with pytest.raises(ValueError, match="expected at least one batch, got an empty list"):
        from_batches([])
    with pytest.raises(ValueError, match="batch 1: columns must share"):
        from_batches([table(2), {"x": np.ones(2), "y": np.ones(3)}])


def test_a_batch_longer_than_announced_is_refused():
    lying = Stream(lambda: iter([table(3)]), 3, 1, 2)
    with pytest.raises(ValueError, match="batch 0 has 3 rows, more than batch_size=2"):
        list(lying)


def test_whatever_can_be_read_as_data_becomes_data():
    stored = in_memory(table(), 2)
    assert as_data(stored) is stored
    assert isinstance(as_data(table(), batch_size=3), InMemory)
    assert as_data(table(), batch_size=3).batch_size == 3
    for data in (as_data(list(Countdown())), as_data(Countdown())):
        assert isinstance(data, Stream) and data.batch_size == 2
        np.testing.assert_array_equal(rows_that_count(data), table()["id"])


# ------------------------------------------------------------------------------------------- grain


def rows():
    columns = table(7)
    return [{name: column[i] for name, column in columns.items()} for i in range(7)]


def test_a_grain_data_set_is_shuffled_the_same_way_in_every_pass():
    import grain

    dataset = grain.MapDataset.source(rows()).seed(3).shuffle().batch(3)
    data = as_data(dataset)
    assert (data.num_examples, data.num_batches, data.batch_size) == (7, 3, 3)
    seen = rows_that_count(data)
    np.testing.assert_array_equal(np.sort(seen), table(7)["id"])
    assert not np.array_equal(seen, table(7)["id"])
    np.testing.assert_array_equal(seen, rows_that_count(data))
    other = from_grain(grain.MapDataset.source(rows()).seed(4).shuffle().batch(3))
    assert not np.array_equal(seen, rows_that_count(other))


def test_a_grain_data_set_without_end_or_without_batches_is_refused():
    import grain

    source = grain.MapDataset.source
    with pytest.raises(ValueError, match="the data set repeats without end"):
        from_grain(source(rows()).repeat().batch(3))
    with pytest.raises(ValueError, match="the data set yields no batch"):
        from_grain(source([]).batch(3))
    with pytest.raises(TypeError, match="can be read only once"):
        from_grain(iter(source(rows()).batch(3)))


def test_a_grain_iter_dataset_is_data_too():
    import grain

    data = as_data(grain.MapDataset.source(rows()).batch(2).to_iter_dataset())
    np.testing.assert_array_equal(rows_that_count(data), table(7)["id"])
