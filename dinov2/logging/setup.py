"""Where log lines go: the terminal (main process) and `logs/log.txt` in the output folder."""

import logging
import sys
from pathlib import Path

from dinov2 import distributed

_LAYOUT = "%(levelname).1s%(asctime)s %(process)s %(name)s %(filename)s:%(lineno)s] %(message)s"
_OURS = "dinov2."
"""How the names of handlers that were set here begin."""


def setup_logging(
    output: str | Path | None = None,
    *,
    name: str | None = None,
    level: int = logging.DEBUG,
    capture_warnings: bool = True,
) -> None:
    """Send the records of logger `name` (the root logger by default) to the terminal and to a file.

    output: a folder (the file is then `logs/log.txt` inside it) or a `.txt`/`.log` file; other ranks append `.rank{r}`.
    Calling again replaces the handlers of the earlier call and closes its files.
    """
    logging.captureWarnings(capture_warnings)
    logger = logging.getLogger(name)
    logger.setLevel(level)
    logger.propagate = False
    for handler in [h for h in logger.handlers if (h.name or "").startswith(_OURS)]:
        logger.removeHandler(handler)
        handler.close()
    formatter = logging.Formatter(_LAYOUT, datefmt="%Y%m%d %H:%M:%S")
    handlers: list[logging.Handler] = []
    if distributed.is_main_process():
        handlers.append(logging.StreamHandler(sys.stdout))
    if output:
        path = _log_file(Path(output))
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.name = f"{_OURS}{name or 'root'}.{type(handler).__name__}"
        handler.setFormatter(formatter)
        handler.setLevel(level)
        logger.addHandler(handler)


def _log_file(output: Path) -> Path:
    path = output if output.suffix in (".txt", ".log") else output / "logs" / "log.txt"
    rank = distributed.get_global_rank()
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")
