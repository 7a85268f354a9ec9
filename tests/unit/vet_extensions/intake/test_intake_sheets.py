"""Contact sheets: a page a view and a page of reasons, with pictures from the shards and captions without identifiers."""

from pathlib import Path

import numpy as np
import pytest
from factories import make_dicom, make_pixels
from PIL import Image

from vet_extensions.errors import UserError
from vet_extensions.intake import sheets
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.run import run_intake
from vet_extensions.intake.sheets import write_sheets


def make_intake(folder: Path, **options) -> tuple[Path, Path]:
    """Source and intake folder: 9 VD and 2 left lateral images, one of them twice, and a text."""
    source, out = folder / "in", folder / "out"
    for number in range(11):
        view = "LL" if number > 8 else "VD"
        make_dicom(source / f"{number:02d}.dcm", pixels=make_pixels(60, 50, seed=number), ViewPosition=view)
    (source / "copy.dcm").write_bytes((source / "03.dcm").read_bytes())
    (source / "notes.txt").write_text("not an image")
    run_intake(source, out, options=IntakeOptions(salt="a salt for tests", longest_side_px=48, **options), n_workers=0)
    return source, out


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as page:
        return np.asarray(page)


def test_there_is_a_page_for_each_view_and_one_for_the_reasons(tmp_path: Path) -> None:
    _, out = make_intake(tmp_path)
    written = write_sheets(out, tmp_path / "sheets")
    assert [path.name for path in written] == ["LATERAL_LEFT.png", "VD.png", "rejected.png"]
    two, nine, _ = (len(pixels_of(path)) for path in written)
    assert nine - two == sheets.TILE_PX + sheets.CAPTION_PX, "nine pictures take a second row"


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_are_those_of_the_shards(tmp_path: Path, bits: int) -> None:
    _, out = make_intake(tmp_path, bits=bits)
    (page, *_) = write_sheets(out, tmp_path / "sheets")
    tile = pixels_of(page)[sheets.HEAD_PX : sheets.HEAD_PX + sheets.TILE_PX, 8 : 8 + sheets.TILE_PX]
    top, left = (sheets.TILE_PX - 48) // 2, (sheets.TILE_PX - 40) // 2
    assert tile[top, left] < 20, "the ramp begins black"
    assert tile[top + 47, left + 39] > 230, "and ends white"


def test_refused_files_that_decode_are_shown_where_the_source_is_at_hand(tmp_path: Path) -> None:
    source, out = make_intake(tmp_path)
    written = write_sheets(out, tmp_path / "sheets", source=source, n_workers=0)
    assert [path.name for path in written if path.name.startswith("rejected_")] == ["rejected_DUPLICATE.png"]


def test_captions_hold_vocabulary_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: set[str] = set()
    draw = sheets._draw_page

    def listen(head, tiles, **more):
        captions.update(caption for tile in tiles for caption in tile.captions)
        return draw(head, tiles, **more)

    monkeypatch.setattr(sheets, "_draw_page", listen)
    source, out = make_intake(tmp_path)
    write_sheets(out, tmp_path / "sheets", source=source, n_workers=0)
    assert captions == {"VD", "LATERAL_LEFT", "ViewPosition", "DUPLICATE"}


def test_no_more_than_the_wanted_number_is_shown(tmp_path: Path) -> None:
    _, out = make_intake(tmp_path)
    _, few, _ = write_sheets(out, tmp_path / "few", n_per_sheet=3)
    _, all_nine, _ = write_sheets(out, tmp_path / "all")
    assert len(pixels_of(few)) < len(pixels_of(all_nine))


def test_a_folder_without_intake_has_no_sheets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no manifest"):
        write_sheets(tmp_path, tmp_path / "sheets")
