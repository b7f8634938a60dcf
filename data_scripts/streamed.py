"""Published recordings to be read in a stream: their rows, and beforehand what is known of them."""

from collections.abc import Collection
from os import PathLike
from typing import Any

import datasets

from .near_far import known
from .published import at_one_commit, find_published, load_published


def stream_published(
    data_dir: str | PathLike[str],
    *,
    split: str,
    year: int = 2026,
    machine_types: Collection[str] | None = None,
    subsets: Collection[str] | None = None,
) -> tuple[datasets.IterableDataset, list[dict[str, Any]]]:
    """Return a stream of published recordings, and what is known of each in the stream's order.

    The latter reads no sound, only the small columns beside it. On the Hub, both are of one commit,
    whatever is pushed meanwhile. A row group of a file is a shard of the stream.

    Args:
        data_dir: A folder that `python -m data_scripts.publish` wrote, or "owner/name" or
            "owner/name@revision" on the Hub.
        split: "train" or "test".
        year: Of the recordings.
        machine_types: Only these; None takes all.
        subsets: Only these; None takes all.

    Returns:
        Undecoded rows, in the order of `load_near_far`; and rows as `known` gives them.

    Raises:
        FileNotFoundError: The data set, a part of it or the split is not there.
        ValueError: The recordings are not published, a file of them is damaged, or an option names
            what does not exist.
    """
    source = find_published(data_dir)
    if source is None:
        raise ValueError(
            f"{data_dir} holds no published recordings, which are all that can be streamed. Leave "
            "--streaming out, or publish them first: python -m data_scripts.publish."
        )
    source = at_one_commit(source)
    options: dict[str, Any] = {"year": year, "machine_types": machine_types, "subsets": subsets}
    streams = load_published(source, streaming=True, **options)
    if split not in streams:
        raise FileNotFoundError(f"{source.name} has no {split} clips of what was asked for.")
    without_sound = load_published(source, streaming=True, audio=False, **options)
    try:
        return streams[split].reshard(), known(without_sound[split])
    except ValueError as error:  # of pyarrow, or of datasets where columns are others
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{source.name} has a file that is damaged or no recordings' ({reason}). Publish it "
            "again."
        ) from error
