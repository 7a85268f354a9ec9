"""Hub files, loaded again and compared: the sidecar that says how to build the model, `load_hub_file`, and the parity check.

`checkpoint.export_hub` calls `verify_export` before a file gets its final name. Run as a program, the module loads a file in a
fresh process that knows nothing of the source: `python -m vet_extensions.export.parity FILE --inputs IN.npz --outputs OUT.npz`.

Shape legend: B images of S x S pixels, N patches, D channels.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vet_extensions
from dinov2.models import vision_transformer
from dinov2.models.vision_transformer import DinoVisionTransformer
from dinov2.utils.files import file_sha256
from vet_extensions.errors import UserError

SIDECAR_FORMAT = "vet-dino backbone"
SIDECAR_VERSION = 1
THRESHOLD = 1e-4
"""Greatest absolute difference of a normed token that still counts as the same model (float32 rounding is near 1e-6)."""

N_IMAGES = 2

HUB_INTERPOLATION = {0: (False, 0.1), 4: (True, 0.0)}
"""Position interpolation of the hub's constructors by number of registers: (antialias, offset)."""

_HUB_STEMS = {"vit_small": "vits", "vit_base": "vitb", "vit_large": "vitl", "vit_giant2": "vitg"}
_HUB_PATCH_SIZE = 14


class ParityError(RuntimeError):
    """An exported file does not compute what its source computes."""


@dataclass(frozen=True)
class Architecture:
    """What `dinov2.models.vision_transformer` needs to build a backbone; names as in the `student` section of a config.

    img_size: pixels of the images whose patch grid the position embedding holds. has_layerscale: the blocks have gains.
    """

    arch: str
    patch_size: int
    img_size: int
    embed_dim: int
    num_register_tokens: int
    has_layerscale: bool
    ffn_layer: str
    qkv_bias: bool
    proj_bias: bool
    ffn_bias: bool
    interpolate_antialias: bool
    interpolate_offset: float

    def build(self) -> DinoVisionTransformer:
        """A backbone of this architecture with flat block names, in evaluation mode. Raises `UserError` for an unknown name."""
        known = sorted(k for k, v in vars(vision_transformer).items() if k.startswith("vit_") and callable(v))
        if self.arch not in known:
            raise UserError(f"Unknown architecture '{self.arch}'. Known: {', '.join(known)}. Give one of them as arch.")
        model = vars(vision_transformer)[self.arch](
            patch_size=self.patch_size,
            img_size=self.img_size,
            init_values=1.0 if self.has_layerscale else None,
            ffn_layer=self.ffn_layer,
            block_chunks=0,
            num_register_tokens=self.num_register_tokens,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            ffn_bias=self.ffn_bias,
            interpolate_antialias=self.interpolate_antialias,
            interpolate_offset=self.interpolate_offset,
        )
        return model.eval()

    @property
    def hub_constructor(self) -> str | None:
        """The function of `dinov2.hub.backbones` for this size of network; None where the hub has none."""
        stem = _HUB_STEMS.get(self.arch)
        if stem is None or self.patch_size != _HUB_PATCH_SIZE:
            return None
        return f"dinov2_{stem}{_HUB_PATCH_SIZE}" + ("_reg" if self.num_register_tokens else "")

    def hub_obstacles(self) -> list[str]:
        """Why `hub_constructor` could not load this network with strict names; empty where it can."""
        reasons = []
        ffn_layer = "swiglufused" if self.arch == "vit_giant2" else "mlp"
        if not self.has_layerscale:
            reasons.append("it wants LayerScale gains, and this network has none (student.layerscale is null or 0)")
        if self.ffn_layer != ffn_layer:
            reasons.append(f"it wants student.ffn_layer={ffn_layer}, and this network has {self.ffn_layer}")
        if self.num_register_tokens not in HUB_INTERPOLATION:
            reasons.append(f"it wants 0 or 4 register tokens, and this network has {self.num_register_tokens}")
        absent = [bias for bias in ("qkv_bias", "proj_bias", "ffn_bias") if not getattr(self, bias)]
        if absent:
            reasons.append(f"it wants biases that this network lacks ({', '.join(absent)})")
        return reasons

    def at_size(self, img_size: int) -> "Architecture":
        """The same network with the position grid of images of another size."""
        return replace(self, img_size=img_size)


