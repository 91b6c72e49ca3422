# SPDX-License-Identifier: Apache-2.0
"""Data sets without preamble or meta information are DICOM too; other files are not."""

import numpy as np
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from ucadi.io.framing import MemoryFile, framed, is_dicom
from ucadi.io.reader import load_ct


@pytest.mark.parametrize("is_implicit", [False, True])
@pytest.mark.parametrize("has_meta", [False, True])
def test_bare_data_sets_give_the_same_volume(make_ct, make_series, tmp_path, is_implicit, has_meta) -> None:
    for k, image in enumerate(make_series(make_ct())):
        if is_implicit:
            image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        if has_meta:
            image.save_as(tmp_path / f"{k}", enforce_file_format=True)
            (tmp_path / f"{k}").write_bytes((tmp_path / f"{k}").read_bytes()[132:])
        else:
            del image.file_meta, image.preamble
            image.save_as(tmp_path / f"{k}", implicit_vr=is_implicit, little_endian=True)
    loaded = load_ct(tmp_path)
    assert np.array_equal(loaded.require()[0].voxels, make_ct().voxels)


@pytest.mark.parametrize(
    "head", [b"", b"DICM", b"\x08\x00", bytes(200), b"# a text\n" * 20, b"\x08\x00\x99\x99UI"]
)
def test_other_files_are_not_taken_for_dicom(head) -> None:
    assert not is_dicom(head[:132])
    assert framed(lambda: MemoryFile(head)) is None


def test_a_file_with_preamble_is_opened_as_it_is() -> None:
    def open_file() -> MemoryFile:
        return MemoryFile(bytes(128) + b"DICM" + bytes(10))

    assert framed(open_file) is open_file
