"""Launchers: their options, what SLURM is told (a stand-in for sbatch keeps it), and what a job does with its place."""

import argparse
import importlib
import os
import stat
import sys
from pathlib import Path

import pytest

from dinov2.run import launcher, options, site
from dinov2.run.submit import get_args_parser, get_shared_folder, submit_jobs
from dinov2.run.train.train import Trainer
from dinov2.run.train.train import get_args_parser as get_train_args_parser
from dinov2.run.train.train import main as main_train
from dinov2.utils.cluster import (
    ClusterType,
    get_checkpoint_path,
    get_cluster_type,
    get_slurm_executor_parameters,
    get_slurm_partition,
    get_user_checkpoint_path,
)
from dinov2.utils.errors import UserError

SBATCH = """#!/bin/sh
cp "$1" "{kept}"
echo "Submitted batch job 4711"
"""


def make_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Programs by the names of SLURM's; returns the file that the stand-in for sbatch keeps what it is given in."""
    programs = tmp_path / "programs"
    programs.mkdir()
    kept = tmp_path / "kept.sh"
    make_program(programs, "sbatch", SBATCH.format(kept=kept))
    make_program(programs, "srun", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(site, "NAME", Path("no site file of this checkout's user"))
    return kept


@pytest.fixture
def no_slurm(monkeypatch) -> None:
    monkeypatch.setattr(options.shutil, "which", lambda name: None)


def parse(*options: str) -> argparse.Namespace:
    return get_train_args_parser().parse_args(list(options))


def sbatch_lines(kept: Path) -> set[str]:
    lines = kept.read_text().splitlines()
    return {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}


def test_defaults_of_a_submission_are_the_official_ones():
    args = get_args_parser().parse_args([])
    official = {"ngpus": 8, "nodes": 1, "timeout": 2800, "use_volta32": False, "comment": "", "exclude": ""}
    assert {name: getattr(args, name) for name in official} == official
    assert args.partition is None


@pytest.mark.parametrize("option", ["--ngpus", "--gpus", "--gpus-per-node"])
def test_gpus_have_three_names(option):
    assert get_args_parser().parse_args([option, "4"]).ngpus == 4


def test_official_command_line_keeps_its_key_value_pairs():
    args = parse("--nnodes", "4", "--ngpus", "2", "--config-file", "c.yaml", "optim.epochs=2", "train.seed=1")
    assert (args.nodes, args.ngpus, args.config_file) == (4, 2, "c.yaml")
    assert args.opts == ["optim.epochs=2", "train.seed=1"]


@pytest.mark.parametrize(
    ("room", "option"), [("knn", "nb_knn"), ("linear", "learning_rates"), ("log_regression", "train_dtype")]
)
def test_evaluations_take_their_own_options_and_those_of_a_submission(room, option):
    args = importlib.import_module(f"dinov2.run.eval.{room}").get_args_parser().parse_args(["--nodes", "2"])
    assert args.nodes == 2
    assert hasattr(args, option)


def test_slurm_is_told_the_resources(slurm, tmp_path):
    args = parse(
        "--nodes", "4", "--ngpus", "2", "--partition", "gpu", "--mem", "120G", "--account", "vets", "--timeout", "90"
    )
    args.output_dir = str(tmp_path / "run" / "%j")
    assert submit_jobs(Trainer, args, "dinov2:train").job_id == "4711"
    lines = sbatch_lines(slurm)
    assert {
        "job-name=dinov2:train",
        "nodes=4",
        "gpus-per-node=2",
        "ntasks-per-node=2",
        "cpus-per-task=10",
        "time=90",
        "partition=gpu",
        "mem=120G",
        "account=vets",
        "signal=USR2@120",
    } <= lines
    assert (tmp_path / "run" / "4711" / "4711_submitted.pkl").is_file()


def test_slurm_is_told_nothing_that_was_not_given(slurm, tmp_path):
    args = parse("--output-dir", str(tmp_path / "run"))
    submit_jobs(Trainer, args, "dinov2:train")
    told = {line.partition("=")[0] for line in sbatch_lines(slurm)}
    assert not told & {"partition", "mem", "account", "qos", "constraint", "comment", "exclude"}


def test_v100_nodes_comment_and_excluded_machines_reach_slurm(slurm, tmp_path):
    options = ("--use-volta32", "--comment", "deadline", "--exclude", "gpu7,gpu9", "--qos", "low")
    submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run"), *options), "dinov2:train")
    lines = {line.replace('"', "") for line in sbatch_lines(slurm)}
    assert {"constraint=volta32gb", "comment=deadline", "exclude=gpu7,gpu9", "qos=low"} <= lines


def test_nodes_without_gpus_run_one_process_each(slurm, tmp_path):
    submit_jobs(Trainer, parse("--ngpus", "0", "--output-dir", str(tmp_path / "run")), "dinov2:train")
    lines = sbatch_lines(slurm)
    assert "ntasks-per-node=1" in lines
    assert not any(line.startswith("gpus") for line in lines)


def test_a_job_sees_the_folders_of_modules_that_the_submitting_process_sees(slurm, tmp_path, monkeypatch):
    plugins = tmp_path / "my plugins"
    plugins.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(plugins)])
    submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run")), "dinov2:train")
    assert str(plugins) in slurm.read_text()


