"""Streamed clips: each once, whatever shares them, and each with what is known of it."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nearfar.clip_streams import ClipStream
from nearfar.embeddings import Embedded, extract_embeddings
from nearfar.schema import machine_name
from nearfar.training_clips import DrawnClips, LabelledClips, ReadItem, StreamSampler
from nearfar.training_options import TrainingOptions
from tests.training import EXTRACTOR

NUM_CLIPS = 23


def known(i: int) -> dict[str, Any]:
    return {
        "year": 2026,
        "machine_type": "fan" if i < 12 else "valve",
        "section": 0,
        "file_name": f"clip_{i % 12}.wav",  # names recur with other machines
        "machine": machine_name(2026, "fan" if i < 12 else "valve", 0),
        "domain": "target" if i % 5 == 0 else "source",
        "condition": "normal",
        "attributes": "",
    }


def decode(row: Any) -> dict[str, Any]:
    sound = np.full(3_000, row["number"] / 100, dtype=np.float32)
    return dict(row) | {"near": sound, "far": 0.5 * sound}


def clip_stream(num_shards: int = 4, *, clips: int = NUM_CLIPS) -> ClipStream:
    rows = [known(i) for i in range(clips)]
    table = datasets.Dataset.from_list([row | {"number": i} for i, row in enumerate(rows)])
    return ClipStream(table.to_iterable_dataset(num_shards=num_shards), rows, decode)


def labelled(stream: ClipStream, channels: tuple[str, ...] = ("near",)) -> LabelledClips:
    labels = np.arange(len(stream) * len(channels), dtype=np.int64)
    return LabelledClips(stream, labels, stream.rows, channels=channels)


def order(clips: LabelledClips, epoch: int, *, seed: int = 0, buffer_size: int = 8) -> list[int]:
    sampler = StreamSampler(clips, seed=seed, buffer_size=buffer_size)
    sampler.set_epoch(epoch)
    return [item.number for item in sampler]


@pytest.mark.parametrize(("num_shards", "world"), [(1, 1), (1, 3), (2, 3), (4, 3), (23, 2)])
def test_processes_share_all_clips_and_none_twice(num_shards: int, world: int) -> None:
    stream = clip_stream(num_shards)
    found = [place for rank in range(world) for place, _ in stream.share(rank, world)]
    assert sorted(found) == list(range(NUM_CLIPS))


@pytest.mark.parametrize(("num_shards", "world", "workers"), [(1, 1, 2), (3, 1, 2), (3, 2, 3)])
def test_workers_share_all_clips_and_none_twice_also_where_shards_are_fewer(
    num_shards: int, world: int, workers: int
) -> None:
    stream = clip_stream(num_shards)
    found = []
    for rank in range(world):
        share = stream.share(rank, world)
        loader = DataLoader(share, batch_size=3, num_workers=workers, collate_fn=list)
        found += [(place, row["number"]) for batch in loader for place, row in batch]
    assert sorted(found) == [(place, place) for place in range(NUM_CLIPS)]


def test_some_clips_of_a_stream_keep_their_places_in_the_order_asked_for() -> None:
    chosen = [20, 3, 7]
    part = clip_stream().select(chosen)
    assert [(read.place, read.row["number"]) for read in part.read()] == [(1, 3), (2, 7), (0, 20)]


def test_an_epoch_reads_each_clip_once_in_an_order_of_seed_and_epoch_alone() -> None:
    clips = labelled(clip_stream())
    orders = [order(clips, epoch) for epoch in range(3)]
    assert all(sorted(found) == list(range(NUM_CLIPS)) for found in orders)
    assert orders[0] != sorted(orders[0])
    assert len({tuple(found) for found in orders}) == 3
    assert order(clips, 1) == orders[1]
    assert order(clips, 1, seed=1) != orders[1]


def test_a_large_buffer_puts_any_clip_anywhere() -> None:
    clips = labelled(clip_stream(1))
    first = {order(clips, epoch, buffer_size=100)[0] for epoch in range(30)}
    assert len(first) > 10  # 17 are expected
    assert max(first) > 18


def test_items_of_a_stream_are_those_of_the_same_clips_at_hand() -> None:
    stream = clip_stream()
    hand = [decode(row | {"number": i}) for i, row in enumerate(stream.rows)]
    channels = ("near", "far")
    ours, due = (
        LabelledClips(clips, np.arange(2 * NUM_CLIPS), stream.rows, channels=channels).take(
            np.array([2, 5, 19])
        )
        for clips in (stream, hand)
    )
    assert ours.digest() != due.digest()  # what a stream sounds like is not known
    for read, index in zip(ours.in_order(), due.in_order(), strict=True):
        item, expected = ours[read], due[index]
        np.testing.assert_array_equal(item.pop("near"), expected.pop("near"))
        np.testing.assert_array_equal(item.pop("far"), expected.pop("far"))
        assert item == expected
    assert sorted(order(ours, 4)) == list(range(6))


def test_what_is_mixed_into_a_clip_was_read_before_it() -> None:
    options = TrainingOptions(
        mixup_alpha=0.4, mixup_probability=0.5, noise_probability=1.0, noise_source="far", seed=2
    )
    clips = labelled(clip_stream())
    drawn = DrawnClips(clips, options)
    items = list(StreamSampler(clips, seed=0, buffer_size=8))
    heard = [drawn[item] for item in items]
    assert heard[0]["mixup"] is None
    assert heard[0]["noise"] is None
    numbers = [row["number"] for row in heard]
    assert [row["noise"]["number"] for row in heard[2:]] == numbers[:-2]
    mixed = [i for i, row in enumerate(heard) if row["mixup"]]
    assert 4 < len(mixed) < 20
    assert all(heard[i]["mixup"]["number"] == numbers[i - 1] for i in mixed)
    assert all(item.before == () for item in items[5].before)


def test_no_more_of_a_stream_is_held_than_the_buffer() -> None:
    read = []

    def note(row: Any) -> Any:
        read.append(row["number"])
        return row

    rows = [known(i % 23) | {"file_name": f"{i}.wav"} for i in range(400)]
    table = datasets.Dataset.from_list([row | {"number": i} for i, row in enumerate(rows)])
    stream = ClipStream(table.to_iterable_dataset(num_shards=20).map(note), rows, decode)
    given = 0
    for _ in stream.read_shuffled(np.random.default_rng(0), buffer_size=10):
        given += 1
        assert len(read) - given <= 10 + 2 * 10  # and two of each of ten shards, ahead
    assert given == 400


class MeanAsEmbedding(torch.nn.Module):
    def forward(self, near_values: torch.Tensor, **_: Any) -> Embedded:
        return Embedded(near_values.mean(dim=1)[:, None, None, None])


@pytest.mark.parametrize("num_workers", [0, 3])
def test_embeddings_stay_with_their_clips_in_the_order_asked_for(num_workers: int) -> None:
    chosen = [20, 3, 7, 11, 0]
    part = clip_stream(2).select(chosen)
    table = extract_embeddings(
        MeanAsEmbedding(), part, EXTRACTOR, batch_size=2, num_workers=num_workers
    )
    np.testing.assert_allclose(table.embedding.ravel(), np.array(chosen) / 100, rtol=1e-6)
    assert table.file_names.tolist() == [known(i)["file_name"] for i in chosen]
    assert table.machines.tolist() == [known(i)["machine"] for i in chosen]


def test_a_stream_that_changed_is_refused() -> None:
    stream = clip_stream(clips=20)
    more = ClipStream(stream.stream, [known(i) for i in range(NUM_CLIPS)], decode)
    with pytest.raises(ValueError, match="gave 20 clips where 23 were due: the recordings changed"):
        list(more.read())
    with pytest.raises(ValueError, match="gave 20 clips where 23 were due"):
        extract_embeddings(MeanAsEmbedding(), more, EXTRACTOR)


def test_clips_that_cannot_be_told_apart_are_refused() -> None:
    stream = clip_stream()
    with pytest.raises(ValueError, match=r"1 of 24 clips .* Leave --streaming out"):
        ClipStream(stream.stream, [*stream.rows, stream.rows[0]], decode)


def test_an_item_of_a_stream_is_found_by_what_was_read() -> None:
    clips = labelled(clip_stream())
    read = next(iter(clips.in_order()))
    assert isinstance(read, ReadItem)
    assert clips[read]["label"] == 0
