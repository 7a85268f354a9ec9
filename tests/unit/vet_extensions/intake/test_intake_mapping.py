"""A user's table from raw values to views: what it decides, and how its mistakes are told."""

import pickle
from pathlib import Path

import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.evidence import Evidence, Finding, decide
from vet_extensions.intake.mapping import ViewMapping, read_mapping
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.words import Code
from vet_extensions.schema import View

TABLE = """attribute,value,view,body_part,species
ViewPosition,STANDING,LATERAL,,
SeriesDescription,hock * standing,AP,TARSUS,equine
SeriesDescription,hock*,OBLIQUE,,
StudyDescription,*cat ward*,,,feline
ViewPosition,GENERICA,UNKNOWN,,
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def mapping(tmp_path: Path) -> ViewMapping:
    return read_mapping(write(tmp_path / "views.csv", TABLE))


def found(mapping: ViewMapping, **texts: str) -> Finding:
    return decide(Evidence(texts), mapping=mapping)


def test_an_exact_value_decides_whatever_its_case_and_spaces(mapping: ViewMapping) -> None:
    finding = found(mapping, ViewPosition=" Standing ")
    assert (finding.view, finding.view_source) == (View.LATERAL, "mapping")


def test_a_star_stands_for_anything_and_the_first_row_that_matches_wins(mapping: ViewMapping) -> None:
    finding = found(mapping, SeriesDescription="Hock left standing")
    assert (finding.view, finding.body_part, finding.species) == (View.AP, "TARSUS", "equine")
    assert found(mapping, SeriesDescription="Hock left").view == View.OBLIQUE


def test_the_mapping_comes_before_every_rule_of_the_header(mapping: ViewMapping) -> None:
    codes = {"ViewCodeSequence": (Code("442441009", "SCT", "Ventro-dorsal"),)}
    evidence = Evidence({"ViewPosition": "STANDING"}, codes)
    assert decide(evidence).view == View.VD
    assert decide(evidence, mapping=mapping).view == View.LATERAL


def test_what_a_row_leaves_empty_is_decided_by_the_header(mapping: ViewMapping) -> None:
    finding = found(mapping, StudyDescription="Cat ward 2, thorax", ViewPosition="DV", PatientSpeciesDescription="dog")
    assert (finding.species, finding.view, finding.view_source) == ("feline", View.DV, "ViewPosition")
    assert finding.body_part == "CHEST"


def test_a_value_can_be_declared_unknown_on_purpose(mapping: ViewMapping) -> None:
    finding = found(mapping, ViewPosition="generica", SeriesDescription="thorax VD")
    assert (finding.view, finding.view_source) == (View.UNKNOWN, "mapping")


def test_a_code_is_matched_as_it_is_shown_in_the_table_of_raw_values(tmp_path: Path) -> None:
    path = write(tmp_path / "views.yml", '- {attribute: ViewCodeSequence, value: "(V7, 99CLINIC, *", view: DV}\n')
    evidence = Evidence(codes={"ViewCodeSequence": (Code("V7", "99CLINIC", "our seventh"),)})
    assert decide(evidence, mapping=read_mapping(path)).view == View.DV


def test_the_row_of_defaults_speaks_only_where_nothing_else_does(tmp_path: Path) -> None:
    mapping = read_mapping(write(tmp_path / "m.yaml", '- {attribute: "*", value: "*", view: DV, species: canine}\n'))
    assert found(mapping).view == View.DV
    assert found(mapping).species == "canine"
    assert found(mapping, ViewPosition="PA", PatientSpeciesDescription="Felis catus").view == View.PA
    assert found(mapping, PatientSpeciesDescription="Felis catus").species == "feline"


def test_yaml_and_csv_say_the_same(tmp_path: Path, mapping: ViewMapping) -> None:
    rows = [line.split(",") for line in TABLE.splitlines()]
    yaml = "".join(
        "- {" + ", ".join(f'{k}: "{v}"' for k, v in zip(rows[0], row, strict=True) if v) + "}\n" for row in rows[1:]
    )
    assert read_mapping(write(tmp_path / "views.yaml", yaml)) == mapping


def test_yaml_words_like_no_stay_words(tmp_path: Path) -> None:
    mapping = read_mapping(write(tmp_path / "m.yaml", "- {attribute: ViewPosition, value: NO, view: UNKNOWN}\n"))
    assert mapping.rules[0].value == "NO"


def test_all_mistakes_are_told_at_once_with_their_place_and_the_nearest_word(tmp_path: Path) -> None:
    path = write(
        tmp_path / "views.csv",
        "attribute,value,view,body_part,species\n"
        "ViewPositon,A,PA,,\n"
        "ViewPosition,B,LATERL,,\n"
        "ViewPosition,C,,THORAX,dog\n"
        "ViewPosition,,PA,,\n"
        "ViewPosition,D,,,\n"
        "ViewPosition,E,PA,,\n"
        "ViewPosition,e,AP,,\n"
        "*,F,PA,,\n"
        "ViewPosition,G,PA,,,more\n",
    )
    with pytest.raises(UserError) as caught:
        read_mapping(path)
    told = str(caught.value)
    for part in (
        "9 mistakes",
        "line 2: unknown attribute 'ViewPositon', did you mean ViewPosition?",
        "line 3: unknown view 'LATERL', did you mean LATERAL?",
        "line 4: unknown body_part 'THORAX'",
        "line 4: unknown species 'dog'",
        "line 5: no value",
        "line 6: it states neither view nor body_part nor species",
        "line 8: the same attribute and value as line 7",
        "line 9: attribute * is for the row of defaults",
        "line 10: more cells than columns",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "value,view\nA,PA\n", "no column attribute"),
        ("m.csv", 'attribute,value\n"A', "no CSV table"),
        ("m.csv", "attribute,value,view\n", "no rows"),
        ("m.yaml", "a: [", "no YAML near line"),
        ("m.yaml", "view: PA\n", "must be a list of rows"),
        ("m.yaml", "- [ViewPosition, PA]\n", "must be a list of rows"),
        ("m.yaml", "- {attribute: ViewPosition, value: A, veiw: PA}\n", "unknown key 'veiw', did you mean view?"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_a_cure(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_mapping(write(tmp_path / name, text))


def test_a_missing_file_and_one_that_is_no_text_are_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_mapping(tmp_path / "nowhere.csv")
    (tmp_path / "m.csv").write_bytes(b"attribute,value\n\xff\xfe,")
    with pytest.raises(UserError, match="UTF-8"):
        read_mapping(tmp_path / "m.csv")


def test_a_mapping_survives_pickling(mapping: ViewMapping) -> None:
    assert found(mapping, ViewPosition="STANDING").view == View.LATERAL
    again = pickle.loads(pickle.dumps(mapping))
    assert again == mapping
    assert found(again, SeriesDescription="hock 3").view == View.OBLIQUE


def test_the_options_record_a_hash_of_the_mapping_and_not_its_path(tmp_path: Path) -> None:
    path = write(tmp_path / "smith.csv", TABLE)
    recorded = IntakeOptions(view_map=path).as_json()
    assert "smith" not in str(recorded)
    write(path, TABLE.replace("DV", "VD").replace("UNKNOWN", "DV"))
    assert IntakeOptions(view_map=path).as_json()["view_map"] not in (None, recorded["view_map"])
