"""The header of a phantom's DICOM file: the synthetic animal, how it lay, and the awkward but legal habits of this file.

Called by `phantom.dicom`, which adds the pixels and the grey-scale attributes. Everything is drawn from (seed, study
number, image index), never from the clock or the process. Codes are those of PS3.16 as shipped in
`pydicom.sr.codedict`: CID 7484 (DX View for Animal; for laterals the same codes as CID 4010, DX View), CID 7482 (DX
Anatomy Imaged for Animal), CID 7454 (Animal Taxonomic Rank Value), CID 7480 (Breed).
"""

import uuid
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from zlib import crc32

import numpy as np
from pydicom.dataset import Dataset

from vet_extensions.schema import View

CR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"

_UID_NAMESPACE = uuid.UUID("6f4c1c1e-7d4b-5f0a-9d5c-0b8a4b3f2e71")
_FIRST_DAY = date(2016, 1, 4)
STUDIES_PER_TEN_PATIENTS = 11


class Variant(StrEnum):
    """Habits of real headers that an intake must survive; docs/phantom.md says how often each is drawn."""

    VIEW_IN_CODES_ONLY = "VIEW_IN_CODES_ONLY"
    VIEW_IN_TEXT_ONLY = "VIEW_IN_TEXT_ONLY"
    VIEW_IN_WORDS = "VIEW_IN_WORDS"
    BODY_PART_EMPTY = "BODY_PART_EMPTY"
    SPECIES_MISSING = "SPECIES_MISSING"
    SPACING_MISSING = "SPACING_MISSING"
    ORIENTATION_MISSING = "ORIENTATION_MISSING"
    SERIES_PER_VIEW = "SERIES_PER_VIEW"
    PRIVATE_TAGS = "PRIVATE_TAGS"
    RETIRED_ATTRIBUTES = "RETIRED_ATTRIBUTES"
    GROUP_LENGTH = "GROUP_LENGTH"
    OVERLAY = "OVERLAY"
    PADDING = "PADDING"
    TWO_WINDOWS = "TWO_WINDOWS"


@dataclass(frozen=True)
class ImageKey:
    """Which image of which archive: enough to draw it, and its header, again."""

    seed: int
    study_number: int
    image_index: int
    view: View

    @property
    def patient_number(self) -> int:
        """Ten patients have eleven studies: each tenth patient comes twice, so that a split by study would leak."""
        block, place = divmod(self.study_number, STUDIES_PER_TEN_PATIENTS)
        return 10 * block + min(place, 9)

    @property
    def patient_id(self) -> str:
        return f"PHANTOM-{self.seed}-{self.patient_number:06d}"

    def uid(self, level: str) -> str:
        """The UID of this image's "study", "series" (one for the study), "view series" or "instance" (PS3.5 B.2: 2.25.<UUID>)."""
        name = f"{self.seed}/{self.study_number}/{level}"
        if level in ("view series", "instance"):
            name += f"/{self.image_index}/{self.view}"
        return f"2.25.{uuid.uuid5(_UID_NAMESPACE, name).int}"

    def rng(self, level: str, purpose: str) -> np.random.Generator:
        """The stream of one purpose at the level "patient", "study" or "image": no two share a draw."""
        own = {
            "patient": (1, self.patient_number),
            "study": (2, self.study_number),
            "image": (3, self.study_number, self.image_index),
        }
        return np.random.default_rng([self.seed, *own[level], crc32(purpose.encode())])


@dataclass(frozen=True)
class HeaderPlan:
    """What kind of file an image becomes: the SOP class, the character set, and the awkward habits."""

    sop_class: str
    character_set: str
    variants: frozenset[Variant]

    @property
    def is_cr(self) -> bool:
        return self.sop_class == CR_IMAGE_STORAGE


PLAIN = HeaderPlan(sop_class=DX_FOR_PRESENTATION, character_set="ISO_IR 100", variants=frozenset())


