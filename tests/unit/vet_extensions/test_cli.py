"""The command line: what each verb hands to its room, and what a user sees when something is wrong."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from factories import make_dicom
from typer.testing import CliRunner, Result

from vet_extensions import cli
from vet_extensions.errors import UserError

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
VERBS = (
    *(
        "phantom",
        "organs",
        "intake",
        "merge",
        "submit",
        "check",
        "train",
        "evaluate",
        "compare",
        "segment",
        "embed",
        "ablate",
    ),
    *("export", "demo", "version"),
)


class Calls(dict[str, Any]):
    """A stand-in for a room's function that keeps what it was called with."""

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        self.update(kwargs, args=args)
        return "the room's summary"


def put_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """Let `import name` find a module with these attributes, and nothing else of it."""
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent not in sys.modules:
        put_module(monkeypatch, parent, __path__=[])
    monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def failing_demo(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_demo(*_: Any, **__: Any) -> None:
        raise error

    put_module(monkeypatch, "vet_extensions.demo", run_demo=run_demo)


def test_help_and_version_load_neither_torch_nor_a_room() -> None:
    code = """
import sys
from typer.testing import CliRunner
from vet_extensions.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
assert CliRunner().invoke(app, ["version"]).exit_code == 0
heavy = {"torch", "numpy", "pydicom", "pyarrow", "sklearn", "matplotlib", "dinov2.train", "omegaconf"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: vetdino {verb}" in result.output


def test_help_lists_every_verb() -> None:
    listed = run("--help").output
    assert not [verb for verb in VERBS if verb not in listed]


def test_a_users_mistake_is_one_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, UserError("The folder holds a different run. Choose another."))
    result = run("demo")
    assert result.exit_code == 2
    assert result.stderr == "error: The folder holds a different run. Choose another.\n"


def test_a_mistake_found_by_the_core_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinov2.utils.errors import UserError as CoreError

    failing_demo(monkeypatch, CoreError("Unknown key 'optim.base_lrr'."))
    result = run("demo")
    assert (result.exit_code, result.stderr) == (2, "error: Unknown key 'optim.base_lrr'.\n")


def test_debug_shows_the_traceback_of_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, UserError("no such folder"))
    result = run("--debug", "demo")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: no such folder" in result.stderr


def test_a_folder_that_cannot_be_written_is_a_sentence_without_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, PermissionError(13, "Permission denied", "archive/Rex_Smith"))
    result = run("demo")
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr
    assert "Smith" not in result.output + result.stderr


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_a_sentence_without_its_path(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, OSError(number, os.strerror(number), "archive/Rex_Smith"))
    result = run("demo")
    assert result.exit_code == 2
    assert "choose another output folder" in result.stderr
    assert "Smith" not in result.output + result.stderr


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, IndexError("ours"))
    result = run("demo")
    assert result.exit_code == 1
    assert isinstance(result.exception, IndexError)


def test_an_interruption_is_a_sentence_and_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_demo(monkeypatch, KeyboardInterrupt())
    result = run("demo")
    assert result.exit_code == 130
    assert result.stderr.startswith("error: interrupted")


def test_an_unknown_option_is_exit_code_2_and_a_hint() -> None:
    result = run("demo", "--quik")
    assert result.exit_code == 2
    assert "--quick" in result.stderr


def test_train_accepts_options_on_both_sides_of_the_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Parser:
        def parse_args(self, arguments: list[str]) -> list[str]:
            return arguments

    def main(arguments: list[str]) -> None:
        seen["arguments"] = arguments

    put_module(monkeypatch, "dinov2.train.train", get_args_parser=Parser, main=main)
    result = run(
        "train", "--config-file", "c.yaml", "optim.epochs=1", "--output-dir", "run", "train.seed=3", "--no-resume"
    )
    assert result.exit_code == 0, result.stderr
    assert seen["arguments"] == [
        *("--config-file", "c.yaml", "--output-dir", "run", "--no-resume"),
        *("optim.epochs=1", "train.seed=3"),
    ]


def test_export_to_an_unknown_format_names_the_known_ones() -> None:
    result = run("export", "run", "--to", "keras", "--out", "x.pth")
    assert result.exit_code == 2
    assert "Unknown export format 'keras'. Allowed: hub." in result.stderr


def test_demo_writes_into_a_folder_named_after_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    put_module(monkeypatch, "vet_extensions.demo", run_demo=calls)
    assert run("demo", "--quick").exit_code == 0
    assert calls == {"args": (Path("demo-quick"),), "quick": True, "seed": 0, "n_workers": None}
    assert run("demo", "--out", "elsewhere", "--seed", "4", "--workers", "3").exit_code == 0
    assert calls == {"args": (Path("elsewhere"),), "quick": False, "seed": 4, "n_workers": 3}


def test_phantom_counts_its_studies_and_prints_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    put_module(monkeypatch, "vet_extensions.phantom.archive", write_archive=calls)
    result = run("phantom", "out", "--studies", "7", "--size", "64", "--plain")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "the room's summary\n"
    progress = calls.pop("on_progress")
    assert progress.total == 7
    expected = {"n_studies": 7, "seed": 0, "size_px": 64, "profile": "balanced", "plain": True, "n_workers": 2}
    assert calls == {"args": (Path("out"),), **expected}


def test_intake_says_what_became_of_every_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from vet_extensions.intake.options import IntakeOptions, IntakeSummary
    from vet_extensions.intake.sources.dicom_folder import DicomFolder

    seen: dict[str, Any] = {}

    def run_intake(source: DicomFolder, out: Path, **kwargs: Any) -> IntakeSummary:
        seen.update(kwargs, source=source, out=out)
        return IntakeSummary(
            n_files=5,
            n_accepted=3,
            n_rejected=2,
            n_patients=2,
            n_studies=2,
            rejected={"NOT_DICOM": 2},
            splits={"train": {"patients": 1, "studies": 1, "images": 2}},
        )

    put_module(monkeypatch, "vet_extensions.intake.run", run_intake=run_intake)
    result = run("intake", "dicom", "out", "--longest-side", "256", "--split-seed", "3", "--workers", "0")
    assert result.exit_code == 0, result.stderr
    assert seen["options"] == IntakeOptions(longest_side_px=256, split_seed=3)
    assert (seen["source"], seen["out"], seen["n_workers"]) == (DicomFolder(Path("dicom")), Path("out"), 0)
    assert result.stdout.splitlines() == [
        "5 files: 3 accepted, 2 rejected (see rejected.csv).",
        "  NOT_DICOM: 2",
        "2 patients, 2 studies, 3 images.",
        "  train: 1 patients, 1 studies, 2 images",
    ]


SERVER = ("intake", "https://pacs.example/dicom-web", "out", "--source", "dicomweb")


@pytest.mark.parametrize(
    ("arguments", "modalities", "filters"),
    [
        ((), ("CR", "DX", "MG", "IO"), ()),
        (("--modality", "DX", "--modality", "CR"), ("DX", "CR"), ()),
        (("--modality", "all"), (), ()),
        (
            ("--query", "StudyDate=20240101-", "--query", "PatientID=a=b*", "--query", "00081032.00080100=X1"),
            ("CR", "DX", "MG", "IO"),
            (("StudyDate", "20240101-"), ("PatientID", "a=b*"), ("00081032.00080100", "X1")),
        ),
    ],
)
def test_queries_and_modalities_choose_a_servers_studies(
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    modalities: tuple[str, ...],
    filters: tuple[tuple[str, str], ...],
) -> None:
    from vet_extensions.intake.options import IntakeSummary

    sources = []

    def run_intake(source: Any, *_: Any, **__: Any) -> IntakeSummary:
        sources.append(source)
        return IntakeSummary(n_files=0, n_accepted=0, n_rejected=0, n_patients=0, n_studies=0, rejected={}, splits={})

    put_module(monkeypatch, "vet_extensions.intake.run", run_intake=run_intake)
    result = run(*SERVER, *arguments)
    assert result.exit_code == 0, result.stderr
    assert [(source.modalities, source.filters) for source in sources] == [(modalities, filters)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--modality", "dx"), "'dx' is no modality. Did you mean 'DX'?"),
        (("--modality", "DX,CR"), "Give each by itself: --modality DX --modality CR"),
        (("--modality", "DX", "--modality", "all"), "'all' is no modality."),
        (
            ("--query", "StudyDat=20240101"),
            "'StudyDat' is no attribute of DICOM to ask a server by. Did you mean 'StudyDat",
        ),
        (("--query", "limit=5"), "'limit' is no attribute of DICOM"),
        (("--query", "StudyDate=2024", "--query", "Rex Smith"), "--query number 2 has no '='."),
        (("--query", "=Rex Smith"), "--query number 1 has no attribute before the '='."),
        (("--query", "PatientName= "), "'PatientName' is asked for without a value"),
        (("--query", "a&PatientName=Smith"), "What stands before a '=' is no attribute"),
        (("--query", "StudyDate=2024-01-01"), "'StudyDate' is asked for with 10 characters that are no date."),
        (("--query", "PatientID=Smith", "--query", "00100020=Rex"), "'00100020' is asked for twice"),
        (("--query", "ModalitiesInStudy=DX"), "Give --modality DX, or all, for it."),
    ],
)
def test_a_query_that_no_server_should_get_is_a_sentence_that_quotes_no_value(
    arguments: tuple[str, ...], sentence: str
) -> None:
    result = run(*SERVER, *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not any(part in result.stderr for part in ("Smith", "Rex", "20240101 ", "2024-01-01"))


def test_a_choice_that_intake_refuses_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    put_module(monkeypatch, "vet_extensions.intake.run", run_intake=Calls())
    result = run("intake", "dicom", "out", "--bits", "12")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: bits is 12;")


@pytest.mark.parametrize(("problems", "code"), [((), 0), (("3 patients are in more than one split.",), 2)])
def test_check_ends_with_an_exit_code_that_a_script_can_use(
    monkeypatch: pytest.MonkeyPatch, problems: tuple[str, ...], code: int
) -> None:
    from vet_extensions.manifest.validate import CheckReport

    def summarise(root: Path) -> CheckReport:
        return CheckReport(n_images=4, n_studies=2, n_patients=1, problems=problems)

    monkeypatch.setattr("vet_extensions.manifest.validate.summarise", summarise)
    result = run("check", "studies")
    assert result.exit_code == code
    assert all(problem in result.stdout for problem in problems)


def test_the_policies_of_intake_reach_it_from_the_command_line(tmp_path):
    for name in ("one", "two"):
        make_dicom(tmp_path / "dicom" / f"{name}.dcm", SOPClassUID=SECONDARY_CAPTURE)
    source, always = str(tmp_path / "dicom"), ("--workers", "0")
    assert "0 images" in run("intake", source, str(tmp_path / "refused"), *always).output
    assert "2 images" in run("intake", source, str(tmp_path / "taken"), *always, "--secondary-capture").output
    result = run("intake", source, str(tmp_path / "x"), *always, "--multi-frame", "some")
    assert result.exit_code != 0
    assert "reject, first, each" in f"{result.output} {result.exception}"
