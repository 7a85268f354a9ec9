"""Trainings submitted to SLURM: left alone, and disturbed in every way that a busy cluster has.

Whatever happened, each ends with the weights of one of as many processes that was left alone, bit for bit.
"""

import json
from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import facts, nodes_of, succeed, wait_for_state, wait_until
from slurm_trainings import (
    ALONE,
    BATCH,
    MIDDLE,
    N_STEPS,
    SAVE_AT_THE_END,
    SAVE_OFTEN,
    SLOW_STEP_S,
    TWO_BY_TWO,
    Scene,
    SlurmTraining,
    assert_ended_alike,
    set_pace,
    start_training,
)

pytestmark = pytest.mark.slurm


SAVED = MIDDLE - 3
"""Of trainings that save every third step, what is surely there by then: the last checkpoint may be under way."""


def assert_went_on(training: SlurmTraining, *, from_step: int) -> None:
    """It was started twice in all, and the second time went on from a step that it had made."""
    assert facts(training.job)["Restarts"] == "1"
    (last,) = training.run.resumed_after()
    assert last + 1 >= from_step


def test_left_alone_it_trains_on_two_nodes_with_two_processes_each(scene: Scene):
    training = scene.undisturbed(TWO_BY_TWO)
    known = facts(training.job)
    assert (known["NumNodes"], known["NumTasks"], known["Restarts"]) == ("2", "4", "0")
    assert sorted(training.run.losses()) == list(range(N_STEPS))
    newest = training.run.out / "checkpoints" / f"{N_STEPS - 1:07d}"
    assert len(list(newest.glob("rank_*.pth"))) == 4


def test_without_one_of_its_nodes_it_goes_on_elsewhere(cluster: Cluster, scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_OFTEN, submission=TWO_BY_TWO)
    training.wait_for_its_middle()
    lost = nodes_of(training.job)[1]
    cluster.pull_the_plug(lost)
    try:
        training.wait_for_restart(f"node {lost} is gone")
        training.wait_until_done()
    finally:
        cluster.start(lost)
    assert lost not in nodes_of(training.job)
    assert_went_on(training, from_step=SAVED)
    assert_ended_alike(training, scene.undisturbed(TWO_BY_TWO))


def test_processes_that_live_on_where_slurmd_was_killed_write_nothing_into_the_run_that_went_on(
    cluster: Cluster, scene: Scene, tmp_path: Path
):
    training = start_training(tmp_path / "run", scene.data, SAVE_OFTEN, submission=ALONE)
    training.wait_for_its_middle()
    set_pace(training.run.out, step_s=5)  # so that they are still at it when the next start has begun
    (lost,) = nodes_of(training.job)
    cluster.kill_slurmd(lost)
    try:
        training.wait_for_restart(f"node {lost} does not answer")
        log = training.run.out / f"{training.job}_0_log.out"
        wait_until(lambda: "leaves and writes nothing more" in log.read_text(), "the first start to notice the second")
        training.wait_until_done()
    finally:
        cluster.start(lost)
    assert_went_on(training, from_step=SAVED)
    assert_ended_alike(training, scene.undisturbed(ALONE))


def test_at_its_time_limit_it_goes_back_into_the_queue(scene: Scene, tmp_path: Path):
    limits = (
        "--timeout",
        "1",
        "--signal-delay",
        "1",
    )  # SLURM looks every half minute, and warns at the last look before
    training = start_training(tmp_path / "run", scene.data, SAVE_AT_THE_END, step_s=4, submission=limits)
    wait_until(lambda: bool(training.checkpoints()), "a checkpoint because of the time limit")
    training.wait_for_restart("its minute is over")
    succeed("scontrol", "update", f"jobid={training.job}", "timelimit=30")
    training.wait_until_done()
    assert training.run.resumed_after()
    assert_ended_alike(training, scene.undisturbed())


