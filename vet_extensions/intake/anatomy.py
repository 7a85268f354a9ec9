"""Which species and which body part a radiograph shows, in one vocabulary; `evidence` and the sources call the functions.

Only words of the vocabularies below leave this file: the attributes may hold free text ("Dog of Mr ..."), which must not
reach the manifest. Codes: DICOM PS3.16 CID 7454 (Animal Taxonomic Rank Values), CID 4009 (DX Anatomy Imaged) and CID 7483
(Common Anatomic Regions for Animal); body-part terms are those of PS3.16 Annex L. Words: English, German, French, Spanish,
Italian, Portuguese. A word with two meanings is left out: French "main" and "sein", German "Brust" and "Sprunggelenk".
"""

from collections.abc import Iterable
from functools import cache, lru_cache

from vet_extensions.intake.words import Code, clean, names, pattern

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

_SPECIES_WORDS: dict[str, str] = {
    "canine": "CANINE|CANIS|DOG~|K9|HUND~|CHIEN~|PERRO~|PERRA~|CANIN~|CANE|CANI|CAO|CAES|CACHORRO",
    "feline": "FELINE|FELIS|CAT~|KATZE~|KATER|CHAT~|CHATTE|GATO~|GATA~|GATTO|GATTI|GATTA|FELIN~",
    "equine": "EQUINE|EQUUS|HORSE~|PONY|PFERD~|CHEVAL|CHEVAUX|CABALLO~|CAVALLO|CAVALO~|EQUIN~|DONKEY|ESEL",
    "bovine": "BOVINE|BOS|COW~|CATTLE|RIND~|BOVIN~|VACHE|VACA",
    "ovine": "OVINE|OVIS|SHEEP|SCHAF~|MOUTON|OVEJA|PECORA|OVELHA",
    "caprine": "CAPRINE|CAPRA|GOAT~|ZIEGE~|CHEVRE",
    "porcine": "PORCINE|SUS|PIG~|SWINE|SCHWEIN~|PORC|CERDO",
    "rabbit": "RABBIT~|LAGOMORPH|ORYCTOLAGUS|KANINCHEN|LAPIN~|CONEJO~|CONIGLIO|COELHO",
    "ferret": "FERRET~|MUSTELA|FRETTCHEN|FURET|HURON",
    "rodent": "RODENT~|RAT~|MOUSE|GUINEA PIG~|HAMSTER~|CAVIA|RATTUS|MUS|MEERSCHWEINCHEN|COBAYE",
    "human": "HUMAN~|HOMO SAPIENS",
}
_SPECIES_UNSAID = frozenset({"", "UNKNOWN", "NONE", "N A", "NA", "UNBEKANNT", "INCONNU", "UNDEFINED", "NOT SPECIFIED"})

