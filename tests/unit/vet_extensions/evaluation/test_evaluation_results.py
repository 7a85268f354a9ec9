"""The suite's YAML and the result lines: mistakes are named, numbers come back as they were written."""

import math
from pathlib import Path

import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.results import Result, append_results, read_results
from vet_extensions.evaluation.suite_config import SuiteConfig, load_suite

QUICK = Path(__file__).parents[4] / "configs" / "evaluation" / "quick.yaml"


def make_result(**changes: object) -> Result:
    values: dict[str, object] = {
        "kind": "score",
        "arm": "vet_dino",
        "level": "image",
        "group": "all",
        "protocol": "knn",
        "metric": "macro_auroc",
        "value": 0.625,
        "low": 0.5,
        "high": 0.75,
        "n_images": 10,
        "n_patients": 5,
        "n_labels": 2,
        "n_skipped_labels": 1,
        "skipped_labels": ("nodule",),
        "seed": 0,
        "config": {"k": [20]},
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    first, second = make_result(), make_result(arm="same_image")
    append_results(path, [first])
    append_results(path, [second])
    assert read_results(path) == [first, second]


def test_what_could_not_be_measured_is_null_in_the_file_and_nan_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [make_result(value=math.nan, low=math.nan, high=math.nan)])
    assert '"value": null' in path.read_text()
    assert math.isnan(read_results(path)[0].value)


def test_a_repeated_measurement_replaces_the_earlier_one_when_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [make_result(value=0.1), make_result(seed=1), make_result(value=0.9)])
    assert [result.value for result in read_results(path)] == [0.9, 0.625]
    assert len(read_results(path, newest_only=False)) == 3


@pytest.mark.parametrize("line", ['{"schema_version": 99}', "half a li", "[1]"])
def test_a_line_that_is_no_result_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [make_result()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_results(path)


def test_the_quick_suite_states_the_defaults() -> None:
    assert load_suite(QUICK) == SuiteConfig()


def test_keys_left_out_keep_their_defaults_and_whole_numbers_serve_as_numbers() -> None:
    suite = load_suite({"linear": {"c_grid": [1, 0.5]}, "controls": []})
    assert suite.linear.c_grid == (1.0, 0.5)
    assert suite.controls == ()
    assert suite.knn == SuiteConfig().knn


def test_all_mistakes_of_a_suite_are_named_at_once_with_the_nearest_key() -> None:
    with pytest.raises(UserError) as caught:
        load_suite({"knn": {"kss": [20]}, "level": ["image"], "batch_size": "many", "bootstrap": 3})
    message = str(caught.value)
    assert "'knn.kss'" in message
    assert "Did you mean 'knn.ks'?" in message
    assert "Did you mean 'levels'?" in message
    assert "'batch_size' must hold whole numbers, got 'many'" in message
    assert "'bootstrap' is a section" in message


def test_unknown_levels_and_protocols_name_the_allowed_ones() -> None:
    with pytest.raises(UserError, match="'svm' in protocols \\(allowed: knn, linear, ml_knn, linear_grid"):
        load_suite({"protocols": ["svm"]})


def test_a_suite_that_does_not_exist_points_to_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quick\.yaml"):
        load_suite(tmp_path / "absent.yaml")
