"""Who is who, made unreadable: salted hashes for identifiers, and the list of attributes that intake may read at all.

`run` makes one `Pseudonyms` an intake and hands it to the workers. A hash cannot be turned back or guessed without the salt,
which stays in OUT/private (mode 0700) on the machine. The approach follows DICOM PS3.15 Annex E (Basic Application
Confidentiality Profile): what is not on the list below is not read, rather than read and removed.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from vet_extensions.errors import UserError

ID_DIGITS = 16
"""64 bits: among 5 million images the chance that any two collide is below 1 in a million."""

IDENTIFIER_KEYWORDS = ("SOPInstanceUID", "StudyInstanceUID", "PatientID")
"""Read, hashed, and forgotten."""

DESCRIPTION_KEYWORDS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "StudyDescription",
)
"""Free text, searched for view and body-part words when the coded attributes say nothing; never stored."""

HEADER_KEYWORDS = (
    *IDENTIFIER_KEYWORDS,
    *DESCRIPTION_KEYWORDS,
    "SpecificCharacterSet",
    "SOPClassUID",
    "Modality",
    "PresentationIntentType",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "AnatomicalOrientationType",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "Laterality",
    "ImageLaterality",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
"""All that the header pass reads; every other attribute is skipped by the parser."""

PIXEL_KEYWORDS = (
    *HEADER_KEYWORDS,
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationLUTShape",
    "PixelIntensityRelationship",
    "PixelIntensityRelationshipSign",
    "PlanarConfiguration",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ShutterShape",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "CenterOfCircularShutter",
    "RadiusOfCircularShutter",
    "VerticesOfThePolygonalShutter",
    "CollimatorShape",
    "CollimatorLeftVerticalEdge",
    "CollimatorRightVerticalEdge",
    "CollimatorUpperHorizontalEdge",
    "CollimatorLowerHorizontalEdge",
    "CenterOfCircularCollimator",
    "RadiusOfCircularCollimator",
    "VerticesOfThePolygonalCollimator",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
)
"""All that the pixel pass reads."""


@dataclass(frozen=True)
class Pseudonyms:
    """Salted one-way names: HMAC-SHA256 of a kind and a value, first 16 hexadecimal digits. Picklable."""

    salt: str

    def of(self, kind: str, value: str | bytes) -> str:
        """The pseudonym of `value`; equal values of two kinds (a patient, a file) get unrelated pseudonyms."""
        raw = value if isinstance(value, bytes) else value.encode("utf-8", errors="surrogateescape")
        message = kind.encode() + b"\0" + raw
        return hmac.new(self.salt.encode(), message, hashlib.sha256).hexdigest()[:ID_DIGITS]

    def patient(self, patient_id: str) -> str:
        return self.of("patient", patient_id)

    def patient_of_study(self, study_id: str) -> str:
        """The patient of a study whose files name none: one patient a study."""
        return self.of("patient-of-study", study_id)

    def study(self, study_uid: str) -> str:
        return self.of("study", study_uid)

    def image(self, sop_instance_uid: str) -> str:
        return self.of("image", sop_instance_uid)

    def file(self, relative_path: str) -> str:
        return self.of("file", os.fsencode(relative_path))

    def fingerprint(self) -> str:
        """Tells two salts apart without giving either away."""
        return self.of("salt", b"")


def load_or_make_salt(private: Path, *, given: str | None) -> str:
    """The salt kept in `private`, or `given`, or a new random one; kept in `private/salt` (0600, folder 0700) from then on.

    Errors: UserError where the kept salt is not the given one, since the identifiers of one folder must be comparable.
    """
    path = private / "salt"
    if path.exists():
        kept = path.read_text(encoding="utf-8").strip()
        if given is not None and given != kept:
            raise UserError(
                "The output folder was made with another salt than the one given. "
                "Leave the salt out to go on with the kept one, or write to a new folder."
            )
        return kept
    salt = secrets.token_hex(32) if given is None else given
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    private.chmod(0o700)
    temporary = private / "salt.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(salt + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return salt
