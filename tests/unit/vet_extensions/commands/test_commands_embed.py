"""`vetdino embed`: what it writes is what it says, and a mistake is one sentence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from vet_extensions.cli import USER_ERROR, app
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import IntakeFolder
from vet_extensions.shards import ShardWriter


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root, names = tmp_path / "archive", ("image_id", "study_id", "patient_id", "view", "split")
    with ShardWriter(IntakeFolder(root).shards) as writer:
        for place in range(3):
            writer.add(f"i{place}", np.full((8, 8), 40 * place, dtype=np.uint8))
    rows = [(f"i{place}", f"s{place}", f"p{place}", "VD", "train") for place in range(3)]
    write_manifest(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), IntakeFolder(root).manifest
    )
    return root


def test_it_says_what_it_wrote(archive: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["embed", "pixels", str(archive), str(tmp_path / "out"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "3 images with pixels at 32 px: cls [3, 1, 1024] float32" in result.output
    assert np.load(tmp_path / "out" / "cls.npy").shape == (3, 1, 1024)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--patches"], "no patch features"),
        (["--format", "csv"], "Allowed: npy, safetensors"),
        (["--blocks", "4"], "Ask for 1 to 1"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(words: list[str], sentence: str, archive: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["embed", "pixels", str(archive), str(tmp_path / "out"), *words])
    assert result.exit_code == USER_ERROR
    assert sentence in result.output