# Common breeds, where the species itself is not stated. Names that breeds of two species share (Angora, Rex, Himalayan, Shetland,
# Holstein) are left out unless a second word decides.
_BREED_WORDS: dict[str, str] = {
    "canine": (
        "DOG|HUND|LABRADOR~|RETRIEVER~|SHEPHERD~|SCHAFERHUND~|SCHAEFERHUND~|BERGER ALLEMAND|PASTOR ALEMAN|"
        "PASTORE TEDESCO|POODLE~|PUDEL|CANICHE|BEAGLE~|BOXER|DACHSHUND~|DACKEL|TECKEL|TERRIER~|YORKIE|"
        "CHIHUAHUA~|BULLDOG~|BULLDOGGE~|BOULEDOGUE|ROTTWEILER|DOBERMANN?|GREAT DANE|DEUTSCHE DOGGE|HUSKY|"
        "MALAMUTE|SPANIEL~|COCKER|SCHNAUZER|MALTESE~|MALTESER|SHIH TZU|PUG|MOPS|CARLIN|COLLIE~|SHEEPDOG|"
        "CORGI|DALMATIAN~|DALMATINER|POINTER|SETTER|WEIMARANER|VIZSLA|BERNESE MOUNTAIN|BERNER SENNENHUND|"
        "SENNENHUND|SAINT BERNARD|ST BERNARD|BERNHARDINER|NEWFOUNDLAND|NEUFUNDLANDER|MASTIFF|GREYHOUND|"
        "WHIPPET|POMERANIAN|SPITZ|PEKINGESE|BICHON|HAVANESE|HAVANESER|PINSCHER|RIDGEBACK|AKITA|SHIBA|SAMOYED|"
        "LEONBERGER|HOVAWART|MALINOIS|PAPILLON|LABRADOODLE|GOLDENDOODLE|COCKAPOO|BASSET|HOUND|CANE CORSO|"
        "GALGO|PODENCO|MAGYAR VIZSLA|CHOW CHOW|SHAR PEI|LHASA APSO"
    ),
    "feline": (
        "CAT|DOMESTIC SHORT HAIR~|DOMESTIC MEDIUM HAIR~|DOMESTIC LONG HAIR~|DSH|DMH|DLH|EKH|BKH|"
        "EUROPEAN SHORTHAIR|EUROPAISCH KURZHAAR|BRITISH SHORTHAIR~|BRITISCH KURZHAAR|HAUSKATZE|MAINE COON|"
        "SIAMESE|SIAM|PERSIAN|PERSER|BENGAL|RAGDOLL|SPHYNX|BIRMAN|HEILIGE BIRMA|BURMESE|ABYSSINIAN|"
        "RUSSIAN BLUE|SCOTTISH FOLD|NORWEGISCHE WALDKATZE|NORWEGIAN FOREST"
    ),
    "equine": (
        "HORSE|PONY|WARMBLOOD|WARMBLUT|WARMBLUTER|THOROUGHBRED|VOLLBLUT|QUARTER HORSE|HANOVERIAN|"
        "HANNOVERANER|OLDENBURGER|HOLSTEINER|TRAKEHNER|HAFLINGER|FREIBERGER|FRIESIAN|FRIESE|ICELANDIC HORSE|"
        "ISLANDER|SHETLAND PONY|ARABIAN|ARABER|STANDARDBRED|TRABER|SELLE FRANCAIS|KWPN|ANDALUSIAN|LIPIZZANER|"
        "APPALOOSA|PAINT HORSE|TENNESSEE WALKING|CLYDESDALE|PERCHERON"
    ),
}

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

