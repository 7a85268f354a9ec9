"""Collects what the demo's report shows: sample studies, crops with their routing, curves, results, attention, components."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dinov2.eval.run_folder import find_run, preprocessing_of
from dinov2.loss.routing import CropLayout, build_router
from dinov2.utils.plugins import load_plugins
from vet_extensions.analysis.attention import cls_attention, overlay
from vet_extensions.analysis.components import foreground_by_intensity, joint_components, patch_features
from vet_extensions.analysis.curves import RunCurves, read_training_metrics
from vet_extensions.analysis.report import CropPanel, PicturePanel, ReportInputs
from vet_extensions.data import StudySample, paired_views
from vet_extensions.evaluation.features import load_backbone, network_input, prepare_image
from vet_extensions.evaluation.results import Result
from vet_extensions.manifest import Manifest
from vet_extensions.schema import Split, View
from vet_extensions.shards import ShardReader

if TYPE_CHECKING:
    from vet_extensions.demo.run import Demo

N_SAMPLE_STUDIES = 6
N_PANEL_STUDIES = 3
PANEL_PX = 128
"""Attention and component maps are made at this size: four times the patches that the networks were trained on."""


def report_inputs(
    demo: "Demo",
    runs: Sequence[Path],
    *,
    results: Sequence[Result],
    curves: Mapping[Path, Sequence[tuple[int, float]]],
    exports: Sequence[Mapping[str, Any]],
    intake_summary: Mapping[str, Any],
) -> ReportInputs:
    """Everything that `analysis.report.write_report` takes."""
    studies = sample_studies(demo.intake, n_studies=N_SAMPLE_STUDIES)
    first_of_arm = {find_run(run)[1].routing.name: run for run in reversed(runs)}
    arms = dict(reversed(first_of_arm.items()))
    images = {
        f"study {i + 1}, {view}": image
        for i, study in enumerate(studies[:N_PANEL_STUDIES])
        for view, image in zip(study.views, study.pixels)
    }
    return ReportInputs(
        title="VET-DINO demo: two ways to pre-train on multi-view studies",
        intake_summary=intake_summary,
        sample_studies=[([str(v) for v in s.views], list(s.pixels)) for s in studies],
        crop_panels=[crop_panel(arm, run, studies[0]) for arm, run in arms.items()],
        curves=[run_curves(run, curves[run]) for run in runs],
        results=[{**r.to_row(), "kind": r.kind} for r in results if r.kind != "difference"],
        comparisons=[
            {"a": r.arm, "b": r.baseline, "difference": r.value, **_what(r), "low": r.low, "high": r.high}
            for r in results
            if r.kind == "difference"
        ],
        export_parity=exports,
        attention=[attention_panel(arm, run, images) for arm, run in arms.items()],
        components=[component_panel(arm, run, images) for arm, run in arms.items()],
        environment=demo.environment(),
        headline={"group": "gross", "metric": "macro_auroc", "kind": "mean"},
        notes=[
            "The studies are synthetic: parametric dogs, projected by the Beer-Lambert law. What is measured here says how the "
            "two arms compare on this phantom at this budget, and nothing about real patients.",
            f"Both arms took {demo.plan.steps} steps and saw the same number of crops a step; a vet_dino step draws them from "
            "two images of a study, a same_image step from one.",
        ],
    )


def _what(result: Result) -> dict[str, str]:
    return {"level": result.level, "group": result.group, "protocol": result.protocol, "metric": result.metric}


def sample_studies(intake_root: Path, *, n_studies: int) -> list[StudySample]:
    """The first two images of the first test studies that have two."""
    manifest = Manifest.open(intake_root).select(split=Split.TEST)
    reader = ShardReader(intake_root)
    offsets, views = manifest.study_offsets, manifest.views
    starts = [int(a) for a, b in pairwise(offsets) if b - a >= 2][:n_studies]
    return [
        StudySample(
            pixels=tuple(reader.read(int(manifest.row_index[start + i])) for i in range(2)),
            views=tuple(View(views[start + i]) for i in range(2)),
            position=0,
        )
        for start in starts
    ]


def crop_panel(arm: str, run: Path, study: StudySample) -> CropPanel:
    """The crops of one study exactly as the arm's networks see them, with the routing table of the run."""
    config = find_run(run)[1]
    load_plugins(config.plugins)
    router = build_router(config.routing, config.crops.local_crops_number)
    crops = paired_views(config, router.layout)(study)
    return CropPanel(arm=arm, routing_rows=router.describe().splitlines(), crops=_labelled(crops, router.layout))


def _labelled(crops: Mapping[str, Any], layout: CropLayout) -> list[tuple[str, np.ndarray]]:
    """(label, grey image) of every crop; a teacher crop that is also the student's is shown once."""
    images = "AB"
    shown = [("teacher", t, v) for t, v in zip(crops["global_crops_teacher"], layout.teacher_globals)]
    shown = [("teacher and student" if i < layout.n_shared else who, crop, v) for i, (who, crop, v) in enumerate(shown)]
    rest = list(zip(crops["global_crops"], layout.student_globals))[layout.n_shared :]
    shown += [("student", crop, v) for crop, v in rest]
    labelled = [(f"{who}, global, image {images[v]}", crop[0].numpy()) for who, crop, v in shown]
    for i, (crop, v) in enumerate(zip(crops["local_crops"], layout.student_locals)):
        labelled.append((f"student, local {i}, image {images[v]}", crop[0].numpy()))
    return labelled


def run_curves(run: Path, knn: Sequence[tuple[int, float]]) -> RunCurves:
    """The logged metrics of a run and its k-NN curve."""
    config = find_run(run)[1]
    return RunCurves(
        arm=config.routing.name,
        seed=config.train.seed,
        metrics=read_training_metrics(run / "training_metrics.json"),
        knn=tuple(knn),
        n_prototypes=config.dino.head_n_prototypes,
    )


def _inputs(run: Path, images: Sequence[np.ndarray]) -> tuple[torch.nn.Module, list[np.ndarray], torch.Tensor]:
    backbone, config = load_backbone(run)
    size = PANEL_PX // config.student.patch_size * config.student.patch_size
    mean, std = preprocessing_of(config)
    prepared = [prepare_image(image, size) for image in images]
    return backbone, prepared, network_input(prepared, mean=mean, std=std)


def attention_panel(arm: str, run: Path, images: Mapping[str, np.ndarray]) -> PicturePanel:
    """Attention of the CLS token in the last block, mean over the heads."""
    backbone, prepared, inputs = _inputs(run, list(images.values()))
    maps = cls_attention(backbone, inputs).mean(1)  # pyright: ignore[reportArgumentType]
    pictures = [(name, overlay(image, heat)) for name, image, heat in zip(images, prepared, maps)]
    return PicturePanel(
        arm=arm, caption="Attention of the CLS token in the last block, mean over heads.", pictures=pictures
    )


def component_panel(arm: str, run: Path, images: Mapping[str, np.ndarray]) -> PicturePanel:
    """The first three principal components of all patches of all images together, as red, green and blue."""
    backbone, prepared, inputs = _inputs(run, list(images.values()))
    features = patch_features(backbone, inputs)  # pyright: ignore[reportArgumentType]
    foreground = foreground_by_intensity(np.stack(prepared), features.shape[1:3])
    colours = joint_components(features, foreground=foreground).colours
    return PicturePanel(
        arm=arm,
        caption="First three principal components of the patch features of all images together (background black).",
        pictures=list(zip(images, colours)),
    )
