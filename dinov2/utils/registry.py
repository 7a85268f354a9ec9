"""Named objects chosen from a configuration: the class behind the three seams (data sets, augmentations, loss routings)."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from dinov2.utils.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of names. A name is taken once; an unknown one is answered with the known ones."""

    def __init__(self, kind: str) -> None:
        """kind: what the objects are, in the singular, for messages ("data set", "loss routing")."""
        self.kind = kind
        self._objects: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an object under `name`.

        Registering the same object again changes nothing, so a plugin may be loaded twice; another object under a taken
        name raises `UserError`.
        """

        def add(obj: T) -> T:
            taken = self._objects.get(name)
            if taken is not None and taken is not obj:
                raise UserError(
                    f"The {self.kind} name '{name}' is already taken by {taken!r}. Register {obj!r} under another name."
                )
            self._objects[name] = obj
            return obj

        return add

    def get(self, name: str) -> T:
        """The object called `name`; raises `UserError` that lists the known names and the nearest one."""
        if name not in self._objects:
            raise UserError(self._unknown(name))
        return self._objects[name]

    def names(self) -> list[str]:
        """The known names, sorted."""
        return sorted(self._objects)

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._objects, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        return (
            f"Unknown {self.kind} '{name}'.{guess} Known: {', '.join(self.names()) or 'none'}. "
            f"A {self.kind} of your own is added by a module named in the configuration's 'plugins' list."
        )


def checked_options(
    section: Mapping[str, Any], known: Iterable[str], *, where: str, common: Iterable[str] = ("name",)
) -> dict[str, Any]:
    """The keys of a named object's section besides the `common` ones; raises `UserError` for one that it does not know.

    where: what the section configures, for the message ("loss routing").
    """
    known = sorted({*known})
    options = {str(k): v for k, v in section.items() if k not in common}
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"Unknown key '{key}' for {where} '{section['name']}'.{guess} Its keys: {', '.join(known) or 'none'}."
            )
    return options
