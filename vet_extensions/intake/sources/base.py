"""What every source gives intake: items in a fixed order, and the bytes of each. The adapters beside this file implement it.

DICOM files speak for themselves: their items carry no facts, and intake reads the header. Of a PNG or JPEG only a table knows who
and what it shows: such items carry `ImageFacts`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from vet_extensions.schema import Rejection, Split, View


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a table says of one image, in the manifest's words.

    patient, study, image: the source's own identifiers; intake hashes them and nothing else leaves it. A source that knows no
    studies gives every image one of its own.
    view_source: the rule that decided the view, such as "ViewPosition (MIMIC-CXR)".
    labels: finding -> 1 present, 0 absent, -1 uncertain; what is not stated is left out.
    split: the one that the data set itself prescribes; None where it prescribes none.
    """

    patient: str
    study: str
    image: str
    view: View = View.UNKNOWN
    view_source: str = ""
    species: str = ""
    body_part: str = ""
    laterality: str = ""
    spacing_mm: tuple[float, float] | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One thing that should become an image, or a reason why it cannot.

    key: unique within the source, "/" between its levels; items come sorted by it. size: bytes, -1 where not known beforehand.
    stamp: changes when the content may have changed (time of change, CRC, ETag). problem: why it is not worth opening.
    facts: None where the item is a DICOM file.
    """

    key: str
    size: int = -1
    stamp: str = ""
    problem: Rejection | None = None
    facts: ImageFacts | None = None


class Source(Protocol):
    """A place with images. Picklable and cheap to pickle: workers open the items themselves."""

    @property
    def name(self) -> str:
        """What intake.json calls it."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Findings that the facts may speak of; empty for DICOM."""
        ...

    @property
    def label_policy(self) -> Mapping[str, str]:
        """How the labels were read, for intake.json; empty where there are none."""
        ...

    def items(self) -> Iterator[SourceItem]:
        """Every item, sorted by key (as bytes). What a table names and the disk lacks is an item with a problem, and what lies on
        the disk and no table names is counted in the log. Errors: UserError where the place is not what the source expects."""
        ...

    def open(self, key: str) -> BinaryIO:
        """The item's bytes, seekable. Errors: OSError."""
        ...
