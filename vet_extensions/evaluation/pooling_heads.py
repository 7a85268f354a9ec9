"""Networks that judge a bag of slices from their frozen features: an attention over the slices, or a small transformer.

`pooling` trains them. All take the slices of several bags side by side, shorter bags padded; what stands in the padding changes
nothing. Only what is here has parameters: the features are given.

monai's MILModel knows attention pooling too, but has no mask for bags of different lengths, no gate and no order of slices.

Shape legend: B bags, S slices of the longest, D feature width, W width inside, L labels.
"""

import math

import torch
from torch import Tensor, nn

_HEAD_STD = 0.01
_TOKEN_STD = 0.02
_SLOWEST, _FASTEST = 0.5, 32.0
"""Cycles of the position embedding from the first slice to the last: the slowest tells the ends apart, the fastest neighbours."""


class PoolingHead(nn.Module):
    """What all share: features [B, S, D] and where there are slices, is_slice [B, S] -> logits [B, L].

    Features are standardised by mean and scale, [D] each. bias: [L], the logits with which training begins.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, *, scale: Tensor, bias: Tensor, summary_width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(summary_width, len(bias))
        nn.init.normal_(self.classifier.weight, std=_HEAD_STD)
        with torch.no_grad():
            self.classifier.bias.copy_(bias)

    def forward(self, features: Tensor, is_slice: Tensor) -> Tensor:
        """Logits [B, L]."""
        return self.classifier(self.dropout(self.summary((features - self.mean) / self.scale, is_slice)))

    def attention(self, features: Tensor, is_slice: Tensor) -> Tensor:
        """The weight of every slice in its bag's summary, [B, S]; those of a bag sum to 1, and padding has none."""
        return self.weights((features - self.mean) / self.scale, is_slice)

    def summary(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        """What stands for each bag: the weighted mean of its standardised slices [B, S, D], here [B, D]."""
        return torch.einsum("bs,bsd->bd", self.weights(slices, is_slice), slices)

    def weights(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        """`attention` on standardised slices."""
        raise NotImplementedError


class QueryAttention(PoolingHead):
    """One learned query q: weights softmax(q . x / sqrt(D)) over the slices of a bag. It begins at 0, as the mean."""

    def __init__(self, mean: Tensor, *, scale: Tensor, bias: Tensor, dropout: float) -> None:
        super().__init__(mean, scale=scale, bias=bias, summary_width=len(mean), dropout=dropout)
        self.query = nn.Parameter(torch.zeros(len(mean)))

    def weights(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        return _softmax_over_slices(slices @ self.query / math.sqrt(len(self.query)), is_slice)


class GatedAttention(PoolingHead):
    """Gated attention: weights softmax(w . (tanh(V x) * sigmoid(U x))) over the slices x of a bag, here their frozen features.

    Source: Ilse, Tomczak and Welling 2018, arXiv 1802.04712, equation 9; V and U have biases, as in the authors' code.
    """

    def __init__(self, mean: Tensor, *, scale: Tensor, bias: Tensor, dropout: float, width: int) -> None:
        super().__init__(mean, scale=scale, bias=bias, summary_width=len(mean), dropout=dropout)
        self.content = nn.Linear(len(mean), width)
        self.gate = nn.Linear(len(mean), width)
        self.score = nn.Linear(width, 1, bias=False)

    def weights(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.content(slices)) * torch.sigmoid(self.gate(slices)))  # [B, S, 1]
        return _softmax_over_slices(scores[..., 0], is_slice)


class SliceTransformer(PoolingHead):
    """A class token and the slices, projected to W, through transformer layers (norms first); the class token is the summary.

    has_positions: each slice gets a sinusoidal embedding of its relative place, from 0 at the first slice to 1 at the last.
    Slices are ordered, and their place tells what anatomy to expect; the relative one is the same for thick and thin slices of
    a region, and needs no number of slices to be fixed. Images without an order go without.
    """

    def __init__(
        self,
        mean: Tensor,
        *,
        scale: Tensor,
        bias: Tensor,
        dropout: float,
        width: int,
        n_layers: int,
        n_heads: int,
        has_positions: bool,
    ) -> None:
        super().__init__(mean, scale=scale, bias=bias, summary_width=width, dropout=dropout)
        self.project = nn.Linear(len(mean), width)
        self.class_token = nn.Parameter(_TOKEN_STD * torch.randn(width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, n_heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self._has_positions = has_positions

    def summary(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        """The class token behind the last layer, [B, W]."""
        return self._class_token_and_shares(slices, is_slice)[0]

    def weights(self, slices: Tensor, is_slice: Tensor) -> Tensor:
        """Attention of the class token to the slices in the last layer, mean over its heads, without its share for itself.

        Below the last layer slices have exchanged content: the weights say where the class token looked, not what it saw there.
        """
        shares = self._class_token_and_shares(slices, is_slice)[1]
        return shares / shares.sum(dim=1, keepdim=True)

    def _class_token_and_shares(self, slices: Tensor, is_slice: Tensor) -> tuple[Tensor, Tensor]:
        """[B, W], and its attention to the slices in the last layer, [B, S]."""
        tokens, is_padding = self._tokens(slices, is_slice)
        *first, last = self.layers
        for layer in first:
            tokens = layer(tokens, src_key_padding_mask=is_padding)
        assert isinstance(last, nn.TransformerEncoderLayer)
        # Of the last layer only the class token is read: making it alone saves almost half of the time of two layers.
        token, normed = tokens[:, :1], last.norm1(tokens)
        attended, shares = last.self_attn(normed[:, :1], normed, normed, key_padding_mask=is_padding)
        token = token + last.dropout1(attended)
        hidden = last.dropout(last.activation(last.linear1(last.norm2(token))))
        token = token + last.dropout2(last.linear2(hidden))
        return self.norm(token[:, 0]), shares[:, 0, 1:]

    def _tokens(self, slices: Tensor, is_slice: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and slices [B, 1 + S, W], and which of them are padding."""
        projected = self.project(slices)
        if self._has_positions:
            projected = projected + relative_positions(is_slice, width=projected.shape[2])
        token = self.class_token.expand(len(slices), 1, -1)
        is_padding = torch.cat([torch.zeros_like(is_slice[:, :1]), ~is_slice], dim=1)
        return torch.cat([token, projected], dim=1), is_padding


def relative_positions(is_slice: Tensor, *, width: int) -> Tensor:
    """Sines and cosines of each slice's relative place, [B, S, width]. is_slice: [B, S], a bag's slices first, then its padding.

    The i-th of n slices stands at (i + 0.5) / n. Frequencies: width / 2 of them, from half a cycle to 32 over a volume.
    """
    lengths = is_slice.sum(dim=1, keepdim=True)
    places = (torch.arange(is_slice.shape[1], device=is_slice.device) + 0.5) / lengths  # [B, S]
    ratios = torch.linspace(0, 1, width // 2, device=is_slice.device)
    angles = 2 * math.pi * places[..., None] * (_SLOWEST * (_FASTEST / _SLOWEST) ** ratios)
    return torch.cat([angles.sin(), angles.cos()], dim=2)


def _softmax_over_slices(scores: Tensor, is_slice: Tensor) -> Tensor:
    """[B, S] -> [B, S], exactly 0 on padding."""
    return scores.masked_fill(~is_slice, -math.inf).softmax(dim=1)
