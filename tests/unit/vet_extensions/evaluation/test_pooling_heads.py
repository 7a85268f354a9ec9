"""The weights of each pooling are those of its formula; padding never changes a bag, and order only where there are positions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vet_extensions.evaluation.pooling_heads import (
    GatedAttention,
    PoolingHead,
    QueryAttention,
    SliceTransformer,
    relative_positions,
)

WIDTH, N_LABELS = 6, 3
HEADS = ("query", "gated", "transformer", "transformer without positions")
UNORDERED = tuple(name for name in HEADS if name != "transformer")


def make_head(name: str) -> PoolingHead:
    """A head with random weights everywhere, those that begin at 0 too."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.randn(WIDTH, generator=generator), 1 + torch.rand(WIDTH, generator=generator)
    bias = torch.randn(N_LABELS, generator=generator)
    if name == "query":
        head: PoolingHead = QueryAttention(mean, scale=scale, bias=bias, dropout=0.5)
    elif name == "gated":
        head = GatedAttention(mean, scale=scale, bias=bias, dropout=0.5, width=5)
    else:
        head = SliceTransformer(
            mean, scale=scale, bias=bias, dropout=0.5, width=8, n_layers=2, n_heads=2, has_positions=name == "transformer"
        )  # fmt: skip
    for parameter in head.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return head.eval()


def bag(n: int) -> Tensor:
    return torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(n))


def judge(head: PoolingHead, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and weights of bags without padding."""
    is_slice = torch.ones(slices.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        return head(slices, is_slice), head.attention(slices, is_slice)


def arrays(head: PoolingHead) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in head.state_dict().items()}


def expected_logits(head: PoolingHead, x: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and weights of one bag of standardised slices [S, D], from the scores of its slices [S]."""
    weights = np.exp(scores) / np.exp(scores).sum()
    values = arrays(head)
    return values["classifier.weight"] @ (weights @ x) + values["classifier.bias"], weights


def test_query_attention_is_its_formula() -> None:
    head, slices = make_head("query"), bag(7)
    values = arrays(head)
    x = (slices[0].double().numpy() - values["mean"]) / values["scale"]
    logits, weights = expected_logits(head, x, x @ values["query"] / np.sqrt(WIDTH))
    found = judge(head, slices)
    np.testing.assert_allclose(found[0][0], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1][0], weights, rtol=1e-5)


def test_gated_attention_is_equation_9_of_its_paper() -> None:
    head, slices = make_head("gated"), bag(7)
    values = arrays(head)
    x = (slices[0].double().numpy() - values["mean"]) / values["scale"]
    content = np.tanh(x @ values["content.weight"].T + values["content.bias"])
    gate = 1 / (1 + np.exp(-(x @ values["gate.weight"].T + values["gate.bias"])))
    logits, weights = expected_logits(head, x, (content * gate) @ values["score.weight"][0])
    found = judge(head, slices)
    np.testing.assert_allclose(found[0][0], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1][0], weights, rtol=1e-5)


def test_the_transformer_is_a_plain_stack_of_torch_layers_read_at_the_class_token() -> None:
    head, slices = make_head("transformer"), bag(7)
    assert isinstance(head, SliceTransformer)
    with torch.no_grad():
        projected = head.project((slices - head.mean) / head.scale)
        projected = projected + relative_positions(torch.ones(1, 7, dtype=torch.bool), width=8)
        tokens = torch.cat([head.class_token[None, None], projected], dim=1)
        for layer in head.layers:
            tokens = layer(tokens)
        logits = head.classifier(head.norm(tokens[:, 0]))
    np.testing.assert_allclose(judge(head, slices)[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_neither_logits_nor_weights(name: str) -> None:
    head, lengths = make_head(name), (7, 1, 4)
    padded, is_slice = torch.full((3, 7, WIDTH), 1000.0), torch.zeros(3, 7, dtype=torch.bool)
    for place, n in enumerate(lengths):
        padded[place, :n], is_slice[place, :n] = bag(n)[0], True
    with torch.no_grad():
        logits, weights = head(padded, is_slice), head.attention(padded, is_slice)
    for place, n in enumerate(lengths):
        alone = judge(head, bag(n))
        torch.testing.assert_close(logits[place], alone[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights[place, :n], alone[1][0], rtol=1e-4, atol=1e-5)
        assert (weights[place, n:] == 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_the_weights_of_a_bag_sum_to_one(name: str) -> None:
    weights = judge(make_head(name), bag(9))[1]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(1))


@pytest.mark.parametrize("name", UNORDERED)
def test_the_order_of_slices_does_not_matter_without_positions(name: str) -> None:
    head, slices = make_head(name), bag(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    logits, weights = judge(head, slices)
    again = judge(head, slices[:, order])
    torch.testing.assert_close(again[0], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again[1], weights[:, order], rtol=1e-4, atol=1e-5)


def test_the_order_of_slices_matters_to_a_transformer_with_positions() -> None:
    head, slices = make_head("transformer"), bag(9)
    assert not torch.allclose(judge(head, slices)[0], judge(head, slices.flip(1))[0], atol=1e-2)


def test_query_attention_begins_as_the_mean() -> None:
    head = QueryAttention(torch.zeros(WIDTH), scale=torch.ones(WIDTH), bias=torch.zeros(N_LABELS), dropout=0.0)
    torch.testing.assert_close(judge(head, bag(5))[1], torch.full((1, 5), 0.2))


def test_positions_say_where_in_the_volume_a_slice_is_however_thick_slices_are() -> None:
    is_slice = torch.ones(2, 9, dtype=torch.bool)
    is_slice[1, 3:] = False  # 9 thin slices and 3 thick ones: the middle of the first three is the first thick one's
    thin, thick = relative_positions(is_slice, width=8)
    torch.testing.assert_close(thin[[1, 4, 7]], thick[:3], rtol=0, atol=1e-5)
    assert len(torch.unique(thin.round(decimals=3), dim=0)) == 9
