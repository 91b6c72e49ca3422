# SPDX-License-Identifier: Apache-2.0
"""Reports carry their numbers exactly, refer to what they measured, and are nobody's signature."""

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.sr.codedict import codes as standard

from ucadi.errors import DicomError
from ucadi.results import codes
from ucadi.results.identity import Maker, ObjectName
from ucadi.results.seg import Segment, write_segmentation
from ucadi.results.sr import Finding, Quantity, read_report, write_report
from ucadi.types import FindingClass

MAKER = Maker("0123456789ab", "toy model")

WHOLE = Finding(
    "Classification",
    codes.FINDING,
    tuple(Quantity(name, 25.0, codes.PERCENT) for name in codes.PROBABILITIES.values()),
    answers=((codes.FINDING, codes.CANNOT_SAY), (codes.AGREEMENT, codes.AGREEMENTS["low"])),
    texts=(
        (codes.STATEMENT, "Cannot say: ± 20 points, 不确定."),
        (codes.INPUT_REPAIR, "One."),
        (codes.INPUT_REPAIR, "Two."),
    ),
    site=codes.LUNG,
)
RIGHT_LUNG = Finding(
    "Right lung",
    codes.LUNG,
    (Quantity(codes.VOLUME, 2543.123456789012345, codes.MILLILITER),),
    segment=1,
    category=codes.ANATOMY,
    site=codes.LUNG,
    side=codes.RIGHT,
)


def write_both(loaded, folder, *findings):
    lungs = Segment("Lung", loaded.lungs.right, codes.ANATOMY, codes.LUNG, (1, 2, 3), "Finder")
    segmentation = write_segmentation([lungs], loaded.volume.grid, loaded.source, MAKER, folder / "seg.dcm")
    name = write_report(findings, loaded.source, MAKER, folder / "sr.dcm", segmentation)
    return segmentation, name


@pytest.mark.parametrize("case", ["plain", "enhanced-shuffled"])
def test_numbers_answers_and_words_come_back_as_they_were(awkward_ct, dicom_complaints, tmp_path, case):
    segmentation, _ = write_both(awkward_ct(case), tmp_path, WHOLE, RIGHT_LUNG)
    assert dicom_complaints(tmp_path / "sr.dcm") == []
    read = read_report(tmp_path / "sr.dcm")
    assert list(read) == ["Classification", "Right lung"]
    whole, lung = read.values()
    assert whole.numbers == {"P-HEALTHY": 25, "P-COVID-19": 25, "P-OTHER-VIRAL": 25, "P-BACTERIAL": 25}
    assert (whole.answers["FINDING"], whole.answers["AGREEMENT"]) == ("CANNOT-SAY", "LOW")
    assert whole.texts["STATEMENT"] == ("Cannot say: ± 20 points, 不确定.",)
    assert whole.texts["INPUT-REPAIR"] == ("One.", "Two.")
    assert whole.segment is None
    assert lung.numbers == {"118565006": 2543.123456789012345}
    assert lung.segment == (segmentation.sop_instance_uid, 1)


def test_another_librarys_reader_finds_the_template_and_its_groups(awkward_ct, tmp_path):
    segmentation, _ = write_both(awkward_ct("plain"), tmp_path, WHOLE, RIGHT_LUNG)
    content = hd.sr.srread(tmp_path / "sr.dcm").content
    (whole,) = content.get_image_measurement_groups()
    (lung,) = content.get_volumetric_roi_measurement_groups()
    assert [item.value for item in whole.get_measurements()] == [25.0] * 4
    assert lung.finding_type == codes.LUNG
    assert lung.finding_sites[0].laterality == codes.RIGHT
    reference = lung.referenced_segment
    assert reference.referenced_sop_instance_uid == segmentation.sop_instance_uid
    assert reference.referenced_segment_numbers == [1]
    (volume,) = lung.get_measurements(name=codes.VOLUME)
    assert (volume.value, volume.unit) == (2543.123456789012345, codes.MILLILITER)


@settings(max_examples=10)
@given(value=st.floats(0, 1e6, allow_subnormal=False))
def test_any_number_comes_back_exactly(awkward_ct, tmp_path_factory, value):
    path = tmp_path_factory.mktemp("sr") / "sr.dcm"
    finding = replace(WHOLE, quantities=(Quantity(codes.VOLUME, value, codes.MILLILITER),))
    source = awkward_ct("plain").source
    write_report([finding], replace(source, instances=source.instances[:1]), MAKER, path)
    assert read_report(path)["Classification"].numbers["118565006"] == value


def test_a_report_is_preliminary_unverified_and_by_a_device(awkward_ct, tmp_path):
    write_both(awkward_ct("plain"), tmp_path, WHOLE, RIGHT_LUNG)
    report = dcmread(tmp_path / "sr.dcm")
    assert report.VerificationFlag == "UNVERIFIED"
    assert (report.PreliminaryFlag, report.CompletionFlag) == ("PRELIMINARY", "COMPLETE")
    assert report.ContentQualification == "RESEARCH"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert "research use only" in report.SeriesDescription
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99UCADI"
    said = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item
        for item in report.ContentSequence
        if item.ValueType != "CONTAINER"
    }
    assert said["Observer Type"].ConceptCodeSequence[0].CodeMeaning == "Device"
    assert said["Device Observer Serial Number"].TextValue == "0123456789ab"


