"""Softmax over columns that come in blocks, of which only exponentials are kept. Called by `dinov2.loss.prototype_loss`.

Shape legend: R rows, K columns, k columns of a block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class OnlineSoftmax:
    """exp(logits - the largest so far) of each block, and their sums; what came before is shrunk when a larger one comes.

    Source: Milakov and Gimelshein, arXiv 1805.02867.
    """

    def __init__(self, store: Tensor, n_rows: int, blocks: Sequence[slice]) -> None:
        """store: [n_rows * K] values of memory, of the products' dtype. blocks: of the K columns, one after the other."""
        # One run of memory a block, so that a block is contiguous.
        self._store, self._blocks, self._n_rows = store, blocks, n_rows
        self._maxima: list[Tensor] = []
        self.sums = torch.zeros(n_rows, device=store.device)
        self._largest = torch.full((n_rows,), -torch.inf, device=store.device)

    def compute(self, number: int, rows: Tensor, weight: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
        """scale * rows weight^T + bias, fp32 [R, k]; in place of the block's memory where that is fp32."""
        if rows.dtype != torch.float32:
            logits = torch.mm(rows, weight.t()).float().mul_(scale)
            return logits if bias is None else logits.add_(bias)
        out = self._block(number)
        if bias is None:
            return torch.addmm(out, rows, weight.t(), beta=0, alpha=scale, out=out)
        return torch.addmm(bias, rows, weight.t(), alpha=scale, out=out)

    def take(self, number: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The block's exponentials [R, k] in place of its logits, and the factor [R] for what was summed before."""
        largest = torch.maximum(self._largest, logits.amax(1))
        shrink = torch.exp(self._largest - largest)
        exponentials = logits.sub_(largest[:, None]).exp_()
        self.sums.mul_(shrink).add_(exponentials.sum(1))
        self._maxima.append(largest)
        self._largest = largest
        if self._store.dtype != torch.float32:
            self._block(number).copy_(exponentials)
        return exponentials, shrink

    def take_back(self, number: int) -> Tensor:
        """The exponentials of a block, fp32 [R, k], to be changed at will."""
        return self._block(number).float()

    def factors(self, number: int) -> Tensor:
        """[R]: what turns the exponentials of a block into probabilities."""
        return torch.exp(self._maxima[number] - self._largest) / self.sums

    def log_sum(self) -> Tensor:
        """logsumexp of all logits, [R]."""
        return self.sums.log() + self._largest

    def _block(self, number: int) -> Tensor:
        block = self._blocks[number]
        return self._store[self._n_rows * block.start : self._n_rows * block.stop].view(self._n_rows, -1)
