"""Where the released weights lie and what they are called. Called by the hub's entry points."""

_DINOV2_BASE_URL = "https://dl.fbaipublicfiles.com/dinov2"


def _make_dinov2_model_name(arch_name: str, patch_size: int, num_register_tokens: int = 0) -> str:
    """`dinov2_vits14_reg4` for ("vit_small", 14, 4)."""
    compact_arch_name = arch_name.replace("_", "")[:4]
    registers = f"_reg{num_register_tokens}" if num_register_tokens else ""
    return f"dinov2_{compact_arch_name}{patch_size}{registers}"


def make_backbone_url(arch_name: str, patch_size: int, num_register_tokens: int = 0) -> str:
    """The address of a released backbone. The folder is named after the model without registers."""
    folder = _make_dinov2_model_name(arch_name, patch_size)
    name = _make_dinov2_model_name(arch_name, patch_size, num_register_tokens)
    return f"{_DINOV2_BASE_URL}/{folder}/{name}_pretrain.pth"
