"""Backbones from files of every layout: the outputs are the source's, and what does not fit is refused with its cure.

The files are written here by name maps of their own, from what transformers 5.23 and timm 1.0.31 write.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from dinov2.models import vision_transformer as vits
from dinov2.utils.errors import UserError
from dinov2.utils.utils import load_pretrained_weights
from dinov2.utils.weights import load_backbone_weights

REGISTERS = {"num_register_tokens": 3, "interpolate_antialias": True, "interpolate_offset": 0.0}


def make_model(**settings):
    defaults = {"patch_size": 14, "img_size": 56, "init_values": 1e-5, "block_chunks": 0}
    return vits.vit_micro(**{**defaults, **settings}).eval()


def make_source(**settings):
    """A model with no weight at a special value, so that each one shows in the outputs."""
    torch.manual_seed(0)
    model = make_model(**settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def outputs(model, size=56):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = model.forward_features(x)
    return torch.cat([tokens["x_norm_clstoken"][:, None], tokens["x_norm_regtokens"], tokens["x_norm_patchtokens"]], 1)


def assert_same_outputs(model, source, size=56):
    torch.testing.assert_close(outputs(model, size), outputs(source, size), rtol=0, atol=1e-6)


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def save(content, folder):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def hugging_face_state(model):
    """The names of transformers' files, for a model with flat blocks."""
    out = {}
    for name, value in model.state_dict().items():
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        name = name.replace("gamma", "lambda1").replace("ls1", "layer_scale1").replace("ls2", "layer_scale2")
        name = name.replace("w12", "weights_in").replace("w3", "weights_out")
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if name.startswith("norm."):
            name = f"layer{name}"
        if name.endswith(("_token", "register_tokens")):
            name = f"embeddings.{name}"
        if name == "pos_embed":
            name = "embeddings.position_embeddings"
        if ".attn.qkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace("attn.qkv", f"attention.attention.{part}")] = rows.clone()
        else:
            out[name] = value
    return out


def in_memory_names(state):
    """As transformers 5 names them while the model is in memory."""
    pairs = {
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "mlp.weights_out": "mlp.down_proj",
    }
    out = {}
    for name, value in state.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        if "mlp.weights_in" in name:
            gate, up = value.chunk(2)
            out[name.replace("weights_in", "gate_proj")], out[name.replace("weights_in", "up_proj")] = gate, up
        else:
            out[name] = value
    return out


def hugging_face_folder(model, folder, **settings):
    save_file(hugging_face_state(model), folder / "model.safetensors")
    facts = {"model_type": "dinov2", "num_attention_heads": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(facts | settings))
    return folder


def timm_state(model):
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    return {name.replace("w12", "fc1").replace("w3", "fc2"): value for name, value in state.items()}


# ------------------------------------------------------------------------------------------------ layouts


WRAPS = {
    "hub": lambda state: state,
    "teacher": lambda state: {"teacher": {**below("backbone.", state), "dino_head.mlp.weight": torch.ones(1)}},
    "ddp": lambda state: {"state_dict": below("module.backbone.", state)},
    "compiled": lambda state: below("_orig_mod.", state),
    "prefix model": lambda state: below("model.backbone.", state),
    "training": lambda state: {
        "model": {
            **below("student.backbone.", {name: value - 5 for name, value in state.items()}),
            **below("teacher.backbone.", state),
            "dino_loss.center": torch.zeros(1, 4),
        },
        "optimizer": {"state": {}, "param_groups": []},
        "iteration": 7,
    },
    "fsdp": lambda state: {
        "model": {
            "teacher.backbone._fsdp_wrapped_module."
            + name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): value
            for name, value in state.items()
        }
    },
}


@pytest.mark.parametrize("key", ["teacher", "model", None])
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_backbone_is_found_in_every_kind_of_file(wrap, key, tmp_path):
    source, model = make_source(), make_model()
    report = load_pretrained_weights(model, save(WRAPS[wrap](source.state_dict()), tmp_path), key)
    assert (len(report.matched), report.missing) == (len(source.state_dict()), ())
    assert_same_outputs(model, source)


