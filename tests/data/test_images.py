"""Images as inputs: standardised by the training split, whatever the channel holds."""

import numpy as np
import pytest

from jaxunlearn.data.images import scale_images


@pytest.mark.parametrize("shape", [(30, 4, 5), (30, 4, 5, 3)])
def test_scaled_images_equal_the_plain_formula(shape):
    rng = np.random.default_rng(2)
    train, test = (rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2))
    scaled, scaled_test = scale_images(train, test)
    unit = train.astype(np.float64) / 255
    mean, std = unit.mean((0, 1, 2)), unit.std((0, 1, 2))
    if len(shape) == 3:
        mean, std = unit.mean(), unit.std()
    np.testing.assert_allclose(scaled, (unit - mean) / std, atol=1e-6)
    np.testing.assert_allclose(scaled_test, (test / 255 - mean) / std, atol=1e-6)
    assert scaled.dtype == np.float32


def test_a_constant_channel_is_centred_and_stays_finite():
    (scaled,) = scale_images(np.full((3, 2, 2), 7, np.uint8))
    np.testing.assert_array_equal(scaled, np.zeros((3, 2, 2)))
