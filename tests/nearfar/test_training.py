"""What training hears, and how its state is kept."""

from pathlib import Path

import pytest
import torch

from modeling import AsdConfig, AsdForProxyClassification
from nearfar.augmentation import crop
from nearfar.training import (
    JsonLinesTracker,
    Progress,
    TrainingOptions,
    augmented,
    latest_checkpoint,
)
from tests.tiny import TINY_ENCODER


def tiny(**options: object) -> AsdForProxyClassification:
    torch.manual_seed(0)
    return AsdForProxyClassification(AsdConfig(encoder_config=dict(TINY_ENCODER), **options))


def batch_of(num_clips: int = 4, num_samples: int = 16_000) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    near, far = 0.1 * torch.randn(2, num_clips, num_samples, generator=generator)
    return {
        "near_values": near,
        "far_values": far,
        "has_far": torch.ones(num_clips, dtype=torch.bool),
        "attention_mask": torch.ones(num_clips, num_samples, dtype=torch.long),
        "labels": torch.zeros(num_clips, dtype=torch.long),
        "index": torch.arange(10, 10 + num_clips),
    }


def test_what_a_clip_hears_does_not_depend_on_its_batch() -> None:
    model, batch = tiny(), batch_of()
    options = TrainingOptions(far_mixing=0.5, crop_seconds=0.4, seed=3)
    together = augmented(model, batch, options, epoch=2)
    for i in range(4):
        one = {name: values[i : i + 1] for name, values in batch.items()}
        alone = augmented(model, one, options, epoch=2)
        assert torch.equal(alone["near_values"][0], together["near_values"][i])


def test_every_epoch_hears_another_mixture_and_another_piece() -> None:
    model, batch = tiny(), batch_of()
    options = TrainingOptions(far_mixing=0.5, crop_seconds=0.4)
    first, second = (augmented(model, batch, options, epoch)["near_values"] for epoch in (0, 1))
    assert not torch.isclose(first, second).all(dim=1).any()
    again = augmented(model, batch, options, 0)["near_values"]
    assert torch.equal(first, again)


def test_without_augmentation_the_batch_is_as_it_came() -> None:
    batch = batch_of()
    heard = augmented(tiny(), batch, TrainingOptions(), epoch=0)
    assert heard.keys() == batch.keys() - {"index"}
    assert all(torch.equal(heard[name], batch[name]) for name in heard)


def test_far_mixing_adds_at_most_its_share_of_far() -> None:
    batch = batch_of()
    heard = augmented(tiny(), batch, TrainingOptions(far_mixing=0.5), epoch=0)
    added = heard["near_values"] - batch["near_values"]
    gain = (added * batch["far_values"]).sum(1) / batch["far_values"].square().sum(1)
    assert ((gain >= 0) & (gain <= 0.5)).all()
    torch.testing.assert_close(added, gain[:, None] * batch["far_values"], atol=1e-6, rtol=1e-4)


def test_a_piece_lies_inside_its_clip_and_a_shorter_clip_stays_whole() -> None:
    batch = batch_of()
    batch["attention_mask"][1, 5_000:] = 0  # shorter than the piece
    batch["near_values"][1, 5_000:] = 0
    heard = augmented(tiny(), batch, TrainingOptions(crop_seconds=0.5), epoch=0)
    assert heard["near_values"].shape == (4, 8_000)
    assert heard["attention_mask"].sum(dim=1).tolist() == [8_000, 5_000, 8_000, 8_000]
    assert torch.equal(heard["near_values"][1, :5_000], batch["near_values"][1, :5_000])


def test_the_front_end_hears_the_whole_clip_before_the_crop() -> None:
    model, batch = tiny(front_end="complex_least_squares"), batch_of()
    heard = augmented(model, batch, TrainingOptions(crop_seconds=0.5), epoch=0)
    whole = model.asd.waveforms(
        batch["near_values"], batch["far_values"], batch["attention_mask"], None
    )["near"]
    for i in range(4):
        windows = whole[i].unfold(0, 8_000, 1)
        assert (windows == heard["near_values"][i]).all(dim=1).any()
    assert not heard["far_values"].any()  # nothing is left to cancel a second time


def test_the_guard_decides_what_a_clip_hears_before_the_crop() -> None:
    model, batch = tiny(front_end="complex_least_squares"), batch_of()
    options = TrainingOptions(crop_seconds=0.5)
    strengths = {"front_end_strength": torch.tensor([0.0, 1.0, 0.5, 1.0])}
    guarded = augmented(model, batch | strengths, options, epoch=0)
    always = augmented(model, batch, options, epoch=0)["near_values"]
    never = augmented(tiny(), batch, options, epoch=0)["near_values"]
    expected = torch.stack([never[0], always[1], (never[2] + always[2]) / 2, always[3]])
    torch.testing.assert_close(guarded["near_values"], expected)
    assert "front_end_strength" not in guarded  # it is done


def test_a_crop_behind_a_front_end_that_keeps_far_is_refused() -> None:
    model = tiny(front_end="complex_least_squares", channels=["near", "far"])
    with pytest.raises(ValueError, match="crop_seconds cannot follow"):
        augmented(model, batch_of(), TrainingOptions(crop_seconds=0.5), epoch=0)


def test_crop_cuts_where_it_is_told() -> None:
    values = torch.arange(20).reshape(2, 10)
    assert crop(values, torch.tensor([0, 7]), 3).tolist() == [[0, 1, 2], [17, 18, 19]]


def test_progress_comes_back_and_refuses_other_clips() -> None:
    progress = Progress(epoch=2, batch=5, step=31, data_digest="a")
    restored = Progress(data_digest="a")
    restored.load_state_dict(progress.state_dict())
    assert restored == progress
    with pytest.raises(ValueError, match="differ from those"):
        Progress(data_digest="b").load_state_dict(progress.state_dict())


def test_the_latest_checkpoint_is_the_one_of_most_updates(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        (tmp_path / f"step_{step:06d}").mkdir()
    (tmp_path / ".step_000200.partial").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_000100"


def test_the_tracker_appends_one_object_per_line(tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path / "logs")
    tracker.store_init_configuration({"seed": 1})
    tracker.log({"loss": 2.5}, step=1)
    lines = (tmp_path / "logs" / "log.jsonl").read_text().splitlines()
    assert lines == ['{"config": {"seed": 1}}', '{"step": 1, "loss": 2.5}']