def draw_plan(key: ImageKey) -> HeaderPlan:
    """Draw the kind of file. What DX makes mandatory (view codes, spacing, orientation) only CR files leave out."""
    study, image = key.rng("study", "variants"), key.rng("image", "variants")
    character_set = str(
        key.rng("patient", "character set").choice(["", "ISO_IR 100", "ISO_IR 192"], p=[0.5, 0.25, 0.25])
    )
    is_cr = bool(study.random() < 0.35)
    of_study = {Variant.SERIES_PER_VIEW: 0.5, Variant.SPECIES_MISSING: 0.15}
    of_image = {
        Variant.BODY_PART_EMPTY: 0.30,
        Variant.PRIVATE_TAGS: 0.25,
        Variant.RETIRED_ATTRIBUTES: 0.06,
        Variant.GROUP_LENGTH: 0.06,
        Variant.OVERLAY: 0.06,
        Variant.PADDING: 0.25,
        Variant.TWO_WINDOWS: 0.15,
    }
    if is_cr:
        of_image |= {Variant.SPACING_MISSING: 0.2, Variant.ORIENTATION_MISSING: 0.4}
    variants = {v for v, share in of_study.items() if study.random() < share}
    variants |= {v for v, share in of_image.items() if image.random() < share}
    habits = [
        Variant.VIEW_IN_CODES_ONLY,
        Variant.VIEW_IN_TEXT_ONLY if is_cr else Variant.VIEW_IN_CODES_ONLY,
        Variant.VIEW_IN_WORDS,
    ]
    draw = int(image.integers(10))
    if draw < len(habits):
        variants.add(habits[draw])
    if Variant.VIEW_IN_TEXT_ONLY in variants:
        variants.add(Variant.ORIENTATION_MISSING)  # its letters would tell a lateral from a frontal view
    return HeaderPlan(CR_IMAGE_STORAGE if is_cr else DX_FOR_PRESENTATION, character_set, frozenset(variants))


@dataclass(frozen=True)
class _ViewTerms:
    position: str
    words: str
    code: tuple[str, str]
    text: tuple[str, ...]
    quadruped: tuple[str, str]
    biped: tuple[str, str]


_LEFT_TEXT = ("Thorax lateral, left recumbent", "Lt Lat Thorax", "Left Lateral")
_RIGHT_TEXT = ("Thorax lateral, right recumbent", "Rt Lat Thorax", "Right Lateral")
VIEW_TERMS = {
    View.LATERAL_LEFT: _ViewTerms(
        "LL", "LEFT LATERAL", ("399173006", "Right-left lateral"), _LEFT_TEXT, ("CD", "V"), ("F", "A")
    ),
    View.LATERAL_RIGHT: _ViewTerms(
        "RL", "RIGHT LATERAL", ("399198007", "Left-right lateral"), _RIGHT_TEXT, ("CD", "V"), ("F", "A")
    ),
    View.VD: _ViewTerms(
        "VD",
        "VENTRODORSAL",
        ("442441009", "Ventro-dorsal"),
        ("Thorax VD", "Ventrodorsal", "CHEST, VD"),
        ("LE", "CD"),
        ("L", "F"),
    ),
    View.DV: _ViewTerms(
        "DV",
        "DORSOVENTRAL",
        ("441672003", "Dorso-ventral"),
        ("Thorax DV", "Dorsoventral", "CHEST, DV"),
        ("LE", "CD"),
        ("L", "F"),
    ),
}
"""How each view is spelt. Laterals carry the code of the beam's way: in at the right side and out at the left, which lies
on the detector, is the left lateral. Orientation letters say where rows and columns run to (PS3.3 C.7.6.1.1.1)."""

