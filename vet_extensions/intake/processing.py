"""Raw detector values (FOR PROCESSING) to a picture: `pixels` calls `attenuation` where the option `for_processing` is "log".

DICOM defines no transformation for presentation of such images; what it does define is how the values relate to the X-ray beam:
PixelIntensityRelationship and its Sign (PS3.3 C.8.11.3.1.2). What absorbs most is bright in a radiograph.
"""

import numpy as np
from pydicom import Dataset

from vet_extensions.intake.dicom import number, text
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import Note, RejectionCode


def attenuation(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """float64 like `values` (after the modality transformation): high where much of the beam was absorbed, on a log scale.

    LIN: values are proportional to the beam's intensity, so the logarithm is taken, of at least 1 (Beer-Lambert: the logarithm
    is proportional to what was passed). LOG: it has been taken. Falling values with a sign of -1 are counted from the greatest.
    Errors: Refusal with FOR_PROCESSING where the relationship is another one or is not stated.
    """
    relationship = text(dataset, "PixelIntensityRelationship").upper()
    if relationship not in ("LIN", "LOG"):
        raise Refusal(RejectionCode.FOR_PROCESSING, "PixelIntensityRelationship is neither LIN nor LOG")
    sign, _ = _sign(dataset)
    if relationship == "LIN":
        intensity = values if sign > 0 else values.max() + 1.0 - values
        return -np.log(np.maximum(intensity, 1.0))
    return -values if sign > 0 else values


def processing_notes(dataset: Dataset) -> tuple[Note, ...]:
    """What the manifest says of an image that went through `attenuation`."""
    _, is_stated = _sign(dataset)
    return (Note.FOR_PROCESSING,) if is_stated else (Note.FOR_PROCESSING, Note.SIGN_ASSUMED)


def _sign(dataset: Dataset) -> tuple[int, bool]:
    """1 where lower values mean less beam, -1 where higher ones do, and whether the file states it.

    Without the attribute the photometric interpretation tells: in MONOCHROME1 low values are meant to be bright.
    """
    sign = number(dataset, "PixelIntensityRelationshipSign")
    if sign in (1, -1):
        return int(sign), True
    return (1 if text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1" else -1), False
