"""Coverage-guided fuzzing of intake's reader with atheris (libFuzzer): no input may raise, hang, or take its worker along.

    python -m venv FUZZ && FUZZ/bin/pip install -e . atheris==3.0.0
    FUZZ/bin/python benchmarks/fuzz_reader.py --executions 200000 --out FOLDER

Every input goes through both passes in this process, where coverage guides the search, up to the door of a native decoder.
That may crash, so what gets there is read anew in a worker of intake's own pool, as in production. FOLDER gets `statistics.json`,
the corpus, and each input that raised (`crash-*`) or cost its worker (`lost-*`). The same seed gives the same run.
"""

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEED_BYTES = 40_000
"""Larger seeds only slow the search down."""
LIMIT_S = 10.0
MAX_PIXELS = 4_000_000
"""So that an honest large image does not look like a hang."""


class _AtTheDoor(BaseException):
    """A native decoder would be called now. No Exception, since the reader would catch that."""


class Target:
    """What libFuzzer calls, and what came of it."""

    def __init__(self, out: Path, executions: int) -> None:
        from vet_extensions.intake import decode
        from vet_extensions.intake.deidentify import Pseudonyms
        from vet_extensions.intake.header import HeaderReader
        from vet_extensions.intake.image import ImageReader
        from vet_extensions.intake.options import IntakeOptions
        from vet_extensions.intake.pool import WorkerPool
        from vet_extensions.intake.sources.dicom_folder import DicomFolder

        options = IntakeOptions(longest_side_px=64, max_pixels=MAX_PIXELS, accept_secondary_capture=True)
        source = DicomFolder(out)
        self._read_header = HeaderReader(Pseudonyms("a salt for fuzzing"), options, source)
        self._read_image = ImageReader(options, source)
        decode_here = decode._decode

        def decode_no_native(dataset: Any, syntax: str, *more: Any) -> Any:
            if decode.DECODERS[syntax] != ("",):
                raise _AtTheDoor
            return decode_here(dataset, syntax, *more)

        decode._decode = decode_no_native  # in this process; the workers import their own
        self._pool = WorkerPool(1)
        self._out, self._file = out, out / f"input-{os.getpid()}"
        self._executions = executions
        self._start = time.monotonic()
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0

    def __call__(self, data: bytes) -> None:
        start = time.monotonic()
        self._file.write_bytes(data)
        self.outcomes["executions"] += 1
        for pass_name, code in self._read(data):
            self.outcomes[f"{pass_name}: {code}"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        n_done = self.outcomes["executions"]
        if n_done % 1000 == 0 or n_done >= self._executions:
            self.write()

    def _read(self, data: bytes) -> Iterator[tuple[str, str]]:
        from vet_extensions.schema import Rejection

        records = self._read_header((self._file.name, "file", None))
        if isinstance(records, Rejection):
            yield "header", _code(records)
            return
        yield "header", "passed"
        for record in {id(record): record for record in (records[0], records[-1])}.values():
            task, where = (self._file.name, record.frame), "pixels here"
            try:
                image = self._read_image(task)
            except _AtTheDoor:
                image, where = self._in_worker(task, data), "pixels in a worker"
            yield where, _code(image) if isinstance(image, Rejection) else "an image"

    def _in_worker(self, task: tuple[str, int], data: bytes) -> Any:
        from vet_extensions.schema import Rejection, RejectionCode

        def lost(code: RejectionCode) -> Any:
            (self._out / f"lost-{code}-{self.outcomes['executions']}").write_bytes(data)
            return Rejection(code, "")

        (image,) = self._pool.ordered_map(
            self._read_image,
            [task],
            chunk_size=1,
            on_death=lambda _: lost(RejectionCode.WORKER_DIED),
            on_timeout=lambda _: lost(RejectionCode.TIMED_OUT),
            on_out_of_memory=lambda _: lost(RejectionCode.OUT_OF_MEMORY),
            limit_s=LIMIT_S,
        )
        return image

    def write(self) -> None:
        """libFuzzer ends the process without a word, so the figures are written as they grow."""
        elapsed_s = time.monotonic() - self._start
        figures = {
            "executions": self.outcomes["executions"],
            "seconds": round(elapsed_s, 1),
            "executions_per_second": round(self.outcomes["executions"] / elapsed_s, 1),
            "slowest_execution_s": round(self.slowest_s, 2),
            "outcomes": dict(sorted(self.outcomes.items())),
        }
        (self._out / "statistics.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Write the seeds, then fuzz; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=200_000, help="inputs to try, the seeds among them")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random numbers")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus, statistics and findings")
    args = parser.parse_args()
    # Neither can be seen by a type checker: atheris is installed for this alone, and tests/ is no package.
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["pydicom", "vet_extensions.intake"]):
        target = Target(args.out, args.executions)
    corpus = args.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    write_seeds(corpus)
    flags = {
        "runs": args.executions,
        "seed": args.seed,
        "max_len": SEED_BYTES,
        "timeout": 60,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{args.out}/",
    }
    atheris.Setup([sys.argv[0], *(f"-{name}={value}" for name, value in flags.items()), str(corpus)], target)
    atheris.Fuzz()


def write_seeds(folder: Path) -> None:
    """Small files of every syntax, the files of the bad-input table, and those that pydicom brings."""
    sys.path.insert(0, str(ROOT / "tests"))
    import pydicom.data

    kinds = importlib.import_module("bad_inputs")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in (*kinds.good_files(), *kinds.bad_inputs()):
            (Path(scratch) / kind.name).mkdir()
            kind.write(Path(scratch) / kind.name)
        for root in (Path(scratch), Path(pydicom.data.__file__).parent):
            for path in sorted(root.rglob("*.dcm")):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= SEED_BYTES:
                    content = path.read_bytes()
                    (folder / hashlib.sha1(content).hexdigest()).write_bytes(content)


def _code(rejection: Any) -> str:
    """The code; with the kind of exception where only the last net caught it."""
    is_netted = "cannot be interpreted" in rejection.detail
    return f"{rejection.code}, {rejection.detail}" if is_netted else str(rejection.code)


if __name__ == "__main__":
    main()
