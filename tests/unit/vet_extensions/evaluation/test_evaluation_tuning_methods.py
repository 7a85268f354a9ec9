"""What each method trains: exact counts, arithmetic against peft's and against plain loops, and the proof that it trains."""

import copy
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuning_factory import DEPTH, QUICK, SIZE_PX, WIDTH, as_backbone, tiny_vit

from dinov2.models.vision_transformer import vit_micro
from vet_extensions.errors import UserError
from vet_extensions.evaluation.backbones import read_vit
from vet_extensions.evaluation.embedding import BlockTokens
from vet_extensions.evaluation.prompts import read_prompted
from vet_extensions.evaluation.tuning_checks import WINDOW_STEPS, NotTrainedAsIntended, ParameterWatch
from vet_extensions.evaluation.tuning_config import TUNED_PROTOCOLS, TuningConfig
from vet_extensions.evaluation.tuning_methods import Adapted, adapt, n_parameters

OF_PEFT = ("lora", "dora", "ia3")
K, D = 4, 128
"""Blocks and channels of vit_micro."""


def need(method: str) -> None:
    if method in OF_PEFT:
        pytest.importorskip("peft")


def images(n: int = 2, *, size_px: int = SIZE_PX) -> Tensor:
    return torch.rand(n, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def adapted_to(
    method: str, config: TuningConfig = QUICK, *, build: Callable[[], nn.Module] = tiny_vit, **facts: Any
) -> Adapted:
    return adapt(as_backbone(build, **facts), method, config, image_size_px=SIZE_PX)


def randomise(parameters: Iterator[nn.Parameter]) -> None:
    """Adapters begin as no change at all; their arithmetic shows only once they are something."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("lora", 14 * 48 * D * K),
        ("dora", 14 * 48 * D * K + 8 * D * K),
        ("ia3", 7 * D * K),
        ("bitfit", 11 * D * K + 2 * D),
        ("norm", 4 * D * K + 2 * D),
        ("vpt", 10 * D * K),
        ("last_k", 2 * (12 * D * D + 13 * D) + 2 * D),
    ],
)
def test_counts_are_those_of_the_formulas(method: str, count: int) -> None:
    need(method)
    adapted = adapted_to(
        method, TuningConfig(rank=48), build=lambda: vit_micro(patch_size=8, img_size=SIZE_PX), n_blocks=K
    )
    assert n_parameters(adapted.model, adapted.trainable) == count
    assert sum(p.numel() for p in adapted.model.parameters() if p.requires_grad) == count


def test_shallow_prompts_are_counted_once() -> None:
    adapted = adapted_to("vpt", TuningConfig(prompts="shallow", n_prompts=5))
    assert n_parameters(adapted.model, adapted.trainable) == 5 * WIDTH


def test_end_to_end_trains_all_but_the_mask_token() -> None:
    adapted = adapted_to("finetune", build=lambda: tiny_vit(registers=2))
    assert adapted.trainable == {name for name, _ in adapted.model.named_parameters()} - {"mask_token"}


@pytest.mark.parametrize("block_chunks", [0, 1])
def test_the_last_block_is_the_last_one_also_in_chunks(block_chunks: int) -> None:
    adapted = adapted_to("last_k", TuningConfig(last_blocks=1), build=lambda: tiny_vit(block_chunks=block_chunks))
    prefix = f"blocks.0.{DEPTH - 1}." if block_chunks else f"blocks.{DEPTH - 1}."
    assert all(name.startswith((prefix, "norm.")) for name in adapted.trainable)
    assert any(name.startswith(prefix) for name in adapted.trainable)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_an_adapted_backbone_equals_the_one_with_merged_weights(method: str) -> None:
    peft_layers = pytest.importorskip("peft.tuners.tuners_utils")
    adapted = adapted_to(method, QUICK).model
    randomise(p for p in adapted.parameters() if p.requires_grad)
    merged = copy.deepcopy(adapted)
    for module in merged.modules():
        if isinstance(module, peft_layers.BaseTunerLayer):
            module.merge()
    out, expected, before = (m.eval()(images()) for m in (adapted, merged, tiny_vit()))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert (out - before).abs().max() > 0.01


def test_lora_adds_alpha_over_rank_times_b_a_to_the_weights() -> None:
    pytest.importorskip("peft")
    adapted, plain = adapted_to("lora", QUICK).model, tiny_vit()
    randomise(p for p in adapted.parameters() if p.requires_grad)
    lora, weights = dict(adapted.named_parameters()), plain.state_dict()
    for name in [name for name in lora if "lora_A" in name]:
        layer = name.split(".lora_A")[0]
        weights[f"{layer}.weight"] += QUICK.alpha / QUICK.rank * lora[name.replace("lora_A", "lora_B")] @ lora[name]
    torch.testing.assert_close(adapted.eval()(images()), plain.eval()(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_new_adapter_changes_nothing(method: str) -> None:
    pytest.importorskip("peft")
    torch.testing.assert_close(adapted_to(method, QUICK).model.eval()(images()), tiny_vit().eval()(images()))


@pytest.mark.parametrize(("kind", "block_chunks"), [("deep", 0), ("shallow", 0), ("deep", 1)])
def test_prompts_stand_behind_the_class_token_of_every_block_or_of_the_first(kind: str, block_chunks: int) -> None:
    config = TuningConfig(prompts=kind, n_prompts=2)
    prompted = adapted_to("vpt", config, build=lambda: tiny_vit(registers=1, block_chunks=block_chunks)).model
    plain = tiny_vit(registers=1)
    tokens = plain.prepare_tokens_with_masks(images())
    rest = list(tokens.split(1, dim=1))  # a list of tokens, [2, 1, D] each
    for place, block in enumerate(plain.blocks):
        if place == 0 or kind == "deep":
            new = prompted.prompts[place].expand(2, -1, -1).split(1, dim=1)
            rest = [rest[0], *new, *(rest[1:] if place == 0 else rest[3:])]
        rest = list(block(torch.cat(rest, dim=1)).split(1, dim=1))
    expected = plain.norm(torch.cat([rest[0], *rest[3:]], dim=1))
    (out,) = read_prompted(prompted, images(), [DEPTH - 1])
    torch.testing.assert_close(out.cls, expected[:, 0])
    assert out.patches is not None
    torch.testing.assert_close(out.patches.flatten(1, 2), expected[:, 2:])


def watched_steps(adapted: Adapted, watch: ParameterWatch, optimizer: torch.optim.Optimizer, n: int = 3) -> None:
    for step in range(n):
        optimizer.zero_grad(set_to_none=True)
        (tokens,) = adapted.read(adapted.model, images(), [DEPTH - 1])
        tokens.cls.square().mean().backward()
        watch.after_backward(is_last=step == n - 1)
        optimizer.step()


@pytest.mark.parametrize("method", TUNED_PROTOCOLS)
def test_exactly_the_intended_parameters_train(method: str) -> None:
    need(method)
    adapted = adapted_to(method, QUICK, build=lambda: tiny_vit(registers=1))
    model, optimised = adapted.model, [p for p in adapted.model.parameters() if p.requires_grad]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    watch = ParameterWatch(model, intended=adapted.trainable, optimised=optimised)
    watched_steps(adapted, watch, torch.optim.AdamW(optimised, lr=1e-3))
    watch.check_changes()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == adapted.trainable


def test_a_parameter_that_was_frozen_by_mistake_raises() -> None:
    adapted = adapted_to("norm", QUICK)
    adapted.model.norm.bias.requires_grad_(False)  # type: ignore[union-attr]
    optimised = [p for p in adapted.model.parameters() if p.requires_grad]
    with pytest.raises(NotTrainedAsIntended, match=r"1 of 14 parameters that should train do not: norm\.bias"):
        ParameterWatch(adapted.model, intended=adapted.trainable, optimised=optimised)


def test_a_parameter_that_trains_by_mistake_raises() -> None:
    adapted = adapted_to("norm", QUICK)
    adapted.model.cls_token.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(NotTrainedAsIntended, match="that should be frozen do: cls_token"):
        ParameterWatch(adapted.model, intended=adapted.trainable, optimised=list(adapted.model.parameters()))


def test_a_parameter_that_the_optimizer_does_not_hold_raises() -> None:
    adapted = adapted_to("norm", QUICK)
    with pytest.raises(NotTrainedAsIntended, match="Of what are in the optimizer"):
        ParameterWatch(adapted.model, intended=adapted.trainable, optimised=[])


def test_parameters_that_get_no_gradient_raise() -> None:
    adapted = adapted_to("bitfit", QUICK)
    model = adapted.model
    watch = ParameterWatch(
        model, intended=adapted.trainable, optimised=[p for p in model.parameters() if p.requires_grad]
    )
    for _ in range(WINDOW_STEPS - 1):
        watch.after_backward(is_last=False)
    with pytest.raises(NotTrainedAsIntended, match="got a gradient that is not zero"):
        watch.after_backward(is_last=False)


def test_weights_that_do_not_move_raise() -> None:
    adapted = adapted_to("norm", QUICK)
    optimised = [p for p in adapted.model.parameters() if p.requires_grad]
    watch = ParameterWatch(adapted.model, intended=adapted.trainable, optimised=optimised)
    watched_steps(adapted, watch, torch.optim.SGD(optimised, lr=0.0))
    with pytest.raises(NotTrainedAsIntended, match="14 of 14 parameters that should train do not"):
        watch.check_changes()


def test_a_frozen_weight_that_moves_raises() -> None:
    adapted = adapted_to("norm", QUICK)
    optimised = [p for p in adapted.model.parameters() if p.requires_grad]
    watch = ParameterWatch(adapted.model, intended=adapted.trainable, optimised=optimised)
    watched_steps(adapted, watch, torch.optim.AdamW(optimised, lr=1e-3))
    with torch.no_grad():
        adapted.model.pos_embed += 1.0  # type: ignore[operator]
    with pytest.raises(NotTrainedAsIntended, match="that should be frozen do: pos_embed"):
        watch.check_changes()


def test_a_network_of_other_layers_is_refused_with_a_cure() -> None:
    network = as_backbone(lambda: nn.Conv2d(3, WIDTH, 3, bias=False), read=read_mean, n_blocks=0)
    for method, cure in (
        ("vpt", "Use lora, bitfit or norm"),
        ("last_k", "0 blocks. Use another"),
        ("norm", "or finetune"),
    ):
        with pytest.raises(UserError, match=re.escape(cure)):
            adapt(network, method, QUICK, image_size_px=SIZE_PX)


def read_mean(model: nn.Module, pixels: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
    """Stands for a network of one vector an image."""
    return (BlockTokens(model(pixels).mean(dim=(2, 3)), None),)


def test_what_the_features_do_not_depend_on_is_not_meant_to_train() -> None:
    """As poolers of transformers' models that nobody reads."""

    def build() -> nn.Module:
        network = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH))
        network.pooler = nn.Linear(WIDTH, WIDTH)
        network.forward = lambda pixels: network[1](network[0](pixels))
        return network

    adapted = adapt(as_backbone(build, read=read_mean), "finetune", QUICK, image_size_px=SIZE_PX)
    assert adapted.trainable == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_blocks_of_other_networks_are_the_list_of_as_many() -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_before = nn.GroupNorm(1, 3)
            self.layer = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(4)])
            self.norm_after = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm_before(x)
            for layer in self.layer:
                x = layer(x)
            return self.norm_after(x)

    adapted = adapt(
        as_backbone(Tower, read=read_mean, n_blocks=4), "last_k", TuningConfig(last_blocks=1), image_size_px=SIZE_PX
    )
    assert adapted.trainable == {f"{name}.{kind}" for name in ("layer.3", "norm_after") for kind in ("weight", "bias")}


