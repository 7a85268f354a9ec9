"""The verbs `intake` and `merge` of the command line, which `vet_extensions.cli` registers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vet_extensions.commands.sentences import intake_in_words
from vet_extensions.commands.verbs import add_verbs
from vet_extensions.progress import Progress

if TYPE_CHECKING:
    from vet_extensions.intake.sources.base import Source

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder with DICOM files, at any depth, archives included; or what --source reads.",
        show_default=False,
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        "--source",
        metavar="NAME",
        help="What SOURCE is: dicom, dicomweb (its URL), table (a CSV, TSV or Parquet file), "
        "images (a folder of PNG, JPEG and TIFF), or a public data set as it is "
        "downloaded: mimic_cxr, chexpert, padchest, brax, rexgradient, openi, vindr_mammo, rsna_mammo, mura, nih_cxr14.",
    ),
]
Uncertain = Annotated[
    str | None,
    typer.Option(help="The source's labels of -1: keep, to_positive, to_negative or missing.", show_default=False),
]
Blank = Annotated[str | None, typer.Option(help="The source's empty labels: missing or absent.", show_default=False)]
Columns = Annotated[
    Path | None, typer.Option(help="For a table: YAML lines such as 'patient: Animal'; see docs/sources.md.")
]
HeadersFile = Annotated[Path | None, typer.Option(help="For a DICOMweb server: lines 'Name: value' that authenticate.")]
Query = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="For a DICOMweb server: what studies must match, as PatientID=A1*; may be repeated, and all must hold.",
        show_default=False,
    ),
]
Modality = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE",
        help="For a DICOMweb server: which images, by Modality; may be repeated; 'all' takes any. [default: CR, DX, MG, IO]",
        show_default=False,
    ),
]
Labeller = Annotated[
    str | None,
    typer.Option(
        help="For mimic_cxr, whose labels: chexpert (the default), negbio or radiologist.", show_default=False
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="ROLE/ROLE",
        help="For images: what the levels of folders are, of split, patient, study, view, body_part, species, laterality, "
        "finding and - (no meaning), such as patient/study.",
        show_default=False,
    ),
]
Labels = Annotated[Path | None, typer.Option(help="CSV, TSV or Parquet table of findings, by study or by image.")]
OfficialSplit = Annotated[bool, typer.Option(help="Take the split that a data set prescribes, where it does.")]
PartOfAll = Annotated[
    str | None,
    typer.Option("--part", metavar="i/N", help="Read only part i of N, for `vetdino merge`; needs --salt-file."),
]
SaltFile = Annotated[
    Path | None, typer.Option(help="Secret behind the pseudonyms, the same for every part; made if there is none.")
]
ViewMap = Annotated[
    Path | None, typer.Option(help="CSV or YAML table from your raw values to views; see docs/intake.md.")
]
BurnedIn = Annotated[str, typer.Option(help="Images whose header says they may show names: keep, flag or reject.")]
Colour = Annotated[
    str, typer.Option(help="Images in colour: neutral takes those that are all but grey; reject or grey.")
]
ForProcessing = Annotated[str, typer.Option(help="Raw detector values: reject, or log to make a picture of them.")]
MultiFrame = Annotated[str, typer.Option(help="Files of several frames: reject, first or each.")]
Collimation = Annotated[str, typer.Option(help="keep the whole image, or crop it to the exposed field.")]
EqualPixels = Annotated[
    str, typer.Option(help="The same picture under several identifiers: keep or reject the others.")
]
SecondaryCapture = Annotated[
    bool, typer.Option("--secondary-capture", help="Also take screen shots and digitised film (Secondary Capture).")
]
Sheets = Annotated[bool, typer.Option("--sheets", help="Also draw contact sheets by view to OUT/sheets.")]


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verbs to the program; `say` gets what each has to tell."""
    add_verbs(app, _EXAMPLES, say=say)


