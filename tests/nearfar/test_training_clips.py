"""Which clips train, as which channel, in which order, and what a batch of them holds."""

from collections import Counter

import numpy as np
import pytest
import torch

from nearfar.training_clips import (
    BalancedSampler,
    Collator,
    DrawnClips,
    LabelledClips,
    RememberedClips,
    sound_digest,
)
from nearfar.training_options import TrainingOptions
from tests.training import EXTRACTOR, NUM_CLIPS, noise_clips

GROUPS = (
    [("fan", "source")] * 20
    + [("fan", "target")] * 3
    + [("pump", None)] * 5
    + [("valve", "source")] * 4
)


def draws(epoch: int, *, share: float = 0.5, seed: int = 0) -> list[int]:
    sampler = BalancedSampler(GROUPS, target_share=share, seed=seed)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == len(GROUPS)
    return drawn


@pytest.mark.parametrize(
    ("share", "from_target"), [(0.5, 12), (0.001, 1), (0.999, 22), (3 / 23, 3)]
)
def test_a_share_of_each_machines_draws_is_from_its_target_domain(share, from_target) -> None:
    counts = Counter(GROUPS[draw % len(GROUPS)] for draw in draws(0, share=share))
    assert counts["fan", "target"] == from_target
    assert counts["fan", "source"] == 23 - from_target
    assert counts["pump", None] == 5
    assert counts["valve", "source"] == 4


def test_clips_of_a_domain_are_drawn_equally_often_but_for_one_and_never_alike() -> None:
    drawn = draws(3)
    assert len(set(drawn)) == len(drawn)
    times = Counter(draw % len(GROUPS) for draw in drawn)
    for machine, domain in {group for group in GROUPS if group[0] != "fan" or group[1]}:
        rows = [i for i, group in enumerate(GROUPS) if group == (machine, domain)]
        found = [times[row] for row in rows]
        assert max(found) - min(found) <= 1
    assert [times[row] for row in (20, 21, 22)] == [4, 4, 4]
    assert all(times[row] == 1 for row in range(23, 32))


def test_what_is_drawn_depends_on_seed_and_epoch_alone() -> None:
    assert draws(2) == draws(2)
    assert draws(2) != draws(3)
    assert draws(2) != draws(2, seed=1)
    never = set(range(20)) - {draw % len(GROUPS) for epoch in range(9) for draw in draws(epoch)}
    assert not never  # of 20 source clips, each epoch draws 11


def test_clips_are_decoded_once_as_far_as_the_memory_goes() -> None:
    asked: list[int] = []
    rows = [noise_clips()[i] for i in range(4)]

    class Decoding(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    def size(row) -> int:
        return sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))

    room = size(rows[3]) + size(rows[0])  # the first two that are asked for
    assert room > 0
    heard = RememberedClips(Decoding(rows), gib=room / 2**30)
    for _ in range(3):
        for index in (3, 0, 1):
            assert heard[index] is rows[index]
    assert asked == [3, 0, 1, 1, 1]
    assert len(heard) == len(rows)


def test_each_clip_is_an_item_of_every_channel_that_trains() -> None:
    clips = noise_clips(6, channels=("near", "far"))
    assert len(clips) == 12
    batch = Collator(EXTRACTOR)([clips[i] for i in range(12)])
    near, far = batch["near_values"].chunk(2)
    for i in range(6):
        row = clips[i]
        length = len(row["near"])
        assert torch.equal(near[i, :length], torch.from_numpy(row["near"]))
        assert torch.equal(far[i, :length], torch.from_numpy(row["far"]))
        assert (clips[i]["channel"], clips[i + 6]["channel"]) == ("near", "far")
    assert not batch["far_values"][6:].any()
    assert batch["far_values"][:6].any(dim=1).all()
    assert batch["has_far"].tolist() == [True] * 6 + [False] * 6
    assert batch["labels"].tolist() == clips.labels.tolist()


def test_a_clip_without_far_cannot_train_it() -> None:
    clips = noise_clips(6, channels=("far",), far=False)
    with pytest.raises(ValueError, match=r"2026/fan/00/clip_0.wav has no far channel to train on"):
        clips[0]
    drawn = DrawnClips(noise_clips(6, far=False), TrainingOptions(noise_probability=1.0))
    with pytest.raises(ValueError, match="no far channel that could be another clip's noise"):
        Collator(EXTRACTOR)([drawn[0]])


def test_taken_clips_keep_all_their_channels_and_share_their_labels() -> None:
    clips = noise_clips(6, channels=("near", "far"))
    chosen = np.array([True, False, False, True, False, False])
    taken, rest = clips.take(chosen), clips.take(~chosen)
    assert [(row["file_name"], row["channel"]) for row in map(taken.__getitem__, range(4))] == [
        ("clip_0.wav", "near"),
        ("clip_3.wav", "near"),
        ("clip_0.wav", "far"),
        ("clip_3.wav", "far"),
    ]
    assert sorted([*taken.items, *rest.items]) == list(range(12))
    clips.load_state_dict({"labels": torch.arange(12)})
    assert [taken[i]["label"] for i in range(4)] == [0, 3, 6, 9]


def test_the_digest_knows_clips_labels_and_which_of_them_train() -> None:
    clips = noise_clips(6)
    digests = {clips.digest(), clips.take(np.arange(5)).digest()}
    assert noise_clips(6).digest() in digests
    digests |= {noise_clips(7).digest(), noise_clips(6, channels=("far",)).digest()}
    clips.labels[2] += 1
    assert clips.digest() not in digests
    digests.add(clips.digest())
    assert len(digests) == 5
    clips.labels[2] -= 1
    clips.clips[4]["far"] = clips.clips[4]["far"] * np.float32(0.5)  # of the same name
    assert clips.digest() not in digests


def test_of_many_clips_the_sound_of_some_from_the_first_to_the_last_is_in_the_digest() -> None:
    heard: list[int] = []

    class Noting(list):
        def __getitem__(self, place):
            heard.append(place)
            return super().__getitem__(place)

    rows = Noting({"near": np.full(3, i, dtype=np.float32), "far": None} for i in range(100))
    digest = sound_digest(rows, range(0, 100, 2), at_most=4)
    assert heard == [0, 32, 66, 98]
    rows[66] = {"near": np.zeros(3, dtype=np.float32), "far": None}
    assert sound_digest(rows, range(0, 100, 2), at_most=4) != digest


def test_labels_must_be_there_for_every_channel() -> None:
    clips = noise_clips(6)
    with pytest.raises(ValueError, match="6 clips in 2 channels came with 6 labels"):
        LabelledClips(clips.clips, clips.labels, clips.rows, channels=("near", "far"))


def test_the_guard_decides_by_the_machine_of_clip_and_partner() -> None:
    drawn = DrawnClips(noise_clips(), TrainingOptions(mixup_alpha=1.0))
    rows = [drawn[i] for i in range(NUM_CLIPS)]
    batch = Collator(EXTRACTOR, {"2026/fan/00": 0.25})(rows)
    strengths = {"2026/fan/00": 0.25, "2026/valve/00": 1.0}
    for row, own, partner in zip(
        rows, batch["front_end_strength"], batch["mixup"]["front_end_strength"], strict=True
    ):
        assert own == strengths[row["machine"]]
        assert partner == strengths[row["mixup"]["machine"]]
    assert "front_end_strength" not in Collator(EXTRACTOR)(rows)
