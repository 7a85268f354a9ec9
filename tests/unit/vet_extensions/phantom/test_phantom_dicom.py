"""The phantom's DICOM files: legal, exact, and displayed by the standard pipeline as what was rendered."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import validate_file_meta
from pydicom.overlays import get_overlay_array
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from vet_extensions.phantom.dicom import WrittenImage, to_stored, write_dicom
from vet_extensions.phantom.headers import CR_IMAGE_STORAGE, VIEW_TERMS, ImageKey, Variant
from vet_extensions.schema import View

VIEWS = tuple(VIEW_TERMS)
N_FILES = 240
SPACING_MM = 1.4142135623

MANDATORY_IN_DX = (
    "PresentationIntentType",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "PresentationLUTShape",
    "LossyImageCompression",
    "BurnedInAnnotation",
    "ImagerPixelSpacing",
    "PatientOrientation",
    "ImageLaterality",
    "AnatomicRegionSequence",
    "ViewCodeSequence",
    "DetectorType",
    "AcquisitionContextSequence",
)
"""Type 1 and 2 attributes of the DX modules, PS3.3 C.8.11.1 to C.8.11.5, beyond those of every image."""


@dataclass(frozen=True)
class File:
    path: Path
    key: ImageKey
    written: WrittenImage

    @property
    def dataset(self) -> Dataset:
        return dcmread(self.path)

    def has(self, variant: Variant) -> bool:
        return variant in self.written.plan.variants


def make_image(size_px: int = 48) -> np.ndarray:
    """A picture as a renderer gives it: black outside the collimator, saturated spots, everything between."""
    rng = np.random.default_rng(5)
    image = np.clip(np.linspace(0.02, 1.05, size_px)[None] + rng.normal(0, 0.05, (size_px, size_px)), 0.001, 1)
    image[:4] = image[:, -7:] = 0
    image[20, 20], image[21, 21] = 0, 1
    return image.astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    """Images of 80 studies, three each."""
    folder, image = tmp_path_factory.mktemp("dicom"), make_image()
    found = []
    for n in range(N_FILES):
        key = ImageKey(0, n // 3, n % 3, VIEWS[n % 4])
        path = folder / f"{n}.dcm"
        found.append(File(path, key, write_dicom(path, key=key, image=image, spacing_mm=SPACING_MM)))
    return found


def stored_values(file: File) -> np.ndarray:
    """What the file must hold, by the truth alone."""
    image = make_image()
    stored = to_stored(file.written.mapping, image)
    if file.written.padding_value is not None:
        stored[:4] = stored[:, -7:] = file.written.padding_value
    return stored


def display(dataset: Dataset) -> np.ndarray:
    """The standard grey-scale pipeline by the book (PS3.4 N.2, PS3.3 C.11.1, C.11.2), to [0, 1], bone white."""
    values = dataset.pixel_array.astype(np.float64)
    if "ModalityLUTSequence" in dataset:
        values = looked_up(values, dataset.ModalityLUTSequence[0])
    elif "RescaleSlope" in dataset:
        values = values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if "VOILUTSequence" in dataset:
        item = dataset.VOILUTSequence[0]
        shown = looked_up(values, item) / (2 ** item["LUTDescriptor"].value[2] - 1)
    elif "WindowCenter" in dataset:
        center, width = (np.atleast_1d(dataset[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
        function = dataset.get("VOILUTFunction", "LINEAR")
        shown = windowed(values, float(center), float(width), function)
    else:
        shown = values / (2**dataset.BitsStored - 1)
    return 1 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return np.clip((values - center) / width + 0.5, 0, 1)


def looked_up(values: np.ndarray, item: Dataset) -> np.ndarray:
    n_entries, first, _ = item["LUTDescriptor"].value
    table = np.frombuffer(item["LUTData"].value, "<u2")
    assert len(table) == n_entries
    return table[np.clip(values.astype(int) - first, 0, n_entries - 1)].astype(np.float64)


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
        JPEGLosslessSV1,
    ],
    ids=lambda syntax: UID(syntax).name[:30],
)
def test_every_transfer_syntax_occurs_and_gives_the_stored_values_back_exactly(files: list[File], syntax: UID) -> None:
    of_syntax = [file for file in files if file.written.transfer_syntax == syntax]
    assert of_syntax, f"none of {N_FILES} files"
    for file in of_syntax[:6]:
        assert file.dataset.file_meta.TransferSyntaxUID == syntax
        np.testing.assert_array_equal(file.dataset.pixel_array, stored_values(file))


def test_the_standard_pipeline_shows_the_rendered_image(files: list[File]) -> None:
    image = make_image()
    for file in files[::2]:
        mapping, shown = file.written.mapping, display(file.dataset)
        rounding = 0.5 / (mapping.high - mapping.low)
        tolerance = {"SIGMOID": 0.007, "LUT": 0.005}.get(mapping.voi, rounding + 1e-6)
        if mapping.modality == "LUT":
            tolerance = max(tolerance, 0.002)
        inside = stored_values(file) != file.written.padding_value
        assert np.abs(shown - image)[inside].max() <= tolerance, mapping


def test_what_is_saturated_in_the_picture_lies_beyond_the_window(files: list[File]) -> None:
    mappings = [file.written.mapping for file in files if file.written.mapping.voi == "LINEAR"]
    assert sum(mapping.under < mapping.low and mapping.over > mapping.high for mapping in mappings) > 0.9 * len(
        mappings
    )


@pytest.mark.filterwarnings("ignore:Applying a VOI LUT on a float input")
def test_pydicom_applies_the_same_modality_and_voi_transforms(files: list[File]) -> None:
    kinds = {}
    for file in files:
        kinds.setdefault((file.written.mapping.modality, file.written.mapping.voi), file)
    assert len(kinds) >= 8
    for file in kinds.values():
        dataset = file.dataset
        shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(float)
        ours = display(dataset)
        ours = 1 - ours if file.written.mapping.is_inverted else ours
        assert np.corrcoef(shown.ravel(), ours.ravel())[0, 1] > 0.99999, file.written.mapping


def test_about_half_of_the_files_are_monochrome1_and_say_so_without_contradiction(files: list[File]) -> None:
    assert 0.38 < np.mean([file.written.mapping.is_inverted for file in files]) < 0.58
    for file in files:
        shape = file.dataset.get("PresentationLUTShape")
        expected = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}[file.dataset.PhotometricInterpretation]
        assert shape in (None, expected)


def test_the_same_key_gives_the_same_bytes(files: list[File], tmp_path: Path) -> None:
    for file in files[:24]:
        again = tmp_path / "again.dcm"
        write_dicom(again, key=file.key, image=make_image(), spacing_mm=SPACING_MM)
        assert again.read_bytes() == file.path.read_bytes()


def test_nothing_unfinished_lies_beside_a_written_file(files: list[File]) -> None:
    assert {path.suffix for path in files[0].path.parent.iterdir()} == {".dcm"}


def test_identifiers_are_valid_and_distinct_where_they_must_be(files: list[File]) -> None:
    datasets = [file.dataset for file in files[:60]]
    for dataset in datasets:
        validate_file_meta(dataset.file_meta, enforce_standard=True)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        uids = [UID(dataset[f"{level}InstanceUID"].value) for level in ("SOP", "Series", "Study")]
        assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)
        assert len(set(uids)) == 3
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 60
    assert len({dataset.StudyInstanceUID for dataset in datasets}) == 20


def test_another_seed_gives_other_identifiers() -> None:
    one, other = ImageKey(0, 3, 1, View.VD), ImageKey(1, 3, 1, View.VD)
    assert one.patient_id != other.patient_id
    assert not {one.uid(level) for level in ("study", "series")} & {other.uid(level) for level in ("study", "series")}


def test_every_tenth_patient_has_two_studies() -> None:
    patients = [ImageKey(0, number, 0, View.VD).patient_number for number in range(33)]
    twice = {patient for patient in patients if patients.count(patient) == 2}
    assert twice == {9, 19, 29}
    assert len(set(patients)) == 30


def test_every_awkward_habit_occurs_in_few_hundred_files(files: list[File]) -> None:
    seen = {variant for file in files for variant in file.written.plan.variants}
    assert seen == set(Variant)


def test_digital_radiographs_keep_what_their_object_makes_mandatory(files: list[File]) -> None:
    for file in files:
        if file.written.plan.sop_class != CR_IMAGE_STORAGE:
            dataset = file.dataset
            absent = [keyword for keyword in MANDATORY_IN_DX if keyword not in dataset]
            assert not absent
            assert "WindowCenter" in dataset or "VOILUTSequence" in dataset


def test_the_view_is_where_the_habit_puts_it(files: list[File]) -> None:
    for file in files:
        dataset, terms = file.dataset, VIEW_TERMS[file.key.view]
        position = dataset.get("ViewPosition") or ""
        if file.has(Variant.VIEW_IN_TEXT_ONLY):
            assert position == ""
            assert "ViewCodeSequence" not in dataset
            assert "PatientOrientation" not in dataset
            assert dataset.SeriesDescription in terms.text
        elif file.has(Variant.VIEW_IN_CODES_ONLY):
            assert "ViewPosition" not in dataset
            assert len(dataset.ViewCodeSequence) == 1
        else:
            assert position == (terms.words if file.has(Variant.VIEW_IN_WORDS) else terms.position)


def test_view_codes_are_those_of_the_standard(files: list[File]) -> None:
    expected = {
        View.LATERAL_LEFT: {codes.cid7484.RightLeftLateral, codes.cid4010.LeftLateral},
        View.LATERAL_RIGHT: {codes.cid7484.LeftRightLateral, codes.cid4010.RightLateral},
        View.VD: {codes.cid7484.VentroDorsal},
        View.DV: {codes.cid7484.DorsoVentral},
    }
    for view, concepts in expected.items():
        value, meaning = VIEW_TERMS[view].code
        assert {code.value for code in concepts} == {value}
        assert meaning in {code.meaning for code in concepts}
    regions = {codes.cid7482.Chest.value, codes.cid7482.ChestAndAbdomen.value}
    for file in files[:60]:
        for item in file.dataset.get("AnatomicRegionSequence", []):
            assert item.CodeValue in regions


def test_the_species_is_a_dog_or_not_stated(files: list[File]) -> None:
    for file in files[:60]:
        dataset = file.dataset
        if file.has(Variant.SPECIES_MISSING):
            assert "PatientSpeciesDescription" not in dataset
            assert "AnatomicalOrientationType" not in dataset
            continue
        assert dataset.PatientSpeciesDescription == "Canine"
        assert dataset.PatientSpeciesCodeSequence[0].CodeValue == codes.cid7454.CanisLupusFamiliaris.value
        assert dataset.AnatomicalOrientationType == "QUADRUPED"


def test_names_survive_their_character_set(files: list[File]) -> None:
    names = {file.written.plan.character_set: str(file.dataset.PatientName) for file in files}
    assert names["ISO_IR 100"].startswith("PHÄNTÖM^")
    assert names["ISO_IR 192"].startswith("ФАНТОМ^")
    assert names[""].isascii()


def test_spacing_is_that_of_the_detector_or_missing(files: list[File]) -> None:
    for file in files[:90]:
        dataset = file.dataset
        if file.has(Variant.SPACING_MISSING):
            assert "ImagerPixelSpacing" not in dataset
            assert "PixelSpacing" not in dataset
        else:
            assert list(dataset.ImagerPixelSpacing) == pytest.approx([SPACING_MM] * 2, rel=1e-7)


def test_padding_is_a_value_of_its_own_outside_the_collimator(files: list[File]) -> None:
    padded = [file for file in files if file.written.padding_value is not None]
    assert padded
    for file in padded:
        dataset = file.dataset
        is_padding = dataset.pixel_array == dataset.PixelPaddingValue
        expected = np.zeros_like(is_padding)
        expected[:4] = expected[:, -7:] = True
        np.testing.assert_array_equal(is_padding, expected)


def test_the_retired_group_length_counts_its_group(files: list[File]) -> None:
    file = next(file for file in files if file.has(Variant.GROUP_LENGTH))
    content = file.path.read_bytes()
    start = content.index(struct.pack("<HH2sH", 0x0008, 0x0000, b"UL", 4))
    (length,) = struct.unpack_from("<I", content, start + 8)
    (next_group,) = struct.unpack_from("<H", content, start + 12 + length)
    assert next_group == 0x0010
    assert file.dataset[0x00080000].value == length


def test_an_overlay_plane_is_beside_the_pixels_not_in_them(files: list[File]) -> None:
    file = next(file for file in files if file.has(Variant.OVERLAY))
    overlay = get_overlay_array(file.dataset, 0x6000)
    assert overlay.shape == make_image().shape
    assert overlay[2, 2] == 1
    assert overlay.sum() == 4 * (48 - 5)
    np.testing.assert_array_equal(file.dataset.pixel_array, stored_values(file))


def test_a_plain_file_has_no_habits(tmp_path: Path) -> None:
    image = make_image()
    for number in range(8):
        key = ImageKey(0, number, 0, VIEWS[number % 4])
        written = write_dicom(tmp_path / "plain.dcm", key=key, image=image, spacing_mm=SPACING_MM, plain=True)
        dataset = dcmread(tmp_path / "plain.dcm")
        assert not written.plan.variants
        assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert dataset.PhotometricInterpretation == "MONOCHROME2"
        assert np.abs(display(dataset) - image).max() <= 0.5 / 3600 + 1e-6