_BODY_PART_WORDS: dict[str, str] = {
    "CHESTABDOMEN": "CHEST ABDOMEN|THORACO ABDOMINAL~|THORAKO ABDOMINAL~",
    "WHOLEBODY": "WHOLE BODY|GANZKORPER|GANZKOERPER|CORPS ENTIER|CUERPO ENTERO|CORPO INTERO|CORPO INTEIRO",
    "TLSPINE": "TL SPINE|THORACO LUMBAR SPINE|THORACO LUMBAR|THORAKO LUMBAL",
    "LSSPINE": "LS SPINE|LUMBO SACRAL SPINE|LUMBO SACRAL~|LUMBO SAKRAL",
    "CSPINE": "C SPINE|CERVICAL SPINE|CERVICAL|HWS|HALSWIRBELSAULE|HALSWIRBELSAEULE|RACHIS CERVICAL|COLUMNA CERVICAL|"
    "COLONNA CERVICALE|COLUNA CERVICAL|CERVICALES?",
    "TSPINE": "T SPINE|THORACIC SPINE|BWS|BRUSTWIRBELSAULE|BRUSTWIRBELSAEULE|RACHIS THORACIQUE|RACHIS DORSAL|COLUMNA DORSAL|"
    "COLUMNA TORACICA|COLONNA TORACICA|COLONNA DORSALE|COLUNA TORACICA|COLUNA DORSAL",
    "LSPINE": "L SPINE|LUMBAR SPINE|LUMBAR|LWS|LENDENWIRBELSAULE|LENDENWIRBELSAEULE|RACHIS LOMBAIRE|COLUMNA LUMBAR|"
    "COLONNA LOMBARE|COLUNA LOMBAR",
    "SPINE": "SPINE|VERTEBRAL COLUMN|WIRBELSAULE|WIRBELSAEULE|RACHIS|COLUMNA VERTEBRAL|COLUMNA|COLONNA VERTEBRALE|COLUNA",
    "CHEST": "CHEST|THORAX|THORACIC|LUNGS?|LUNGE|BRUSTKORB|POUMONS?|TORAX|TORACE|PULMON|PULMONES|POLMONI|PULMAO",
    "ABDOMENPELVIS": "ABDOMEN PELVIS",
    "ABDOMEN": "ABDOMEN|ABDOMINAL~|BAUCH|ADDOME|ABDOME",
    "PELVIS": "PELVIS|PELVIC|BECKEN|BASSIN|BACINO|PELVE|BACIA",
    "HIP": "HIPS?|COXO FEMORAL~|HUFTE~|HUEFTE~|HUFTGELENK~|HUEFTGELENK~|HANCHES?|CADERAS?|QUADRIL",
    "SKULL": "SKULL|SCHADEL|SCHAEDEL|CRANE|CRANEO|CRANIO|CRANIUM",
    "HEAD": "HEAD|KOPF|TETE|CABEZA|TESTA|CABECA",
    "NECK": "NECK|HALS|COU|CUELLO|COLLO|PESCOCO",
    "SHOULDER": "SHOULDERS?|SCHULTER~|SCHULTERGELENK|EPAULES?|HOMBROS?|SPALLA|OMBROS?",
    "HUMERUS": "HUMERUS|OBERARM|HUMERO|OMERO|UMERO",
    "ELBOW": "ELBOWS?|ELLBOGEN|ELLENBOGEN|ELLBOGENGELENK|COUDES?|CODOS?|GOMITO|GOMITI|COTOVELOS?",
    "FOREARM": "FOREARM|RADIUS|ULNA|RADIUS ULNA|UNTERARM|AVANT BRAS|ANTEBRAZO|AVAMBRACCIO|ANTEBRACO",
    "CARPUS": "CARPUS|CARPAL|KARPUS|CARPE|CARPO|CARPI",
    "WRIST": "WRISTS?|HANDGELENK~|POIGNET|MUNECA|POLSO|PUNHO",
    "HAND": "HANDS?|HANDE|MANO",
    "FEMUR": "FEMUR|OBERSCHENKEL|FEMORE",
    "STIFLE": "STIFLES?|GRASSET",
    "KNEE": "KNEES?|KNIE~|KNIEGELENK~|GENOUX?|RODILLAS?|GINOCCHIO|JOELHOS?",
    "LEG": "TIBIA|FIBULA|LEGS?|UNTERSCHENKEL|JAMBE|PIERNA|GAMBA|PERNA|LOWER LEG",
    "TARSUS": "TARSUS|TARSAL|HOCKS?|TARSE|TARSO",
    "ANKLE": "ANKLES?|CHEVILLE|TOBILLO|CAVIGLIA|TORNOZELO",
    "FOREFOOT": "FOREFOOT|FORE FOOT|VORFUSS",
    "HINDFOOT": "HINDFOOT|HIND FOOT|RUCKFUSS",
    "FOOT": "FOOT|FEET|FUSS|FUSSE|PIED|PIEDE",
    "BREAST": "BREASTS?|MAMMOGRAPHY|MAMMOGRAM|MAMMA|MAMOGRAFIA|MAMMOGRAFIA",
    "EXTREMITY": "EXTREMITY|EXTREMETY|EXTREMITIES|LIMBS?|GLIEDMASSE~|MEMBRE~|EXTREMIDAD|EXTREMIDADES|MIEMBRO|MEMBRO",
}

PAIRED_PARTS = frozenset(
    {
        "SHOULDER",
        "HUMERUS",
        "ELBOW",
        "FOREARM",
        "CARPUS",
        "WRIST",
        "HAND",
        "HIP",
        "FEMUR",
        "STIFLE",
        "KNEE",
        "LEG",
        "TARSUS",
    }
    | {"ANKLE", "FOREFOOT", "HINDFOOT", "FOOT", "EXTREMITY", "BREAST"}
)
"""Parts of which a body has a left and a right one: a side named beside them is the part's."""

BODY_PARTS = frozenset(_BODY_PART_WORDS) | frozenset(BODY_PART_CODES.values())
SPECIES = frozenset(_SPECIES_WORDS) | {OTHER_SPECIES}

# Two parts named together, and the one term that covers them.
_TOGETHER: dict[frozenset[str], str] = {
    frozenset({"CHEST", "ABDOMEN"}): "CHESTABDOMEN",
    frozenset({"ABDOMEN", "PELVIS"}): "ABDOMENPELVIS",
    frozenset({"TSPINE", "LSPINE"}): "TLSPINE",
    frozenset({"PELVIS", "HIP"}): "PELVIS",
    frozenset({"SKULL", "HEAD"}): "SKULL",
    frozenset({"KNEE", "STIFLE"}): "STIFLE",
    frozenset({"ANKLE", "TARSUS"}): "TARSUS",
    frozenset({"WRIST", "CARPUS"}): "CARPUS",
}

