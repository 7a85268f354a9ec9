"""The words for projections in free text: English, German, French, Spanish, Italian and Portuguese. `views` asks `view_in_words`.

Words with two meanings decide nothing, or only what both have in common:

- "LL" and "RL" in free text are laterals without a side: European readers write LL for latero-lateral. (As a whole ViewPosition
  they are DICOM's own terms for left and right lateral, see `views`.)
- A side beside a paired part is the part's ("right elbow lateral"), not the side on the table.
- Decubitus, Seitenlage and recumbency with a horizontal beam: a frontal picture in people, a lateral one in animals. Without
  knowing that the patient is an animal, nothing is concluded.
- Axial, skyline and tangential pictures are none of the vocabulary's views.
- "Frontal", "face" and supine do not tell AP from PA nor VD from DV.
"""

import re
from functools import cache, lru_cache

from vet_extensions.intake.anatomy import PAIRED_PARTS, body_part_in_words
from vet_extensions.intake.words import clean, either, names, pattern, whole
from vet_extensions.schema import View

_MLO = "[RL]?MLO|OML"
_MLO_IN_WORDS = (
    "MEDIO LATERAL OBLIQU~|MEDIO LATERAL OBL|OBLICUA MEDIO LATERAL|OBLIQUA MEDIO LATERAL|OBLIQUE MEDIO LATERAL~"
)
# DLPMO is dorsolateral-palmaromedial oblique, D45LPMO the same with its angle.
_OBLIQUE = (
    "OBL|OBLIQ|OBLIQU~|OBLICU~|SCHRAG~|SCHRAEG~|SCHRAGAUFNAHME|TROIS QUARTS|RAO|LAO|RPO|LPO|RLO|LLO|"
    "[DP][LM]P[AL]?[LM]O|[DP][LM]D[LM]O|CR[LM]CD[LM]O|CD[LM]CR[LM]O|D[0-9]+[A-Z]+O|D [0-9]+ [LM] P[AL]?[LM]O|"
    "LE[DV]RT[DV]O|RT[DV]LE[DV]O|DORSO LATERAL~ PALMARO MEDIAL~|DORSO LATERAL~ PLANTARO MEDIAL~|"
    "DORSO MEDIAL~ PALMARO LATERAL~|DORSO MEDIAL~ PLANTARO LATERAL~"
)
_AXIAL = "AXIAL~|SKYLINE|SUNRISE|TANGENTIAL~|MERCHANT"
_DECUBITUS = "LLD|RLD|DECUB|DECUBIT~|DECUBITUS|SEITENLAGE|LINKSSEITENLAGE|RECHTSSEITENLAGE"
_HORIZONTAL = "HORIZONTAL~|HB|HORIZONTALER"

_FRONTAL: tuple[tuple[str, View], ...] = (
    ("V D|VENTRO DORSAL~|DORSAL RECUMBENCY|DORSAL RECUMBENT", View.VD),
    ("D V|DORSO VENTRAL~|STERNAL RECUMBENCY|STERNAL RECUMBENT|VENTRAL RECUMBENCY|VENTRAL RECUMBENT", View.DV),
    ("P A|POSTERO ANTERIOR~|POSTERIOR ANTERIOR~|POSTERO ANTERIEUR~", View.PA),
    ("A P|ANTERO POSTERIOR~|ANTERIOR POSTERIOR~|ANTERO POSTERIEUR~", View.AP),
    ("D P|DORSO PALMAR~|DORSO PLANTAR~|DORSO VOLAR~|CR CD|CR CA", View.AP),
    ("CD CR|CA CR|PALMARO DORSAL~|PALMO DORSAL~|PLANTARO DORSAL~|PLANTO DORSAL~", View.PA),
)
_CRANIO_CAUDAL = "CRANIO CAUDAL~|KRANIO KAUDAL~|CRANEO CAUDAL~|(?<![0-9]\\s)CC"
_CAUDO_CRANIAL = "CAUDO CRANIAL~|KAUDO KRANIAL~|CAUDO CRANEAL~"

