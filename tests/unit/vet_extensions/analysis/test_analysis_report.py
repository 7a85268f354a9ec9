"""The report is one self-contained, accessible, escaped page that states intervals and no winner."""

import numpy as np
import pytest

from tests.html_page import Page
from vet_extensions.analysis import report as report_module
from vet_extensions.analysis.curves import RunCurves
from vet_extensions.analysis.learning import describe_learning
from vet_extensions.analysis.report import (
    CropPanel,
    PicturePanel,
    ReportInputs,
    describe_difference,
    write_report,
)
from vet_extensions.errors import UserError


def result(arm: str, seed: int | None, value: float, *, group: str = "gross", level: str = "study") -> dict:
    return {
        "arm": arm,
        "seed": seed,
        "level": level,
        "group": group,
        "protocol": "knn",
        "metric": "macro_auroc",
        "value": value,
        "low": value - 0.04,
        "high": value + 0.04,
    }


def difference(baseline: str, value: float, *, group: str = "gross") -> dict:
    return {
        "a": "vet_dino",
        "b": baseline,
        "group": group,
        "metric": "macro_auroc",
        "difference": value,
        "low": value - 0.05,
        "high": value + 0.05,
    }


def curves(*, arm: str = "vet_dino", entropy: float = 4.6, dino_loss: float = 5.4) -> RunCurves:
    metrics = {
        "iteration": np.arange(10.0),
        "total_loss": np.linspace(6, 5, 10),
        "teacher_entropy": np.full(10, entropy),
        "dino_local_crops_loss": np.full(10, 0.6 * dino_loss),
        "dino_global_crops_loss": np.full(10, 0.4 * dino_loss),
    }
    return RunCurves(arm=arm, seed=0, metrics=metrics, knn=((0, 0.5), (10, 0.6)), n_prototypes=256)


def full_inputs(**changes) -> ReportInputs:
    grey = np.random.default_rng(0).integers(0, 256, (96, 80), dtype=np.uint8)
    parts = {
        "title": "VET-DINO demo",
        "intake_summary": {"images": 1200, "views": {"VD": 300, "DV": 300}, "rejected": {"NOT_DICOM": 1}},
        "sample_studies": [(["LATERAL_LEFT", "VD"], [grey, grey]), (["DV"], [grey])],
        "crop_panels": [CropPanel("vet_dino", ["slot | weight", "g0   | 0.1"], [("student global 0 / view A", grey)])],
        "curves": [curves(arm="same_image"), curves(arm="vet_dino")],
        "results": [
            result("random_init", None, 0.56),
            result("raw_pixels#2", None, 0.52),
            result("same_image", 0, 0.61),
            result("vet_dino", 0, 0.63),
            result("vet_dino", 0, 0.55, group="fine"),
        ],
        "comparisons": [
            difference("same_image", 0.02),
            difference("same_image", 0.03, group="fine"),
            difference("random_init", 0.07),
        ],
        "export_parity": [{"arm": "vet_dino", "max_abs_cls": 1.2e-6, "n_images": 2, "passed": True}],
        "attention": [PicturePanel("vet_dino", "Last block.", [("head 0 / VD", grey)])],
        "components": [PicturePanel("vet_dino", "Joint over views.", [("VD", np.zeros((8, 8, 3), np.uint8))])],
        "environment": {"versions": {"torch": "2.13.0"}, "cores": 2, "seconds": {"intake": 3.25}},
        "notes": ["One machine, two cores."],
    }
    return ReportInputs(**(parts | changes))


@pytest.fixture(scope="module")
def full_page(tmp_path_factory) -> Page:
    return Page(
        write_report(full_inputs(), tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")
    )


def test_the_page_refers_to_nothing_outside_itself(full_page):
    for tag, attributes in full_page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name, "#")
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"


