"""Which view, laterality, species and body part a header states: tables of real spellings."""

import pytest

from vet_extensions.intake import anatomy
from vet_extensions.intake.anatomy import body_part_in_words, decide_body_part, decide_species, species_of_breed
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
        (Code("399312000", "SCT", "antero-posterior oblique"), View.OBLIQUE),
        (Code("442623008", "SCT", "Dorsal 45 degree medial-palmarolateral"), View.OBLIQUE),
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
    assert decide_view(position="CC", is_mammogram=True)[0] == View.CC
    assert decide_view(position="CC")[0] == View.AP


def test_medio_lateral_oblique_is_a_breast_view_in_mammograms_and_an_oblique_elsewhere() -> None:
    code = Code("399368009", "SCT", "medio-lateral oblique")
    assert decide_view(codes=[code], is_mammogram=True)[0] == View.MLO
    assert decide_view(codes=[code])[0] == View.OBLIQUE


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
        ("LL RL", View.LATERAL),
        ("Thorax LL", View.LATERAL),
        ("Thorax ll rechts anliegend", View.LATERAL_RIGHT),
        ("Abdomen lateral, li. anl.", View.LATERAL_LEFT),
        ("Thorax latero-lateral links", View.LATERAL_LEFT),
        ("Thorax seitlich", View.LATERAL),
        ("Thorax v/d", View.VD),
        ("Thorax d.-v.", View.DV),
        ("Becken ventrodorsal gestreckt", View.VD),
        ("Pelvis VD frog-leg", View.VD),
        ("Knie kraniokaudal", View.AP),
        ("Ellbogen rechts lateral", View.LATERAL),
        ("ELBOW L LAT flexed", View.LATERAL),
        ("Thorax profil droit", View.LATERAL_RIGHT),
        ("Thorax latéral gauche", View.LATERAL_LEFT),
        ("Thorax face ventro-dorsale", View.VD),
        ("Genou crânio-caudal", View.AP),
        ("Tórax lateral izquierda", View.LATERAL_LEFT),
        ("Tórax perfil", View.LATERAL),
        ("Rodilla craneocaudal", View.AP),
        ("Torace latero-laterale destra", View.LATERAL_RIGHT),
        ("Torace LL SX", View.LATERAL_LEFT),
        ("Torace ventrodorsale", View.VD),
        ("Tórax póstero-anterior", View.PA),
        ("Tórax lateral esquerdo", View.LATERAL_LEFT),
        ("Abdomen oblicua", View.OBLIQUE),
        ("Zehe schräg", View.OBLIQUE),
        ("Carpus D45L-PMO", View.OBLIQUE),
        ("Tarsus DLPlMO", View.OBLIQUE),
        ("Skull LeDRtVO", View.OBLIQUE),
        ("Navicular skyline", None),
        ("Patella axial", None),
        ("Thorax frontal", None),
        ("Thorax face", None),
        ("50 cc contrast", None),
        ("Lateral L-Spine", View.LATERAL),
        ("Lateral R/L", View.LATERAL),
        ("Profil 3", None),
        ("DX lateral", View.LATERAL),
        ("Thorax, dorsal recumbency", View.VD),
        ("Unilateral", None),
    ],
)
def test_words_name_one_view_or_none(text: str, view: View | None) -> None:
    assert view_in_words(text) == view


@pytest.mark.parametrize(
    ("text", "of_unknown", "of_an_animal"),
    [
        ("Left lateral decubitus", None, View.LATERAL_LEFT),
        ("LLD", None, View.LATERAL_LEFT),
        ("Décubitus latéral droit", None, View.LATERAL_RIGHT),
        ("Rechtsseitenlage", None, View.LATERAL_RIGHT),
        ("Seitenlage links", None, View.LATERAL_LEFT),
        ("Decúbito dorsal", None, View.VD),
        ("Left lateral decubitus, horizontal beam", None, View.LATERAL),
    ],
)
def test_a_decubitus_is_a_lateral_view_only_of_animals(text: str, of_unknown: View, of_an_animal: View) -> None:
    assert view_in_words(text) == of_unknown
    assert view_in_words(text, is_animal=True) == of_an_animal


def test_a_side_in_the_text_is_the_limbs_where_the_body_part_says_limb() -> None:
    texts = [("SeriesDescription", "left lateral")]
    assert decide_view(texts=texts)[0] == View.LATERAL_LEFT
    assert decide_view(texts=texts, is_paired=True)[0] == View.LATERAL


