"""How pages are made: their frame, style and filters, and how values are written on them. Whoever writes a page asks here."""

import math
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_READABLE = {"knn": "k-NN", "linear": "linear probe", "auroc": "AUROC", "macro_auroc": "macro AUROC", "ap": "AP"}


def page_environment(*folders: Path) -> Environment:
    """How pages are made: everything escaped, templates of `folders` beside this room's own (whose style.css all pages share)."""
    environment = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(readable=readable, number=number, fixed=fixed)
    return environment


def readable(name: Any) -> str:
    return _READABLE.get(str(name), str(name).replace("_", " "))


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(float(value))


def fixed(value: Any) -> str:
    """A score, a difference or an end of an interval: always three decimals, so that columns can be compared by eye."""
    return f"{float(value):.3f}" if is_number(value) else "–"


def number(value: Any) -> str:
    """A cell's text: floats to three decimals (small ones in powers of ten), counts with separators, nothing as a dash."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "–"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return str(value)
