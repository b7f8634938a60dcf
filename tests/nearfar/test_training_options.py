"""Which options are refused, and what the answer says."""

import pytest

from nearfar.training_options import TrainingOptions, check_training


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be at least 1"),
        ({"gradient_accumulation_steps": -8}, "must be at least 1"),
        ({"eval_steps": 0}, "eval_steps=0 must be at least 1"),
        ({"learning_rate": -1e-4}, "learning_rate=-0.0001 must not be negative"),
        ({"time_mask": -1}, "time_mask=-1 must not be negative"),
        ({"mixup_probability": 1.5}, r"mixup_probability=1.5 must be in \[0, 1\]"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must be in \[0, 1\)"),
        ({"target_share": 0.0}, r"target_share=0.0 must be in \(0, 1\)"),
        ({"crop_seconds": 0.0}, "crop_seconds=0.0 must be positive"),
        ({"crop_seconds": float("nan")}, "must be positive"),
        ({"noise_probability": 0.5, "noise_snrs_db": []}, "noise_snrs_db names no"),
    ],
)
def test_an_option_out_of_its_range_is_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_training(TrainingOptions(**option))


def test_the_defaults_are_accepted() -> None:
    check_training(TrainingOptions())