_BREEDS = (
    ("Beagle", "44696006"),
    ("Labrador retriever dog breed", "62137007"),
    ("German shepherd dog", "42252000"),
    ("Miniature poodle dog breed", "40121001"),
    ("Boxer dog", "42250008"),
    ("Golden retriever dog breed", "58108001"),
    ("Great dane dog", "27615007"),
    ("Mixed breed dog", "132619000"),
)
_NAMES = {"": ("PHANTOM", "KEEPER"), "ISO_IR 100": ("PHÄNTÖM", "HALTÉR"), "ISO_IR 192": ("ФАНТОМ", "DRŽITEĽ")}
_BODY_PARTS = (
    ("CHESTABDOMEN", "416550000", "Chest and Abdomen"),
    ("CHEST", "816094009", "Chest"),
    ("THORAX", "816094009", "Chest"),
)


def build_header(key: ImageKey, plan: HeaderPlan, *, spacing_mm: float) -> Dataset:
    """The data set of one image without its pixels and grey-scale attributes.

    spacing_mm: distance of pixel centres at the detector.
    """
    header = Dataset()
    header.SOPClassUID = plan.sop_class
    header.SOPInstanceUID = key.uid("instance")
    if plan.character_set:
        header.SpecificCharacterSet = plan.character_set
    _add_patient(header, key, plan)
    _add_study_and_series(header, key, plan)
    _add_image(header, key, plan)
    _add_view_and_anatomy(header, key, plan)
    if Variant.SPACING_MISSING not in plan.variants:
        _add_spacing(header, key, spacing_mm)
    if Variant.PRIVATE_TAGS in plan.variants:
        _add_private_tags(header)
    if Variant.RETIRED_ATTRIBUTES in plan.variants:
        _add_retired_attributes(header)
    return header


def series_uid(key: ImageKey, plan: HeaderPlan) -> str:
    """One series for the study, or, as other machines have it, one for each view."""
    return key.uid("view series" if Variant.SERIES_PER_VIEW in plan.variants else "series")


def _code(value: str, meaning: str, scheme: str = "SCT") -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


def _add_patient(header: Dataset, key: ImageKey, plan: HeaderPlan) -> None:
    """Patient module, PS3.3 C.7.1.1; the veterinary attributes are what 95 % of real files leave out (Brühschwein 2018)."""
    rng = key.rng("patient", "identity")
    family, keeper = _NAMES[plan.character_set]
    breed, breed_code = _BREEDS[int(rng.integers(len(_BREEDS)))]
    header.PatientName = f"{family}^{key.patient_number:06d}"
    header.PatientID = key.patient_id
    header.PatientBirthDate = f"{_FIRST_DAY - timedelta(days=int(rng.integers(120, 5000))):%Y%m%d}"
    header.PatientSex = str(rng.choice(["M", "F"]))
    header.PatientSexNeutered = str(rng.choice(["ALTERED", "UNALTERED"]))
    header.ResponsiblePerson = f"{keeper}^{key.patient_number:06d}"
    header.ResponsiblePersonRole = "OWNER"
    if Variant.SPECIES_MISSING in plan.variants:
        return
    header.PatientSpeciesDescription = "Canine"
    header.PatientSpeciesCodeSequence = [_code("448771007", "Canis lupus familiaris")]
    header.PatientBreedDescription = breed
    header.PatientBreedCodeSequence = [_code(breed_code, breed)]
    header.BreedRegistrationSequence = []
    header.AnatomicalOrientationType = "QUADRUPED"


def _add_study_and_series(header: Dataset, key: ImageKey, plan: HeaderPlan) -> None:
    rng = key.rng("study", "date")
    day = _FIRST_DAY + timedelta(days=int(rng.integers(3000)))
    minute = int(rng.integers(8 * 60, 18 * 60))
    own_series = Variant.SERIES_PER_VIEW in plan.variants
    header.StudyInstanceUID = key.uid("study")
    header.StudyDate = f"{day:%Y%m%d}"
    header.StudyTime = f"{minute // 60:02d}{minute % 60:02d}00"
    header.StudyID = str(key.study_number)
    header.StudyDescription = "Thorax and abdomen"
    header.AccessionNumber = ""
    header.ReferringPhysicianName = ""
    header.SeriesInstanceUID = series_uid(key, plan)
    header.SeriesNumber = key.image_index + 1 if own_series else 1
    header.Modality = "CR" if plan.is_cr else "DX"
    header.Manufacturer = "VET-DINO"
    header.ManufacturerModelName = "Phantom"
    header.SoftwareVersions = "1"


