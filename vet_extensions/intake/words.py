"""How words are looked for in the texts of a header, and what an item of a code sequence is. `views` and `anatomy` build on it.

A vocabulary is a table of phrases: "VENTRO DORSAL~" stands for the words with or without a space between them, and ~ for the
endings that the European languages put there (ventrodorsale, ventrodorsaler, dorsoventralis). Only whole words match.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

SNOMED_SCHEMES = frozenset({"SCT", "SRT", "SNM3", "99SDM"})
"""Coding scheme designators of SNOMED CT and RT (PS3.16 section 8.1)."""

_ENDINGS = "(?:E|A|O|S|ES|AS|OS|ER|EN|EM|IS)?"


@dataclass(frozen=True)
class Code:
    """One item of a code sequence (PS3.3 section 8.8)."""

    value: str
    scheme: str = "SCT"
    meaning: str = ""

    @property
    def snomed(self) -> str:
        """The value if the scheme is SNOMED's, else ""."""
        return self.value.strip().upper() if self.scheme.strip().upper() in SNOMED_SCHEMES else ""

    def __str__(self) -> str:
        return f"({self.value}, {self.scheme}, {self.meaning})"


def clean(text: str) -> str:
    """Upper case without accents; every run of anything but Latin letters and digits becomes a single space."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[^A-Z0-9]+", " ", text.upper()).strip()


def either(phrases: str) -> str:
    """A regular expression for any of the phrases, which "|" separates, the longest first. They may hold classes, no groups."""
    listed = sorted(phrases.split("|"), key=len, reverse=True)
    return "(?:" + "|".join(phrase.replace(" ", " ?").replace("~", _ENDINGS) for phrase in listed) + ")"


def whole(expression: str) -> str:
    """The regular expression, for whole words only."""
    return f"(?<![A-Z0-9])(?:{expression})(?![A-Z0-9])"


@cache
def pattern(phrases: str) -> re.Pattern[str]:
    """Finds any of the phrases in a cleaned text."""
    return re.compile(whole(either(phrases)))


def names(phrases: str, cleaned: str) -> bool:
    """Whether a cleaned text holds any of the phrases."""
    return pattern(phrases).search(cleaned) is not None
