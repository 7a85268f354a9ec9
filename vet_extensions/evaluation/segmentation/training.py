"""Training of one decoder, with its learning rate and its length chosen on the validation split; `run` calls `fit`.

The order of cases and the places of windows follow from (seed, epoch) alone, and the state is kept after every look at the
validation cases, so that an interrupted fit goes on as if it had not been. Where the backbone is frozen and a window is
the whole image, its features are computed once and kept in half precision: an epoch is then an epoch of the decoder.

Shape legend: B windows, D feature width, C classes, S = image_size_px, h and w patches.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vet_extensions.errors import UserError
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.features import network_input, prepare_image, short_hash
from vet_extensions.evaluation.segmentation.decoders import DECODERS
from vet_extensions.evaluation.segmentation.dense import Segmenter, prepare_mask, restore, slide
from vet_extensions.evaluation.segmentation.losses import LOSSES, Loss, build_loss
from vet_extensions.evaluation.segmentation.scores import mean_case_dice, score_case, stack_scores
from vet_extensions.evaluation.segmentation.sets import SegmentationSet
from vet_extensions.evaluation.suite_config import BootstrapConfig
from vet_extensions.evaluation.whole_files import whole_file
from vet_extensions.schema import Split

_GIB = 2**30


@dataclass(frozen=True)
class SegmentationConfig:
    """What to train and how to judge it.

    image_size_px: longer side of a prepared image; None: what the backbone was trained with. window_px: side of what the network
    sees at once; None: the whole image. is_tuned: train the backbone too, at `backbone_rate` times the decoder's learning rate.
    learning_rates and the epoch (of every `epochs_per_look`) are chosen by mean case-wise Dice on the validation split.
    tolerance_mm: of the surface Dice. keep_gib: frozen features and their targets up to this size are kept in memory, larger ones
    computed anew.
    """

    image_size_px: int | None = None
    window_px: int | None = None
    decoders: tuple[str, ...] = ("linear",)
    loss: str = "dice_ce"
    is_tuned: bool = False
    learning_rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    backbone_rate: float = 0.01
    weight_decay: float = 1e-4
    epochs: int = 40
    epochs_per_look: int = 5
    batch_size: int = 16
    seed: int = 0
    tolerance_mm: float = 3.0
    keep_gib: float = 4.0
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)

    def __post_init__(self) -> None:
        unknown = [name for name in self.decoders if name not in DECODERS]
        if unknown or not self.decoders:
            got = f"Unknown decoder '{unknown[0]}'." if unknown else "No decoder was named."
            raise UserError(f"{got} Allowed: {', '.join(DECODERS)}.")
        if self.loss not in LOSSES:
            raise UserError(f"Unknown loss '{self.loss}'. Allowed: {', '.join(LOSSES)}.")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UserError("learning_rates must be one or more numbers above 0.")
        for name in ("epochs", "epochs_per_look", "batch_size", "tolerance_mm"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0.")

    def deciding_a_fit(self) -> dict[str, Any]:
        """The values that a trained decoder follows from, for its key."""
        without = ("decoders", "learning_rates", "tolerance_mm", "keep_gib", "bootstrap")
        return {name: value for name, value in asdict(self).items() if name not in without}


@dataclass(frozen=True)
class Fitted:
    """A trained segmenter with what was chosen for it on the validation split."""

    segmenter: Segmenter
    learning_rate: float
    epoch: int
    val_dice: float


OnEpoch = Callable[[], object]
"""Called after every epoch, also for those that an earlier call has done."""


def fit(
    backbone: Backbone,
    data: SegmentationSet,
    config: SegmentationConfig,
    *,
    decoder: str,
    folder: Path,
    device: str | torch.device = "cpu",
    on_epoch: OnEpoch = lambda: None,
) -> Fitted:
    """Train `decoder` at each learning rate; the state with the best validation Dice of all of them.

    folder: where the states are kept; a finished fit is read back from there. Deterministic on a CPU.
    """
    size_px = config.image_size_px or backbone.image_size_px
    config = replace(config, image_size_px=size_px)
    check_sizes(backbone, config)
    if config.is_tuned:  # a network of its own, so that the caller's stays as it is
        original = backbone
        backbone = replace(original, build=lambda: copy.deepcopy(original.model))
    segmenter = Segmenter(
        backbone, decoder, n_classes=len(data.class_names), seed=config.seed, is_tuned=config.is_tuned
    )
    segmenter.to(device)
    first = copy.deepcopy(trained_state(segmenter))
    splits = {split: _Cases(data, split, segmenter, config, device) for split in (Split.TRAIN, Split.VAL)}
    loss = build_loss(config.loss)
    best: dict[str, Any] = {}
    for rate in config.learning_rates:
        key = {"weights": backbone.weights_hash, "data": data.content_hash, "decoder": decoder, "rate": rate}
        path = folder / f"{short_hash({**key, **config.deciding_a_fit()})}.pt"
        load_trained_state(segmenter, first)
        found = _fit_at(segmenter, splits, config, loss=loss, rate=rate, path=path, on_epoch=on_epoch)
        if not best or found["val_dice"] > best["val_dice"]:
            best = {**found, "rate": rate}
    load_trained_state(segmenter, best["state"])
    return Fitted(segmenter.eval(), best["rate"], best["epoch"], best["val_dice"])


def check_sizes(backbone: Backbone, config: SegmentationConfig) -> None:
    """Raise `UserError` for sides that the patches do not tile, and for windows larger than the image."""
    size_px = config.image_size_px or backbone.image_size_px
    backbone.check_size(size_px)
    if config.window_px is not None:
        backbone.check_size(config.window_px)
        if config.window_px > size_px:
            raise UserError(
                f"window_px is {config.window_px}, more than image_size_px, {size_px}. Leave it out, or lower it."
            )


def predict(segmenter: Segmenter, pixels: np.ndarray, config: SegmentationConfig) -> NDArray[np.int64]:
    """Classes [H, W] of a stored grey image [H, W], at its own size."""
    backbone = segmenter.backbone
    size_px = config.image_size_px or backbone.image_size_px
    device = next(segmenter.decoder.parameters()).device
    images = network_input([prepare_image(pixels, size_px)], mean=backbone.mean, std=backbone.std).to(device)
    segmenter.eval()
    with torch.inference_mode():
        if config.window_px is None or config.window_px == size_px:
            logits = segmenter(images)
        else:
            logits = slide(segmenter, images, window_px=config.window_px)
    return restore(logits[0], pixels.shape)


def trained_state(segmenter: Segmenter) -> dict[str, dict[str, Tensor]]:
    """The weights that training changes."""
    parts = {"decoder": segmenter.decoder, **({"backbone": segmenter.network} if segmenter.is_tuned else {})}
    return {name: part.state_dict() for name, part in parts.items()}


def load_trained_state(segmenter: Segmenter, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `trained_state` gave."""
    segmenter.decoder.load_state_dict(state["decoder"])
    if segmenter.is_tuned:
        segmenter.network.load_state_dict(state["backbone"])


