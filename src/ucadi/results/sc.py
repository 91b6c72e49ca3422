# SPDX-License-Identifier: Apache-2.0
"""A picture as a DICOM secondary capture, for viewers that show neither segmentations nor reports."""

from pathlib import Path

import highdicom as hd
import numpy as np
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from ucadi.io.checkpoint import write_bytes
from ucadi.io.source import SourceSeries
from ucadi.results.identity import (
    SHORT_NOTICE,
    Maker,
    ObjectName,
    build_result,
    common_arguments,
    encode_result,
    name_object,
)
from ucadi.types import PathLikeStr

__all__ = ["write_key_image"]

_SERIES_NUMBER = 9103


def write_key_image(
    picture: UInt8[np.ndarray, "rows columns 3"],
    source: SourceSeries,
    maker: Maker,
    path: PathLikeStr,
    *,
    description: str,
) -> ObjectName:
    """Write a color picture into the source's study.

    Args:
        picture: sRGB. It must not show who the patient is or when the scan was made: the file says so.
        source: The images that were read.
        maker: Which model made what the picture shows.
        path: File to write.
        description: What the picture shows.

    Raises:
        DicomError: ``dicom-no-identity`` when the source lacks the UIDs that a result must name.
    """
    shape = np.array(picture.shape).tobytes()
    name = name_object(source, maker, SecondaryCaptureImageStorage, "SC", [shape, picture.tobytes()])

    def build(nameless: Dataset) -> hd.sc.SCImage:
        image = hd.sc.SCImage(
            pixel_array=picture,
            photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
            bits_allocated=8,
            coordinate_system=hd.CoordinateSystemNames.PATIENT,
            patient_orientation=("L", "P"),
            study_instance_uid=nameless.StudyInstanceUID,
            series_instance_uid=name.series_uid,
            series_number=_SERIES_NUMBER,
            sop_instance_uid=name.sop_instance_uid,
            instance_number=1,
            series_description=f"ucadi key image: {SHORT_NOTICE.lower()}",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **common_arguments(maker),
        )
        image.PatientOrientation = []  # a sheet of several views has no one direction
        image.BodyPartExamined = "CHEST"  # which has no side, so that no Laterality is asked for
        # The element asks for text that tells the patient and the date; the model's words are not that.
        image.BurnedInAnnotation = "NO"
        image.ImageComments = f"{SHORT_NOTICE}. {description}"
        return image

    result = build_result(source, build)
    write_bytes(Path(path), encode_result(result))
    return name
