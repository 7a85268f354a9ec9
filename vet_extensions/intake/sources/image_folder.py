"""A folder of PNG, JPEG and TIFF files without a table: what the folders' names say, by a layout that the user states.

`registry` makes it for the name `images`. Layout: one role for each level of folders, such as `patient/study` or `split/finding`.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from vet_extensions.errors import UserError
from vet_extensions.intake.anatomy import decide_body_part, decide_species
from vet_extensions.intake.files import list_files
from vet_extensions.intake.sources.labelling import LabelRows, finding_name, nearest
from vet_extensions.intake.sources.listing import (
    IMAGE_SUFFIXES,
    ImageRows,
    TabledSource,
    decide_each,
    own_identifiers,
    same_for_all,
    split_of,
    within_patient,
)
from vet_extensions.intake.sources.tables import decide_side, decide_view_word
from vet_extensions.intake.views import UNDECIDED
from vet_extensions.schema import View

IGNORED = "-"
ROLES = ("split", "patient", "study", "view", "body_part", "species", "laterality", "finding", IGNORED)


class ImageFolder(TabledSource):
    """Every PNG, JPEG and TIFF below `root`; without a layout each is a study and a patient of its own.

    finding: the level's folders are classes; each image is labelled 1 for its own and 0 for the others. Levels below the layout
    are part of the file's name.
    """

    name = "image folder"

    def __init__(self, root: Path, *, layout: str = "") -> None:
        """layout: roles of the levels of folders, "/" between them, from the top. Errors: UserError."""
        self.root = Path(root)
        self.roles = tuple(role for role in layout.strip("/").split("/") if role)
        for role in self.roles:
            if role not in ROLES:
                raise UserError(
                    f"A level of folders cannot be '{role}'.{nearest(role, ROLES)} Allowed are {', '.join(ROLES)} "
                    f"({IGNORED}: no meaning), for example --layout patient/study."
                )
            if role != IGNORED and self.roles.count(role) > 1:
                raise UserError(
                    f"The layout names '{role}' for {self.roles.count(role)} levels. Each role may stand once."
                )
        self.label_names = tuple(
            sorted({finding_name(word) for word in self._levels(self._paths()).get("finding", ())})
        )

    @property
    def label_policy(self) -> dict[str, str]:
        return {"finding": "the folder's own 1, the others 0"} if self.label_names else {}

    def rows(self) -> ImageRows:
        """What the folders' names say of each file."""
        paths = self._paths()
        levels = {role: pa.array(words, pa.string()) for role, words in self._levels(paths).items()}
        path = pa.array(paths, pa.string())
        study = own_identifiers(levels.get("study"), path)
        patient = own_identifiers(levels.get("patient"), study)
        view = decide_each(decide_view_word, levels["view"]) if "view" in levels else None
        return ImageRows(
            path=path,
            patient=patient,
            study=within_patient(patient, study),
            image=path,
            view=view or same_for_all((View.UNKNOWN, UNDECIDED), len(path)),
            split=decide_each(split_of, levels["split"]) if "split" in levels else None,
            body_part=decide_each(_body_part, levels["body_part"]) if "body_part" in levels else None,
            species=decide_each(_species, levels["species"]) if "species" in levels else None,
            laterality=decide_each(decide_side, levels["laterality"]) if "laterality" in levels else None,
            labels=self._labels(levels["finding"].to_pylist()) if self.label_names else None,
        )

    def _paths(self) -> list[str]:
        """Relative paths of the images. Errors: UserError for a name that is no UTF-8."""
        found = [file.relative for file in list_files(self.root).ending_with(IMAGE_SUFFIXES)]
        unreadable = sum(not _is_text(path) for path in found)
        if unreadable:
            raise UserError(
                f"The names of {unreadable} of {len(found)} images are not UTF-8. Rename them, for example with convmv."
            )
        return found

    def _levels(self, paths: list[str]) -> dict[str, list[str]]:
        """role -> the name of each file's folder at that level."""
        folders = [path.split("/")[:-1] for path in paths]
        shallow = sum(len(names) < len(self.roles) for names in folders)
        if shallow:
            raise UserError(
                f"{shallow} of {len(paths)} images lie less deep than the layout '{'/'.join(self.roles)}' says, in fewer than "
                f"{len(self.roles)} folders below the source. Move them, or give another layout."
            )
        return {role: [names[level] for names in folders] for level, role in enumerate(self.roles) if role != IGNORED}

    def _labels(self, words: list[str]) -> LabelRows:
        names = np.array(self.label_names)
        own = np.array([finding_name(word) for word in words])
        return LabelRows(self.label_names, (own[:, None] == names).astype(np.int8))


def _body_part(word: str) -> str:
    return decide_body_part(examined=word)


def _species(word: str) -> str:
    return decide_species(description=word)


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
