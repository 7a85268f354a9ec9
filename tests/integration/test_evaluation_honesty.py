"""The suite with everything that stands beside a score: controls, audit, kept predictions, the page, leaks and broken folders."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_factory import write_run

from vet_extensions.analysis.pages import page_environment
from vet_extensions.commands.compare import compare
from vet_extensions.errors import UserError
from vet_extensions.evaluation import chance
from vet_extensions.evaluation.audit import AUDIT_FILE, read_audit
from vet_extensions.evaluation.compare import compare_evaluations
from vet_extensions.evaluation.leaderboard import TEMPLATES, page_variables, write_leaderboard
from vet_extensions.evaluation.results import RESULTS_FILE, Result
from vet_extensions.evaluation.suite import run_suite
from vet_extensions.evaluation.suite_config import load_suite
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import LABEL_PREFIX, IntakeFolder
from vet_extensions.shards import ShardWriter

N_PATIENTS = 160
SUITE = load_suite(
    {
        "image_size_px": 16,
        "levels": ["image", "study_max"],
        "groups": ["all"],
        "controls": ["metadata", "shuffled_labels"],
        "knn": {"ks": [15]},
        "linear": {"c_grid": [0.01]},
        "bootstrap": {"n_resamples": 60},
    }
)


def write_archive(root: Path) -> Path:
    """Two views a patient; effusion is a bright band, and five times as common among cats. 80 train, 20 val, 60 test patients."""
    generator = np.random.default_rng(0)
    species = np.where(np.arange(N_PATIENTS) % 2, "feline", "canine")
    effusion = generator.random(N_PATIENTS) < np.where(species == "feline", 0.75, 0.15)
    split = np.repeat(["train", "val", "test"], [80, 20, 60])
    rows: dict[str, list] = {}
    with ShardWriter(IntakeFolder(root).shards) as writer:
        for patient in range(N_PATIENTS):
            for view in ("LATERAL_RIGHT", "VD"):
                pixels = generator.integers(60, 120, size=(16, 16), dtype=np.uint8)
                pixels[4:8] += np.uint8(100 * effusion[patient])
                image = {
                    "image_id": f"i{patient:03d}{view}",
                    "study_id": f"s{patient:03d}",
                    "patient_id": f"p{patient:03d}",
                    "view": view,
                    "split": str(split[patient]),
                    "species": str(species[patient]),
                    "pixel_hash": f"h{patient}{view}",
                    f"{LABEL_PREFIX}effusion": int(effusion[patient]),
                }
                for name, value in image.items():
                    rows.setdefault(name, []).append(value)
                writer.add(image["image_id"], pixels)
    table = pa.table({**rows, f"{LABEL_PREFIX}effusion": pa.array(rows[f"{LABEL_PREFIX}effusion"], type=pa.int8())})
    write_manifest(table, IntakeFolder(root).manifest)
    return root


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Result]]:
    """(folder, runs, results): two arms pre-trained on the train split of the judged archive."""
    folder = tmp_path_factory.mktemp("honest")
    archive = write_archive(folder / "archive")
    runs = [folder / name for name in ("same_image", "vet_dino")]
    for number, run in enumerate(runs):
        write_run(
            run, weights_seed=number, routing={"name": run.name}, train={"dataset_path": f"VetStudies:root={archive}"}
        )
    return folder, runs, run_suite(runs, archive, SUITE, folder / "out")


def find(results: list[Result], **wanted: object) -> list[Result]:
    return [row for row in results if all(getattr(row, name) == value for name, value in wanted.items())]


def test_every_row_says_whether_its_model_has_seen_test_data(evaluated: tuple) -> None:
    for row in evaluated[2]:
        trained = row.arm in ("same_image", "vet_dino")
        assert row.config["leak"].startswith("none found" if trained else "not trained")


def test_the_shortcut_through_species_is_seen_by_the_metadata_control(evaluated: tuple) -> None:
    (row,) = find(evaluated[2], kind="mean", arm="metadata", level="image", protocol="linear", metric="macro_auroc")
    assert row.low > 0.6


def test_shuffled_labels_have_rows_at_chance_for_every_level_and_protocol(evaluated: tuple) -> None:
    rows = find(evaluated[2], kind="mean", arm="shuffled_labels")
    assert {(row.level, row.protocol) for row in rows} == {(a, b) for a in SUITE.levels for b in SUITE.protocols}
    assert all(row.config["is_at_chance"] for row in rows)


def test_shuffled_labels_off_chance_are_warned_of_loudly(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, runs, _ = evaluated
    monkeypatch.setattr(chance, "_dealt", lambda cohort, _, task: [cohort.labels] * 2)
    with caplog.at_level(logging.WARNING, logger="vet_extensions"):
        run_suite(runs[:1], folder / "archive", replace(SUITE, levels=("image",)), tmp_path)
    assert "NOT AT CHANCE" in caplog.text
    assert "NOT AT CHANCE" in write_leaderboard(tmp_path, page_environment(TEMPLATES), n_resamples=20).read_text()


def test_the_audit_holds_calibration_subgroups_and_shortcuts(evaluated: tuple) -> None:
    rows = read_audit(evaluated[0] / "out" / AUDIT_FILE)
    assert {row.kind for row in rows} == {"calibration", "subgroup", "shortcut"}
    assert {row.about for row in rows if row.kind == "subgroup"} >= {"species: canine", "species: feline", "view: VD"}
    assert {row.about for row in rows if row.kind == "shortcut"} >= {"species", "view"}
    assert all(0 <= row.value <= 1 for row in rows if row.kind == "calibration")


def test_scores_of_a_study_are_the_highest_of_its_images(evaluated: tuple) -> None:
    place = next((evaluated[0] / "out" / "predictions").glob("vet_dino*"))
    images, studies = (pq.read_table(place / f"{level}.all.linear.parquet").to_pydict() for level in SUITE.levels)
    highest: dict[str, float] = {}
    for case, score in zip(images["case_id"], images["score.effusion"], strict=True):
        study = f"s{case[1:4]}"
        highest[study] = max(score, highest.get(study, -np.inf))
    assert dict(zip(studies["case_id"], studies["score.effusion"], strict=True)) == pytest.approx(highest)


def test_the_kept_predictions_are_compared_after_the_fact(evaluated: tuple) -> None:
    text = compare([evaluated[0] / "out"], level="image", labels=True, resamples=100)
    assert "same_image - vet_dino" in text
    assert "Single labels, AUROC" in text
    assert "Holm's correction over 4 differences" in text


def test_the_page_shows_scores_groups_controls_and_leaks_and_names_no_folder(evaluated: tuple) -> None:
    page = write_leaderboard(evaluated[0] / "out", page_environment(TEMPLATES), n_resamples=50).read_text()
    for word in ("vet_dino", "metadata", "shuffled_labels", "none found", "not distinguishable", "species: feline"):
        assert word in page
    assert str(evaluated[0]) not in page
    assert "://" not in page


def test_the_page_shows_the_intervals_of_brier_score_and_calibration_error(evaluated: tuple) -> None:
    page = write_leaderboard(evaluated[0] / "out", page_environment(TEMPLATES), n_resamples=50).read_text()
    rows = [row for row in read_audit(evaluated[0] / "out" / AUDIT_FILE) if row.kind == "calibration"]
    shown = [row for row in rows if row.metric in ("macro_brier", "macro_ece_beyond_chance") and row.arm == "vet_dino"]
    assert len(shown) == 2 * len(SUITE.levels) * len(SUITE.protocols)
    assert all(f"[{row.low:.3f}, {row.high:.3f}]" in page for row in shown)
    assert all(row.low <= row.value <= row.high for row in shown)


def test_what_keeps_no_predictions_is_on_the_page_without_letters(evaluated: tuple) -> None:
    (row,) = find(evaluated[2], kind="mean", arm="vet_dino", level="image", protocol="linear", metric="macro_auroc")
    comparison = compare_evaluations([evaluated[0] / "out"], with_labels=False, n_resamples=20)
    shown = page_variables(comparison, results=[replace(row, protocol="few_shot")])["levels"][0]["tables"]
    (table,) = [table for table in shown if "few-shot" in table["caption"].lower()]
    assert [(line["name"], line["letters"]) for line in table["rows"]] == [("vet_dino", "")]


def test_a_model_that_saw_test_patients_stops_the_evaluation_and_is_marked_where_it_is_allowed(
    evaluated: tuple, tmp_path: Path
) -> None:
    archive = evaluated[0] / "archive"
    run = tmp_path / "run"
    write_run(run, routing={"name": "vet_dino"}, train={"dataset_path": f"VetStudies:root={archive}:split=all"})
    suite = replace(SUITE, levels=("image",), controls=())
    with pytest.raises(UserError, match="120"):
        run_suite([run], archive, suite, tmp_path / "out")
    assert not (tmp_path / "out" / RESULTS_FILE).exists()
    rows = run_suite([run], archive, suite, tmp_path / "out", allow_leak=True)
    assert all(row.config["leak"].startswith("LEAK: of 120 test images") for row in rows)
    page = write_leaderboard(tmp_path / "out", page_environment(TEMPLATES), n_resamples=20).read_text()
    assert "was pre-trained on test data" in page


def test_missing_pixel_files_are_an_error_and_nothing_is_counted(evaluated: tuple, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive")
    for shard in IntakeFolder(archive).shards.glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match="cannot be opened"):
        run_suite(evaluated[1][:1], archive, SUITE, tmp_path / "out")
    assert not (tmp_path / "out" / RESULTS_FILE).exists()


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("patient_id", lambda ids: ["p000" if i == "p159" else i for i in ids], "more than one split"),
        (f"{LABEL_PREFIX}effusion", lambda values: [5, *values[1:]], "holds 5"),
        (f"{LABEL_PREFIX}effusion", lambda values: [0] * len(values), "nothing can be measured"),
        ("split", lambda names: [None, *names[1:]], "1 images are in split ''"),
    ],
)
def test_a_wrong_table_is_an_error_and_nothing_is_counted(
    evaluated: tuple, tmp_path: Path, column: str, change: object, message: str
) -> None:
    archive = write_archive(tmp_path / "archive")
    path = IntakeFolder(archive).manifest
    table = pq.read_table(path)
    values = change(table[column].to_pylist())  # type: ignore[operator]
    table = table.set_column(table.column_names.index(column), column, pa.array(values, type=table[column].type))
    write_manifest(table.sort_by([(name, "ascending") for name in ("patient_id", "study_id", "image_id")]), path)
    with pytest.raises(UserError, match=message):
        run_suite(evaluated[1][:1], archive, SUITE, tmp_path / "out")
    assert not (tmp_path / "out" / RESULTS_FILE).exists()


def test_fewer_training_images_than_k_are_an_error(evaluated: tuple, tmp_path: Path) -> None:
    suite = load_suite({"image_size_px": 16, "knn": {"ks": [500]}})
    with pytest.raises(UserError, match="asks for 500 neighbours, but only 160"):
        run_suite(evaluated[1][:1], evaluated[0] / "archive", suite, tmp_path / "out")


def test_audit_lines_hold_no_number_that_is_not_finite(evaluated: tuple) -> None:
    for line in (evaluated[0] / "out" / AUDIT_FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in a line"))
