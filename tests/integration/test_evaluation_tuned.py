"""The suite with protocols that train the backbone: rows beside those of frozen features, kept trainings, one control."""

from pathlib import Path

import pytest
from run_factory import write_run
from study_factory import make_intake

from vet_extensions.errors import UserError
from vet_extensions.evaluation.results import Result
from vet_extensions.evaluation.suite import run_suite
from vet_extensions.evaluation.suite_config import load_suite
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS, TuningConfig

SUITE = {
    "image_size_px": 16,
    "protocols": ["linear", "norm", "vpt"],
    "levels": ["image", "study", "study_mean"],
    "groups": ["all"],
    "controls": ["random_init", "raw_pixels"],
    "linear": {"c_grid": [0.1]},
    "tuning": {"epochs": 2, "batch_size": 8, "learning_rate_factors": [0.5, 2.0], "n_prompts": 2},
    "bootstrap": {"n_resamples": 20},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def intake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_intake(tmp_path_factory.mktemp("intake"), n_studies=24, split=None, findings=("effusion", "nodule"))


def scores(rows: list[Result], **wanted: object) -> list[Result]:
    return [row for row in rows if row.kind == "score" and all(getattr(row, k) == v for k, v in wanted.items())]


@pytest.mark.slow
def test_tuned_protocols_are_rows_of_a_suite_and_are_not_trained_twice(run: Path, intake: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = run_suite([run], intake, SUITE, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert {row.protocol for row in scores(first, level="image")} == {"linear", "norm", "vpt"}
    assert {row.protocol for row in scores(first, level="study")} == {"linear"}
    assert {row.arm for row in scores(first, protocol="norm")} == {"same_image", "random_init"}
    (row,) = scores(first, arm="same_image", protocol="vpt", level="study_mean", metric="macro_auroc")
    assert row.config["n_trainable"] == [2 * 128 * 4]
    assert row.config["learning_rate"][0] in (2.5e-3, 1e-2)
    assert row.config["wall_s"][0] > 0
    assert row.config["peak_process_bytes"][0] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]

    trainings = {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning").iterdir()}
    assert len(trainings) == 2 * 2 * 2  # protocols, learning rates, backbone and its untrained control
    again = run_suite([run], intake, SUITE, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tuning").iterdir()} == trainings
    assert scores(again, protocol="norm") == scores(first, protocol="norm")


def test_the_suite_file_of_tuning_shows_the_defaults() -> None:
    suite = load_suite(Path(__file__).parents[2] / "configs" / "evaluation" / "tuning.yaml")
    assert suite.tuning == TuningConfig()
    assert suite.protocols == ("linear", *TUNED_PROTOCOLS)


def test_wrong_settings_of_a_suite_name_the_section() -> None:
    with pytest.raises(UserError, match=r"Unknown key 'tuning\.epoch' in the suite\. Did you mean 'tuning\.epochs'"):
        load_suite({"tuning": {"epoch": 3}})
    with pytest.raises(UserError, match="'lorra' in protocols"):
        load_suite({"protocols": ["lorra"]})
    with pytest.raises(UserError, match="epochs is 0; it must be a whole number from 1 up"):
        load_suite({"tuning": {"epochs": 0}})
