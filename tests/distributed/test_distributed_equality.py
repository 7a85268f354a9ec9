"""Two gloo processes give the losses, gradients and centres of one process on the joined batch: DDP and FSDP2, every centring
mode, both routings. What the official code defines per process stays so by default, and is tested as that."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dinov2 import distributed
from dinov2.configs import dinov2_default_config
from dinov2.fsdp import ShardedGradScaler, full_tensor, local_tensor
from dinov2.loss.routing import CropLayout
from dinov2.train.ssl_meta_arch import SSLMetaArch
from dinov2.utils.plugins import load_plugins

pytestmark = pytest.mark.slow

N_PROCESSES, N_SAMPLES, N_STEPS = 2, 3, 2
SMALL = {
    "plugins": ["vet_extensions"],
    "compute_precision": {"grad_scaler": False},
    "dino": {"head_n_prototypes": 16, "head_bottleneck_dim": 8, "head_hidden_dim": 16},
    "student": {"arch": "vit_micro", "patch_size": 8, "drop_path_rate": 0.0, "layerscale": 1.0},
    "crops": {"global_crops_size": 16, "local_crops_size": 8, "local_crops_number": 2},
}
JOINED = {"dino": {"koleo_over_all_processes": True}, "ibot": {"center_over_all_patches": True}}
SINKHORN = {"train": {"centering": "sinkhorn_knopp"}}
PER_GROUP = {**SINKHORN, "dino": {"centering_per_group": True, "head_teacher_norm": "batch_per_group"}}


@dataclass(frozen=True)
class Case:
    """One model and how it is spread. n_accumulated: the batch of a process is cut into so many."""

    strategy: str
    routing: str
    options: list[dict[str, Any]] = field(default_factory=list)
    separate_head: bool = True
    n_accumulated: int = 1

    def config(self) -> Any:
        parts = {"sharding_strategy": self.strategy, "mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32"}}
        precision = {
            who: dict.fromkeys(("backbone", "dino_head", "ibot_head"), parts) for who in ("student", "teacher")
        }
        changes = {"compute_precision": precision, "routing": {"name": self.routing}}
        ibot = {"ibot": {"separate_head": self.separate_head, "head_n_prototypes": 16, "head_bottleneck_dim": 8}}
        return OmegaConf.merge(dinov2_default_config, SMALL, changes, ibot, *self.options)


CASES = {
    f"{strategy} {routing} {name}": Case(strategy, routing, [JOINED, options])
    for strategy in ("NO_SHARD", "FULL_SHARD")
    for routing in ("same_image", "vet_dino")
    for name, options in (("centering", {}), ("sinkhorn", SINKHORN), ("sinkhorn per group", PER_GROUP))
} | {
    "SHARD_GRAD_OP": Case("SHARD_GRAD_OP", "vet_dino", [JOINED]),
    "NO_SHARD shared head": Case("NO_SHARD", "same_image", [JOINED], separate_head=False),
    "FULL_SHARD shared head": Case("FULL_SHARD", "vet_dino", [JOINED], separate_head=False),
    "NO_SHARD chunked blocks": Case("NO_SHARD", "same_image", [JOINED, {"student": {"block_chunks": 2}}]),
    "FULL_SHARD chunked blocks": Case("FULL_SHARD", "same_image", [JOINED, {"student": {"block_chunks": 2}}]),
    "FULL_SHARD recomputed": Case("FULL_SHARD", "vet_dino", [JOINED, {"train": {"activation_checkpointing": True}}]),
    "NO_SHARD recomputed": Case("NO_SHARD", "vet_dino", [JOINED, {"train": {"activation_checkpointing": True}}]),
    "NO_SHARD only iBOT": Case("NO_SHARD", "same_image", [JOINED, {"dino": {"loss_weight": 0.0}}]),
}
PER_PROCESS = Case("NO_SHARD", "same_image")
ACCUMULATED = {
    strategy: Case(strategy, "vet_dino", [JOINED, {"dino": {"koleo_loss_weight": 0.0}}], n_accumulated=3)
    for strategy in ("NO_SHARD", "FULL_SHARD")
}


def process_batch(layout: CropLayout, rank: int, step: int) -> dict[str, Any]:
    """Random crops in the slots of a layout; the processes mask different numbers of patches, and the last sample of each has
    one image."""
    generator = torch.Generator().manual_seed(10 * step + rank)

    def crops(count: int, size: int) -> Tensor:
        return torch.rand(count, N_SAMPLES, 3, size, size, generator=generator)

    def sources(slots: tuple[int, ...]) -> Tensor:
        of_layout = torch.tensor(slots, dtype=torch.int64).unsqueeze(1).repeat(1, N_SAMPLES)
        of_layout[:, -1:] = 0
        return of_layout

    student = crops(len(layout.student_globals), 16)
    teacher = crops(len(layout.teacher_globals), 16)
    teacher[: layout.n_shared] = student[: layout.n_shared]
    masks = torch.zeros(len(layout.student_globals), N_SAMPLES, 4, dtype=torch.bool)
    masks[0, 0, : 1 + rank] = True
    masks[layout.n_shared - 1, 2, 2:] = True
    return {
        "collated_global_crops": student,
        "collated_local_crops": crops(len(layout.student_locals), 8),
        "collated_global_crops_teacher": teacher,
        "collated_masks": masks,
        "crop_sources_student_globals": sources(layout.student_globals),
        "crop_sources_student_locals": sources(layout.student_locals),
        "crop_sources_teacher_globals": sources(layout.teacher_globals),
        "teacher_groups": torch.arange(len(layout.teacher_globals)).unsqueeze(1).repeat(1, N_SAMPLES) % 2,
        "n_shared": layout.n_shared,
    }


def collated(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One crop-major batch of the samples of all parts."""
    batch: dict[str, Any] = {
        key: value if key == "n_shared" else torch.cat([part[key] for part in parts], dim=1)
        for key, value in parts[0].items()
    }
    for key in ("collated_global_crops", "collated_local_crops", "collated_global_crops_teacher", "collated_masks"):
        batch[key] = batch[key].flatten(0, 1)
    masks = batch["collated_masks"]
    weights = 1 / masks.sum(-1).clamp(min=1.0)
    batch |= {
        "mask_indices_list": masks.flatten().nonzero().flatten(),
        "masks_weight": weights.unsqueeze(-1).expand_as(masks)[masks],
        "n_masked_patches": masks.sum().reshape(1),
        "upperbound": int(masks.sum()),
    }
    return batch


