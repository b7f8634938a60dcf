"""Clips that are read one after the other, where reading any one of them at will costs too much."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from datasets.distributed import split_dataset_by_node
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, its own
from torch.utils.data import IterableDataset

# What tells the clips of a split apart; the same columns in a stream and in what is known of it.
IDENTITY = ("year", "machine_type", "section", "file_name")


class ReadClip(NamedTuple):
    """A clip as it was read.

    Attributes:
        place: Among the clips of the stream that it is from.
        row: Not decoded yet.
    """

    place: int
    row: Mapping[str, Any]


class ClipStream:
    """Some clips of a stream; it stands where a map-style dataset of decoded clips would.

    Which clips there are, and in which order, is known beforehand; their sound is read anew in each
    pass, and no more of it is held than a pass needs. What was read is matched with what is known
    by its `IDENTITY`, so a clip's place does not depend on the order in which it is read.

    Args:
        stream: A `datasets.IterableDataset` of undecoded rows; its shards are what processes and
            workers share, and what an epoch's order mixes.
        rows: What is known of the clips wanted, in the stream's order; others are passed over.
        decode: Makes of a row of the stream what a dataset of decoded clips would hold.
    """

    def __init__(
        self,
        stream: Any,  # noqa: ANN401 - datasets is untyped
        rows: Sequence[dict[str, Any]],
        decode: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        self.stream = stream
        self.rows = list(rows)
        self.decode = decode
        self.places = {_identity(row): place for place, row in enumerate(self.rows)}
        if len(self.places) < len(self.rows):
            twice = len(self.rows) - len(self.places)
            raise ValueError(
                f"{twice} of {len(self.rows)} clips have machine and file name of another, so "
                "what is streamed cannot be matched with its labels. Leave --streaming out."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Iterable[int]) -> Self:
        """Return the clips of these places, in this order."""
        return type(self)(self.stream, [self.rows[i] for i in indices], self.decode)

    def read(self) -> Iterator[ReadClip]:
        """Read all clips, in the stream's order.

        Raises:
            ValueError: The stream did not give each of them once.
        """
        return self._wanted(self.stream)

    def read_shuffled(self, generator: np.random.Generator, buffer_size: int) -> Iterator[ReadClip]:
        """Read all clips in a random order: shards shuffled, then clips in a buffer of some shards.

        Args:
            generator: Gives the order, and nothing else does.
            buffer_size: Clips held at once; as many as there are: every order is possible.

        Raises:
            ValueError: The stream did not give each of them once.
        """
        return self._wanted(self.stream.shuffle(generator=generator, buffer_size=buffer_size))

    def share(self, rank: int, world: int) -> "StreamShare":
        """Return one process's clips, decoded, for a `DataLoader` of any number of workers."""
        return StreamShare(self, rank, world)

    def check_count(self, count: int) -> None:
        """Raise ValueError unless a whole pass gave so many clips."""
        if count != len(self):
            raise ValueError(
                f"The stream gave {count} clips where {len(self)} were due: the recordings changed "
                "while they were read. Run the same command again."
            )

    def _wanted(self, stream: Any) -> Iterator[ReadClip]:  # noqa: ANN401 - datasets is untyped
        count = 0
        for row in _read_on(stream):
            place = self.places.get(_identity(row))
            if place is not None:
                count += 1
                yield ReadClip(place, row)
        self.check_count(count)


class StreamShare(IterableDataset[tuple[int, dict[str, Any]]]):
    """The clips of one process, decoded, each with its place; each clip is in one share.

    Processes take whole shards where there are enough of them, else every world-th clip; the
    workers of a process take whole shards, and those that get none stop at once.
    """

    def __init__(self, clips: ClipStream, rank: int, world: int) -> None:
        self.clips = clips
        by = "shards" if clips.stream.num_shards >= world else "examples"
        self.stream = split_dataset_by_node(clips.stream, rank, world, strategy=by)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in _read_on(self.stream):
            place = self.clips.places.get(_identity(row))
            if place is not None:
                yield place, self.clips.decode(row)


def _read_on(stream: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - datasets is untyped
    """Return the rows of a stream; datasets has asked again before an error gets here."""
    try:
        yield from stream
    except (httpx.HTTPError, OSError, ValueError) as error:  # the last of pyarrow: a damaged file
        reason = " ".join(str(error).split())
        raise OSError(
            f"The recordings cannot be read any further ({reason}). What was trained is kept up to "
            "the last saved state: when they can be read again, run the same command with "
            "--resume_from_checkpoint latest."
        ) from error


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)
