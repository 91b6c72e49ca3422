# SPDX-License-Identifier: Apache-2.0
"""Segmentations lie on the source's own slices, and say nothing that the source does not."""

from copy import deepcopy
from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from ucadi.errors import DicomError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.planes import mask_on_plane
from ucadi.imaging.volume import Volume
from ucadi.results import codes
from ucadi.results.identity import Maker
from ucadi.results.seg import Segment, read_segmentation, write_segmentation

MAKER = Maker("0123456789ab", "toy model")
RADIUS_MM = 75.0

EVEN = ("plain", "turned-180", "feet-first", "jitter", "enhanced-shuffled")
"""Series whose slices lie on the volume's own lattice."""

UNEVEN = ("one-slice-missing", "spacing-changes", "tilt-15", "tilt-and-missing")
"""Series that are repaired on the way to a volume."""


def ball(grid):
    """Marks a ball around the volume's middle."""
    z, y, x = (np.arange(n, dtype=float) for n in grid.shape)
    index = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)
    middle = grid.to_world((np.array(grid.shape) - 1) / 2 + 0.2)
    return np.linalg.norm(grid.to_world(index) - middle, axis=-1) < RADIUS_MM


def lesion(mask, **changes):
    segment = Segment(
        "Lesions", mask, codes.MORPHOLOGY, codes.LESION, (255, 166, 48), "Network", site=codes.LUNG
    )
    return replace(segment, **changes)


def lung(mask):
    return Segment("Right lung", mask, codes.ANATOMY, codes.LUNG, (143, 144, 255), "Finder", side=codes.RIGHT)


def write(loaded, path, *segments):
    return write_segmentation(segments, loaded.volume.grid, loaded.source, MAKER, path)


@pytest.mark.parametrize("case", EVEN)
def test_masks_come_back_voxel_for_voxel_and_millilitre_for_millilitre(
    awkward_ct, dicom_complaints, tmp_path, case
):
    loaded = awkward_ct(case)
    grid, path = loaded.volume.grid, tmp_path / "seg.dcm"
    masks = [ball(grid), loaded.lungs.right]
    write(loaded, path, lesion(masks[0]), lung(masks[1]))
    assert dicom_complaints(path) == []
    for segment, mask in zip(read_segmentation(path), masks, strict=True):
        volume = segment.volume()
        assert volume.grid.is_close(grid, tolerance_mm=0.1)
        assert np.array_equal(volume.voxels, mask)
        assert segment.ml == pytest.approx(mask.sum() * grid.voxel_ml, rel=2e-3 if case == "jitter" else 1e-6)


def test_another_librarys_reader_finds_the_same_voxels_at_the_same_places(awkward_ct, tmp_path):
    loaded, path = awkward_ct("turned-180"), tmp_path / "seg.dcm"
    masks = [ball(loaded.volume.grid), loaded.lungs.right]
    write(loaded, path, lesion(masks[0]), lung(masks[1]))
    read = hd.seg.segread(path).get_volume(combine_segments=False)
    for number, mask in enumerate(masks):
        found = to_canonical(Volume(read.array[..., number] > 0, Grid(read.spatial_shape, read.affine)))
        assert found.grid.is_close(loaded.volume.grid)
        assert np.array_equal(found.voxels, mask)


@pytest.mark.parametrize("case", UNEVEN)
def test_masks_of_a_repaired_volume_lie_on_the_slices_as_they_were(
    awkward_ct, dicom_complaints, tmp_path, case
):
    loaded = awkward_ct(case)
    grid, path = loaded.volume.grid, tmp_path / "seg.dcm"
    mask = ball(grid)
    write(loaded, path, lesion(mask))
    assert dicom_complaints(path) == []
    (segment,) = read_segmentation(path)
    assert len(segment.planes) == len(loaded.source.instances)
    for plane, instance, frame in zip(segment.planes, loaded.source.instances, segment.frames, strict=True):
        assert np.allclose(plane.position_mm, instance.plane.position_mm, rtol=0, atol=1e-9)
        assert np.array_equal(frame, mask_on_plane(mask, grid, instance.plane, loaded.source.size))
    assert segment.ml == pytest.approx(mask.sum() * grid.voxel_ml, rel=0.01)
    assert segment.ml == pytest.approx(4 / 3 * np.pi * RADIUS_MM**3 / 1000, rel=0.01)