def pieces(part: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """The samples of a part in n equal pieces."""
    size = N_SAMPLES // n
    return [
        {key: value if key == "n_shared" else value[:, i * size : (i + 1) * size] for key, value in part.items()}
        for i in range(n)
    ]


def steps_of(case: Case, ranks: list[int]) -> list[dict[str, Tensor]]:
    """Two passes on the samples of these ranks together: losses and gradients of each, centres after both."""
    config = case.config()
    load_plugins(config.plugins)
    torch.manual_seed(0)
    model = SSLMetaArch(config)
    model.train()
    model.prepare_for_distributed_training()
    results = []
    for step in range(N_STEPS):
        model.zero_grad(set_to_none=True)
        parts = [process_batch(model.router.layout, rank, step) for rank in ranks]
        batches = [
            collated(list(piece)) for piece in zip(*(pieces(part, case.n_accumulated) for part in parts), strict=True)
        ]
        losses: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            of_batch = model.forward_backward(
                batch, teacher_temp=0.07, n_accumulated=len(batches), is_last=number == len(batches)
            )
            for name, value in of_batch.items():
                losses[name] = losses.get(name, torch.zeros(())) + value / len(batches)
        result = {}
        for name, value in losses.items():
            distributed.all_reduce_sum(value)
            result[name] = value / distributed.get_global_size()
        for name, parameter in model.student.named_parameters():
            if parameter.grad is not None:
                result[f"gradient of {name}"] = full_tensor(parameter.grad).clone()
        results.append(result)
    model.state_dict()  # applies the pending move of the centres
    results[-1] |= {"dino centre": model.dino_loss.center, "ibot centre": model.ibot_patch_loss.center}
    return results


def overflow_in_one_process(rank: int) -> dict[str, Any]:
    """A scaled step of a sharded model, in which only process 1's part of a gradient overflows."""
    model = SSLMetaArch(Case("FULL_SHARD", "same_image").config())
    model.train()
    model.prepare_for_distributed_training()
    model.fp16_scaler = scaler = ShardedGradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=0.1)
    before = [local_tensor(p).clone() for p in model.student.parameters()]
    model.forward_backward(collated([process_batch(model.router.layout, rank, 0)]), teacher_temp=0.07)
    gradient = dict(model.student.named_parameters())["backbone.blocks.0.mlp.fc1.weight"].grad
    assert gradient is not None
    if rank == 1:
        local_tensor(gradient)[0, 0] = float("inf")
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    after = [local_tensor(p) for p in model.student.parameters()]
    return {"kept": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "scale": scaler.get_scale()}


