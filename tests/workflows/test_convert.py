# SPDX-License-Identifier: Apache-2.0
"""Converting writes a volume and its report together, or nothing."""

import json

import numpy as np
import pytest

from ucadi.cli.main import main
from ucadi.io.nifti import read_nifti
from ucadi.workflows import convert


def test_the_volume_and_its_report_are_written(make_ct, dicom_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out" / "ct.nii.gz"
    assert main(["convert", str(dicom_folder), "-o", str(out)]) == 0
    assert np.array_equal(read_nifti(out).voxels, make_ct().voxels)
    report = json.loads((tmp_path / "out" / "ct.json").read_text())
    assert (report["verdict"], report["shape"]) == ("ok", [36, 64, 64])
    assert str(out) in capsys.readouterr().out


def test_a_refused_input_leaves_nothing(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("Dear colleague")
    assert main(["convert", str(tmp_path / "notes.txt"), "-o", str(tmp_path / "out" / "ct.nii")]) == 3
    assert not (tmp_path / "out").exists()


def test_an_existing_volume_is_replaced_only_on_request(dicom_folder, tmp_path, capsys) -> None:
    out = tmp_path / "ct.nii"
    out.write_bytes(b"old")
    assert main(["convert", str(dicom_folder), "-o", str(out)]) == 2
    assert out.read_bytes() == b"old"
    assert main(["convert", str(dicom_folder), "-o", str(out), "--force"]) == 0
    assert read_nifti(out).grid.shape == (36, 64, 64)
    assert main(["convert", str(dicom_folder), "-o", str(dicom_folder / "ct.nii"), "--force"]) == 2
    assert "lies in, what this command reads" in capsys.readouterr().err


def test_another_ending_is_a_usage_error(dicom_folder, tmp_path, capsys) -> None:
    assert main(["convert", str(dicom_folder), "-o", str(tmp_path / "ct.mha")]) == 2
    assert "ct.mha" in capsys.readouterr().err


def test_a_failure_leaves_no_old_report_beside_a_new_volume(dicom_folder, tmp_path, monkeypatch) -> None:
    out = tmp_path / "ct.nii"
    convert.convert(dicom_folder, out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "write_nifti", full)
    with pytest.raises(OSError, match="No space"):
        convert.convert(dicom_folder, out)
    assert not out.exists()
    assert not convert.report_path(out).exists()
