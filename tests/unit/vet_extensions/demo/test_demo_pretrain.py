"""Runs side by side: progress, failures, and a folder that another process still works in."""

import json
import sys
import threading
from pathlib import Path

import pytest

from dinov2.train.run_folder import sole_owner
from vet_extensions.demo.pretrain import PretrainJob, pretrain
from vet_extensions.errors import UserError

WRITES_ITS_METRICS = (
    "import pathlib, sys; pathlib.Path(sys.argv[1], 'training_metrics.json').write_text('{\"iteration\": 4}\\n')"
)


class ScriptJob(PretrainJob):
    """A job whose process is a line of Python instead of a training."""

    def command(self, n_threads: int) -> list[str]:
        return [sys.executable, "-c", self.options[0], str(self.output_dir)]


def job(folder: Path, script: str) -> ScriptJob:
    return ScriptJob(config_path=Path("unused.yaml"), output_dir=folder, options=(script,), n_steps=5)


def test_all_jobs_run_and_their_steps_add_up(tmp_path):
    seen = []
    jobs = [job(tmp_path / name, WRITES_ITS_METRICS) for name in "abc"]
    pretrain(jobs, n_workers=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)


def test_the_command_of_a_job_is_one_that_a_user_could_type(tmp_path):
    real = PretrainJob(config_path=Path("a.yaml"), output_dir=tmp_path, options=("train.seed=1",), n_steps=1)
    assert real.command(3)[1:] == [
        *("-m", "dinov2.train.train", "--config-file", "a.yaml", "--output-dir", str(tmp_path)),
        *("train.seed=1", "train.cpu_threads=3"),
    ]


def test_a_failed_job_is_named_with_the_end_of_its_output_and_the_others_are_stopped(tmp_path):
    jobs = [
        job(tmp_path / "fails", "import sys; print('the reason'); sys.exit(2)"),
        job(tmp_path / "goes_on", "import time; time.sleep(600)"),
    ]
    with pytest.raises(UserError, match=r"'fails' ended with exit code 2[\s\S]*the reason"):
        pretrain(jobs, n_workers=2, on_progress=lambda done, total: None)


def test_a_folder_in_which_a_process_still_trains_is_waited_for(tmp_path):
    calls = threading.Event()
    with sole_owner(tmp_path / "a"):

        def on_progress(done: int, total: int) -> None:
            calls.set()

        worker = threading.Thread(
            target=pretrain,
            args=([job(tmp_path / "a", WRITES_ITS_METRICS)],),
            kwargs={"n_workers": 1, "on_progress": on_progress},
        )
        worker.start()
        assert calls.wait(timeout=30)
        assert not (tmp_path / "a" / "training_metrics.json").exists()
    worker.join(timeout=30)
    assert json.loads((tmp_path / "a" / "training_metrics.json").read_text()) == {"iteration": 4}


def test_steps_are_counted_from_the_last_whole_line(tmp_path):
    unfinished = job(tmp_path, "")
    assert unfinished.steps_done() == 0
    (tmp_path / "training_metrics.json").write_text('{"iteration": 9}\n{"itera')
    assert unfinished.steps_done() == 10
