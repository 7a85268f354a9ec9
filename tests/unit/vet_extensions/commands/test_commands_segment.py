"""The verbs `organs` and `segment`: from nothing to rows of results, with the options that users give."""

from pathlib import Path

import pytest
from segmentation_factory import make_backbone
from typer.testing import CliRunner

from vet_extensions.cli import app
from vet_extensions.evaluation.results import read_results


def run(*words: str):
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("verb", ["organs", "segment"])
def test_both_verbs_have_help_with_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: vetdino {verb}" in result.output


def test_organs_are_written_and_segmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("monai")
    monkeypatch.setattr("vet_extensions.evaluation.segmentation.run.open_backbone", lambda _: make_backbone())
    data, out = tmp_path / "organs", tmp_path / "out"
    written = run("organs", str(data), "--studies", "5", "--size", "32")
    assert "10 images" in written.output
    words = ("segment", "RUN", "--data", str(data), "--out", str(out), "--decoder", "bn_linear", "--epochs", "1")
    result = run(*words, "--size", "32", "--tolerance", "5", "--no-control", "--save-masks", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "segment_bn_linear" in result.output
    rows = read_results(out / "results.jsonl")
    assert {row.config["tolerance_mm"] for row in rows} == {5.0}
    assert {row.arm for row in rows} == {"patches", "patch_grid_truth"}
    assert len(list((out / "masks" / "bn_linear" / "patches").glob("image_*.png"))) == rows[0].n_images
