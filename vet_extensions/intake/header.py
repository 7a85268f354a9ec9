"""What the manifest needs to know of one file, from its header alone: the first of intake's two passes over the files.

`run` sends a `HeaderReader` to its workers. Identifiers are hashed here, before they leave the worker.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import Dataset

from vet_extensions.intake.decode import transfer_syntax
from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.dicom import (
    PRESENTATION_CLASSES,
    check_is_radiograph,
    number,
    open_dicom,
    pixel_layout,
    text,
)
from vet_extensions.intake.evidence import CODE_KEYWORDS, TEXT_KEYWORDS, Evidence, RawTexts, decide
from vet_extensions.intake.frames import chosen_frames, frame_image_id
from vet_extensions.intake.mapping import NO_MAPPING, ViewMapping, read_mapping
from vet_extensions.intake.options import IntakeOptions
from vet_extensions.intake.refusal import Refusal
from vet_extensions.intake.words import Code
from vet_extensions.schema import ImageRecord, Note, Rejection, RejectionCode


@dataclass(frozen=True)
class HeaderReader:
    """The header pass for one file, called in a worker with its path and pseudonym; picklable.

    The user's mapping is read once, when the reader is made. Errors: UserError for one that cannot be used.
    """

    pseudonyms: Pseudonyms
    options: IntakeOptions
    mapping: ViewMapping = field(init=False)

    def __post_init__(self) -> None:
        path = self.options.view_map
        object.__setattr__(self, "mapping", NO_MAPPING if path is None else read_mapping(path))

    def __call__(self, task: tuple[str, str]) -> tuple[ImageRecord, ...] | Rejection:
        return self.with_raw_values(task)[0]

    def with_raw_values(self, task: tuple[str, str]) -> tuple[tuple[ImageRecord, ...] | Rejection, RawTexts]:
        """The answer, and the texts that it was decided by, for OUT/private only; none with a rejection."""
        path, source_id = task
        try:
            return self.read_records(Path(path), source_id=source_id)
        except Refusal as refusal:
            return refusal.rejection, ()
        except Exception as error:
            reason = f"the header cannot be interpreted ({type(error).__name__})"
            return Rejection(RejectionCode.HEADER_MALFORMED, reason), ()

    def read_records(self, path: Path, *, source_id: str) -> tuple[tuple[ImageRecord, ...], RawTexts]:
        """The records of a file's images, one a frame, as far as the header tells: stored size and pixel hash are still 0 and "".

        patient_id is "" where the file names no patient. Errors: Refusal.
        """
        with open_dicom(path, with_pixels=False, max_pixels=self.options.max_pixels) as dataset:
            check_is_radiograph(
                dataset,
                accept_secondary_capture=self.options.accept_secondary_capture,
                accept_for_processing=self.options.for_processing != "reject",
            )
            if self.options.burned_in == "reject" and _is_identifying(dataset):
                raise Refusal(RejectionCode.BURNED_IN_TEXT, "its header says that the pixels may identify someone")
            image_uid, study_uid = (_identifier(dataset, name) for name in ("SOPInstanceUID", "StudyInstanceUID"))
            patient_id = text(dataset, "PatientID")
            syntax = transfer_syntax(dataset)
            layout = pixel_layout(dataset, max_pixels=self.options.max_pixels)
            if self.options.colour == "reject" and not layout.is_monochrome:
                raise Refusal(RejectionCode.UNSUPPORTED_PHOTOMETRIC, f"{layout.photometric}: stored in colour")
            frames = chosen_frames(layout.n_frames, policy=self.options.multi_frame)
            evidence = _evidence(dataset)
            finding = decide(evidence, mapping=self.mapping)
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
                spacing_mm=_spacing(dataset),
                photometric=layout.photometric,
                bits_stored=layout.bits_stored,
                transfer_syntax=syntax,
                source_id=source_id,
                notes=tuple(notes),
            )
        ids = [frame_image_id(self.pseudonyms, image_uid, frame=frame) for frame in frames]
        return tuple(replace(first, image_id=ids[frame], frame=frame) for frame in frames), evidence.raw_values()


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
