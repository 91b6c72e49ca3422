# SPDX-License-Identifier: Apache-2.0
"""One DICOM image without its patient, by the profile of `ucadi.deid.profile`.

Only images that look like a CT slice pass. Reports, documents, captures and pictures of text are refused, for
no rule could tell what they say.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from pydicom import DataElement, Dataset, FileDataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    generate_uid,
)

from ucadi import __version__
from ucadi.deid.key import SiteKey
from ucadi.deid.pixels import set_clean_pixels
from ucadi.deid.profile import PROFILE, Action, Rule
from ucadi.deid.values import (
    age_between,
    coarse_age,
    coarse_number,
    cut_time,
    known_code,
    known_kernel,
    known_maker,
    known_model,
    known_term,
    known_words,
    plain_number,
    shift_date,
)
from ucadi.deid.words import TEXT_TYPES
from ucadi.errors import DicomError

__all__ = ["METHOD", "deidentify_dicom"]

METHOD = (
    f"ucadi {__version__}: PS3.15 Basic Profile by a list of what may stay",
    "Dates moved by whole days per patient, times cut to the hour",
    "Age up to 90 years; size and weight rounded",
)
"""DeidentificationMethod of every result."""

_IMPLEMENTATION_UID = generate_uid(entropy_srcs=["ucadi", "deidentify"])
_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_OPTIONS = (
    codes.DCM.BasicApplicationConfidentialityProfile,
    codes.DCM.CleanDescriptorsOption,
    codes.DCM.RetainLongitudinalTemporalInformationModifiedDatesOption,
    codes.DCM.RetainPatientCharacteristicsOption,
)
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
_STEPS = {"PatientSize": (0.05, 1.4, 2.0), "PatientWeight": (5.0, 40.0, 130.0)}  # m, kg
_ESSENTIAL = frozenset(
    [
        *(
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
        ),
        *("Rows", "Columns", "NumberOfFrames", "BitsStored", "HighBit", "PixelRepresentation"),
    ]
)
_MAX_DEPTH = 16  # of sequences in sequences; Enhanced CT needs four

_TEXT: dict[Action, Callable[[str], str | None]] = {
    Action.TERM: known_term,
    Action.WORDS: known_words,
    Action.KERNEL: known_kernel,
    Action.MAKER: known_maker,
    Action.MODEL: known_model,
    Action.AGE: coarse_age,
    Action.TIME: cut_time,
}


def deidentify_dicom(source: Dataset, key: SiteKey) -> FileDataset:
    """Return a CT image without its patient; the source stays as it is.

    Args:
        source: A whole DICOM file, pixels included.
        key: The site's key.

    Raises:
        DicomError: ``dicom-not-ct`` for anything but a CT image, ``deid-burned-in`` when text is stated to be
            in the picture, ``deid-no-slice`` for pictures of text, colors, 8 bits and images without a place,
            ``dicom-undecodable`` when an identifier or pixels are missing, and as `set_clean_pixels`.
        Exception: One of `ucadi.io.files.READ_ERRORS` when the file is damaged.
    """
    _check_class(source)
    _check_picture(source)
    patient = _pseudonym(source, key)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = source.SOPClassUID
    meta.MediaStorageSOPInstanceUID = UID(key.uid(str(source.SOPInstanceUID)))
    meta.TransferSyntaxUID = syntax = source.file_meta.TransferSyntaxUID
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = f"UCADI {__version__}"[:16]
    target = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=bytes(128),
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
    )
    target.update(_Cleaner(key, patient).clean(source))
    target.PatientName = target.PatientID = patient
    if not target.get("PatientAge"):
        age = age_between(str(source.get("PatientBirthDate") or ""), str(source.get("StudyDate") or ""))
        if age is not None:
            target.PatientAge = age
    _state_method(target)
    set_clean_pixels(source, target)
    return target


def _check_class(source: Dataset) -> None:
    """Refuse anything but a CT image with its identifiers."""
    if source.get("SOPClassUID") not in _CLASSES or source.get("Modality") not in ("CT", "", None):
        raise DicomError(
            "dicom-not-ct", "It is no CT image; reports, documents and captures are not passed on."
        )
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PixelData"):
        if not source.get(keyword):
            raise DicomError("dicom-undecodable", f"The image has no {keyword}.")


def _check_picture(source: Dataset) -> None:
    """Refuse an image that is, or may be, a picture of text."""
    if str(source.get("BurnedInAnnotation") or "").strip().upper() not in ("", "NO"):
        raise DicomError("deid-burned-in", "BurnedInAnnotation says that text is part of the picture.")
    types = {str(value).strip().upper() for value in _values(source.get("ImageType"))}
    if found := types & TEXT_TYPES:
        raise DicomError("deid-no-slice", f"ImageType says {sorted(found)[0]}.")
    if source.get("SamplesPerPixel") != 1 or source.get("BitsAllocated") != 16:
        raise DicomError("deid-no-slice", "The picture has colors or not 16 bits, as captures have.")
    if not _has_place(source):
        raise DicomError(
            "deid-no-slice", "The picture has no position and orientation, as captures have none."
        )


def _has_place(source: Dataset) -> bool:
    """Tell whether an image, or each frame of a multi-frame one, lies somewhere in the patient."""
    if source.SOPClassUID == CTImageStorage:
        return bool(source.get("ImagePositionPatient")) and bool(source.get("ImageOrientationPatient"))
    shared = list(source.get("SharedFunctionalGroupsSequence") or [])
    frames = list(source.get("PerFrameFunctionalGroupsSequence") or [])
    wanted = ("PlanePositionSequence", "PlaneOrientationSequence")
    return bool(frames) and all(
        all(any(group.get(name) for group in (frame, *shared)) for name in wanted) for frame in frames
    )


def _pseudonym(source: Dataset, key: SiteKey) -> str:
    """Return the patient's pseudonym, or one of the study when the patient has no id."""
    patient_id = str(source.get("PatientID") or "").strip(" \0")
    if not patient_id:
        return key.patient_of_study(str(source.StudyInstanceUID))
    return key.patient(patient_id, str(source.get("IssuerOfPatientID") or ""))


