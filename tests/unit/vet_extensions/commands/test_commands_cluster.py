"""`vetdino submit`: what is asked of the cluster, how an intake is cut, and what becomes of a part that fails."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import make_dicom, make_pixels
from typer.testing import CliRunner, Result

import dinov2.run.submit
from dinov2.run import options
from vet_extensions import cli
from vet_extensions.commands.cluster import VerbTask
from vet_extensions.errors import UserError
from vet_extensions.schema import IntakeFolder


class Cluster:
    """Stands in for SLURM and this machine alike: runs every task at once, in this process, and keeps what was asked for."""

    def __init__(self) -> None:
        self.submissions: list[dict[str, Any]] = []
        self.lost: set[int] = set()

    def submit_tasks(self, tasks: Sequence[VerbTask], args: argparse.Namespace, **settings: Any) -> list[Any]:
        number = len(self.submissions) + 1
        self.submissions.append({"tasks": tasks, "args": args, **settings})
        return [self._run(task, f"{number}_{place}", is_lost=place in self.lost) for place, task in enumerate(tasks)]

    def _run(self, task: VerbTask, job_id: str, *, is_lost: bool) -> Any:
        problem = RuntimeError("killed") if is_lost else None
        try:
            if not is_lost:
                task._main(task.args)
        except UserError as error:
            # As in the trace that submitit brings back from a job.
            problem = RuntimeError(f"dinov2.utils.errors.UserError: {error}\n\n----------------------\n")
        paths = SimpleNamespace(stdout=Path(f"{job_id}.out"), stderr=Path(f"{job_id}.err"))
        job = SimpleNamespace(job_id=job_id, num_tasks=1, paths=paths, exception=lambda: problem)
        job.task = lambda number: job
        return job

    @property
    def words(self) -> list[list[str]]:
        return [task.args.words for submission in self.submissions for task in submission["tasks"]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(dinov2.run.submit, "submit_tasks", cluster.submit_tasks)
    return cluster


def submit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["submit", "--cluster", "local", *map(str, arguments)])


def submit_intake(source: Path, out: Path, *more: str, parts: int = 3) -> Result:
    return submit("--parts", str(parts), "--", "intake", source, out, "--workers", "0", "--longest-side", "32", *more)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for n in range(9):
        make_dicom(tmp_path / "in" / f"{n}.dcm", pixels=make_pixels(40, 36, seed=n), PatientID=f"P{n // 2}")
    return tmp_path / "in"


def run_whole(archive: Path, tmp_path: Path) -> bytes:
    """The manifest of one run over everything, with the salt of the parts."""
    salt = str(tmp_path / "out.parts" / "salt")
    words = ["intake", str(archive), str(tmp_path / "whole"), "--salt-file", salt, "--workers", "0"]
    cli.run_verb([*words, "--longest-side", "32"])
    return IntakeFolder(tmp_path / "whole").manifest.read_bytes()


def test_a_verb_is_submitted_as_it_was_typed(cluster: Cluster, tmp_path: Path) -> None:
    result = submit(
        "--logs", tmp_path, "--", "phantom", tmp_path / "a", "--studies", "1", "--size", "32", "--workers", "0"
    )
    assert result.exit_code == 0, result.output
    assert cluster.words == [["phantom", str(tmp_path / "a"), "--studies", "1", "--size", "32", "--workers", "0"]]
    assert cluster.submissions[0]["name"] == "vetdino-phantom"
    assert cluster.submissions[0]["folder"] == tmp_path
    assert any((tmp_path / "a").rglob("*.dcm"))


@pytest.mark.parametrize(
    ("words", "ngpus", "tasks_per_node"),
    [
        (["evaluate", "run", "--data", "d", "--suite", "s", "--out", "o"], 1, 1),
        (["check", "studies"], 0, 1),
        (["train", "--config-file", "c.yaml"], 8, None),
    ],
)
def test_a_verb_gets_the_gpus_and_processes_that_it_can_use(
    cluster: Cluster, words: list[str], ngpus: int, tasks_per_node: int | None
) -> None:
    cluster.lost = {0}
    submit("--", *words)
    args = cluster.submissions[0]["args"]
    assert (args.ngpus, args.tasks_per_node) == (ngpus, tasks_per_node)


def test_gpus_that_were_asked_for_are_kept(cluster: Cluster) -> None:
    submit("--ngpus", "2", "--", "check", "studies")
    assert cluster.submissions[0]["args"].ngpus == 2


def test_without_slurm_the_verb_runs_here_and_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    result = submit("--cluster", "auto", "--", "check", tmp_path)
    assert "No SLURM here (sbatch and srun are not found): running on this machine" in result.output
    assert cluster.submissions[0]["args"].cluster == "local"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing stands behind it"),
        (["--ngpus", "1", "check", "studies"], "got 'check' before it"),
        (["--", "evaluat"], "'evaluat' is no verb. What can be submitted: check, "),
        (["--", "submit", "--", "check", "a"], "'submit' submits its jobs itself"),
        (["--parts", "2", "--", "check", "a"], "--parts is for intake alone, got 'check'"),
        (["--parts", "0", "--", "intake", "a", "b"], "--parts is 0; a whole number from 1 up is expected"),
        (["--parts", "2", "--", "intake", "a", "b", "--part", "1/2"], "Leave --part out"),
        (["--tasks-per-node", "2", "--", "check", "a"], "'check' runs in one process"),
        (["--", "check", "a", "--againts", "b"], "No such option: --againts"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(cluster: Cluster, arguments: list[str], told: str) -> None:
    result = submit(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not cluster.submissions


def test_parts_are_merged_to_the_manifest_of_one_run(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [len(submission["tasks"]) for submission in cluster.submissions] == [3, 1]
    assert cluster.submissions[1]["after"] == "1"
    assert IntakeFolder(tmp_path / "out").manifest.read_bytes() == run_whole(archive, tmp_path)


def test_the_merge_names_the_parts_that_failed_and_their_logs(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    cluster.lost = {1}
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 2
    assert "Nothing was merged: 1 of 3 parts are not done" in result.stderr
    assert "part_2_of_3: 1_1.err" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_reads_only_what_is_missing(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    cluster.lost = {1}
    submit_intake(archive, tmp_path / "out")
    cluster.lost, cluster.submissions = set(), []
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [words[-1] for words in cluster.words if words[0] == "intake"] == ["2/3"]
    assert IntakeFolder(tmp_path / "out").manifest.read_bytes() == run_whole(archive, tmp_path)


def test_a_finished_intake_submits_its_merge_alone_and_finds_it_done(
    cluster: Cluster, archive: Path, tmp_path: Path
) -> None:
    submit_intake(archive, tmp_path / "out")
    before = IntakeFolder(tmp_path / "out").summary.stat().st_mtime_ns
    cluster.submissions = []
    assert submit_intake(archive, tmp_path / "out").exit_code == 0
    assert [words[0] for words in cluster.words] == ["merge"]
    assert IntakeFolder(tmp_path / "out").summary.stat().st_mtime_ns == before


def test_parts_of_other_options_are_not_mixed(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    cluster.lost = {1}
    submit_intake(archive, tmp_path / "out")
    cluster.submissions = []
    result = submit_intake(archive, tmp_path / "out", "--bits", "16")
    assert result.exit_code == 2
    assert "holds parts that were read with other options" in result.stderr
    assert not cluster.submissions


def test_workers_and_sheets_may_change_between_two_submissions(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    cluster.lost = {0, 1, 2}
    submit_intake(archive, tmp_path / "out", "--sheets", "--workers", "1")
    cluster.lost = set()
    assert submit_intake(archive, tmp_path / "out").exit_code == 0


def test_an_output_that_is_taken_is_refused_before_hours_of_reading(
    cluster: Cluster, archive: Path, tmp_path: Path
) -> None:
    cli.run_verb(["intake", str(archive), str(tmp_path / "out"), "--workers", "0"])
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 2
    assert "holds a finished intake that was not made of these parts" in result.stderr
    assert not cluster.submissions


def test_sheets_are_drawn_by_the_merge_alone(cluster: Cluster, archive: Path, tmp_path: Path) -> None:
    submit_intake(archive, tmp_path / "out", "--sheets")
    assert [words[0] for words in cluster.words if "--sheets" in words] == ["merge"]
    assert any((tmp_path / "out" / "sheets").iterdir())


def test_every_option_of_the_intake_reaches_every_part(cluster: Cluster, tmp_path: Path) -> None:
    cluster.lost = {0, 1}
    given = ["--query", "A=1", "--query", "B=2", "--no-official-split", "--secondary-capture", "--salt-file", "s"]
    submit("--parts", "2", "--jobs", "1", "--", "intake", "url", tmp_path / "out", "--source", "dicomweb", *given)
    assert cluster.submissions[0]["parallelism"] == 1
    for number, words in enumerate(cluster.words[:2], start=1):
        part = str(tmp_path / "out.parts" / f"part_{number}_of_2")
        assert words[:3] == ["intake", "url", part]
        assert words[-2:] == ["--part", f"{number}/2"]
        joined = " ".join(words)
        for option in ("--source dicomweb", "--query A=1 --query B=2", "--no-official-split", "--secondary-capture"):
            assert option in joined
        assert words.count("--salt-file") == 1
        assert words[words.index("--salt-file") + 1] == "s"


def test_a_dry_run_shows_scripts_and_command_lines_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    given = ["--cluster", "slurm", "--dry-run", "--parts", "3", "--jobs", "2", "--partition", "cpu"]
    result = submit(*given, "--", "intake", archive, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "#SBATCH --array=0-2%2" in result.output
    assert "#SBATCH --partition=cpu" in result.output
    assert "#SBATCH --dependency=afterany:JOB" in result.output
    assert "gpus-per-node" not in result.output
    assert f"$ vetdino intake {archive} {tmp_path}/out.parts/part_3_of_3 --salt-file" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_users_mistake_inside_a_job_is_raised_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        cli.run_verb(["check", str(tmp_path / "nowhere")])


def test_a_verb_that_ends_with_an_exit_code_of_its_own_fails_its_job(archive: Path, tmp_path: Path) -> None:
    for bits in ("8", "16"):
        words = ["intake", str(archive), str(tmp_path / bits), "--bits", bits, "--workers", "0"]
        cli.run_verb([*words, "--salt-file", str(tmp_path / "salt")])
    with pytest.raises(RuntimeError, match="vetdino check ended with exit code 1"):
        cli.run_verb(["check", str(tmp_path / "8"), "--against", str(tmp_path / "16"), "--no-pixels"])


def test_an_intake_in_a_job_loads_no_torch(archive: Path, tmp_path: Path) -> None:
    code = f"""
