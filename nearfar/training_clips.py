"""The clips that train: with labels, in an order, and with those that are mixed into them."""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from nearfar.augmentation import Stream, draw_partner
from nearfar.clip_streams import ClipStream, ReadClip
from nearfar.embeddings import model_inputs
from nearfar.schema import domain_label
from nearfar.training_options import TrainingOptions

TRAIN_CHANNELS = ("near", "far")  # that a model may be trained to hear


class ReadItem(NamedTuple):
    """An item of streamed clips: its number, and what was read of its clip.

    Attributes:
        number: Position among the items, as an index of clips that are not streamed.
        row: Not decoded yet.
        before: Items read before it, the nearest first; of these themselves it is empty.
    """

    number: int
    row: Mapping[str, Any]
    before: "tuple[ReadItem, ...]" = ()


class LabelledClips(Dataset[dict[str, Any]]):
    """Decoded training clips with their proxy classes, once for every channel that trains.

    Of N clips, item i is clip i % N as channel i // N heard it. An item is the clip's row with its
    `label` and `channel`. Streamed clips cannot be had by their position: their index is a
    `ReadItem`, which a `StreamSampler` or `in_order` gives.

    Args:
        clips: Decoded rows, by position, or a stream of them.
        labels: (channels * N,) int64; shared with what `take` returns.
        rows: The same N rows, undecoded.
        channels: One or more of `TRAIN_CHANNELS`.
        items: Which of the items these are; None: all.
    """

    def __init__(
        self,
        clips: Sequence[dict[str, Any]] | ClipStream,
        labels: NDArray[np.int64],
        rows: Sequence[Mapping[str, Any]],
        *,
        channels: Sequence[str] = ("near",),
        items: NDArray[np.int64] | None = None,
    ) -> None:
        if len(labels) != len(rows) * len(channels):
            raise ValueError(
                f"{len(rows)} clips in {len(channels)} channels came with {len(labels)} labels. "
                "Give one for each clip as each channel hears it."
            )
        self.clips = clips
        self.labels = labels
        self.rows = rows
        self.channels = tuple(channels)
        self.items = np.arange(len(labels)) if items is None else items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | ReadItem) -> dict[str, Any]:
        item = int(self.items[index.number if isinstance(index, ReadItem) else index])
        channel, clip = divmod(item, len(self.rows))
        if isinstance(self.clips, ClipStream):
            assert isinstance(index, ReadItem)  # nothing else can be looked up in a stream
            row = self.clips.decode(index.row)
        else:
            row = self.clips[clip]
        name = self.channels[channel]
        if name == "far" and row["far"] is None:
            raise ValueError(
                f"{row['machine']}/{row['file_name']} has no far channel to train on. Leave 'far' "
                "out of train_channels."
            )
        return row | {"label": int(self.labels[item]), "channel": name}

    def take(self, clips: NDArray[Any]) -> Self:
        """Return the items of some clips, given as indices or as a mask (N,), in all channels."""
        chosen = np.arange(len(self.rows))[clips]
        blocks = [chosen + len(self.rows) * i for i in range(len(self.channels))]
        return type(self)(
            self.clips,
            self.labels,
            self.rows,
            channels=self.channels,
            items=np.concatenate(blocks),
        )

    def in_order(self) -> Iterable[int | ReadItem]:
        """Return the index of each item, in order, channel by channel."""
        stream = self.clips
        if not isinstance(stream, ClipStream):
            return range(len(self))
        channels = range(len(self.channels))
        return chain.from_iterable(self.read_items(i, stream.read()) for i in channels)

    def read_items(self, channel: int, reads: Iterable[ReadClip]) -> Iterator[ReadItem]:
        """Return the items of one channel, in the order in which clips are read.

        Args:
            channel: Index into `channels`.
            reads: Of all clips.
        """
        numbers = {item: number for number, item in enumerate(self.items.tolist())}
        for read in reads:
            number = numbers.get(channel * len(self.rows) + read.place)
            if number is not None:
                yield ReadItem(number, read.row)

    def domain_groups(self) -> list[tuple[str, str | None]]:
        """Return machine (with the channel) and domain of each item."""
        groups = []
        for item in self.items:
            channel, clip = divmod(int(item), len(self.rows))
            row = self.rows[clip]
            groups.append((f"{row['machine']}|{self.channels[channel]}", row["domain"]))
        return groups

    def digest(self) -> str:
        """Return a digest of which items there are, of their labels now, and of their sound."""
        known = []
        for item in self.items.tolist():
            channel, clip = divmod(item, len(self.rows))
            row, name = self.rows[clip], self.channels[channel]
            known.append((row["machine"], row["file_name"], name, int(self.labels[item])))
        digest = hashlib.sha256(json.dumps(known).encode())
        places = sorted({item % len(self.rows) for item in self.items.tolist()})
        digest.update(sound_digest(self.clips, places).encode())
        return digest.hexdigest()

    def remember(self, gib: float) -> None:
        """Decode no clip twice from now on, as far as memory of `gib` GiB goes.

        Raises:
            TypeError: The clips are a stream, which is read anew each time.
        """
        if isinstance(self.clips, ClipStream):
            raise TypeError("A stream keeps no clips in memory; `remember` takes rows by position.")
        self.clips = RememberedClips(self.clips, gib=gib)

    def state_dict(self) -> dict[str, Any]:
        """Return the labels, which may change while a model trains."""
        return {"labels": torch.from_numpy(self.labels.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the labels."""
        self.labels[:] = state["labels"].numpy()


def sound_digest(clips: Any, places: Sequence[int], *, at_most: int = 64) -> str:  # noqa: ANN401 - list, Dataset
    """Return a digest of how clips sound: of all, or of some that lie evenly among many.

    Names alone do not tell recordings apart: two simulated factories have the same. A stream has no
    such digest, as to hear some of it is to read all.

    Args:
        clips: Decoded rows; by position, or nothing is heard.
        places: Positions of those in question.
        at_most: How many are heard.
    """
    digest = hashlib.sha256()
    if not hasattr(clips, "__getitem__"):
        return digest.hexdigest()
    chosen = np.linspace(0, len(places) - 1, min(len(places), at_most)).round().astype(int)
    for i in np.unique(chosen).tolist():
        row = clips[places[i]]
        for name in TRAIN_CHANNELS:
            digest.update(b"none" if row[name] is None else np.asarray(row[name]).tobytes())
    return digest.hexdigest()


class RememberedClips(Sequence[dict[str, Any]]):
    """Decoded clips, kept in memory from the first time that one is asked for.

    A process that decodes ahead of training (`dataloader_num_workers`) remembers for itself.

    Args:
        clips: Decoded rows, by position; never written to.
        gib: Memory for samples, in GiB; clips beyond it are decoded whenever they are asked for.
    """

    def __init__(self, clips: Sequence[dict[str, Any]], *, gib: float) -> None:
        self.clips = clips
        self.free = gib * 2**30  # bytes
        self.kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - other sequences are also sliced
        if (row := self.kept.get(index)) is not None:
            return row
        row = self.clips[index]
        size = sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        if size <= self.free:
            self.free -= size
            self.kept[index] = row
        return row


class DrawnClips(Dataset[dict[str, Any]]):
    """What an epoch draws from training clips: an item, and those to be mixed into it.

    A draw is an item's number plus a multiple of the number of items, so that an item that is drawn
    twice is not augmented twice in the same way. Beside the item a row holds its `draw`, and under
    "mixup" and "noise" the item that is mixed into it, or None. Any item may be mixed into another;
    where clips are streamed it is one of those read before it, which the epoch's order has chosen.

    Args:
        clips: All of them.
        options: Their mixup, noise and seed are read.

    Attributes:
        epoch: Counted from 0, to be set before each epoch.
    """

    def __init__(self, clips: LabelledClips, options: TrainingOptions) -> None:
        self.clips = clips
        self.options = options
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int | ReadItem) -> dict[str, Any]:
        read, draw = (index, index.number) if isinstance(index, ReadItem) else (None, index)
        options = self.options
        from_clips = options.noise_source == "far"
        probabilities = {
            "mixup": options.mixup_probability if options.mixup_alpha else 0.0,
            "noise": options.noise_probability if from_clips else 0.0,
        }
        row = self.clips[read or draw % len(self.clips)] | {"draw": draw}
        for i, (name, stream) in enumerate((("mixup", Stream.MIXUP), ("noise", Stream.NOISE))):
            partner: int | ReadItem | None = draw_partner(
                draw,
                len(self.clips),
                probability=probabilities[name],
                seed=options.seed,
                epoch=self.epoch,
                stream=stream,
            )
            if partner is not None and read is not None:
                partner = read.before[i] if i < len(read.before) else None  # an epoch's first items
            row[name] = None if partner is None else self.clips[partner]
        return row


class BalancedSampler(Sampler[int]):
    """Draws as many items per epoch as there are, a share of each machine's from its target domain.

    Within a machine and domain, every item is drawn as often as every other, but for one. A machine
    of one domain, or of unknown ones, has each item drawn once. What is drawn depends on the seed
    and the epoch alone.

    Args:
        groups: Machine and domain of each item.
        target_share: Of a machine's draws, in (0, 1); at least one draw is left to each domain.
        seed: Of what is drawn, and in which order.
    """

    def __init__(
        self, groups: Sequence[tuple[str, str | None]], *, target_share: float, seed: int
    ) -> None:
        self.num_items = len(groups)
        self.seed = seed
        self.epoch = 0
        sizes = Counter(machine for machine, _ in groups)
        rows: dict[tuple[str, str | None], list[int]] = {}
        for item, group in enumerate(groups):
            rows.setdefault(group, []).append(item)
        self.rows: list[tuple[NDArray[np.int64], int]] = []  # items, and draws from them
        for (machine, domain), items in sorted(rows.items(), key=lambda pair: pair[1]):
            size, count = sizes[machine], len(items)
            if {"source", "target"} == {d for m, d in rows if m == machine}:
                from_target = min(max(1, round(target_share * size)), size - 1)
                count = from_target if domain == "target" else size - from_target
            self.rows.append((np.array(items), count))

    def __len__(self) -> int:
        return self.num_items

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch from now on; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch, int(Stream.ORDER)))
        draws = []
        for items, count in self.rows:
            times = -(-count // len(items))
            shuffled = np.concatenate([rng.permutation(items) for _ in range(times)])[:count]
            # How often each was drawn before, in shuffled's blocks of one permutation each.
            draws.append(shuffled + self.num_items * (np.arange(count) // len(items)))
        yield from rng.permutation(np.concatenate(draws)).tolist()


class StreamSampler(Sampler[ReadItem]):
    """Reads every item of streamed clips once, in an order that depends on seed and epoch alone.

    It stands where a sampler draws numbers, so that batches, their shares for several processes,
    and those that a resumed epoch skips are made as of any clips. Every process reads all, in the
    same order, and hands its workers what they are to decode: its own share.

    Args:
        clips: Streamed.
        seed: Of the order.
        buffer_size: Clips that are held, of each channel, to be mixed.
    """

    def __init__(self, clips: LabelledClips, *, seed: int, buffer_size: int) -> None:
        self.clips = clips
        self.seed = seed
        self.buffer_size = buffer_size
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.clips)

    def set_epoch(self, epoch: int) -> None:
        """Read in the order of this epoch from now on; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[ReadItem]:
        stream = self.clips.clips
        assert isinstance(stream, ClipStream)
        passes = []
        for channel in range(len(self.clips.channels)):  # an order of its own for each
            rng = np.random.default_rng((self.seed, self.epoch, int(Stream.ORDER), channel))
            reads = stream.read_shuffled(rng, self.buffer_size)
            passes.append(self.clips.read_items(channel, reads))
        before: deque[ReadItem] = deque(maxlen=2)  # one to be mixed in, one to be its noise
        for items in zip(*passes, strict=True):
            for item in items:
                yield item._replace(before=tuple(before))
                before.appendleft(item)


class Collator:
    """Makes a batch of rows: the model's inputs, labels, and clips to be mixed into them.

    Args:
        feature_extractor: An `AsdFeatureExtractor`, or what is called like it.
        front_end_strength: The guard's decision per machine, in [0, 1]; a machine left out has 1.
            None or empty: no guard.
    """

    def __init__(
        self,
        feature_extractor: Any,  # noqa: ANN401 - an AsdFeatureExtractor, which nearfar must not import
        front_end_strength: Mapping[str, float] | None = None,
    ) -> None:
        self.feature_extractor = feature_extractor
        self.front_end_strength = front_end_strength or {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch.

        Besides tensors (batch, ...) it may hold, as "mixup", such a batch of partners, and as
        "noise" the `values` and `attention_mask` of far channels; both with `position` (partners,),
        the row of the batch that each belongs to.

        Raises:
            ValueError: A clip cannot be used; the message begins with its name.
        """
        batch: dict[str, Any] = self.inputs(rows)
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        batch["domain_labels"] = torch.tensor([domain_label(row["domain"]) for row in rows])
        if "draw" in rows[0]:
            batch["draw"] = torch.tensor([row["draw"] for row in rows])
        if partners := {i: row["mixup"] for i, row in enumerate(rows) if row.get("mixup")}:
            batch["mixup"] = self.inputs(list(partners.values())) | {
                "labels": torch.tensor([partner["label"] for partner in partners.values()]),
                "position": torch.tensor(list(partners)),
            }
        if partners := {i: row["noise"] for i, row in enumerate(rows) if row.get("noise")}:
            batch["noise"] = self.noise(list(partners.values())) | {
                "position": torch.tensor(list(partners))
            }
        return batch

    def inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a model's inputs; near is the far channel where that trains, and then has none."""
        inputs: dict[str, Tensor] = model_inputs(rows, self.feature_extractor)
        hears_far = torch.tensor([row["channel"] == "far" for row in rows])
        if bool(hears_far.any()):
            near, far = inputs["near_values"], inputs["far_values"]
            inputs["near_values"] = torch.where(hears_far[:, None], far, near)
            inputs["far_values"] = far.masked_fill(hears_far[:, None], 0.0)
            inputs["has_far"] = inputs["has_far"] & ~hears_far
        if self.front_end_strength:
            inputs["front_end_strength"] = torch.tensor(
                [self.front_end_strength.get(row["machine"], 1.0) for row in rows]
            )
        return inputs

    def noise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the far channels of clips."""
        for row in rows:
            if row["far"] is None:
                raise ValueError(
                    f"{row['machine']}/{row['file_name']} has no far channel that could be another "
                    "clip's noise. Take --noise_source white, or --noise_probability 0."
                )
        inputs: dict[str, Tensor] = model_inputs(rows, self.feature_extractor)
        return {"values": inputs["far_values"], "attention_mask": inputs["attention_mask"]}