def test_a_report_lists_every_source_image_and_the_segmentation_as_evidence(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    segmentation, _ = write_both(loaded, tmp_path, WHOLE, RIGHT_LUNG)
    report = dcmread(tmp_path / "sr.dcm")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == loaded.source.header.StudyInstanceUID
    found = {
        series.SeriesInstanceUID: {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
        for series in study.ReferencedSeriesSequence
    }
    images = {instance.sop_instance_uid for instance in loaded.source.instances}
    assert found == {
        loaded.source.header.SeriesInstanceUID: images,
        segmentation.series_uid: {segmentation.sop_instance_uid},
    }
    library = next(
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    )
    listed = [item for item in library.ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in listed} == images


def test_images_of_a_multi_frame_source_are_listed_by_frame(awkward_ct, tmp_path):
    loaded = awkward_ct("enhanced-shuffled")
    write_report([WHOLE], loaded.source, MAKER, tmp_path / "sr.dcm")
    report = dcmread(tmp_path / "sr.dcm")
    library = next(
        item
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    )
    (image,) = [item for item in library.ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    numbers = image.ReferencedSOPSequence[0].ReferencedFrameNumber
    assert sorted(numbers) == sorted(instance.frame for instance in loaded.source.instances)


def test_the_same_report_has_the_same_uid_and_any_other_has_another(awkward_ct, tmp_path):
    source = awkward_ct("plain").source
    other = replace(RIGHT_LUNG, segment=None, quantities=(Quantity(codes.VOLUME, 1.0, codes.MILLILITER),))
    names = [write_report([finding], source, MAKER, tmp_path / "sr.dcm") for finding in (WHOLE, WHOLE, other)]
    assert names[0] == names[1] != names[2]
    assert names[0].series_uid == names[2].series_uid


def test_a_segment_without_a_segmentation_and_an_empty_report_are_a_wrong_call(awkward_ct, tmp_path):
    source = awkward_ct("plain").source
    for findings in ([], [RIGHT_LUNG]):
        with pytest.raises(ValueError, match="segmentation"):
            write_report(findings, source, MAKER, tmp_path / "sr.dcm")


def test_other_files_are_no_report(awkward_ct, dicom_folder, tmp_path):
    with pytest.raises(DicomError, match="no measurement report"):
        read_report(next(dicom_folder.iterdir()))
    write_report([WHOLE], awkward_ct("plain").source, MAKER, tmp_path / "sr.dcm")
    (tmp_path / "cut").write_bytes((tmp_path / "sr.dcm").read_bytes()[:2000])
    with pytest.raises(DicomError):
        read_report(tmp_path / "cut")


# -- codes ------------------------------------------------------------------------------------------------


def all_codes():
    """Every code that results may hold."""
    found = []
    for value in vars(codes).values():
        if isinstance(value, codes.Code):
            found.append(value)
        elif isinstance(value, dict):
            found += [code for code in value.values() if isinstance(code, codes.Code)]
    return found


@pytest.mark.parametrize("code", all_codes(), ids=lambda code: f"{code.scheme_designator} {code.value}")
def test_a_code_is_the_standards_own_or_listed_as_private(code):
    assert len(code.value) <= 16
    assert len(code.meaning) <= 64
    if code.scheme_designator == codes.PRIVATE_SCHEME:
        assert codes.PRIVATE_MEANINGS[code.value] == code.meaning
    elif code not in (codes.MILLILITER, codes.CT_CHEST, codes.MODALITY_CT):
        scheme = getattr(standard, code.scheme_designator)
        assert code in [getattr(scheme, keyword) for keyword in scheme.dir() if keyword.isidentifier()]


def test_every_finding_class_has_its_codes():
    for table in (codes.FINDINGS, codes.PROBABILITIES, codes.SPREADS):
        assert set(table) == set(FindingClass)
        assert len(set(table.values())) == len(FindingClass)
    assert np.all([name in codes.PRIVATE_MEANINGS for name in ("NOTICE", "STATEMENT")])


@pytest.mark.parametrize(("value", "meaning"), codes.PRIVATE_MEANINGS.items())
def test_every_private_code_is_documented(value, meaning):
    page = Path(__file__).parents[2] / "docs" / "reference" / "dicom-results.md"
    assert f"| `{value}` | {meaning} |" in page.read_text(encoding="utf-8")


def test_names_of_objects_are_plain_uids(awkward_ct, tmp_path):
    name = write_report([WHOLE], awkward_ct("plain").source, MAKER, tmp_path / "sr.dcm")
    assert isinstance(name, ObjectName)
    for uid in (name.sop_instance_uid, name.series_uid):
        assert len(uid) <= 64
        assert set(uid) <= set("0123456789.")
