"""Blocks that recompute their activations or are compiled give what plain blocks give."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from dinov2.models.vision_transformer import vit_micro
from dinov2.train.parallel import set_up_blocks


def make_backbone(block_chunks=0):
    torch.manual_seed(0)
    return vit_micro(
        14, img_size=28, drop_path_rate=0.5, drop_path_uniform=True, init_values=0.5, block_chunks=block_chunks
    )


def features_and_gradients(backbone, n_used=3):
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randn(4, 3, side, side, generator=generator) for side in (28, 14)]
    torch.manual_seed(1)
    features = backbone(crops, masks=[None, None], used_patches=[torch.arange(n_used), None], is_training=True)
    outputs = [features[0]["x_norm_clstoken"], features[0]["x_norm_usedpatchtokens"], features[1]["x_norm_clstoken"]]
    loss = sum(torch.sin(out * 3).sum() for out in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(backbone.parameters()), allow_unused=True)]


def assert_alike(ours, plain):
    for got, want in zip(ours, plain, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block_chunks", [0, 2])
def test_recomputed_blocks_give_the_used_tokens_and_gradients_of_plain_ones(block_chunks):
    backbone = make_backbone(block_chunks).train()
    plain = features_and_gradients(backbone)
    set_up_blocks(nn.ModuleDict({"backbone": backbone}), checkpoint_activations=True, compiled=False)
    assert_alike(features_and_gradients(backbone), plain)


@pytest.mark.slow
def test_compiled_blocks_serve_any_number_of_used_patches_with_few_graphs(monkeypatch):
    torch.compiler.reset()
    counter, compile_with = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_with(self, backend=counter))
    backbone, plain_backbone = make_backbone().train(), make_backbone().train()
    set_up_blocks(nn.ModuleDict({"backbone": backbone}), checkpoint_activations=False, compiled=True)
    for n_used in (3, 4, 2, 5, 6):
        assert_alike(features_and_gradients(backbone, n_used), features_and_gradients(plain_backbone, n_used))
    assert 2 <= counter.frame_count <= 3  # whole blocks; a last block for one number of tokens, then for any
    torch.compiler.reset()
