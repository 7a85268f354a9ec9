"""The command that makes the metadata of ImageNet and ImageNet-22k."""

import io
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dinov2.data.datasets import ImageNet, ImageNet22k
from dinov2.data.datasets.prepare import run

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def root(tmp_path):
    """One image in train and one in val."""
    for relpath in ("train/n01440764/n01440764_1.JPEG", "val/n01440764/ILSVRC2012_val_00000001.JPEG"):
        path = tmp_path / "imagenet" / relpath
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "imagenet/labels.txt").write_text("n01440764,tench\n")
    return tmp_path / "imagenet"


@pytest.fixture
def extra(tmp_path):
    return tmp_path / "new" / "extra"


def test_the_command_makes_the_metadata_of_all_splits_that_are_there(root, extra, caplog):
    caplog.set_level(logging.INFO)
    assert run(["ImageNet", "--root", str(root), "--extra", str(extra)]) == 0
    assert len(ImageNet(split="TRAIN", root=root, extra=extra)) == 1
    assert len(ImageNet(split="VAL", root=root, extra=extra)) == 1
    assert "ImageNet: no folder for TEST, which is left out" in caplog.messages


def test_the_command_makes_only_the_splits_asked_for(root, extra):
    assert run(["ImageNet", "--root", str(root), "--extra", str(extra), "--split", "VAL"]) == 0
    assert sorted(path.name for path in extra.iterdir()) == [
        "class-ids-VAL.npy",
        "class-names-VAL.npy",
        "entries-VAL.npy",
    ]


def test_the_command_makes_the_metadata_of_tar_files(tmp_path, extra):
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    with tarfile.open(tmp_path / "n01440764.tar", "w") as tar:
        info = tarfile.TarInfo("n01440764_1.JPEG")
        info.size = image.tell()
        tar.addfile(info, io.BytesIO(image.getvalue()))
    assert run(["ImageNet22k", "--root", str(tmp_path), "--extra", str(extra)]) == 0
    assert ImageNet22k(root=tmp_path, extra=extra).get_image_data(0) == image.getvalue()


def test_a_mistake_gives_its_sentence_and_status_two(root, extra, capsys):
    (root / "labels.txt").unlink()
    assert run(["ImageNet", "--root", str(root), "--extra", str(extra)]) == 2
    assert capsys.readouterr().err.startswith("error: ImageNet: there is no '")


def test_a_root_without_any_split_is_refused_with_the_folders_it_needs(tmp_path, extra, capsys):
    assert run(["ImageNet", "--root", str(tmp_path), "--extra", str(extra)]) == 2
    assert "none of the folders train, val, test" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_a_sentence(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(["ImageNet", "--root", str(root), "--extra", str(tmp_path / "file")]) == 2
    assert "--extra writable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["ImageNet", "--root", "x"], ["ImageNet", "--root", "x", "--extra", "y", "--split", "train"]]
)
def test_a_wrong_command_line_ends_with_the_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        run(words)
    assert caught.value.code == 2
    assert "usage: python -m dinov2.data.datasets.prepare" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        run(["--help"])
    assert "prepare ImageNet --root imagenet --extra imagenet-extra" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_runs_as_a_module(root, extra):
    words = [
        "-m",
        "dinov2.data.datasets.prepare",
        "ImageNet",
        "--root",
        str(root),
        "--extra",
        str(extra),
        "--split",
        "TRAIN",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == (
        "ImageNet TRAIN: 1 images of 1 classes (labels.txt lists 1); the whole split has 1,281,167"
    )


def test_the_shell_lines_of_the_page_make_kaggles_archive_ready(tmp_path, extra):
    """docs/datasets.md, steps 1 and 2 of ImageNet, as they stand there."""
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    (root / "val").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (8, 8)).save(root / f"val/ILSVRC2012_val_{number:08d}.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01491361 tiger shark, Galeocerdo cuvieri\n"
    )
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 85 1 499 272\n"
        "ILSVRC2012_val_00000001,n01491361 1 2 3 4 n01491361 5 6 7 8\n"
    )
    page = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```bash\n")[1:]]
    lines = [block for block in blocks if "LOC_" in block]
    assert len(lines) == 2
    for line in lines:
        subprocess.run(["bash", "-e", "-c", line], cwd=tmp_path, check=True)
    assert (root / "labels.txt").read_text() == "n01440764,tench\nn01491361,tiger shark\n"
    assert run(["ImageNet", "--root", str(root), "--extra", str(extra)]) == 0
    dataset = ImageNet(split="VAL", root=root, extra=extra)
    assert [(dataset.get_class_name(i), dataset.get_target(i)) for i in range(2)] == [("tench", 0), ("tiger shark", 1)]
