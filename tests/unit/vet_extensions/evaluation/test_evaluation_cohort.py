"""Facts of an intake folder, and scores of a study from those of its images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vet_extensions.evaluation.cohort import open_archive, pool_scores
from vet_extensions.manifest import write_manifest
from vet_extensions.schema import LABEL_PREFIX, IntakeFolder
from vet_extensions.shards import ShardWriter


def write_folder(root: Path, **columns: object) -> Path:
    """Four images of two patients, one in train and one in test."""
    base = {
        "image_id": ["i0", "i1", "i2", "i3"],
        "study_id": ["s0", "s0", "s1", "s1"],
        "patient_id": ["p0", "p0", "p1", "p1"],
        "view": ["VD", "LATERAL_LEFT", "VD", "LATERAL_LEFT"],
        "split": ["train", "train", "test", "test"],
        f"{LABEL_PREFIX}effusion": pa.array([0, 1, 0, None], type=pa.int8()),
    }
    with ShardWriter(IntakeFolder(root).shards) as writer:
        for name in base["image_id"]:
            writer.add(name, np.zeros((4, 4), dtype=np.uint8))
    write_manifest(pa.table({**base, **columns}), IntakeFolder(root).manifest)
    return root


def test_a_fact_that_is_not_stated_is_the_empty_text_and_never_the_word_none(tmp_path: Path) -> None:
    species = pa.array(["canine", None, None, "feline"]).dictionary_encode()
    images = open_archive(write_folder(tmp_path, species=species))
    assert images.facts["species"].tolist() == ["canine", "", "", "feline"]
    assert images.facts["laterality"].tolist() == [""] * 4


def test_cases_are_named_as_in_the_manifest(tmp_path: Path) -> None:
    images = open_archive(write_folder(tmp_path))
    assert images.id_of("image").tolist() == ["i0", "i1", "i2", "i3"]
    assert images.id_of("patient").tolist() == ["p0", "p0", "p1", "p1"]


@pytest.mark.parametrize(("how", "expected"), [("mean", [[2.0, 2.5], [7.0, 0.5]]), ("max", [[3.0, 4.0], [7.0, 0.5]])])
def test_scores_of_images_become_those_of_studies_in_order_of_study_code(how: str, expected: list[list[float]]) -> None:
    scores = np.array([[[1.0, 4.0], [7.0, 0.5], [3.0, 1.0]]])
    pooled = pool_scores(scores, study_codes=np.array([4, 9, 4]), how=how)
    np.testing.assert_allclose(pooled[0], expected)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_label_without_a_model_stays_without_scores(how: str) -> None:
    scores = np.array([[[1.0, np.nan], [2.0, np.nan]]])
    assert np.isnan(pool_scores(scores, study_codes=np.array([0, 0]), how=how)[0, 0]).tolist() == [False, True]