def _add_image(header: Dataset, key: ImageKey, plan: HeaderPlan) -> None:
    header.ImageType = ["ORIGINAL", "PRIMARY", ""] if not plan.is_cr else ["ORIGINAL", "PRIMARY"]
    header.InstanceNumber = key.image_index + 1
    header.ContentDate = header.StudyDate
    header.ContentTime = header.StudyTime
    header.AcquisitionDate = header.StudyDate
    header.BurnedInAnnotation = "NO"
    if plan.is_cr:
        return
    header.PresentationIntentType = "FOR PRESENTATION"
    header.LossyImageCompression = "00"
    header.AcquisitionContextSequence = []
    header.DetectorType = "SCINTILLATOR"


def _add_view_and_anatomy(header: Dataset, key: ImageKey, plan: HeaderPlan) -> None:
    """DX Positioning (C.8.11.5) and DX Anatomy Imaged (C.8.11.2), or the CR Series' poorer attributes (C.8.1.1)."""
    terms, variants = VIEW_TERMS[key.view], plan.variants
    body_part, region_code, region = _BODY_PARTS[int(key.rng("study", "body part").integers(len(_BODY_PARTS)))]
    in_text = Variant.VIEW_IN_TEXT_ONLY in variants
    header.BodyPartExamined = "" if Variant.BODY_PART_EMPTY in variants else body_part
    if Variant.VIEW_IN_WORDS in variants:
        header.ViewPosition = terms.words
    elif not in_text and Variant.VIEW_IN_CODES_ONLY not in variants:
        header.ViewPosition = terms.position
    elif in_text:
        header.ViewPosition = ""
    if in_text:
        description = str(key.rng("image", "description").choice(terms.text))
        header.SeriesDescription = description
        header.ProtocolName = description.upper()
    elif not plan.is_cr or Variant.VIEW_IN_CODES_ONLY in variants:
        header.ViewCodeSequence = [_code(*terms.code)]
    if plan.is_cr:
        header.Laterality = ""
    else:
        header.ImageLaterality = "U"
        header.AnatomicRegionSequence = [_code(region_code, region)]
    if Variant.ORIENTATION_MISSING not in variants:
        is_quadruped = "AnatomicalOrientationType" in header
        header.PatientOrientation = list(terms.quadruped if is_quadruped else terms.biped)


def _add_spacing(header: Dataset, key: ImageKey, spacing_mm: float) -> None:
    """Spacing at the detector; half of the files repeat it as an uncalibrated PixelSpacing (PS3.3 10.7.1.3)."""
    text = f"{spacing_mm:.8g}"
    header.ImagerPixelSpacing = [text, text]
    if key.rng("image", "spacing").random() < 0.5:
        header.PixelSpacing = [text, text]


def _add_private_tags(header: Dataset) -> None:
    block = header.private_block(0x0019, "VET-DINO PHANTOM", create=True)
    block.add_new(0x01, "LO", "a private text of odd length")
    block.add_new(0x02, "DS", ["1.5", "-2"])
    block.add_new(0x03, "OB", b"\x00\x01\x02\x03")


def _add_retired_attributes(header: Dataset) -> None:
    """Attributes of earlier editions (PS3.6, marked RET), and a view code in the retired SNOMED-RT scheme (PS3.16 section 8)."""
    header.add_new("ImageDimensions", "US", 2)
    header.add_new("ImageLocation", "US", 0x7FE0)
    header.StudyStatusID = "READ"
    legacy = {"399173006": "R-10236", "399198007": "R-10232", "442441009": "R-40AB0", "441672003": "R-40AAC"}
    for item in header.get("ViewCodeSequence", []):
        item.CodeValue, item.CodingSchemeDesignator = legacy[item.CodeValue], "SRT"