@dataclass(frozen=True)
class Difference:
    """Greatest absolute differences of normed tokens between two models on the same images of img_size x img_size pixels."""

    img_size: int
    max_abs_cls: float
    max_abs_patch: float


@dataclass(frozen=True)
class ParityReport:
    """Result of a parity check at img_size pixels; it passes where neither difference exceeds `THRESHOLD`.

    other_size: where the position grid was resampled, the difference at the other of the two sizes (training, export). It is
    information, not a test: there the source interpolates its own grid on the fly, and the two grids cannot agree at both sizes.
    """

    img_size: int
    max_abs_cls: float
    max_abs_patch: float
    n_images: int
    passed: bool
    other_size: Difference | None = None

    def __str__(self) -> str:
        tested = (
            f"Compared with the teacher on {self.n_images} images of {self.img_size} px: class token within "
            f"{self.max_abs_cls:.1e}, patch tokens within {self.max_abs_patch:.1e} (allowed {THRESHOLD:.0e})."
        )
        other = self.other_size
        if other is None:
            return tested
        return (
            f"{tested}\nFor information, at {other.img_size} px, where the teacher interpolates its own grid: class token "
            f"within {other.max_abs_cls:.1e}, patch tokens within {other.max_abs_patch:.1e}."
        )


def sidecar_path(path: Path) -> Path:
    """The JSON file beside an exported file that says how to build its model."""
    return path.with_suffix(".json")


def read_sidecar(path: Path) -> dict:
    """The sidecar of an exported file. Raises `UserError` where it is missing or not one that this release reads."""
    beside = sidecar_path(path)
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{beside.name}' beside '{path.name}' is missing or is no JSON ({type(error).__name__}). "
            "It says how to build the model: keep the two files together, or export again."
        ) from error
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (SIDECAR_FORMAT, SIDECAR_VERSION):
        raise UserError(
            f"'{beside.name}' is no sidecar that this release reads: it holds (format, version) {found}, "
            f"wanted {(SIDECAR_FORMAT, SIDECAR_VERSION)}. Export again."
        )
    return content


def load_hub_file(path: Path) -> DinoVisionTransformer:
    """The backbone of a file that `export_hub` wrote, built as its sidecar says, weights loaded with strict names, in eval mode.

    Raises `UserError` where the sidecar is missing, or the weights are not the bytes that were exported.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"'{path.name}' does not exist. Give a file that `vetdino export RUN --to hub` wrote.")
    sidecar = read_sidecar(path)
    if file_sha256(path) != sidecar["weights_sha256"]:
        raise UserError(
            f"'{path.name}' is not the file that was exported: its SHA-256 differs from the one in "
            f"'{sidecar_path(path).name}'. It was changed or damaged on its way: copy it again, or export again."
        )
    model = architecture_from(sidecar["architecture"]).build()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return model


def architecture_from(section: Mapping) -> Architecture:
    """The `architecture` section of a sidecar; raises `UserError` where a field is missing or unknown."""
    known = {f.name for f in fields(Architecture)}
    if set(section) != known:
        raise UserError(
            f"The sidecar's architecture has the fields {', '.join(sorted(section))}; needed are {', '.join(sorted(known))}. "
            "Export again."
        )
    return Architecture(**section)


def fixed_images(img_size: int, *, n_images: int = N_IMAGES) -> Tensor:
    """[B, 3, S, S] standard normal, as a normalised image is about; the same on every call."""
    return torch.randn(n_images, 3, img_size, img_size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def tokens_of(backbone: DinoVisionTransformer, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Normed (class tokens [B, D], patch tokens [B, N, D]) of images [B, 3, S, S]."""
    out = backbone.forward_features(images)
    return out["x_norm_clstoken"].numpy(), out["x_norm_patchtokens"].numpy()


