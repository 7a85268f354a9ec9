"""Which species and which body part a radiograph shows, in one vocabulary; `header` calls the two functions.

Only words of the vocabularies below leave this file: both attributes may hold free text ("Dog of Mr ..."), which must not
reach the manifest. Codes: DICOM PS3.16 CID 7454 (Animal Taxonomic Rank Values), CID 4009 (DX Anatomy Imaged) and CID 7483
(Common Anatomic Regions for Animal); body-part terms are those of PS3.16 Annex L.
"""

import re
from collections.abc import Iterable

from vet_extensions.intake.views import SNOMED_SCHEMES, Code

OTHER_SPECIES = "other"

SPECIES_CODES: dict[str, str] = {
    "448771007": "canine",
    "36855005": "canine",
    "388490000": "canine",
    "L-80700": "canine",
    "448169003": "feline",
    "388626009": "feline",
    "L-80A00": "feline",
    "35354009": "equine",
    "388445009": "equine",
    "34618005": "bovine",
    "107007004": "bovine",
    "388168008": "bovine",
    "388254009": "ovine",
    "125099002": "ovine",
    "388249000": "caprine",
    "125097000": "caprine",
    "78678003": "porcine",
    "388393002": "porcine",
    "36571002": "rabbit",
    "449310008": "ferret",
    "371565004": "rodent",
    "371564000": "rodent",
    "447612001": "rodent",
    "125076001": "rodent",
    "337915000": "human",
}

_SPECIES_WORDS: tuple[tuple[str, str], ...] = (
    (r"CANINE|CANIS|DOG|DOGS|K9|HUND|CHIEN|PERRO|CANINO", "canine"),
    (r"FELINE|FELIS|CAT|CATS|KATZE|CHAT|GATO|FELINO", "feline"),
    (r"EQUINE|EQUUS|HORSE|PONY|PFERD|CHEVAL|CABALLO|EQUINO|DONKEY", "equine"),
    (r"BOVINE|BOS|COW|CATTLE|RIND|BOVINO", "bovine"),
    (r"OVINE|OVIS|SHEEP|SCHAF", "ovine"),
    (r"CAPRINE|CAPRA|GOAT|ZIEGE", "caprine"),
    (r"PORCINE|SUS|PIG|SWINE|SCHWEIN", "porcine"),
    (r"RABBIT|LAGOMORPH|ORYCTOLAGUS|KANINCHEN|LAPIN|CONEJO", "rabbit"),
    (r"FERRET|MUSTELA|FRETTCHEN", "ferret"),
    (r"RODENT|RAT|MOUSE|GUINEA PIG|HAMSTER|CAVIA|RATTUS|MUS", "rodent"),
    (r"HUMAN|HOMO SAPIENS", "human"),
)

BODY_PART_CODES: dict[str, str] = {
    "816094009": "CHEST",
    "51185008": "CHEST",
    "T-D3000": "CHEST",
    "818981001": "ABDOMEN",
    "113345001": "ABDOMEN",
    "T-D4000": "ABDOMEN",
    "818982008": "ABDOMENPELVIS",
    "416550000": "CHESTABDOMEN",
    "T-D3080": "CHESTABDOMEN",
    "816092008": "PELVIS",
    "12921003": "PELVIS",
    "T-D6000": "PELVIS",
    "24136001": "HIP",
    "29836001": "HIP",
    "89546000": "SKULL",
    "69536005": "HEAD",
    "45048000": "NECK",
    "122494005": "CSPINE",
    "122495006": "TSPINE",
    "122496007": "LSPINE",
    "1217256009": "TLSPINE",
    "1217253001": "LSSPINE",
    "421060004": "SPINE",
    "16982005": "SHOULDER",
    "85050009": "HUMERUS",
    "16953009": "ELBOW",
    "14975008": "FOREARM",
    "110535000": "FOREARM",
    "8205005": "CARPUS",
    "74670003": "WRIST",
    "85562004": "HAND",
    "71341001": "FEMUR",
    "72696002": "KNEE",
    "116010006": "STIFLE",
    "30021000": "LEG",
    "110536004": "LEG",
    "108371006": "TARSUS",
    "70258002": "ANKLE",
    "56459004": "FOOT",
    "419176008": "FOREFOOT",
    "416804009": "HINDFOOT",
    "66019005": "EXTREMITY",
    "76752008": "BREAST",
    "38266002": "WHOLEBODY",
}

