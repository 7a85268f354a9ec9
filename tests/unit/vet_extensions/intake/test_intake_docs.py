"""The manual and the code agree."""

import re
from pathlib import Path

from vet_extensions.schema import RejectionCode

MANUAL = Path(__file__).parents[4] / "docs" / "intake.md"


def test_the_manual_explains_every_rejection_code_once_and_no_other() -> None:
    table = MANUAL.read_text(encoding="utf-8").split("## Why a file was rejected")[1]
    explained = re.findall(r"^\| `([A-Z_]+)` \| [^|]+ \| [^|]+ \|$", table, flags=re.MULTILINE)
    assert sorted(explained) == sorted(RejectionCode)
