# SPDX-License-Identifier: Apache-2.0
import numpy as np
from pydicom import dcmread

from ucadi.results.identity import Maker
from ucadi.results.sc import write_key_image

MAKER = Maker("0123456789ab", "toy model")


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)


def test_a_picture_comes_back_color_for_color(awkward_ct, dicom_complaints, tmp_path):
    path = tmp_path / "key.dcm"
    write_key_image(picture(), awkward_ct("plain").source, MAKER, path, description="Slices.")
    assert dicom_complaints(path) == []
    image = dcmread(path)
    assert np.array_equal(image.pixel_array, picture())
    assert image.PhotometricInterpretation == "RGB"


def test_a_picture_says_where_it_belongs_and_that_it_is_research(awkward_ct, tmp_path):
    source = awkward_ct("plain").source
    path = tmp_path / "key.dcm"
    name = write_key_image(picture(), source, MAKER, path, description="Slices.")
    image = dcmread(path)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert image[keyword].value == source.header[keyword].value
    assert image.SeriesInstanceUID == name.series_uid != source.header.SeriesInstanceUID
    assert image.ImageComments == "Research use only. Slices."
    assert (image.BurnedInAnnotation, image.ContentQualification) == ("NO", "RESEARCH")
    assert (image.ConversionType, image.Modality) == ("DI", "OT")


def test_the_same_picture_has_the_same_uid_and_any_other_has_another(awkward_ct, tmp_path):
    source = awkward_ct("plain").source
    pictures = (picture(), picture(), 255 - picture())
    names = [write_key_image(p, source, MAKER, tmp_path / "key.dcm", description="x") for p in pictures]
    assert names[0] == names[1] != names[2]
