# SPDX-License-Identifier: Apache-2.0
"""Measurements and probabilities as a structured report (TID 1500, Comprehensive 3D SR), and back.

A report states the model's word, not a reader's: it is preliminary and unverified. When a reader signs, that
reader's system writes a new version.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
from highdicom.sr import value_types as items
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, generate_uid

from ucadi import __version__
from ucadi.errors import DicomError
from ucadi.io.checkpoint import write_bytes
from ucadi.io.files import READ_ERRORS
from ucadi.io.source import SourceSeries
from ucadi.results.codes import CT_CHEST, MODALITY_CT, SOURCE
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

__all__ = ["Finding", "Quantity", "read_report", "write_report"]

_SERIES_NUMBER = 9102
_Group = (
    hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations | hd.sr.MeasurementsAndQualitativeEvaluations
)
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_CONTEXT = hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT


@dataclass(frozen=True)
class Quantity:
    """One number.

    Attributes:
        name: What was measured.
        value: The number, as in the record.
        unit: UCUM.
    """

    name: Code
    value: int | float
    unit: Code


@dataclass(frozen=True)
class Finding:
    """One group of the report.

    Attributes:
        key: Name by which people and `read_report` find the group; unique in a report.
        kind: What it is about.
        quantities: Numbers.
        answers: Coded questions with their coded answers.
        texts: Coded questions with answers in words.
        segment: Number in the segmentation that the numbers were measured on; None for the scan as a whole.
        category: Category of what the segment shows.
        side: Right or left, for paired organs.
        site: In which organ.
    """

    key: str
    kind: Code
    quantities: tuple[Quantity, ...] = ()
    answers: tuple[tuple[Code, Code], ...] = ()
    texts: tuple[tuple[Code, str], ...] = ()
    segment: int | None = None
    category: Code | None = None
    side: Code | None = None
    site: Code | None = None


@dataclass(frozen=True)
class ReadFinding:
    """One group of a report as read.

    Attributes:
        numbers: By code value of what was measured.
        answers: Code value of the answer by code value of the question.
        texts: Answers in words by code value of the question.
        segment: The segmentation's SOPInstanceUID and the segment's number; None without.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    segment: tuple[str, int] | None = None


def write_report(
    findings: Sequence[Finding],
    source: SourceSeries,
    maker: Maker,
    path: PathLikeStr,
    segmentation: ObjectName | None = None,
) -> ObjectName:
    """Write a measurement report.

    Args:
        findings: At least one.
        source: The images that were read; the report lists all of them.
        maker: Which model spoke.
        path: File to write.
        segmentation: The object whose segments the findings name.

    Raises:
        DicomError: ``dicom-no-identity`` when the source lacks the UIDs that a result must name.
        ValueError: If there is no finding, or one names a segment without a segmentation.
    """
    if not findings or (segmentation is None and any(finding.segment for finding in findings)):
        raise ValueError("a report needs findings, and a segmentation for findings on a segment")
    content = [repr(finding).encode() for finding in findings]
    if segmentation:
        content.append(segmentation.sop_instance_uid.encode())
    name = name_object(source, maker, Comprehensive3DSRStorage, "SR", content)

    def build(nameless: Dataset) -> hd.sr.Comprehensive3DSR:
        groups = [_group(finding, source, maker, name, segmentation) for finding in findings]
        report = hd.sr.MeasurementReport(
            observation_context=_context(maker),
            procedure_reported=CT_CHEST,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        report[0].ContentSequence.insert(-1, _image_library(source, nameless))
        return hd.sr.Comprehensive3DSR(
            evidence=_evidence(source, segmentation, nameless),
            content=report,
            series_instance_uid=name.series_uid,
            series_number=_SERIES_NUMBER,
            sop_instance_uid=name.sop_instance_uid,
            instance_number=1,
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"ucadi measurements: {SHORT_NOTICE.lower()}",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            coding_schemes=[private_scheme()],
            **common_arguments(maker),
        )

    write_bytes(Path(path), encode_result(build_result(source, build)))
    return name


def read_report(path: PathLikeStr) -> dict[str, ReadFinding]:
    """Read the measurement groups of a TID 1500 report, by their tracking identifier.

    Raises:
        DicomError: ``dicom-not-result`` when the file is no such report, ``dicom-undecodable`` when it is
            damaged.
    """
    try:
        dataset = dcmread(path)
        template = dataset.get("ContentTemplateSequence") or [Dataset()]
        if dataset.get("Modality") != "SR" or template[0].get("TemplateIdentifier") != "1500":
            raise DicomError("dicom-not-result", "The file is no measurement report (TID 1500).")
        measurements = _child(dataset, codes.DCM.ImagingMeasurements)
        groups = [item for item in measurements.ContentSequence if _is(item, codes.DCM.MeasurementGroup)]
        return {str(_child(group, codes.DCM.TrackingIdentifier).TextValue): _read(group) for group in groups}
    except READ_ERRORS as error:
        raise DicomError(
            "dicom-undecodable", f"The report cannot be decoded ({type(error).__name__})."
        ) from error


# -- writing ------------------------------------------------------------------------------------------------


def _context(maker: Maker) -> hd.sr.ObservationContext:
    """Say that a program observed, not a person."""
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[MANUFACTURER, "device", maker.model_id, __version__]),
        name=f"{MANUFACTURER} {__version__}",
        manufacturer_name=MANUFACTURER,
        model_name=maker.model_name,
        serial_number=maker.model_id,
    )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=attributes
        )
    )


