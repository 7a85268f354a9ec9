"""k-NN of frozen features: similarity-weighted votes for classes and for labels, and ML-kNN. `scoring` calls the two probes.

Classes follow DINOv2's arithmetic to the digit (`class_votes`). Labels are voted on one by one (`knn_scores`): a label value
counts only if it is 0 or 1, so missing (-128) and uncertain (-1) images have no vote for it. ML-kNN (`ml_knn_scores`) asks how
often a label comes with as many neighbours that show it.

Shape legend: n queries, m bank images, D feature width, L labels, C classes, G values of k, K the largest of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.cohort import MULTICLASS, MULTILABEL
from vet_extensions.evaluation.metrics import is_known
from vet_extensions.evaluation.neighbours import NeighbourSearch
from vet_extensions.evaluation.probes import Candidates, ProbeData


def knn_probe(
    bank: ProbeData,
    *,
    val: ProbeData,
    test: ProbeData,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    task: str = MULTILABEL,
) -> Candidates:
    """Weighted k-NN scores of the validation and test images against the bank, for every k."""
    queries = np.concatenate([val.features, test.features])
    if task == MULTICLASS:
        classes, n_classes = class_codes(bank.labels), bank.labels.shape[1]
        scores = class_votes(
            queries, bank=bank.features, bank_classes=classes, n_classes=n_classes, ks=ks, temperature=temperature
        )
    else:
        scores = knn_scores(queries, bank=bank.features, bank_labels=bank.labels, ks=ks, temperature=temperature)
    n_val = len(val.features)
    return Candidates("k", tuple(float(k) for k in ks), scores[:, :n_val], scores[:, n_val:])


def ml_knn_probe(
    bank: ProbeData, *, val: ProbeData, test: ProbeData, ks: Sequence[int] = (20,), smoothing: float = 1.0
) -> Candidates:
    """ML-kNN scores of the validation and test images against the bank, for every k."""
    queries = np.concatenate([val.features, test.features])
    scores = ml_knn_scores(queries, bank=bank.features, bank_labels=bank.labels, ks=ks, smoothing=smoothing)
    n_val = len(val.features)
    return Candidates("k", tuple(float(k) for k in ks), scores[:, :n_val], scores[:, n_val:])


def class_codes(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """The class of each row of labels [n, C], of which exactly one is 1."""
    wrong = (labels == 1).sum(axis=1) != 1
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} of {len(labels)} rows have no class, or several (of a study: its images disagree). A "
            "multi-class data set needs exactly one: leave those rows out, or judge images instead of studies."
        )
    return (labels == 1).argmax(axis=1)


def class_votes(
    queries: NDArray[np.floating] | Tensor,
    *,
    bank: NDArray[np.floating] | Tensor | NeighbourSearch,
    bank_classes: NDArray[np.integer] | Tensor,
    n_classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> NDArray[np.float32]:
    """Votes of the nearest bank images for their classes, as DINOv2 counts them (dinov2/eval/knn.py).

    queries: [n, D]; bank: [m, D], or a search over it that is used again; bank_classes: [m] in 0 .. n_classes - 1. The weights
    are a softmax of cosine / temperature over the K nearest, whichever k is asked for: a smaller k cuts the vote off.
    returns: [G, n, n_classes].
    """
    search = bank if isinstance(bank, NeighbourSearch) else NeighbourSearch(bank)
    classes = torch.as_tensor(bank_classes).long()
    votes = torch.zeros(len(ks), len(queries), n_classes)
    for block in search.blocks(queries, k=max(ks)):
        weights, voted = F.softmax(block.similarity / temperature, dim=1), classes[block.rows]  # [b, K]
        for place, k in enumerate(ks):
            votes[place, block.queries].scatter_add_(1, voted[:, :k], weights[:, :k])
    return votes.numpy()


def knn_scores(
    queries: NDArray[np.floating],
    *,
    bank: NDArray[np.floating] | NeighbourSearch,
    bank_labels: NDArray[np.integer],
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
) -> NDArray[np.float32]:
    """Similarity-weighted vote of the k nearest bank images, label by label.

    queries: [n, D]; bank: [m, D], or a search over it; bank_labels: [m, L]. Similarity is the cosine; a neighbour's weight is
    the softmax of similarity / temperature. returns: [G, n, L] scores in [0, 1], one slice for each k.

    Unlike `class_votes`, the softmax runs over the k neighbours that vote, and for every label the weights of those whose
    label is known are rescaled to sum to 1. Where none is known the score is the label's prevalence in the bank; a label
    that nobody in the bank knows is NaN.
    """
    _check_ks(ks, n_bank=len(bank_labels))
    search = bank if isinstance(bank, NeighbourSearch) else NeighbourSearch(bank)
    known = torch.from_numpy(is_known(bank_labels)).float()  # [m, L]
    positive = torch.from_numpy(bank_labels == 1).float()  # [m, L]
    n_known = known.sum(dim=0)
    prevalence = torch.where(n_known > 0, positive.sum(dim=0) / n_known, torch.nan)  # [L]
    scores = torch.empty(len(ks), len(queries), bank_labels.shape[1])
    for block in search.blocks(queries, k=max(ks)):
        for place, k in enumerate(ks):
            weights = F.softmax(block.similarity[:, :k] / temperature, dim=1)  # [b, k]
            votes = torch.einsum("bk,bkl->bl", weights, positive[block.rows[:, :k]])
            voters = torch.einsum("bk,bkl->bl", weights, known[block.rows[:, :k]])
            scores[place, block.queries] = torch.where(voters > 0, votes / voters, prevalence)
    return scores.numpy()


def ml_knn_scores(
    queries: NDArray[np.floating],
    *,
    bank: NDArray[np.floating],
    bank_labels: NDArray[np.integer],
    ks: Sequence[int] = (20,),
    smoothing: float = 1.0,
) -> NDArray[np.float64]:
    """ML-kNN: the posterior of each label given how many of the k nearest bank images show it. [G, n, L].

    queries: [n, D]; bank: [m, D]; bank_labels: [m, L]. A label's neighbours are sought among the bank images whose label is
    known, and a bank image is no neighbour of itself. Neighbours are nearest by cosine. NaN where a label has not more than k
    known images. Source: Zhang and Zhou, Pattern Recognition 40 (2007), equations 4 to 6 with the smoothing s.
    """
    _check_ks(ks, n_bank=len(bank_labels) - 1)
    scores = np.full((len(ks), len(queries), bank_labels.shape[1]), np.nan)
    known = is_known(bank_labels)
    patterns, pattern_of = np.unique(
        known.T, axis=0, return_inverse=True
    )  # labels known in the same images share a search
    for number, rows in enumerate(patterns):
        columns = np.flatnonzero(pattern_of.ravel() == number)
        usable = [place for place, k in enumerate(ks) if k < rows.sum()]
        if not usable:
            continue
        positive = torch.from_numpy(bank_labels[rows][:, columns] == 1)  # [m', L']
        search, of_bank = NeighbourSearch(bank[rows]), bank[rows]
        kept = [ks[place] for place in usable]
        of_query = _positive_counts(search, queries, positive, ks=kept)
        of_self = _positive_counts(search, of_bank, positive, ks=kept, is_bank=True)
        for at, place in enumerate(usable):
            found = _posterior(of_query[at], of_self[at], positive, k=kept[at], smoothing=smoothing)
            scores[place][:, columns] = found.numpy()
    return scores


def _check_ks(ks: Sequence[int], *, n_bank: int) -> None:
    if not ks or min(ks) < 1 or max(ks) > n_bank:
        raise UserError(f"k must lie between 1 and the {n_bank} images of the bank, got {', '.join(map(str, ks))}.")


def _positive_counts(
    search: NeighbourSearch,
    queries: NDArray[np.floating],
    positive: Tensor,
    *,
    ks: Sequence[int],
    is_bank: bool = False,
) -> Tensor:
    """How many of each query's k nearest are positive, [G, n, L] int64. is_bank: the queries are the bank, itself left out."""
    counts = torch.empty(len(ks), len(queries), positive.shape[1], dtype=torch.int64)
    for block in search.blocks(queries, k=max(ks) + is_bank):
        rows = block.rows
        if is_bank:  # where equal images push it off the list, the last one goes
            own = rows == torch.arange(block.queries.start, block.queries.stop)[:, None]
            own[:, -1] |= ~own.any(dim=1)
            rows = rows[~own].view(len(rows), -1)
        running = positive[rows].cumsum(dim=1)  # [b, K, L]
        counts[:, block.queries] = torch.stack([running[:, k - 1] for k in ks])
    return counts


def _posterior(of_query: Tensor, of_bank: Tensor, positive: Tensor, *, k: int, smoothing: float) -> Tensor:
    """P(label | count of the query) for counts [n, L] and [m, L]; positive: [m, L]. returns: [n, L] float64."""
    prior = (smoothing + positive.sum(dim=0).double()) / (2 * smoothing + len(positive))  # [L]
    likelihoods = []
    for shows in (positive, ~positive):
        histogram = torch.zeros(k + 1, positive.shape[1], dtype=torch.float64)
        histogram.scatter_add_(0, of_bank, shows.double())
        likelihood = (smoothing + histogram) / (smoothing * (k + 1) + histogram.sum(dim=0))  # [k + 1, L]
        likelihoods.append(likelihood.gather(0, of_query))
    present, absent = prior * likelihoods[0], (1 - prior) * likelihoods[1]
    return present / (present + absent)
