"""The values that cross rooms: the view vocabulary, the image record, rejection codes, and the layout of an intake folder.

Standard library only, so that every room may import it.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

SCHEMA_VERSION = 2
"""Version of the manifest's columns; written to and checked in the Parquet metadata."""


class View(StrEnum):
    """Radiographic projection, one vocabulary for veterinary and human studies.

    Laterals are named after the side that lies on the table (veterinary: right lateral = right recumbency).
    """

    LATERAL_LEFT = "LATERAL_LEFT"
    LATERAL_RIGHT = "LATERAL_RIGHT"
    LATERAL = "LATERAL"
    VD = "VD"
    DV = "DV"
    PA = "PA"
    AP = "AP"
    CC = "CC"
    MLO = "MLO"
    OBLIQUE = "OBLIQUE"
    UNKNOWN = "UNKNOWN"


class ViewFamily(StrEnum):
    """Views that show the body along one axis; groups for view-type-aware centring and for per-view results."""

    LATERAL = "lateral"
    FRONTAL = "frontal"
    OTHER = "other"


_FAMILY = {
    View.LATERAL_LEFT: ViewFamily.LATERAL,
    View.LATERAL_RIGHT: ViewFamily.LATERAL,
    View.LATERAL: ViewFamily.LATERAL,
    View.VD: ViewFamily.FRONTAL,
    View.DV: ViewFamily.FRONTAL,
    View.PA: ViewFamily.FRONTAL,
    View.AP: ViewFamily.FRONTAL,
}


def view_family(view: View | str) -> ViewFamily:
    """The family of a view; mammographic, oblique and unknown views are `OTHER`."""
    return _FAMILY.get(View(view), ViewFamily.OTHER)


class Split(StrEnum):
    """Patient-level split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class RejectionCode(StrEnum):
    """Why a file did not become an image record. Each value is a row of the table in docs/intake.md."""

    NOT_DICOM = "NOT_DICOM"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    UNREADABLE = "UNREADABLE"
    NOT_A_REGULAR_FILE = "NOT_A_REGULAR_FILE"
    FILE_MISSING = "FILE_MISSING"
    UNSAFE_PATH = "UNSAFE_PATH"
    HEADER_MALFORMED = "HEADER_MALFORMED"
    MISSING_IDENTIFIER = "MISSING_IDENTIFIER"
    UNSUPPORTED_SOP_CLASS = "UNSUPPORTED_SOP_CLASS"
    UNSUPPORTED_TRANSFER_SYNTAX = "UNSUPPORTED_TRANSFER_SYNTAX"
    UNSUPPORTED_PHOTOMETRIC = "UNSUPPORTED_PHOTOMETRIC"
    MULTI_FRAME = "MULTI_FRAME"
    FOR_PROCESSING = "FOR_PROCESSING"
    NO_PIXEL_DATA = "NO_PIXEL_DATA"
    TOO_LARGE = "TOO_LARGE"
    TOO_SMALL = "TOO_SMALL"
    PIXEL_DATA_TRUNCATED = "PIXEL_DATA_TRUNCATED"
    DECODE_FAILED = "DECODE_FAILED"
    TIMED_OUT = "TIMED_OUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    WORKER_DIED = "WORKER_DIED"
    INVALID_GREYSCALE_TRANSFORM = "INVALID_GREYSCALE_TRANSFORM"
    CONSTANT_IMAGE = "CONSTANT_IMAGE"
    BURNED_IN_TEXT = "BURNED_IN_TEXT"
    DUPLICATE = "DUPLICATE"
    CONFLICTING_DUPLICATE = "CONFLICTING_DUPLICATE"
    CONFLICTING_PATIENT = "CONFLICTING_PATIENT"
    ARCHIVE_LIMIT = "ARCHIVE_LIMIT"
    NESTED_ARCHIVE = "NESTED_ARCHIVE"
    ENCRYPTED_MEMBER = "ENCRYPTED_MEMBER"
    UNSAFE_MEMBER_NAME = "UNSAFE_MEMBER_NAME"
    DUPLICATE_MEMBER = "DUPLICATE_MEMBER"


class Note(StrEnum):
    """What intake did or saw beyond its usual steps. The manifest's `notes` holds them in this order, comma-separated."""

    COLOUR_TO_GREY = "colour-to-grey"
    FOR_PROCESSING = "for-processing"
    SIGN_ASSUMED = "sign-assumed"
    FIRST_OF_FRAMES = "first-of-frames"
    ONE_OF_FRAMES = "one-of-frames"
    CROPPED_BY_ATTRIBUTES = "cropped-by-attributes"
    CROPPED_BY_BORDER = "cropped-by-border"
    BURNED_IN_TEXT = "burned-in-text"
    SPECIES_FROM_BREED = "species-from-breed"


@dataclass(frozen=True)
class Crop:
    """The rectangle of the source image that was kept; pixels, `top` and `left` from 0."""

    top: int
    left: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Rejection:
    """A file that cannot be used. `detail` never holds a value that could identify a patient or owner."""

    code: RejectionCode
    detail: str


@dataclass(frozen=True)
class ImageRecord:
    """One accepted image. Identifiers are salted hashes; no name, date, address or original UID ever enters.

    spacing_mm: (row, column) distance between pixel centres of the *stored* image, None where the header has none.
    rows, columns: size of the source image; stored_rows, stored_columns: size in the shard after resizing.
    view_source: the rule that decided the view (for example "ViewPosition").
    labels: finding -> 1 present, 0 absent, -1 uncertain; a finding that is not stated is left out.
    pixel_hash: SHA-256 (first 16 hex digits) of the stored pixels and their shape.
    frame: number of the frame in a multi-frame file, from 0.
    crop: what was kept of the source image, None where all of it was.
    notes: what was done to the image beyond the usual steps, in the order of `Note`, each once.
    """

    image_id: str
    study_id: str
    patient_id: str
    view: View
    view_source: str
    rows: int
    columns: int
    stored_rows: int
    stored_columns: int
    species: str = ""
    body_part: str = ""
    laterality: str = ""
    spacing_mm: tuple[float, float] | None = None
    photometric: str = ""
    bits_stored: int = 0
    transfer_syntax: str = ""
    source_id: str = ""
    pixel_hash: str = ""
    labels: dict[str, int] = field(default_factory=dict)
    frame: int = 0
    crop: Crop | None = None
    notes: tuple[Note, ...] = ()


LABEL_PREFIX = "label."
"""Manifest columns that hold labels are called `label.<finding>`: int8, null = not stated."""


@dataclass(frozen=True)
class IntakeFolder:
    """Where an intake writes, and everything downstream reads.

    `private/` (mode 0700) holds the salt and the map from source_id to path: the only place from which a record could be
    traced back; it must not leave the machine and nothing downstream reads it.
    """

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def index(self) -> Path:
        return self.root / "shards" / "index.parquet"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected.csv"

    @property
    def summary(self) -> Path:
        return self.root / "intake.json"

    @property
    def private(self) -> Path:
        return self.root / "private"


GROSS_FINDINGS = (
    "cardiomegaly",
    "effusion",
    "pneumothorax",
    "megaesophagus",
    "consolidation",
    "hepatomegaly",
)
"""The phantom's findings that show at 64 pixels; the headline results are over these."""

FINE_FINDINGS = ("nodule", "foreign_body", "rib_fracture", "spondylosis")
"""The phantom's findings that need about 256 pixels."""

FINDINGS = GROSS_FINDINGS + FINE_FINDINGS
