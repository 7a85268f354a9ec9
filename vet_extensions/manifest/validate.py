"""What is in an intake folder, and what is wrong with it: `vetdino check` prints the report of `summarise`.

Problems are leaks between splits, images without pixels or pixels without image, repetitions, and changed or torn files.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vet_extensions.manifest.build import SORT_KEYS
from vet_extensions.manifest.io import MISSING, Manifest, content_hash
from vet_extensions.schema import IntakeFolder

COUNTED = ("split", "view", "view_source", "species", "body_part")
"""Columns whose values the report counts."""


@dataclass(frozen=True)
class CheckReport:
    """Contents and problems of an intake folder. `str(report)` is what the command line prints.

    counts: column -> value -> number of images. labels: finding -> {"present", "absent", "uncertain", "not stated"} -> images.
    problems: one sentence each; empty if all is well.
    """

    n_images: int
    n_studies: int
    n_patients: int
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.n_images:,} images of {self.n_studies:,} studies of {self.n_patients:,} patients"]
        for column, values in self.counts.items():
            lines += ["", column] + [f"  {value or '(not stated)':<28}{n:>12,}" for value, n in values.items()]
        if self.labels:
            kinds = next(iter(self.labels.values())).keys()
            lines += ["", f"{'finding':<30}" + "".join(f"{kind:>12}" for kind in kinds)]
            lines += [f"  {name:<28}" + "".join(f"{n:>12,}" for n in row.values()) for name, row in self.labels.items()]
        lines += (
            ["", *(f"PROBLEM: {problem}" for problem in self.problems)] if self.problems else ["", "No problems found."]
        )
        return "\n".join(lines)


def summarise(root: Path) -> CheckReport:
    """Count what is in the intake folder `root` and look for problems. Errors: UserError if it holds no readable manifest."""
    manifest = Manifest.open(root)
    codes = manifest.patient_codes
    return CheckReport(
        n_images=manifest.n_images,
        n_studies=manifest.n_studies,
        n_patients=int(codes[-1]) + 1 if len(codes) else 0,
        counts={column: _count(manifest, column) for column in COUNTED},
        labels=_count_labels(manifest),
        problems=(*find_problems(manifest), *find_shard_problems(manifest, IntakeFolder(manifest.path.parent))),
    )


def find_problems(manifest: Manifest) -> list[str]:
    """Everything that is wrong with the table itself."""
    problems = []
    if content_hash(manifest.table) != manifest.content_hash:
        problems.append("The manifest's content does not match its hash: it was changed after the intake.")
    if manifest.n_images == 0:
        problems.append("The manifest holds no image. rejected.csv says why each file was refused.")
    if not _is_sorted(manifest):
        problems.append(f"The rows are not sorted by {', '.join(SORT_KEYS)}, or an image occurs twice.")
    for key, what in (("patient_id", "patients"), ("study_id", "studies")):
        n_leaking = _n_straddling(manifest.columns([key, "split"]))
        if n_leaking:
            problems.append(f"{n_leaking} {what} are in more than one split.")
    problems += _pixel_problems(manifest.columns(["pixel_hash", "split"]))
    n_repeated = _n_repeated(manifest.columns(["image_id"])["image_id"])
    if n_repeated:
        problems.append(f"{n_repeated} image ids occur more than once.")
    if _n_straddling(manifest.columns(["study_id", "patient_id"])):
        problems.append("At least one study belongs to two patients.")
    return problems


def find_shard_problems(manifest: Manifest, folder: IntakeFolder) -> list[str]:
    """Whether manifest, index and shards belong together, by sizes and ids; the pixels are not read."""
    if not folder.index.is_file():
        return [f"There is no {folder.index.relative_to(folder.root)}: the images cannot be read."]
    try:
        index = pq.read_table(folder.index)
    except (pa.ArrowException, OSError) as error:
        return [f"{folder.index.relative_to(folder.root)} cannot be read ({type(error).__name__})."]
    in_manifest, in_index = manifest.columns(["image_id"])["image_id"], index["image_id"]
    problems = []
    if not in_manifest.equals(in_index):  # the usual case is settled at once
        only_manifest, only_index = _n_missing(in_manifest, in_index), _n_missing(in_index, in_manifest)
        if only_manifest:
            problems.append(f"{only_manifest} images of the manifest are in no shard.")
        if only_index:
            problems.append(f"{only_index} images in the shards are not in the manifest.")
        if not problems:
            problems.append("Manifest and shard index do not have the same order.")
    ends = (
        pa.table({"shard": index["shard"], "end": pc.add(index["offset"], index["size"])})
        .group_by("shard")
        .aggregate([("end", "max")])
    )
    for number, end in zip(ends["shard"].to_pylist(), ends["end_max"].to_pylist()):
        path = folder.shards / f"shard-{number:06d}.tar"
        if not path.is_file():
            problems.append(f"{path.name} is missing.")
        elif path.stat().st_size < end:
            problems.append(f"{path.name} is truncated: {path.stat().st_size:,} bytes, at least {end:,} expected.")
    return problems


def _n_missing(these: pa.ChunkedArray, those: pa.ChunkedArray) -> int:
    """How many different values of the one column are not in the other."""
    is_there = pc.is_in(these, value_set=those.combine_chunks())
    return len(pc.unique(these.filter(pc.invert(is_there))))


def _pixel_problems(table: pa.Table) -> list[str]:
    known = table.filter(pc.not_equal(table["pixel_hash"], ""))
    n_leaking = _n_straddling(known)
    if n_leaking:
        return [f"{n_leaking} pictures are in more than one split under different ids (equal pixels)."]
    n_repeated = _n_repeated(known["pixel_hash"])
    return [f"{n_repeated} pictures occur more than once under different ids (equal pixels)."] if n_repeated else []


def _n_straddling(table: pa.Table) -> int:
    """How many values of the first column occur with more than one value of the second."""
    plain = pa.table([column.cast(pa.string()) for column in table.columns], names=["key", "other"])
    pairs = plain.group_by(["key", "other"]).aggregate([])
    return _n_repeated(pairs["key"])


def _n_repeated(values: pa.ChunkedArray) -> int:
    return pc.sum(pc.greater(pc.value_counts(values).field("counts"), 1)).as_py() or 0


def _is_sorted(manifest: Manifest) -> bool:
    """Whether the keys of each row are above those of the row before: a study and a patient may go on, an image may not."""
    if manifest.n_images < 2:
        return True
    still_equal, is_fine = np.ones(manifest.n_images - 1, dtype=bool), np.zeros(manifest.n_images - 1, dtype=bool)
    for name in SORT_KEYS:
        keys = manifest.columns([name])[name].combine_chunks()
        before, after = keys[:-1], keys[1:]
        is_fine |= still_equal & pc.less(before, after).to_numpy(zero_copy_only=False)
        still_equal &= pc.equal(before, after).to_numpy(zero_copy_only=False)
    return bool(is_fine.all())


def _count(manifest: Manifest, column: str) -> dict[str, int]:
    values, codes = manifest.codes(column)
    counts = zip(values, np.bincount(codes, minlength=len(values)).tolist(), strict=True)
    return dict(sorted(counts, key=lambda item: (-item[1], item[0])))


def _count_labels(manifest: Manifest) -> dict[str, dict[str, int]]:
    kinds = {"present": 1, "absent": 0, "uncertain": -1, "not stated": MISSING}
    labels = manifest.labels()  # [N, F]
    return {
        name: {kind: int((labels[:, column] == value).sum()) for kind, value in kinds.items()}
        for column, name in enumerate(manifest.label_names)
    }
