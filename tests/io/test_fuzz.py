# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile inputs: whatever is changed in a file, reading it ends, and ends with the truth.

The law: reading never raises and never hangs; and every slice of a volume that is accepted, unless the report
says that it was made, holds the values that a plain reader finds in the input, at the place that it finds.
The plain readers (pydicom, nibabel, ITK, zipfile) share no code with ours and see the same damaged bytes.
"""

import io
import random
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it
from awkward_cases import make_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.fileset import FileSet
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from ucadi.imaging.volume import Volume
from ucadi.io.files import READ_ERRORS
from ucadi.io.nifti import write_nifti
from ucadi.io.reader import LoadedCt, load_ct
from ucadi.io.report import Verdict

sitk.ProcessObject.SetGlobalWarningDisplay(False)

LIMIT_S = 20.0
FAR = 1e9  # voxels; beyond, whole numbers run over
LOWEST_HU = -1024
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MADE = {"slices-interpolated", "spacing-resampled", "tilt-corrected"}
"""Repairs after which slices are no longer any file's."""


@dataclass(frozen=True, eq=False)
class Plain:
    """Values as a plain reader finds them.

    Attributes:
        hu: Array of any axes.
        affine_lps: 4x4, from an index of the array to LPS mm.
    """

    hu: np.ndarray
    affine_lps: np.ndarray


# -- plain readers ----------------------------------------------------------------------------------------