_LEFT = "LEFT|LT|L|LINK~|LI|GAUCHE|IZQUIERD~|IZQ|SINISTR~|SX|ESQUERD~"
_RIGHT = "RIGHT|RT|R|RECHT~|RE|DROIT~|DERECH~|DESTR~|DIREIT~"
_BOTH = "BOTH|BILATERAL~|BEIDE|BEIDSEITS|BDS|AMBOS|AMBAS|AMBEDUE"


ANATOMY_PHRASES = "|".join((*_SPECIES_WORDS.values(), *_BREED_WORDS.values(), *_BODY_PART_WORDS.values(), _BOTH))
"""Every phrase that is understood here."""


def decide_species(*, description: str, codes: Iterable[Code] = ()) -> str:
    """A word of the vocabulary, "other" for an animal outside it, "" where the header does not say.

    PatientSpeciesCodeSequence (0010,2202) before PatientSpeciesDescription (0010,2201). Few real files hold either
    (5 % of veterinary studies: Brühschwein 2018, J Digit Imaging 31:13), so "" must not be taken for human.
    """
    listed = tuple(codes)
    for code in listed:
        known = SPECIES_CODES.get(code.snomed)
        if known is not None:
            return known
    for text in (*(code.meaning for code in listed), description):
        word = _species_in(text)
        if word:
            return word
    is_stated = bool(listed) or clean(description) not in _SPECIES_UNSAID
    return OTHER_SPECIES if is_stated else ""


def species_of_breed(*, description: str, codes: Iterable[Code] = ()) -> str:
    """The species of a breed that only one species has, "" for others. Dogs, cats and horses.

    PatientBreedCodeSequence (0010,2293; its meanings are those of PS3.16 CID 7480), then PatientBreedDescription (0010,2292).
    """
    for text in (*(code.meaning for code in codes), description):
        cleaned = clean(text)
        found = {species for species, phrases in _BREED_WORDS.items() if names(phrases, cleaned)}
        if len(found) == 1:
            return found.pop()
    return ""


def decide_body_part(*, codes: Iterable[Code] = (), examined: str = "", texts: Iterable[str] = ()) -> str:
    """A term of PS3.16 Annex L, "" where nothing known is named, or several parts are.

    AnatomicRegionSequence (0008,2218), then BodyPartExamined (0018,0015), then the descriptions.
    """
    for code in codes:
        known = BODY_PART_CODES.get(code.snomed) or body_part_in_words(code.meaning)
        if known:
            return known
    for text in (examined, *texts):
        known = body_part_in_words(text)
        if known:
            return known
    return ""


@lru_cache(maxsize=4096)
def body_part_in_words(text: str) -> str:
    """The body part that a text names; "" for none, and for several that no one term covers."""
    cleaned = clean(text)
    # Longer phrases come first, so that "lumbar spine" is not also a spine.
    found = pattern("|".join(_BODY_PART_WORDS.values())).findall(cleaned)
    terms = {_term_of(words) for words in found}
    if len(terms) > 1:
        terms -= {"EXTREMITY"}
    if len(terms) > 1 and any(term.endswith("SPINE") and term != "SPINE" for term in terms):
        terms -= {"SPINE"}
    if len(terms) == 1:
        return terms.pop()
    return _TOGETHER.get(frozenset(terms), "")


def laterality_in_words(text: str) -> str:
    """L, R or B for the side of the paired part that a text names; "" where it names no such part, or not one side."""
    if body_part_in_words(text) not in PAIRED_PARTS:
        return ""
    cleaned = clean(text)
    sides = {letter for letter, phrases in (("L", _LEFT), ("R", _RIGHT), ("B", _BOTH)) if names(phrases, cleaned)}
    if sides in ({"L", "R"}, {"B"}, {"L", "R", "B"}):
        return "B"
    return sides.pop() if len(sides) == 1 else ""


@lru_cache(maxsize=4096)
def _species_in(text: str) -> str:
    cleaned = clean(text)
    for species in ("human", "rodent", *_SPECIES_WORDS):  # a guinea pig is no pig
        if names(_SPECIES_WORDS[species], cleaned):
            return species
    return ""


@cache
def _term_of(words: str) -> str:
    return next(term for term, phrases in _BODY_PART_WORDS.items() if pattern(phrases).fullmatch(words))