def _fit_at(
    segmenter: Segmenter,
    splits: dict[Split, "_Cases"],
    config: SegmentationConfig,
    *,
    loss: Loss,
    rate: float,
    path: Path,
    on_epoch: OnEpoch,
) -> dict[str, Any]:
    """Train at one learning rate from the newest kept state; the best look: state, epoch, val_dice."""
    groups: list[dict[str, Any]] = [{"params": list(segmenter.decoder.parameters()), "share": 1.0}]
    if segmenter.is_tuned:
        groups.append({"params": list(segmenter.network.parameters()), "share": config.backbone_rate})
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay)
    done, best = 0, {"val_dice": -1.0}
    if path.is_file():
        kept = torch.load(path, map_location="cpu", weights_only=True)
        done, best = kept["epoch"], kept["best"]
        load_trained_state(segmenter, kept["state"])
        optimizer.load_state_dict(kept["optimizer"])
    for _ in range(done):
        on_epoch()
    train = splits[Split.TRAIN]
    n_batches = math.ceil(len(train) / config.batch_size)
    for epoch in range(done, config.epochs):
        for place, (levels, target) in enumerate(train.batches(epoch)):
            progress = (epoch * n_batches + place) / (config.epochs * n_batches)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"] * 0.5 * (1 + math.cos(math.pi * progress))
            found = loss(segmenter.decode(levels, size_px=target.shape[-1]), target)
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
        if (epoch + 1) % config.epochs_per_look == 0 or epoch + 1 == config.epochs:
            val_dice = splits[Split.VAL].mean_dice()
            if val_dice > best["val_dice"]:
                best = {"val_dice": val_dice, "epoch": epoch + 1, "state": copy.deepcopy(trained_state(segmenter))}
            _keep(path, epoch=epoch + 1, best=best, state=trained_state(segmenter), optimizer=optimizer.state_dict())
        on_epoch()
    if "state" not in best:
        raise UserError(
            f"No validation Dice could be measured at learning rate {rate:g}: the training diverged, or no validation case "
            "holds a class. Lower the learning rates, or check the masks of split val."
        )
    return best


