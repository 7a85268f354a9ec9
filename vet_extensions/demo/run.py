"""`vetdino demo`: the whole way from a synthetic DICOM archive to a report, on one machine. Called by the command line.

Every stage picks up what an interrupted demo left: the archive is completed, training goes on from its newest checkpoint,
embeddings are cached.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vet_extensions.demo.plan import FULL, QUICK, DemoPlan, config_path, suite_path
from vet_extensions.demo.pretrain import PretrainJob, pretrain
from vet_extensions.progress import Progress, Stages
from vet_extensions.schema import IntakeFolder

N_STAGES = 7
MAX_WORKERS = 4
"""As many as there are pre-training runs; the networks are too small to gain from more threads each."""
CURVE_BANK = 800
"""Training images that a k-NN curve searches; a part of them keeps the curve cheap, and its level is not a result."""
SALT = "vetdino demo: synthetic patients"
"""The phantom's patients are nobody, so that their hashes, and with them the split, may be the same for everyone."""


class Demo:
    """The stages of one demo in one output folder."""

    def __init__(self, out: Path, plan: DemoPlan, *, seed: int, n_workers: int) -> None:
        self.out, self.plan, self.seed, self.n_workers = out, plan, seed, n_workers
        self.archive, self.intake = out / "archive", out / "intake"
        self.seconds: dict[str, float] = {}
        self._stages = Stages(N_STAGES)

    @contextmanager
    def stage(self, label: str, **progress: Any) -> Iterator[Progress]:
        """One numbered stage with its progress display; its duration goes into the report."""
        began = time.monotonic()
        with self._stages.next(label, **progress) as shown:
            yield shown
        self.seconds[label] = round(time.monotonic() - began, 1)

    def make_archive(self) -> None:
        """Synthetic studies as DICOM files."""
        from vet_extensions.phantom.archive import write_archive

        with self.stage("synthetic DICOM archive", total=self.plan.n_studies, unit="studies") as progress:
            write_archive(
                self.archive,
                n_studies=self.plan.n_studies,
                seed=self.seed,
                size_px=self.plan.image_px,
                n_workers=self.n_workers,
                on_progress=progress,
            )

    def take_in(self) -> dict[str, Any]:
        """DICOM files to manifest and shards; returns the intake's summary."""
        import json

        from vet_extensions.intake.options import IntakeOptions
        from vet_extensions.intake.run import run_intake

        options = IntakeOptions(
            labels=self.archive / "labels.csv",
            longest_side_px=self.plan.image_px,
            split_fractions=self.plan.split_fractions,
            salt=SALT,
        )
        with self.stage("intake: DICOM to manifest and shards", unit="files") as progress:
            run_intake(
                self.archive / "dicom", self.intake, options=options, on_progress=progress, n_workers=self.n_workers
            )
        return json.loads(IntakeFolder(self.intake).summary.read_text())

    def jobs(self) -> list[PretrainJob]:
        """The pre-training runs: every arm with every seed, equal steps and crops."""
        plan = self.plan
        return [
            PretrainJob(
                config_path=config_path(arm),
                output_dir=self.run_dir(arm, seed),
                options=(
                    f"train.dataset_path=VetStudies:root={self.intake.resolve()}",
                    f"train.seed={self.seed + seed}",
                    f"train.OFFICIAL_EPOCH_LENGTH={plan.epoch_length}",
                    f"evaluation.eval_period_iterations={plan.steps // plan.n_curve_points}",
                ),
                n_steps=plan.steps,
            )
            for arm, seed in plan.runs
        ]

    def run_dir(self, arm: str, seed: int) -> Path:
        """Where a pre-training run lives."""
        return self.out / "runs" / f"{arm}_seed{self.seed + seed}"

    def pretrain(self) -> list[Path]:
        """All pre-training runs; returns their folders."""
        jobs = self.jobs()
        label = f"pre-training {len(jobs)} runs (same_image and vet_dino)"
        with self.stage(label, total=sum(j.n_steps for j in jobs), unit="steps") as progress:
            pretrain(jobs, n_workers=self.n_workers, on_progress=progress)
        return [job.output_dir for job in jobs]

    def environment(self) -> dict[str, Any]:
        """What the numbers were made with."""
        packages = ("vet-dino", "torch", "numpy", "pydicom", "opencv-python-headless")
        return {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "processor cores": os.cpu_count(),
            "workers": self.n_workers,
            "seconds per stage": self.seconds,
        }


def run_demo(out: Path, *, quick: bool = False, seed: int = 0, n_workers: int | None = None) -> Path:
    """Run every stage and return the path of `report.html`. n_workers: processes at a time; by default one a core, at most 4."""
    from dinov2.utils.device import cpu_threads

    demo = Demo(out, QUICK if quick else FULL, seed=seed, n_workers=n_workers or min(os.cpu_count() or 1, MAX_WORKERS))
    demo.make_archive()
    intake_summary = demo.take_in()
    runs = demo.pretrain()
    # Judging runs in this process and may have the cores that the pre-training runs have left.
    with cpu_threads(demo.n_workers):
        return judge(demo, runs, intake_summary)


def judge(demo: Demo, runs: list[Path], intake_summary: dict[str, Any]) -> Path:
    """Evaluation, curves, exports and the report of finished runs; returns the report's path."""
    from vet_extensions.analysis.report import write_report
    from vet_extensions.demo.gather import report_inputs
    from vet_extensions.evaluation.suite import knn_curve, load_suite, run_suite

    suite = demo.plan.shorten(load_suite(suite_path()))
    folder = demo.out / "evaluation"
    with demo.stage("evaluation: k-NN and linear probe, with controls", unit="images") as progress:
        results = run_suite(runs, demo.intake, suite, folder, on_progress=progress)
    curves: dict[Path, list[tuple[int, float]]] = {}
    with demo.stage("k-NN curves on the validation split", total=len(runs), unit="runs") as progress:
        for run in runs:
            curves[run] = knn_curve(run, demo.intake, suite, cache_dir=folder / "features", max_bank_images=CURVE_BANK)
            progress.advance()
    exports = export_runs(demo, runs)
    with demo.stage("report"):
        inputs = report_inputs(
            demo, runs, results=results, curves=curves, exports=exports, intake_summary=intake_summary
        )
        return write_report(inputs, demo.out / "report.html")


def export_runs(demo: Demo, runs: list[Path]) -> list[dict[str, Any]]:
    """Every run as a hub file, loaded again in a new process and compared; one table row each."""
    from vet_extensions.export.checkpoint import export_hub

    rows = []
    with demo.stage("export to hub format, loaded again and compared", total=len(runs), unit="runs") as progress:
        for run in runs:
            report = export_hub(run, demo.out / "export" / f"{run.name}.pth", require_hub=False)
            rows.append(
                {
                    "file": report.path.name,
                    "tensors": report.n_tensors,
                    "parameters": report.n_parameters,
                    "largest difference, CLS": report.parity.max_abs_cls,
                    "largest difference, patches": report.parity.max_abs_patch,
                    "passed": report.parity.passed,
                }
            )
            progress.advance()
    return rows
