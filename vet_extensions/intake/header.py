"""What the manifest needs to know of one item, from its facts and its header: the first of intake's two passes.

`passes` sends a `HeaderReader` to the workers. Identifiers are hashed here, before they leave the worker.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from pydicom import Dataset

from vet_extensions.intake.decode import transfer_syntax
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.dicom import (
    PRESENTATION_CLASSES,
    check_is_radiograph,
    largest_file,
    number,
    open_dicom,
    pixel_layout,
    text,
)
from vet_extensions.intake.evidence import CODE_KEYWORDS, TEXT_KEYWORDS, Evidence, Finding, RawTexts, decide
from vet_extensions.intake.frames import chosen_frames, frame_image_id
from vet_extensions.intake.mapping import NO_MAPPING, ViewMapping, read_mapping
from vet_extensions.intake.opening import BoundedFile, opened
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.raster import largest_raster, probe_raster
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.sources.base import ImageFacts, Source
from vet_extensions.intake.words import Code
from vet_extensions.schema import ImageRecord, Note, Rejection, RejectionCode, View

HeaderTask: TypeAlias = tuple[str, str, ImageFacts | None]
"""Key of the item, its pseudonym, and what a table says of it."""


@dataclass(frozen=True)
class HeaderReader:
    """The header pass for one item of `source`, called in a worker; picklable.

    What the facts state holds; the rest is read in the header. Without facts an item must be a DICOM file, with them it may also
    be a PNG, JPEG or TIFF: its first bytes tell. The user's mapping is read once, when the reader is made. Errors: UserError for
    one that cannot be used.
    """

    pseudonyms: Pseudonyms
    options: IntakeOptions
    source: Source
    mapping: ViewMapping = field(init=False)

    def __post_init__(self) -> None:
        path = self.options.view_map
        object.__setattr__(self, "mapping", NO_MAPPING if path is None else read_mapping(path))

    def __call__(self, task: HeaderTask) -> tuple[ImageRecord, ...] | Rejection:
        return self.with_raw_values(task)[0]

    def with_raw_values(self, task: HeaderTask) -> tuple[tuple[ImageRecord, ...] | Rejection, RawTexts]:
        """The answer, and the texts that it was decided by, for OUT/private only; none with a rejection."""
        key, source_id, facts = task
        try:
            return self.read_records(key, source_id=source_id, facts=facts)
        except Refusal as refusal:
            return refusal.rejection, ()
        except MemoryError:
            raise  # the pool names it
        except Exception as error:
            reason = f"the header cannot be interpreted ({type(error).__name__})"
            return Rejection(RejectionCode.HEADER_MALFORMED, reason), ()

    def read_records(
        self, key: str, *, source_id: str, facts: ImageFacts | None = None
    ) -> tuple[tuple[ImageRecord, ...], RawTexts]:
        """The records of an item's images, one a frame, as far as the header tells: stored size is still 0, the pixel hash "".

        patient_id is "" where neither file nor facts name a patient. Errors: Refusal.
        """
        max_pixels = self.options.max_pixels
        max_bytes = largest_file(max_pixels) if facts is None else largest_raster(max_pixels)
        with opened(self.source, key, max_bytes=max_bytes) as file:
            if facts is None or is_dicom(file):
                return self._dicom_records(file, source_id, facts)
            return (self._raster_record(file, source_id, facts),), ()

    def _raster_record(self, file: BoundedFile, source_id: str, facts: ImageFacts) -> ImageRecord:
        probed = probe_raster(file, max_pixels=self.options.max_pixels, colour=self.options.colour)
        finding = _stated(decide(Evidence(), mapping=self.mapping), facts)
        return ImageRecord(
            image_id=self.pseudonyms.image(facts.image),
            study_id=self.pseudonyms.study(facts.study),
            patient_id=self.pseudonyms.patient(facts.patient) if facts.patient else "",
            view=finding.view,
            view_source=finding.view_source,
            rows=probed.rows,
            columns=probed.columns,
            stored_rows=0,
            stored_columns=0,
            species=finding.species,
            body_part=finding.body_part,
            laterality=finding.laterality,
            spacing_mm=facts.spacing_mm,
            photometric=probed.photometric,
            bits_stored=probed.bits,
            transfer_syntax=probed.format,
            source_id=source_id,
        )

    def _dicom_records(
        self, file: BoundedFile, source_id: str, facts: ImageFacts | None
    ) -> tuple[tuple[ImageRecord, ...], RawTexts]:
        with open_dicom(file, with_pixels=False, max_pixels=self.options.max_pixels) as dataset:
            check_is_radiograph(
                dataset,
                accept_secondary_capture=self.options.accept_secondary_capture,
                accept_for_processing=self.options.for_processing != "reject",
            )
            if self.options.burned_in == "reject" and _is_identifying(dataset):
                raise Refusal(RejectionCode.BURNED_IN_TEXT, "its header says that the pixels may identify someone")
            if facts is None:
                image_uid, study_uid = (_identifier(dataset, name) for name in ("SOPInstanceUID", "StudyInstanceUID"))
                patient_id = text(dataset, "PatientID")
            else:
                image_uid, study_uid, patient_id = facts.image, facts.study, facts.patient
            syntax = transfer_syntax(dataset)
            layout = pixel_layout(dataset, max_pixels=self.options.max_pixels)
            if self.options.colour == "reject" and not layout.is_monochrome:
                raise Refusal(RejectionCode.UNSUPPORTED_PHOTOMETRIC, f"{layout.photometric}: stored in colour")
            frames = chosen_frames(layout.n_frames, policy=self.options.multi_frame)
            evidence = _evidence(dataset)
            finding = _stated(decide(evidence, mapping=self.mapping), facts)
            notes = [Note.BURNED_IN_TEXT] if self.options.burned_in == "flag" and _is_identifying(dataset) else []
            notes += [Note.SPECIES_FROM_BREED] * finding.is_species_of_breed
            first = ImageRecord(
                image_id=self.pseudonyms.image(image_uid),
                study_id=self.pseudonyms.study(study_uid),
                patient_id=self.pseudonyms.patient(patient_id) if patient_id else "",
                view=finding.view,
                view_source=finding.view_source,
                rows=layout.rows,
                columns=layout.columns,
                stored_rows=0,
                stored_columns=0,
                species=finding.species,
                body_part=finding.body_part,
                laterality=finding.laterality,
                spacing_mm=(None if facts is None else facts.spacing_mm) or _spacing(dataset),
                photometric=layout.photometric,
                bits_stored=layout.bits_stored,
                transfer_syntax=syntax,
                source_id=source_id,
                notes=tuple(notes),
            )
        ids = [frame_image_id(self.pseudonyms, image_uid, frame=frame) for frame in frames]
        return tuple(replace(first, image_id=ids[frame], frame=frame) for frame in frames), evidence.raw_values()


def is_dicom(file: BoundedFile) -> bool:
    """Whether the file carries the DICOM mark (PS3.10 section 7.1); it stands at its start again afterwards."""
    start = file.read(132)
    file.seek(0)
    return start[128:] == b"DICM"


def _stated(finding: Finding, facts: ImageFacts | None) -> Finding:
    """`finding` of the header, and what the table states instead."""
    if facts is None:
        return finding
    if facts.view is not View.UNKNOWN:
        finding = replace(finding, view=facts.view, view_source=facts.view_source)
    if facts.species:
        finding = replace(finding, species=facts.species, is_species_of_breed=False)
    return replace(
        finding,
        body_part=facts.body_part or finding.body_part,
        laterality=facts.laterality or finding.laterality,
    )


def _identifier(dataset: Dataset, keyword: str) -> str:
    value = text(dataset, keyword)
    if not value:
        raise Refusal(RejectionCode.MISSING_IDENTIFIER, f"{keyword} is missing or empty")
    return value


def _evidence(dataset: Dataset) -> Evidence:
    is_mammogram = PRESENTATION_CLASSES.get(text(dataset, "SOPClassUID")) == "MG" or text(dataset, "Modality") == "MG"
    return Evidence(
        texts={keyword: text(dataset, keyword) for keyword in TEXT_KEYWORDS},
        codes={keyword: tuple(_codes(dataset, keyword)) for keyword in CODE_KEYWORDS},
        is_mammogram=is_mammogram,
    )


def _is_identifying(dataset: Dataset) -> bool:
    """Whether the header says that the pixels may identify someone.

    BurnedInAnnotation (0028,0301), RecognizableVisualFeatures (0028,0302): PS3.3 C.7.6.1.
    """
    return any(text(dataset, name).upper() == "YES" for name in ("BurnedInAnnotation", "RecognizableVisualFeatures"))


def _codes(dataset: Dataset, keyword: str) -> list[Code]:
    """The items of a code sequence (PS3.3 section 8.8); long values and URNs stand in attributes of their own."""
    items = dataset.get(keyword) or []
    codes = []
    for item in items:
        value = text(item, "CodeValue") or text(item, "LongCodeValue") or text(item, "URNCodeValue")
        codes.append(Code(value, text(item, "CodingSchemeDesignator"), text(item, "CodeMeaning")))
    return codes


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """(row, column) mm: PixelSpacing (calibrated, PS3.3 10.7.1.3) before ImagerPixelSpacing (at the detector, C.8.11.4)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        row, column = number(dataset, keyword), number(dataset, keyword, index=1)
        if row is not None and column is not None and all(math.isfinite(v) and v > 0 for v in (row, column)):
            return row, column
    return None
