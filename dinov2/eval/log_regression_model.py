"""The logistic regression itself: fitting, evaluating, and the choice of C; `dinov2.eval.log_regression` offers these names.

scikit-learn's L-BFGS takes the place of cuML's, which exists for CUDA only. Both minimise C times the sum of the log-losses
plus half the squared weights, so that C means the same. What differs is the path to the minimum: line search, rounding, and
to what the tolerance of 1e-12 is applied (here: the gradient of the mean loss). Fits run on the CPU.

Shape legend: n images, D feature width, B batch, K classes.
"""

import logging
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from dinov2 import distributed
from dinov2.eval.metrics import Metric, MetricType, build_metric
from dinov2.eval.utils import Batches, evaluate
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

DEFAULT_MAX_ITER = 1000
C_POWER_RANGE = torch.linspace(-6, 5, 45)
TOLERANCE = 1e-12
CPU = torch.device("cpu")


class LogRegModule(nn.Module):
    """A logistic regression: `fit` it, then call it as the postprocessor of `evaluate`."""

    def __init__(
        self,
        C: float,
        max_iter: int = DEFAULT_MAX_ITER,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = CPU,
    ) -> None:
        """C: inverse strength of the L2 penalty. device: taken for the sake of official callers; scikit-learn uses the CPU."""
        super().__init__()
        self.dtype = dtype
        self.device = torch.device(device)
        self.estimator = LogisticRegression(C=C, max_iter=max_iter, tol=TOLERANCE, solver="lbfgs")

    def forward(self, samples: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Features [B, D] -> {"preds": probabilities [B, K], "target": targets}, K up to the greatest class of the training.

        A class that the training lacks has the probability 0.
        """
        known = self.estimator.classes_
        probabilities = np.zeros((len(samples), int(known[-1]) + 1))
        probabilities[:, known] = self.estimator.predict_proba(self._to_numpy(samples))
        return {"preds": torch.from_numpy(probabilities).to(samples.device), "target": targets}

    def fit(self, train_features: Tensor, train_labels: Tensor) -> None:
        """train_features: [n, D]; train_labels: [n]. Raises `UserError` where there is one class only."""
        if len(train_labels) == 0 or bool((train_labels == train_labels[0]).all()):
            raise UserError(
                f"The {len(train_labels)} images left for training show one class only; a logistic regression needs two. "
                "Give more training images."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.estimator.fit(self._to_numpy(train_features), train_labels.cpu().numpy())
        n_iterations = int(np.max(self.estimator.n_iter_))
        reached = " (the greatest number allowed)" if n_iterations >= self.estimator.max_iter else ""
        logger.info("C = %.5g: %d iterations%s", self.estimator.C, n_iterations, reached)

    def _to_numpy(self, features: Tensor) -> np.ndarray:
        return features.to(dtype=self.dtype, device=CPU).numpy()


def train_for_C(
    *,
    C: float,
    max_iter: int,
    train_features: Tensor,
    train_labels: Tensor,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = CPU,
) -> LogRegModule:
    """A classifier fitted with the given C. train_features: [n, D]; train_labels: [n]."""
    classifier = LogRegModule(C, max_iter, dtype, device)
    classifier.fit(train_features, train_labels)
    return classifier


def evaluate_model(
    *, logreg_model: nn.Module, logreg_metric: Metric, test_data_loader: Batches, device: torch.device
) -> dict[str, Tensor]:
    """The metric's values over all processes. test_data_loader: this one's share of (features [B, D], labels [B])."""
    _, values = evaluate(nn.Identity(), test_data_loader, {"it": logreg_model}, {"it": logreg_metric}, device)
    return values["it"]


def train_and_evaluate(
    *,
    C: float,
    max_iter: int,
    train_features: Tensor,
    train_labels: Tensor,
    logreg_metric: Metric,
    test_data_loader: Batches,
    train_dtype: torch.dtype = torch.float64,
    train_features_device: torch.device | str = CPU,
    eval_device: torch.device = CPU,
) -> dict[str, Tensor]:
    """`train_for_C`, then `evaluate_model`. Every process fits the same classifier: none waits for another's long fit."""
    classifier = train_for_C(
        C=C,
        max_iter=max_iter,
        train_features=train_features,
        train_labels=train_labels,
        dtype=train_dtype,
        device=train_features_device,
    )
    return evaluate_model(
        logreg_model=classifier, logreg_metric=logreg_metric, test_data_loader=test_data_loader, device=eval_device
    )


def sweep_C_values(
    *,
    train_features: Tensor,
    train_labels: Tensor,
    test_data_loader: Batches,
    metric_type: MetricType,
    num_classes: int,
    train_dtype: torch.dtype = torch.float64,
    train_features_device: torch.device | str = CPU,
    max_train_iters: int = DEFAULT_MAX_ITER,
) -> tuple[dict[str, Tensor], float]:
    """(metric values, C) of the C in 10 ** C_POWER_RANGE with the best top-1, the smallest of several equal ones.

    The processes share the fits; then all evaluate every classifier, each on its share of the test data. A metric per class
    counts as its mean over classes (official).
    """
    if metric_type is MetricType.PER_CLASS_ACCURACY:
        metric_type = MetricType.MEAN_PER_CLASS_ACCURACY
    candidates = (10**C_POWER_RANGE).tolist()
    train_features = train_features.to(train_dtype)  # once, not for every C
    rank, size = distributed.get_global_rank(), distributed.get_global_size()
    own = {
        C: train_for_C(
            C=C,
            max_iter=max_train_iters,
            train_features=train_features,
            train_labels=train_labels,
            dtype=train_dtype,
            device=train_features_device,
        )
        for C in candidates[rank::size]
    }
    classifiers = {C: model for share in distributed.all_gather_objects(own) for C, model in share.items()}
    values = {
        C: evaluate_model(
            logreg_model=classifiers[C],
            logreg_metric=build_metric(metric_type, num_classes=num_classes),
            test_data_loader=test_data_loader,
            device=train_features.device,
        )
        for C in candidates
    }
    for C in candidates:
        logger.info("C = %.5g: top-1 %.4f on the images that choose C", C, values[C]["top-1"])
    best = max(candidates, key=lambda C: float(values[C]["top-1"]))
    return values[best], best
