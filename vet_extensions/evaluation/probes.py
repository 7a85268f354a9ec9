"""What a protocol on frozen features takes (`ProbeData`) and gives (`Candidates`): the scores of every hyper-parameter candidate.

The choice among candidates is made on the validation split alone; the test scores of the chosen one are measured, once. The
protocols are `knn`, `logistic`, `linear_grid`, `fewshot` and, on a backbone that is trained, `finetune`; `scoring` measures them.

Shape legend: n images, D feature width, L labels, G candidates (values of k, or of C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vet_extensions.errors import UserError
from vet_extensions.evaluation.metrics import AUROC, label_metrics, macro


@dataclass(frozen=True)
class ProbeData:
    """Features of some images (or studies) with their labels. features: [n, D] float32; labels: [n, L] int8."""

    features: NDArray[np.floating]
    labels: NDArray[np.integer]


@dataclass(frozen=True)
class Candidates:
    """Scores of every hyper-parameter candidate. val: [G, n_val, L], test: [G, n_test, L]; NaN columns have no model.

    are_logits: the scores are log-odds (of each label by itself); else shares of votes, or scores without a scale. reads: the
    part of the features that each candidate takes, where they differ.
    """

    parameter: str
    values: tuple[float, ...]
    val: NDArray[np.floating]
    test: NDArray[np.floating]
    are_logits: bool = False
    reads: tuple[str, ...] = ()

    def describe(self, place: int) -> dict[str, float | str]:
        """What sets a candidate apart: its hyper-parameter, and what it reads where they differ."""
        return {self.parameter: self.values[place], **({"input": self.reads[place]} if self.reads else {})}

    def select(self, val_labels: NDArray[np.integer], *, columns: Sequence[int]) -> int:
        """The candidate with the highest macro AUROC on the validation split over the label `columns`; first of equals."""
        if len(self.values) == 1:
            return 0
        columns = list(columns)
        macros = [macro(label_metrics(s[:, columns], labels=val_labels[:, columns])[AUROC][:, 0])[0] for s in self.val]
        if np.isnan(macros).all():
            raise UserError(
                f"{self.parameter} cannot be chosen among {', '.join(f'{v:g}' for v in self.values)}: no label has both a "
                f"positive and a negative in the validation split ({len(val_labels)} rows). Use more studies, or give a "
                f"single value of {self.parameter} in the suite."
            )
        return int(np.nanargmax(macros))