def test_a_submission_from_within_a_job_takes_over_what_is_the_clusters_and_nothing_of_the_job(
    slurm, tmp_path, monkeypatch
):
    seen = tmp_path / "seen"
    make_program(slurm.parent / "programs", "sbatch", f"#!/bin/sh\nenv > '{seen}'\necho Submitted batch job 1\n")
    of_the_cluster = {"SLURM_CONF": "slurm.conf", "SUBMITIT_PREEMPT_SIGNAL": "USR2"}
    of_the_job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "RANK": "3", "WORLD_SIZE": "4", "SBATCH_PARTITION": "gpu"}
    for name, value in (of_the_cluster | of_the_job).items():
        monkeypatch.setenv(name, value)
    submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run")), "dinov2:train")
    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert of_the_cluster.items() <= variables.items()
    assert not of_the_job.keys() & variables.keys()
    assert os.environ["RANK"] == "3"


def test_without_an_output_folder_the_runs_lie_in_the_current_one(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submit_jobs(Trainer, parse(), "dinov2:train")
    assert get_shared_folder() == tmp_path / "runs"
    assert (tmp_path / "runs" / "4711" / "4711_submitted.pkl").is_file()


def test_a_refusal_of_slurm_is_shown_once(slurm, tmp_path, capsys):
    make_program(tmp_path / "programs", "sbatch", "#!/bin/sh\necho 'Invalid account specified' >&2\nexit 1\n")
    with pytest.raises(UserError, match="Invalid account specified"):
        submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run")), "dinov2:train")
    assert "Invalid account" not in capsys.readouterr().err


def test_without_slurm_the_ways_to_run_here_are_named(no_slurm, tmp_path):
    with pytest.raises(UserError, match=r"with --cluster local --ngpus N"):
        submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run"), "--cluster", "slurm"), "dinov2:train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cluster", "local", "--nodes", "2"), "--nodes 2"),
        (("--nodes", "0"), "--nodes is 0"),
        (("--ngpus", "-1"), "--ngpus is -1"),
    ],
)
def test_impossible_resources_are_refused(slurm, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        submit_jobs(Trainer, parse("--output-dir", str(tmp_path / "run"), *options), "dinov2:train")


def test_a_misspelt_key_is_told_before_anything_is_submitted(slurm, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main_train(["--output-dir", str(tmp_path / "run"), "optim.epoch=2"])
    assert exit_info.value.code == 2
    assert "Did you mean 'optim.epochs'" in capsys.readouterr().err
    assert not slurm.exists()


def test_a_requeued_training_goes_on_from_its_checkpoint():
    first = Trainer(parse("--no-resume", "--output-dir", "run", "optim.epochs=2"))
    again = first.checkpoint().function
    assert isinstance(again, Trainer)
    assert not again.args.no_resume
    assert first.args.no_resume
    assert (again.args.output_dir, again.args.opts) == ("run", ["optim.epochs=2"])


class FinishedTask:
    def __init__(self, number: int, problem: str | None) -> None:
        self.problem = None if problem is None else RuntimeError(f"Traceback\n{problem}\n\n{'-' * 22}\nsee the logs")
        self.paths = argparse.Namespace(stderr=Path(f"{number}.err"))

    def exception(self) -> Exception | None:
        return self.problem


def make_job(*problems: str | None) -> argparse.Namespace:
    """A job of submitit's whose processes have ended, with these errors."""
    tasks = [FinishedTask(number, problem) for number, problem in enumerate(problems)]
    return argparse.Namespace(job_id="9", num_tasks=len(tasks), task=tasks.__getitem__)


def test_a_users_mistake_in_any_process_is_told_before_the_errors_that_it_caused():
    job = make_job(
        "RuntimeError: Connection closed", "dinov2.utils.config.ConfigError: Unknown key 'a'.\nUnknown key 'b'."
    )
    with pytest.raises(UserError) as error:
        launcher.raise_failure(job)
    assert str(error.value).splitlines() == [
        "Unknown key 'a'.",
        "Unknown key 'b'.",
        "This happened in process 1 of job 9; its log: 1.err",
    ]


def test_other_failures_are_told_whole():
    with pytest.raises(launcher.JobError, match=r"(?s)process 1 of job 9; its log: 1\.err.*Traceback.*out of memory"):
        launcher.raise_failure(make_job(None, "RuntimeError: out of memory"))


def test_a_job_without_failures_raises_nothing():
    launcher.raise_failure(make_job(None, None))


@pytest.mark.parametrize("cluster", [None, *ClusterType])
def test_no_cluster_has_facts_of_its_own(cluster):
    assert get_cluster_type() is None
    assert get_slurm_partition(cluster) is None
    assert get_checkpoint_path(cluster) is None
    assert get_user_checkpoint_path(cluster) is None


def test_executor_parameters_can_be_overridden():
    parameters = get_slurm_executor_parameters(2, 8, cpus_per_task=4, slurm_partition="gpu", slurm_mem=None)
    assert parameters == {
        "nodes": 2,
        "gpus_per_node": 8,
        "tasks_per_node": 8,
        "cpus_per_task": 4,
        "slurm_partition": "gpu",
    }
