"""The command that makes the metadata of the official data sets, once, before they are first used:
`python -m dinov2.data.datasets.prepare ImageNet --root ROOT --extra EXTRA`. Run by people; the data sets name it in their errors.
"""

import argparse
import logging
import sys
from pathlib import Path

from dinov2.data.datasets.image_net import ImageNet
from dinov2.data.datasets.image_net_22k import ImageNet22k
from dinov2.utils.errors import UserError

logger = logging.getLogger("dinov2")

_EXAMPLE = """example:
  python -m dinov2.data.datasets.prepare ImageNet --root imagenet --extra imagenet-extra
  python -m dinov2.data.datasets.prepare ImageNet22k --root imagenet22k --extra imagenet22k-extra

then:
  train.dataset_path=ImageNet:split=TRAIN:root=imagenet:extra=imagenet-extra
"""


def get_args_parser() -> argparse.ArgumentParser:
    """One sub-command for each data set."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.data.datasets.prepare",
        description="Make the metadata files of ImageNet or ImageNet-22k. Subsets of their classes and images are welcome.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--extra", required=True, metavar="FOLDER", help="where the metadata goes; made if missing")
    shared.add_argument("--debug", action="store_true", help="show the traceback of a user error")

    small = commands.add_parser("ImageNet", parents=[shared], help="folders train, val, test and a file labels.txt")
    small.add_argument("--root", required=True, metavar="FOLDER", help="holds train/, val/ or test/, and labels.txt")
    small.add_argument(
        "--split",
        nargs="+",
        choices=list(ImageNet.Split.__members__),
        metavar="SPLIT",
        help="TRAIN, VAL or TEST, one or several; without it, all whose folder is there",
    )
    large = commands.add_parser("ImageNet22k", parents=[shared], help="one tar file for each class")
    large.add_argument("--root", required=True, metavar="FOLDER", help="holds <wnid>.tar for each class")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the metadata that a command line asks for."""
    try:
        if args.dataset == "ImageNet22k":
            ImageNet22k(root=args.root, extra=args.extra).dump_extra()
            return
        for split in args.split or _splits_with_folder(Path(args.root)):
            ImageNet(split=split, root=args.root, extra=args.extra).dump_extra()
    except OSError as error:
        raise UserError(f"{error.strerror}: '{error.filename}'. --root must be readable, --extra writable.") from error


def _splits_with_folder(root: Path) -> list[str]:
    splits = [split for split in ImageNet.Split if (root / split.get_dirname()).is_dir()]
    if not splits:
        raise UserError(
            f"ImageNet: '{root}' has none of the folders {', '.join(split.value for split in ImageNet.Split)}. "
            "--root must be the folder that holds them; Kaggle's archive has them in ILSVRC/Data/CLS-LOC."
        )
    absent = [split.name for split in ImageNet.Split if split not in splits]
    if absent:
        logger.info(f"ImageNet: no folder for {' and '.join(absent)}, which is left out")
    return [split.name for split in splits]


def run(arguments: list[str] | None = None) -> int:
    """The command line with its exit status: 0 done, 2 a user's mistake, 130 interrupted."""
    args = get_args_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        main(args)
    except UserError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run())
