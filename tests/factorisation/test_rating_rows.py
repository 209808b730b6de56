"""Rectangles of ratings: every rating in one place, little padding, fixed shapes."""

import numpy as np
import pytest

from jaxunlearn.factorisation.rating_rows import chunk_size, rectangles


def problem(rows=300, seed=0, heavy=1.5):
    """Ratings whose degrees are spread like those of films; some rows have none."""
    rng = np.random.default_rng(seed)
    degree = np.minimum(200, rng.pareto(heavy, rows) * 8).astype(int)
    row = np.repeat(np.arange(rows), degree)
    order = rng.permutation(len(row))
    return row[order], rng.integers(0, 250, len(row)), degree


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_every_row_and_every_rating_is_in_exactly_one_place(devices, rows):
    row, other, degree = problem(rows)
    seen, held = [], []
    for each in rectangles(row, other, rows, devices=devices):
        assert each.row.shape[0] == devices and each.other.shape == each.entry.shape
        real = each.entry < len(row)
        assert not real[each.row == rows].any() and not each.other[~real].any()
        whose = np.broadcast_to(each.row[..., None], each.entry.shape)
        np.testing.assert_array_equal(row[each.entry[real]], whose[real])
        np.testing.assert_array_equal(other[each.entry[real]], each.other[real])
        np.testing.assert_array_equal(
            real.sum(-1)[each.row < rows], degree[each.row[each.row < rows]]
        )
        seen.extend(each.row[each.row < rows])
        held.extend(each.entry[real])
    np.testing.assert_array_equal(np.sort(seen), np.arange(rows))
    np.testing.assert_array_equal(np.sort(held), np.arange(len(row)))


def test_rectangles_are_few_and_little_of_them_is_padding():
    row, other, _ = problem(20_000, heavy=1.2)
    found = rectangles(row, other, 20_000)
    assert 1 < len(found) <= 8
    slots = sum(each.entry.size for each in found)
    one = 20_000 * max(each.entry.shape[2] for each in found)
    assert slots < 1.6 * len(row) and slots < one / 5


def test_chunks_divide_what_each_device_holds():
    row, other, _ = problem(300)
    for devices in (1, 2, 8):
        for each in rectangles(row, other, 300, devices=devices):
            assert each.row.shape[1] % chunk_size(each.entry.shape[2], each.row.shape[1]) == 0


def test_a_chunk_fits_a_cache_and_is_never_empty():
    assert chunk_size(64, 10_000) == 32 and chunk_size(512, 10_000) == 4
    assert chunk_size(1 << 20, 10_000) == 1 and chunk_size(8, 3) == 3 and chunk_size(8, 0) == 1


def test_no_ratings_at_all_are_rows_of_padding():
    (only,) = rectangles(np.zeros(0, int), np.zeros(0, int), 4)
    np.testing.assert_array_equal(only.row, [[0, 1, 2, 3]])
    assert not only.entry.any() and only.entry.shape == (1, 4, 8)  # place N = 0 is the padding


def test_devices_are_dealt_rows_of_like_length_in_turn():
    degree = np.r_[np.full(8, 4), np.full(8, 40)]
    row = np.repeat(np.arange(16), degree)
    found = rectangles(row, np.zeros(len(row), int), 16, devices=2)
    for each, low in zip(found, (0, 8), strict=True):
        np.testing.assert_array_equal(each.row, low + np.arange(8).reshape(4, 2).T)
