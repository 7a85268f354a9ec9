"""A user's own table from raw values to views, body parts and species; `evidence` asks it before any other rule.

Archives have words of their own ("Room 2 standing", a technician's short form). The file, CSV or YAML, is read once, before any
image, and checked whole: every mistake is told at once.
"""

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import yaml

from vet_extensions.errors import UserError
from vet_extensions.intake.anatomy import BODY_PARTS, SPECIES
from vet_extensions.schema import View

COLUMNS = ("attribute", "value", "view", "body_part", "species")
ATTRIBUTES = (
    "ViewCodeSequence",
    "AnatomicRegionSequence",
    "PatientSpeciesCodeSequence",
    "PatientBreedCodeSequence",
    "ViewPosition",
    "PatientOrientation",
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "BodyPartExamined",
    "StudyDescription",
    "PatientSpeciesDescription",
    "PatientBreedDescription",
)
ANY = "*"


@dataclass(frozen=True)
class Answer:
    """What a mapping states; None: nothing."""

    view: View | None = None
    body_part: str | None = None
    species: str | None = None


@dataclass(frozen=True)
class Rule:
    """One row. value: compared without regard to case and width of spaces; * stands for anything."""

    attribute: str
    value: str
    answer: Answer


@dataclass(frozen=True)
class ViewMapping:
    """The rows of a mapping file in their order: of those that match, the first that states a thing decides it. Picklable.

    default: the row with attribute * and value *: what no row and no attribute of the file could tell.
    """

    rules: tuple[Rule, ...] = ()
    default: Answer = field(default_factory=Answer)

    def match(self, raw_values: Iterable[tuple[str, str]]) -> Answer:
        """What the rows state of an image with these (attribute, value) pairs."""
        if not self.rules:
            return Answer()
        found = sorted(number for attribute, value in raw_values for number in self._matching(attribute, _fold(value)))
        answers = [self.rules[number].answer for number in found]
        return Answer(
            view=next((answer.view for answer in answers if answer.view is not None), None),
            body_part=next((answer.body_part for answer in answers if answer.body_part is not None), None),
            species=next((answer.species for answer in answers if answer.species is not None), None),
        )

    @property
    def fingerprint(self) -> str:
        """Tells two mappings apart: SHA-256 of the rows, first 16 hexadecimal digits."""
        rows = [astuple(rule) for rule in self.rules] + [astuple(self.default)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def _matching(self, attribute: str, folded: str) -> Iterator[int]:
        if (attribute, folded) in self._exact:
            yield self._exact[attribute, folded]
        yield from (number for number, pattern in self._patterns[attribute] if pattern.fullmatch(folded))

    @cached_property
    def _exact(self) -> dict[tuple[str, str], int]:
        return {
            (rule.attribute, _fold(rule.value)): number
            for number, rule in enumerate(self.rules)
            if ANY not in rule.value
        }

    @cached_property
    def _patterns(self) -> dict[str, list[tuple[int, re.Pattern[str]]]]:
        patterns = defaultdict(list)
        for number, rule in enumerate(self.rules):
            if ANY in rule.value:
                parts = (re.escape(part) for part in _fold(rule.value).split(ANY))
                patterns[rule.attribute].append((number, re.compile(".*".join(parts), re.DOTALL)))
        return patterns


NO_MAPPING = ViewMapping()


def read_mapping(path: Path) -> ViewMapping:
    """Read a CSV file with the columns of `COLUMNS`, or a YAML list of rows with those keys; empty cells state nothing.

    Errors: UserError with all mistakes of the file.
    """
    rows = _yaml_rows(path) if path.suffix.lower() in (".yaml", ".yml") else _csv_rows(path)
    rules: list[Rule] = []
    mistakes: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for place, row in rows:
        wrong = list(_mistakes_of(row))
        key = (row.get("attribute", ""), _fold(row.get("value", "")))
        if not wrong and key in seen:
            wrong.append(f"the same attribute and value as {seen[key]}; keep one of them")
        seen.setdefault(key, place)
        mistakes += [f"{place}: {mistake}" for mistake in wrong]
        if not wrong:
            rules.append(_rule(row))
    if not rules and not mistakes:
        mistakes.append("it has no rows")
    if mistakes:
        raise UserError(
            f"The mapping '{path.name}' cannot be used: {len(mistakes)} mistake{'s' * (len(mistakes) > 1)}.\n  "
            + "\n  ".join(mistakes)
            + f"\nA row has the keys {', '.join(COLUMNS)}; attributes are {', '.join(ATTRIBUTES)}."
        )
    default = next((rule.answer for rule in rules if rule.attribute == ANY), Answer())
    return ViewMapping(tuple(rule for rule in rules if rule.attribute != ANY), default)


def _csv_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        lines = csv.DictReader(_read(path).splitlines(keepends=True), strict=True, restkey="", restval="")
        rows = [(f"line {lines.line_num}", {k or "": str(v).strip() for k, v in row.items()}) for row in lines]
    except csv.Error as error:
        raise UserError(f"The mapping '{path.name}' is no CSV table ({error}). Use commas and double quotes.") from None
    missing = [name for name in ("attribute", "value") if name not in (lines.fieldnames or ())]
    if missing:
        raise UserError(
            f"The mapping '{path.name}' has no column {' and no column '.join(missing)}. "
            f"Its first line must name some of {', '.join(COLUMNS)}."
        )
    return rows


def _yaml_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    try:
        # The base loader leaves every scalar a string: in plain YAML, "NO" is false and "1-2" may be a date.
        loaded = yaml.load(_read(path), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"The mapping '{path.name}' is no YAML{where}. Put quotes around values with * or :.") from None
    if not isinstance(loaded, list) or not all(_is_flat(row) for row in loaded):
        raise UserError(
            f"The mapping '{path.name}' must be a list of rows, such as "
            '"- {attribute: ViewPosition, value: STANDING, view: LATERAL}".'
        )
    return [(f"row {number}", {k: v.strip() for k, v in row.items()}) for number, row in enumerate(loaded, start=1)]


def _is_flat(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(part, str) for pair in row.items() for part in pair)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The mapping '{path.name}' is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"The mapping '{path}' cannot be read ({type(error).__name__}). Give a CSV or YAML file."
        ) from None