@pytest.mark.parametrize(("in_file", "in_model"), [(0, 2), (2, 0), (1, 4), (2, 3)])
def test_blocks_chunked_one_way_load_into_blocks_chunked_another(in_file, in_model, tmp_path):
    source, model = make_source(block_chunks=in_file), make_model(block_chunks=in_model)
    load_pretrained_weights(model, save({"teacher": below("backbone.", source.state_dict())}, tmp_path), "teacher")
    assert_same_outputs(model, source)


def test_positions_of_518_px_load_into_a_small_grid_and_are_said_to_be_resampled(tmp_path):
    source, model = make_source(img_size=518), make_model()
    report = load_pretrained_weights(model, save(source.state_dict(), tmp_path), "teacher")
    assert "pos_embed resampled from 1369 to 16 patches" in str(report)
    assert model.pos_embed.shape == (1, 17, 128)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


@pytest.mark.parametrize("kind", [{}, REGISTERS])
def test_weights_of_a_large_grid_give_in_a_small_one_what_they_give_at_that_size(kind, tmp_path):
    source, model = make_source(img_size=518, **kind), make_model(**kind)
    load_pretrained_weights(model, save(source.state_dict(), tmp_path), "teacher")
    assert_same_outputs(model, source, size=56)


def test_the_key_chooses_the_student_of_a_training_file(tmp_path):
    source, model = make_source(), make_model()
    load_pretrained_weights(model, save(WRAPS["training"](source.state_dict()), tmp_path), "student")
    torch.testing.assert_close(model.cls_token, source.cls_token - 5)


@pytest.mark.parametrize("kind", [{}, REGISTERS, {"ffn_layer": "swiglufused"}, {**REGISTERS, "ffn_layer": "swiglu"}])
@pytest.mark.parametrize("block_chunks", [0, 2])
def test_a_hugging_face_folder_computes_what_its_source_does(kind, block_chunks, tmp_path):
    source, model = make_source(**kind), make_model(**kind, block_chunks=block_chunks)
    folder = hugging_face_folder(source, tmp_path, model_type="dinov2_with_registers" if kind else "dinov2")
    assert load_pretrained_weights(model, folder, "teacher").missing == ()
    assert_same_outputs(model, source)


@pytest.mark.parametrize("kind", [REGISTERS, {"ffn_layer": "swiglufused"}])
def test_names_that_transformers_5_has_in_memory_and_a_classifier_around_them_are_read(kind, tmp_path):
    source, model = make_source(**kind), make_model(**kind)
    state = below("dinov2.", in_memory_names(hugging_face_state(source)))
    report = load_pretrained_weights(model, save({**state, "classifier.weight": torch.ones(1)}, tmp_path), "teacher")
    assert report.unexpected == ("classifier.weight",)
    assert_same_outputs(model, source)


@pytest.mark.parametrize("kind", [{}, REGISTERS, {"ffn_layer": "swiglufused"}, {**REGISTERS, "ffn_layer": "swiglu"}])
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_timm_file_computes_what_its_source_does_and_leaves_the_mask_token(kind, ending, tmp_path):
    source, model = make_source(**kind), make_model(**kind)
    path, own_mask = tmp_path / f"weights.{ending}", model.mask_token.clone()
    (torch.save if ending == "bin" else save_file)(timm_state(source), path)
    report = load_pretrained_weights(model, path, "teacher")
    assert report.missing == ("mask_token",)
    assert "still the model's own: mask_token" in str(report)
    assert torch.equal(model.mask_token, own_mask)
    assert_same_outputs(model, source)


# ------------------------------------------------------------------------------------------------ differences bridged


def test_a_file_without_layerscale_gets_gains_of_one(tmp_path):
    source, model = make_source(init_values=None), make_model()
    report = load_pretrained_weights(model, save(source.state_dict(), tmp_path), "teacher")
    assert "gains are 1" in str(report)
    assert len(report.missing) == 8
    assert_same_outputs(model, source)


def test_some_missing_gains_are_no_file_without_layerscale(tmp_path):
    state = make_source().state_dict()
    del state["blocks.2.ls1.gamma"]
    with pytest.raises(UserError, match=r"lacks 1 \(blocks\.2\.ls1\.gamma\)"):
        load_pretrained_weights(make_model(), save(state, tmp_path), "teacher")