_BODY_PART_WORDS: tuple[tuple[str, str], ...] = (
    (r"CHESTABDOMEN|(CHEST|THORAX) (AND )?ABDOMEN|THORACOABDOMINAL", "CHESTABDOMEN"),
    (r"WHOLEBODY|WHOLE BODY", "WHOLEBODY"),
    (r"TLSPINE|THORACOLUMBAR( SPINE)?", "TLSPINE"),
    (r"LSSPINE|LUMBOSACRAL( SPINE)?", "LSSPINE"),
    (r"CSPINE|C SPINE|CERVICAL SPINE|CERVICAL", "CSPINE"),
    (r"TSPINE|T SPINE|THORACIC SPINE", "TSPINE"),
    (r"LSPINE|L SPINE|LUMBAR SPINE|LUMBAR", "LSPINE"),
    (r"SPINE|VERTEBRAL COLUMN", "SPINE"),
    (r"CHEST|THORAX|THORACIC|LUNGS?", "CHEST"),
    (r"ABDOMENPELVIS", "ABDOMENPELVIS"),
    (r"ABDOMEN|ABDOMINAL", "ABDOMEN"),
    (r"PELVIS", "PELVIS"),
    (r"HIPS?", "HIP"),
    (r"SKULL", "SKULL"),
    (r"HEAD", "HEAD"),
    (r"NECK", "NECK"),
    (r"SHOULDER", "SHOULDER"),
    (r"HUMERUS", "HUMERUS"),
    (r"ELBOW", "ELBOW"),
    (r"FOREARM|RADIUS|ULNA", "FOREARM"),
    (r"CARPUS|CARPAL", "CARPUS"),
    (r"WRIST", "WRIST"),
    (r"HAND", "HAND"),
    (r"FEMUR", "FEMUR"),
    (r"STIFLE", "STIFLE"),
    (r"KNEE", "KNEE"),
    (r"TIBIA|FIBULA|LEG", "LEG"),
    (r"TARSUS|HOCK", "TARSUS"),
    (r"ANKLE", "ANKLE"),
    (r"FOREFOOT", "FOREFOOT"),
    (r"HINDFOOT", "HINDFOOT"),
    (r"FOOT", "FOOT"),
    (r"BREAST", "BREAST"),
    (r"EXTREMITY|EXTREMETY|LIMB", "EXTREMITY"),
)


def decide_species(*, description: str, codes: Iterable[Code] = ()) -> str:
    """A word of the vocabulary, "other" for an animal outside it, "" where the header does not say.

    PatientSpeciesCodeSequence (0010,2202) before PatientSpeciesDescription (0010,2201). Few real files hold either
    (5 % of veterinary studies: Brühschwein 2018, J Digit Imaging 31:13), so "" must not be taken for human.
    """
    listed = tuple(codes)
    for code in listed:
        known = SPECIES_CODES.get(code.value.strip().upper()) if _is_snomed(code) else None
        if known is not None:
            return known
    for text in (*(code.meaning for code in listed), description):
        word = _first_word(text, _SPECIES_WORDS)
        if word:
            return word
    return OTHER_SPECIES if description.strip() or listed else ""


def decide_body_part(*, codes: Iterable[Code] = (), examined: str = "", texts: Iterable[str] = ()) -> str:
    """A term of PS3.16 Annex L, "" where nothing known is named.

    AnatomicRegionSequence (0008,2218), then BodyPartExamined (0018,0015), then the descriptions.
    """
    for code in codes:
        known = BODY_PART_CODES.get(code.value.strip().upper()) if _is_snomed(code) else None
        if known is None:
            known = _first_word(code.meaning, _BODY_PART_WORDS)
        if known:
            return known
    for text in (examined, *texts):
        word = _first_word(text, _BODY_PART_WORDS)
        if word:
            return word
    return ""


def _is_snomed(code: Code) -> bool:
    return code.scheme.strip().upper() in SNOMED_SCHEMES


def _first_word(text: str, table: tuple[tuple[str, str], ...]) -> str:
    cleaned = re.sub(r"[^A-Z0-9]+", " ", text.upper()).strip()
    for pattern, word in table:
        if cleaned and re.search(rf"\b(?:{pattern})\b", cleaned):
            return word
    return ""
