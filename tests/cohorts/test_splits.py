# SPDX-License-Identifier: Apache-2.0
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ucadi.cohorts.splits import (
    SplitShares,
    series_pseudonym,
    source_pseudonym,
    split_of,
    study_pseudonym,
)
from ucadi.deid.key import SiteKey
from ucadi.errors import ConfigError
from ucadi.types import Split

KEY = SiteKey(bytes(range(32)))
keys = st.binary(min_size=32, max_size=32).map(SiteKey)
patients = st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=30)


@st.composite
def shares(draw):
    train = draw(st.integers(0, 100))
    validation = draw(st.integers(0, 100 - train))
    return SplitShares(train, validation, 100 - train - validation)


@given(keys, shares(), patients, patients)
def test_no_patient_moves_when_others_are_added(key, shares, first, added):
    before = {patient: split_of(key, patient, shares) for patient in first}
    after = {patient: split_of(key, patient, shares) for patient in [*added, *first]}
    assert before.items() <= after.items()


@given(keys, shares(), patients)
def test_a_split_without_a_share_gets_nobody(key, shares, patients):
    given_out = {split_of(key, patient, shares) for patient in patients}
    assert all(getattr(shares, split.value) > 0 for split in given_out)


@given(keys, st.text(min_size=1, max_size=12), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_training_share_takes_nobody_out_of_training(key, patient, one, other):
    small, large = sorted((one, other))
    if split_of(key, patient, SplitShares(small, 100 - small, 0)) is Split.TRAIN:
        assert split_of(key, patient, SplitShares(large, 100 - large, 0)) is Split.TRAIN


def test_the_shares_come_out_over_many_patients():
    counted = Counter(split_of(KEY, f"P{n}", SplitShares(70, 15, 15)) for n in range(10_000))
    # Four standard deviations of a binomial: 183 and 143.
    assert abs(counted[Split.TRAIN] - 7000) < 183
    assert abs(counted[Split.VALIDATION] - 1500) < 143
    assert abs(counted[Split.TEST] - 1500) < 143


def test_another_key_gives_other_splits_and_pseudonyms():
    other = SiteKey(bytes(32))
    names = [f"P{n}" for n in range(200)]
    moved = sum(
        split_of(KEY, n, SplitShares(50, 25, 25)) != split_of(other, n, SplitShares(50, 25, 25))
        for n in names
    )
    assert 80 < moved < 170  # 125 expected
    assert study_pseudonym(KEY, "1.2.3") != study_pseudonym(other, "1.2.3")


def test_a_study_pseudonym_is_the_same_each_time_and_shows_nothing_of_the_study():
    assert study_pseudonym(KEY, "1.2.3") == study_pseudonym(KEY, "1.2.3") != study_pseudonym(KEY, "1.2.4")
    assert study_pseudonym(KEY, "1.2.3").startswith("S")
    assert len(study_pseudonym(KEY, "1.2.3")) == 21


def test_shares_are_read_as_they_are_written():
    assert SplitShares.from_text("80/10/10") == SplitShares(80, 10, 10)
    assert str(SplitShares.from_text("70/15/15")) == "70/15/15"


@pytest.mark.parametrize(
    "text", ["", "70", "70/30", "70/20/20", "a/b/c", "110/-5/-5", "70/15/15/0", "7.5/2/90"]
)
def test_shares_that_make_no_hundred_are_refused_with_what_was_seen(text):
    with pytest.raises(ConfigError) as caught:
        SplitShares.from_text(text)
    assert caught.value.code == "config-invalid"
    assert text.split("/")[0] in caught.value.detail


def test_pseudonyms_of_series_and_sources_depend_on_the_key():
    one, other = SiteKey(bytes(32)), SiteKey(bytes(31) + b"1")
    for pseudonym, length in [(series_pseudonym, 8), (source_pseudonym, 64)]:
        assert pseudonym(one, "0a1b2c3d") == pseudonym(one, "0a1b2c3d")
        assert len({pseudonym(key, text) for key in (one, other) for text in ("0a1b2c3d", "0a1b2c3e")}) == 4
        assert re.fullmatch(f"[0-9a-f]{{{length}}}", pseudonym(one, "0a1b2c3d"))