def test_new_registers_may_be_learned_but_not_evaluated(tmp_path):
    model, path = make_model(**REGISTERS), save(make_source().state_dict(), tmp_path)
    registers = model.register_tokens.clone()
    with pytest.raises(UserError, match=r"Set student\.num_register_tokens=0"):
        load_pretrained_weights(model, path, "teacher")
    report = load_backbone_weights(model, path, is_start_of_training=True)
    assert report.missing == ("register_tokens",)
    assert torch.equal(model.register_tokens, registers)


# ------------------------------------------------------------------------------------------------ differences refused


@pytest.mark.parametrize(
    ("in_file", "in_model", "cure"),
    [
        ({}, {"init_values": None}, r"student\.layerscale=1\.0e-05"),
        ({"patch_size": 8}, {}, r"student\.patch_size=8"),
        (REGISTERS, {}, r"student\.num_register_tokens=3"),
        ({"num_register_tokens": 2}, {"num_register_tokens": 5}, r"student\.num_register_tokens=2"),
        ({"ffn_layer": "swiglufused"}, {}, r"student\.ffn_layer=swiglufused"),
        ({}, {"qkv_bias": False}, r"student\.qkv_bias=true"),
        ({"proj_bias": False}, {}, r"student\.proj_bias=false"),
        ({"ffn_bias": False}, {}, r"student\.ffn_bias=false"),
        ({"in_chans": 1}, {}, r"number of input channels is 1 in the file, 3 in the model.*repeat\(1, 3, 1, 1\) / 3"),
    ],
)
def test_another_architecture_is_refused_with_the_key_that_mends_it(in_file, in_model, cure, tmp_path):
    path = save(make_source(**in_file).state_dict(), tmp_path)
    for load in (load_pretrained_weights, load_for_training):
        with pytest.raises(UserError, match=cure):
            load(make_model(**in_model), path, "teacher")


def load_for_training(model, path, key):
    return load_backbone_weights(model, path, checkpoint_key=key, is_start_of_training=True)


def test_another_size_is_refused_with_the_name_of_its_architecture(tmp_path):
    small = vits.vit_small(patch_size=14, img_size=56, init_values=1e-5, block_chunks=0)
    with pytest.raises(UserError, match=r"number of blocks is 12 in the file, 4 in the model.*student\.arch=vit_small"):
        load_pretrained_weights(make_model(), save(small.state_dict(), tmp_path), "teacher")


def test_a_deeper_backbone_of_the_same_width_is_refused(tmp_path):
    state = make_source().state_dict()
    state |= {name.replace("blocks.3.", "blocks.4."): value for name, value in state.items() if "blocks.3." in name}
    with pytest.raises(UserError, match="width 128 and 5 blocks"):
        load_pretrained_weights(make_model(), save(state, tmp_path), "teacher")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads is 8, the model's 4"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"model_type": "dinov3_vit"}, "'dinov3_vit' model"),
    ],
)
def test_a_hugging_face_folder_of_another_network_of_equal_shapes_is_refused(settings, message, tmp_path):
    folder = hugging_face_folder(make_source(), tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load_pretrained_weights(make_model(), folder, "teacher")


def test_a_hugging_face_layer_with_a_part_missing_is_refused(tmp_path):
    state = hugging_face_state(make_source())
    del state["encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(UserError, match=r"2 of the 3 parts of blocks\.1\.attn\.qkv\.bias"):
        load_pretrained_weights(make_model(), save(state, tmp_path), "teacher")


@pytest.mark.parametrize("key", ["student.backbone.blocks.0.attn.qkv.weight", "student.backbone.blocks.0._flat_param"])
def test_one_processs_slice_is_refused_by_its_names_and_shapes(key, tmp_path):
    path = save({"model": {key: torch.ones(7)}, "iteration": 3}, tmp_path)
    with pytest.raises(UserError, match=r"one process's slice.*teacher_checkpoint\.pth"):
        load_pretrained_weights(make_model(), path, "teacher")
