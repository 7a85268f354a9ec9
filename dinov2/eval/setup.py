"""What the evaluation command lines share: options, the frozen model on its device, and exit statuses."""

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from dinov2 import distributed
from dinov2.models import build_model_from_cfg
from dinov2.utils.config import setup
from dinov2.utils.device import resolve_device
from dinov2.utils.errors import UserError
from dinov2.utils.utils import load_pretrained_weights

logger = logging.getLogger("dinov2")


def get_args_parser(
    description: str | None = None,
    parents: Sequence[argparse.ArgumentParser] | None = None,
    add_help: bool = True,
) -> argparse.ArgumentParser:
    """Options that every evaluation shares."""
    parser = argparse.ArgumentParser(description=description, parents=list(parents or ()), add_help=add_help)
    parser.add_argument("--config-file", type=str, default="", help="the run's configuration (its config.yaml)")
    weights_help = "teacher checkpoint, hub file, training file, Hugging Face folder or timm file"
    parser.add_argument("--pretrained-weights", type=str, default="", help=weights_help)
    parser.add_argument("--output-dir", type=str, default="", help="where results and logs are written")
    parser.add_argument("--opts", nargs="+", default=[], help="key=value pairs laid over the configuration")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a user error")
    return parser


def positive_int(text: str) -> int:
    """The type of options that count something; argparse turns the error into a sentence with the option's name."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def run_command_line(
    main: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> int:
    """Run `main` with the parsed arguments; the exit status: 0 done, 2 a user's mistake, 130 interrupted.

    Every process tells its mistake, because the launcher may end the others before they do; beside the main one with its rank.
    """
    args = parser.parse_args(arguments)
    try:
        main(args)
    except UserError as error:
        if args.debug:
            raise
        parser.exit(2, f"{distributed.process_label()}error: {error}\n")
    except KeyboardInterrupt:
        return 130
    return 0


def get_autocast_dtype(config: DictConfig) -> torch.dtype:
    """The dtype of `compute_precision.teacher.backbone`; float32 for anything but fp16 and bf16."""
    name = config.compute_precision.teacher.backbone.mixed_precision.param_dtype
    return {"fp16": torch.half, "bf16": torch.bfloat16}.get(name, torch.float)


def build_model_for_eval(config: DictConfig, pretrained_weights: str) -> nn.Module:
    """The backbone that the configuration describes, with the teacher's weights, in evaluation mode on its device."""
    device = resolve_device(config.train.device)
    model, _ = build_model_from_cfg(config, only_teacher=True)
    load_pretrained_weights(model, pretrained_weights, "teacher")
    return model.eval().to(device)


def setup_and_build_model(args: argparse.Namespace) -> tuple[nn.Module, torch.dtype]:
    """(frozen model, autocast dtype) for a command line of `get_args_parser`. On the CPU float16 becomes float32.

    Afterwards `args.output_dir` is the absolute folder that results go to.
    """
    config: Any = setup(args)
    if config.train.cpu_threads > 0:
        torch.set_num_threads(config.train.cpu_threads)
    model = build_model_for_eval(config, args.pretrained_weights)
    dtype = get_autocast_dtype(config)
    if dtype == torch.half and resolve_device(config.train.device).type == "cpu":
        logger.info("float16 is for CUDA devices; on the CPU the features are computed in float32")
        dtype = torch.float
    return model, dtype
