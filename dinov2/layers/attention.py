"""Multi-head self-attention of the vision transformer. Which kernel runs is the business of `kernels.py`.

Shape legend: B sequences, N tokens, C channels, H heads, D = C / H.
"""

from torch import Tensor, nn

from dinov2.layers.kernels import (
    XFORMERS_AVAILABLE,
    XFORMERS_ENABLED,
    CropGroups,
    attention,
    attention_probabilities,
    split_heads,
)

__all__ = ["XFORMERS_AVAILABLE", "XFORMERS_ENABLED", "Attention", "MemEffAttention"]


class Attention(nn.Module):
    """Self-attention with one fused projection: the rows of `qkv.weight` are all of q, then all of k, then all of v."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5  # read by forks; the kernels take the same value by default
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def init_weights(
        self, init_attn_std: float | None = None, init_proj_std: float | None = None, factor: float = 1.0
    ) -> None:
        """Normal weights and zero biases. Standard deviations default to dim**-0.5 and to `factor` times that."""
        attn_std = self.dim**-0.5 if init_attn_std is None else init_attn_std
        proj_std = attn_std * factor if init_proj_std is None else init_proj_std
        for layer, std in ((self.qkv, attn_std), (self.proj, proj_std)):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """[B, N, C] -> [B, N, C]. `is_causal`: a token attends only to itself and those before it."""
        return self.project(self._attend(self.qkv(x), is_causal=is_causal))

    def project(self, attended: Tensor) -> Tensor:
        """The output projection of tokens that have attended: [..., C] -> [..., C]."""
        return self.proj_drop(self.proj(attended))

    def attention_probabilities(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, H, N, N] fp32: how much each token (row) attends to each other (column)."""
        q, k, _ = self._heads(self.qkv(x))
        return attention_probabilities(q, k)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, 3C] -> q, k, v, [B, H, N, D] each."""
        b, n, _ = qkv.shape
        q, k, v = qkv.view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _attend(self, qkv: Tensor, *, is_causal: bool = False) -> Tensor:
        """[B, N, 3C] -> [B, N, C], before the output projection."""
        return self._attend_heads(*self._heads(qkv), is_causal=is_causal)

    def _attend_heads(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> Tensor:
        """[B, H, N, D] each -> [B, N, C]."""
        out = attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0, is_causal=is_causal)
        return out.transpose(1, 2).flatten(2)


class MemEffAttention(Attention):
    """Attention that also takes a packed batch of crops of several lengths; the class the official builders use."""

    def forward(self, x: Tensor, attn_bias: CropGroups | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, N, C] -> [B, N, C]; with `attn_bias`, a packed [1, tokens, C] whose groups it describes."""
        if attn_bias is None:
            return super().forward(x)
        assert isinstance(attn_bias, CropGroups), f"attn_bias must be a CropGroups, got {type(attn_bias).__name__}"
        return self.project(self.attend_groups(x, attn_bias))

    def attend_groups(self, x: Tensor, groups: CropGroups) -> Tensor:
        """Packed tokens [1, tokens, C] after attending within their sequences, before the output projection."""
        return CropGroups.pack([self._attend_heads(*qkv) for qkv in split_heads(self.qkv(x), groups, self.num_heads)])
