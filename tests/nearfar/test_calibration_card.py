"""What the card says of thresholds and false alarms is what was done."""

from typing import Any

import pytest

from nearfar.calibration_card import calibration_sentence, false_alarm_section
from nearfar.false_alarms import FalseAlarmRate

FAN = "2026/fan/00"
RATES = [
    FalseAlarmRate(FAN, "source", 0.1, 1 / 12, 50, 0.12, 0.0453, 0.2431),
    FalseAlarmRate(FAN, "source", 0.01, 0.0, 50, 0.0, 0.0, 0.0711),
    FalseAlarmRate(FAN, "all", 0.01, 0.0, 60, 0.015, 0.0031, 0.0432),
    FalseAlarmRate(FAN, "all", 0.1, 1 / 12, 60, 0.5, 0.4287, 0.5713),
    FalseAlarmRate("all", "all", 0.01, None, 200, 0.015, 0.0031, 0.0432),
    FalseAlarmRate("all", "all", 0.1, None, 200, 0.5, 0.4287, 0.5713),
]
ROWS = [rate._asdict() for rate in RATES]


@pytest.mark.parametrize(
    ("recipe", "frozen", "count", "said"),
    [
        ({}, False, 38, "38 other normal clips, of neither training nor bank"),  # of old runs
        ({"calibration": "held_out", "num_folds": 5}, True, 38, "38 other normal clips"),
        ({"calibration": "held_out"}, True, 0, "each reference was scored by the others"),
        ({"calibration": "held_out"}, False, 0, "there are no thresholds"),
        (
            {"calibration": "cross_fitted", "num_folds": 4},
            False,
            38,
            "4 more encoders were trained",
        ),
        (
            {"calibration": "cross_fitted", "num_folds": 4},
            True,
            38,
            "by a bank without its part, one of 4",
        ),
    ],
)
def test_the_card_says_which_clips_set_the_thresholds(
    recipe: dict[str, Any], frozen: bool, count: int, said: str
) -> None:
    metrics = {"frozen_encoder": frozen, "num_calibration": count}
    assert said in calibration_sentence(recipe, metrics)


def test_the_card_has_a_line_for_each_machine_and_domain_and_a_cell_for_each_rate() -> None:
    text = false_alarm_section(ROWS, tuned_folds=False)
    assert "| machine | domain | clips | at nominal 1 % | at nominal 10 % |" in text
    assert f"| {FAN} | source | 50 | 0.0 (0.0 to 7.1) [0.0] | 12.0 (4.5 to 24.3) [8.3] |" in text
    assert "| all | all | 200 | 1.5 (0.3 to 4.3) | 50.0 (42.9 to 57.1) |" in text
    assert "the 60\ncalibration clips" in text
    assert "encoders" not in text


def test_the_card_of_cross_fitted_encoders_says_what_its_measurement_leaves_out() -> None:
    assert "most were trained on the judged clip" in false_alarm_section(ROWS, tuned_folds=True)


def test_what_was_not_measured_is_said() -> None:
    assert false_alarm_section([], tuned_folds=False).startswith("Not measured: there are no two")
