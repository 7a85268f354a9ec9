"""Who started this process: torchrun's variables, a SLURM step's, or nobody's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinov2 import distributed
from dinov2.distributed import launch as launch_module
from dinov2.distributed.launch import expand_node_list, find_launch, host_names
from dinov2.train.train import run
from dinov2.utils.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM_STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "rack[07-09,12],gpu5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    others = ("LOCAL_WORLD_SIZE", "SLURM_JOB_NODELIST", "SLURM_RESTART_COUNT", "SLURM_TASK_PID", "SLURM_STEP_NUM_NODES")
    for name in (*TORCHRUN, *SLURM_STEP, *others, "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_the_process_is_alone() -> None:
    launch = find_launch()
    assert (launch.launcher, launch.rank, launch.world_size) == ("none", 0, 1)


def test_torchruns_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**TORCHRUN, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"})
    launch = find_launch()
    assert (launch.rank, launch.world_size, launch.local_rank, launch.local_world_size) == (3, 4, 1, 2)
    assert (launch.master_addr, launch.master_port, launch.attempt) == ("node1", 29500, 1)


def test_an_incomplete_set_of_torchrun_variables_is_refused_with_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"WORLD_SIZE": "2", "RANK": "0"})
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT, LOCAL_RANK"):
        find_launch()


def test_the_mistake_of_an_incomplete_launcher_can_be_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distributed.disable()
    set_all(monkeypatch, {"WORLD_SIZE": "2", "RANK": "1"})
    assert run(["--output-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: The environment has RANK, WORLD_SIZE but not MASTER_ADDR")


def test_lines_of_all_but_the_main_process_begin_with_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.process_label() == ""
    set_all(monkeypatch, TORCHRUN)
    assert distributed.process_label() == "[rank 3] "


def test_a_rank_beyond_the_world_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**TORCHRUN, "RANK": "4"})
    with pytest.raises(UserError, match="RANK is 4"):
        find_launch()


def test_the_steps_of_a_slurm_job_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**SLURM_STEP, "SLURM_STEP_NUM_NODES": "3"})
    launch = find_launch()
    assert (launch.launcher, launch.rank, launch.world_size, launch.local_rank) == ("slurm", 4, 6, 0)
    assert (launch.local_world_size, launch.master_addr) == (1, "rack07")
    assert 20_000 <= launch.master_port < 32_768


def test_torchrun_inside_a_slurm_step_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**SLURM_STEP, **TORCHRUN})
    assert find_launch().launcher == "torchrun"


def test_a_shell_or_batch_script_inside_a_job_is_not_taken_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})
    assert find_launch().world_size == 1


def test_what_is_typed_in_a_shell_of_several_tasks_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun --pty -n 6 bash` gives its shell the variables of a step of six."""
    set_all(monkeypatch, {**SLURM_STEP, "SLURM_TASK_PID": str(os.getppid()), "SLURM_RESTART_COUNT": "1"})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert find_launch() == launch_module.Launch(launcher="none")


def test_a_task_that_has_a_terminal_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """`srun --pty -n 6 python ...`"""
    set_all(monkeypatch, {**SLURM_STEP, "SLURM_TASK_PID": str(os.getpid())})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert find_launch().world_size == 6


def test_every_start_of_a_job_meets_at_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = set()
    for restarts in range(5):
        set_all(monkeypatch, {**SLURM_STEP, "SLURM_RESTART_COUNT": str(restarts)})
        launch = find_launch()
        assert (launch.job, launch.restarts, launch.attempt) == ("77", restarts, restarts)
        assert launch.master_port == find_launch().master_port
        ports.add(launch.master_port)
    assert len(ports) == 5


def test_a_job_of_one_process_knows_that_it_was_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"SLURM_JOB_ID": "77", "SLURM_STEP_NUM_TASKS": "1", "SLURM_RESTART_COUNT": "2"})
    launch = find_launch()
    assert (launch.launcher, launch.job, launch.attempt) == ("none", "77", 2)


def test_attempts_of_torchrun_grow_with_the_starts_of_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []
    for restarts, own in (("0", "0"), ("0", "3"), ("1", "0")):
        set_all(monkeypatch, {**TORCHRUN, "SLURM_RESTART_COUNT": restarts, "TORCHELASTIC_RESTART_COUNT": own})
        attempts.append(find_launch().attempt)
    assert attempts == sorted(set(attempts))


def test_processes_on_one_machine_need_no_name_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**SLURM_STEP, "SLURM_STEP_NUM_NODES": "1"})
    assert find_launch().master_addr == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("node1", ["node1"]),
        ("node1,node2", ["node1", "node2"]),
        ("rack[07-09,12],gpu5", ["rack07", "rack08", "rack09", "rack12", "gpu5"]),
        ("r[1-2]n[01-03]", ["r1n01", "r1n02", "r1n03", "r2n01", "r2n02", "r2n03"]),
        ("n[1,3-4]-ib", ["n1-ib", "n3-ib", "n4-ib"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("gpu-a-1,rack[1-2]", ["gpu-a-1", "rack1", "rack2"]),
    ],
)
def test_a_node_list_is_read_without_slurms_tools(nodes: str, names: list[str]) -> None:
    assert expand_node_list(nodes) == names


@pytest.mark.parametrize("nodes", ["", "n[1-2", "n1,,n2", "n[a-b]", "n]1["])
def test_what_is_no_node_list_is_refused(nodes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="names no machine"):
        host_names(nodes)


def test_slurms_own_tool_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        assert command == ["scontrol", "show", "hostnames", "n[1-2]"]
        return subprocess.CompletedProcess(command, 0, stdout="n1\nn2\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert host_names("n[1-2]") == ["n1", "n2"]


def test_enabling_twice_is_refused_and_disabling_allows_it_again() -> None:
    distributed.disable()
    distributed.enable()
    with pytest.raises(RuntimeError, match="already enabled"):
        distributed.enable()
    distributed.disable()
    distributed.enable()
    distributed.disable()


def test_a_session_inside_another_changes_nothing() -> None:
    distributed.disable()
    with distributed.session():
        with distributed.session():
            pass
        with pytest.raises(RuntimeError, match="already enabled"):
            distributed.enable()
    distributed.enable()
    distributed.disable()


def test_collectives_of_a_single_process_give_back_its_own_values() -> None:
    values = torch.arange(3.0)
    distributed.all_reduce_sum(values)
    distributed.all_reduce_max(values)
    distributed.barrier()
    assert torch.equal(distributed.all_gather(values), torch.arange(3.0))
    assert distributed.all_gather_objects("x") == ["x"]
    assert distributed.broadcast_object(5) == 5
