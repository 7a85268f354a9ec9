"""Which projection a radiograph shows, decided from its header by a fixed order of rules; `header` calls `decide_view`.

Order: ViewCodeSequence, ViewPosition, PatientOrientation, then the words of the descriptions. The first rule that can name a
view decides, and its name is kept with the record, so that a user can see how much rests on free text. Everything here works
on plain strings. Codes: DICOM PS3.16 CID 4010 (DX View), CID 4014 (View for Mammography), CID 7484 (DX View for Animal),
given in SNOMED CT and, where one exists, in the older SNOMED RT form that most files still carry.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vet_extensions.schema import View

SNOMED_SCHEMES = frozenset({"SCT", "SRT", "SNM3", "99SDM"})
"""Coding scheme designators of SNOMED CT and RT (PS3.16 section 8.1)."""

UNDECIDED = "none"
"""The rule's name when no rule could decide."""


@dataclass(frozen=True)
class Code:
    """One item of a code sequence (PS3.3 section 8.8)."""

    value: str
    scheme: str = "SCT"
    meaning: str = ""


# The left lateral lies on its left side: the beam enters right and leaves left ("right-left lateral" in CID 7484).
VIEW_CODES: dict[str, View] = {
    "399173006": View.LATERAL_LEFT,
    "R-10236": View.LATERAL_LEFT,
    "399198007": View.LATERAL_RIGHT,
    "R-10232": View.LATERAL_RIGHT,
    "399067008": View.LATERAL,
    "R-102CD": View.LATERAL,
    "399260004": View.LATERAL,  # medio-lateral
    "R-10224": View.LATERAL,
    "399352003": View.LATERAL,  # latero-medial
    "R-10228": View.LATERAL,
    "442441009": View.VD,
    "441672003": View.DV,
    "272479007": View.PA,
    "R-10214": View.PA,
    "R-40888": View.PA,
    "399348003": View.AP,
    "R-10206": View.AP,
    "441505008": View.AP,  # dorsopalmar: front to back of a limb
    "399335002": View.AP,  # dorsoplantar
    "399071006": View.PA,  # plantodorsal
    "399368009": View.MLO,
    "R-10226": View.MLO,
    "399182000": View.OBLIQUE,
    "399038007": View.OBLIQUE,
    "399059000": View.OBLIQUE,
    "399099002": View.OBLIQUE,
    "399135007": View.OBLIQUE,
    "260427002": View.OBLIQUE,
    "399236003": View.OBLIQUE,
    "399356000": View.OBLIQUE,
    "399312000": View.OBLIQUE,
    "399184004": View.OBLIQUE,
    "260426006": View.OBLIQUE,
    "399006002": View.OBLIQUE,
}

# Cranio-caudal is a view of the breast in a mammogram, and the front-to-back view of a limb elsewhere.
MAMMOGRAPHIC_CODES: dict[str, View] = {"399162004": View.CC, "R-10242": View.CC}
LIMB_CODES: dict[str, View] = {
    "399162004": View.AP,
    "R-10242": View.AP,
    "399196006": View.PA,
    "R-10244": View.PA,
}

# ViewPosition (0018,5101), PS3.3 C.8.1.1: LL and RL name the side next to the detector, as the vocabulary here does.
VIEW_POSITIONS: dict[str, View] = {
    "AP": View.AP,
    "PA": View.PA,
    "LL": View.LATERAL_LEFT,
    "RL": View.LATERAL_RIGHT,
    "L": View.LATERAL,
    "LAT": View.LATERAL,
    "LATERAL": View.LATERAL,
    "ML": View.LATERAL,
    "LM": View.LATERAL,
    "VD": View.VD,
    "DV": View.DV,
    "CC": View.CC,
    "MLO": View.MLO,
    "RLO": View.OBLIQUE,
    "LLO": View.OBLIQUE,
}

_OBLIQUES = r"OBL|OBLI?Q(UE)?|OBLICUA|RAO|LAO|RPO|LPO|RLO|LLO|DLPMO|DMPLO|DLPLMO|D\d+[A-Z]+O"
# A decubitus picture may be a frontal one with a horizontal beam (people) or a lateral one (animals): nothing is concluded.
_DECUBITUS = r"LLD|RLD|DECUB\w*"
_DECISIVE: tuple[tuple[str, View | None], ...] = (
    (r"MLO|MEDIO ?LATERAL OBLIQUE", View.MLO),
    (_OBLIQUES, View.OBLIQUE),
    (_DECUBITUS, None),
)
_FRONTAL: tuple[tuple[str, View], ...] = (
    (r"VD|VENTRO ?DORSAL\w*", View.VD),
    (r"DV|DORSO ?VENTRAL\w*", View.DV),
    (r"PA|POSTERO ?ANTERIOR", View.PA),
    (r"AP|ANTERO ?POSTERIOR", View.AP),
    (r"DP|DORSO ?PALMAR|DORSO ?PLANTAR|CRCD|CRCA", View.AP),
    (r"CDCR|CACR|PALMARO ?DORSAL|PLANTARO ?DORSAL", View.PA),
)
_LATERAL = r"LATERAL(IS)?|LAT|LL|RL|LLAT|RLAT|ML|LM|(MEDIO|LATERO) ?(LATERAL|MEDIAL)"
# The side must stand beside the word lateral: in "RIGHT ELBOW LATERAL" it is the limb that is right.
_SIDES: tuple[tuple[str, View], ...] = (
    (r"(LEFT|LT|L) (LATERAL|LAT)|(LATERAL|LAT) (LEFT|LT|L)( RECUMB\w*|$)|LEFT RECUMB\w*|LL|LLAT", View.LATERAL_LEFT),
    (
        r"(RIGHT|RT|R) (LATERAL|LAT)|(LATERAL|LAT) (RIGHT|RT|R)( RECUMB\w*|$)|RIGHT RECUMB\w*|RL|RLAT",
        View.LATERAL_RIGHT,
    ),
)


