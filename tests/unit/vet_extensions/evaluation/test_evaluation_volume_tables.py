"""Tables of volumes, NIfTI and DICOM side by side: with labels, as axial slices of a study; with label maps, on one grid."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.series_factory import SPACING, asymmetric_phantom, slices_of, write_nifti, write_series
from tests.source_files import write_csv
from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL, LabelledImages
from vet_extensions.evaluation.datasets import open_data
from vet_extensions.evaluation.datasets.label_maps import open_segmentation, open_volumes
from vet_extensions.evaluation.datasets.volume_files import HeldSlices
from vet_extensions.evaluation.suite import run_suite
from vet_extensions.evaluation.suite_config import BootstrapConfig, load_suite

pytest.importorskip("nibabel")

N = 8
DEPTH = 16
ROOT = Path(__file__).resolve().parents[4]
IS_SERIES = [bool(number % 2) for number in range(N)]
PATHS = [f"series/{number}" if IS_SERIES[number] else f"nifti/{number}.nii.gz" for number in range(N)]


@pytest.fixture(scope="module")
def volumes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight volumes of four patients, every other one a DICOM series, and their label maps as NIfTI."""
    root = tmp_path_factory.mktemp("volumes")
    for number, path in enumerate(PATHS):
        phantom = asymmetric_phantom(seed=number)
        if IS_SERIES[number]:
            write_series(root / path, slices_of(phantom, "coronal" if number == 3 else "axial"))
        else:
            write_nifti(root / path, phantom)
        write_nifti(root / f"masks/{number}.nii.gz", phantom > -600)
    return root


def write_table(root: Path, name: str, columns: list[str], rows: list[list[str]]) -> str:
    write_csv(root / name, columns, rows)
    return f"volume_table:root={root}:file={name}"


