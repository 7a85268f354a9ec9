"""Data sets by name: `chexpert:root=FOLDER:labels=all` to `LabelledImages`. The suite calls `open_data`.

Adapters register where they are defined; the module `labelled` brings those of labels, once a name is asked for, and `label_maps`
those of label maps, with the functions that open them. A script adds its own with `@DATA_SETS.register("name")`.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dinov2.utils.registry import Registry
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import LabelledImages, open_archive

if TYPE_CHECKING:  # who judges labels needs no label maps
    from vet_extensions.evaluation.datasets.volumes import Volumes
    from vet_extensions.evaluation.segmentation.sets import SegmentationSet

Adapter = Callable[..., LabelledImages]
"""Called with `root`, a Path, and the options of a data set string, all keyword arguments and all text."""

T = TypeVar("T")

DATA_SETS: Registry[Adapter] = Registry("data set")
MASK_SETS: "Registry[Callable[..., SegmentationSet]]" = Registry("data set with label maps")
VOLUME_SETS: "Registry[Callable[..., Volumes]]" = Registry("data set of volumes")

KEY = re.compile(r":(?=[A-Za-z_]\w*=)")
"""A part begins only at a colon that `word=` follows, so that a folder's name may hold colons."""


def open_data(what: str | Path) -> LabelledImages:
    """An intake folder, or the public data set that a string `NAME:root=FOLDER:key=value` names.

    Errors: UserError for a folder that does not exist, an unknown name or key, and whatever the adapter refuses.
    """
    root = archive_root(what)
    if root is not None and not root.exists():
        raise UserError(
            f"'{what}' does not exist, and no data set is called so. Give the folder that `vetdino intake` wrote, or "
            f"NAME:root=FOLDER, where NAME is one of {', '.join(_adapters().names())}."
        )
    return open_named(_adapters(), str(what)) if root is None else open_archive(root)


def archive_root(what: str | Path) -> Path | None:
    """The intake folder that `open_data` opens; None where the text names a public data set, which has no manifest."""
    if Path(what).is_dir():
        return Path(what)
    name, *parts = KEY.split(str(what))
    return Path(what) if not parts and name not in _adapters() else None


def _adapters() -> Registry[Adapter]:
    """Loaded late: they bring the intake's sources along, which judging an intake folder has no use for."""
    from vet_extensions.evaluation.datasets import labelled

    return labelled.DATA_SETS


def open_named(registry: Registry[Callable[..., T]], text: str, *, also: Iterable[str] = ()) -> T:
    """What the adapter named in `NAME:root=FOLDER:key=value` makes of its folder. also: names to tell beside the registry's own.

    Errors: UserError.
    """
    name, *parts = KEY.split(text)
    if name not in registry:
        known = sorted([*registry, *also])
        near = difflib.get_close_matches(name, known, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"Unknown {registry.kind} '{name}'.{guess} Known: {', '.join(known)}.")
    adapter = registry.get(name)
    parameters = inspect.signature(adapter).parameters
    allowed = [key for key in parameters if key != "root"]
    options: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key != "root" and key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            guess = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(f"The data set '{name}' has no key '{key}'.{guess} Keys: root, {', '.join(allowed)}.")
        if key in options or not value:
            raise UserError(f"The data set '{name}': give the key '{key}' once, and with a value.")
        options[key] = value
    root = Path(options.pop("root", ""))
    if "root" not in text or not root.is_dir():
        raise UserError(
            f"The data set '{name}' needs the folder that it was downloaded to: {name}:root=FOLDER"
            + (f", and '{root}' is none." if "root" in text else ".")
        )
    required = [key for key, value in parameters.items() if value.default is value.empty and key != "root"]
    if absent := [key for key in required if key not in options]:
        raise UserError(f"The data set '{name}' needs the key '{absent[0]}': {name}:root=FOLDER:{absent[0]}=...")
    return adapter(root=root, **options)