def losses_in_bf16(strategy: str, rank: int) -> dict[str, Tensor]:
    bf16 = {"mixed_precision": {"param_dtype": "bf16"}}
    options = {who: dict.fromkeys(("backbone", "dino_head", "ibot_head"), bf16) for who in ("student", "teacher")}
    with patch("dinov2.train.precision.cpu_has_units_for", return_value=True):  # whatever this CPU has
        return steps_of(Case(strategy, "vet_dino", [JOINED, {"compute_precision": options}]), [rank])[0]


def worker(folder: str) -> None:
    torch.set_num_threads(1)
    with distributed.session():
        rank = distributed.get_global_rank()
        everything = {
            "equal": {name: steps_of(case, [rank]) for name, case in CASES.items()},
            "accumulated": {name: steps_of(case, [rank]) for name, case in ACCUMULATED.items()},
            "per process": steps_of(PER_PROCESS, [rank]),
            "bf16": {strategy: losses_in_bf16(strategy, rank) for strategy in ("NO_SHARD", "FULL_SHARD")},
            "overflow": overflow_in_one_process(rank),
        }
    torch.save(everything, Path(folder) / f"rank_{rank}.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes got, every case."""
    folder = tmp_path_factory.mktemp("two")
    # As torchrun --standalone does, which finds a port that stays free.
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=N_PROCESSES, rdzv_backend="c10d", rdzv_endpoint="localhost:0"
    )
    elastic_launch(launch, worker)(str(folder))
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(N_PROCESSES)]


def assert_same(one: list[dict[str, Tensor]], two: list[dict[str, Tensor]]) -> None:
    for step, (of_one, of_two_processes) in enumerate(zip(one, two, strict=True)):
        assert of_one.keys() == of_two_processes.keys()
        for name, value in of_one.items():
            difference = (value - of_two_processes[name]).norm()
            scale = max(float(value.norm()), 1e-4)
            assert difference <= 1e-5 * scale, f"step {step}, {name}: relative difference {difference / scale:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_losses_gradients_and_centres_of_one(name: str, of_two: list[dict[str, Any]]) -> None:
    one = steps_of(CASES[name], list(range(N_PROCESSES)))
    for results in of_two:
        assert_same(one, results["equal"][name])


@pytest.mark.parametrize("strategy", ACCUMULATED)
def test_accumulated_batches_of_two_processes_give_the_step_of_one_on_all(
    strategy: str, of_two: list[dict[str, Any]]
) -> None:
    case = ACCUMULATED[strategy]
    whole = Case(case.strategy, case.routing, case.options)
    for results in of_two:
        assert_same(steps_of(whole, list(range(N_PROCESSES))), results["accumulated"][strategy])


@pytest.mark.parametrize("strategy", ["NO_SHARD", "FULL_SHARD"])
def test_bf16_stays_near_the_losses_of_fp32(strategy: str, of_two: list[dict[str, Any]]) -> None:
    fp32 = of_two[0]["equal"][f"{strategy} vet_dino centering"][0]
    bf16 = of_two[0]["bf16"][strategy]
    for name in ("dino_global_crops_loss", "dino_local_crops_loss", "ibot_loss"):
        assert float(bf16[name]) == pytest.approx(float(fp32[name]), rel=2e-2)
        assert bf16[name] != fp32[name]


def test_a_gradient_that_overflows_in_one_process_makes_all_leave_the_step_out(of_two: list[dict[str, Any]]) -> None:
    assert [results["overflow"] for results in of_two] == [{"kept": True, "scale": 2.0}] * N_PROCESSES


def test_koleo_searches_neighbours_within_each_process_unless_asked(of_two: list[dict[str, Any]]) -> None:
    alone = [steps_of(PER_PROCESS, [rank])[0]["koleo_loss"] for rank in range(N_PROCESSES)]
    joined = steps_of(PER_PROCESS, list(range(N_PROCESSES)))[0]["koleo_loss"]
    got = of_two[0]["per process"][0]["koleo_loss"]
    torch.testing.assert_close(got, torch.stack(alone).mean())
    assert abs(got - joined) > 1e-3


def test_the_ibot_centre_is_the_mean_of_the_processes_means_unless_asked(of_two: list[dict[str, Any]]) -> None:
    def centre(ranks: list[int]) -> Tensor:
        return steps_of(PER_PROCESS, ranks)[-1]["ibot centre"]

    got = of_two[0]["per process"][-1]["ibot centre"]
    # The weights do not move here, so the centre is linear in the means of each process.
    torch.testing.assert_close(got, torch.stack([centre([rank]) for rank in range(N_PROCESSES)]).mean(0))
    assert (got - centre(list(range(N_PROCESSES)))).abs().max() > 1e-4
