# SPDX-License-Identifier: Apache-2.0
"""Masks as a DICOM segmentation on the source's own slices, and back.

Every source image has one frame for each segment, empty or not: readers that stack what they find then get
the scan's own number of slices.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage
from pydicom.valuerep import DS

from ucadi import __version__
from ucadi.errors import DicomError
from ucadi.imaging.grid import Grid
from ucadi.imaging.orientation import to_canonical
from ucadi.imaging.planes import ON_VOXEL_MM, ON_VOXEL_SHARE, mask_on_plane
from ucadi.imaging.volume import Volume
from ucadi.io.checkpoint import write_bytes
from ucadi.io.files import READ_ERRORS
from ucadi.io.headers import Plane
from ucadi.io.source import SourceSeries
from ucadi.io.streams import MAX_VOXELS
from ucadi.results.codes import PRIVATE_SCHEME
from ucadi.results.identity import (
    MANUFACTURER,
    SHORT_NOTICE,
    Maker,
    ObjectName,
    build_result,
    common_arguments,
    encode_result,
    name_object,
    private_scheme,
)
from ucadi.types import PathLikeStr

__all__ = ["ReadSegment", "Segment", "read_segmentation", "write_segmentation"]

_SERIES_NUMBER = 9101
_SAME_PLACE_MM = 0.02


@dataclass(frozen=True, eq=False)
class Segment:
    """One mask and what it means.

    Attributes:
        name: Label for people, up to 64 characters.
        mask: Marked voxels in canonical axes.
        category: What kind of thing is marked (CID 7150).
        kind: What is marked.
        color: sRGB from 0 to 255.
        algorithm: What made the mask, for people.
        family: What kind of algorithm that is (CID 7162).
        side: Right or left, for paired organs.
        site: In which organ, for lesions.
        note: Added to the description, for example a threshold.
    """

    name: str
    mask: Bool[np.ndarray, "z y x"]
    category: Code
    kind: Code
    color: tuple[int, int, int]
    algorithm: str
    family: Code = codes.DCM.ArtificialIntelligence
    side: Code | None = None
    site: Code | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class ReadSegment:
    """One segment of a segmentation file.

    Attributes:
        number: Counted from 1.
        name: Label.
        kind: What is marked.
        description: Free text; empty when there is none.
        frames: Marked pixels on each plane.
        planes: Where the frames lie, from the feet to the head; the same for all segments of a file.
    """

    number: int
    name: str
    kind: Code
    description: str
    frames: Bool[np.ndarray, "planes rows columns"]
    planes: tuple[Plane, ...]

    @property
    def ml(self) -> float:
        """Volume in mL: each plane stands for the space half-way to its neighbors; 0 for a lone plane."""
        heights_mm = np.array([plane.height_mm for plane in self.planes])
        thickness_mm = np.gradient(heights_mm) if len(heights_mm) > 1 else np.zeros(1)
        pixel_mm2 = float(np.prod(self.planes[0].pixel_mm))
        pixels = np.count_nonzero(self.frames, axis=(1, 2))
        return float(pixels @ thickness_mm) * pixel_mm2 / 1000.0

    def volume(self) -> Volume:
        """Return the mask as a volume in canonical axes; it is empty where the file has no plane.

        Raises:
            DicomError: ``dicom-uneven-spacing`` when the planes do not lie on an even lattice.
        """
        first = self.planes[0]
        offsets_mm = np.array([plane.position_mm - first.position_mm for plane in self.planes])
        step_mm, place = _lattice(offsets_mm, first.normal)
        tolerance_mm = max(ON_VOXEL_MM, ON_VOXEL_SHARE * float(np.linalg.norm(step_mm)))
        if np.linalg.norm(offsets_mm - place[:, None] * step_mm, axis=1).max() > tolerance_mm:
            raise DicomError("dicom-uneven-spacing", "The segmentation's planes lie at uneven distances.")
        voxels = np.zeros((int(place[-1]) + 1, *self.frames.shape[1:]), np.bool_)
        voxels[place] = self.frames
        affine = np.eye(4)
        affine[:3, 0] = step_mm
        affine[:3, 1] = first.column * first.pixel_mm[0]
        affine[:3, 2] = first.row * first.pixel_mm[1]
        affine[:3, 3] = first.position_mm
        return to_canonical(Volume(voxels, Grid(voxels.shape, affine)))


def write_segmentation(
    segments: Sequence[Segment],
    grid: Grid,
    source: SourceSeries,
    maker: Maker,
    path: PathLikeStr,
    *,
    title: str = "masks",
) -> ObjectName:
    """Write masks as one DICOM segmentation of type BINARY.

    Args:
        segments: At least one; they may be empty and may overlap. Their numbers count from 1 in this order.
        grid: Where the masks' voxels lie.
        source: The images that the volume was read from; frames lie exactly on them.
        maker: Which model made the masks.
        path: File to write.
        title: Word for the series' description; each title is a series of its own.

    Returns:
        What a report needs to refer to the file.

    Raises:
        DicomError: ``dicom-no-identity`` when the source lacks the UIDs that a result must name.
        ValueError: If there is no segment, or a mask has another shape than the grid.
    """
    if not segments or any(segment.mask.shape != grid.shape for segment in segments):
        raise ValueError("a segmentation needs masks of the grid's shape")
    content = [_digest_of(segment) for segment in segments]
    name = name_object(
        source, maker, SegmentationStorage, f"SEG {title}", [grid.affine_lps.tobytes(), *content]
    )
    result = build_result(source, lambda nameless: _build(segments, source, maker, name, title, nameless))
    result.PixelData = _pack(_frames_in_order(result, segments, grid, source))
    result.SegmentsOverlap = "YES" if _overlap(segments) else "NO"
    _name_sources(result, source)
    write_bytes(Path(path), encode_result(result))
    return name


def read_segmentation(path: PathLikeStr) -> tuple[ReadSegment, ...]:
    """Read a BINARY segmentation, of ucadi or of any other writer that states planes.

    Frames that a writer left out because they are empty come back as empty.

    Raises:
        DicomError: ``dicom-not-result`` when the file is no such segmentation, ``dicom-undecodable`` when it
            is damaged.
    """
    try:
        dataset = dcmread(path)
        if dataset.get("SOPClassUID") != SegmentationStorage or dataset.SegmentationType != "BINARY":
            raise DicomError("dicom-not-result", "The file is no DICOM segmentation of type BINARY.")
        shape = (int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))
        if int(np.prod(shape, dtype=np.int64)) > 8 * MAX_VOXELS or min(shape) < 1:
            raise DicomError("dicom-undecodable", f"A segmentation of {shape} pixels is not plausible.")
        pixels = np.asarray(dataset.pixel_array, dtype=np.bool_).reshape(shape)
        numbers, planes = _frame_places(dataset)
        return tuple(
            _read_segment(item, pixels, numbers, planes, int(item.SegmentNumber))
            for item in dataset.SegmentSequence
        )
    except READ_ERRORS as error:
        raise DicomError(
            "dicom-undecodable", f"The segmentation cannot be decoded ({type(error).__name__})."
        ) from error


# -- writing ------------------------------------------------------------------------------------------------


def _digest_of(segment: Segment) -> bytes:
    """Return all that makes a segment, as bytes."""
    words = [segment.name, segment.note, segment.algorithm, str(segment.kind), str(segment.mask.shape)]
    return "\0".join(words).encode() + np.packbits(segment.mask).tobytes()


def _overlap(segments: Sequence[Segment]) -> bool:
    """Tell whether any voxel is marked twice."""
    seen = np.zeros(segments[0].mask.shape, np.bool_)
    for segment in segments:
        if np.any(seen & segment.mask):
            return True
        seen |= segment.mask
    return False


def _build(
    segments: Sequence[Segment],
    source: SourceSeries,
    maker: Maker,
    name: ObjectName,
    title: str,
    nameless: Dataset,
) -> hd.seg.Segmentation:
    """Build the object with all its frames empty.

    The pixels come later, packed plane by plane: given them here, highdicom would hold all masks of all
    planes at eight bytes for a pixel.
    """
    rows, columns = source.size
    has_private = any(segment.kind.scheme_designator == PRIVATE_SCHEME for segment in segments)
    empty = np.broadcast_to(np.uint8(0), (len(source.instances), rows, columns))
    return hd.seg.Segmentation(
        source_images=_stand_ins(source, nameless),
        pixel_array=empty,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(segment, number, source, maker) for number, segment in enumerate(segments, start=1)
        ],
        series_instance_uid=name.series_uid,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=name.sop_instance_uid,
        instance_number=1,
        content_label="UCADI",
        content_description=SHORT_NOTICE,
        series_description=f"ucadi {title}: {SHORT_NOTICE.lower()}",
        omit_empty_frames=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=[private_scheme()] if has_private else None,
        **common_arguments(maker),
    )


def _describe(segment: Segment, number: int, source: SourceSeries, maker: Maker) -> hd.seg.SegmentDescription:
    """Describe one segment."""
    version = f"ucadi {__version__}, model {maker.model_id}"
    item = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:64],
        segmented_property_category=segment.category,
        segmented_property_type=segment.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=segment.algorithm, family=segment.family, version=version, source=MANUFACTURER
        ),
        anatomic_regions=[segment.site] if segment.site else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.color),
    )
    item.SegmentDescription = " ".join(filter(None, (f"{SHORT_NOTICE}.", segment.note)))
    if segment.side:
        side = hd.sr.CodedConcept.from_code(segment.side)
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return item


def _stand_ins(source: SourceSeries, nameless: Dataset) -> list[Dataset]:
    """Return one plain CT header for each source image or frame, numbered by its UID ``1.n``.

    highdicom takes either single images or one multi-frame object with all its frames. With stand-ins, both
    kinds of source go the same way; the references are set right afterwards.
    """
    first = source.instances[0].plane
    stated = source.header.get("ImageOrientationPatient")
    orientation = [DS(v, auto_format=True) for v in stated or (*first.row, *first.column)]
    thickness = DS(_thickness_mm(source), auto_format=True)
    images = []
    for index, instance in enumerate(source.instances, start=1):
        image = Dataset()
        image.update(nameless)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"1.{index}"
        image.SeriesInstanceUID, image.Modality = source.header.SeriesInstanceUID, "CT"
        image.Rows, image.Columns = source.size
        image.ImageOrientationPatient = orientation
        image.ImagePositionPatient = [DS(v, auto_format=True) for v in instance.plane.position_mm]
        image.PixelSpacing = [DS(v, auto_format=True) for v in first.pixel_mm]
        image.SliceThickness = thickness
        images.append(image)
    return images


def _thickness_mm(source: SourceSeries) -> float:
    """Return the slices' stated thickness; where it is missing or no length, their usual distance."""
    with suppress(TypeError, ValueError):
        stated = float(source.header.get("SliceThickness"))
        if 0 < stated < np.inf:
            return stated
    heights = [instance.plane.height_mm for instance in source.instances]
    return float(np.median(np.diff(heights))) if len(heights) > 1 else 1.0


