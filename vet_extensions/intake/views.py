"""Which projection a radiograph shows, decided from its header by a fixed order of rules; `evidence` and the sources call it.

Order: ViewCodeSequence, ViewPosition, PatientOrientation, then the words of the descriptions. The first rule that can name a
view decides, and its name is kept with the record, so that a user can see how much rests on free text. Everything here works
on plain strings. Codes: DICOM PS3.16 CID 4010 (DX View), CID 4014 (View for Mammography), CID 7484 (DX View for Animal),
given in SNOMED CT and, where one exists, in the older SNOMED RT form that most files still carry. Why codes come before
ViewPosition: docs/decisions/0005. Which words are understood, and which are left alone on purpose: `view_words`.
"""

from collections.abc import Iterable, Sequence
from functools import partial

from vet_extensions.intake.anatomy import laterality_in_words
from vet_extensions.intake.view_words import view_in_words
from vet_extensions.intake.words import SNOMED_SCHEMES, Code, clean
from vet_extensions.schema import View

__all__ = ["SNOMED_SCHEMES", "Code", "decide_laterality", "decide_view", "shows_lateral", "view_in_words"]

UNDECIDED = "none"
"""The rule's name when no rule could decide."""

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
}

# CID 4010's obliques, then those of CID 7484, which name every angle apart.
_OBLIQUES = """
    399182000 399038007 399059000 399099002 399135007 260427002 399236003 399356000 399312000 399184004 260426006 399006002
    399225005 399288005 399160007
    442585008 442600005 442627009 442659002 442661006 442623008 442589002 442739007 442741008 442607008 442674000 442604001
    442598004 442745004 442632005 442636008 442582006 442643002 442601009 442586009 442590006 442622003 442660007 442675004
    442605000 442612009 442658005 442597009 442742001 442637004 442729001 442746003 442721003 442730006 442657000 442609006
    442583001 442629007 442602002 442587000 442621005 442644008 442606004 442738004 442630002 442592003 442625001 442611002
    442596000 442743006 442747007 442638009 442639001 442748002 442744000 442641000 442603007 442588005 442608003 442624002
    442645009 442631003 442628004 442599007 442740009 442610001 442591005 442595001
"""
OBLIQUE_CODES = frozenset(_OBLIQUES.split())

# Cranio-caudal is a view of the breast in a mammogram, and the front-to-back view of a limb elsewhere; so with the oblique.
MAMMOGRAPHIC_CODES: dict[str, View] = {
    "399162004": View.CC,
    "R-10242": View.CC,
    "399368009": View.MLO,
    "R-10226": View.MLO,
    "399188001": View.OBLIQUE,
    "441555000": View.OBLIQUE,
}
LIMB_CODES: dict[str, View] = {
    "399162004": View.AP,
    "R-10242": View.AP,
    "399196006": View.PA,
    "R-10244": View.PA,
    "399368009": View.OBLIQUE,
    "R-10226": View.OBLIQUE,
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


def decide_view(
    *,
    codes: Iterable[Code] = (),
    position: str = "",
    orientation: Sequence[str] = (),
    orientation_type: str = "",
    texts: Iterable[tuple[str, str]] = (),
    is_mammogram: bool = False,
    is_animal: bool = False,
    is_paired: bool = False,
) -> tuple[View, str]:
    """The view and the name of the rule that decided it; (UNKNOWN, "none") if none could.

    codes: the items of ViewCodeSequence. position: ViewPosition. orientation: the two values of PatientOrientation, and
    orientation_type: AnatomicalOrientationType. texts: (keyword, text) of the descriptions, in the order in which they are
    believed. is_animal: the header says so, which makes a decubitus a lateral one. is_paired: the part is one of two, a
    limb for example, so that a side in the texts is the part's and not the one that lies on the table.
    """
    in_words = partial(view_in_words, is_mammogram=is_mammogram, is_animal=is_animal, is_paired=is_paired)
    for code in codes:
        view = _view_of_code(code, is_mammogram=is_mammogram) or in_words(code.meaning)
        if view is not None:
            return view, "ViewCodeSequence"
    view = _view_of_position(position, is_mammogram=is_mammogram) or in_words(position)
    if view is not None:
        return view, "ViewPosition"
    if shows_lateral(orientation, orientation_type=orientation_type):
        return View.LATERAL, "PatientOrientation"
    for keyword, text in texts:
        view = in_words(text)
        if view is not None:
            return view, keyword
    return View.UNKNOWN, UNDECIDED


def shows_lateral(orientation: Sequence[str], *, orientation_type: str = "") -> bool:
    """Whether PatientOrientation (PS3.3 C.7.6.1.1.1) says that rows and columns lie in the sagittal plane.

    Bipeds: one axis front to back (A, P), the other head to foot (H, F). Quadrupeds: two of dorsal to ventral (D, V; PA and PL at
    the feet), cranial to caudal (CR, CD; R is rostral) and proximal to distal (PR, DI). A frontal picture's letters do not
    tell VD from DV nor PA from AP, so only laterals are decided. orientation_type: BIPED or QUADRUPED (0010,2210). Writers
    forget it, though it is required for animals: letters that no biped has are then taken for a quadruped's.
    """
    if len(orientation) != 2:
        return False
    values = [value.strip().upper() for value in orientation]
    kind = clean(orientation_type)
    if kind != "QUADRUPED" and all(map(_is_biped, values)):
        axes = {_BIPED[value[0]] for value in values}
    elif kind != "BIPED":
        axes = {_QUADRUPED.get(value[:2]) or _QUADRUPED.get(value[:1], "width") for value in values}
    else:
        return False
    return len(axes) == 2 and "width" not in axes


def decide_laterality(*, image_laterality: str, laterality: str, texts: Iterable[str] = ()) -> str:
    """L, R, B (both), U (unpaired) or "". ImageLaterality (0020,0062) speaks of this image, Laterality of its series.

    texts: descriptions, asked last for the side of a paired part ("right elbow"): Laterality is empty in most real files.
    """
    for value in (image_laterality, laterality):
        letter = clean(value)
        if letter in ("L", "R", "B", "U"):
            return letter
    return next((letter for letter in map(laterality_in_words, texts) if letter), "")


def _view_of_position(position: str, *, is_mammogram: bool) -> View | None:
    view = VIEW_POSITIONS.get(clean(position))
    return View.AP if view is View.CC and not is_mammogram else view


def _view_of_code(code: Code, *, is_mammogram: bool) -> View | None:
    value = code.snomed
    view = (MAMMOGRAPHIC_CODES if is_mammogram else LIMB_CODES).get(value) or VIEW_CODES.get(value)
    return View.OBLIQUE if view is None and value in OBLIQUE_CODES else view


def _is_biped(value: str) -> bool:
    """Whether each letter is a biped's and no two are of one axis: PA is palmar, not posterior and anterior."""
    axes = [_BIPED.get(letter) for letter in value]
    return bool(axes) and None not in axes and len(set(axes)) == len(axes)


_BIPED = {"A": "depth", "P": "depth", "H": "length", "F": "length", "R": "width", "L": "width"}
_QUADRUPED = {
    **dict.fromkeys(("D", "V", "PA", "PL"), "depth"),
    **dict.fromkeys(("CR", "CD", "R"), "length"),
    **dict.fromkeys(("PR", "DI"), "limb"),
    **dict.fromkeys(("LE", "RT", "M", "L"), "width"),
}
"""The axis of each direction. The main direction leads a value; what follows it ("AF") is a small deviation."""
