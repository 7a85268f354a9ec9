"""Reading training logs and drawing them."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from vet_extensions.analysis.curves import RunCurves, entropy_figure, knn_figure, loss_figure, read_training_metrics
from vet_extensions.errors import UserError


def log_lines(n: int = 20) -> list[str]:
    return [
        json.dumps({"iteration": i, "total_loss": 6.0 - 0.1 * i, "teacher_entropy": 5.5 - 0.02 * i}) for i in range(n)
    ]


def run_curves(*, arm: str = "vet_dino", seed: int = 0, entropy: float = 4.6, n: int = 20) -> RunCurves:
    metrics = {
        "iteration": np.arange(n, dtype=float),
        "total_loss": np.linspace(6, 5, n),
        "teacher_entropy": np.full(n, entropy),
    }
    return RunCurves(arm=arm, seed=seed, metrics=metrics, knn=((0, 0.56), (n, 0.61)), n_prototypes=256)


def write(folder, lines):
    path = folder / "training_metrics.json"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_metrics_come_back_as_columns(tmp_path):
    metrics = read_training_metrics(write(tmp_path, log_lines()))
    assert metrics["iteration"].tolist() == list(range(20))
    assert metrics["total_loss"][3] == pytest.approx(5.7)


def test_a_field_missing_on_a_line_is_nan_there(tmp_path):
    metrics = read_training_metrics(write(tmp_path, [*log_lines(2), '{"iteration": 2, "koleo_loss": 0.5}']))
    assert math.isnan(metrics["total_loss"][2])
    assert math.isnan(metrics["koleo_loss"][0])


def test_iterations_logged_again_after_a_resume_count_once_with_their_later_values(tmp_path):
    metrics = read_training_metrics(write(tmp_path, [*log_lines(5), '{"iteration": 3, "total_loss": 1.0}']))
    assert metrics["iteration"].tolist() == [0, 1, 2, 3, 4]
    assert metrics["total_loss"][3] == 1.0


def test_a_last_line_cut_by_a_kill_is_skipped(tmp_path):
    assert len(read_training_metrics(write(tmp_path, [*log_lines(5), '{"iteration": 5, "tot']))["iteration"]) == 5


@pytest.mark.parametrize("lines", [['{"iteration": 0}', "nonsense", '{"iteration": 1}'], [""]])
def test_a_broken_or_empty_log_is_a_sentence(tmp_path, lines):
    with pytest.raises(UserError, match=r"training_metrics\.json"):
        read_training_metrics(write(tmp_path, lines))


def test_a_missing_log_is_a_sentence_without_its_folder(tmp_path):
    with pytest.raises(UserError) as error:
        read_training_metrics(tmp_path / "training_metrics.json")
    assert str(tmp_path) not in str(error.value)


def test_the_final_value_is_the_mean_of_the_last_tenth():
    run = RunCurves("a", 0, metrics={"x": np.array([9.0] * 18 + [1.0, 3.0, np.nan])})
    assert run.final("x") == 2.0
    assert math.isnan(run.final("never_logged"))


@pytest.mark.parametrize("draw", [loss_figure, entropy_figure, knn_figure])
def test_every_figure_is_an_image_and_the_same_twice(draw):
    runs = [run_curves(arm=arm, seed=seed) for arm in ("same_image", "vet_dino") for seed in (0, 1)]
    assert Image.open(io.BytesIO(draw(runs, image_format="png"))).width > 600
    svg = draw(runs, image_format="svg")
    assert b"<svg" in svg
    assert svg == draw(runs, image_format="svg")


def test_the_entropy_figure_shows_ln_k(monkeypatch):
    from matplotlib.axes import Axes

    drawn, draw = [], Axes.axhline
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **kwargs: drawn.append(y) or draw(self, y, **kwargs))
    entropy_figure([run_curves()])
    assert drawn == [math.log(256)]


def test_a_run_without_values_gives_a_figure_that_says_so():
    assert b"<svg" in loss_figure([RunCurves("vet_dino", 0)])


def test_no_figure_touches_pyplot():
    import subprocess
    import sys

    code = (
        "import sys; from vet_extensions.analysis.curves import RunCurves, loss_figure; "
        "loss_figure([RunCurves('a', 0)]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
