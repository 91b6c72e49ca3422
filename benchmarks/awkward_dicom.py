# SPDX-License-Identifier: Apache-2.0
"""Slices of the awkward chest as DICOM files, written with pydicom alone; the same bytes each time."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from awkward_phantom import CENTER_MM, Scene, Truth
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

__all__ = [
    "FIELD_MM",
    "PLANTED",
    "SLICES",
    "STEP_MM",
    "Stack",
    "ct_image",
    "decimal",
    "heights",
    "recode",
    "save",
    "saving",
    "set_hu",
    "truth",
    "uid",
]

Images = list[FileDataset]

SLICES = 64
STEP_MM = 5.0

PLANTED = ("Plantedname", "Plantedgiven", "PLANTED-4711", "Plantedstreet", "19470813", "Planted Hospital")
"""Names, numbers and dates in every header; none may be found in a report."""

FIELD_MM = 384.0
"""Side of the usual field of view."""

_PLAIN = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def heights(slices: int = SLICES, step_mm: float = STEP_MM) -> np.ndarray:
    """Return the heights of an even stack around the chest's middle."""
    return np.asarray((np.arange(slices) - (slices - 1) / 2.0) * step_mm)


def truth(pixels: int, **changes: Any) -> Truth:
    """Return the truth of a plain series with changes."""
    grid = (STEP_MM, FIELD_MM / pixels, FIELD_MM / pixels)
    return Truth(**{"spacing_mm": grid, "slices": SLICES, **changes})


class Stack:
    """Where the slices of a series lie.

    Args:
        pixels: Rows and columns.
        heights_mm: Of each slice's middle along the table, from the chest's middle.
        tilt_deg: Gantry tilt about the patient's left-right axis; the table moves along the patient.
        row: Direction of rows, LPS, before the tilt.
        column: Direction of columns.
        pixel_mm: Spacing in y, x; the usual field of view without it.
        field_mm: Side of the field of view.
        along: Direction of the table's movement, of length 1.
    """

    def __init__(
        self,
        pixels: int,
        heights_mm: Iterable[float],
        *,
        tilt_deg: float = 0.0,
        row: Sequence[float] = _PLAIN[0],
        column: Sequence[float] = _PLAIN[1],
        pixel_mm: tuple[float, float] | None = None,
        along: Sequence[float] = (0.0, 0.0, 1.0),
        field_mm: float = FIELD_MM,
    ) -> None:
        self.pixel_mm = pixel_mm or (field_mm / pixels, field_mm / pixels)
        self.size = (round(field_mm / self.pixel_mm[0]), round(field_mm / self.pixel_mm[1]))
        t = np.radians(tilt_deg)
        turn = np.array([[1, 0, 0], [0, np.cos(t), -np.sin(t)], [0, np.sin(t), np.cos(t)]])
        self.row, self.column = turn @ np.array(row), turn @ np.array(column)
        half_y, half_x = ((n - 1) / 2.0 * mm for n, mm in zip(self.size, self.pixel_mm, strict=True))
        corner = CENTER_MM - self.row * half_x - self.column * half_y
        self.positions = [np.round(corner + np.array(along) * h, 6) for h in heights_mm]

    def images(self, scene: Scene | None = None, **tags: Any) -> list[FileDataset]:
        """Return one image per slice, numbered from 1 in the order of the heights; tags apply to all."""
        return [
            ct_image(self, position, number, scene or Scene(), **tags)
            for number, position in enumerate(self.positions, start=1)
        ]

    def hu(self, position: np.ndarray, scene: Scene) -> np.ndarray:
        """Return one slice's HU."""
        return render(tuple(position), tuple(self.row), tuple(self.column), self.size, self.pixel_mm, scene)


@lru_cache(maxsize=2048)
def render(
    position: tuple[float, ...],
    row: tuple[float, ...],
    column: tuple[float, ...],
    size: tuple[int, int],
    pixel_mm: tuple[float, float],
    scene: Scene,
) -> np.ndarray:
    """Return the scene's HU in one slice, whole numbers."""
    y = np.arange(size[0])[:, None, None] * pixel_mm[0] * np.array(column)
    x = np.arange(size[1])[None, :, None] * pixel_mm[1] * np.array(row)
    hu: np.ndarray = np.rint(scene.hu(np.array(position) + y + x)).astype(np.int32)
    hu.flags.writeable = False
    return hu