def plain_dicom(content: bytes) -> Iterator[Plain]:
    """Yield every image or frame that pydicom reads."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=content[128:132] != b"DICM")
        if dataset.get("SamplesPerPixel") not in (1, 3):
            dataset.SamplesPerPixel = 1  # without which pydicom decodes nothing
        pixels = np.atleast_3d(dataset.pixel_array)
        frames = pixels if dataset.get("NumberOfFrames") else pixels[None, :, :, 0]
    except READ_ERRORS:
        return
    for number, stored in enumerate(frames):
        try:
            shared, own = dataset, dataset
            if "PerFrameFunctionalGroupsSequence" in dataset:
                shared = dataset.SharedFunctionalGroupsSequence[0]
                own = dataset.PerFrameFunctionalGroupsSequence[number]
            yield plain_frame(dataset, shared, own, stored)
        except READ_ERRORS:
            continue


def plain_frame(dataset, shared, own, stored) -> Plain:
    """Return one image or frame by the standard's formulas."""

    def value(group: str, name: str):
        for place in (own, shared):
            if group in place:
                return place[group][0].get(name)
        return dataset.get(name)

    position = np.array(value("PlanePositionSequence", "ImagePositionPatient"), dtype=float)
    cosines = np.array(value("PlaneOrientationSequence", "ImageOrientationPatient"), dtype=float)
    spacing = np.array(value("PixelMeasuresSequence", "PixelSpacing"), dtype=float)
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    row, column = (v / np.linalg.norm(v) for v in cosines.reshape(2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = column * spacing[0], row * spacing[1]
    affine[:3, 2], affine[:3, 3] = np.cross(row, column), position
    hu = stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return Plain(hu[:, :, None], affine)


def plain_nifti(path: Path) -> Iterator[Plain]:
    image = nib.load(path)
    yield Plain(np.asarray(image.dataobj, dtype=np.float64), RAS @ image.affine)


def plain_itk(path: Path) -> Iterator[Plain]:
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image)
    head, _, data = path.read_bytes().partition(b"LOCAL\n")
    if b"CompressedData = True" in head:  # when it cannot expand data, ITK gives whatever is in memory
        voxels = np.frombuffer(zlib.decompress(data), voxels.dtype).reshape(voxels.shape)
    yield Plain(voxels.transpose(2, 1, 0).astype(np.float64), affine)


def plain_folder(path: Path) -> Iterator[Plain]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield from plain_dicom(file.read_bytes())


def plain_zip(path: Path) -> Iterator[Plain]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                content = archive.read(entry)
            except READ_ERRORS:
                continue
            yield from plain_dicom(content)


def plain(path: Path) -> list[Plain] | None:
    """Return what a plain reader finds; None when it cannot read the input at all."""
    read = {".nii": plain_nifti, ".gz": plain_nifti, ".nrrd": plain_itk, ".mha": plain_itk, ".zip": plain_zip}
    readers: Callable[[Path], Iterator[Plain]] = read.get(path.suffix, plain_folder)
    if path.suffix == ".dcm":
        return list(plain_dicom(path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(readers(path.parent if path.name == "DICOMDIR" else path))
        except (*READ_ERRORS, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError):
            return None


# -- the law ----------------------------------------------------------------------------------------------


def slices_found(volume: Volume, found: Iterable[Plain]) -> set[int]:
    """Return the slices of a volume that a plain reader finds at the same place with the same values."""
    matched: set[int] = set()
    for each in found:
        to_index = np.linalg.inv(volume.grid.affine_lps) @ each.affine_lps
        # Where the plain array's first index and one step along each of its axes lie in the volume.
        if not np.isfinite(to_index).all() or np.abs(to_index).max() > FAR:
            continue
        steps = np.rint(to_index[:3, :3])
        first = np.rint(to_index[:3, 3])
        shape = np.array(each.hu.shape)
        corners = np.array(list(product(*[(0, n - 1) for n in shape]))).T
        exact = to_index[:3, :3] @ corners + to_index[:3, 3:]
        if shape[2] == 1:  # a single slice: only its place counts, not the way to a next one
            steps[:, 2] = 0
        whole = steps @ corners + first[:, None]
        # Jitter of slices within the loader's tolerance moves the lattice by a part of a step at most.
        if np.abs((exact - whole) * np.array(volume.grid.spacing_mm)[:, None]).max() > 1.01:
            continue
        if (whole < 0).any() or (whole >= np.array(volume.grid.shape)[:, None]).any():
            continue
        z, y, x = (
            (
                steps[k, 0] * np.arange(shape[0])[:, None, None]
                + steps[k, 1] * np.arange(shape[1])[None, :, None]
                + steps[k, 2] * np.arange(shape[2])[None, None, :]
                + first[k]
            ).astype(int)
            for k in range(3)
        )
        ours, theirs = volume.voxels[z, y, x].astype(np.float64), np.clip(each.hu, LOWEST_HU, 32767)
        tolerance = 0.5 if volume.voxels.dtype == np.int16 else 0.01
        agrees = np.abs(ours - theirs) <= tolerance + 1e-6 * np.abs(theirs)
        for height in np.unique(z):
            if agrees[z == height].all():
                matched.add(int(height))
    return matched


def assert_law(path: Path) -> LoadedCt:
    started = time.process_time()
    loaded = load_ct(path)
    assert time.process_time() - started < LIMIT_S
    if loaded.report.verdict is Verdict.REFUSED:
        assert loaded.volume is None
        assert loaded.report.reason
        assert loaded.report.cure
        return loaded
    if MADE & {remark.code for remark in loaded.report.repairs}:
        return loaded
    found = plain(path)
    if found is None:
        return loaded  # ours is the stricter reader of numbers, theirs of words that decide nothing
    missing = set(range(loaded.volume.grid.shape[0])) - slices_found(loaded.volume, found)
    assert not missing, f"slices {sorted(missing)} are in no file"
    return loaded


# -- inputs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(make_ct, make_series, save_series, tmp_path_factory) -> dict[str, Path]:
    """One good input of every form."""
    root = tmp_path_factory.mktemp("inputs")
    volume = make_ct((24, 48, 48), (7.5, 7.3, 7.3))
    save_series(make_series(volume), root / "explicit")
    folder = root / "implicit"
    folder.mkdir()
    for n, image in enumerate(make_series(volume)):
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pydicom.dcmwrite(
            folder / f"{n:02d}", image, implicit_vr=True, little_endian=True, enforce_file_format=True
        )
    folder = root / "rle"
    folder.mkdir()
    for n, image in enumerate(make_series(volume)):
        image.compress(RLELossless, generate_instance_uid=False)
        image.save_as(folder / f"{n:02d}")
    disc = FileSet()
    for image in make_series(
        volume, PatientID="1", PatientName="A", StudyDate="20200101", StudyTime="10", StudyID="1"
    ):
        disc.add(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disc.write(root / "disc")
    disc._stage["t"].cleanup()  # else a finalizer warns of it
    case = next(c for c in make_cases(64) if "enhanced" in c.name)
    (root / "enhanced").mkdir()
    case.write(root / "enhanced")
    write_nifti(volume, root / "ct.nii")
    write_nifti(volume, root / "ct.nii.gz")
    image = sitk.ReadImage(str(root / "ct.nii"))
    for name, compressed in (
        ("ct.nrrd", False),
        ("packed.nrrd", True),
        ("ct.mha", False),
        ("packed.mha", True),
    ):
        sitk.WriteImage(image, str(root / name), useCompression=compressed)
    with zipfile.ZipFile(root / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "explicit").iterdir()):
            archive.write(file, file.name)
    multi = next(p for p in (root / "enhanced").rglob("*") if p.is_file())
    return {
        **{name: root / name for name in ("explicit", "implicit", "rle")},
        "dicomdir": root / "disc" / "DICOMDIR",
        "enhanced": multi,
        **{
            name: root / name
            for name in ("ct.nii", "ct.nii.gz", "ct.nrrd", "packed.nrrd", "ct.mha", "packed.mha")
        },
        "zip": root / "study.zip",
    }


FORMS = ("explicit", "implicit", "rle", "enhanced", "dicomdir", "zip", "ct.nii", "ct.nii.gz")
FORMS += ("ct.nrrd", "packed.nrrd", "ct.mha", "packed.mha")


@pytest.mark.parametrize("form", FORMS)
def test_the_good_input_is_accepted_and_obeys_the_law(inputs, form) -> None:
    loaded = assert_law(inputs[form])
    assert loaded.report.verdict is not Verdict.REFUSED, loaded.report
    assert plain(inputs[form])


def test_the_law_notices_a_wrong_volume(inputs) -> None:
    loaded = load_ct(inputs["explicit"])
    found = plain(inputs["explicit"])
    shape = loaded.volume.grid.shape
    assert slices_found(loaded.volume, found) == set(range(shape[0]))
    voxels = loaded.volume.voxels.copy()
    voxels[3, 5, 7] += 1
    assert slices_found(Volume(voxels, loaded.volume.grid), found) == set(range(shape[0])) - {3}
    for moved in ("z", "flip"):
        wrong = np.roll(voxels, 1, axis=0) if moved == "z" else voxels[:, :, ::-1]
        assert not slices_found(Volume(np.ascontiguousarray(wrong), loaded.volume.grid), found)


# -- changes ----------------------------------------------------------------------------------------------


def change(content: bytes, rng: random.Random, head: int) -> bytes:
    """Return a file with one to three changes, mostly in its head."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at = rng.randrange(min(len(data), head) if rng.random() < 0.8 else len(data))
        size = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(9):
            case 0:
                data[at : at + size] = rng.randbytes(size)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + size] = bytes([rng.choice((0, 0x20, 0x7F, 0x80, 0xFF))]) * size
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = rng.randbytes(size)
            case 5:
                data[at:at] = data[at : at + size]
            case 6:
                del data[at:]
            case _:  # another number in a text, which damages least and misleads most
                digits = [n for n in range(at, min(at + 400, len(data))) if 0x30 <= data[n] <= 0x39]
                if digits:
                    data[rng.choice(digits)] = rng.choice(b"0123456789.-e ")
    return bytes(data)


HEADS = {".nii": 352, ".gz": 400, ".nrrd": 500, ".mha": 400, ".zip": 100}


def damaged(original: Path, form: str, seed: int, folder: Path) -> Path:
    """Write a copy of an input with changes that a seed decides; return its path."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    if original.is_file() and form != "dicomdir":
        content = original.read_bytes()
        head = HEADS.get(original.suffix, 4000)
        if form == "zip" and rng.random() < 0.5:  # the list of entries is at the end
            at = content.rfind(b"PK\x01\x02", 0, len(content) - rng.randrange(100, 3000))
            content = content[:at] + change(content[at:], rng, 200)
        else:
            content = change(content, rng, head)
        path = folder / original.name
        path.write_bytes(content)
        return path
    source = original.parent if form == "dicomdir" else original
    files = sorted(p for p in source.rglob("*") if p.is_file())
    victims = {original} if form == "dicomdir" else set(rng.sample(files, rng.choice((1, 1, 2))))
    for file in files:
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if file in victims:
            place.write_bytes(change(file.read_bytes(), rng, 4000 if form == "dicomdir" else 900))
        else:
            place.hardlink_to(file)
    return folder / "DICOMDIR" if form == "dicomdir" else folder


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_damaged_reading_ends_and_tells_the_truth(inputs, tmp_path_factory, form, seed) -> None:
    assert_law(damaged(inputs[form], form, seed, tmp_path_factory.mktemp("damaged")))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_damaged_for_longer(inputs, tmp_path_factory, form, seed) -> None:
    assert_law(damaged(inputs[form], form, seed, tmp_path_factory.mktemp("damaged")))


@given(content=st.binary(max_size=2000))
def test_any_bytes_are_refused(tmp_path_factory, content) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x"
    path.write_bytes(content)
    assert load_ct(path).report.verdict is Verdict.REFUSED


@given(
    start=st.sampled_from(
        [b"NRRD0004\n", b"ObjectType = Image\n", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08"]
    )
    | st.just(bytes(128) + b"DICM")
    | st.just(b"\x5c\x01\x00\x00" + bytes(340) + b"n+1\0"),
    content=st.binary(max_size=500) | st.text(max_size=500).map(str.encode),
)
def test_a_good_start_and_anything_behind_is_refused(tmp_path_factory, start, content) -> None:
    path = tmp_path_factory.mktemp("starts") / "x"
    path.write_bytes(start + content)
    assert load_ct(path).report.verdict is Verdict.REFUSED
