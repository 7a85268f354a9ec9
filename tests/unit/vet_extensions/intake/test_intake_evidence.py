"""What the header pass concludes from all its attributes together, and what it does where the pixels may name someone."""

from pathlib import Path
from typing import Any

import pytest
from factories import make_dicom
from pydicom import Dataset

from tests.source_files import DISK
from vet_extensions.intake.deidentify import HEADER_KEYWORDS, Pseudonyms
from vet_extensions.intake.evidence import CODE_KEYWORDS, TEXT_KEYWORDS, Evidence, decide
from vet_extensions.intake.header import HeaderReader
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.schema import ImageRecord, Note, Rejection, RejectionCode, View

NAMES = Pseudonyms("a salt for tests")


def read(path: Path, **options) -> ImageRecord:
    answer = HeaderReader(NAMES, IntakeOptions(**options), DISK)((str(path), "source", None))
    assert not isinstance(answer, Rejection), answer
    return answer[0]


def test_every_attribute_that_is_evidence_is_on_the_list_of_what_is_read() -> None:
    assert set(TEXT_KEYWORDS) | set(CODE_KEYWORDS) <= set(HEADER_KEYWORDS)


def test_body_part_examined_is_the_last_place_where_a_view_is_looked_for(tmp_path: Path) -> None:
    record = read(make_dicom(tmp_path / "a.dcm", ViewPosition=None, BodyPartExamined="CHEST LAT"))
    assert (record.view, record.view_source, record.body_part) == (View.LATERAL, "BodyPartExamined", "CHEST")


def test_the_study_description_names_no_view() -> None:
    assert decide(Evidence({"StudyDescription": "Thorax VD"})).view == View.UNKNOWN


def test_a_side_beside_a_limb_is_the_limbs_and_not_the_views() -> None:
    finding = decide(Evidence({"SeriesDescription": "left lateral", "BodyPartExamined": "ELBOW"}))
    assert (finding.view, finding.body_part) == (View.LATERAL, "ELBOW")


def test_a_species_that_only_the_breed_tells_is_marked(tmp_path: Path) -> None:
    breed = Dataset()
    breed.CodeValue, breed.CodingSchemeDesignator, breed.CodeMeaning = "62137007", "SCT", "Labrador retriever dog breed"
    told = read(make_dicom(tmp_path / "a.dcm", PatientSpeciesDescription=None, PatientBreedCodeSequence=[breed]))
    assert (told.species, told.notes) == ("canine", (Note.SPECIES_FROM_BREED,))
    stated = read(make_dicom(tmp_path / "b.dcm", PatientSpeciesDescription="Cat", PatientBreedDescription="Labrador"))
    assert (stated.species, stated.notes) == ("feline", ())


@pytest.mark.parametrize("keyword", ["BurnedInAnnotation", "RecognizableVisualFeatures"])
def test_an_image_that_may_name_someone_is_flagged_kept_or_refused_by_policy(tmp_path: Path, keyword: str) -> None:
    alarm: Any = {keyword: "YES"}
    path = make_dicom(tmp_path / "a.dcm", **alarm)
    assert read(path).notes == (Note.BURNED_IN_TEXT,)
    assert read(path, burned_in="keep").notes == ()
    refused = HeaderReader(NAMES, IntakeOptions(burned_in="reject"), DISK)((str(path), "source", None))
    assert isinstance(refused, Rejection)
    assert refused.code == RejectionCode.BURNED_IN_TEXT


@pytest.mark.parametrize("value", ["NO", "", None])
def test_no_alarm_without_a_yes(tmp_path: Path, value: str | None) -> None:
    path = make_dicom(tmp_path / "a.dcm", BurnedInAnnotation=value)
    assert read(path, burned_in="reject").notes == ()


def test_the_raw_values_are_handed_out_beside_the_record_and_not_with_a_rejection(tmp_path: Path) -> None:
    reader = HeaderReader(NAMES, IntakeOptions(), DISK)
    path = make_dicom(tmp_path / "a.dcm", ViewPosition="REX", BodyPartExamined="CHEST")
    assert {("ViewPosition", "REX"), ("BodyPartExamined", "CHEST")} <= set(
        reader.with_raw_values((str(path), "s", None))[1]
    )
    (tmp_path / "b.dcm").write_text("Rex")
    assert reader.with_raw_values((str(tmp_path / "b.dcm"), "s", None))[1] == ()


def test_the_mapping_named_in_the_options_decides(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("attribute,value,view\nViewPosition,Rex,DV\n")
    record = read(make_dicom(tmp_path / "a.dcm", ViewPosition="REX"), view_map=tmp_path / "map.csv")
    assert (record.view, record.view_source) == (View.DV, "mapping")