def _frames_in_order(
    result: Dataset, segments: Sequence[Segment], grid: Grid, source: SourceSeries
) -> Iterator[Bool[np.ndarray, "rows columns"]]:
    """Yield the masks on the source's planes, in the order of the object's frames."""
    boxes = [_box_around(segment.mask) for segment in segments]
    shared = result.SharedFunctionalGroupsSequence[0]
    for item in result.PerFrameFunctionalGroupsSequence:
        groups = item if "SegmentIdentificationSequence" in item else shared
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        box, plane = boxes[number - 1], source.instances[_index_of(item)].plane
        if box is None:
            yield np.zeros(source.size, np.bool_)
        else:
            yield mask_on_plane(segments[number - 1].mask[box], grid.crop(box), plane, source.size)


def _box_around(mask: Bool[np.ndarray, "z y x"]) -> tuple[slice, slice, slice] | None:
    """Return the box around a mask and one voxel more, so that its edge is not held; None if empty."""
    sides = []
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        marked = np.flatnonzero(mask.any(axis=others))
        if not marked.size:
            return None
        sides.append(slice(max(0, int(marked[0]) - 1), min(mask.shape[axis], int(marked[-1]) + 2)))
    return sides[0], sides[1], sides[2]


def _index_of(frame: Dataset) -> int:
    """Return which source image a frame lies on, from its stand-in's UID."""
    reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return int(reference.ReferencedSOPInstanceUID.rpartition(".")[2]) - 1