@pytest.mark.parametrize("case", ["plain", "feet-first", "tilt-15"])
def test_every_frame_names_its_source_image_and_lies_exactly_on_it(awkward_ct, tmp_path, case):
    loaded = awkward_ct(case)
    path = tmp_path / "seg.dcm"
    write(loaded, path, lesion(ball(loaded.volume.grid)), lung(loaded.lungs.right))
    written, header = dcmread(path), loaded.source.header
    by_uid = {instance.sop_instance_uid: instance for instance in loaded.source.instances}
    assert written.NumberOfFrames == 2 * len(by_uid)
    assert written.FrameOfReferenceUID == header.FrameOfReferenceUID
    assert (written.Rows, written.Columns) == loaded.source.size
    shared = written.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == header.ImageOrientationPatient
    assert shared.PixelMeasuresSequence[0].PixelSpacing == header.PixelSpacing
    named = []
    for frame in written.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        named.append(reference.ReferencedSOPInstanceUID)
        assert reference.ReferencedSOPClassUID == header.SOPClassUID
        assert "ReferencedFrameNumber" not in reference
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.array_equal(np.array(position, float), by_uid[named[-1]].plane.position_mm)
    assert sorted(named) == sorted([*by_uid, *by_uid])
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == header.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(by_uid)


def test_frames_of_a_multi_frame_source_are_named_by_number(awkward_ct, tmp_path):
    loaded = awkward_ct("enhanced-shuffled")
    path = tmp_path / "seg.dcm"
    write(loaded, path, lesion(ball(loaded.volume.grid)))
    written = dcmread(path)
    by_number = {instance.frame: instance for instance in loaded.source.instances}
    assert len(written.SourceImageSequence) == 1
    for frame in written.PerFrameFunctionalGroupsSequence:
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        instance = by_number.pop(reference.ReferencedFrameNumber)
        assert reference.ReferencedSOPInstanceUID == instance.sop_instance_uid
        assert reference.ReferencedSOPClassUID == loaded.source.header.SOPClassUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(position, float), instance.plane.position_mm, rtol=0, atol=1e-9)
    assert by_number == {}


def test_empty_masks_are_written_with_all_their_frames(awkward_ct, dicom_complaints, tmp_path):
    loaded = awkward_ct("plain")
    path = tmp_path / "seg.dcm"
    nothing = np.zeros(loaded.volume.grid.shape, np.bool_)
    write(loaded, path, lesion(nothing), lung(loaded.lungs.right))
    assert dicom_complaints(path) == []
    empty, right = read_segmentation(path)
    assert (empty.ml, empty.frames.shape) == (0.0, loaded.volume.grid.shape)
    assert np.array_equal(right.volume().voxels, loaded.lungs.right)
    write(loaded, path, lesion(nothing))
    assert dicom_complaints(path) == []
    assert not read_segmentation(path)[0].volume().voxels.any()