def _group(
    finding: Finding, source: SourceSeries, maker: Maker, name: ObjectName, segmentation: ObjectName | None
) -> _Group:
    """Build one measurement group: on a segment (TID 1411), or on the scan as a whole (TID 1501)."""
    tracking_uid = generate_uid(entropy_srcs=[name.sop_instance_uid, finding.key])
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=tracking_uid, identifier=finding.key),
        "finding_type": finding.kind,
        "finding_category": finding.category,
        "algorithm_id": hd.sr.AlgorithmIdentification(
            name=maker.model_name, version=f"{MANUFACTURER} {__version__}, model {maker.model_id}"
        ),
        "measurements": [
            hd.sr.Measurement(name=quantity.name, value=quantity.value, unit=quantity.unit)
            for quantity in finding.quantities
        ],
        "qualitative_evaluations": [
            hd.sr.QualitativeEvaluation(name=question, value=answer) for question, answer in finding.answers
        ],
    }
    if finding.site:
        common["finding_sites"] = [hd.sr.FindingSite(finding.site, laterality=finding.side)]
    group: _Group
    if segmentation and finding.segment:
        group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=segmentation.sop_class_uid,
                sop_instance_uid=segmentation.sop_instance_uid,
                segment_number=finding.segment,
                source_series=hd.sr.SourceSeriesForSegmentation(source.header.SeriesInstanceUID),
            ),
            **common,
        )
    else:
        group = hd.sr.MeasurementsAndQualitativeEvaluations(**common)
    for question, words in finding.texts:
        group[0].ContentSequence.append(items.TextContentItem(question, words, _CONTAINS))
    return group


def _image_library(source: SourceSeries, nameless: Dataset) -> items.ContainerContentItem:
    """List the source images (TID 1600), without repeating each one's geometry."""
    library = items.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=_CONTAINS)
    group = items.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=_CONTAINS)
    listed = hd.sr.ContentSequence()
    listed.append(items.CodeContentItem(codes.DCM.Modality, MODALITY_CT, _CONTEXT))
    frame_uid = nameless.FrameOfReferenceUID
    listed.append(items.UIDRefContentItem(codes.DCM.FrameOfReferenceUID, frame_uid, _CONTEXT))
    for uid, numbers in _frames_by_instance(source).items():
        listed.append(
            items.ImageContentItem(
                SOURCE,
                source.header.SOPClassUID,
                uid,
                referenced_frame_numbers=numbers or None,
                relationship_type=_CONTAINS,
            )
        )
    group.ContentSequence = listed
    library.ContentSequence = hd.sr.ContentSequence([group])
    return library


def _frames_by_instance(source: SourceSeries) -> dict[str, list[int]]:
    """Return the frame numbers used of each source object; none for objects with one image."""
    found: dict[str, list[int]] = {}
    for instance in source.instances:
        numbers = found.setdefault(instance.sop_instance_uid, [])
        if instance.frame is not None:
            numbers.append(instance.frame)
    return found


def _evidence(source: SourceSeries, segmentation: ObjectName | None, nameless: Dataset) -> list[Dataset]:
    """Return the headers of all objects that the report refers to."""
    header = source.header
    names = [
        ObjectName(header.SOPClassUID, uid, header.SeriesInstanceUID) for uid in _frames_by_instance(source)
    ]
    evidence = []
    for name in [*names, *([segmentation] if segmentation else [])]:
        item = Dataset()
        item.update(nameless)
        item.SOPClassUID, item.SOPInstanceUID = name.sop_class_uid, name.sop_instance_uid
        item.SeriesInstanceUID = name.series_uid
        evidence.append(item)
    return evidence


# -- reading ------------------------------------------------------------------------------------------------


def _read(group: Dataset) -> ReadFinding:
    """Read one measurement group."""
    numbers: dict[str, float] = {}
    answers: dict[str, str] = {}
    texts: dict[str, tuple[str, ...]] = {}
    segment = None
    for item in group.ContentSequence:
        if item.RelationshipType != "CONTAINS":
            continue
        question = str(item.ConceptNameCodeSequence[0].CodeValue)
        if item.ValueType == "NUM" and item.MeasuredValueSequence:
            measured = item.MeasuredValueSequence[0]
            numbers[question] = float(measured.get("FloatingPointValue", measured.NumericValue))
        elif item.ValueType == "CODE":
            answers[question] = str(item.ConceptCodeSequence[0].CodeValue)
        elif item.ValueType == "TEXT":
            texts[question] = (*texts.get(question, ()), str(item.TextValue))
        elif item.ValueType == "IMAGE" and _is(item, codes.DCM.ReferencedSegment):
            reference = item.ReferencedSOPSequence[0]
            number = reference.ReferencedSegmentNumber
            segment = (str(reference.ReferencedSOPInstanceUID), int(number))
    return ReadFinding(numbers, answers, texts, segment)


def _child(item: Dataset, name: Code) -> Dataset:
    """Return the first child with a name, or raise a LookupError."""
    children: list[Dataset] = [child for child in item.ContentSequence if _is(child, name)]
    return children[0]


def _is(item: Dataset, name: Code) -> bool:
    """Tell whether an item has a name."""
    concept = item.get("ConceptNameCodeSequence") or [Dataset()]
    return (concept[0].get("CodeValue"), concept[0].get("CodingSchemeDesignator")) == (
        name.value,
        name.scheme_designator,
    )
