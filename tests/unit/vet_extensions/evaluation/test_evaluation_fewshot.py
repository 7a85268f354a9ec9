"""Draws are of whole patients, nested and repeatable; side by side they give what each gives alone."""

import numpy as np
import pytest

from vet_extensions.errors import UserError
from vet_extensions.evaluation.fewshot import curve_points, draw_shares, draw_shots, solve_draws
from vet_extensions.evaluation.logistic import fit_logistic
from vet_extensions.evaluation.metrics import AUROC
from vet_extensions.evaluation.probes import ProbeData
from vet_extensions.evaluation.statistics import PatientBootstrap

SHOTS = (1, 2, 4)


def images(n: int = 240, *, seed: int = 0) -> tuple[ProbeData, np.ndarray]:
    """Features that tell two labels, a third that nobody shows; three images a patient. Also the patients."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(n, 5))
    labels = (features[:, :3] > 0.8).astype(np.int8)
    labels[:, 2] = 0
    labels[::7, 1] = -1
    return ProbeData(features, labels), np.repeat(np.arange(n // 3), 3) + 1000


def test_a_drawn_patient_brings_all_rows_and_a_larger_draw_holds_the_smaller() -> None:
    data, patients = images()
    draws = draw_shots(data.labels, patient_codes=patients, shots=SHOTS, n_draws=6, seed=3)
    for number in range(6):
        for size in SHOTS:
            rows = draws[size][number]
            assert np.isin(patients, patients[rows]).sum() == len(rows)
        assert set(draws[1][number]) < set(draws[2][number]) < set(draws[4][number])


def test_every_label_has_its_number_of_patients_and_so_has_no_finding() -> None:
    data, patients = images()
    (rows,) = draw_shots(data.labels, patient_codes=patients, shots=(4,), n_draws=1)[4]
    drawn = np.unique(patients[rows])
    shows = np.array([(data.labels[patients == p] == 1).any(axis=0) for p in drawn])
    assert (shows[:, :2].sum(axis=0) >= 4).all()
    assert (~shows.any(axis=1)).sum() == 4
    assert len(drawn) <= 12


def test_draws_repeat_by_seed_and_differ_among_each_other() -> None:
    data, patients = images()
    first, again, other = (draw_shots(data.labels, patient_codes=patients, n_draws=3, seed=s) for s in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first[4], again[4], strict=True))
    assert not np.array_equal(first[4][0], first[4][1])
    assert not np.array_equal(first[4][0], other[4][0])


def test_shares_are_of_patients_and_nested_and_all_of_them_are_one_draw() -> None:
    _, patients = images()
    draws = draw_shares(patient_codes=patients, shares=(0.1, 0.5, 1.0), n_draws=4)
    assert [len(np.unique(patients[rows])) for rows in draws[0.1]] == [8] * 4
    assert all(set(small) < set(large) for small, large in zip(draws[0.1], draws[0.5], strict=True))
    assert [len(rows) for rows in draws[1.0]] == [len(patients)]


def test_draws_side_by_side_are_what_each_is_alone() -> None:
    data, patients = images()
    queries = np.random.default_rng(9).normal(size=(12, 5))
    draws = draw_shots(data.labels, patient_codes=patients, shots=(3,), n_draws=4)[3]
    scores = solve_draws(data, queries=queries, draws=draws, c=0.5)
    for found, rows in zip(scores, draws, strict=True):
        alone = fit_logistic(data.features[rows], labels=data.labels[rows], c_grid=(0.5,), standardise_by=data.features)
        np.testing.assert_allclose(found, alone.scores(queries)[0], rtol=1e-5, atol=1e-6)
    assert np.isnan(scores[:, :, 2]).all()


def test_the_spread_over_draws_is_told_apart_from_the_patients_interval() -> None:
    data, patients = images()
    test, test_patients = images(seed=1)
    bootstrap = PatientBootstrap(test_patients, n_resamples=50)
    draws = draw_shots(data.labels, patient_codes=patients, shots=(1, 16), n_draws=5)
    points = curve_points(
        data, bank_patients=patients, test=test, test_patients=test_patients, draws=draws, bootstrap=bootstrap
    )
    few, many = points[1], points[16]
    scores = solve_draws(data, queries=test.features, draws=draws[1])
    by_draw = [bootstrap.label_samples(s, labels=test.labels, patient_codes=test_patients)[AUROC] for s in scores]
    macros = [part.values[:2].mean() for part in by_draw]
    assert few.draw_std(AUROC, columns=[0, 1]) == pytest.approx(np.std(macros, ddof=1))
    mean = few.samples(AUROC, columns=[0, 1, 2])
    np.testing.assert_allclose(mean.values[:2], np.mean([p.values[:2] for p in by_draw], axis=0))
    assert np.isnan(mean.values[2])
    assert many.draw_std(AUROC, columns=[0, 1]) < few.draw_std(AUROC, columns=[0, 1])
    assert many.samples(AUROC, columns=[0]).values[0] > mean.values[0]
    assert few.n_patients < many.n_patients


def test_a_size_that_cannot_be_drawn_is_refused() -> None:
    data, patients = images()
    with pytest.raises(UserError, match="whole numbers from 1"):
        draw_shots(data.labels, patient_codes=patients, shots=(0, 1))
    with pytest.raises(UserError, match="above 0"):
        draw_shares(patient_codes=patients, shares=(1.5,))