def _pack(frames: Iterator[Bool[np.ndarray, "rows columns"]]) -> bytes:
    """Return one bit for each pixel, frame after frame without gaps, as DICOM wants it."""
    packed, rest = [], np.zeros(0, np.bool_)
    for frame in frames:
        bits = np.concatenate((rest, frame.ravel()))
        whole = bits.size // 8 * 8
        packed.append(_packed(bits[:whole]).tobytes())
        rest = bits[whole:]
    data = b"".join([*packed, _packed(rest).tobytes()])
    return data + b"\0" * (len(data) % 2)


def _packed(bits: Bool[np.ndarray, " pixels"]) -> UInt8[np.ndarray, " bytes"]:
    """Return bits as bytes, the first pixel in the lowest bit."""
    return np.packbits(bits, bitorder="little")


def _name_sources(result: Dataset, source: SourceSeries) -> None:
    """Put the source's own images in the place of the stand-ins."""
    sop_class = source.header.SOPClassUID
    frames = result.PerFrameFunctionalGroupsSequence
    # All places first: the frames of one place share the reference that is changed here.
    for item, index in zip(frames, [_index_of(item) for item in frames], strict=True):
        instance = source.instances[index]
        reference = item.DerivationImageSequence[0].SourceImageSequence[0]
        reference.ReferencedSOPClassUID = sop_class
        reference.ReferencedSOPInstanceUID = instance.sop_instance_uid
        if instance.frame is not None:
            reference.ReferencedFrameNumber = instance.frame
    images = []
    for uid in dict.fromkeys(instance.sop_instance_uid for instance in source.instances):
        image = Dataset()
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class, uid
        images.append(image)
    result.SourceImageSequence = images
    result.ReferencedSeriesSequence[0].ReferencedInstanceSequence = images


