"""Loss routing: which teacher crop supervises which student crop, and with what weight. The third seam.

A `LossRouter` owns a `CropLayout` (how many crops of each kind there are and which source image each is cut from), which the
augmentation follows, and turns the sources of a concrete batch into a `LossRouting`, which `SSLMetaArch` applies as it is.

Shape legend: S student global crops, L student local crops, T teacher global crops, B samples of the batch.
"Source" is the index of the image within its sample that a crop was cut from: always 0 in official training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dinov2.utils.errors import UserError
from dinov2.utils.registry import Registry, checked_options


@dataclass(frozen=True)
class CropLayout:
    """The crop slots of one sample, and the source image each slot is cut from.

    The first `n_shared` student global slots hold the very pixels of the first `n_shared` teacher slots: only there are iBOT
    and its masks defined, and only there is a (student, teacher) cell the trivial comparison of a crop with itself.
    """

    student_globals: tuple[int, ...]
    student_locals: tuple[int, ...]
    teacher_globals: tuple[int, ...]
    n_shared: int

    def __post_init__(self) -> None:
        shared_student = self.student_globals[: self.n_shared]
        shared_teacher = self.teacher_globals[: self.n_shared]
        if self.n_shared < 0 or len(shared_student) < self.n_shared or shared_student != shared_teacher:
            raise UserError(
                f"The first n_shared={self.n_shared} student global slots must be cut from the same images as the first "
                f"teacher slots; got student {self.student_globals}, teacher {self.teacher_globals}."
            )
        if not self.student_globals or not self.teacher_globals:
            raise UserError("A crop layout needs at least one student global crop and one teacher crop.")

    @property
    def n_sources(self) -> int:
        """How many images of a sample the layout looks at."""
        return 1 + max(self.student_globals + self.student_locals + self.teacher_globals)

    @property
    def teacher_is_student(self) -> bool:
        """True when the teacher sees exactly the student's global crops, as in official DINOv2."""
        return self.n_shared == len(self.student_globals) == len(self.teacher_globals)


@dataclass(frozen=True)
class CropSlots:
    """The source of every crop of a batch: `student_globals` [S, B], `student_locals` [L, B], `teacher_globals` [T, B], int64.

    A sample with fewer images than the layout asks for repeats an image, and its slots then carry that image's source.
    """

    student_globals: Tensor
    student_locals: Tensor
    teacher_globals: Tensor
    n_shared: int

    @classmethod
    def of_layout(cls, layout: CropLayout, batch_size: int, device: torch.device | str = "cpu") -> "CropSlots":
        """The slots of a batch in which every sample has all the images that the layout asks for."""

        def expand(sources: tuple[int, ...]) -> Tensor:
            # Filled on the device: a copy from the host would wait for all that is queued there.
            rows = [torch.full((1, batch_size), source, dtype=torch.int64, device=device) for source in sources]
            return torch.cat(rows) if rows else torch.empty(0, batch_size, dtype=torch.int64, device=device)

        return cls(
            student_globals=expand(layout.student_globals),
            student_locals=expand(layout.student_locals),
            teacher_globals=expand(layout.teacher_globals),
            n_shared=layout.n_shared,
        )


@dataclass(frozen=True)
class LossRouting:
    """Final weights of the DINO loss cells; the core never rescales them.

    dino_global: [S, T, B], dino_local: [L, T, B], float32. The loss is sum over cells of the mean over the batch of
    weight * cross-entropy.
    """

    dino_global: Tensor
    dino_local: Tensor

    @classmethod
    def normalised(cls, dino_global: Tensor, dino_local: Tensor) -> "LossRouting":
        """Scale relative cell weights so that they sum to 1 for every sample; a sample without any cell keeps 0."""
        total = dino_global.sum((0, 1)) + dino_local.sum((0, 1))
        scale = torch.where(total > 0, 1.0 / total.clamp_min(1e-12), torch.zeros_like(total))
        return cls(dino_global=dino_global * scale, dino_local=dino_local * scale)


