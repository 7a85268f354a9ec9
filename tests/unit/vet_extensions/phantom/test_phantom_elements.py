"""The phantom's own encoder of data sets, against the bytes that pydicom writes and the values that it reads."""

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from vet_extensions.phantom.dicom import write_dicom
from vet_extensions.phantom.elements import Elements
from vet_extensions.phantom.headers import VIEW_TERMS, ImageKey, Variant

N_FILES = 240
VIEWS = tuple(VIEW_TERMS)


def rewritten(dataset: Dataset) -> bytes:
    """A file as pydicom writes it from the values alone: nothing of the encoded file is copied."""
    copy = Dataset()
    for element in dataset:
        copy.add(element)
    copy.file_meta, copy.preamble = dataset.file_meta, dataset.preamble
    buffer = io.BytesIO()
    dcmwrite(buffer, copy, enforce_file_format=True)
    return buffer.getvalue()


def test_pydicom_writes_the_same_bytes(tmp_path: Path) -> None:
    image = np.linspace(0, 1, 40 * 40, dtype=np.float32).reshape(40, 40)
    image[:4] = 0
    syntaxes, variants = set(), set()
    for n in range(N_FILES):
        path = tmp_path / "image.dcm"
        written = write_dicom(path, key=ImageKey(0, n // 3, n % 3, VIEWS[n % 4]), image=image, spacing_mm=1.25)
        if Variant.GROUP_LENGTH in written.plan.variants:
            continue  # which pydicom drops
        assert rewritten(dcmread(path)) == path.read_bytes(), sorted(written.plan.variants)
        syntaxes.add(written.transfer_syntax)
        variants |= written.plan.variants
    assert len(syntaxes) == 7
    assert variants == set(Variant) - {Variant.GROUP_LENGTH}


@pytest.mark.parametrize(("is_implicit", "is_little"), [(True, True), (False, True), (False, False)])
def test_nested_sequences_and_values_of_odd_length_agree_in_every_encoding(is_implicit: bool, is_little: bool) -> None:
    theirs, inner_theirs = Dataset(), Dataset()
    ours, inner_ours = Elements(), Elements()
    for item in (inner_theirs, inner_ours):
        for tag, vr, value in ((0x00080100, "SH", "abc"), (0x00080104, "LO", "Grün"), (0x00090010, "LO", "X")):
            item.add_new(tag, vr, value) if isinstance(item, Dataset) else item.add(tag, vr, value)
    theirs.SpecificCharacterSet, ours["SpecificCharacterSet"] = "ISO_IR 192", "ISO_IR 192"
    theirs.ViewCodeSequence, ours["ViewCodeSequence"] = [inner_theirs, inner_theirs], [inner_ours, inner_ours]
    theirs.AcquisitionContextSequence, ours["AcquisitionContextSequence"] = [], []
    theirs.ImageType, ours["ImageType"] = ["ORIGINAL", "PRIMARY", ""], ["ORIGINAL", "PRIMARY", ""]
    theirs.StudyInstanceUID, ours["StudyInstanceUID"] = "1.2.3", "1.2.3"
    theirs.PatientName, ours["PatientName"] = "ФАНТОМ^1", "ФАНТОМ^1"
    theirs.WindowCenter, ours["WindowCenter"] = [0.1, -2000.25], [0.1, -2000.25]
    theirs.Rows, ours["Rows"] = 513, 513
    theirs.AccessionNumber, ours["AccessionNumber"] = "", ""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, is_little
    write_dataset(buffer, theirs)
    assert ours.encoded(is_implicit_vr=is_implicit, is_little_endian=is_little) == buffer.getvalue()


def test_elements_are_written_in_the_order_of_their_tags_and_a_second_value_replaces_the_first() -> None:
    elements = Elements()
    elements["Rows"] = 7
    elements["Modality"] = "CR"
    elements["Rows"] = 9
    dataset = read_dataset(io.BytesIO(elements.encoded()), is_implicit_VR=False, is_little_endian=True)
    assert [element.keyword for element in dataset] == ["Modality", "Rows"]
    assert dataset.Rows == 9
    assert elements["Rows"] == 9
    assert "Columns" not in elements
    assert elements.sequence("ViewCodeSequence") == []


def test_a_keyword_that_leaves_its_representation_open_is_not_guessed() -> None:
    with pytest.raises(AssertionError, match="US or SS"):
        Elements()["PixelPaddingValue"] = 0
    with pytest.raises(AssertionError, match="no DICOM keyword"):
        Elements()["PatientNames"] = "x"
