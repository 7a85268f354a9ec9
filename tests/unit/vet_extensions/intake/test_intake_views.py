"""Which view, laterality, species and body part a header states: tables of real spellings."""

import pytest

from vet_extensions.intake.anatomy import decide_body_part, decide_species
from vet_extensions.intake.views import Code, decide_laterality, decide_view, shows_lateral, view_in_words
from vet_extensions.schema import View


@pytest.mark.parametrize(
    ("code", "view"),
    [
        (Code("399173006", "SCT", "left lateral"), View.LATERAL_LEFT),
        (Code("399198007", "SCT", "Left-right lateral"), View.LATERAL_RIGHT),
        (Code("R-10236", "SRT", "left lateral"), View.LATERAL_LEFT),
        (Code("442441009", "SCT", "Ventro-dorsal"), View.VD),
        (Code("441672003", "SCT", "Dorso-ventral"), View.DV),
        (Code("R-10206", "SNM3", "antero-posterior"), View.AP),
        (Code("R-10214", "SRT", "postero-anterior"), View.PA),
        (Code("399368009", "SCT", "medio-lateral oblique"), View.MLO),
        (Code("442657000", "SCT", "Dorsolateral-palmaromedial oblique"), View.OBLIQUE),
        (Code("V1", "99HOSPITAL", "Right lateral"), View.LATERAL_RIGHT),
    ],
)
def test_codes_name_views(code: Code, view: View) -> None:
    assert decide_view(codes=[code]) == (view, "ViewCodeSequence")


def test_cranio_caudal_is_a_breast_view_in_mammograms_and_a_limb_view_elsewhere() -> None:
    code = Code("399162004", "SCT", "cranio-caudal")
    assert decide_view(codes=[code], is_mammogram=True)[0] == View.CC
    assert decide_view(codes=[code])[0] == View.AP


def test_an_unknown_scheme_is_not_read_as_snomed() -> None:
    assert decide_view(codes=[Code("399173006", "99LOCAL", "")])[0] == View.UNKNOWN


@pytest.mark.parametrize(
    ("position", "view"),
    [
        ("PA", View.PA),
        ("ap", View.AP),
        ("LL", View.LATERAL_LEFT),
        ("RL", View.LATERAL_RIGHT),
        ("VD", View.VD),
        ("DV", View.DV),
        ("LATERAL", View.LATERAL),
        ("LARGE LATERAL", View.LATERAL),
        ("LEFT LATERAL", View.LATERAL_LEFT),
        ("VENTRODORSAL", View.VD),
        ("POSTEROANTERIOR", View.PA),
        ("ANTEROPOSTERIOR", View.AP),
        ("OBLICUA", View.OBLIQUE),
        ("RLO", View.OBLIQUE),
        ("MLO", View.MLO),
    ],
)
def test_view_position_is_read(position: str, view: View) -> None:
    assert decide_view(position=position) == (view, "ViewPosition")


@pytest.mark.parametrize("position", ["", "LLD", "GENERICA", "AP LLD"])
def test_a_view_position_that_says_nothing_decides_nothing(position: str) -> None:
    assert decide_view(position=position) == (View.UNKNOWN, "none")


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("Thorax lateral, left recumbent", View.LATERAL_LEFT),
        ("Rt Lat Thorax", View.LATERAL_RIGHT),
        ("Thorax VD", View.VD),
        ("CHEST, VD", View.VD),
        ("Dorso-ventral", View.DV),
        ("RIGHT ELBOW LATERAL", View.LATERAL),
        ("LATERAL RIGHT ELBOW", View.LATERAL),
        ("LAT RIGHT", View.LATERAL_RIGHT),
        ("Chest PA and lateral", None),
        ("Thorax VD/DV", None),
        ("RIGHT CARPUS DLPMO", View.OBLIQUE),
        ("PADDLE", None),
        ("", None),
    ],
)
def test_words_name_one_view_or_none(text: str, view: View | None) -> None:
    assert view_in_words(text) == view


@pytest.mark.parametrize(
    ("orientation", "is_lateral"),
    [
        (("P", "F"), True),
        (("F", "A"), True),
        (("CD", "V"), True),
        (("D", "CR"), True),
        (("AF", "FP"), True),
        (("L", "F"), False),
        (("LE", "CD"), False),
        (("PA", "F"), False),
        (("A",), False),
        ((), False),
        (("", ""), False),
    ],
)
def test_patient_orientation_tells_laterals(orientation: tuple[str, ...], is_lateral: bool) -> None:
    assert shows_lateral(orientation) == is_lateral


def test_rules_are_asked_in_their_order() -> None:
    evidence: dict = {
        "codes": [Code("442441009", "SCT", "")],
        "position": "RL",
        "orientation": ("P", "F"),
        "texts": [("SeriesDescription", "DV"), ("ProtocolName", "PA")],
    }
    decided = []
    for used in list(evidence):
        decided.append(decide_view(**evidence))
        del evidence[used]
    assert decided == [
        (View.VD, "ViewCodeSequence"),
        (View.LATERAL_RIGHT, "ViewPosition"),
        (View.LATERAL, "PatientOrientation"),
        (View.DV, "SeriesDescription"),
    ]


def test_image_laterality_comes_before_the_series() -> None:
    assert decide_laterality(image_laterality="R", laterality="L") == "R"
    assert decide_laterality(image_laterality="", laterality="l") == "L"
    assert decide_laterality(image_laterality="left hand of John", laterality="") == ""


@pytest.mark.parametrize(
    ("description", "species"),
    [
        ("Canine", "canine"),
        ("DOG", "canine"),
        ("Felis catus", "feline"),
        ("Homo sapiens", "human"),
        ("Tortoise", "other"),
        ("", ""),
    ],
)
def test_species_are_words_of_the_vocabulary(description: str, species: str) -> None:
    assert decide_species(description=description) == species


def test_free_text_in_the_species_does_not_get_through() -> None:
    assert decide_species(description="Parrot of Mr Smith") == "other"
    assert decide_species(description="Dog of Mr Smith") == "canine"


def test_the_species_code_comes_before_the_description() -> None:
    assert decide_species(description="Dog", codes=[Code("448169003", "SCT", "Felis catus")]) == "feline"


@pytest.mark.parametrize(
    ("examined", "part"),
    [
        ("CHEST", "CHEST"),
        ("THORAX", "CHEST"),
        ("NON GRID CHEST", "CHEST"),
        ("EXTREMETY", "EXTREMITY"),
        ("CHESTABDOMEN", "CHESTABDOMEN"),
    ],
)
def test_body_parts_are_brought_to_one_vocabulary(examined: str, part: str) -> None:
    assert decide_body_part(examined=examined) == part


def test_the_anatomic_code_comes_before_body_part_examined() -> None:
    assert decide_body_part(codes=[Code("818981001", "SCT", "Abdomen")], examined="CHEST") == "ABDOMEN"


def test_an_unknown_body_part_is_left_empty() -> None:
    assert decide_body_part(examined="SMITH JOHN") == ""
