"""Controls: whitened pixels, and an oracle that finds only what pairs share."""

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.controls import cca_features, fit_whitening, pair_views

N_STUDIES, N_PIXELS = 300, 70


def paired_archive() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A lateral and a frontal vector for each study, which share one hidden number; vectors, families, studies, bank, hidden."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=N_STUDIES)
    vectors = generator.normal(size=(2 * N_STUDIES, N_PIXELS)).astype(np.float32)
    vectors[0::2, 3] += 3 * hidden
    vectors[1::2, 40] -= 3 * hidden
    family = np.tile(np.array(["lateral", "frontal"]), N_STUDIES)
    studies = np.repeat(np.arange(N_STUDIES), 2)
    return vectors, family, studies, studies < 250, hidden


def test_whitened_components_are_uncorrelated_with_unit_variance_on_the_bank() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(400, 20)) @ generator.normal(size=(20, 20)) + 5
    white = fit_whitening(vectors, n_components=6)(vectors)
    np.testing.assert_allclose(white.T @ white / 400, np.eye(6), atol=1e-4)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)


def test_whitening_keeps_only_directions_that_the_images_span() -> None:
    vectors = np.outer(np.arange(10.0), np.ones(8))
    assert fit_whitening(vectors, n_components=6)(vectors).shape == (10, 1)


def test_shuffled_pairs_keep_every_image_and_no_pair() -> None:
    _, family, studies, is_bank, _ = paired_archive()
    pairs = pair_views(family, study_codes=studies, is_bank=is_bank)
    shuffled = pairs.shuffled(seed=0)
    assert (studies[pairs.first] == studies[pairs.second]).all()
    assert len(pairs.first) == 250
    assert sorted(shuffled.second.tolist()) == sorted(pairs.second.tolist())
    assert (shuffled.second != pairs.second).all()


def test_the_oracle_finds_what_the_views_share_and_only_with_real_pairs() -> None:
    vectors, family, studies, is_bank, hidden = paired_archive()
    pairs = pair_views(family, study_codes=studies, is_bank=is_bank)
    given = {"family": family, "is_bank": is_bank, "n_components": 4}
    real = cca_features(vectors, pairs=pairs, **given)
    broken = cca_features(vectors, pairs=pairs.shuffled(seed=0), **given)
    held_out = np.arange(250, N_STUDIES)

    def shared(features: np.ndarray) -> float:
        lateral, frontal = features[0::2][held_out, 0], features[1::2][held_out, 0]
        return float(np.corrcoef(lateral, frontal)[0, 1])

    assert shared(real) > 0.7
    assert shared(broken) < 0.5
    assert abs(np.corrcoef(real[0::2][held_out, 0], hidden[held_out])[0, 1]) > 0.8


def test_too_few_pairs_for_the_oracle_are_refused_with_the_cure() -> None:
    vectors, family, studies, _, _ = paired_archive()
    is_bank = studies < 20
    pairs = pair_views(family, study_codes=studies, is_bank=is_bank)
    with pytest.raises(UserError, match="Leave 'cca' out"):
        cca_features(vectors, family=family, pairs=pairs, is_bank=is_bank)