def test_preempted_by_a_partition_of_higher_priority_it_loses_no_step(scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_AT_THE_END, submission=TWO_BY_TWO)
    training.wait_for_its_middle()
    nodes = ",".join(nodes_of(training.job))
    urgent = ("--partition=high", "--nodes=2", f"--nodelist={nodes}", "--exclusive", "--output=/dev/null")
    job = succeed("sbatch", "--parsable", *urgent, "--wrap=hostname").strip()
    wait_for_state(job, "COMPLETED")
    training.wait_for_restart("preempted")
    training.wait_until_done()
    assert_went_on(training, from_step=MIDDLE)
    assert_ended_alike(training, scene.undisturbed(TWO_BY_TWO))


def test_sigterm_alone_as_most_clusters_send_it_before_preemption_loses_no_step(scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_AT_THE_END)
    training.wait_for_its_middle()
    for name in ("CONT", "TERM"):
        succeed("scancel", f"--signal={name}", training.job)
    training.wait_for_restart("SIGTERM")
    training.wait_until_done()
    assert_went_on(training, from_step=MIDDLE)
    assert_ended_alike(training, scene.undisturbed())


def test_requeued_by_hand_it_goes_on(scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_OFTEN)
    training.wait_for_its_middle()
    succeed("scontrol", "requeue", training.job)
    training.wait_for_restart("scontrol requeue")
    training.wait_until_done()
    assert_went_on(training, from_step=SAVED)
    assert_ended_alike(training, scene.undisturbed())


def test_on_fewer_nodes_than_before_it_goes_on_with_the_next_samples(scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_AT_THE_END)
    training.wait_for_its_middle()
    succeed("scancel", "--signal=USR2", training.job)
    training.wait_for_restart("warned by hand")
    succeed("scontrol", "update", f"jobid={training.job}", "numnodes=1-1", "numtasks=1", "numcpus=1")
    training.wait_until_done()
    assert facts(training.job)["NumNodes"] == "1"
    assert_went_on(training, from_step=MIDDLE)
    assert sorted(training.run.losses()) == list(range(N_STEPS))
    (last,) = training.run.resumed_after()
    log = (training.run.out / "logs" / "log.txt").read_text()
    assert f"resuming after iteration {last}, {(last + 1) * 2 * BATCH} samples" in log
    assert "another number of processes than before" in log
    meta = json.loads(training.checkpoints()[-1].read_text())
    assert meta["samples_seen"] == N_STEPS * 2 * BATCH


def test_cancelled_it_ends_for_good_and_submitted_again_it_goes_on(scene: Scene, tmp_path: Path):
    training = start_training(tmp_path / "run", scene.data, SAVE_OFTEN)
    training.wait_for_its_middle()
    succeed("scancel", training.job)
    wait_for_state(training.job, "CANCELLED")
    again = start_training(tmp_path / "run", scene.data, SAVE_OFTEN, step_s=0)
    again.wait_until_done()
    assert facts(training.job)["JobState"] == "CANCELLED"
    assert facts(training.job)["Restarts"] == "0"
    assert len(again.run.resumed_after()) == 1
    assert_ended_alike(again, scene.undisturbed())


def test_killed_for_its_memory_it_does_not_come_back_by_itself_and_goes_on_where_it_has_more(
    scene: Scene, tmp_path: Path
):
    training = start_training(tmp_path / "run", scene.data, SAVE_OFTEN, submission=("--mem", "3000M"))
    training.wait_for_its_middle()
    set_pace(training.run.out, step_s=SLOW_STEP_S, hunger_mb=3000)
    wait_for_state(training.job, "FAILED", "OUT_OF_MEMORY")
    assert facts(training.job)["Restarts"] == "0"
    assert "memory" in (training.run.out / f"{training.job}_0_log.err").read_text()
    again = start_training(tmp_path / "run", scene.data, SAVE_OFTEN, step_s=0)
    again.wait_until_done()
    assert len(again.run.resumed_after()) == 1
    assert_ended_alike(again, scene.undisturbed())
