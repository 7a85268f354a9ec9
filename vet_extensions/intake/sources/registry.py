"""Sources by the names that the command line takes. Each adapter is imported only when it is asked for."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from vet_extensions.errors import UserError
from vet_extensions.intake.sources.base import Source
from vet_extensions.intake.sources.labelling import nearest

SOURCES: Mapping[str, tuple[str, str]] = {
    "dicom": ("dicom_folder", "DicomFolder"),
    "dicomweb": ("dicomweb", "DicomWeb"),
    "mimic_cxr": ("mimic_cxr", "MimicCxr"),
    "chexpert": ("chexpert", "CheXpert"),
    "padchest": ("padchest", "PadChest"),
    "brax": ("brax", "Brax"),
    "rexgradient": ("rexgradient", "ReXGradient"),
    "openi": ("openi", "OpenI"),
    "vindr_mammo": ("vindr_mammo", "VinDrMammo"),
    "rsna_mammo": ("rsna_mammo", "RsnaMammo"),
    "mura": ("mura", "Mura"),
    "nih_cxr14": ("nih_cxr14", "NihChestXray14"),
    "images": ("image_folder", "ImageFolder"),
    "table": ("tables", "TableSource"),
}
"""name -> module beside this one, and the class in it."""

ALL_MODALITIES = "all"
"""The word of --modality for studies and images of any."""

_PARAMETERS = {"query": "filters", "modality": "modalities", "labeller": "labels"}
"""Option -> the parameter of a source's class, where the names differ."""


def make_source(
    name: str,
    where: str,
    *,
    uncertain: str | None = None,
    blank: str | None = None,
    columns: Path | None = None,
    headers_file: Path | None = None,
    query: Sequence[str] = (),
    modality: Sequence[str] = (),
    labeller: str | None = None,
    layout: str | None = None,
) -> Source:
    """The source called `name`. An option that is None, or holds nothing, keeps the source's own default.

    where: its folder; of a DICOMweb server the URL, of a table the table itself (the paths in it count from its folder).
    columns: a YAML file that says which column is what; see `read_roles`. query: texts "Attribute=Value". modality: values of
    Modality, or "all" alone. labeller: whose labels, where a data set offers several. layout: what the levels of an
    image folder are; see `image_folder.ROLES`.
    Errors: UserError for an unknown name, an option that this source does not have, and what the source itself refuses.
    """
    if name not in SOURCES:
        raise UserError(f"'{name}' is no source.{nearest(name, SOURCES)} Allowed: {', '.join(SOURCES)}.")
    module, kind = SOURCES[name]
    make: Callable[..., Source] = getattr(import_module(f"vet_extensions.intake.sources.{module}"), kind)
    options: dict[str, Any] = {
        "uncertain": uncertain,
        "blank": blank,
        "columns": columns,
        "headers_file": headers_file,
        "query": query or None,
        "modality": modality or None,
        "labeller": labeller,
        "layout": layout,
    }
    parameters = inspect.signature(make).parameters
    allowed = [option for option in options if _PARAMETERS.get(option, option) in parameters]
    given: dict[str, Any] = {}
    for option, value in options.items():
        if value is not None:
            if option not in allowed:
                has = f"It has {', '.join(map(_flag, allowed))}." if allowed else "It has none of these options."
                raise UserError(f"The source '{name}' has no {_flag(option)}. {has} Leave it out.")
            given[_PARAMETERS.get(option, option)] = value
    if query:
        given["filters"] = tuple(_filter_of(text, number) for number, text in enumerate(query, start=1))
    if modality:
        given["modalities"] = () if tuple(modality) == (ALL_MODALITIES,) else tuple(modality)
    if name == "dicomweb":
        return make(where, **given)
    if name != "table":
        return make(Path(where), **given)
    if not Path(where).is_file():
        raise UserError(
            f"'{where}' is no file. With --source table give the table; the paths in it count from its folder."
        )
    if columns is not None:
        given["columns"] = read_roles(columns)
    return make(Path(where).parent, Path(where).name, **given)


def read_roles(path: Path) -> dict[str, str]:
    """A YAML file with lines such as `patient: Animal` or `label.effusion: Effusion`: what a column is, and its name.

    Errors: UserError where it is no such file.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # leaves every scalar a text
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"The file with columns '{path}' cannot be read as YAML ({type(error).__name__}).") from None
    if not isinstance(loaded, dict) or not all(isinstance(part, str) for pair in loaded.items() for part in pair):
        raise UserError(
            f"The file with columns '{path}' must hold lines such as 'patient: Animal': what a column is, and its name in the "
            "table. See docs/sources.md."
        )
    return loaded


def _filter_of(text: str, number: int) -> tuple[str, str]:
    """Attribute and value of the `number`th --query. Errors: UserError, which quotes nothing: it may name a patient."""
    attribute, sign, value = text.partition("=")
    if not sign or not attribute.strip():
        what = "no attribute before the '='" if sign else "no '='"
        raise UserError(
            f"--query number {number} has {what}. Allowed is an attribute and its value, as in "
            "--query StudyDate=20240101-20241231. Give it so, in quotes where it holds spaces or '*'."
        )
    return attribute.strip(), value.strip()


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
