"""Many pairs at once are the pairs that are drawn one by one."""

import pickle

import numpy as np
import pytest
from study_factory import make_intake

from dinov2.data.loaders import make_dataset
from dinov2.data.registry import DATASETS
from vet_extensions.data import MultiViewStudyDataset
from vet_extensions.data.pairing import PAIRINGS, draw_pair, draw_pairs
from vet_extensions.data.streams import MAX_POSITION, bounded, first_words
from vet_extensions.data.study_images import vet_studies
from vet_extensions.errors import UserError
from vet_extensions.manifest import Manifest, write_manifest
from vet_extensions.schema import View
from vet_extensions.shards import mapped

VIEWS = (View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD, View.UNKNOWN)
POSITIONS = np.array([0, 1, 2, 77, 2**31, MAX_POSITION - 1])


@pytest.mark.parametrize("seed", [0, 1, 12345, MAX_POSITION - 1])
def test_the_words_are_those_of_numpys_generator(seed: int) -> None:
    low, high = first_words(seed, POSITIONS)
    for i, position in enumerate(POSITIONS.tolist()):
        raw = int(np.random.default_rng((seed, position)).bit_generator.random_raw())
        assert (int(low[i]), int(high[i])) == (raw & 0xFFFFFFFF, raw >> 32)


def test_bounded_numbers_are_those_of_numpys_generator() -> None:
    low, _ = first_words(3, np.arange(200))
    limits = np.arange(200) % 9 + 2
    expected = [int(np.random.default_rng((3, p)).integers(n)) for p, n in enumerate(limits.tolist())]
    np.testing.assert_array_equal(bounded(low, limits)[0], expected)


def test_a_word_that_numpy_would_refuse_is_marked() -> None:
    _, again = bounded(np.array([0, 1], dtype=np.uint32), np.array([3, 3]))
    assert again.tolist() == [True, False]


def make_studies(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] and offsets of studies of one to six images."""
    rng = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(rng.integers(1, 7, n)))
    return rng.integers(0, len(VIEWS), offsets[-1]).astype(np.uint8), offsets


@pytest.mark.parametrize("policy", list(PAIRINGS))
@pytest.mark.parametrize("start", [0, MAX_POSITION - 150])
def test_pairs_at_once_are_the_pairs_one_by_one(policy: str, start: int) -> None:
    codes, offsets = make_studies()
    studies = np.random.default_rng(1).permutation(300)
    positions = start + np.arange(300)
    found = draw_pairs(codes, offsets=offsets, studies=studies, positions=positions, views=VIEWS, policy=policy, seed=5)
    for (first, second), study, position in zip(found.tolist(), studies.tolist(), positions.tolist()):
        views = [VIEWS[code] for code in codes[offsets[study] : offsets[study + 1]]]
        pair = draw_pair(views, policy, np.random.default_rng((5, position)))
        expected = [offsets[study] + i for i in pair] + [-1] * (2 - len(pair))
        assert [first, second] == expected


def test_pairs_within_groups_at_once_are_the_pairs_one_by_one() -> None:
    codes, offsets = make_studies()
    groups = np.random.default_rng(2).integers(0, 3, len(codes)).astype(np.uint8)
    studies, positions = np.arange(300), np.arange(300)
    found = draw_pairs(
        codes, offsets=offsets, studies=studies, positions=positions, views=VIEWS, policy="any", seed=5, groups=groups
    )
    for study, images in enumerate(found.tolist()):
        here = slice(offsets[study], offsets[study + 1])
        views = [VIEWS[code] for code in codes[here]]
        pair = draw_pair(views, "any", np.random.default_rng((5, study)), groups=groups[here].tolist())
        assert images == [offsets[study] + i for i in pair] + [-1] * (2 - len(pair))


def test_no_study_gives_no_pair() -> None:
    codes, offsets = make_studies()
    none = np.zeros(0, dtype=np.int64)
    found = draw_pairs(codes, offsets=offsets, studies=none, positions=none, views=VIEWS, policy="any", seed=0)
    assert found.shape == (0, 2)


@pytest.fixture
def root(tmp_path):
    return make_intake(tmp_path, n_studies=6, views=VIEWS[:3])


def test_the_rows_of_pairs_are_the_images_that_are_read(root) -> None:
    dataset = MultiViewStudyDataset(root=str(root), pairing="different_view", seed=2)
    rows = dataset.pair_rows(np.arange(6), positions=np.arange(6) + 40)
    for study in range(6):
        sample = dataset.read(study, position=study + 40)
        for row, pixels in zip(rows[study].tolist(), sample.pixels):
            np.testing.assert_array_equal(dataset._reader.read(row), pixels)


def test_a_pickled_data_set_carries_no_column(root, monkeypatch) -> None:
    monkeypatch.setattr(mapped.mapped_arrays, "__kwdefaults__", {"min_bytes": 1})
    dataset = MultiViewStudyDataset(root=str(root))
    pickled = pickle.dumps(dataset)
    again = pickle.loads(pickled)
    assert len(pickled) < 1000
    assert isinstance(again._rows.base, np.memmap)
    assert again.read(3, position=9).views == dataset.read(3, position=9).views


def test_a_replaced_manifest_is_noticed_by_the_worker(root) -> None:
    pickled = pickle.dumps(MultiViewStudyDataset(root=str(root)))
    write_manifest(Manifest.open(root).table.slice(0, 9), root / "manifest.parquet")
    with pytest.raises(UserError, match="was replaced"):
        pickle.loads(pickled)


def test_a_data_set_may_be_a_selection_by_expression(root) -> None:
    dataset = MultiViewStudyDataset(root=str(root), where="view in ['LATERAL_LEFT', 'VD']")
    assert len(dataset) == 6
    assert {view for study in range(6) for view in dataset.read(study, position=1).views} == {"LATERAL_LEFT", "VD"}


def test_a_selection_without_images_says_so(root) -> None:
    with pytest.raises(UserError, match=r"where rows > 9000 holds no study"):
        MultiViewStudyDataset(root=str(root), where="rows > 9000")


def test_the_data_set_string_takes_an_expression(root, monkeypatch) -> None:
    monkeypatch.setitem(DATASETS._objects, "VetStudies", vet_studies)
    string = f"VetStudies:root={root}:where=view == 'VD' and rows >= 48:split=train"
    assert {len(make_dataset(dataset_str=string)), len(make_dataset(dataset_str=f"{string}:target=view"))} == {6}
