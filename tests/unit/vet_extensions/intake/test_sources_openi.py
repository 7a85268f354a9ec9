"""Open-I in its two layouts: what is a study, which view is known, and what indexing terms become."""

from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_csv, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.openi import OpenI
from vet_extensions.schema import View

FOLDER = "images/images_normalized"
IMAGES = [
    ("1", "1_IM-0001-4001.dcm.png", "Frontal"),
    ("1", "1_IM-0001-3001.dcm.png", "Lateral"),
    ("2", "2_IM-0652-1001.dcm.png", "Frontal"),
    ("3", "3_IM-1384-1001.dcm.png", "Frontal"),
]
TERMS = {
    "1": "normal",
    "2": "Cardiomegaly/borderline;Opacity/lung/base/left;Pulmonary Artery/enlarged;Opacity/lung/hilum",
    "3": "No Indexing",
}


def make_copy(tmp_path: Path) -> Path:
    write_csv(tmp_path / "indiana_projections.csv", ["uid", "filename", "projection"], IMAGES)
    rows = [(uid, terms, "", "report, of\nseveral lines") for uid, terms in TERMS.items()]
    write_csv(tmp_path / "indiana_reports.csv", ["uid", "MeSH", "Problems", "findings"], rows)
    write_images(tmp_path, [f"{FOLDER}/{name}" for _, name, _ in IMAGES])
    return tmp_path


@pytest.fixture
def repack(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def test_a_report_is_a_study_of_a_patient_of_its_own(repack: Path) -> None:
    found = items_of(OpenI(repack))
    assert {key: (i.facts.patient, i.facts.study, i.facts.image) for key, i in found.items() if i.facts} == {
        f"{FOLDER}/{name}": (uid, uid, name) for uid, name, _ in IMAGES
    }
    assert problems_of(OpenI(repack)) == {}
    with OpenI(repack).open(f"{FOLDER}/{IMAGES[0][1]}") as file:
        assert file.read(4) == b"\x89PNG"


def test_a_lateral_is_known_and_a_frontal_stays_open(repack: Path) -> None:
    views = facts_of(OpenI(repack), "view")
    assert {key.split("/")[-1]: view for key, view in views.items()} == {
        name: View.LATERAL if projection == "Lateral" else View.UNKNOWN for _, name, projection in IMAGES
    }


def test_indexing_terms_become_findings_and_what_was_not_indexed_has_none(repack: Path) -> None:
    by_study = {facts.study: facts.labels for i in items_of(OpenI(repack)).values() if (facts := i.facts)}
    assert {name for name, value in by_study["1"].items() if value} == {"no_finding"}
    assert {name: value for name, value in by_study["2"].items() if value} == {"cardiomegaly": -1, "opacity": 1}
    assert set(by_study["2"]) == set(OpenI(repack).label_names)
    assert by_study["3"] == {}


def test_the_policies_for_borderline_and_for_unnamed_findings_are_followed_and_recorded(repack: Path) -> None:
    source = OpenI(repack, uncertain="to_positive", blank="missing")
    labels = next(facts.labels for i in items_of(source).values() if (facts := i.facts) and facts.study == "2")
    assert labels == {"cardiomegaly": 1, "opacity": 1}
    assert source.label_policy["uncertain"] == "to_positive"
    assert source.label_policy["blank"] == "missing"


def test_an_image_that_is_not_there_is_an_item_with_a_problem(repack: Path) -> None:
    (repack / FOLDER / IMAGES[2][1]).unlink()
    assert problems_of(OpenI(repack)) == {f"{FOLDER}/{IMAGES[2][1]}": "FILE_MISSING"}


def test_the_original_reports_in_xml_give_the_same_studies_and_labels_without_views(
    repack: Path, tmp_path: Path
) -> None:
    root = tmp_path / "original"
    write_images(root, [f"NLMCXR_png/CXR{name}" for _, name, _ in IMAGES])
    (root / "ecgen-radiology").mkdir()
    for uid, terms in TERMS.items():
        majors = "".join(f"<major>{term}</major>" for term in terms.split(";"))
        images = "".join(f'<parentImage id="CXR{name[:-4]}"/>' for study, name, _ in IMAGES if study == uid)
        text = f"<eCitation><MeSH>{majors}</MeSH>{images}</eCitation>"
        (root / "ecgen-radiology" / f"{uid}.xml").write_text(text)
    (root / "ecgen-radiology" / "4.xml").write_text("<eCitation>cut")
    expected = {
        f"NLMCXR_png/CXR{key.split('/')[-1]}": value for key, value in facts_of(OpenI(repack), "labels").items()
    }
    assert facts_of(OpenI(root), "labels") == expected
    assert facts_of(OpenI(root), "study") == {f"NLMCXR_png/CXR{name}": uid for uid, name, _ in IMAGES}
    assert set(facts_of(OpenI(root), "view").values()) == {View.UNKNOWN}


def test_a_folder_that_is_something_else_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"indiana_projections\.csv"):
        OpenI(tmp_path)