def test_frames_that_another_writer_left_out_come_back_empty(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    path = tmp_path / "seg.dcm"
    mask = ball(loaded.volume.grid)
    write(loaded, path, lesion(mask))
    written = dcmread(path)
    pixels = written.pixel_array
    kept = np.flatnonzero(pixels.any(axis=(1, 2)))
    kept = kept[kept != kept[len(kept) // 2]]  # and one in the middle
    written.PerFrameFunctionalGroupsSequence = [written.PerFrameFunctionalGroupsSequence[k] for k in kept]
    written.NumberOfFrames = len(kept)
    written.PixelData = np.packbits(pixels[kept].ravel(), bitorder="little").tobytes()
    written.save_as(path)
    volume = read_segmentation(path)[0].volume()
    rows = np.flatnonzero(mask.any(axis=(1, 2)))
    assert volume.grid.shape[0] == len(rows)
    missing = np.flatnonzero(~volume.voxels.any(axis=(1, 2)))
    assert len(missing) == 1
    assert np.array_equal(np.delete(volume.voxels, missing, 0), np.delete(mask[rows], missing, 0))


def test_a_segment_says_what_it_is_who_made_it_and_that_it_is_research(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    path = tmp_path / "seg.dcm"
    write(loaded, path, lesion(ball(loaded.volume.grid), note="More."), lung(loaded.lungs.right))
    written = dcmread(path)
    first, second = written.SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert first.AnatomicRegionSequence[0].CodeValue == "39607008"
    assert first.SegmentDescription == "Research use only. More."
    algorithm = first.SegmentationAlgorithmIdentificationSequence[0]
    assert "0123456789ab" in algorithm.AlgorithmVersion
    side = second.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeMeaning == "Right"
    assert (written.ContentQualification, written.SegmentsOverlap) == ("RESEARCH", "YES")
    assert "research use only" in written.SeriesDescription
    assert written.DeviceSerialNumber == "0123456789ab"


def test_a_result_repeats_the_sources_patient_and_study_and_no_private_element(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    header = deepcopy(loaded.source.header)
    header.SpecificCharacterSet = "GB18030"
    with config.disable_value_validation():
        header.PatientName = "Zhang^San=张^三="
        header.PatientID, header.PatientSex, header.PatientAge = "小 7", "X?", "061Y"
        header.StudyDate, header.AccessionNumber = "2020.01.31", "A-1"
    header.add_new(0x00091001, "LO", "secret private")
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = "113100", "DCM", "Basic"
    coded.add_new(0x00111001, "LO", "secret nested")
    header.DeidentificationMethodCodeSequence = [coded]
    path = tmp_path / "seg.dcm"
    source = replace(loaded.source, header=header)
    write_segmentation([lesion(ball(loaded.volume.grid))], loaded.volume.grid, source, MAKER, path)
    written = dcmread(path)
    assert str(written.PatientName) == "Zhang^San=张^三"
    for keyword in (
        "PatientID",
        "PatientSex",
        "PatientAge",
        "StudyDate",
        "AccessionNumber",
        "StudyInstanceUID",
    ):
        assert written[keyword].value == header[keyword].value
    assert written.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert b"secret" not in path.read_bytes()
    assert not [element for element in written.iterall() if element.tag.is_private]


def test_the_same_result_has_the_same_uid_and_any_other_has_another(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    mask = ball(loaded.volume.grid)
    changed = mask.copy()
    changed[0, 0, 0] = True
    names = [write(loaded, tmp_path / "a.dcm", lesion(m)) for m in (mask, mask, changed)]
    other = write_segmentation(
        [lesion(mask)], loaded.volume.grid, loaded.source, Maker("ba9876543210", "toy"), tmp_path / "b.dcm"
    )
    assert names[0] == names[1]
    assert len({names[0].sop_instance_uid, names[2].sop_instance_uid, other.sop_instance_uid}) == 3
    assert names[0].series_uid == names[2].series_uid != other.series_uid
    assert dcmread(tmp_path / "b.dcm").SOPInstanceUID == other.sop_instance_uid


@pytest.mark.parametrize(("stated", "written"), [("2.5", 2.5), ("0", 5.0), ("thick", 5.0), (None, 5.0)])
def test_a_missing_or_senseless_thickness_is_replaced_by_the_slices_distance(
    awkward_ct, tmp_path, stated, written
):
    loaded, path = awkward_ct("plain"), tmp_path / "seg.dcm"
    header = deepcopy(loaded.source.header)
    del header.SliceThickness
    if stated:
        with config.disable_value_validation():
            value = stated.encode()
            header[0x00180050] = RawDataElement(Tag(0x00180050), "DS", len(value), value, 0, False, True)
    source = replace(loaded.source, header=header)
    write_segmentation([lesion(ball(loaded.volume.grid))], loaded.volume.grid, source, MAKER, path)
    measures = dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == written
    assert measures.SpacingBetweenSlices == pytest.approx(5.0)


@pytest.mark.parametrize("fault", ["study", "twins"])
def test_a_source_that_cannot_be_referred_to_is_refused(awkward_ct, tmp_path, fault):
    loaded = awkward_ct("plain")
    header = deepcopy(loaded.source.header)
    instances = loaded.source.instances
    if fault == "study":
        del header.StudyInstanceUID
    else:
        instances = tuple(
            replace(instance, sop_instance_uid=generate_uid(entropy_srcs=["one"])) for instance in instances
        )
    source = replace(loaded.source, header=header, instances=instances)
    with pytest.raises(DicomError) as caught:
        write_segmentation(
            [lesion(ball(loaded.volume.grid))], loaded.volume.grid, source, MAKER, tmp_path / "s"
        )
    assert caught.value.code == "dicom-no-identity"
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_segmentation(awkward_ct, dicom_folder, tmp_path):
    with pytest.raises(DicomError, match="no DICOM segmentation"):
        read_segmentation(next(dicom_folder.iterdir()))
    (tmp_path / "text").write_text("no")
    with pytest.raises(DicomError) as caught:
        read_segmentation(tmp_path / "text")
    assert caught.value.code == "dicom-undecodable"
    loaded, path = awkward_ct("plain"), tmp_path / "seg.dcm"
    write(loaded, path, lesion(ball(loaded.volume.grid)))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DicomError) as caught:
        read_segmentation(path)
    assert caught.value.code == "dicom-undecodable"


def test_planes_at_uneven_distances_are_no_volume(awkward_ct, tmp_path):
    loaded = awkward_ct("spacing-changes")
    write(loaded, tmp_path / "seg.dcm", lesion(ball(loaded.volume.grid)))
    with pytest.raises(DicomError, match="uneven distances"):
        read_segmentation(tmp_path / "seg.dcm")[0].volume()


def test_masks_of_another_shape_or_none_are_a_wrong_call(awkward_ct, tmp_path):
    loaded = awkward_ct("plain")
    for segments in ([], [lesion(np.zeros((3, 4, 5), np.bool_))]):
        with pytest.raises(ValueError, match="grid's shape"):
            write(loaded, tmp_path / "seg.dcm", *segments)