def uid(*parts: object) -> str:
    """Return the UID of these words."""
    return str(generate_uid(entropy_srcs=["ucadi awkward", *map(str, parts)]))


def ct_image(stack: Stack, position: np.ndarray, number: int, scene: Scene, **tags: Any) -> FileDataset:
    """Return one CT image; tags replace elements or, as None, remove them."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.ImplementationClassUID = uid("implementation")
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": "20200203",
        "SeriesDate": "20200203",
        "AcquisitionDate": "20200203",
        "StudyTime": "101112",
        "SeriesTime": "101112",
        "AcquisitionTime": "101113",
        "AccessionNumber": PLANTED[2],
        "Modality": "CT",
        "Manufacturer": "GE MEDICAL SYSTEMS",
        "InstitutionName": PLANTED[5],
        "ReferringPhysicianName": f"{PLANTED[0]}^Doctor",
        "StudyDescription": f"Chest {PLANTED[0]}",
        "SeriesDescription": f"Chest 5.0 {PLANTED[1]}",
        "PatientName": f"{PLANTED[0]}^{PLANTED[1]}",
        "PatientID": PLANTED[2],
        "PatientBirthDate": PLANTED[4],
        "PatientSex": "O",
        "PatientAddress": PLANTED[3],
        "BodyPartExamined": "CHEST",
        "SliceThickness": "5.0",
        "KVP": "120",
        "ConvolutionKernel": "B30f",
        "PatientPosition": "HFS",
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"),
        "StudyID": "1",
        "SeriesNumber": "3",
        "AcquisitionNumber": "1",
        "InstanceNumber": str(number),
        "ImagePositionPatient": [decimal(v) for v in position],
        "ImageOrientationPatient": [decimal(v) for v in (*stack.row, *stack.column)],
        "FrameOfReferenceUID": uid("frame"),
        "PositionReferenceIndicator": "",
        "SliceLocation": decimal(position[2]),
        "PixelSpacing": [decimal(v) for v in stack.pixel_mm],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stack.size[0],
        "Columns": stack.size[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    identity = (sorted((name, str(value)) for name, value in tags.items()), position.tolist(), number)
    values["SOPInstanceUID"] = uid("instance", scene, stack.size, identity)
    for name, value in {**values, **tags}.items():
        if value is not None:
            setattr(image, name, value)
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    set_hu(image, stack.hu(position, scene))
    return image


def set_hu(image: Dataset, hu: np.ndarray) -> None:
    """Store HU as the image's rescale and bits demand."""
    slope, intercept = float(image.get("RescaleSlope", 1)), float(image.get("RescaleIntercept", 0))
    is_signed = image.PixelRepresentation == 1
    bits = image.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    stored = np.clip(np.rint((hu - intercept) / slope), low, high)
    image.PixelData = stored.astype("<i2" if is_signed else "<u2").tobytes()
    image["PixelData"].VR = "OW"


def decimal(value: float) -> str:
    """Write a number as a decimal string of at most 16 characters."""
    return f"{float(value):.6f}".rstrip("0").rstrip(".") or "0"


def save(images: Iterable[FileDataset], folder: Path, ending: str = ".dcm") -> list[Path]:
    """Write images under names whose order is not theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        name = hashlib.sha256(f"{number} {image.get('SOPInstanceUID')}".encode()).hexdigest()[:12]
        paths.append(folder / f"{name}{ending}")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def saving(make: Callable[[], Iterable[FileDataset]]) -> Callable[[Path], None]:
    """Return a function that makes images and writes them into a folder."""

    def write(folder: Path) -> None:
        save(make(), folder)

    return write


def recode(path: Path, syntax: int) -> None:
    """Compress a file's pixels in place with one of gdcm's codecs."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    if not reader.Read():
        raise RuntimeError("gdcm cannot read what pydicom wrote")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError("gdcm cannot compress")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError("gdcm cannot write")
