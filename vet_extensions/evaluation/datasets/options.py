"""Texts of a data set string ("val=0.1") as values, with an error that says what is allowed. The adapters call it."""

import difflib
from collections.abc import Iterable

from vet_extensions.errors import UserError


def choice(text: str, allowed: Iterable[str], *, key: str) -> str:
    """One of the allowed words. Errors: UserError."""
    words = list(allowed)
    if text in words:
        return text
    near = difflib.get_close_matches(text, words, n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    raise UserError(f"{key}={text} is not known.{guess} Allowed are {', '.join(words)}.")


def whole(text: str | int, *, key: str, least: int = 0, most: int | None = None) -> int:
    """A whole number within bounds. Errors: UserError."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"from {least}" + ("" if most is None else f" to {most}")
        raise UserError(f"{key}={text} must be a whole number {bounds}.")
    return number


def share(text: str | float, *, key: str) -> float:
    """A share of the patients, at least 0 and less than 1. Errors: UserError."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise UserError(f"{key}={text} must be a share of the patients such as 0.1: at least 0, less than 1.")
    return number
