"""Contact sheets: what intake accepted by view, and what it refused by reason, as PNG pages. Called by the command line.

Look at them before a training: a wrong view, an inverted image or a name burned into the film is seen at once. Captions hold
vocabulary words only, no identifier; the pictures themselves are what was stored.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vet_extensions.intake.folder import SOURCES_NAME
from vet_extensions.intake.image import ImageReader, StoredImage
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.pool import WorkerPool
from vet_extensions.intake.sources.base import Source
from vet_extensions.intake.sources.dicom_folder import DicomFolder
from vet_extensions.manifest.io import Manifest
from vet_extensions.schema import IntakeFolder, Rejection, RejectionCode
from vet_extensions.shards.reader import ShardReader

TILE_PX = 160
CAPTION_PX = 32
HEAD_PX = 36
COLUMNS = 8
BACKGROUND, INK, FAINT = 24, 235, 165


@dataclass(frozen=True)
class Tile:
    """One small picture, uint8 [H, W], with up to two lines below it."""

    pixels: np.ndarray
    captions: tuple[str, ...]


def write_sheets(
    root: Path, folder: Path, *, n_per_sheet: int = 40, source: Path | Source | None = None, n_workers: int = 1
) -> list[Path]:
    """Draw `<VIEW>.png` for each view of the intake folder `root`, and `rejected.png` with the refused by reason.

    n_per_sheet: pictures a view, spread evenly over the manifest. source: what was read; with it
    `rejected_<CODE>.png` show the refused files that can be decoded nevertheless, in workers, since they may be hostile.
    Returns the files written.
    Errors: UserError if `root` holds no finished intake.
    """
    manifest, reader = Manifest.open(root), ShardReader(root)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    views, sources = manifest.column("view"), manifest.column("view_source")
    for view in sorted(set(views.tolist())):
        rows = _spread(np.flatnonzero(views == view), n_per_sheet)
        tiles = [Tile(_to_8_bits(reader.read(int(row))), (view, str(sources[row]))) for row in rows]
        head = f"{view}: {len(tiles)} of {int((views == view).sum()):,} images"
        written.append(_save(folder / f"{view}.png", _draw_page(head, tiles)))
    refused = _files_by_reason(IntakeFolder(root))
    lines = [f"{len(files):>10,}   {code}" for code, files in refused.items()] or ["nothing was refused"]
    written.append(_save(folder / "rejected.png", _draw_page("refused files by reason", [], lines=lines)))
    if source is not None:
        source = DicomFolder(source) if isinstance(source, Path) else source
        keys = _keys_of(IntakeFolder(root), {file for files in refused.values() for file in files[:n_per_sheet]})
        for code, files in refused.items():
            some = [keys[file] for file in files[:n_per_sheet] if file in keys]
            tiles = [Tile(pixels, (code,)) for pixels in _decode(source, some, n_workers)]
            head = f"{code}: {len(tiles)} of {len(files):,} refused files"
            if tiles:
                written.append(_save(folder / f"rejected_{code}.png", _draw_page(head, tiles)))
    return written


def _spread(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of `rows`, evenly apart."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def _files_by_reason(layout: IntakeFolder) -> dict[str, list[str]]:
    files: dict[str, list[str]] = defaultdict(list)
    with layout.rejected.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            files[row["code"]].append(row["file_id"])
    return dict(sorted(files.items()))


def _keys_of(layout: IntakeFolder, wanted: set[str]) -> dict[str, str]:
    with (layout.private / SOURCES_NAME).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {row["file_id"]: row["path"] for row in csv.DictReader(file) if row["file_id"] in wanted}


def _decode(source: Source, keys: Sequence[str], n_workers: int) -> Iterable[np.ndarray]:
    """The pictures of those items that decode after all; colour and raw images too, so that they can be seen."""
    options = IntakeOptions(
        longest_side_px=TILE_PX, colour="grey", for_processing="log", multi_frame="first", accept_secondary_capture=True
    )
    lost = Rejection(RejectionCode.WORKER_DIED, "the process that decoded the file died")
    with WorkerPool(n_workers) as pool:
        answers = pool.ordered_map(
            ImageReader(options, source), ((key, 0) for key in keys), chunk_size=1, on_death=lambda _: lost
        )
        return [answer.pixels for answer in answers if isinstance(answer, StoredImage)]


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def _draw_page(head: str, tiles: Sequence[Tile], *, lines: Sequence[str] = ()) -> Image.Image:
    """A headline, then the tiles in rows, or lines of text."""
    n_rows = -(-len(tiles) // COLUMNS)
    n_columns = min(COLUMNS, max(len(tiles), 3))
    line_px = CAPTION_PX // 2 + 4
    height = HEAD_PX + n_rows * (TILE_PX + CAPTION_PX) + len(lines) * line_px + 8
    page = Image.new("L", (n_columns * (TILE_PX + 8) + 8, height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(size=16), ImageFont.load_default(size=12)
    draw.text((8, 8), head, fill=INK, font=large)
    for number, line in enumerate(lines):
        draw.text((8, HEAD_PX + number * line_px), line, fill=FAINT, font=small)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, n_columns)
        left, top = 8 + column * (TILE_PX + 8), HEAD_PX + row * (TILE_PX + CAPTION_PX)
        picture = Image.fromarray(tile.pixels)
        picture.thumbnail((TILE_PX, TILE_PX))
        page.paste(picture, (left + (TILE_PX - picture.width) // 2, top + (TILE_PX - picture.height) // 2))
        for line, caption in enumerate(tile.captions[:2]):
            draw.text((left, top + TILE_PX + 1 + 14 * line), caption[:26], fill=FAINT, font=small)
    return page


def _save(path: Path, page: Image.Image) -> Path:
    page.save(path)
    return path
