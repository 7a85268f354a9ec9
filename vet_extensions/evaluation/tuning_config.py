"""What can be asked of a tuned backbone: the names of the methods and their settings. The suite's configuration holds it.

Nothing here loads a model or an optional package, so that a suite can be checked before anything is computed.
"""

from dataclasses import dataclass

from vet_extensions.errors import UserError

FINETUNE, LORA, DORA, BITFIT = "finetune", "lora", "dora", "bitfit"
IA3, VPT, LAST_K, NORM = "ia3", "vpt", "last_k", "norm"

BASE_LEARNING_RATES = {
    FINETUNE: 1e-4,
    LORA: 5e-4,
    DORA: 5e-4,
    BITFIT: 1e-3,
    IA3: 5e-3,
    VPT: 5e-3,
    LAST_K: 1e-4,
    NORM: 1e-3,
}
"""Peak of AdamW's rate for what each method trains inside the backbone: the fewer numbers it moves, the further they may go."""

TUNED_PROTOCOLS = tuple(BASE_LEARNING_RATES)
TUNED_LEVELS = ("image", "study_mean", "study_max")
"""Levels on which tuned backbones are judged: one training on all images, whose scores may be pooled by study."""

TARGETS = (
    *("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj"),
    *("fc1", "fc2", "w12", "w3", "up_proj", "down_proj"),
)
"""What attention's projections and the layers of feed-forward branches are called here, in timm and in transformers."""

AUGMENTATIONS = ("radiograph", "none")
PRECISIONS = ("auto", "fp32", "bf16")
PROMPTS = ("deep", "shallow")


@dataclass(frozen=True)
class TuningConfig:
    """How a backbone is tuned, for all methods alike.

    learning_rate_factors: times the method's rate in `BASE_LEARNING_RATES`; of several, the best on the validation split
    counts. layer_decay: factor of the rate from a block to the one below it, for `finetune`. warmup_share: of all steps.
    augmentation: "radiograph" crops, turns and exposes training images a little, and never mirrors them. image_size_px: None
    for the suite's. precision: "auto" is bf16 where a CUDA device has it, else fp32.
    rank, alpha, dropout: of `lora` and `dora`. targets: the linear layers that these and `ia3` adapt, by the end of their
    names; those that a backbone lacks are passed over. n_prompts, prompts: of `vpt`. last_blocks: of `last_k`.
    """

    learning_rate_factors: tuple[float, ...] = (1.0,)
    head_learning_rate: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    epochs: int = 20
    batch_size: int = 32
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    augmentation: str = "radiograph"
    image_size_px: int | None = None
    precision: str = "auto"
    seed: int = 0
    rank: int = 48
    alpha: float = 16.0
    dropout: float = 0.1
    targets: tuple[str, ...] = TARGETS
    n_prompts: int = 10
    prompts: str = "deep"
    last_blocks: int = 2

    def __post_init__(self) -> None:
        wrong = [f"{name} is {getattr(self, name)}; it must be {rule}" for name, rule in self._broken_rules()]
        if wrong:
            raise UserError(f"The tuning cannot be done as asked: {'; '.join(wrong)}.")

    def _broken_rules(self) -> list[tuple[str, str]]:
        """(key, what is allowed) of every value that is not allowed."""
        rates = ("head_learning_rate", "clip_norm", "alpha")
        counts = ("epochs", "batch_size", "rank", "n_prompts", "last_blocks")
        rules = {
            "learning_rate_factors": (min(self.learning_rate_factors, default=0) > 0, "numbers above 0"),
            **{name: (getattr(self, name) > 0, "above 0") for name in rates},
            **{name: (getattr(self, name) >= 1, "a whole number from 1 up") for name in counts},
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "warmup_share": (0 <= self.warmup_share < 1, "from 0 to below 1"),
            "dropout": (0 <= self.dropout < 1, "from 0 to below 1"),
            "seed": (self.seed >= 0, "0 or more"),
            "targets": (len(self.targets) > 0, "ends of layer names"),
            "augmentation": (self.augmentation in AUGMENTATIONS, " or ".join(AUGMENTATIONS)),
            "precision": (self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            "prompts": (self.prompts in PROMPTS, " or ".join(PROMPTS)),
        }
        return [(name, rule) for name, (is_kept, rule) in rules.items() if not is_kept]
