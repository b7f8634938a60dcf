"""What training hears of a batch: each augmentation, and that nothing but the clip decides it."""

from typing import Any

import pytest
import torch

from modeling import AsdConfig, AsdForProxyClassification
from nearfar.training_batches import augmented
from nearfar.training_clips import Collator, DrawnClips
from nearfar.training_options import TrainingOptions
from tests.tiny import TINY_ENCODER, TINY_NOISE_AWARE
from tests.training import EXTRACTOR, NUM_CLASSES, noise_clips, tiny_model


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
        "draw": torch.arange(10, 10 + num_clips),
    }


def heard(
    draws: list[int], options: TrainingOptions, epoch: int = 1, **config: Any
) -> dict[str, torch.Tensor]:
    """Return what training hears of clips of noise, loaded and collated as it does."""
    drawn = DrawnClips(noise_clips(), options)
    drawn.epoch = epoch
    batch = Collator(EXTRACTOR)([drawn[draw] for draw in draws])
    return augmented(tiny_model(**config), batch, options, epoch)


def sound(batch: dict[str, torch.Tensor], row: int, name: str = "near_values") -> torch.Tensor:
    """Return a clip of a batch without its padding."""
    return batch[name][row, batch["attention_mask"][row].bool()]


EVERYTHING = {
    "far_mixing": 0.5,
    "crop_seconds": 0.19,
    "mixup_alpha": 0.4,
    "mixup_probability": 0.6,
    "noise_probability": 0.6,
    "gain_db": 6.0,
    "time_mask": 12,
    "frequency_mask": 40,
    "mask_probability": 0.7,
    "seed": 3,
}


@pytest.mark.parametrize("front_end", ["near", "complex_least_squares"])
@pytest.mark.parametrize("noise_source", ["far", "white"])
def test_with_everything_a_clip_hears_the_same_alone_and_in_any_batch(
    noise_source: str, front_end: str
) -> None:
    options = TrainingOptions(**EVERYTHING, noise_source=noise_source)
    draws = [3, 0, 17, 9, 12, 5, 31]  # 17 and 31 are the third clip again
    together = heard(draws, options, front_end=front_end)
    for row, draw in enumerate(draws):
        alone = heard([draw], options, front_end=front_end)
        for name in ("near_values", "far_values"):
            # sums over shorter rows round otherwise
            torch.testing.assert_close(sound(alone, 0, name), sound(together, row, name))
            assert not together[name][row, ~together["attention_mask"][row].bool()].any()
        for name in ("labels", "spectrogram_masks"):
            assert torch.equal(alone[name][0], together[name][row]), name


def test_a_clip_drawn_twice_in_an_epoch_is_not_heard_twice_in_the_same_way() -> None:
    options = TrainingOptions(far_mixing=0.5)
    twice = heard([3, 17], options)
    assert not torch.equal(sound(twice, 0), sound(twice, 1))
    plain = heard([3, 17], TrainingOptions())
    assert torch.equal(sound(plain, 0), sound(plain, 1))


def test_a_mixed_clip_is_its_share_of_itself_and_of_the_clip_its_label_tells() -> None:
    options = TrainingOptions(mixup_alpha=0.5, seed=1)
    clips, batch = noise_clips(), heard(list(range(14)), options)
    assert batch["labels"].shape == (14, NUM_CLASSES)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(14))
    drawn = DrawnClips(clips, options)
    drawn.epoch = 1
    shares = []
    for row in range(14):
        item, partner = drawn[row], drawn[row]["mixup"]
        own, other = torch.from_numpy(item["near"]), torch.zeros(len(item["near"]))
        length = min(len(own), len(partner["near"]))
        other[:length] = torch.from_numpy(partner["near"])[:length]
        mixed = sound(batch, row)
        # least squares for a of mixed = a own + (1 - a) other
        a = ((mixed - other) @ (own - other)) / (own - other).square().sum().clamp_min(1e-9)
        torch.testing.assert_close(mixed, a * own + (1 - a) * other, atol=1e-6, rtol=1e-4)
        if item["label"] != partner["label"]:
            torch.testing.assert_close(batch["labels"][row, item["label"]], a, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                batch["labels"][row, partner["label"]], 1 - a, atol=1e-4, rtol=0
            )
            shares.append(a.item())
    assert len(set(shares)) == len(shares) > 5
    assert all(0 <= share <= 1 for share in shares)


def test_near_and_far_are_mixed_with_the_same_partner_and_share() -> None:
    options = TrainingOptions(mixup_alpha=0.5)
    drawn = DrawnClips(noise_clips(), options)
    rows = [drawn[i] for i in range(6)]
    for row in rows:  # far is a copy of near
        for clip in (row, row["mixup"]):
            clip["far"] = clip["near"]
    batch = augmented(tiny_model(), Collator(EXTRACTOR)(rows), options, epoch=0)
    assert torch.equal(batch["near_values"], batch["far_values"])