import argparse, os, pickle, sys
from vet_extensions.cli import run_verb
from vet_extensions.commands.cluster import VerbTask
words = ["intake", {str(archive)!r}, {str(tmp_path / "out")!r}, "--workers", "0"]
task = pickle.loads(pickle.dumps(VerbTask(argparse.Namespace(run=run_verb, words=words, output_dir={str(tmp_path)!r}))))
os.environ.update(SUBMITIT_EXECUTOR="local", SUBMITIT_LOCAL_JOB_ID="1", SUBMITIT_FOLDER={str(tmp_path)!r})
task()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_processes_on_this_machine_read_the_parts_and_a_lost_one_is_mended(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parts" / "part_2_of_3").mkdir(parents=True)
    foreign = tmp_path / "out.parts" / "part_2_of_3" / "notes.txt"
    foreign.write_text("this is in the way of part 2")
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 2
    assert "Nothing was merged: 1 of 3 parts are not done" in result.stderr
    (log,) = [line.partition(": ")[2] for line in result.stderr.splitlines() if "part_2_of_3" in line]
    assert "holds something else" in Path(log).read_text()
    foreign.unlink()
    result = submit_intake(archive, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert IntakeFolder(tmp_path / "out").manifest.read_bytes() == run_whole(archive, tmp_path)