_ANY_LATERAL = "LATERAL~|LAT|LATERO LATERAL~|LL|SEITLICH~|PROFIL(?! [0-9])|PROFILO|PERFIL"
_LATERAL = f"{_ANY_LATERAL}|RL|LLAT|RLAT|LLR|RLR|MEDIO LATERAL~|LATERO MEDIAL~|(?<![0-9]\\s)ML|(?<![0-9]\\s)LM"
# What may stand before the word lateral; the short forms in _AFTER are other words there: German "der", the modality DX.
_LEFT, _RIGHT = (
    "LEFT|LT|L|LINK~|LI|GAUCHE|IZQUIERD~|SINISTR~|ESQUERD~",
    "RIGHT|RT|R|RECHT~|RE|DROIT~|DERECH~|DESTR~|DIREIT~",
)
_LEFT_AFTER, _RIGHT_AFTER = f"{_LEFT}|G|IZQ|SX|ESQ", f"{_RIGHT}|D|DX|DIR"
_LYING = "RECUMB|RECUMBENCY|RECUMBENT|ANLIEGEND~|ANL|AUFLIEGEND~"


VIEW_PHRASES = "|".join(
    [
        _MLO,
        _MLO_IN_WORDS,
        _OBLIQUE,
        _AXIAL,
        _DECUBITUS,
        _HORIZONTAL,
        _CRANIO_CAUDAL,
        "[RL]?CC",
        _CAUDO_CRANIAL,
        _LATERAL,
    ]
    + [_LEFT_AFTER, _RIGHT_AFTER, _LYING]
    + [phrases for phrases, _ in _FRONTAL]
)
"""Every phrase that is understood here."""


@lru_cache(maxsize=8192)
def view_in_words(
    text: str, *, is_mammogram: bool = False, is_animal: bool = False, is_paired: bool = False
) -> View | None:
    """The one view that a free text names; None when it names none, or several (as study descriptions do).

    The keyword arguments are those of `views.decide_view`; a paired part is also recognised in the text itself.
    """
    cleaned = clean(text)
    if not cleaned:
        return None
    if names(_MLO, cleaned) or (is_mammogram and names(_MLO_IN_WORDS, cleaned)):
        return View.MLO
    if names(_OBLIQUE, cleaned):
        return View.OBLIQUE
    if names(_AXIAL, cleaned):
        return None
    if names(_DECUBITUS, cleaned):
        if not is_animal:
            return None
        cleaned = _as_recumbency(cleaned)
    found = {view for phrases, view in _FRONTAL if names(phrases, cleaned)}
    if names(_CRANIO_CAUDAL, cleaned) or (is_mammogram and names("[RL]CC", cleaned)):
        found.add(View.CC if is_mammogram else View.AP)
    if names(_CAUDO_CRANIAL, cleaned) and not is_mammogram:
        found.add(View.PA)
    sides = _sides(cleaned)
    if sides or names(_LATERAL, cleaned):
        is_side_known = len(sides) == 1 and not names(_HORIZONTAL, cleaned)
        is_paired = is_paired or body_part_in_words(text) in PAIRED_PARTS
        found.add(sides.pop() if is_side_known and not is_paired else View.LATERAL)
    return found.pop() if len(found) == 1 else None


@cache
def _beside(before: str, after: str) -> re.Pattern[str]:
    """A side beside the word lateral or beside a word for lying.

    "LATERAL L SPINE" and "LATERAL L 1" are lumbar, "LATERAL R L" is the way of the beam.
    """
    lateral, lying, other = either(_ANY_LATERAL), either(_LYING), either(f"{_LEFT}|{_RIGHT}|SPINE|[0-9]+")
    return re.compile(
        whole(f"{either(before)} (?:{lateral}|{lying})|(?:{lateral}|{lying}) {either(after)}(?! {other}(?![A-Z0-9]))")
    )


def _sides(cleaned: str) -> set[View]:
    """The sides on the table. The side must stand beside such a word: elsewhere it may be anything's."""
    sides = set()
    for view, before, after, short in (
        (View.LATERAL_LEFT, _LEFT, _LEFT_AFTER, "LLAT|LLR"),
        (View.LATERAL_RIGHT, _RIGHT, _RIGHT_AFTER, "RLAT|RLR"),
    ):
        if names(short, cleaned) or _beside(before, after).search(cleaned) is not None:
            sides.add(view)
    return sides


def _as_recumbency(cleaned: str) -> str:
    """A decubitus of an animal, said as the lateral it is."""
    for words, said in (
        ("LLD|LINKSSEITENLAGE", " LEFT LATERAL "),
        ("RLD|RECHTSSEITENLAGE", " RIGHT LATERAL "),
        ("SEITENLAGE", " LATERAL "),
        ("DECUBIT~ DORSAL~|DECUBITUS DORSAL~", " V D "),
        ("DECUBIT~ VENTRAL~|DECUBITUS VENTRAL~|DECUBIT~ STERNAL~", " D V "),
        ("DECUB|DECUBIT~|DECUBITUS", " "),
    ):
        cleaned = pattern(words).sub(said, cleaned)
    return " ".join(cleaned.split())