@pytest.mark.parametrize(
    ("orientation", "kind", "is_lateral"),
    [
        (("R", "V"), "QUADRUPED", True),  # rostral and ventral: a head from the side
        (("R", "V"), "", True),
        (("R", "F"), "BIPED", False),  # right and foot
        (("L", "DI"), "QUADRUPED", False),  # lateral and distal: a limb from the front
        (("CR", "DI"), "QUADRUPED", True),
        (("PA", "DI"), "QUADRUPED", True),
        (("CD", "V"), "BIPED", False),
        (("CRD", "VCD"), "QUADRUPED", True),
        (("H", "A"), "QUADRUPED", False),
    ],
)
def test_orientation_letters_are_read_after_the_kind_of_body(
    orientation: tuple[str, ...], kind: str, is_lateral: bool
) -> None:
    assert shows_lateral(orientation, orientation_type=kind) == is_lateral


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
    ("text", "letter"),
    [
        ("Left elbow CrCd", "L"),
        ("Ellbogen rechts ml", "R"),
        ("Genou gauche face", "L"),
        ("Rodilla derecha AP", "R"),
        ("Hips VD", ""),
        ("Both stifles", "B"),
        ("Ellbogen li. + re.", "B"),
        ("Thorax left lateral", ""),
        ("L-Spine lateral", ""),
    ],
)
def test_the_side_of_a_paired_part_is_read_from_words_last(text: str, letter: str) -> None:
    assert decide_laterality(image_laterality="", laterality="", texts=[text]) == letter
    assert decide_laterality(image_laterality="U", laterality="", texts=[text]) == "U"


@pytest.mark.parametrize(
    ("description", "species"),
    [
        ("Canine", "canine"),
        ("DOG", "canine"),
        ("Felis catus", "feline"),
        ("Homo sapiens", "human"),
        ("Tortoise", "other"),
        ("Meerschweinchen", "rodent"),
        ("Guinea pig", "rodent"),
        ("Chien", "canine"),
        ("Gatto", "feline"),
        ("Cão", "canine"),
        ("unknown", ""),
        ("", ""),
    ],
)
def test_species_are_words_of_the_vocabulary(description: str, species: str) -> None:
    assert decide_species(description=description) == species


@pytest.mark.parametrize(
    ("breed", "species"),
    [
        ("Labrador retriever dog breed", "canine"),
        ("Deutscher Schäferhund", "canine"),
        ("DSH", "feline"),
        ("Domestic shorthaired cat", "feline"),
        ("Holsteiner", "equine"),
        ("Shetland sheepdog", "canine"),
        ("Shetland pony", "equine"),
        ("Angora", ""),
        ("Mixed", ""),
        ("Rex of Mr Smith", ""),
        ("", ""),
    ],
)
def test_a_breed_tells_the_species_where_only_one_has_it(breed: str, species: str) -> None:
    assert species_of_breed(description=breed) == species
    assert species_of_breed(description="", codes=[Code("1", "99LOCAL", breed)]) == species


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
        ("Thorax and abdomen", "CHESTABDOMEN"),
        ("LUMBAR SPINE", "LSPINE"),
        ("LSPINE", "LSPINE"),
        ("Brustwirbelsäule", "TSPINE"),
        ("Hüfte", "HIP"),
        ("Hueftgelenk", "HIP"),
        ("Coude", "ELBOW"),
        ("Rodilla", "KNEE"),
        ("Torace", "CHEST"),
        ("Tórax", "CHEST"),
        ("Lower extremity, stifle", "STIFLE"),
    ],
)
def test_body_parts_are_brought_to_one_vocabulary(examined: str, part: str) -> None:
    assert decide_body_part(examined=examined) == part


def test_the_anatomic_code_comes_before_body_part_examined() -> None:
    assert decide_body_part(codes=[Code("818981001", "SCT", "Abdomen")], examined="CHEST") == "ABDOMEN"


def test_an_unknown_body_part_is_left_empty() -> None:
    assert decide_body_part(examined="SMITH JOHN") == ""


@pytest.mark.parametrize("text", ["elbow and carpus", "Main protocol", "Brust", "Sprunggelenk", ""])
def test_several_parts_and_words_of_two_meanings_name_no_part(text: str) -> None:
    assert body_part_in_words(text) == ""


def test_every_phrase_of_the_vocabulary_names_its_own_body_part() -> None:
    for term, phrases in anatomy._BODY_PART_WORDS.items():
        for phrase in phrases.replace("~", "").replace("?", "").split("|"):
            assert body_part_in_words(phrase) == term, phrase
