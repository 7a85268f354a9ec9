"""What a header says of view, body part, side and species, and what follows from it. `header` gathers it and calls `decide`.

One place for the order of the rules, so that a user's mapping, the raw-values table and the decisions speak of the same texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vet_extensions.intake.anatomy import PAIRED_PARTS, decide_body_part, decide_species, species_of_breed
from vet_extensions.intake.mapping import NO_MAPPING, ViewMapping
from vet_extensions.intake.views import decide_laterality, decide_view
from vet_extensions.intake.words import Code
from vet_extensions.schema import View

TEXT_KEYWORDS = (
    "ViewPosition",
    "PatientOrientation",
    "AnatomicalOrientationType",
    "ImageLaterality",
    "Laterality",
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "BodyPartExamined",
    "StudyDescription",
    "PatientSpeciesDescription",
    "PatientBreedDescription",
)
CODE_KEYWORDS = ("ViewCodeSequence", "AnatomicRegionSequence", "PatientSpeciesCodeSequence", "PatientBreedCodeSequence")

VIEW_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "BodyPartExamined")
"""Searched for view words, in this order. StudyDescription is not: it tells of all the study's views."""
PART_TEXTS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription", "StudyDescription")
"""Searched for body parts after BodyPartExamined."""

RawTexts = tuple[tuple[str, str], ...]
"""(attribute, value as it stands in the file) of all that is not empty. May hold names: for OUT/private only."""


@dataclass(frozen=True)
class Evidence:
    """The attributes of one image that speak of what it shows. texts, codes: by keyword; what is absent may be left out."""

    texts: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, tuple[Code, ...]] = field(default_factory=dict)
    is_mammogram: bool = False

    def text(self, keyword: str) -> str:
        return self.texts.get(keyword, "")

    def code(self, keyword: str) -> tuple[Code, ...]:
        return self.codes.get(keyword, ())

    def raw_values(self) -> RawTexts:
        """All that is stated, for the table of raw values and for a user's mapping."""
        stated = [(keyword, str(code)) for keyword in CODE_KEYWORDS for code in self.code(keyword)]
        return tuple(stated + [(keyword, self.text(keyword)) for keyword in TEXT_KEYWORDS if self.text(keyword)])


@dataclass(frozen=True)
class Finding:
    """What an image shows. view_source: the rule that decided, "mapping" for the user's. is_species_of_breed: the species
    itself was not stated, the breed tells it."""

    view: View
    view_source: str
    body_part: str
    laterality: str
    species: str
    is_species_of_breed: bool


def decide(evidence: Evidence, *, mapping: ViewMapping = NO_MAPPING) -> Finding:
    """The user's mapping first; then the rules of `views` and `anatomy`; then the mapping's own defaults."""
    stated = mapping.match(evidence.raw_values())
    species, is_of_breed = stated.species, False
    if species is None:
        species, is_of_breed = _species(evidence, default=mapping.default.species or "")
    body_part = stated.body_part
    if body_part is None:
        body_part = _body_part(evidence) or mapping.default.body_part or ""
    view, source = stated.view, "mapping"
    if view is None:
        view, source = decide_view(
            codes=evidence.code("ViewCodeSequence"),
            position=evidence.text("ViewPosition"),
            orientation=evidence.text("PatientOrientation").split("\\"),
            orientation_type=evidence.text("AnatomicalOrientationType"),
            texts=[(keyword, evidence.text(keyword)) for keyword in VIEW_TEXTS],
            is_mammogram=evidence.is_mammogram,
            is_animal=species not in ("", "human"),
            is_paired=body_part in PAIRED_PARTS,
        )
    if view is View.UNKNOWN and source != "mapping" and mapping.default.view is not None:
        view, source = mapping.default.view, "mapping"
    laterality = decide_laterality(
        image_laterality=evidence.text("ImageLaterality"),
        laterality=evidence.text("Laterality"),
        texts=[evidence.text(keyword) for keyword in VIEW_TEXTS],
    )
    return Finding(view, source, body_part, laterality, species, is_of_breed)


def _species(evidence: Evidence, *, default: str) -> tuple[str, bool]:
    species = decide_species(
        description=evidence.text("PatientSpeciesDescription"), codes=evidence.code("PatientSpeciesCodeSequence")
    )
    if species:
        return species, False
    species = species_of_breed(
        description=evidence.text("PatientBreedDescription"), codes=evidence.code("PatientBreedCodeSequence")
    )
    return species or default, bool(species)


def _body_part(evidence: Evidence) -> str:
    return decide_body_part(
        codes=evidence.code("AnatomicRegionSequence"),
        examined=evidence.text("BodyPartExamined"),
        texts=[evidence.text(keyword) for keyword in PART_TEXTS],
    )
