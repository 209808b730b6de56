"""CKA from batches: exactly the whole, for any batches; unbiased where only batches are seen."""

import numpy as np
import pytest

from jaxunlearn.audit import TooFew, cka, minibatch_cka, streaming_cka


def batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5))
    return x, np.tanh(x @ rng.normal(size=(5, 8))) + 0.3 * rng.normal(size=(50, 8))


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("size", [1, 7, 49, 50])
def test_streaming_gives_the_value_over_all_rows_for_any_batches(pair, size, debiased):
    value = streaming_cka(batches(*pair, size), debiased=debiased)
    assert value == pytest.approx(cka(*pair, debiased=debiased), abs=1e-12)


def test_the_average_over_batches_is_another_number(pair):
    average = np.mean([cka(*batch, debiased=False) for batch in batches(*pair, 10)])
    assert average - cka(*pair, debiased=False) > 0.05


def test_a_far_off_centre_costs_no_digits_and_empty_batches_add_nothing(pair):
    x, y = pair
    shifted = [(x[:0], y[:0]), *batches(x + 1e5, y - 1e6, 8), (x[:0], y[:0])]
    assert streaming_cka(shifted) == pytest.approx(cka(x, y), abs=1e-8)
    assert streaming_cka(iter(batches(x, y, 8))) == pytest.approx(cka(x, y), abs=1e-12)


def test_one_batch_of_everything_is_the_whole_value(pair):
    assert minibatch_cka([pair]) == pytest.approx(cka(*pair), abs=1e-12)


def test_batches_weigh_by_their_degrees_of_freedom():
    rng = np.random.default_rng(1)
    sizes = (4, 9, 30)
    pairs = [tuple(rng.normal(size=(2, n, 3))) for n in sizes]

    def hsic(x, y):
        """Unbiased, by U-centring (Székely and Rizzo, 2014), without its 1 / (n (n - 3))."""
        n = len(x)
        centred = []
        for z in (x, y):
            K = z @ z.T
            np.fill_diagonal(K, 0)
            rows = K.sum(1) / (n - 2)
            K = K - rows[:, None] - rows[None, :] + K.sum() / ((n - 1) * (n - 2))
            np.fill_diagonal(K, 0)
            centred.append(K)
        return (centred[0] * centred[1]).sum()

    xy, xx, yy = (sum(hsic(*f(*p)) for p in pairs) for f in _SIDES)
    expected = xy / np.sqrt(xx * yy)
    assert minibatch_cka(pairs) == pytest.approx(expected, abs=1e-12)
    short = tuple(rng.normal(size=(2, 3, 3)))  # three rows have no degree of freedom
    assert minibatch_cka([short, *pairs]) == pytest.approx(expected, abs=1e-12)
    unweighted = [sum(hsic(*f(*p)) / (n * (n - 3)) for p, n in zip(pairs, sizes, strict=True))
                  for f in _SIDES]  # fmt: skip
    assert unweighted[0] / np.sqrt(unweighted[1] * unweighted[2]) != pytest.approx(
        expected, abs=1e-3
    )


_SIDES = (lambda x, y: (x, y), lambda x, y: (x, x), lambda x, y: (y, y))


def test_small_batches_are_unbiased_where_the_published_average_is_not():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 1600, 32))
    y[:, :16] = x[:, :16]  # half in common: the population's CKA is 1/2
    parts = batches(x, y, 8)
    published = np.mean([cka(a, b, debiased=False) for a, b in parts])
    assert minibatch_cka(parts) == pytest.approx(0.5, abs=0.03)
    assert streaming_cka(parts) == pytest.approx(0.5, abs=0.03)
    assert published > 0.85


def test_constant_and_non_finite_features_are_undefined(pair):
    x, y = pair
    constant = np.full((50, 3), 0.1)
    broken = x.copy()
    broken[30, 1] = np.inf
    for stream in (streaming_cka, minibatch_cka):
        for bad in (constant, constant.astype(np.float32), broken):
            assert stream(batches(bad, y, 10)) is None
            assert stream(batches(y, bad, 10)) is None
        with pytest.raises(ValueError, match=r"same examples, got \(10, 5\) and \(9, 8\)"):
            stream([(x[:10], y[:9])])


def test_too_few_rows_are_refused(pair):
    x, y = pair
    with pytest.raises(TooFew, match=r"streaming_cka: 3 example\(s\)"):
        streaming_cka(batches(x[:3], y[:3], 2))
    with pytest.raises(TooFew, match=r"streaming_cka: 0 example\(s\); the biased"):
        streaming_cka([], debiased=False)
    with pytest.raises(TooFew, match="a batch of at least 4 rows"):
        minibatch_cka(batches(x, y, 3))