class LossRouter(Protocol):
    """What `routing.name` selects: built once from the configuration, called once a step."""

    layout: CropLayout

    def __call__(self, slots: CropSlots) -> LossRouting:
        """The weights for the batch whose crops have these sources, on the slots' device."""
        ...

    def describe(self) -> str:
        """The routing in words and as a table, for the log at the start of a run; `routing_table` makes the table."""
        ...


RouterFactory = Callable[[Mapping[str, Any], int], LossRouter]
"""(the configuration's `routing` section, the number of local crops) -> router."""

ROUTERS: Registry[RouterFactory] = Registry("loss routing")


def self_comparison(slots: CropSlots, like: Tensor) -> Tensor:
    """[S, T, 1] mask, 1 where student and teacher crop are the same pixels (those cells teach nothing)."""
    n_student, n_teacher = slots.student_globals.shape[0], slots.teacher_globals.shape[0]
    same = torch.zeros(n_student, n_teacher, 1, dtype=like.dtype, device=like.device)
    shared = torch.arange(slots.n_shared, device=like.device)
    same[shared, shared] = 1
    return same


@ROUTERS.register("same_image")
class SameImage:
    """Official DINOv2: two global crops seen by both networks, each the target of the other, and of every local crop.

    With n local crops all 2 + 2n cells weigh 1 / (2 + 2n); without local crops the two cells weigh 1/3 each, as official.
    Source: the official train loop; DINOv2 (arXiv 2304.07193).
    """

    def __init__(self, config: Mapping[str, Any], n_local: int) -> None:
        """config: the `routing` section, which has no key besides `name` here."""
        checked_options(config, (), where="loss routing")
        self.layout = CropLayout(
            student_globals=(0, 0), student_locals=(0,) * n_local, teacher_globals=(0, 0), n_shared=2
        )
        self._weight = 1.0 / (2 + max(2 * n_local, 1))

    def describe(self) -> str:
        return f"same_image: official DINOv2, all crops of a sample come from one image\n{routing_table(self)}"

    def __call__(self, slots: CropSlots) -> LossRouting:
        n_local, batch = slots.student_locals.shape
        n_teacher = slots.teacher_globals.shape[0]
        ones = torch.ones(slots.student_globals.shape[0], n_teacher, batch, device=slots.student_globals.device)
        return LossRouting(
            dino_global=self._weight * (ones - self_comparison(slots, ones)),
            dino_local=torch.full((n_local, n_teacher, batch), self._weight, device=ones.device),
        )


def routing_table(router: LossRouter) -> str:
    """A table of the cell weights of a full sample: one row a student crop, one column a teacher crop; then what it costs."""
    layout = router.layout
    routing = router(CropSlots.of_layout(layout, 1))
    images = "ABCDEFGH"
    names = [f"student global {i} (image {images[v]})" for i, v in enumerate(layout.student_globals)]
    names += [f"student local {i} (image {images[v]})" for i, v in enumerate(layout.student_locals)]
    weights = torch.cat([routing.dino_global, routing.dino_local])[:, :, 0].tolist()
    columns = [f"teacher {i} (image {images[v]})" for i, v in enumerate(layout.teacher_globals)]
    lines = [" " * 30 + "".join(f"{c:>20}" for c in columns)]
    for name, row in zip(names, weights):
        lines.append(f"{name:<30}" + "".join(f"{w:>20.4f}" if w else f"{'-':>20}" for w in row))
    lines.append(
        f"crops a sample: student {len(layout.student_globals)} global + {len(layout.student_locals)} local, "
        f"teacher {len(layout.teacher_globals)} global, of which {layout.n_shared} shared with the student (iBOT)"
    )
    return "\n".join(lines)


def build_router(config: Mapping[str, Any], n_local: int) -> LossRouter:
    """The router that `routing.name` names; raises `UserError` for an unknown name."""
    return ROUTERS.get(config["name"])(config, n_local)
