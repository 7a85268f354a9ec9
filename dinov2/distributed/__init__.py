"""What the rest of the code asks of the process group: ranks, sizes and collectives that do nothing in a single process.

`enable` makes the group from the launcher's variables (`launch`): gloo for tensors on the CPU, NCCL for those on CUDA devices.
A single process needs no group and gets none.
"""

import datetime
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from dinov2.distributed.launch import Launch, announce, find_launch, withdraw
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a collective waits for a process that does not come, before the run ends with an error."""

_launch: Launch | None = None
_n_groups = 0


def is_enabled() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def get_global_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if is_enabled() else 1


def get_global_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if is_enabled() else 0


def get_local_rank() -> int:
    """Rank of this process on its machine; 0 without a process group."""
    return _launch.local_rank if is_enabled() and _launch is not None else 0


def get_local_size() -> int:
    """Number of processes on this machine; 1 without a process group."""
    return _launch.local_world_size if is_enabled() and _launch is not None else 1


def is_main_process() -> bool:
    """Whether this process writes the logs and files that exist once per run."""
    return get_global_rank() == 0


def enable(
    *,
    set_cuda_current_device: bool = True,
    overwrite: bool = False,
    allow_nccl_timeout: bool = False,
) -> None:
    """Join the processes that the launcher started; alone, only take note of that.

    set_cuda_current_device: make the local rank's CUDA device the current one.
    overwrite: announce this process's place under torchrun's names even where some of them are set (as official).
    allow_nccl_timeout: taken for the sake of official callers; torch now always ends a collective that hangs.

    Calling it again raises RuntimeError until `disable` was called. `print` is left alone, unlike in the official code.
    """
    global _launch, _n_groups
    if _launch is not None:
        raise RuntimeError("The process group is already enabled. Call dinov2.distributed.disable() first.")
    launch = find_launch()
    if launch.world_size > 1:
        use_cuda = torch.cuda.is_available()
        if use_cuda and set_cuda_current_device:
            torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
        if overwrite or launch.launcher != "torchrun":
            _check_address(launch.master_addr)
            announce(launch)
        store, rank, world_size = next(dist.rendezvous("env://", rank=launch.rank, world_size=launch.world_size))
        dist.init_process_group(
            # Object collectives and checkpoints use tensors on the CPU, also beside NCCL.
            backend="cpu:gloo,cuda:nccl" if use_cuda else "gloo",
            # After a restart by torchrun, and for a second group, the store still holds the addresses of those before.
            store=dist.PrefixStore(f"attempt{launch.attempt}/group{_n_groups}", store),
            rank=rank,
            world_size=world_size,
            timeout=TIMEOUT,
        )
        dist.barrier()
        _n_groups += 1
    _launch = launch


def _check_address(address: str) -> None:
    """Torch would try for half an hour to reach a machine whose name nobody knows."""
    try:
        socket.getaddrinfo(address, None)
    except socket.gaierror as error:
        if error.errno != socket.EAI_NONAME:  # a name server that is busy or away for a moment
            return
        raise UserError(
            f"The processes are to meet on the machine '{address}', and this one does not know that name. Set MASTER_ADDR to an "
            "address that every machine of the job can reach; in a SLURM job for example by "
            """--setup 'export MASTER_ADDR=$(hostname -I | cut -d" " -f1)', which is the first machine's own."""
        ) from error


def disable() -> None:
    """Leave the process group, if there is one. A later `enable` makes a new one."""
    global _launch
    if is_enabled():
        dist.destroy_process_group()
    if _launch is not None and _launch.launcher == "slurm":
        withdraw()
    _launch = None


def ensure() -> None:
    """`enable`, unless that has been done."""
    if _launch is None:
        enable(overwrite=True)


@contextmanager
def session() -> Iterator[None]:
    """`enable` for the length of a block; inside another session nothing is done, so that entry points can call each other."""
    if _launch is not None:
        yield
        return
    enable(overwrite=True)
    try:
        yield
    finally:
        disable()


def process_label() -> str:
    """What begins a line on the terminal, where several processes share it: nothing for the main one, else `[rank r] `.

    Asks the launcher, for the process group may be gone by now; a launcher that contradicts itself may be what is told of.
    """
    try:
        rank = find_launch().rank
    except UserError:
        return ""
    return f"[rank {rank}] " if rank else ""


def on_main(function: Callable[[], object]) -> None:
    """Run a function in the main process; the others wait for it, and a user's mistake that it finds stops them all."""
    mistake = None
    if is_main_process():
        try:
            function()
        except UserError as error:
            mistake = error
    mistake = broadcast_object(mistake)
    if mistake is not None:
        raise mistake


def barrier() -> None:
    """Wait for every process."""
    if get_global_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Sum over all processes, in place; nothing to do in a single process."""
    if get_global_size() > 1:
        dist.all_reduce(tensor)


def all_reduce_max(tensor: torch.Tensor) -> None:
    """Element-wise maximum over all processes, in place; nothing to do in a single process."""
    if get_global_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """[n, ...] of every process -> [sum of n, ...], in the order of ranks; n may differ. Not differentiable."""
    size = get_global_size()
    if size == 1:
        return tensor
    lengths = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    longest = max(int(n) for n in lengths)
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(n)] for part, n in zip(gathered, lengths, strict=True)])


class _AllGatherWithGradient(torch.autograd.Function):
    """Gathers equal shapes; a row's gradient is the sum of what every process's loss sends back to it."""

    @staticmethod
    def forward(_ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(get_global_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(get_global_size())[get_global_rank()]


def all_gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """[n, ...] of every process -> [processes * n, ...]; n must be equal. Differentiable, for losses over the joint batch."""
    return tensor if get_global_size() == 1 else _AllGatherWithGradient.apply(tensor)  # pyright: ignore[reportReturnType]


def all_gather_objects(value: Any) -> list[Any]:
    """The picklable value of every process, in the order of ranks."""
    size = get_global_size()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The main process's value, on every process; what the others give is ignored."""
    if get_global_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
