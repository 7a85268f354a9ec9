"""Who supervises whom across two views of a study.

Image A is the teacher's view, image B the other one (source 0 and 1 of the core's crop slots). Which image of the study
becomes A is `teacher_view`, which the paired augmentation reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov2.loss.routing import CropLayout, CropSlots, LossRouting, routing_table, self_comparison
from dinov2.utils.errors import UserError
from dinov2.utils.registry import checked_options

_KEYS = ("teacher_view", "teacher_globals", "student_globals", "student_locals", "cross_view_weight")


class VetDino:
    """The teacher sees global crops of A only; the student sees global and local crops of A and of B.

    Every student crop is compared with every teacher crop but itself; cells across views weigh `cross_view_weight` times
    those within A, and the weights of a sample sum to 1. A study with one usable image has no cells across views: for it the
    routing is that of one image.
    Source: the summary of VET-DINO (arXiv 2505.15248); the paper's own counts and weights are not public, so each is a key.
    """

    def __init__(self, config: Mapping[str, Any], n_local: int) -> None:
        """config: the `routing` section, with these keys.

        teacher_globals: how many crops of A the teacher sees (2). student_globals: how many of A and of B the student sees
        ([1, 1]). student_locals: the same for local crops (half and half by default; must sum to crops.local_crops_number).
        cross_view_weight: weight of a cell across views, relative to one within A (1.0). teacher_view: see the augmentation.
        """
        options = checked_options(config, _KEYS, where="loss routing")
        self.cross_view_weight = float(options.get("cross_view_weight", 1.0))
        n_teacher = int(options.get("teacher_globals", 2))
        globals_a, globals_b = _pair_of_counts(options.get("student_globals", (1, 1)), "routing.student_globals")
        default_locals = (n_local - n_local // 2, n_local // 2)
        locals_a, locals_b = _pair_of_counts(options.get("student_locals", default_locals), "routing.student_locals")
        if locals_a + locals_b != n_local:
            raise UserError(
                f"routing.student_locals [{locals_a}, {locals_b}] sums to {locals_a + locals_b}, but crops.local_crops_number is "
                f"{n_local}. Make them agree."
            )
        if self.cross_view_weight < 0:
            raise UserError(f"routing.cross_view_weight is {self.cross_view_weight}; it must be 0 or more.")
        self.layout = CropLayout(
            student_globals=(0,) * globals_a + (1,) * globals_b,
            student_locals=(0,) * locals_a + (1,) * locals_b,
            teacher_globals=(0,) * n_teacher,
            n_shared=min(n_teacher, globals_a),
        )

    def __call__(self, slots: CropSlots) -> LossRouting:
        cells = self._relative_weights(slots.student_globals, slots.teacher_globals)
        return LossRouting.normalised(
            dino_global=cells * (1 - self_comparison(slots, cells)),
            dino_local=self._relative_weights(slots.student_locals, slots.teacher_globals),
        )

    def _relative_weights(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[S, B], [T, B] sources -> [S, T, B]: 1 within an image, cross_view_weight across images."""
        crosses = student[:, None] != teacher[None, :]
        ones = torch.ones(crosses.shape, dtype=torch.float32, device=student.device)
        return torch.where(crosses, self.cross_view_weight * ones, ones)

    def describe(self) -> str:
        return (
            "vet_dino: the teacher sees image A, the student images A and B of a study "
            f"(cells across views weigh {self.cross_view_weight:g} times those within A)\n{routing_table(self)}"
        )


def _pair_of_counts(value: Any, key: str) -> tuple[int, int]:
    counts = list(value) if not isinstance(value, (str, int, float)) else []
    if len(counts) != 2 or any(not isinstance(c, int) or c < 0 for c in counts):
        raise UserError(
            f"{key} is {value!r}; it takes two counts, of crops from image A and from image B, such as [1, 1]."
        )
    return counts[0], counts[1]