def tokens_in_fresh_process(path: Path, images: Mapping[int, Tensor]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """`tokens_of` an exported file, loaded and run by a new Python process; images and results by image size.

    Raises `ParityError` where that process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        arrays: dict[str, Any] = {str(size): batch.numpy() for size, batch in images.items()}
        np.savez(inputs, **arrays)
        command = [sys.executable, "-m", "vet_extensions.export.parity", str(path.resolve())]
        done = subprocess.run(
            [*command, "--inputs", str(inputs), "--outputs", str(outputs)],
            cwd=Path(vet_extensions.__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ParityError(f"'{path.name}' could not be loaded and run in a fresh process: {last}")
        with np.load(outputs) as stored:
            return {size: (stored[f"{size}.cls"], stored[f"{size}.patch"]) for size in images}


def check_parity(
    source: DinoVisionTransformer,
    path: Path,
    *,
    img_size: int,
    other_size: int | None = None,
    fresh_process: bool = True,
) -> ParityReport:
    """Compare class token and all patch tokens of an exported file with its source, on fixed images of img_size pixels.

    source: the teacher's backbone in evaluation mode. other_size: a second image size to report on, without a test.
    fresh_process: load the file in a new process (seconds), rather than in this one.
    """
    images = {img_size: fixed_images(img_size)}
    if other_size is not None:  # one image says enough of what is not tested, and large ones take seconds
        images[other_size] = fixed_images(other_size, n_images=1)
    if fresh_process:
        exported = tokens_in_fresh_process(path, images)
    else:
        reloaded = load_hub_file(path)
        exported = {size: tokens_of(reloaded, batch) for size, batch in images.items()}
    found = {size: _difference(size, tokens_of(source, batch), exported[size]) for size, batch in images.items()}
    tested = found[img_size]
    return ParityReport(
        **asdict(tested),
        n_images=N_IMAGES,
        passed=tested.max_abs_cls <= THRESHOLD and tested.max_abs_patch <= THRESHOLD,  # NaN fails
        other_size=found[other_size] if other_size is not None else None,
    )


def verify_export(
    source: DinoVisionTransformer, path: Path, *, final: Path, sizes: tuple[int, int], fresh_process: bool = True
) -> ParityReport:
    """`check_parity` of a file that still has a provisional name; what fails becomes `<final name>.failed`, its sidecar too.

    sizes: image sizes of the source's position grid and of the file's. Tested is the smaller, which is the training size unless
    the grid was made smaller; the other is reported. Raises `ParityError` for a file that differs.
    """
    tested, other = min(sizes), max(sizes)
    try:
        report = check_parity(
            source, path, img_size=tested, other_size=None if other == tested else other, fresh_process=fresh_process
        )
        if not report.passed:
            raise ParityError(f"The exported file does not compute what the teacher does. {report}")
    except Exception:
        for part in (path, sidecar_path(path)):
            part.replace(final.with_name(f"{final.stem}{part.suffix}.failed"))
        raise
    return report


def _difference(
    img_size: int, source: tuple[np.ndarray, np.ndarray], exported: tuple[np.ndarray, np.ndarray]
) -> Difference:
    cls, patch = (float(np.abs(ours - theirs).max()) for ours, theirs in zip(source, exported, strict=True))
    return Difference(img_size=img_size, max_abs_cls=cls, max_abs_patch=patch)


def main() -> None:
    """Load FILE and write the tokens of the images in IN.npz (by image size) to OUT.npz."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--outputs", type=Path, required=True)
    args = parser.parse_args()
    backbone = load_hub_file(args.file)
    tokens: dict[str, Any] = {}
    with np.load(args.inputs) as inputs:
        for size in inputs.files:
            tokens[f"{size}.cls"], tokens[f"{size}.patch"] = tokens_of(backbone, torch.from_numpy(inputs[size]))
    np.savez(args.outputs, **tokens)


if __name__ == "__main__":
    main()
