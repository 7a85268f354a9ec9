"""The verbs `organs` and `segment` of the command line, which `vet_extensions.cli` registers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vet_extensions.commands.compare import write_page
from vet_extensions.commands.verbs import add_verbs
from vet_extensions.progress import Progress

if TYPE_CHECKING:
    from vet_extensions.evaluation.results import Result


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verbs to the program; `say` gets what each has to tell."""
    add_verbs(app, _EXAMPLES, say=say)


def organs(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it is made.", show_default=False)],
    studies: Annotated[int, typer.Option(min=5, help="Number of studies, of two views each.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Take another than pre-training's, or animals are seen twice.")] = 1,
    size: Annotated[int, typer.Option(min=32, help="Rows and columns of an image.")] = 128,
) -> str:
    """Write synthetic studies with a label map of the organs for each image: what `vetdino segment` is tried on."""
    from vet_extensions.phantom.organs import write_organ_folder

    with Progress("organs", total=studies, unit="studies") as progress:
        n_images = write_organ_folder(out, n_studies=studies, seed=seed, size_px=size, on_progress=progress)
    return f"{n_images:,} images with their label maps are in {out}."


def segment(
    backbones: Annotated[
        list[str],
        typer.Argument(metavar="BACKBONE", help="Run folders, checkpoints, hf:FOLDER ...", show_default=False),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Folder of images, masks, cases.csv and classes.json, or NAME:root=FOLDER:key=value.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results and trained decoders.", show_default=False)],
    decoder: Annotated[
        list[str] | None, typer.Option(help="linear (default), bn_linear, unet, dpt, upernet; may be given again.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Longer side of an image; as in pre-training, if left out.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Side of sliding windows; the whole image at once, if left out.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Train the backbone too.")] = False,
    loss: Annotated[str, typer.Option(help="dice or dice_ce (Dice and cross-entropy).")] = "dice_ce",
    epochs: Annotated[int, typer.Option(min=1, help="At most; the best one on the validation split counts.")] = 40,
    tolerance: Annotated[float, typer.Option(help="Of the surface Dice, in mm.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the decoders' first weights and the order of cases.")] = 0,
    save_masks: Annotated[
        bool, typer.Option("--save-masks", help="Write predicted test label maps, NIfTI or PNG, to OUT/masks.")
    ] = False,
    control: Annotated[bool, typer.Option(help="Beside the same network with random weights.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> str:
    """Train decoders on frozen features and score them: Dice, HD95 and surface Dice by case, with intervals over patients.

    The learning rate and the epoch are chosen on the validation cases; the test cases are scored once. Slices of volumes are
    scored one by one, and stacked to their volumes in 3-D. The same command goes on after a stop.
    """
    from dinov2.utils.device import resolve_device
    from vet_extensions.evaluation.datasets.label_maps import open_segmentation
    from vet_extensions.evaluation.segmentation.run import run_segmentation
    from vet_extensions.evaluation.segmentation.training import SegmentationConfig

    config = SegmentationConfig(
        image_size_px=size,
        window_px=window,
        decoders=tuple(decoder or ("linear",)),
        loss=loss,
        is_tuned=tune,
        epochs=epochs,
        tolerance_mm=tolerance,
        seed=seed,
    )
    with Progress("segment", unit="epochs") as progress:
        rows = run_segmentation(
            backbones,
            open_segmentation(data),
            out,
            config,
            has_control=control,
            has_masks=save_masks,
            on_progress=progress,
            device=resolve_device(device, key="--device"),
        )
    return "\n".join([*map(_in_one_line, rows), f"Open {write_page(out)} in a browser."])


def _in_one_line(row: "Result") -> str:
    what = row.arm if row.baseline is None else f"{row.arm} - {row.baseline}"
    size = f"  {row.config['n_decoder_parameters']:,} parameters" if "n_decoder_parameters" in row.config else ""
    return (
        f"{what:<32} {row.protocol:<18} {row.level:<7} {row.group:<12} {row.metric:<13} "
        f"{row.value:7.3f} [{row.low:.3f}, {row.high:.3f}]{size}"
    )


_EXAMPLES: dict[Callable[..., str], str] = {
    organs: "vetdino organs organs --studies 100 --size 128 --seed 1",
    segment: "vetdino segment run --data organs --out segmentation --decoder linear --decoder unet --size 128",
}
