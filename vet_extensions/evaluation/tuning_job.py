"""One training as asked for: model, images, method and settings, and the hash that names its files. `finetune` carries it out."""

from dataclasses import asdict, dataclass

import torch

from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.features import short_hash
from vet_extensions.evaluation.tuning_config import BASE_LEARNING_RATES, TuningConfig

TUNING_VERSION = 1
"""Raised when the same request would give other numbers than before."""


@dataclass(frozen=True)
class Job:
    """One training."""

    backbone: Backbone
    images: LabelledImages
    method: str
    factor: float
    config: TuningConfig
    image_size_px: int
    tokens: str
    device: torch.device

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """What autocast computes in; None for float32."""
        precision = self.config.precision
        if precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            precision = "bf16"
        return torch.bfloat16 if precision == "bf16" else None

    @property
    def learning_rate(self) -> float:
        """Peak rate of what the method trains in the backbone."""
        return self.factor * BASE_LEARNING_RATES[self.method]

    @property
    def key(self) -> str:
        """A hash of everything that decides the scores."""
        decides = {
            "version": TUNING_VERSION,
            "config": asdict(self.config) | {"learning_rate_factors": self.factor},
            "images": [self.images.name, self.images.content_hash],
            "backbone": [self.backbone.weights_hash, self.backbone.mean, self.backbone.std],
            **{name: getattr(self, name) for name in ("method", "image_size_px", "tokens")},
            "computed": [self.device.type, str(self.amp_dtype)],
        }
        return short_hash(decides)