def test_the_page_names_no_address_and_no_script(tmp_path):
    html = write_report(full_inputs(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert "@import" not in html


def test_every_picture_has_an_alternative_text_and_a_size(full_page):
    pictures = full_page.all("img")
    assert len(pictures) >= 3 + 1 + 1 + 1 + 3
    assert all(p["alt"] and int(p["width"]) and int(p["height"]) for p in pictures)


def test_every_table_has_a_caption_and_every_header_cell_a_scope(full_page):
    assert len(full_page.all("table")) == len(full_page.all("caption"))
    assert all(cell["scope"] in ("col", "row", "rowgroup") for cell in full_page.all("th"))


def test_every_link_inside_the_page_has_its_target_once(full_page):
    ids = [attributes["id"] for _, attributes in full_page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in full_page.all("a")} <= set(ids)


def test_values_stand_with_their_intervals_and_controls_are_marked(full_page):
    text = " ".join(full_page.text.split())
    assert "0.630 0.590 to 0.670" in text
    assert "random_init control" in text
    assert "raw_pixels#2 control" in text
    assert "95 % bootstrap interval over patients" in text


def test_the_headline_holds_only_the_chosen_group(full_page):
    headline, rest = full_page.text.split("Every measurement and every difference")
    assert "group gross" in headline
    assert "group fine" not in headline
    assert rest.count("group fine") == 2


def test_the_page_names_no_winner(full_page):
    words = full_page.text.lower().split()
    assert not {"winner", "wins", "best", "better", "outperforms", "superior", "beats"} & set(words)


def test_a_mean_over_seeds_says_of_how_many_and_a_group_on_how_many_patients(tmp_path):
    mean = {**result("vet_dino", None, 0.6), "kind": "mean", "n_seeds": 2, "n_images": 1600, "n_patients": 400}
    inputs = full_inputs(results=[mean], headline={"group": "gross", "kind": "mean"})
    text = Page(write_report(inputs, tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "mean of 2" in text
    assert "1,600 studies of 400 patients" in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.01, 0.02, "No difference shown"),
        (0.0, 0.02, "No difference shown"),
        (0.01, 0.02, "a measured higher than b"),
        (-0.02, -0.01, "a measured lower than b"),
        (None, None, "nothing can be said"),
        (float("nan"), 0.1, "nothing can be said"),
    ],
)
def test_a_difference_is_stated_only_where_its_interval_leaves_zero_out(low, high, expected):
    assert expected in describe_difference({"a": "a", "b": "b", "difference": 0.0, "low": low, "high": high})


def test_only_a_run_below_ln_k_in_entropy_and_in_loss_has_learned():
    assert describe_learning(curves(entropy=5.54)).startswith("Collapsed")
    assert describe_learning(curves(entropy=4.64)).startswith("Learned: teacher entropy 84% of ln K")
    assert describe_learning(curves(entropy=4.64, dino_loss=5.6)).startswith("Not learned")
    assert describe_learning(RunCurves("a", 0)).startswith("Not checked")


def test_hostile_text_is_shown_not_obeyed(tmp_path):
    hostile = '<img src=x onerror="alert(1)">&"\''
    grey = np.zeros((8, 8), dtype=np.uint8)
    inputs = full_inputs(
        title=hostile,
        intake_summary={hostile: hostile},
        sample_studies=[([hostile], [grey])],
        crop_panels=[CropPanel(hostile, [hostile], [(hostile, grey)])],
        attention=[PicturePanel(hostile, hostile, [(hostile, grey)])],
        results=[result(hostile, 0, 0.5)],
        notes=[hostile],
    )
    page = Page(write_report(inputs, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(p["src"].startswith("data:image/") for p in page.all("img"))
    assert hostile in page.text


def test_a_report_of_a_title_alone_is_still_a_page(tmp_path):
    page = Page(write_report(ReportInputs(title="Nothing yet"), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("table")
    assert not page.all("img")


def test_too_many_pictures_are_made_smaller_until_the_file_fits(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    inputs = ReportInputs(title="Many", sample_studies=[(["VD"] * 4, [noise] * 4)])
    monkeypatch.setattr(report_module, "MAX_BYTES", 120_000)
    path = write_report(inputs, tmp_path / "report.html")
    assert path.stat().st_size < 120_000
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


def test_a_report_that_cannot_fit_is_refused_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "MAX_BYTES", 1_000)
    with pytest.raises(UserError, match="Give fewer"):
        write_report(full_inputs(), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    first = write_report(full_inputs(), tmp_path / "a.html").read_bytes()
    assert first == write_report(full_inputs(), tmp_path / "b.html").read_bytes()