# -- reading ------------------------------------------------------------------------------------------------


def _frame_places(dataset: Dataset) -> tuple[list[int], list[Plane]]:
    """Return each frame's segment number and plane."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    numbers, planes = [], []
    for item in dataset.PerFrameFunctionalGroupsSequence:
        identification, position, orientation, measures = (
            (item if keyword in item else shared)[keyword][0]
            for keyword in (
                "SegmentIdentificationSequence",
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
            )
        )
        numbers.append(int(identification.ReferencedSegmentNumber))
        cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        row, column = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
        spacing = tuple(float(v) for v in measures.PixelSpacing)
        planes.append(
            Plane(np.array(position.ImagePositionPatient, np.float64), row, column, (spacing[0], spacing[1]))
        )
    return numbers, planes


def _lattice(
    offsets_mm: Float[np.ndarray, "planes 3"], normal: Float[np.ndarray, "3"]
) -> tuple[Float[np.ndarray, "3"], Integer[np.ndarray, " planes"]]:
    """Return the step from plane to plane, which may lean, and each plane's number of steps."""
    if len(offsets_mm) < 2:
        return normal, np.zeros(1, np.intp)
    gaps_mm = np.diff(offsets_mm @ normal)
    steps = np.maximum(1, np.rint(gaps_mm / np.median(gaps_mm)).astype(np.intp))
    place = np.concatenate(([0], np.cumsum(steps)))
    return offsets_mm[-1] / place[-1], place


def _read_segment(
    item: Dataset,
    pixels: Bool[np.ndarray, "all rows columns"],
    numbers: Sequence[int],
    planes: Sequence[Plane],
    number: int,
) -> ReadSegment:
    """Gather one segment's frames on all planes of the file."""
    heights = np.array([plane.height_mm for plane in planes])
    order = np.argsort(heights, kind="stable")
    is_new = np.diff(heights[order], prepend=-np.inf) > _SAME_PLACE_MM
    place = np.empty(len(planes), np.intp)
    place[order] = np.cumsum(is_new) - 1
    frames = np.zeros((int(is_new.sum()), *pixels.shape[1:]), np.bool_)
    for frame, frame_number in enumerate(numbers):
        if frame_number == number:
            frames[place[frame]] |= pixels[frame]
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    return ReadSegment(
        number=number,
        name=str(item.get("SegmentLabel", "")),
        kind=Code(kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning),
        description=str(item.get("SegmentDescription", "")),
        frames=frames,
        planes=tuple(planes[k] for k in order[is_new]),
    )
