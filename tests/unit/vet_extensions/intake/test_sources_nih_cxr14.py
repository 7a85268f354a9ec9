"""NIH ChestX-ray14: folders, labels, the official split, and a spacing that belongs to another size."""

from pathlib import Path

import pytest

from tests.source_files import facts_of, items_of, problems_of, write_images
from vet_extensions.errors import UserError
from vet_extensions.intake.sources.nih_cxr14 import NihChestXray14
from vet_extensions.schema import Split, View

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.14",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171",
    "00000003_000.png,Pleural_Thickening|Infiltration,0,3,81,F,PA,2582,2991,,",
]
IMAGES = [row.split(",")[0] for row in ROWS]
PATHS = dict(zip(IMAGES, [f"images_001/images/{IMAGES[0]}", f"images_001/images/{IMAGES[1]}"]))
PATHS |= {name: f"images_012/images/{name}" for name in IMAGES[2:]}


def write_table(root: Path, *, name: str = "Data_Entry_2017_v2020.csv", end: str = "") -> Path:
    (root / name).write_text("".join(f"{line}{end}\n" for line in [HEADER, *ROWS]))
    return root


def make_copy(tmp_path: Path) -> Path:
    write_images(tmp_path, PATHS.values())
    return write_table(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_copy(tmp_path)


def by_image(source: NihChestXray14, name: str) -> list:
    found = facts_of(source, name)
    return [found[PATHS[image]] for image in IMAGES]


def test_each_image_is_found_in_its_folder_and_is_a_study_of_its_own(root: Path) -> None:
    source = NihChestXray14(root)
    assert problems_of(source) == {}
    assert by_image(source, "image") == by_image(source, "study") == IMAGES
    assert by_image(source, "patient") == ["1", "1", "2", "3"]
    assert by_image(source, "view") == [View.PA, View.AP, View.PA, View.PA]
    with source.open(PATHS[IMAGES[0]]) as file:
        assert file.read(4) == b"\x89PNG"


@pytest.mark.parametrize("folder", ["images", "images_001", "."])
def test_copies_with_one_folder_are_read_too(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path / folder, IMAGES)
    write_table(tmp_path, name="Data_Entry_2017.csv", end=",")
    prefix = "" if folder == "." else f"{folder}/"
    assert set(items_of(NihChestXray14(tmp_path))) == {prefix + name for name in IMAGES}
    assert problems_of(NihChestXray14(tmp_path)) == {}


def test_labels_are_those_of_the_list_and_the_others_absent_or_left_out_by_policy(root: Path) -> None:
    stated = [{name for name, value in labels.items() if value} for labels in by_image(NihChestXray14(root), "labels")]
    assert stated == [
        {"cardiomegaly"},
        {"cardiomegaly", "emphysema"},
        {"no_finding"},
        {"pleural_thickening", "infiltration"},
    ]
    assert set(by_image(NihChestXray14(root), "labels")[0]) == set(NihChestXray14(root).label_names)
    assert by_image(NihChestXray14(root, blank="missing"), "labels")[0] == {"cardiomegaly": 1}


def test_the_split_is_the_official_one_as_far_as_its_lists_are_there(root: Path) -> None:
    assert by_image(NihChestXray14(root), "split") == [None] * 4
    (root / "test_list.txt").write_text(f"{IMAGES[2]}\n{IMAGES[3]}")
    assert by_image(NihChestXray14(root), "split") == [None, None, Split.TEST, Split.TEST]
    (root / "train_val_list.txt").write_text(f"{IMAGES[0]}\r\n{IMAGES[1]}\r\n")
    assert by_image(NihChestXray14(root), "split") == [Split.TRAIN, Split.TRAIN, Split.TEST, Split.TEST]


def test_the_spacing_is_that_of_the_picture_and_not_of_the_original(root: Path) -> None:
    rows, columns = 16, 20  # of the pictures that write_images makes
    first, *_, last = by_image(NihChestXray14(root), "spacing_mm")
    assert first == pytest.approx((0.14 * 2749 / rows, 0.143 * 2682 / columns))
    assert last is None


def test_a_missing_image_is_an_item_with_a_problem(root: Path) -> None:
    (root / PATHS[IMAGES[1]]).unlink()
    assert problems_of(NihChestXray14(root)) == {f"images/{IMAGES[1]}": "FILE_MISSING"}


def test_an_unknown_finding_and_a_missing_table_are_users_mistakes(root: Path) -> None:
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("No Finding", "Nothing|Much"))
    with pytest.raises(UserError, match="Finding Labels"):
        list(NihChestXray14(root).items())
    table.unlink()
    with pytest.raises(UserError, match="Data_Entry_2017"):
        NihChestXray14(root)