def _mistakes_of(row: dict[str, str]) -> Iterator[str]:
    for key in row:
        if key not in COLUMNS:
            yield f"unknown key '{key}'{_nearest(key, COLUMNS)}" if key else "more cells than columns"
    attribute, value = row.get("attribute", ""), row.get("value", "")
    if attribute == ANY:
        if value != ANY:
            yield "attribute * is for the row of defaults; its value must be * too"
    elif attribute not in ATTRIBUTES:
        yield f"unknown attribute '{attribute}'{_nearest(attribute, ATTRIBUTES)}"
    if not value:
        yield "no value"
    allowed = {"view": [str(view) for view in View], "body_part": sorted(BODY_PARTS), "species": sorted(SPECIES)}
    for key, words in allowed.items():
        stated = row.get(key, "")
        if stated and stated not in words:
            yield f"unknown {key} '{stated}'{_nearest(stated, words)}. Allowed: {', '.join(words)}"
    if not any(row.get(key) for key in allowed):
        yield "it states neither view nor body_part nor species"


def _nearest(word: str, known: Iterable[str]) -> str:
    by_folded = {name.casefold(): name for name in known}
    near = get_close_matches(word.casefold(), by_folded, n=1)
    return f", did you mean {by_folded[near[0]]}?" if near else ""


def _rule(row: dict[str, str]) -> Rule:
    view = row.get("view")
    answer = Answer(View(view) if view else None, row.get("body_part") or None, row.get("species") or None)
    return Rule(row["attribute"], row["value"], answer)


def _fold(value: str) -> str:
    return " ".join(value.split()).casefold()
