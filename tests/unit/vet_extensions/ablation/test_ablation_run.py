"""What a cell does beside training: taking a trained network over, and refusing what its hash does not stand for."""

import pytest
from plan_factory import make_ablation, take_cell

from vet_extensions.ablation.cells import CELL_FILE, Cell, cell_folder, read_json, write_json
from vet_extensions.ablation.identity import code_hash
from vet_extensions.ablation.run import ADOPTED_FILE, adopt_training, cell_task
from vet_extensions.ablation.state import steps_done
from vet_extensions.errors import UserError


@pytest.fixture
def cells(tmp_path) -> list[Cell]:
    """Two cells of one training, of which the first one is done."""
    cells = make_ablation(tmp_path, seeds=2)
    for cell in cells:
        write_json(
            cell_folder(tmp_path, cell) / CELL_FILE, {"training": "t", "processes": 1, "plugins": [], "code": "c"}
        )
    run = cell_folder(tmp_path, cells[0]) / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "training_metrics.json").write_text('{"iteration": 9}\n')
    take_cell(tmp_path, cells[0], {"job": "1"}).finish(processes=1, device="cpu", earlier=100.0)
    return cells


def test_the_training_of_a_done_cell_is_taken_over_with_its_cost(tmp_path, cells):
    place = cell_folder(tmp_path, cells[1])
    adopt_training(place)
    assert steps_done(place) == 10
    assert read_json(place / ADOPTED_FILE)["cost"] >= 100.0
    assert not (place / "run" / "checkpoints").exists()


def test_another_training_is_not_taken_over(tmp_path, cells):
    place = cell_folder(tmp_path, cells[1])
    write_json(place / CELL_FILE, {"training": "u"})
    adopt_training(place)
    assert not (place / "run").exists()


def test_a_training_that_has_begun_is_not_replaced(tmp_path, cells):
    place = cell_folder(tmp_path, cells[1])
    (place / "run").mkdir()
    adopt_training(place)
    assert not (place / ADOPTED_FILE).exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"processes": 4}, "trains in 4 process"), ({"code": "of before"}, "code of training or evaluation was changed")],
)
def test_a_start_that_is_not_what_was_planned_fails_in_words(tmp_path, cells, facts, message):
    place = cell_folder(tmp_path, cells[1])
    planned = {"processes": 1, "plugins": [], "code": code_hash(), "training": "u"}
    write_json(place / CELL_FILE, {**planned, **facts})
    with pytest.raises(UserError, match=message):
        cell_task(tmp_path, cells[1].name, data=tmp_path, options=()).run_here()
    state = read_json(place / "state.json")
    assert state["state"] == "failed"
    assert message in state["why"]
