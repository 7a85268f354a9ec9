"""Who supervises whom across two views of a study: the routings `vet_dino`, `cross_only` and `symmetric`.

Image A is the teacher's view, image B the other one (source 0 and 1 of the core's crop slots). Which image of the study
becomes A is `teacher_view`, which the paired augmentation reads; here it is only a known key. By default every routing costs what
`same_image` does: two global crops and all local ones through the student, two global crops through the teacher.

Shape legend: S student global crops, L student local crops, T teacher crops, B samples.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dinov2.loss.routing import CropLayout, CropSlots, LossRouter, LossRouting, routing_table, self_comparison
from dinov2.utils.errors import UserError
from dinov2.utils.registry import checked_options

_TEACHER_VIEW = "teacher_view"
_VET_DINO_KEYS = (_TEACHER_VIEW, "teacher_globals", "student_globals", "student_locals", "cross_view_weight")
_SYMMETRIC_KEYS = (_TEACHER_VIEW, "cross_view_weight")


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
        options = checked_options(config, _VET_DINO_KEYS, where="loss routing")
        self.cross_view_weight = _cross_view_weight(options)
        n_teacher = int(options.get("teacher_globals", 2))
        globals_a, globals_b = _pair_of_counts(options.get("student_globals", (1, 1)), "routing.student_globals")
        locals_a, locals_b = _pair_of_counts(options.get("student_locals", _halves(n_local)), "routing.student_locals")
        if locals_a + locals_b != n_local:
            raise UserError(
                f"routing.student_locals [{locals_a}, {locals_b}] sums to {locals_a + locals_b}, but crops.local_crops_number is "
                f"{n_local}. Make them agree."
            )
        self.layout = CropLayout(
            student_globals=(0,) * globals_a + (1,) * globals_b,
            student_locals=(0,) * locals_a + (1,) * locals_b,
            teacher_globals=(0,) * n_teacher,
            n_shared=min(n_teacher, globals_a),
        )
        _demand_cells(self)

    def __call__(self, slots: CropSlots) -> LossRouting:
        cells = _cells(slots.student_globals, slots.teacher_globals, across=self.cross_view_weight)
        return LossRouting.normalised(
            dino_global=cells * (1 - self_comparison(slots, cells)),
            dino_local=_cells(slots.student_locals, slots.teacher_globals, across=self.cross_view_weight),
        )

    def describe(self) -> str:
        return (
            "vet_dino: the teacher sees image A, the student images A and B of a study "
            f"(cells across views weigh {self.cross_view_weight:g} times those within A)\n{routing_table(self)}"
        )


class CrossOnly:
    """The teacher sees two global crops of A, the student two global crops and all local ones of B: only pairs across views.

    All cells weigh the same. Student and teacher share no pixels, so there is no iBOT: `ibot.loss_weight` must be 0. A study
    with one usable image has no pair across views: for it every student crop is compared with every teacher crop of that image.
    """

    def __init__(self, config: Mapping[str, Any], n_local: int) -> None:
        """config: the `routing` section. teacher_view: see the augmentation."""
        checked_options(config, (_TEACHER_VIEW,), where="loss routing")
        self.layout = CropLayout(
            student_globals=(1, 1), student_locals=(1,) * n_local, teacher_globals=(0, 0), n_shared=0
        )

    def __call__(self, slots: CropSlots) -> LossRouting:
        student_globals, student_locals = (
            _cells(student, slots.teacher_globals, within=0.0)
            for student in (slots.student_globals, slots.student_locals)
        )
        is_single = (slots.student_globals == slots.teacher_globals[0]).all(0).float()  # [B]
        return LossRouting.normalised(dino_global=student_globals + is_single, dino_local=student_locals + is_single)

    def describe(self) -> str:
        return (
            "cross_only: the teacher sees image A, the student image B of a study; no pairs within an image\n"
            f"{routing_table(self)}"
        )


class Symmetric:
    """Student and teacher both see one global crop of A and one of B, and each view teaches half of the loss.

    Every student crop is compared with every teacher crop but itself; cells across views weigh `cross_view_weight` times those
    within a view, and the weights under each teacher crop sum to 1/2. The local crops come half and half from A and B. iBOT is
    defined on both global crops. A study with one usable image has two global crops of it: `same_image`, to the weight.
    """

    def __init__(self, config: Mapping[str, Any], n_local: int) -> None:
        """config: the `routing` section, with these keys.

        cross_view_weight: weight of a cell across views, relative to one within a view (1.0). teacher_view: which image is
        called A, which here decides only whose the odd local crop is.
        """
        options = checked_options(config, _SYMMETRIC_KEYS, where="loss routing")
        self.cross_view_weight = _cross_view_weight(options)
        locals_a, locals_b = _halves(n_local)
        self.layout = CropLayout(
            student_globals=(0, 1),
            student_locals=(0,) * locals_a + (1,) * locals_b,
            teacher_globals=(0, 1),
            n_shared=2,
        )
        _demand_cells(self)

    def __call__(self, slots: CropSlots) -> LossRouting:
        cells = _cells(slots.student_globals, slots.teacher_globals, across=self.cross_view_weight)
        dino_global = cells * (1 - self_comparison(slots, cells))
        dino_local = _cells(slots.student_locals, slots.teacher_globals, across=self.cross_view_weight)
        per_teacher = LossRouting.normalised(  # teacher crops in the place of samples: each one's cells sum to 1
            dino_global=dino_global.flatten(1).unsqueeze(1), dino_local=dino_local.flatten(1).unsqueeze(1)
        )
        return LossRouting.normalised(
            dino_global=per_teacher.dino_global.view_as(dino_global),
            dino_local=per_teacher.dino_local.view_as(dino_local),
        )

    def describe(self) -> str:
        return (
            "symmetric: student and teacher see images A and B of a study, and each teaches half of the loss "
            f"(cells across views weigh {self.cross_view_weight:g} times those within)\n{routing_table(self)}"
        )


def _cells(student: Tensor, teacher: Tensor, *, within: float = 1.0, across: float = 1.0) -> Tensor:
    """[S, B], [T, B] sources -> [S, T, B] relative weights of the cells within an image and across images."""
    crosses = student[:, None] != teacher[None, :]
    ones = torch.ones(crosses.shape, dtype=torch.float32, device=student.device)
    return torch.where(crosses, across * ones, within * ones)


def _halves(n: int) -> tuple[int, int]:
    return n - n // 2, n // 2


def _cross_view_weight(options: Mapping[str, Any]) -> float:
    weight = float(options.get("cross_view_weight", 1.0))
    if weight < 0:
        raise UserError(f"routing.cross_view_weight is {weight}; it must be 0 or more.")
    return weight


def _demand_cells(router: LossRouter) -> None:
    """Without a single cell the DINO loss of a full study would be 0, which no log line would tell."""
    routing = router(CropSlots.of_layout(router.layout, 1))
    if not (routing.dino_global.any() or routing.dino_local.any()):
        raise UserError(
            "With these keys of the routing no student crop has a teacher crop to learn from. Give image A local crops or a "
            "second global crop, or set routing.cross_view_weight above 0."
        )


def _pair_of_counts(value: Any, key: str) -> tuple[int, int]:
    counts = list(value) if not isinstance(value, (str, int, float)) else []
    if len(counts) != 2 or any(not isinstance(c, int) or c < 0 for c in counts):
        raise UserError(
            f"{key} is {value!r}; it takes two counts, of crops from image A and from image B, such as [1, 1]."
        )
    return counts[0], counts[1]