def _keep(path: Path, **content: Any) -> None:
    with whole_file(path) as partial:
        torch.save(content, partial)


class _Cases:
    """The cases of one split as training sees them: batches of features or images with targets, and predictions."""

    def __init__(
        self,
        data: SegmentationSet,
        split: Split,
        segmenter: Segmenter,
        config: SegmentationConfig,
        device: str | torch.device,
    ) -> None:
        self.data, self.segmenter, self.config, self.device = data, segmenter, config, device
        self.rows = data.rows(split)
        assert config.image_size_px is not None, "fit has settled the size"
        self.size_px = config.image_size_px
        self.window_px = config.window_px or self.size_px
        self.kept: list[Tensor] | None = None
        """For each distinct block, [n, D, h, w] fp16, if they are kept."""
        self.targets: list[NDArray[np.uint8]] = []
        self.shapes: list[tuple[int, ...]] = []
        """Of each case, where features are kept: an epoch then reads no file, which for a slice would be a whole volume."""
        if not config.is_tuned and self.window_px == self.size_px and self._n_bytes() <= config.keep_gib * _GIB:
            self.kept = self._compute_all()

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, epoch: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Levels [B, D, h, w] and targets [B, window, window] of an epoch, in an order that the seed and the epoch decide."""
        generator = np.random.default_rng([self.config.seed, epoch])
        order = generator.permutation(len(self))
        self.segmenter.train()
        for start in range(0, len(order), self.config.batch_size):
            places = order[start : start + self.config.batch_size]
            corners = generator.integers(0, self.size_px - self.window_px + 1, size=(len(places), 2))
            windows = [
                (slice(top, top + self.window_px), slice(left, left + self.window_px)) for top, left in corners.tolist()
            ]
            targets = [self._target(place)[window] for place, window in zip(places, windows, strict=True)]
            if self.kept is not None:
                levels = [level[places].to(self.device).float() for level in self.kept]
            else:
                levels = self.segmenter.levels(self._images(places, windows))
            yield levels, torch.from_numpy(np.stack(targets)).long().to(self.device)

    def mean_dice(self) -> float:
        """Mean case-wise Dice of the present state, at the images' own size."""
        self.segmenter.eval()
        scores = []
        for place, row in enumerate(self.rows.tolist()):
            if self.kept is None:
                found = predict(self.segmenter, self.data.read(row), self.config)
            else:
                with torch.inference_mode():
                    levels = [level[place : place + 1].to(self.device).float() for level in self.kept]
                    found = restore(self.segmenter.decode(levels, size_px=self.size_px)[0], self.shapes[place])
            truth = self.data.checked_mask(row, shape=found.shape)
            n_classes, mm = len(self.data.class_names), self.config.tolerance_mm
            scores.append(score_case(found, truth, n_classes=n_classes, spacing_mm=None, tolerance_mm=mm))
        return mean_case_dice(stack_scores(scores))

    def _target(self, place: int) -> NDArray[np.uint8]:
        if self.targets:
            return self.targets[place]
        row = int(self.rows[place])
        return prepare_mask(self.data.checked_mask(row, shape=self.data.read(row).shape), self.size_px)

    def _images(self, places: NDArray[np.integer], windows: list[tuple[slice, slice]]) -> Tensor:
        prepared = [
            prepare_image(self.data.read(int(self.rows[place])), self.size_px)[window]
            for place, window in zip(places, windows, strict=True)
        ]
        backbone = self.segmenter.backbone
        return network_input(prepared, mean=backbone.mean, std=backbone.std).to(self.device)

    def _n_bytes(self) -> int:
        backbone = self.segmenter.backbone
        side = self.size_px // (backbone.patch_size or 1)
        of_features = 2 * len(self.segmenter.blocks) * side * side * backbone.embed_dim
        return len(self) * (of_features + self.size_px**2)

    def _compute_all(self) -> list[Tensor]:
        backbone, parts = self.segmenter.backbone, []
        for start in range(0, len(self), self.config.batch_size):
            images = []
            for row in self.rows[start : start + self.config.batch_size].tolist():
                pixels = self.data.read(row)
                images.append(prepare_image(pixels, self.size_px))
                self.shapes.append(pixels.shape)
                self.targets.append(prepare_mask(self.data.checked_mask(row, shape=pixels.shape), self.size_px))
            with torch.no_grad():  # not inference_mode: the decoder is trained on what comes out
                levels = self.segmenter.levels(
                    network_input(images, mean=backbone.mean, std=backbone.std).to(self.device)
                )
            parts.append([level.half().cpu() for level in levels])
        return [torch.cat(level) for level in zip(*parts, strict=True)]