def test_features_without_a_gradient_raise_before_anything_is_trained() -> None:
    """The fault of the study's code: a method is asked for, and its features come from under no_grad."""

    def read(model: nn.Module, pixels: Tensor, indices: Sequence[int]) -> tuple[BlockTokens, ...]:
        with torch.no_grad():
            return read_vit(model, pixels, indices)

    with pytest.raises(NotTrainedAsIntended, match="The features of tiny carry no gradient"):
        adapt(as_backbone(tiny_vit, read=read), "bitfit", QUICK, image_size_px=SIZE_PX)


def test_targets_that_no_layer_has_are_named() -> None:
    pytest.importorskip("peft")
    with pytest.raises(UserError, match="a name that ends in query, value"):
        adapted_to("lora", TuningConfig(targets=("query", "value")))


def test_targets_are_whole_ends_of_names() -> None:
    pytest.importorskip("peft")
    adapted = adapted_to("lora", TuningConfig(targets=("attn.proj",)))
    assert {name.split(".lora")[0] for name in adapted.trainable} == {f"blocks.{k}.attn.proj" for k in range(DEPTH)}


def test_the_missing_package_is_one_sentence_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'vet-dino\[peft\]'"):
        adapted_to("lora", QUICK)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(UserError, match=r"rank is 0; it must be a whole number from 1 up; .*augmentation is flip"):
        TuningConfig(rank=0, augmentation="flip")
