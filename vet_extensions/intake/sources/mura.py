"""MURA v1.1 (Stanford): MURA-v1.1/train/XR_SHOULDER/patient00001/study1_positive/image1.png and lists of paths without a header.

Source of the layout: arXiv 1712.06957 and the release itself. The closest public likeness of a veterinary study: several
projections of one body part, none of them named.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from vet_extensions.errors import UserError
from vet_extensions.intake.sources.labelling import LabelPolicy, LabelRows
from vet_extensions.intake.sources.listing import (
    HUMAN,
    ImageRows,
    TabledSource,
    Texts,
    decide_each,
    find_file,
    join,
    same_for_all,
    split_of,
)
from vet_extensions.intake.views import UNDECIDED
from vet_extensions.schema import View

LISTS = ("train_image_paths.csv", "valid_image_paths.csv")

_PATH = (
    r"(?:^|/)(?P<split>train|valid)/XR_(?P<part>[A-Z]+)/(?P<patient>patient[0-9]+)"
    r"/(?P<study>study[0-9]+)_(?P<label>positive|negative)/(?P<file>[^/]+)$"
)


class Mura(TabledSource):
    """40,561 radiographs of upper limbs, 14,863 studies of 12,173 patients; no image says which view it shows.

    The split `valid` is called val here, though papers report on it: the test set was never published. A patient may have studies
    of several body parts; their numbers begin anew with each part. The one label, `abnormal`, is of the study.
    """

    name = "MURA"

    def __init__(self, root: Path, *, uncertain: str = "keep") -> None:
        """root: the folder MURA-v1.1, as far as it is there. uncertain: no label is; taken for likeness. Errors: UserError."""
        self.root = root
        self.label_names: tuple[str, ...] = ("abnormal",)
        self._policy = LabelPolicy(uncertain=uncertain)
        self._lists()

    @property
    def label_policy(self) -> dict[str, str]:
        return self._policy.to_json()

    def rows(self) -> ImageRows:
        """The paths of both lists; everything that is known of an image stands in its path."""
        listed = pa.concat_arrays([array for path in self._lists() for array in _read_list(path).chunks])
        parts = pc.extract_regex(pc.replace_substring(listed, "\\", "/"), _PATH)
        if parts.null_count:
            raise UserError(
                f"{parts.null_count} of {len(listed)} paths in MURA's lists are not of the form "
                "MURA-v1.1/train/XR_SHOULDER/patient00001/study1_positive/image1.png. Use the lists as they were downloaded."
            )
        split, part, patient, study, label, file = (
            pc.struct_field(parts, name) for name in ("split", "part", "patient", "study", "label", "file")
        )
        path = join(split, "/XR_", part, "/", patient, "/", study, "_", label, "/", file)
        labels = pc.equal(label, "positive").to_numpy(zero_copy_only=False).astype(np.int8)[:, None]
        return ImageRows(
            path=path,
            patient=patient,
            study=join(patient, "/", part, "/", study),
            image=path,
            view=same_for_all((View.UNKNOWN, UNDECIDED), len(listed)),
            species=same_for_all(HUMAN, len(listed)),
            body_part=decide_each(str, part),
            split=decide_each(split_of, split),
            labels=LabelRows(self.label_names, labels),
        )

    def _lists(self) -> list[Path]:
        """Those that are there. Errors: UserError where none is."""
        found = [self.root / name for name in LISTS if (self.root / name).is_file()]
        return found or [find_file(self.root, LISTS, dataset=self.name)]


def _read_list(path: Path) -> Texts:
    """The lines of a list; a comma after a path, as some copies have it, and empty lines are left out."""
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=["line"]),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(column_types={"line": pa.string()}, strings_can_be_null=False),
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"MURA's list '{path.name}' cannot be read ({type(error).__name__}). It must be UTF-8 text, one path a line."
        ) from None
    lines = pc.utf8_trim(table["line"], ' ,"\t\r\ufeff')
    return lines.filter(pc.not_equal(lines, ""))
