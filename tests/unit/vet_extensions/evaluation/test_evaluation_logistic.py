"""Logistic regressions side by side: equal to scikit-learn, deaf to unknown labels."""

import numpy as np
from feature_factory import bank_and_queries
from sklearn.linear_model import LogisticRegression

from vet_extensions.evaluation.logistic import fit_logistic

MISSING, UNCERTAIN = -128, -1


def test_logistic_regressions_equal_scikit_learn_for_every_c_and_label() -> None:
    bank, labels, queries = bank_and_queries(n_bank=300)
    bank = bank @ np.diag([1.0, 5.0, 0.01, 1.0, 1.0, 1.0]) + 3
    labels[::4, 1] = MISSING
    labels[::9, 2] = UNCERTAIN
    grid = (1e-3, 0.1, 10.0)
    model = fit_logistic(bank, labels=labels, c_grid=grid)
    ours = model.scores(queries)
    standardised, queries_standardised = ((x - bank.mean(axis=0)) / bank.std(axis=0) for x in (bank, queries))
    for place, c in enumerate(grid):
        for column in range(3):
            known = labels[:, column] >= 0
            reference = LogisticRegression(C=c, tol=1e-10, solver="newton-cholesky")
            reference.fit(standardised[known], labels[known, column])
            expected = reference.decision_function(queries_standardised)
            np.testing.assert_allclose(ours[place, :, column], expected, rtol=1e-3, atol=1e-3)


def test_a_label_with_one_class_in_the_bank_has_no_model() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 1] = 0
    scores = fit_logistic(bank, labels=labels, c_grid=(1.0,)).scores(queries)
    assert np.isnan(scores[0, :, 1]).all()
    assert np.isfinite(scores[0, :, [0, 2]]).all()


def test_separable_labels_and_constant_features_end_in_finite_scores() -> None:
    bank, labels, queries = bank_and_queries()
    labels[:, 0] = bank[:, 0] > 0
    bank[:, 5] = 2.5
    scores = fit_logistic(bank, labels=labels, c_grid=(1e-4, 1e4)).scores(queries)
    assert np.isfinite(scores).all()
