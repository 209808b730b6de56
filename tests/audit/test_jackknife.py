"""The delete-a-group jackknife: the t-interval of a mean, edges."""

import numpy as np
import pytest
from scipy.stats import sem, t

from jaxunlearn.audit.jackknife import jackknife_ends


def test_for_a_mean_without_one_at_a_time_it_is_students_interval():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(9, 2))
    without = [np.delete(sample, g, axis=0).mean(axis=0) for g in range(9)]
    low, high = jackknife_ends(sample.mean(axis=0), without, level=0.9)
    for k in range(2):
        expected = t.interval(0.9, 8, sample[:, k].mean(), sem(sample[:, k]))
        assert (low[k], high[k]) == pytest.approx(expected)


def test_groups_that_agree_have_no_width_and_too_few_or_undefined_ones_no_ends():
    low, high = jackknife_ends([0.5], [[0.7], [0.7]])
    assert (low, high) == (0.5, 0.5)
    for without in (np.empty((0, 1)), [[0.5]], [[0.5], [np.nan]]):
        assert np.isnan(jackknife_ends([0.5], without)).all()
    with pytest.raises(ValueError, match=r"values \(F,\) and without \(G, F\), got \(1,\)"):
        jackknife_ends([0.5], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="coverage strictly between 0 and 1, got 0"):
        jackknife_ends([0.5], [[0.5], [0.5]], level=0)
