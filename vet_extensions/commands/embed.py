"""The verb `embed` of the command line, which `vet_extensions.cli` registers."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vet_extensions.commands.verbs import add_verbs
from vet_extensions.progress import Progress


def register(app: typer.Typer, *, say: Callable[[str], None]) -> None:
    """Add the verb to the program; `say` gets what it has to tell."""
    add_verbs(app, _EXAMPLES, say=say)


def embed(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder, checkpoint or DINOv2 file, hf:FOLDER, timm:NAME:FILE, cnn:NAME:FILE, random:SPEC or pixels.",
            show_default=False,
        ),
    ],
    images: Annotated[Path, typer.Argument(metavar="IN", help="Intake folder.", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it is made.", show_default=False)],
    blocks: Annotated[int, typer.Option(min=1, help="Class tokens of how many last blocks.")] = 1,
    patches: Annotated[
        bool, typer.Option("--patches", help="Also every patch's features; the size is checked first.")
    ] = False,
    file_format: Annotated[str, typer.Option("--format", help="Files of the arrays: npy or safetensors.")] = "npy",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels (that of the training).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> str:
    """Write the features of every image: class tokens, mean and single patches, with image ids and splits in a Parquet table.

    The same command goes on after a stop.
    """
    from dinov2.utils.device import resolve_device
    from vet_extensions.evaluation.export_features import export_features

    with Progress("embed", unit="images") as progress:
        about = export_features(
            run,
            images,
            out,
            n_blocks=blocks,
            with_patches=patches,
            file_format=file_format,
            image_size_px=image_size,
            batch_size=batch_size,
            device=resolve_device(device, key="--device"),
            on_progress=progress,
        )
    arrays = ", ".join(f"{name} {array['shape']} {array['dtype']}" for name, array in about["arrays"].items())
    return f"{about['n_images']:,} images with {about['backbone']} at {about['image_size_px']} px: {arrays}, in {out}."


_EXAMPLES: dict[Callable[..., str], str] = {embed: "vetdino embed run studies features --blocks 4 --format safetensors"}
