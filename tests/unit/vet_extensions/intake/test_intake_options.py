"""Options that cannot work are refused with what is allowed; what is reported holds no secret."""

from pathlib import Path

import pytest

from vet_extensions.errors import UserError
from vet_extensions.intake.options import IntakeOptions, IntakeSummary, LabelReport


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"longest_side_px": 4}, "at least 16"),
        ({"bits": 12}, "8 or 16"),
        ({"split_fractions": (0.9, 0.1, 0.2)}, "a sum of 1"),
        ({"split_fractions": (0.0, 0.5, 0.5)}, "train above 0"),
        ({"split_fractions": (0.7, -0.1, 0.4)}, "none negative"),
        ({"salt": "short"}, "fewer than 8"),
        ({"max_pixels": 0}, "at least 256"),
    ],
)
def test_an_option_that_cannot_work_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        IntakeOptions(**wrong)


def test_the_recorded_options_hold_neither_salt_nor_path() -> None:
    shown = str(IntakeOptions(salt="very secret", labels=Path("smith/labels.csv")).as_json())
    assert "secret" not in shown
    assert "smith" not in shown


def test_a_summary_survives_its_file() -> None:
    report = LabelReport(
        n_rows=3, n_rows_unmatched=1, n_images_without_row=0, columns=("mass",), ignored_columns=("age",)
    )
    summary = IntakeSummary(
        n_files=3,
        n_accepted=2,
        n_rejected=1,
        n_patients=1,
        n_studies=1,
        rejected={"NOT_DICOM": 1},
        splits={"train": {"patients": 1, "studies": 1, "images": 2}},
        labels=report,
    )
    again = IntakeSummary.from_json(summary.as_json())
    assert again.was_already_done
    assert again.as_json() == summary.as_json()
    assert again.labels == report