def _state_method(target: Dataset) -> None:
    """Say what was done, no more and no less."""
    target.PatientIdentityRemoved = "YES"
    target.DeidentificationMethod = list(METHOD)
    # Nobody looked at the pixels: that they are clean is known only when the scanner says so.
    is_known_clean = target.get("BurnedInAnnotation") == "NO"
    options = [*_OPTIONS, codes.DCM.CleanPixelDataOption] if is_known_clean else _OPTIONS
    items = []
    for code in options:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, "DCM", code.meaning
        items.append(item)
    target.DeidentificationMethodCodeSequence = items
    target.LongitudinalTemporalInformationModified = "MODIFIED"


@cache
def _rules() -> dict[BaseTag, tuple[str, str, Rule]]:
    """Return keyword, value representation and rule of every attribute that may stay, by tag."""
    found = {}
    for keyword, rule in PROFILE.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError(f"{keyword!r} is no DICOM keyword")
        found[Tag(tag)] = (keyword, dictionary_VR(tag), rule)
    return found


class _Cleaner:
    """Applies the profile to a data set and all that is inside it."""

    def __init__(self, key: SiteKey, patient: str) -> None:
        self._key = key
        self._patient = patient
        self._days = key.shift_days(patient)

    def clean(self, source: Dataset, depth: int = 0) -> Dataset:
        """Return a new data set of what may stay."""
        if depth > _MAX_DEPTH:
            raise DicomError("input-unreadable", f"Sequences are nested more than {_MAX_DEPTH} deep.")
        target = Dataset()
        for tag, (keyword, vr, rule) in _rules().items():
            if tag not in source or rule.action in (Action.PIXELS, Action.PSEUDONYM):
                continue
            element = _element(source, tag)
            if rule.action is Action.ITEMS:
                items = element.value if element.VR == "SQ" else []
                target.add(DataElement(tag, "SQ", [self._item(item, depth) for item in items]))
                continue
            values = self._safe(keyword, rule, element)
            if values is not None:
                kept_vr = element.VR if vr == "US or SS" and element.VR in ("US", "SS") else vr.split(" ")[0]
                target.add(DataElement(tag, kept_vr, values[0] if len(values) == 1 else values or None))
        return target

    def _item(self, source: Dataset, depth: int) -> Dataset:
        """Return one item of a sequence; its code, when it is one, as the dictionaries know it."""
        target = self.clean(source, depth + 1)
        if any(keyword in source for keyword in _CODE):
            value = source.get("CodeValue") or ""
            code = known_code(str(value), str(source.get("CodingSchemeDesignator") or ""))
            target.CodeValue, target.CodingSchemeDesignator = code.value, code.scheme_designator
            target.CodeMeaning = code.meaning[:64]
        return target

    def _safe(self, keyword: str, rule: Rule, element: DataElement) -> list[Any] | None:
        """Return an attribute's safe values, [] for an empty attribute, None for one that goes."""
        if rule.action is Action.EMPTY:
            return []
        if rule.action is Action.FIXED:
            return [rule.otherwise]
        values = _values(element.value)
        if not values:
            return []
        cleaned = [self._value(keyword, rule.action, value) for value in values]
        if rule.action is Action.NUMBER and None in cleaned:
            if keyword in _ESSENTIAL:
                raise DicomError("dicom-undecodable", f"{keyword} is no plausible number.")
            cleaned = []  # half a vector is worse than none
        if rule.otherwise:
            return [rule.otherwise if value is None else value for value in cleaned or [None]]
        kept = [value for value in cleaned if value is not None]
        return kept if kept or rule.otherwise == "" else None

    def _value(self, keyword: str, action: Action, value: Any) -> Any:
        """Return one safe value, or None."""
        if action is Action.NUMBER:
            return plain_number(value) if not isinstance(value, BaseTag) else _public_tag(value)
        if action is Action.COARSE:
            return coarse_number(value, *_STEPS[keyword])
        text = _text(value)
        if action is Action.UID:
            return self._key.uid(text) if text else None
        if action is Action.DATE:
            return shift_date(text, self._days)
        return _TEXT[action](text)


def _element(source: Dataset, tag: BaseTag) -> DataElement:
    """Return an element; one whose bytes are no value of its representation, as a text that is never safe."""
    try:
        return source[tag]
    except (ArithmeticError, BytesLengthException, LookupError, TypeError, ValueError):
        return DataElement(tag, "UT", "?")


def _values(value: Any) -> list[Any]:
    """Return an attribute's values as a list; nothing for an empty one."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _text(value: Any) -> str:
    """Return a value's text; bytes of an unknown representation hold none that is safe."""
    return "" if isinstance(value, bytes) else str(value)


def _public_tag(tag: BaseTag) -> BaseTag | None:
    """Return a pointer to an attribute that may still be there."""
    return None if tag.is_private else tag
