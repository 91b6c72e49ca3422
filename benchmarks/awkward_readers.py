# SPDX-License-Identifier: Apache-2.0
"""ucadi and other readers of DICOM series, each called as its own documentation says, in a child process.

The child takes one line of JSON per case and answers with one; what a library prints, also from C++, is kept.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from awkward_cases import CASES, Case, Judgement, Truth, judge
from awkward_phantom import judge_volume

__all__ = ["READERS", "Answer", "Child", "reader_version"]

Volumes = list[tuple[np.ndarray, np.ndarray]]

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SECONDS = 120.0
_REASON_CHARS = 90


@dataclass
class Answer:
    """What a reader made of a case.

    Attributes:
        judgements: One for each volume.
        reason: Why it gave no volume, in its own words.
        remarks: Codes of what it says beside the volume; ucadi only.
        warned: Whether it printed a warning.
    """

    judgements: list[Judgement] = field(default_factory=list)
    reason: str = ""
    remarks: list[str] = field(default_factory=list)
    warned: bool = False


class ReaderRefusesError(Exception):
    """A reader gave no volume."""


def _read_ucadi(path: Path, folder: Path, answer: Answer) -> Volumes:
    from ucadi.io.reader import load_ct

    loaded = load_ct(path)
    answer.remarks = [remark.code for remark in (*loaded.report.repairs, *loaded.report.warnings)]
    if loaded.volume is None:
        raise ReaderRefusesError(loaded.report.code)
    return [(loaded.volume.voxels, loaded.volume.grid.affine_lps)]


def _read_simpleitk(path: Path, folder: Path, answer: Answer) -> Volumes:
    import SimpleITK

    folders = sorted({file.parent for file in folder.rglob("*") if file.is_file()})
    find = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs
    return _each([(top, key) for top in folders for key in find(str(top))], _one_simpleitk)


def _one_simpleitk(series: tuple[Path, str]) -> tuple[np.ndarray, np.ndarray]:
    """Read one series."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    folder, key = series
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), key))
    image = reader.Execute()
    if image.GetDimension() == 4:
        image = image[..., 0]
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), affine[:, [2, 1, 0, 3]]


def _read_dicom2nifti(path: Path, folder: Path, answer: Answer) -> Volumes:
    import dicom2nifti

    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.convert_directory(str(folder), out, compression=False, reorient=True)
        return _niftis(Path(out))


def _read_highdicom(path: Path, folder: Path, answer: Answer) -> Volumes:
    import pydicom

    series = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if file.is_file() and pydicom.misc.is_dicom(file):
            dataset = pydicom.dcmread(file)
            if "PixelData" in dataset:
                series[dataset.SeriesInstanceUID].append(dataset)
    return _each(series.values(), _one_highdicom)