def labelled(root: Path, *, keys: str = "") -> LabelledImages:
    rows = [
        [path, f"p{n // 2}", ["train", "val", "test", "train"][n // 2], "ab"[n % 2]] for n, path in enumerate(PATHS)
    ]
    return open_data(write_table(root, "labels.csv", ["path", "patient", "split", "label"], rows) + keys)


def test_axial_slices_are_images_and_volumes_are_studies(volumes_root: Path) -> None:
    found = labelled(volumes_root)
    assert found.task == MULTICLASS
    assert len(found.cohort.split) == N * DEPTH
    assert np.bincount(found.cohort.study_codes).tolist() == [DEPTH] * N
    assert len(np.unique(found.cohort.patient_codes)) == 4
    of_study = found.cohort.by_study()
    assert of_study.labels.argmax(axis=1).tolist() == [0] * (N // 2) + [1] * (N // 2)  # nifti/ comes before series/
    assert found.policy["slice labels"].startswith("those of the whole volume")
    assert set(found.id_of("image").tolist()) == {str(n) for n in range(N * DEPTH)}


def test_slices_of_both_kinds_of_files_are_windowed_alike(volumes_root: Path) -> None:
    found = labelled(volumes_root, keys=":window=-900,100")
    for volume in (0, 1, 3):
        hu = asymmetric_phantom(seed=volume)[::-1, ::-1].transpose(2, 1, 0)
        expected = np.rint(np.clip((hu[5].astype(float) + 900) / 1000, 0, 1) * 65535)
        assert np.abs(found.reader.read(volume * DEPTH + 5).astype(int) - expected).max() <= 1
    copy = pickle.loads(pickle.dumps(found.reader))
    assert np.array_equal(copy.read(DEPTH), found.reader.read(DEPTH))


def test_a_volume_is_read_once_for_all_of_its_slices(volumes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vet_extensions.evaluation.datasets import labelled_volumes

    read, original = [], labelled_volumes.read_grey
    monkeypatch.setattr(
        labelled_volumes, "read_grey", lambda path, **options: read.append(path) or original(path, **options)
    )
    found = labelled(volumes_root)
    for row in range(3 * DEPTH):
        found.reader.read(row)
    assert len(read) == 3


def test_of_volumes_read_at_random_only_the_slices_in_use_are_held_within_a_bound() -> None:
    read: list[int] = []

    def read_volume(volume: int) -> np.ndarray:
        read.append(volume)
        return np.full((6, 4, 5), volume, np.uint16) + np.arange(6, dtype=np.uint16)[:, None, None] * 10

    places = [(volume, z) for volume in range(3) for z in (1, 4)]
    held = HeldSlices(read_volume, places, max_bytes=2 * 2 * 4 * 5 * 2)  # two slices of two volumes
    order = [0, 2, 1, 3, 0, 2]
    assert [int(held.read(row)[0, 0]) for row in order] == [places[row][0] + 10 * places[row][1] for row in order]
    assert read == [0, 1]
    held.read(4)
    held.read(3)  # volume 1 was used last before volume 2, and stayed
    assert read == [0, 1, 2]
    held.read(0)
    assert read == [0, 1, 2, 0]


def test_every_so_many_th_slice_is_another_data_set(volumes_root: Path) -> None:
    whole, thinned = labelled(volumes_root), labelled(volumes_root, keys=":every=4")
    assert len(thinned.cohort.split) == N * DEPTH // 4
    assert np.array_equal(thinned.reader.read(1), whole.reader.read(4))
    hashes = {whole.content_hash, thinned.content_hash, labelled(volumes_root, keys=":window=-160,240").content_hash}
    assert len(hashes) == 3
    assert labelled(volumes_root).content_hash == whole.content_hash


def test_a_missing_split_is_cut_by_patient_and_findings_and_facts_are_read(volumes_root: Path) -> None:
    rows = [[path, f"p{n // 2}", str(n % 2), "", f"scanner {n % 2}"] for n, path in enumerate(PATHS)]
    what = write_table(volumes_root, "findings.csv", ["path", "patient", "label.nodule", "label.mass", "scanner"], rows)
    found = open_data(f"{what}:facts=scanner:val=0.25:test=0.25")
    assert found.task == MULTILABEL
    assert set(found.cohort.labels[:, 1].tolist()) == {-128}
    assert set(found.cohort.split.tolist()) == {"train", "val", "test"}
    for patient in range(4):
        assert len(set(found.cohort.split[found.cohort.patient_codes == patient].tolist())) == 1
    assert found.facts["scanner"][[0, DEPTH]].tolist() == ["scanner 0", "scanner 1"]
    with pytest.raises(UserError, match="site"):
        open_data(f"{what}:facts=site")


def test_the_suite_scores_slices_and_volumes_and_names_no_folder(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        phantom = asymmetric_phantom(seed=number)
        phantom[4:12, 4:12, :] += np.int16(400 * (number % 2))
        path = f"Doe^Jane/{number}"
        write_series(tmp_path / path, slices_of(phantom))
        rows.append([path, f"p{number}", ["train", "val", "test"][number // 2 % 3], "ab"[number % 2]])
    what = write_table(tmp_path, "v.csv", ["path", "patient", "split", "label"], rows) + ":every=4:window=-1000,400"
    suite = load_suite(ROOT / "configs" / "evaluation" / "volumes.yaml")
    small = replace(
        suite,
        levels=("image", *suite.levels),
        controls=(),
        knn=replace(suite.knn, ks=(1,)),
        pooling=replace(suite.pooling, epochs=3, learning_rates=(0.01,), width=16),
        bootstrap=BootstrapConfig(n_resamples=5),
    )
    results = run_suite(["pixels"], what, small, tmp_path / "out")
    of_accuracy = [row for row in results if row.kind == "mean" and row.metric == "accuracy"]
    accuracy = {(row.level, row.protocol): row.value for row in of_accuracy}
    assert {protocol for level, protocol in accuracy if level == "study"} == set(suite.protocols)
    assert accuracy["image", "knn"] == accuracy["study", "knn"] == accuracy["study", "pool_mean"] == 1.0
    assert {row.n_images for row in of_accuracy if row.level == "study"} == {4}
    assert "Doe" not in "".join(str(row.to_row()) for row in results)


def test_missing_repeated_and_damaged_volumes_are_told(volumes_root: Path, tmp_path: Path) -> None:
    rows = [[str(volumes_root / path), "ab"[n % 2]] for n, path in enumerate(PATHS)]
    what = write_table(tmp_path, "t.csv", ["path", "label"], [*rows, [str(tmp_path / "absent"), "a"]])
    with pytest.raises(UserError, match="1 of 9"):
        open_data(what)
    assert len(open_data(f"{what}:missing=skip").cohort.split) == N * DEPTH
    with pytest.raises(UserError, match="lists 1 volumes more than once"):
        open_data(write_table(tmp_path, "t.csv", ["path", "label"], [*rows, rows[0]]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="'empty' holds 0 DICOM slices"):
        open_data(write_table(tmp_path, "t.csv", ["path", "label"], [*rows, [str(tmp_path / "empty"), "a"]]))


def mask_table(root: Path, rows: list[list[str]] | None = None, *, keys: str = ":classes=background+body") -> str:
    if rows is None:
        rows = [[path, f"masks/{n}.nii.gz", f"p{n // 2}"] for n, path in enumerate(PATHS)]
    return write_table(root, "masks.csv", ["path", "mask", "patient"], rows) + keys


def test_a_nifti_label_map_lies_on_its_series(volumes_root: Path) -> None:
    """The phantom is asymmetric: of a map that is turned or mirrored, voxels would lie elsewhere."""
    volumes = open_volumes(mask_table(volumes_root) + ":window=-601,-599")
    for volume in range(N):
        assert np.array_equal(volumes.grey(volume) > 32768, volumes.label_map(volume) == 1)
        assert volumes.geometry(volume)[1] == pytest.approx(SPACING[::-1])
    slices = open_segmentation(mask_table(volumes_root))
    assert len(slices.split) == N * DEPTH
    assert slices.checked_mask(0, shape=slices.read(0).shape).shape == (17, 18)
    assert len(set(volumes.patients.tolist())) == 4


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_a_label_map_that_was_mirrored_with_its_header_kept_apart_is_refused(
    volumes_root: Path, tmp_path: Path, flip: int
) -> None:
    """As when left and right of DICOM and NIfTI are mixed up: the voxels lie at the other side of the origin."""
    affine = np.diag([*SPACING, 1.0])
    affine[flip, flip] *= -1
    write_nifti(tmp_path / "mask.nii.gz", asymmetric_phantom(seed=1) > -600, affine=affine)
    rows = [[str(volumes_root / path), str(volumes_root / f"masks/{n}.nii.gz"), ""] for n, path in enumerate(PATHS)]
    rows[1][1] = str(tmp_path / "mask.nii.gz")
    with pytest.raises(UserError, match=r"Row 2 of the table: the label map lies up to \d+\.\d mm away"):
        open_volumes(mask_table(tmp_path, rows))


def test_a_label_map_of_another_size_a_half_split_and_one_class_are_refused(volumes_root: Path, tmp_path: Path) -> None:
    rows = [[str(volumes_root / path), str(volumes_root / f"masks/{n}.nii.gz"), ""] for n, path in enumerate(PATHS)]
    write_nifti(tmp_path / "mask.nii.gz", asymmetric_phantom((18, 17, 15)) > -600)
    small = [[rows[0][0], str(tmp_path / "mask.nii.gz"), ""], *rows[1:]]
    with pytest.raises(UserError, match=r"Row 1 of the table: the label map has \[15, 17, 18\] voxels, the image \[16"):
        open_volumes(mask_table(tmp_path, small))
    with pytest.raises(UserError, match="must name the background and at least one other"):
        open_volumes(mask_table(tmp_path, rows, keys=":classes=body"))
    half = write_table(
        tmp_path,
        "half.csv",
        ["path", "mask", "split"],
        [[*row[:2], "train" if n else ""] for n, row in enumerate(rows)],
    )
    with pytest.raises(UserError, match="empty cells beside others"):
        open_volumes(f"{half}:classes=background+body")
