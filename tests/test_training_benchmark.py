"""The benchmark of training: measures the recipe's own training, in a process each, once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from benchmarks import training
from nearfar.augmentation import mix_far
from nearfar.files import read_json
from tests.tiny import TINY_EAT, TINY_ENCODER

OS_SCL = {"head": "os_scl", "head_options": {"num_subcenters": 3}, "ema_decay": 0.9}


@pytest.mark.parametrize(
    ("values", "encoder"),
    [
        ({"far_mixing": 0.5, "mixup_alpha": 0.4, "crop_seconds": 0.3}, TINY_ENCODER),
        ({**OS_SCL, "pooling": "cls", "time_mask": 8, "adversaries": ["domain"]}, TINY_EAT),
        ({"lora_rank": 2, "trainable_layers": 1, "activation_checkpointing": True}, TINY_ENCODER),
    ],
    ids=["UNIS", "XJU", "LoRA"],
)
def test_updates_of_a_recipe_are_measured(values: dict[str, Any], encoder: dict[str, Any]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    asked = values | {"encoder_config": encoder, "train_batch_size": 4}
    asked |= {"gradient_accumulation_steps": 8}  # divided out
    figures = training.measure(asked, seconds=0.5, updates=2)
    assert figures["num_classes"] == 80
    assert figures["clips_per_second"] == pytest.approx(4 / figures["seconds_per_update"])
    assert figures["peak_gib"] > 0
    partly = "trainable_layers" in values
    assert (figures["trainable"] < figures["parameters"]) is partly


def test_what_is_measured_is_the_recipes_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    heard: list[int] = []

    def noted(near: Any, far: Any, gain: Any) -> Any:
        heard.append(len(near))
        return mix_far(near, far, gain)

    monkeypatch.setattr("nearfar.training_batches.mix_far", noted)
    values = {"far_mixing": 0.5, "encoder_config": TINY_ENCODER, "train_batch_size": 6}
    training.measure(values, seconds=0.3, updates=1)
    assert heard == [6, 6]  # the one before, and the one that is timed


def test_each_recipe_is_measured_once_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        commands.append(command)
        figures = {"encoder": "nearfar_beats", "batch_size": 2, "num_classes": 80, "device": "cpu"}
        figures |= dict.fromkeys(("seconds_per_update", "clips_per_second", "peak_gib"), 1.5)
        figures |= {"processor_clips_per_second": 0.5, "parameters": 2, "trainable": 3_000_000}
        figures |= {"setting": json.loads(command[-2])}
        Path(command[-1]).write_text(json.dumps(figures))

    monkeypatch.setattr(subprocess, "run", run)
    words = ["training.py", "--output_dir", tmp_path, "--recipes", "unis_2", "xju_1"]
    monkeypatch.setattr("sys.argv", [*map(str, words), "--batch_size", "2"])
    for _ in range(2):
        training.main()
    assert [Path(command[-1]).stem for command in commands] == ["unis_2", "xju_1"]
    assert all(command[0] == sys.executable for command in commands)
    values = read_json(tmp_path / "unis_2.json")["setting"]["values"]
    assert (values["far_mixing"], values["train_batch_size"]) == (0.5, 2)
    assert capsys.readouterr().out.count("3.0 M") == 4
    monkeypatch.setattr("sys.argv", [*map(str, words), "--batch_size", "4"])
    with pytest.raises(ValueError, match=r"measured with .*'train_batch_size': 2"):
        training.main()


def test_updates_of_a_baseline_are_measured_a_clip_being_all_its_stacked_frames() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    values = training.trained_recipes()["baseline_mse"] | {"mixed_precision": "no"}
    figures = training.measure(values, seconds=10.0, updates=2)
    vectors = (1 + 160_000 // 512) - 5 + 1
    expected = 256 / vectors / figures["seconds_per_update"]
    assert figures["clips_per_second"] == pytest.approx(expected)
    assert 200_000 < figures["trainable"] == figures["parameters"] < 300_000


def test_all_recipes_that_are_trained_are_measured() -> None:
    names = set(training.trained_recipes())
    assert {"unis_1", "unis_2", "xju_1", "xju_2", "xju_3", "beyond_lora"} <= names
    assert {"baseline_mse", "baseline_mahala", "beyond_na"} <= names
    assert not {"beyond_frozen", "beyond_cancel", "unis_3"} & names
