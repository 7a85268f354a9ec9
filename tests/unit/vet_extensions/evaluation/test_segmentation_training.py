"""Losses and training: monai's numbers, frozen means frozen, a killed fit goes on, choice on validation alone."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_factory import make_backbone, make_set

from vet_extensions.analysis.pages import page_environment
from vet_extensions.errors import UserError
from vet_extensions.evaluation.leaderboard import TEMPLATES, write_leaderboard
from vet_extensions.evaluation.leaderboard_rows import standings_of
from vet_extensions.evaluation.segmentation.losses import build_loss
from vet_extensions.evaluation.segmentation.run import PATCH_GRID_TRUTH, run_segmentation
from vet_extensions.evaluation.segmentation.sets import IGNORED, SegmentationSet
from vet_extensions.evaluation.segmentation.training import SegmentationConfig, fit, predict, trained_state

QUICK = SegmentationConfig(learning_rates=(0.03,), epochs=4, epochs_per_look=2, batch_size=4)


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[part][name], other[part][name]) for part in one for name in one[part])


@pytest.fixture(autouse=True)
def _with_monai(request: pytest.FixtureRequest) -> None:
    if "absent" not in request.node.name:
        pytest.importorskip("monai")


def test_losses_equal_monais_where_every_pixel_is_known() -> None:
    from monai.losses import DiceCELoss, DiceLoss

    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    dice, both = DiceLoss(softmax=True, to_onehot_y=True), DiceCELoss(softmax=True, to_onehot_y=True)
    for name, theirs in (("dice", dice), ("dice_ce", both)):
        torch.testing.assert_close(build_loss(name)(logits, target), theirs(logits, target[:, None]))


@pytest.mark.parametrize("name", ["dice", "dice_ce"])
def test_pixels_that_nobody_labelled_give_no_gradient(name: str) -> None:
    logits, target = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randint(0, 2, (1, 4, 4))
    target[:, 2:] = IGNORED
    build_loss(name)(logits, target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].all()


def test_an_absent_monai_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.losses", None)
    with pytest.raises(UserError, match=r"pip install 'vet-dino\[seg\]'"):
        build_loss("dice")


@pytest.mark.parametrize("window_px", [None, 16])
@pytest.mark.parametrize("is_tuned", [False, True])
def test_only_the_intended_weights_change(tmp_path: Path, *, is_tuned: bool, window_px: int | None) -> None:
    backbone = make_backbone()
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    config = replace(QUICK, is_tuned=is_tuned, window_px=window_px)
    fitted = fit(backbone, make_set(), config, decoder="linear", folder=tmp_path)
    after = fitted.segmenter.network.state_dict()
    assert all(torch.equal(before[name], value) for name, value in backbone.model.state_dict().items())
    assert all(torch.equal(before[name], after[name]) != is_tuned for name in before)


@pytest.mark.parametrize("decoder", ["linear", pytest.param("unet", marks=pytest.mark.slow)])
def test_squares_are_found(tmp_path: Path, decoder: str) -> None:
    data = make_set()
    fitted = fit(make_backbone(), data, replace(QUICK, epochs=20), decoder=decoder, folder=tmp_path)
    row = int(data.rows("test")[0])
    found = predict(fitted.segmenter, data.read(row), QUICK)
    assert found.shape == data.mask(row).shape
    assert (found == data.mask(row)).mean() > 0.85


def test_kept_features_give_what_computing_them_each_time_gives(tmp_path: Path) -> None:
    kept, anew = (
        fit(make_backbone(), make_set(), replace(QUICK, keep_gib=gib), decoder="bn_linear", folder=tmp_path / str(gib))
        for gib in (1.0, 0.0)
    )
    assert kept.val_dice == pytest.approx(anew.val_dice, abs=0.02)  # half precision


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_killed_fit_goes_on_as_if_it_had_not_been(tmp_path: Path, *, is_tuned: bool) -> None:
    config = replace(QUICK, epochs=6, is_tuned=is_tuned, window_px=16)
    whole = fit(make_backbone(), make_set(), config, decoder="bn_linear", folder=tmp_path / "whole")

    epochs = 0

    def die() -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 3:  # the last look was after epoch 2
            raise KeyboardInterrupt

    arguments = {"decoder": "bn_linear", "folder": tmp_path / "killed"}
    with pytest.raises(KeyboardInterrupt):
        fit(make_backbone(), make_set(), config, on_epoch=die, **arguments)  # type: ignore[arg-type]
    again = fit(make_backbone(), make_set(), config, **arguments)  # type: ignore[arg-type]
    assert same(trained_state(whole.segmenter), trained_state(again.segmenter))
    assert (whole.epoch, whole.val_dice) == (again.epoch, again.val_dice)


def test_what_is_chosen_does_not_depend_on_the_test_cases(tmp_path: Path) -> None:
    data = make_set()

    def unreadable(row: int) -> np.ndarray:
        assert row not in data.rows("test"), "a test case was read before the choice"
        return data.read(row)

    hidden = SegmentationSet(**{**vars(data), "read": unreadable})
    config = replace(QUICK, learning_rates=(1e-4, 0.03))
    fitted = fit(make_backbone(), hidden, config, decoder="linear", folder=tmp_path)
    assert fitted.learning_rate == 0.03


def test_a_run_gives_scores_their_control_the_difference_and_the_patch_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vet_extensions.evaluation.segmentation.run.open_backbone", lambda _: make_backbone())
    rows = run_segmentation(["x"], make_set(), tmp_path, replace(QUICK, epochs=10), on_progress=lambda *_: None)
    of = {(row.kind, row.arm, row.metric): row for row in rows if row.group == "all"}
    arms = {(kind, arm) for kind, arm, _ in of}
    assert arms == {
        ("score", "patches"),
        ("score", "random_init"),
        ("difference", "patches"),
        ("score", PATCH_GRID_TRUTH),
    }
    trained = of["score", "patches", "case_dice"]
    assert trained.value > 0.5
    assert of["score", PATCH_GRID_TRUTH, "case_dice"].value > 0.9
    assert trained.low <= trained.value <= trained.high
    assert trained.config["n_decoder_parameters"] == 8 * 2 + 2
    difference = trained.value - of["score", "random_init", "case_dice"].value
    assert of["difference", "patches", "case_dice"].value == pytest.approx(difference)
    assert {row.group for row in rows} == {"all", "square"}


def test_a_run_has_a_page_with_the_better_score_first_in_each_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vet_extensions.evaluation.segmentation.run.open_backbone", lambda _: make_backbone())
    rows = run_segmentation(["x"], make_set(), tmp_path, replace(QUICK, epochs=10))
    page = write_leaderboard(tmp_path, page_environment(TEMPLATES)).read_text()
    assert "decoder linear, square" in page
    for metric, sign in (("case_dice", -1), ("hd95_mm", 1)):
        standings = [one for one in standings_of(rows) if (one.group, one.metric) == ("all", metric)]
        of_decoder = [sign * one.estimate.value for one in standings if one.protocol == "segment_linear"]
        assert of_decoder == sorted(of_decoder)
        assert {one.name: one.is_control for one in standings} == {
            "patches": False, "random_init": True, PATCH_GRID_TRUTH: True
        }  # fmt: skip
    assert "not distinguishable" in page or "better" in page


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vet_extensions.evaluation.segmentation.run.open_backbone", lambda _: make_backbone())
    first = run_segmentation(["x"], make_set(), tmp_path, QUICK)
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *_: pytest.fail("trained again"))
    again = run_segmentation(["x"], make_set(), tmp_path, QUICK)
    assert [row.value for row in first] == pytest.approx([row.value for row in again], nan_ok=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"decoders": ("magic",)}, "Unknown decoder 'magic'"),
        ({"loss": "focal"}, "Unknown loss 'focal'"),
        ({"learning_rates": ()}, "learning_rates"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_a_wrong_request_is_refused_with_what_is_allowed(change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(QUICK, **change)


@pytest.mark.parametrize(("size_px", "window_px", "sentence"), [(30, None, "not a multiple"), (32, 64, "more than")])
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, size_px: int, window_px: int | None, sentence: str) -> None:
    config = replace(QUICK, image_size_px=size_px, window_px=window_px)
    with pytest.raises(UserError, match=sentence):
        fit(make_backbone(), make_set(), config, decoder="linear", folder=tmp_path)
