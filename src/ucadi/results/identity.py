# SPDX-License-Identifier: Apache-2.0
"""What all DICOM results of a reading share: whose scan it is, what wrote them, and their UIDs.

A result names the patient and the study exactly as the source images do, or the PACS would file it elsewhere.
Private elements of the source are never copied.

UIDs follow from the source series, the model, the software's version and the content. Sending a reading
twice, after a lost connection or a repeated run, therefore leaves one object in the PACS and not two, while
any other content gets another UID. Only the creation time differs between two such files.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import highdicom as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset, config
from pydicom.uid import UID, generate_uid

from ucadi import __version__
from ucadi.errors import DicomError
from ucadi.io.files import READ_ERRORS
from ucadi.io.source import SourceSeries
from ucadi.results.codes import PRIVATE_SCHEME

__all__ = [
    "CHARACTER_SET",
    "MANUFACTURER",
    "SHORT_NOTICE",
    "Maker",
    "ObjectName",
    "build_result",
    "common_arguments",
    "encode_result",
    "name_object",
    "private_scheme",
    "source_identity",
]

SHORT_NOTICE = "Research use only"
"""Fits the descriptions that a PACS lists."""

MANUFACTURER = "ucadi"

CHARACTER_SET = "ISO_IR 192"
"""UTF-8: holds every name that the source may spell, and every sentence of a report."""

_IDENTITY = (
    # patient
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
    # study
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    # frame of reference
    "PositionReferenceIndicator",
)
"""Elements of the source that a result repeats as they are."""

_EMPTY_IF_MISSING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""Elements that every object must have, empty when unknown (type 2)."""

Result = TypeVar("Result", bound=Dataset)


@dataclass(frozen=True)
class Maker:
    """Which model made a result.

    Attributes:
        model_id: Hash of the released model.
        model_name: Its name for people.
    """

    model_id: str
    model_name: str


@dataclass(frozen=True)
class ObjectName:
    """What another object needs to refer to a result.

    Attributes:
        sop_class_uid: Kind of object.
        sop_instance_uid: The object.
        series_uid: The series that it is in.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str


def name_object(
    source: SourceSeries, maker: Maker, sop_class_uid: str, kind: str, content: Iterable[bytes]
) -> ObjectName:
    """Return the UIDs of a result; see this module's docstring for how they are made.

    Args:
        source: The images that were read.
        maker: The model.
        sop_class_uid: Kind of object, by the standard.
        kind: Kind of object, in a word; one series for each.
        content: Everything that tells this result from another one of the same kind.
    """
    origin = [MANUFACTURER, kind, str(source.header.SeriesInstanceUID), maker.model_id, __version__]
    instances = [f"{image.sop_instance_uid} {image.frame}" for image in source.instances]
    return ObjectName(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=_uid([*origin, *instances], content),
        series_uid=_uid([*origin, "series"], ()),
    )


def source_identity(source: SourceSeries) -> Dataset:
    """Return the elements of the source that say whose scan it is, with text that UTF-8 can hold.

    Raises:
        DicomError: ``dicom-no-identity`` when the source lacks UIDs that a result must name, or has elements
            that cannot be copied.
    """
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        if not source.header.get(keyword):
            raise DicomError("dicom-no-identity", f"The images have no {keyword}.")
    named = {(image.sop_instance_uid, image.frame) for image in source.instances}
    if len(named) < len(source.instances) or not all(uid for uid, _ in named):
        raise DicomError("dicom-no-identity", "The images have no SOPInstanceUID each of their own.")
    try:
        with _quiet():
            identity = _copy_identity(source.header)
            identity.save_as(io.BytesIO(), implicit_vr=False, little_endian=True)
    except READ_ERRORS as error:
        raise DicomError(
            "dicom-no-identity", f"The images' header cannot be copied ({type(error).__name__})."
        ) from error
    return identity


def common_arguments(maker: Maker) -> dict[str, Any]:
    """Return what highdicom's constructors take to say what wrote an object, and what for."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": maker.model_name[:64],
        "device_serial_number": maker.model_id[:64],
        "software_versions": __version__,
        "content_qualification": hd.ContentQualificationValues.RESEARCH,
    }


def private_scheme() -> CodingSchemeIdentificationItem:
    """Return what says whose the private codes of an object are."""
    return CodingSchemeIdentificationItem(
        designator=PRIVATE_SCHEME, name="ucadi, where no standard code was found", version="1"
    )


def build_result(source: SourceSeries, build: Callable[[Dataset], Result]) -> Result:
    """Build an object on the source's UIDs, then put in the source's own elements.

    The builders of highdicom check names, dates and codes, and would refuse a source with an odd one; but a
    result must carry what its source carries, odd or not.

    Args:
        source: The images that were read.
        build: Gets the required elements, empty, with the study's UID and the frame of reference.

    Raises:
        DicomError: As `source_identity`.
    """
    identity = source_identity(source)
    nameless = Dataset()
    for keyword in _EMPTY_IF_MISSING:
        setattr(nameless, keyword, "")
    nameless.StudyInstanceUID = identity.StudyInstanceUID
    nameless.FrameOfReferenceUID = identity.FrameOfReferenceUID
    with _quiet():
        result = build(nameless)
        if "FrameOfReferenceUID" not in result:  # reports and pictures have no place in space
            del identity.FrameOfReferenceUID, identity.PositionReferenceIndicator
        result.update(identity)
        result.SpecificCharacterSet = CHARACTER_SET
    return result


def encode_result(result: Dataset) -> bytes:
    """Return an object as the bytes of a DICOM file."""
    buffer = io.BytesIO()
    with _quiet():
        result.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _copy_identity(header: Dataset) -> Dataset:
    """Copy what a result repeats; without private elements."""
    identity = Dataset()
    identity.SpecificCharacterSet = CHARACTER_SET
    for keyword in _EMPTY_IF_MISSING:
        setattr(identity, keyword, "")
    for keyword in _IDENTITY:
        if keyword in header:
            identity[keyword] = deepcopy(header[keyword])
    identity.remove_private_tags()
    # The scanner's own frame, so that results lie where the images do; without one, the series is its own.
    own_frame = _uid([str(header.SeriesInstanceUID), "frame"], ())
    identity.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or own_frame
    return identity


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence pydicom's and highdicom's remarks about odd values: they are the source's own, and quoted."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _uid(words: Iterable[str], content: Iterable[bytes]) -> UID:
    """Return a UID that follows from words and content."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for part in content:
        digest.update(hashlib.sha256(part).digest())
    return generate_uid(entropy_srcs=[digest.hexdigest()])