def _one_highdicom(datasets: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Read one series."""
    import highdicom

    if len(datasets) == 1 and datasets[0].get("NumberOfFrames"):
        volume = highdicom.Image.from_dataset(datasets[0]).get_volume()
    else:
        volume = highdicom.get_volume_from_series(datasets)
    return volume.array, volume.affine


def _each(series: Iterable[Any], read: Callable[[Any], tuple[np.ndarray, np.ndarray]]) -> Volumes:
    """Read every series; what one refuses does not hold up the others."""
    volumes: Volumes = []
    first_error: Exception | None = None
    for one in series:
        try:
            volumes.append(read(one))
        except Exception as error:
            first_error = first_error or error
    if not volumes:
        raise first_error or ReaderRefusesError("no series found")
    return volumes


def _read_dcm2niix(path: Path, folder: Path, answer: Answer) -> Volumes:
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "%s", "-o", out, str(folder)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        )
        print(done.stdout, done.stderr, file=sys.stderr)
        return _niftis(Path(out))


def _niftis(folder: Path) -> Volumes:
    """Return the volumes of all NIfTI files in a folder."""
    import nibabel

    volumes = []
    for path in sorted(folder.glob("*.nii")):
        image = nibabel.load(path)
        affine = (_RAS @ image.affine)[:, [2, 1, 0, 3]]
        array = np.asarray(image.dataobj)
        if array.dtype.fields:  # a color picture
            array = np.zeros(array.shape)
        array = array.reshape(*array.shape[:3], -1) if array.ndim > 2 else array[..., None, None]
        volumes += [(array[..., t].transpose(2, 1, 0), affine) for t in range(array.shape[3])]
    if not volumes:
        raise ReaderRefusesError("")
    return volumes


READERS: dict[str, tuple[str, Callable[[Path, Path, Answer], Volumes]]] = {
    "ucadi": ("ucadi", _read_ucadi),
    "SimpleITK": ("simpleitk", _read_simpleitk),
    "dicom2nifti": ("dicom2nifti", _read_dicom2nifti),
    "highdicom": ("highdicom", _read_highdicom),
    "dcm2niix": ("dcm2niix", _read_dcm2niix),
}
"""Name of each reader: its distribution and the function that calls it."""


def reader_version(name: str) -> str:
    """Return a reader's version, empty when it is not installed."""
    try:
        return version(READERS[name][0])
    except PackageNotFoundError:
        return ""


class Child:
    """A process in which one reader reads one case after the other.

    Args:
        reader: A key of `READERS`.
    """

    def __init__(self, reader: str) -> None:
        self.reader = reader
        self._process: subprocess.Popen[str] | None = None

    def ask(self, case: Case, folder: Path) -> Answer:
        """Let the reader read a case's folder."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, self.reader],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([case.name, str(folder)]) + "\n")
        process.stdin.flush()
        line = _line_within(process, _SECONDS)
        if not line:
            self.close()
            return Answer(reason="crashes or hangs")
        fields = json.loads(line)
        fields["judgements"] = [Judgement(**judgement) for judgement in fields["judgements"]]
        return Answer(**fields)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _line_within(process: "subprocess.Popen[str]", seconds: float) -> str:
    """Return the next line that a process prints; empty when it ends or takes too long."""
    import threading

    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def _answer(reader: str, case: Case, folder: Path, printed: Any) -> Answer:
    """Read a case and judge what came out."""
    answer = Answer()
    printed.seek(0)
    printed.truncate()
    volumes: Volumes = []
    try:
        volumes = READERS[reader][1](folder / case.input, folder, answer)
    except ReaderRefusesError as error:
        answer.reason = str(error)
    except Exception as error:
        answer.reason = f"{type(error).__name__}: {error}"
    answer.judgements = [_judged(volume, affine, case) for volume, affine in volumes]
    sys.stderr.flush()
    printed.seek(0)
    text = printed.read().decode(errors="replace").replace(str(folder), "")
    answer.warned = bool(re.search("warn|error|inconsistent", text, re.IGNORECASE))
    if not volumes and not answer.reason:
        lines = [line.strip() for line in text.splitlines() if re.search("error|warn|inconsist", line, re.I)]
        answer.reason = lines[-1] if lines else "no volume"
    answer.reason = _short(answer.reason, folder)
    return answer


def _judged(volume: np.ndarray, affine: np.ndarray, case: Case) -> Judgement:
    """Judge a volume; of a case to refuse, parts in their right places are no mistake."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[0]
    if min(volume.shape) < 2 or not np.linalg.det(affine[:3, :3]):
        return Judgement("wrong geometry", f"{volume.shape[0]} slices at {spacing:.3f} mm")
    if isinstance(case.expectation, Truth):
        return judge(volume, affine, case, lesion_share=max(0.03, case.expectation.lesion_share))
    judged = judge_volume(volume, affine, Truth(), lesion_share=0.03)
    if judged.verdict in ("right", "incomplete"):
        return judged
    return Judgement(judged.verdict, f"{volume.shape[0]} slices at {spacing:.3f} mm")


def _short(reason: str, folder: Path) -> str:
    """Return the telling part of an error's text."""
    lines = [line.strip() for line in reason.replace(str(folder), "").splitlines() if line.strip()]
    text = re.sub(r"\s+", " ", lines[-1] if lines else "")
    text = re.sub(r"/\S+/", "", text).replace("|", "/")
    return text if len(text) <= _REASON_CHARS else text[: _REASON_CHARS - 1].rstrip() + "…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    reader = parser.parse_args().reader
    cases = {case.name: case for case in CASES}
    with os.fdopen(os.dup(1), "w") as answers, tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        for line in sys.stdin:
            name, folder = json.loads(line)
            answer = _answer(reader, cases[name], Path(folder), printed)
            answers.write(json.dumps(asdict(answer)) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
