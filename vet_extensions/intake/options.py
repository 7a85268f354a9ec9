"""What a user may choose about an intake, and what it reports when it is done. Used by `run`, the command line and the demo."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vet_extensions.errors import UserError
from vet_extensions.intake.mapping import read_mapping
from vet_extensions.schema import SCHEMA_VERSION, Split

MIN_SIDE_PX = 16
"""Images with a shorter side are icons or test patterns and are rejected as TOO_SMALL."""

POLICIES = {
    "colour": ("reject", "neutral", "grey"),
    "for_processing": ("reject", "log"),
    "multi_frame": ("reject", "first", "each"),
    "collimation": ("keep", "crop"),
    "equal_pixels": ("keep", "reject"),
    "burned_in": ("keep", "flag", "reject"),
}
"""Options that choose among named treatments, and the names."""


@dataclass(frozen=True, kw_only=True)
class IntakeOptions:
    """Choices that decide an intake's output. The same options on the same files give the same bytes.

    longest_side_px: stored images are reduced to this; smaller ones are kept as they are, never enlarged.
    bits: 8 or 16 per stored grey value.
    labels: a CSV, TSV or Parquet table with a column SOPInstanceUID or StudyInstanceUID; see `labels.read_labels`.
    label_columns: the columns of that table that are findings; None takes those called `label.<finding>`, and if there are
        none, every column that holds nothing but 0, 1, -1 and empty cells.
    split_fractions: shares of the patients for train, val and test; they sum to 1. split_seed: decides who goes where.
    official_split: where a data set prescribes a split, take it; the shares and the seed hold for the patients that have none.
    accept_secondary_capture: also take Secondary Capture objects (screen shots and digitised film, as a rule).
    colour: "neutral" takes colour images whose pixels are all but grey (a radiograph that was stored in colour) and rejects the
        others (photographs, ultrasound, painted screenshots); "grey" takes them all, as their luminance; "reject" takes none.
    for_processing: "reject", or "log" to bring raw detector values to a picture by their logarithm.
    multi_frame: "reject", or "first" or "each" frame of a file with several.
    collimation: "keep" the whole image, or "crop" it to the exposed field, as the attributes tell it or else the pixels show it.
    equal_pixels: "keep" pictures that occur under several SOPInstanceUIDs (they are counted), or "reject" all but the first.
    burned_in: what is done where the header says that names or faces may be seen in the image: "flag" notes it in the manifest,
        "keep" does not, "reject" refuses them. Text that the header is silent about is not found.
    view_map: a CSV or YAML table from raw values to views, body parts and species; see `mapping.read_mapping`.
    max_pixels: larger images are rejected before they are decoded.
    salt: the secret behind the pseudonyms; None keeps or makes one in OUT/private/salt.
    """

    longest_side_px: int = 512
    bits: int = 8
    labels: Path | None = None
    label_columns: tuple[str, ...] | None = None
    split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    official_split: bool = True
    accept_secondary_capture: bool = False
    colour: str = "neutral"
    for_processing: str = "reject"
    multi_frame: str = "reject"
    collimation: str = "keep"
    equal_pixels: str = "keep"
    burned_in: str = "flag"
    view_map: Path | None = None
    max_pixels: int = 100_000_000
    salt: str | None = None

    def __post_init__(self) -> None:
        if self.longest_side_px < MIN_SIDE_PX:
            raise UserError(
                f"longest_side_px is {self.longest_side_px}; at least {MIN_SIDE_PX} pixels are needed. Give a larger number."
            )
        if self.bits not in (8, 16):
            raise UserError(f"bits is {self.bits}; stored images have 8 or 16 bits. Give 8 or 16.")
        for name, allowed in POLICIES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is '{getattr(self, name)}'. Give one of {', '.join(allowed)}.")
        if self.max_pixels < MIN_SIDE_PX**2:
            raise UserError(f"max_pixels is {self.max_pixels}; give at least {MIN_SIDE_PX**2}.")
        if self.salt is not None and len(self.salt) < 8:
            raise UserError(
                f"The salt has {len(self.salt)} characters; with fewer than 8 the pseudonyms could be guessed. "
                "Give a longer one, or none to have one made."
            )
        shares = self.split_fractions
        if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                f"split_fractions is {shares}; it needs three shares for train, val and test, none negative, train above 0, "
                "and a sum of 1. The usual ones are (0.7, 0.1, 0.2)."
            )

    @property
    def fractions(self) -> dict[Split, float]:
        """The share of each split."""
        return dict(zip(Split, self.split_fractions))

    def as_json(self) -> dict[str, Any]:
        """The choices that decide the output, without the secret and without paths (they may hold names); of the mapping a hash.

        Errors: UserError for a mapping that cannot be used.
        """
        values = asdict(self)
        del values["salt"], values["labels"]
        values["view_map"] = None if self.view_map is None else read_mapping(self.view_map).fingerprint
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How a label table met the images.

    n_rows: rows of the table; n_rows_unmatched: rows whose UID belongs to no accepted image; n_images_without_row: accepted
    images that no row speaks of. columns: the findings; ignored_columns: the others.
    """

    n_rows: int
    n_rows_unmatched: int
    n_images_without_row: int
    columns: tuple[str, ...]
    ignored_columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class IntakeSummary:
    """What OUT/intake.json says. n_files = n_accepted + n_rejected: no file is lost, each frame that is read counts as a file.

    rejected: rejection code -> number of files. splits: split -> {"patients", "studies", "images"}.
    equal_pixels: {"pictures", "images"}: pictures that occur under several SOPInstanceUIDs, and the images that show them.
    source: {"name", "label_policy"}: what was read, and what became of uncertain and empty cells of its labels.
    official_split: patients whose split is the one that the source prescribes, those of them that it puts into several (they have
    the later of train, val, test), and those it says nothing of; empty where it prescribes none.
    notes: note -> number of images; see `schema.Note`.
    part: "i/N" of a part. salt_fingerprint: tells whether the ids of two folders can be compared.
    Not written to the file: was_already_done: nothing was read, OUT already held this very intake; n_headers_taken_over,
    n_images_taken_over: what an interrupted run had read already.
    """

    n_files: int
    n_accepted: int
    n_rejected: int
    n_patients: int
    n_studies: int
    rejected: dict[str, int]
    splits: dict[str, dict[str, int]]
    labels: LabelReport | None = None
    options: dict[str, Any] = field(default_factory=dict)
    run_key: str = ""
    equal_pixels: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    official_split: dict[str, int] = field(default_factory=dict)
    part: str = ""
    salt_fingerprint: str = ""
    schema_version: int = SCHEMA_VERSION
    was_already_done: bool = False
    n_headers_taken_over: int = 0
    n_images_taken_over: int = 0

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("was_already_done", "n_headers_taken_over", "n_images_taken_over"):
            del values[name]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "IntakeSummary":
        report = values.get("labels")
        if report is not None:
            columns = {name: tuple(report[name]) for name in ("columns", "ignored_columns")}
            report = LabelReport(**{**report, **columns})
        return cls(**{**values, "labels": report}, was_already_done=True)
