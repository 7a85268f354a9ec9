"""What the command line says of an intake, in sentences. Used by the CLI; rooms are imported inside the functions."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vet_extensions.intake.options import IntakeSummary


def intake_in_words(summary: "IntakeSummary") -> Iterator[str]:
    """What an intake reports when it is done, line by line."""
    if summary.was_already_done:
        yield "This folder already holds this very intake; nothing was read again."
    if summary.n_headers_taken_over:
        yield (
            f"Taken over from an interrupted run: {summary.n_headers_taken_over:,} headers, "
            f"{summary.n_images_taken_over:,} images."
        )
    yield f"{summary.n_files:,} files: {summary.n_accepted:,} accepted, {summary.n_rejected:,} rejected (see rejected.csv)."
    for code, count in sorted(summary.rejected.items()):
        yield f"  {code}: {count:,}"
    yield f"{summary.n_patients:,} patients, {summary.n_studies:,} studies, {summary.n_accepted:,} images."
    for split, counts in summary.splits.items():
        yield f"  {split}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items())
    if summary.equal_pixels.get("pictures"):
        yield "{images:,} images show {pictures:,} pictures under several SOPInstanceUIDs.".format(
            **summary.equal_pixels
        )
    for note, count in summary.notes.items():
        yield f"Noted as {note}: {count:,} images."
    if summary.official_split:
        yield (
            "Splits prescribed by the data set: {patients:,} patients ({patients_with_several:,} of them several, the later of "
            "train, val, test counts), {patients_without:,} without.".format(**summary.official_split)
        )
    if summary.labels is not None:
        yield (
            f"Labels: {len(summary.labels.columns)} findings; {summary.labels.n_images_without_row:,} images without a row, "
            f"{summary.labels.n_rows_unmatched:,} rows without an image."
        )


def raw_views_in_words(root: Path, *, show_all: bool) -> Iterator[str]:
    """The table of raw values and the views that they became, where ROOT holds it."""
    from vet_extensions.intake.raw_values import FILE_NAME, RawViews, describe
    from vet_extensions.schema import IntakeFolder

    path = IntakeFolder(root).private / FILE_NAME
    if path.is_file():
        yield ""
        yield from describe(RawViews.read_csv(path), show_all=show_all)
