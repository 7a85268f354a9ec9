"""Options of a submission: what the command line says, what a cluster's site file says, and what holds where neither does."""

import argparse
from pathlib import Path

import pytest

from dinov2.run import options, site
from dinov2.run.options import number_of_processes, prefer_options, resolved_options
from dinov2.run.site import find_site_file
from dinov2.run.submit import get_args_parser
from dinov2.utils.errors import UserError


@pytest.fixture(autouse=True)
def no_site_file_but_those_of_the_tests(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(site, "NAME", Path("test-site.yaml"))
    monkeypatch.chdir(tmp_path)


def resolve(*given: str, text: str = "") -> argparse.Namespace:
    Path("test-site.yaml").write_text(text)
    return resolved_options(get_args_parser().parse_args(["--cluster", "slurm", "--dry-run", *given]))


def test_the_site_file_says_what_the_command_line_does_not():
    args = resolve("--partition", "short", text="partition: gpu\naccount: vets\nngpus: 4\nmem: 0\n")
    assert (args.partition, args.account, args.ngpus, args.mem) == ("short", "vets", 4, "0")
    assert args.tasks_per_node == 4


def test_the_command_line_wins_also_with_the_value_that_is_the_default():
    assert resolve("--ngpus", "8", text="ngpus: 4\n").ngpus == 8


def test_set_up_lines_and_options_of_sbatch_add_to_those_of_the_site():
    args = resolve(
        "--setup",
        "export A=1",
        "--slurm",
        "gres=gpu:h100:2",
        "--slurm",
        "exclusive",
        text="setup: [module load cuda]\nslurm: {gres: 'gpu:a100:2', mail-type: END}\n",
    )
    assert args.setup == ["module load cuda", "export A=1"]
    assert args.slurm == {"gres": "gpu:h100:2", "mail-type": "END", "exclusive": True}


def test_keys_may_be_written_as_the_options_are():
    assert resolve(text="cpus-per-task: 3\n").cpus_per_task == 3


def test_values_of_a_site_file_stay_as_they_are_written():
    args = resolve(text="exclude: 007\nslurm: {begin: 16:00, exclusive: true, nice: 5}\ncomment:\n")
    assert (args.exclude, args.comment) == ("007", "")
    assert args.slurm == {"begin": "16:00", "exclusive": True, "nice": "5"}


def test_a_flag_of_the_site_is_switched_off_on_the_command_line():
    args = resolve("--slurm", "exclusive=false", text="slurm: {exclusive: true}\n")
    assert args.slurm == {"exclusive": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", r"Unknown key 'partitoin'\. Did you mean 'partition'\?"),
        ("dry_run: true", "Unknown key 'dry_run'"),
        ("ngpus: many", "'ngpus' is 'many'; a value like 8 is expected"),
        ("partition: [a, b]", "'partition' is"),
        ("setup: module load cuda", "'setup' is 'module load cuda'; a value like"),
        ("slurm: {nice: [1]}", "'slurm' is"),
        ("- partition", "holds a list"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_site_file_that_cannot_be_used_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        resolve(text=text)


def test_all_mistakes_of_a_site_file_are_told_at_once():
    with pytest.raises(UserError, match=r"(?s)Unknown key 'acount'.*'nodes' is 'two'"):
        resolve(text="acount: vets\nnodes: two\n")


def test_a_site_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        resolve("--site", "absent.yaml")


def test_the_site_file_of_the_current_folder_comes_before_the_one_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "NAME", Path("setup.py"))
    assert find_site_file(None) == Path(site.__file__).parents[2] / "setup.py"
    (tmp_path / "setup.py").touch()
    assert find_site_file(None) == tmp_path / "setup.py"
    assert find_site_file("other.yaml") == Path("other.yaml")


def test_the_site_file_that_is_shipped_changes_nothing():
    shipped = Path(site.__file__).parents[2] / "slurm" / "site.yaml"
    assert vars(resolve("--site", str(shipped))) | {"site": None, "given": None} == vars(resolve()) | {"given": None}


def test_what_a_program_needs_comes_after_the_command_line_and_before_the_site():
    args = get_args_parser().parse_args(["--cluster", "slurm", "--dry-run", "--cpus-per-task", "2"])
    prefer_options(args, ngpus=0, cpus_per_task=16)
    Path("test-site.yaml").write_text("ngpus: 8\ncpus_per_task: 10\n")
    settled = resolved_options(args)
    assert (settled.ngpus, settled.cpus_per_task, settled.tasks_per_node) == (0, 2, 1)


def test_without_slurm_a_job_runs_here_with_a_process_for_each_gpu(monkeypatch):
    monkeypatch.setattr(options.shutil, "which", lambda name: None)
    Path("test-site.yaml").write_text("nodes: 4\npartition: gpu\n")
    for n_gpus, n_processes in ((0, 1), (3, 3)):
        monkeypatch.setattr(options, "_gpus_here", lambda n=n_gpus: n)
        args = get_args_parser().parse_args([])
        assert resolved_options(args).cluster == "local"
        assert number_of_processes(args) == n_processes


def test_the_world_is_nodes_times_processes_a_node():
    args = get_args_parser().parse_args(
        ["--cluster", "slurm", "--dry-run", "--nodes", "3", "--ngpus", "0", "--tasks-per-node", "4"]
    )
    assert number_of_processes(args) == 12


def test_a_job_that_would_be_warned_as_it_starts_is_refused():
    with pytest.raises(UserError, match="--signal-delay 120 seconds before a --timeout of 2 minutes"):
        resolve("--timeout", "2")
    assert resolve("--timeout", "2", "--signal-delay", "60").signal_delay == 60


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_one_machine_is_one_node(cluster):
    with pytest.raises(UserError, match="--nodes 2"):
        resolved_options(get_args_parser().parse_args(["--cluster", cluster, "--nodes", "2"]))


def test_a_nameless_option_of_sbatch_is_refused(capsys):
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--slurm", "=2"])
    assert "'=2' is not KEY=VALUE" in capsys.readouterr().err
