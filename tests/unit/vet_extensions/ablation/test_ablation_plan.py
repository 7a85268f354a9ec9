"""The plan file: what it may hold, and what a mistake in it is answered with."""

import pytest
from plan_factory import write_plan

from vet_extensions.ablation.configuration import filled_options, resolve
from vet_extensions.ablation.plan import copy_plan, read_plan
from vet_extensions.errors import UserError


def test_on_and_off_are_names_of_arms(tmp_path):
    path = write_plan(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("'on'", "on").replace("'off'", "off"))
    plan = read_plan(path)
    assert "'on'" in text
    assert list(plan.axes["ibot"]) == ["on", "off"]
    assert plan.baseline["ibot"] == "on"


def test_the_full_design_has_every_combination(tmp_path):
    assert len(read_plan(write_plan(tmp_path)).combinations()) == 4


def test_one_at_a_time_changes_one_arm_of_the_baseline(tmp_path):
    combinations = read_plan(write_plan(tmp_path, design="one_at_a_time")).combinations()
    assert combinations == [
        {"routing": "single_view", "ibot": "on"},
        {"routing": "multi_view", "ibot": "on"},
        {"routing": "single_view", "ibot": "off"},
    ]


def test_nested_options_are_the_same_as_dotted_ones(tmp_path):
    assert read_plan(write_plan(tmp_path, options={"optim": {"epochs": 3}})).options == {"optim.epochs": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, "Did you mean 'seeds'"),
        ({"question": None}, "lacks the key 'question'"),
        ({"design": "ful"}, "Did you mean 'full'"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"baseline": {"routing": "single_veiw", "ibot": "on"}}, "Did you mean 'single_view'"),
        ({"baseline": {"routing": "single_view"}}, "needs one arm of axis 'ibot'"),
        ({"axes": {"routing": {"one": {}}}}, "at least two arms"),
        ({"metrics": ["knn/study/all/macro_aurok"]}, "Did you mean 'macro_auroc'"),
        ({"metrics": ["knn/lateral/all/macro_auroc"]}, "does not measure 'lateral'"),
        ({"base": "nowhere.yaml"}, "does not exist: nowhere.yaml"),
        ({"name": "a b"}, "letters, digits"),
    ],
)
def test_a_mistake_is_named_with_its_cure(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_plan(write_plan(tmp_path, **changes))


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(UserError, match=r"(?s)'design' is.*'seeds' must"):
        read_plan(write_plan(tmp_path, design="x", seeds=[]))


def test_a_copy_is_the_same_plan_without_the_files_it_came_from(tmp_path):
    path = write_plan(tmp_path / "plans")
    (tmp_path / "out").mkdir()
    plan = read_plan(path)
    copy_plan(path, tmp_path / "out" / "plan.yaml")
    path.unlink()
    copied = read_plan(tmp_path / "out" / "plan.yaml")
    assert copied.base.parent == tmp_path / "out"
    assert (copied.axes, copied.baseline, copied.seeds) == (plan.axes, plan.baseline, plan.seeds)


def test_an_arm_lays_its_options_over_those_of_all_cells(tmp_path):
    plan = read_plan(write_plan(tmp_path))
    config = resolve(plan, {"routing": "single_view", "ibot": "off"})
    assert (config.routing.name, config.ibot.loss_weight, config.optim.epochs) == ("same_image", 0, 2)


def test_keys_of_the_data_set_go_into_its_string(tmp_path):
    axes = {"data": {"all": {}, "dogs": {"dataset": {"where": "species == 'canine'", "pairing": "any"}}}}
    plan = read_plan(write_plan(tmp_path, axes=axes, baseline={"data": "all"}))
    path = resolve(plan, {"data": "dogs"}).train.dataset_path
    assert path == "VetStudies:root={data}:where=species == 'canine':pairing=any"


def test_a_key_that_no_training_knows_is_told_with_its_arm(tmp_path):
    axes = {"ibot": {"on": {}, "off": {"ibot.loss_wieght": 0}}}
    plan = read_plan(write_plan(tmp_path, axes=axes, baseline={"ibot": "on"}))
    with pytest.raises(UserError, match=r"axis 'ibot', arm 'off'.*Did you mean 'ibot.loss_weight'"):
        resolve(plan, {"ibot": "on"})


def test_the_seed_is_for_the_plan_to_say(tmp_path):
    plan = read_plan(write_plan(tmp_path, options={"train.seed": 3}))
    with pytest.raises(UserError, match="'seeds' of the plan decides it"):
        resolve(plan, plan.baseline)


def test_placeholders_stay_in_the_configuration_and_are_filled_for_a_start(tmp_path):
    plan = read_plan(write_plan(tmp_path, options={"student.pretrained_weights": "{weights}"}))
    config = resolve(plan, plan.baseline)
    options = filled_options(config, {"data": "D", "weights": "W"})
    assert config.student.pretrained_weights == "{weights}"
    assert set(options) == {'train.dataset_path="VetStudies:root=D"', 'student.pretrained_weights="W"'}


def test_a_placeholder_without_a_value_is_named(tmp_path):
    plan = read_plan(write_plan(tmp_path, options={"student.pretrained_weights": "{weights}"}))
    with pytest.raises(UserError, match="--set weights=VALUE"):
        filled_options(resolve(plan, plan.baseline), {"data": "D"})
