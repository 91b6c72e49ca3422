# SPDX-License-Identifier: Apache-2.0
"""What image servers answer in DICOM JSON (PS3.18 annex F): matches of a query, outcome of storing.

Answers are a stranger's. Whatever has not the expected shape raises one of `ODD_ANSWER`, never with a value.
"""

from typing import Any

from pydicom.datadict import tag_for_keyword

from ucadi.pacs.server import Level, Match, Query, clean_text, is_uid, status_text

__all__ = ["ODD_ANSWER", "failed_instances", "match_of", "stored_instances", "uid_of"]

ODD_ANSWER = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading an answer of another shape raises."""

Item = dict[str, Any]


def match_of(item: Item, query: Query) -> Match:
    """Return a study or series of a query's answer."""
    is_series = query.level is Level.SERIES
    count = _first(item, "NumberOfSeriesRelatedInstances" if is_series else "NumberOfStudyRelatedInstances")
    modalities = _values(item, "Modality" if is_series else "ModalitiesInStudy")
    return Match(
        study=query.study if is_series else uid_of(item, "StudyInstanceUID"),
        series=uid_of(item, "SeriesInstanceUID") if is_series else "",
        patient_id=clean_text(_first(item, "PatientID")),
        study_date=clean_text(_first(item, "StudyDate")),
        modality="/".join(clean_text(value) for value in modalities),
        description=clean_text(_first(item, "SeriesDescription" if is_series else "StudyDescription")),
        images=None if count is None else int(count),
    )


def uid_of(item: Item, keyword: str) -> str:
    """Return a UID, or raise ValueError when it is none."""
    uid = str(_first(item, keyword)).strip("\0 ")
    if not is_uid(uid):
        raise ValueError("not a UID")
    return uid


def stored_instances(answer: Item) -> set[str]:
    """Return the SOP instance UIDs that a server says it has stored."""
    return {uid_of(item, "ReferencedSOPInstanceUID") for item in _values(answer, "ReferencedSOPSequence")}


def failed_instances(answer: Item) -> dict[str, str]:
    """Return why a server did not store instances, by SOP instance UID."""
    return {
        uid_of(item, "ReferencedSOPInstanceUID"): status_text(
            int(_first(item, "FailureReason") or 0) & 0xFFFF
        )
        for item in _values(answer, "FailedSOPSequence")
    }


def _values(item: Item, keyword: str) -> list[Any]:
    """Return an element's values, none when it is not there."""
    values = item.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [])
    if not isinstance(values, list):
        raise TypeError("no list of values")
    return values


def _first(item: Item, keyword: str) -> Any:
    """Return an element's first value, None when there is none."""
    return next(iter(_values(item, keyword)), None)
