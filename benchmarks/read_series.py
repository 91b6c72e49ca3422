# SPDX-License-Identifier: Apache-2.0
"""Reading a DICOM series of 512x512 slices to an int16 volume in HU, beside SimpleITK, pydicom and MONAI.

The files are generated, and in the page cache when time is taken. ucadi's part is all from the list of files
to the checked volume in canonical axes; finding the lungs is not in it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import gdcm
import numpy as np
import psutil
import pydicom
import SimpleITK
from harness import interleave
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from ucadi.io.dicom import read_series
from ucadi.io.files import files_of_folder
from ucadi.io.series import read_study

SIZE, SLICE_MM, PIXEL_MM = 512, 0.8, 0.7
COMPRESSED_SHARE = (
    8  # decoding takes most of the time of compressed series, so a part of the slices is enough
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--slices", type=int, default=400, help="slices of the series")
    parser.add_argument("--rounds", type=int, default=5, help="how often each reader runs")
    parser.add_argument("--monai", action="store_true", help="also MONAI's LoadImage, once a round")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)  # what a child process is asked
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peak:
        print(peak_growth(options.peak))
        return
    hu = phantom(options.slices)
    with tempfile.TemporaryDirectory() as folder:
        print_report(measure(Path(folder), hu, options), as_json=options.json)


def measure(folder: Path, hu: np.ndarray, options: argparse.Namespace) -> dict[str, object]:
    """Write the series three times, check that all readers agree, and time them."""
    plain = folder / "plain"
    write_series(hu, plain)
    command = [sys.executable, __file__, "--peak", str(plain)]
    growth = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    chosen = read_study(files_of_folder(plain)).choose()
    readers = {
        "SimpleITK": lambda: with_simpleitk(plain),
        "pydicom loop": lambda: with_pydicom(plain),
        "ucadi": lambda: with_ucadi(plain),
        "ucadi, headers alone": lambda: read_study(files_of_folder(plain)),
        "ucadi, pixels alone": lambda: read_series(chosen),
    }
    assert np.array_equal(with_ucadi(plain), hu)
    assert np.array_equal(SimpleITK.GetArrayFromImage(with_simpleitk(plain)), hu)
    assert np.array_equal(with_pydicom(plain), hu)
    if options.monai:
        readers["MONAI LoadImage"] = lambda: with_monai(plain)
    results = {"uncompressed": interleave(readers, rounds=options.rounds)}
    few = hu[:: COMPRESSED_SHARE if len(hu) >= 16 * COMPRESSED_SHARE else 1]
    for name, compress in (("RLE", compress_rle), ("JPEG 2000", compress_jpeg_2000)):
        packed = folder / name
        write_series(few, packed)
        for path in packed.iterdir():
            compress(path)
        assert np.array_equal(with_ucadi(packed), few)
        compared = {
            "SimpleITK": lambda packed=packed: with_simpleitk(packed),
            "pydicom loop": lambda packed=packed: with_pydicom(packed),
            "ucadi": lambda packed=packed: with_ucadi(packed),
        }
        results[f"{name}, {len(few)} slices"] = interleave(compared, rounds=max(1, options.rounds // 2))
    return {
        "benchmark": f"read_series, {len(hu)} slices of {SIZE}x{SIZE}",
        "seconds_ratio_to_simpleitk": results["uncompressed"]["ucadi"]["ratio_cpu"],
        "peak_memory_ratio_to_volume": round(growth / hu.nbytes, 3),
        "results": results,
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "pydicom": pydicom.__version__,
            "SimpleITK": SimpleITK.Version_VersionString(),
            "numpy": np.__version__,
        },
    }


def with_ucadi(folder: Path) -> np.ndarray:
    return read_series(read_study(files_of_folder(folder)).choose()).volume.voxels


def with_simpleitk(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def with_pydicom(folder: Path) -> np.ndarray:
    """The loop of most tutorials."""
    images = [pydicom.dcmread(path) for path in folder.iterdir()]
    images.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    slices = [i.pixel_array.astype(np.float32) * i.RescaleSlope + i.RescaleIntercept for i in images]
    return np.stack(slices)


def with_monai(folder: Path) -> object:
    from monai.transforms import LoadImage

    return LoadImage(reader="PydicomReader")(str(folder))


def peak_growth(folder: Path) -> int:
    """Return by how many bytes the peak of this process rises above what it holds before it reads (Linux)."""
    before = psutil.Process().memory_info().rss
    voxels = with_ucadi(folder)
    assert voxels.dtype == np.int16
    # Not ru_maxrss: a process inherits that from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 - before


def phantom(slices: int) -> np.ndarray:
    """An oval body with two lungs and noise; int16 HU."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    body = (y / 0.6) ** 2 + (x / 0.85) ** 2 < 1
    lungs = (y / 0.4) ** 2 + ((np.abs(x) - 0.4) / 0.3) ** 2 < 1
    still = np.where(lungs, -850, np.where(body, 40, -1000))
    noise = rng.normal(0, 20, (8, SIZE, SIZE))
    hu = np.empty((slices, SIZE, SIZE), np.int16)
    for z in range(slices):
        hu[z] = still + np.roll(noise[z % 8], z, axis=1)
    return np.maximum(hu, -1024)


def write_series(hu: np.ndarray, folder: Path) -> None:
    """Write slices under names that tell nothing about their order."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    names = np.random.default_rng(1).permutation(len(hu))
    for z, values in enumerate(hu):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20200101"
        image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "120000"
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "A^B", "1", "", "O"
        image.Manufacturer, image.ManufacturerModelName, image.StationName = "Synthetic", "Phantom", "CT1"
        image.StudyDescription, image.SeriesDescription, image.ProtocolName = "Chest", "Lung 0.8", "Chest"
        image.BodyPartExamined, image.PatientPosition, image.ConvolutionKernel = "CHEST", "HFS", "B70f"
        image.KVP, image.XRayTubeCurrent, image.Exposure, image.ExposureTime = 120, 200, 100, 500
        image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber = 3, 1, z + 1
        image.SliceThickness, image.SliceLocation = SLICE_MM, round(z * SLICE_MM, 3)
        image.ImagePositionPatient = [-179.2, -179.2, round(z * SLICE_MM, 3)]
        image.ImageOrientationPatient, image.PixelSpacing = [1, 0, 0, 0, 1, 0], [PIXEL_MM, PIXEL_MM]
        image.WindowCenter, image.WindowWidth, image.RescaleType = -600, 1500, "HU"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows = image.Columns = SIZE
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        image.PixelData = (values + np.int16(1024)).astype("<i2").tobytes()
        image.save_as(folder / f"{names[z]:06d}.dcm", enforce_file_format=True)


def compress_rle(path: Path) -> None:
    image = pydicom.dcmread(path)
    image.compress(RLELossless)
    image.save_as(path)


def compress_jpeg_2000(path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def print_report(document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document, indent=2))
        return
    for name, value in document.items():
        if name != "results":
            print(f"{name:30s} {value}")
    for kind, rows in document["results"].items():
        print(kind)
        for reader, row in rows.items():
            print(
                f"  {reader:24s} {row['median_ms']:9.0f} ms  cpu {row['median_cpu_ms']:9.0f} ms  "
                f"x{row['ratio_cpu']:.2f} cpu  x{row['ratio_wall_min']:.2f} wall"
            )


if __name__ == "__main__":
    main()