def decide_view(
    *,
    codes: Iterable[Code] = (),
    position: str = "",
    orientation: Sequence[str] = (),
    texts: Iterable[tuple[str, str]] = (),
    is_mammogram: bool = False,
) -> tuple[View, str]:
    """The view and the name of the rule that decided it; (UNKNOWN, "none") if none could.

    codes: the items of ViewCodeSequence. position: ViewPosition. orientation: the two values of PatientOrientation.
    texts: (keyword, text) of the descriptions, in the order in which they are believed.
    """
    for code in codes:
        view = _view_of_code(code, is_mammogram=is_mammogram)
        if view is not None:
            return view, "ViewCodeSequence"
    cleaned = _clean(position)
    view = VIEW_POSITIONS.get(cleaned) or view_in_words(cleaned, is_mammogram=is_mammogram)
    if view is not None:
        return view, "ViewPosition"
    if shows_lateral(orientation):
        return View.LATERAL, "PatientOrientation"
    for keyword, text in texts:
        view = view_in_words(text, is_mammogram=is_mammogram)
        if view is not None:
            return view, keyword
    return View.UNKNOWN, UNDECIDED


def view_in_words(text: str, *, is_mammogram: bool = False) -> View | None:
    """The one view that a free text names; None when it names none, or several (as study descriptions do)."""
    cleaned = _clean(text)
    for pattern, decisive in _DECISIVE:
        if _has(pattern, cleaned):
            return decisive
    found = {view for pattern, view in _FRONTAL if _has(pattern, cleaned)}
    if _has(r"CC|CRANIO ?CAUDAL", cleaned):
        found.add(View.CC if is_mammogram else View.AP)
    if _has(r"CAUDO ?CRANIAL", cleaned) and not is_mammogram:
        found.add(View.PA)
    sides = {view for pattern, view in _SIDES if _has(pattern, cleaned)}
    if sides:
        found |= sides
    elif _has(_LATERAL, cleaned):
        found.add(View.LATERAL)
    return found.pop() if len(found) == 1 else None


def shows_lateral(orientation: Sequence[str]) -> bool:
    """Whether PatientOrientation (PS3.3 C.7.6.1.1.1) says that rows and columns lie in the sagittal plane.

    Bipeds: one axis front to back (A, P), the other head to foot (H, F). Quadrupeds: one dorsal to ventral (D, V), the other
    cranial to caudal (CR, CD). A frontal picture's letters do not tell VD from DV nor PA from AP, so only laterals are decided.
    """
    if len(orientation) != 2:
        return False
    return {_leading_direction(value) for value in orientation} == {"depth", "length"}


def decide_laterality(*, image_laterality: str, laterality: str) -> str:
    """L, R, B (both), U (unpaired) or "". ImageLaterality (0020,0062) speaks of this image, Laterality of its series."""
    for value in (image_laterality, laterality):
        letter = _clean(value)
        if letter in ("L", "R", "B", "U"):
            return letter
    return ""


def _view_of_code(code: Code, *, is_mammogram: bool) -> View | None:
    if code.scheme.strip().upper() in SNOMED_SCHEMES:
        value = code.value.strip().upper()
        view = (MAMMOGRAPHIC_CODES if is_mammogram else LIMB_CODES).get(value) or VIEW_CODES.get(value)
        if view is not None:
            return view
    return view_in_words(code.meaning, is_mammogram=is_mammogram)


_DEPTH = ("A", "P", "D", "V")
_LENGTH = ("H", "F", "CR", "CD")
_TWO_LETTERS = ("CR", "CD", "PR", "DI", "PA", "PL", "LE", "RT")


def _leading_direction(value: str) -> str:
    """The axis of the main direction; what follows it ("AF") is a small deviation. Two-letter names (quadrupeds) come first."""
    cleaned = value.strip().upper()
    first = cleaned[:2] if cleaned[:2] in _TWO_LETTERS else cleaned[:1]
    if first in _DEPTH:
        return "depth"
    return "length" if first in _LENGTH else "other"


def _clean(text: str) -> str:
    """Upper case, every run of anything but letters and digits a single space."""
    return re.sub(r"[^A-Z0-9]+", " ", text.upper()).strip()


def _has(pattern: str, cleaned: str) -> bool:
    return re.search(rf"(?<![A-Z0-9])(?:{pattern})(?![A-Z0-9])", cleaned) is not None
