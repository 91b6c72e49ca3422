# SPDX-License-Identifier: Apache-2.0
"""The actions of the de-identification profile on one value each: a safe value, or None."""

import re
from datetime import date, timedelta
from functools import lru_cache

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ucadi.deid.words import KERNELS, MAKERS, MODEL_WORDS, TERMS, WORDS

__all__ = [
    "age_between",
    "coarse_age",
    "coarse_number",
    "cut_time",
    "known_code",
    "known_kernel",
    "known_maker",
    "known_model",
    "known_term",
    "known_words",
    "plain_number",
    "shift_date",
]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_MAX_NUMBER = 1e5  # patients' numbers, dates and times of day are longer; no quantity of a CT is
_DATE = re.compile(r"(\d{4})[.-]?(\d{2})[.-]?(\d{2})", re.ASCII)
_DATE_TIME = re.compile(r"(\d{8})(\d{2})?(\d{4}(\.\d{1,6})?)?([+-]\d{4})?", re.ASCII)
_TIME = re.compile(r"([01]\d|2[0-3]):?([0-5]\d:?(\d{2}(\.\d{1,6})?)?)?", re.ASCII)
_AGE = re.compile(r"(\d{3})([DWMY])", re.ASCII)
_DAYS_OF = {"D": 1, "W": 7, "M": 30.4375, "Y": 365.25}
_OLDEST = 90
_SHORT_TERM = re.compile(r"\d{1,2}|[AFHLPR]{1,3}", re.ASCII)
_MODEL_NUMBER = re.compile(r"(U?CT|SE|VB)?\d{1,3}[A-Z]{0,2}\+?|\d\.\d", re.ASCII)
_PIECE = re.compile(r"(?<![\d.,])(?P<mm>\d{1,2}(?:[.,]\d{1,3})?)\s?mm\b|(?P<word>[^\W_]+)", re.IGNORECASE)
_WORD_KERNEL = re.compile(r"[BDHIQ][rlvfsu]?\d{2}[fshdu]|FC\d{2}", re.ASCII)
_MAX_TEXT = 64
_UNKNOWN = Code("261665006", "SCT", "Unknown")


def plain_number(value: object) -> object | None:
    """Return a number as it is written, or None for text and for what is too long to be a quantity."""
    text = str(value).strip()
    if not _NUMBER.fullmatch(text) or abs(float(text)) >= _MAX_NUMBER:
        return None
    return text if isinstance(value, str) or hasattr(value, "original_string") else value


def coarse_number(value: object, step: float, low: float, high: float) -> str | None:
    """Return a number rounded to steps; None outside of bounds that hold nearly everybody."""
    text = str(value).strip()
    if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
        return None
    return f"{round(float(text) / step) * step:.2f}"


def shift_date(value: str, days: int) -> str | None:
    """Shift a DA or DT by days; a time of day is cut to the hour, a time zone is dropped."""
    value = value.strip(" \0")
    if plain := _DATE.fullmatch(value):
        return _shifted("".join(plain.groups()), days)
    if stamped := _DATE_TIME.fullmatch(value):
        day = _shifted(stamped[1], days)
        return None if day is None else day + (cut_time(stamped[2] or "") or "")
    return None


def _shifted(digits: str, days: int) -> str | None:
    """Shift eight digits, or return None when they are no date."""
    try:
        moved = date(int(digits[:4]), int(digits[4:6]), int(digits[6:])) + timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def cut_time(value: str) -> str | None:
    """Return the hour of a TM."""
    found = _TIME.fullmatch(value.strip(" \0"))
    return found[1] if found else None


def coarse_age(value: str) -> str | None:
    """Return an AS in whole years, 90 for all who are older."""
    found = _AGE.fullmatch(value.strip(" \0"))
    if not found:
        return None
    years = int(int(found[1]) * _DAYS_OF[found[2]] / _DAYS_OF["Y"])
    return f"{min(years, _OLDEST):03d}Y"


def age_between(born: str, then: str) -> str | None:
    """Return the age at a date, for headers that state a birth date only."""
    first, last = _DATE.fullmatch(born.strip(" \0")), _DATE.fullmatch(then.strip(" \0"))
    if not first or not last:
        return None
    a, b = ([int(number) for number in found.groups()] for found in (first, last))
    years = b[0] - a[0] - (b[1:] < a[1:])
    return f"{min(years, _OLDEST):03d}Y" if 0 <= years <= 130 else None


def known_term(value: str) -> str | None:
    """Return a coded string if it is a known term."""
    value = value.strip(" \0")
    return value if value in TERMS or _SHORT_TERM.fullmatch(value) else None


def known_words(value: str) -> str | None:
    """Return the words of a description that a scanner's vocabulary holds, in capitals."""
    kept = []
    for piece in _PIECE.finditer(value):
        # A number stays with its unit only: without one it may be a part of a date or of an identifier.
        if piece["mm"]:
            kept.append(f"{piece['mm'].replace(',', '.')}MM")
        elif piece["word"].upper() in WORDS:
            kept.append(piece["word"].upper())
        elif _WORD_KERNEL.fullmatch(piece["word"]):
            kept.append(piece["word"])
    return " ".join(kept)[:_MAX_TEXT].strip() or None


def known_kernel(value: str) -> str | None:
    """Return a kernel's name if it is written like one."""
    value = value.strip(" \0")
    return value if KERNELS.fullmatch(value) else None


def known_maker(value: str) -> str | None:
    """Return the usual name of the maker that a text names."""
    words = re.findall(r"[A-Z]+", value.upper())
    return next((name for word, name in MAKERS.items() if word in words), None)


def known_model(value: str) -> str | None:
    """Return the words of a scanner's name that are known, with the numbers beside them."""
    pieces = re.findall(r"[A-Za-z0-9.+]+", value)
    if not any(re.sub(r"[\d.+]", "", piece).upper() in MODEL_WORDS for piece in pieces):
        return None
    kept = [p for p in pieces if p.upper().rstrip("+") in MODEL_WORDS or _MODEL_NUMBER.fullmatch(p.upper())]
    return " ".join(kept)[:_MAX_TEXT] or None


@lru_cache(maxsize=1024)
def known_code(value: str, scheme: str) -> Code:
    """Return a code with its standard meaning; "unknown" for local codes and for free text in their place."""
    if scheme in ("DCM", "SCT", "UCUM"):
        return _codes(scheme).get(value, _UNKNOWN)
    if scheme in ("SRT", "SNM3"):
        wanted = Code(value, "SRT", "")
        return next((code for code in _codes("SCT").values() if code == wanted), _UNKNOWN)
    return _UNKNOWN


@lru_cache(maxsize=3)
def _codes(scheme: str) -> dict[str, Code]:
    """Return pydicom's codes of a scheme by value."""
    return {code.value: code for code in getattr(codes, scheme).concepts.values()}