def test_labels_are_soft_wherever_mixup_is_on_and_a_clip_that_is_not_mixed_keeps_its_own() -> None:
    options = TrainingOptions(mixup_alpha=0.5, mixup_probability=0.0001)
    batch, plain = heard([0, 1, 2], options), heard([0, 1, 2], TrainingOptions())
    assert torch.equal(batch["near_values"], plain["near_values"])
    never = heard([0, 1, 2], TrainingOptions(mixup_alpha=0.5, mixup_probability=0.0))
    assert torch.equal(never["labels"], plain["labels"])
    expected = torch.nn.functional.one_hot(plain["labels"], NUM_CLASSES).float()
    assert torch.equal(batch["labels"], expected)


@pytest.mark.parametrize("noise_source", ["far", "white"])
def test_noise_comes_at_one_of_the_ratios(noise_source: str) -> None:
    options = TrainingOptions(
        noise_probability=0.6, noise_snrs_db=[0.0, 7.0], noise_source=noise_source
    )
    noisy, plain = heard(list(range(14)), options), heard(list(range(14)), TrainingOptions())
    found = []
    for row in range(14):
        clean, noise = sound(plain, row), sound(noisy, row) - sound(plain, row)
        if noise.any():
            found.append(10 * torch.log10(clean.square().sum() / noise.square().sum()).item())
    assert 4 <= len(found) < 14
    assert {round(ratio, 3) for ratio in found} == {0.0, 7.0}
    assert torch.equal(noisy["far_values"], plain["far_values"])


def test_the_noise_is_a_piece_of_another_clips_far_channel_in_a_loop() -> None:
    options = TrainingOptions(noise_probability=1.0, noise_snrs_db=[0.0])
    drawn = DrawnClips(noise_clips(), options)
    drawn.epoch = 1
    noisy, plain = heard([4], options), heard([4], TrainingOptions())
    noise = sound(noisy, 0) - sound(plain, 0)
    far = torch.from_numpy(drawn[4]["noise"]["far"])
    loop = far.repeat(3).unfold(0, len(noise), 1)[: len(far)]
    likeness = torch.nn.functional.cosine_similarity(loop, noise[None], dim=1)
    assert likeness.max() > 0.9999
    assert likeness.sort().values[-2] < 0.5


def test_gain_makes_both_channels_louder_by_the_same_of_at_most_so_many_db() -> None:
    louder = heard(list(range(14)), TrainingOptions(gain_db=6.0))
    plain = heard(list(range(14)), TrainingOptions())
    found = []
    for row in range(14):
        near, far = (
            sound(louder, row, n)[0] / sound(plain, row, n)[0]
            for n in ("near_values", "far_values")
        )
        torch.testing.assert_close(near, far)
        found.append(20 * torch.log10(near).item())
    assert max(map(abs, found)) <= 6.0
    assert min(found) < -2 < 2 < max(found)


def test_what_must_not_be_heard_by_a_front_end_that_keeps_far_is_refused() -> None:
    options = TrainingOptions(mixup_alpha=0.5, noise_probability=0.5)
    with pytest.raises(ValueError, match="mixup_alpha and noise_probability cannot follow"):
        heard([0], options, front_end="wiener", channels=["near", "unprocessed"])


def test_only_near_and_far_of_whole_clips_reach_the_front_end_before_mixing() -> None:
    """Mixing what a front end returned, it returns nothing that was in neither clip."""
    options = TrainingOptions(mixup_alpha=0.5)
    model = tiny_model(front_end="complex_least_squares")
    drawn = DrawnClips(noise_clips(), options)
    rows = [drawn[i] for i in range(6)]
    batch = augmented(model, Collator(EXTRACTOR)(rows), options, epoch=0)
    for i, row in enumerate(rows):
        cleaned = []
        for clip in (row, row["mixup"]):
            near, far = (torch.from_numpy(clip[name])[None] for name in ("near", "far"))
            heard_alone = model.asd.waveforms(near, far, torch.ones_like(near), None)["near"][0]
            cleaned.append(
                torch.nn.functional.pad(heard_alone, (0, len(row["near"]) - near.shape[1]))
            )
        a = batch["labels"][i, row["label"]]
        if row["label"] != row["mixup"]["label"]:
            expected = a * cleaned[0] + (1 - a) * cleaned[1]
            torch.testing.assert_close(sound(batch, i), expected, atol=1e-6, rtol=1e-4)
    assert not batch["far_values"].any()


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
    assert heard.keys() == batch.keys() - {"draw"}
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


def test_a_crop_between_a_front_end_and_an_encoder_that_hears_far_is_refused() -> None:
    options, batch = TrainingOptions(crop_seconds=0.5), batch_of()
    described = {"encoder_config": TINY_NOISE_AWARE, "num_labels": 2}
    model = AsdForProxyClassification(AsdConfig(**described))
    assert augmented(model, batch, options, epoch=0)["far_values"].any()
    model = AsdForProxyClassification(AsdConfig(**described, front_end="complex_least_squares"))
    with pytest.raises(ValueError, match=r"far beside them.*encoder is not noise-aware"):
        augmented(model, batch, options, epoch=0)