def intake(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it is made.", show_default=False)],
    kind: Kind = "dicom",
    uncertain: Uncertain = None,
    blank: Blank = None,
    columns: Columns = None,
    headers_file: HeadersFile = None,
    query: Query = None,
    modality: Modality = None,
    labeller: Labeller = None,
    layout: Layout = None,
    labels: Labels = None,
    longest_side: Annotated[int, typer.Option(min=16, help="Longest side of the stored images in pixels.")] = 512,
    bits: Annotated[int, typer.Option(help="Bits per stored grey value: 8 or 16.")] = 8,
    split_seed: Annotated[int, typer.Option(min=0, help="Decides which patients are train, val and test.")] = 0,
    official_split: OfficialSplit = True,
    part: PartOfAll = None,
    salt_file: SaltFile = None,
    view_map: ViewMap = None,
    burned_in: BurnedIn = "flag",
    colour: Colour = "neutral",
    for_processing: ForProcessing = "reject",
    multi_frame: MultiFrame = "reject",
    collimation: Collimation = "keep",
    equal_pixels: EqualPixels = "keep",
    secondary_capture: SecondaryCapture = False,
    sheets: Sheets = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0 works in this one.")] = 2,
) -> str:
    """Turn DICOM files or a data set into a manifest and shards of grey images; what cannot be used is listed with a reason."""
    from vet_extensions.intake.options import IntakeOptions
    from vet_extensions.intake.parts import Part, salt_from_file
    from vet_extensions.intake.run import run_intake
    from vet_extensions.intake.sources.registry import make_source

    archive = make_source(
        kind,
        source,
        uncertain=uncertain,
        blank=blank,
        columns=columns,
        headers_file=headers_file,
        query=query or (),
        modality=modality or (),
        labeller=labeller,
        layout=layout,
    )
    some = None if part is None else Part.parse(part)
    salt = None if salt_file is None else salt_from_file(salt_file)
    chosen = IntakeOptions(
        labels=labels,
        longest_side_px=longest_side,
        bits=bits,
        split_seed=split_seed,
        official_split=official_split,
        salt=salt,
        view_map=view_map,
        burned_in=burned_in,
        colour=colour,
        for_processing=for_processing,
        multi_frame=multi_frame,
        collimation=collimation,
        equal_pixels=equal_pixels,
        accept_secondary_capture=secondary_capture,
    )
    with Progress("intake", unit="files") as progress:
        summary = run_intake(
            archive,
            out,
            options=chosen,
            part=some,
            on_progress=progress,
            on_taken_over=progress.skip,
            n_workers=workers,
        )
    return "\n".join([*intake_in_words(summary), *(_draw_sheets(out, archive, n_workers=workers) if sheets else ())])


def merge(
    parts: Annotated[
        list[Path], typer.Argument(metavar="OUT_i", help="Folders that `intake --part` wrote.", show_default=False)
    ],
    into: Annotated[Path, typer.Option(help="Folder to write; it is made.", show_default=False)],
    sheets: Sheets = False,
) -> str:
    """Merge the parts of an archive: duplicates, conflicts and splits as if one run had read everything."""
    from vet_extensions.intake.parts import merge_parts

    summary = merge_parts(parts, into)
    return "\n".join([*intake_in_words(summary), *(_draw_sheets(into, None, n_workers=0) if sheets else ())])


def _draw_sheets(root: Path, source: "Source | None", *, n_workers: int) -> list[str]:
    from vet_extensions.intake.sheets import write_sheets

    n_sheets = len(write_sheets(root, root / "sheets", source=source, n_workers=n_workers))
    return [f"{n_sheets} contact sheets in {root / 'sheets'}."]


_EXAMPLES: dict[Callable[..., str], str] = {
    intake: "vetdino intake studies_dicom studies --labels labels.csv --longest-side 512 --workers 4",
    merge: "vetdino merge part_1 part_2 part_3 --into studies",
}
