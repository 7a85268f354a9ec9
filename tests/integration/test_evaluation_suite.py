"""The suite on a tiny archive: two runs beside their controls, every level, honest splits, one embedding a checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_factory import write_run

from vet_extensions.commands.compare import write_page
from vet_extensions.errors import UserError
from vet_extensions.evaluation import controls, judge, leaderboard, store
from vet_extensions.evaluation.results import Result, read_results
from vet_extensions.evaluation.scoring import measure
from vet_extensions.evaluation.suite import knn_curve, run_suite
from vet_extensions.evaluation.suite_config import SuiteConfig, load_suite
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import GROSS_FINDINGS, LABEL_PREFIX, IntakeFolder
from vet_extensions.shards import ShardWriter

N_STUDIES, N_TEST = 90, 30
SUITE = load_suite(
    {
        "knn": {"ks": [5, 15]},
        "linear": {"c_grid": [0.001, 0.1]},
        "bootstrap": {"n_resamples": 40},
        "image_size_px": 16,
        "controls": ["random_init", "raw_pixels"],
    }
)


def write_archive(root: Path, *, label_names: tuple[str, ...] = (*GROSS_FINDINGS, "nodule"), seed: int = 0) -> Path:
    """Studies of a lateral and a VD (every tenth lacks the VD). The first label is a bright band in both, the rest is chance.

    50 training, 10 validation and 30 test studies, one patient each.
    """
    generator = np.random.default_rng(seed)
    labels = (generator.random((N_STUDIES, len(label_names))) < 0.4).astype(np.int8)
    split = np.repeat(["train", "val", "test"], [N_STUDIES - N_TEST - 10, 10, N_TEST])
    rows: dict[str, list] = {name: [] for name in ("image_id", "study_id", "patient_id", "view", "split")}
    of_study = []
    with ShardWriter(IntakeFolder(root).shards) as writer:
        for study in range(N_STUDIES):
            for view in ("LATERAL_RIGHT", "VD")[: 1 if study % 10 == 0 else 2]:
                pixels = generator.integers(60, 120, size=(24, 20), dtype=np.uint8)
                pixels[8:16] += np.uint8(120 * labels[study, 0])
                row = (f"i{study:03d}{view}", f"s{study:03d}", f"p{study:03d}", view, str(split[study]))
                for name, value in zip(rows, row, strict=True):
                    rows[name].append(value)
                writer.add(row[0], pixels)
                of_study.append(study)
    columns = {f"{LABEL_PREFIX}{name}": labels[of_study, place] for place, name in enumerate(label_names)}
    write_manifest(pa.table({**rows, **columns}), IntakeFolder(root).manifest)
    return root


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], list[Result]]:
    """(folder, run folders, results) of two arms with one seed each."""
    folder = tmp_path_factory.mktemp("suite")
    archive = write_archive(folder / "archive")
    runs = [folder / routing for routing in ("same_image", "vet_dino")]
    for number, run in enumerate(runs):
        write_run(run, weights_seed=number, routing={"name": run.name})
    return folder, runs, run_suite(runs, archive, SUITE, folder / "out")


def find(results: list[Result], **wanted: object) -> list[Result]:
    return [row for row in results if all(getattr(row, name) == value for name, value in wanted.items())]


def test_every_subject_is_measured_at_every_level_with_both_protocols_and_metrics(evaluated: tuple) -> None:
    _, _, results = evaluated
    means = find(results, kind="mean")
    assert {row.arm for row in means} == {"same_image", "vet_dino", "random_init", "raw_pixels"}
    assert len(means) == 4 * len(SUITE.levels) * len(SUITE.groups) * len(SUITE.protocols) * 2
    assert all(row.low <= row.value <= row.high for row in means)


def test_the_finding_that_was_put_in_is_found_by_the_raw_pixels(evaluated: tuple, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive", label_names=("bright_band",))
    suite = replace(SUITE, controls=("raw_pixels",), levels=("image", "study"))
    results = run_suite(evaluated[1][:1], archive, suite, tmp_path / "out")
    for level in suite.levels:
        (row,) = find(
            results, kind="mean", arm="raw_pixels", level=level, protocol="linear", group="all", metric="macro_auroc"
        )
        assert row.value > 0.9


def test_rows_carry_what_decided_them(evaluated: tuple) -> None:
    folder, _, results = evaluated
    (row,) = find(
        results, kind="score", arm="vet_dino", level="study", group="gross", protocol="knn", metric="macro_auroc"
    )
    assert (row.seed, row.iteration, row.n_images, row.n_patients, row.n_labels) == (0, 9, N_TEST, N_TEST, 6)
    assert len(row.checkpoint_hash) == 16
    assert row.config["k"][0] in (5, 15)
    assert row.config["n_missing_families"] == 3
    assert row.config["image_size_px"] == 16
    assert read_results(folder / "out" / "results.jsonl") == results


def test_arms_are_compared_with_their_random_init_and_with_each_other(evaluated: tuple) -> None:
    _, _, results = evaluated
    differences = find(results, kind="difference", level="image", group="gross", protocol="knn", metric="macro_auroc")
    assert {(row.arm, row.baseline) for row in differences} == {
        ("same_image", "random_init"),
        ("vet_dino", "random_init"),
        ("vet_dino", "same_image"),
    }
    value = {row.arm: row.value for row in find(results, kind="mean", level="image", group="gross", protocol="knn",
                                                metric="macro_auroc")}  # fmt: skip
    for row in differences:
        assert row.value == pytest.approx(value[row.arm] - value[str(row.baseline)])


def test_test_labels_play_no_part_in_choosing_hyper_parameters(evaluated: tuple, tmp_path: Path) -> None:
    _, runs, results = evaluated
    archive = write_archive(tmp_path / "archive")
    path = IntakeFolder(archive).manifest
    table = pq.read_table(path)
    is_test = np.array(table["split"].to_pylist()) == "test"
    for name in [name for name in table.column_names if name.startswith(LABEL_PREFIX)]:
        values = table[name].to_numpy()
        flipped = np.where(is_test, 1 - values, values).astype(np.int8)
        table = table.set_column(table.column_names.index(name), name, pa.array(flipped))
    write_manifest(table, path)
    flipped_results = run_suite(runs[:1], archive, replace(SUITE, controls=()), tmp_path / "out")
    for row in find(flipped_results, kind="score"):
        (before,) = find(
            results,
            kind="score",
            arm=row.arm,
            level=row.level,
            group=row.group,
            protocol=row.protocol,
            metric=row.metric,
        )
        assert [row.config.get(name) for name in ("k", "C")] == [before.config.get(name) for name in ("k", "C")]
        if row.metric == "macro_auroc":
            assert row.value == pytest.approx(1 - before.value, abs=1e-5)


def test_a_second_evaluation_embeds_and_scores_nothing_and_leaves_every_file_as_it_is(
    evaluated: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, runs, results = evaluated
    out = folder / "out"
    write_page(out, n_resamples=20)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done a second time")

    for module, name in ((store, "embed"), (judge, "measure"), (leaderboard, "compare_evaluations")):
        monkeypatch.setattr(module, name, refuse)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = run_suite(runs, folder / "archive", SUITE, out)
    write_page(out, n_resamples=20)
    assert [row.to_line() for row in again] == [row.to_line() for row in results]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def count_measured(monkeypatch: pytest.MonkeyPatch, *, fails_at: int | None = None) -> list[int]:
    """A list that grows by one with every subject that is scored; the one of number fails_at is not."""
    scored: list[int] = []

    def counted(*args: object, **options: object) -> object:
        if len(scored) == fails_at:
            raise KeyboardInterrupt
        scored.append(len(scored))
        return measure(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(judge, "measure", counted)
    return scored


def test_a_suite_that_was_stopped_goes_on_with_the_next_subject(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, runs, results = evaluated
    count_measured(monkeypatch, fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        run_suite(runs, folder / "archive", SUITE, tmp_path)
    assert not (tmp_path / "results.jsonl").exists()
    scored = count_measured(monkeypatch)
    again = run_suite(runs, folder / "archive", SUITE, tmp_path)
    assert len(scored) == 2  # the random init, and the pixels
    assert [row.to_line() for row in again] == [row.to_line() for row in results]
    assert (tmp_path / "audit.jsonl").read_bytes() == (folder / "out" / "audit.jsonl").read_bytes()


def test_a_subject_whose_predictions_are_gone_is_scored_again(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, runs, _ = evaluated
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    gone, changed = sorted(out.glob("predictions/vet_dino*/*.parquet"))[:2]
    content = gone.read_bytes()
    gone.unlink()
    changed.write_bytes(changed.read_bytes()[:-1])
    scored = count_measured(monkeypatch)
    run_suite(runs, folder / "archive", SUITE, out)
    assert len(scored) == 1
    assert gone.read_bytes() == content


def test_another_suite_is_scored_anew_and_its_rows_replace_the_earlier_ones(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, runs, results = evaluated
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    scored = count_measured(monkeypatch)
    again = run_suite(runs, folder / "archive", replace(SUITE, knn=replace(SUITE.knn, ks=(7,))), out)
    assert len(scored) == len(find(results, kind="score", level="image", group="all", protocol="knn")) / 2
    newest = read_results(out / "results.jsonl")
    assert {row.to_line() for row in newest} == {row.to_line() for row in again}
    assert {tuple(row.config["k"]) for row in find(newest, kind="score", protocol="knn", level="image")} == {(7,)}


def test_an_archive_with_other_labels_has_no_gross_group_and_no_cross_view(evaluated: tuple, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive", label_names=("bright_band", "other"))
    results = run_suite(evaluated[1][:1], archive, replace(SUITE, controls=()), tmp_path / "out")
    assert {row.group for row in results} == {"all"}
    assert {row.level for row in results} == set(SUITE.levels) - {"cross_view"}


def test_the_oracle_is_judged_with_real_and_with_shuffled_pairs(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, runs, _ = evaluated
    monkeypatch.setattr(controls, "RAW_COMPONENTS", 16)  # as many as 45 training pairs can carry
    suite = replace(SUITE, controls=("cca",), levels=("image", "cross_view"), protocols=("knn",))
    results = run_suite(runs[:1], folder / "archive", suite, tmp_path / "out")
    assert {row.arm for row in find(results, kind="mean")} == {"same_image", "cca", "cca_shuffled"}
    assert not find(results, kind="difference")


def test_a_second_checkpoint_of_the_same_arm_and_seed_gets_a_name_of_its_own(evaluated: tuple, tmp_path: Path) -> None:
    folder, runs, _ = evaluated
    suite = replace(SUITE, controls=(), levels=("image",), protocols=("knn",))
    results = run_suite([runs[0], runs[0]], folder / "archive", suite, tmp_path / "out")
    assert {row.arm for row in results} == {"same_image", "same_image#2"}


def test_the_curve_follows_the_checkpoints_and_never_reads_a_test_image(
    evaluated: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = evaluated
    run = tmp_path / "run"
    write_run(run, iterations=(19, 4, 9), routing={"name": "vet_dino"})
    read: set[int] = set()
    embed = store.embed

    def watch(*args: object, **given: object) -> object:
        read.update(np.asarray(given["rows"]).tolist())
        return embed(*args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "embed", watch)
    seen: list[tuple[int, int]] = []
    curve = knn_curve(
        run,
        folder / "archive",
        SUITE,
        cache_dir=tmp_path / "features",
        max_bank_images=40,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    split = np.array(pq.read_table(IntakeFolder(folder / "archive").manifest)["split"].to_pylist())
    assert [iteration for iteration, _ in curve] == [4, 9, 19]
    assert all(0 <= value <= 1 for _, value in curve)
    assert set(split[sorted(read)]) == {"train", "val"}
    assert seen[-1][0] == seen[-1][1]


def test_progress_ends_at_its_total(evaluated: tuple, tmp_path: Path) -> None:
    folder, runs, _ = evaluated
    seen: list[tuple[int, int]] = []
    suite = SuiteConfig(image_size_px=16, levels=("image",), protocols=("knn",))
    run_suite(runs[:1], folder / "archive", suite, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_blocks_and_further_sizes_are_embedded_for_the_protocols_that_read_them(
    evaluated: tuple, tmp_path: Path
) -> None:
    folder, runs, _ = evaluated
    seen: list[tuple[int, int]] = []
    config = replace(
        SUITE,
        protocols=("linear_grid", "resolution"),
        levels=("image",),
        linear_grid=replace(SUITE.linear_grid, epochs=2, n_blocks=2),
        resolution=replace(SUITE.resolution, sizes_px=(9, 32)),
    )
    results = run_suite(runs[:1], folder / "archive", config, tmp_path / "out", on_progress=lambda *at: seen.append(at))
    rows = find(results, kind="score", group="all", metric="macro_auroc")
    assert {(row.arm, row.protocol) for row in rows if row.arm == "raw_pixels"} == {("raw_pixels", "linear_grid")}
    of_run = {row.protocol: row for row in rows if row.arm == runs[0].name}
    assert set(of_run) == {"linear_grid", "resolution_9", "resolution_32"}
    assert {of_run[name].config["image_size_px"] for name in ("resolution_9", "resolution_32")} == {8, 32}
    inputs = {"1 block", "1 block, mean patch", "2 blocks", "2 blocks, mean patch"}
    assert of_run["linear_grid"].config["input"][0] in inputs
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


def test_an_archive_without_a_test_split_is_refused(evaluated: tuple, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive")
    path = IntakeFolder(archive).manifest
    table = pq.read_table(path)
    place = table.column_names.index("split")
    write_manifest(table.set_column(place, "split", pa.array(["train"] * len(table))), path)
    with pytest.raises(UserError, match="no images in split test"):
        run_suite(evaluated[1], archive, SUITE, tmp_path / "out")


def test_a_file_in_the_place_of_the_results_is_refused_before_the_work(evaluated: tuple, tmp_path: Path) -> None:
    folder, runs, _ = evaluated
    (tmp_path / "out").write_text("something of the user's")
    with pytest.raises(UserError, match="'out' is a file, and the results need a folder"):
        run_suite(runs, folder / "archive", SUITE, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "something of the user's"


def test_backbones_of_other_kinds_stand_beside_a_run(evaluated: tuple, tmp_path: Path) -> None:
    folder, runs, results = evaluated
    suite = replace(SUITE, controls=("raw_pixels",), levels=("image",), protocols=("knn",))
    found = run_suite([runs[0], f"random:{runs[0]}", "pixels"], folder / "archive", suite, tmp_path / "out")
    assert {row.arm for row in find(found, kind="mean")} == {"same_image", "random:same_image", "raw_pixels"}
    for ours, before in (
        ("same_image", "same_image"),
        ("random:same_image", "random_init"),
        ("raw_pixels", "raw_pixels"),
    ):
        wanted = {"kind": "mean", "level": "image", "group": "gross", "protocol": "knn", "metric": "macro_auroc"}
        ((now,), (then,)) = find(found, arm=ours, **wanted), find(results, arm=before, **wanted)
        assert now.value == then.value
