# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ucadi.errors import DataError
from ucadi.imaging.continuity import check_continuity


@pytest.mark.parametrize("noise_hu", [0.0, 30.0, 150.0])
def test_a_scan_is_continuous_at_any_noise(make_ct, noise_hu) -> None:
    noise = np.random.default_rng(0).normal(0.0, noise_hu, make_ct().voxels.shape)
    check_continuity((make_ct().voxels + noise).astype(np.int16))


def test_noise_alone_is_continuous() -> None:
    check_continuity(np.random.default_rng(0).normal(0.0, 50.0, (40, 64, 64)).astype(np.float32))


@pytest.mark.parametrize("noise_hu", [0.0, 30.0])
def test_two_scans_slice_by_slice_are_refused(make_ct, noise_hu) -> None:
    one = make_ct((72, 64, 64), (2.5, 5.5, 5.5)).voxels.copy()
    one[1::2] = np.roll(one[1::2], (5, 3), axis=(1, 2))
    noise = np.random.default_rng(0).normal(0.0, noise_hu, one.shape)
    with pytest.raises(DataError, match="two acquisitions alternate") as caught:
        check_continuity((one + noise).astype(np.int16))
    assert caught.value.code == "ct-interleaved"
