"""Published recordings: how their Parquet files are named, found, checked and loaded.

    <year>/<subset>/<machine type>/<split>-<index>-of-<count>.parquet

below a folder, or below the root of a data set on the Hub. The card beside them says which there
are: it is written last, and a folder without one is not complete.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, Self

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, its own

from nearfar.schema import COLUMNS

from .clip_names import SPLITS
from .features import row_features
from .selection import SUBSETS, listed, select

CARD = "README.md"
SMALL_BLOCK = 2**14  # bytes that are asked for at once where sound is not

_PATTERN = re.compile(
    r"(?P<year>\d{4})/(?P<subset>[a-z_]+)/(?P<machine_type>[\w.-]+)/(?P<split>[a-z]+)-\*\.parquet"
)
_COUNT = re.compile(r"-of-(\d{5})\.parquet$")
_REPO = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


class ShardGroup(NamedTuple):
    """The Parquet files of one machine, subset and split; a shard is one of them.

    Attributes:
        year: Of the recordings.
        subset: "dev", "eval_train" or "eval_test".
        machine_type: As in the rows.
        split: "train" or "test".
    """

    year: int
    subset: str
    machine_type: str
    split: str

    @classmethod
    def parse(cls, pattern: str) -> Self | None:
        """Return the group of a pattern such as "2026/dev/fan/train-*.parquet", or else None."""
        match = _PATTERN.fullmatch(pattern)
        if match is None or match["subset"] not in SUBSETS or match["split"] not in SPLITS:
            return None
        return cls(int(match["year"]), match["subset"], match["machine_type"], match["split"])

    @property
    def pattern(self) -> str:
        """What matches the paths of its shards; the inverse of `parse`."""
        return f"{self.year}/{self.subset}/{self.machine_type}/{self.split}-*.parquet"

    def paths(self, count: int) -> list[str]:
        """Return the paths of its shards, below the root, if there are so many."""
        return [self.pattern.replace("*", f"{index:05d}-of-{count:05d}") for index in range(count)]

    def found(self, folder: Path) -> list[str]:
        """Return the paths of its shards in a local folder, with or without gaps, in order."""
        return sorted(path.relative_to(folder).as_posix() for path in folder.glob(self.pattern))


class PublishedSource(NamedTuple):
    """Where published recordings are.

    Attributes:
        folder: A local one; None: on the Hub.
        repo_id: "owner/name" on the Hub; None: local.
        revision: Branch, tag or commit there; None is the default branch.
    """

    folder: Path | None
    repo_id: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return repr(self.repo_id or str(self.folder))


def find_published(data_dir: str | PathLike[str]) -> PublishedSource | None:
    """Return where published recordings are, or None if `data_dir` has another layout.

    What is no folder here, but looks like "owner/name" or "owner/name@revision", is on the Hub.
    """
    text, folder = str(data_dir), Path(data_dir).expanduser()
    if folder.exists():
        return PublishedSource(folder) if list_groups(folder) else None
    match = _REPO.fullmatch(text)
    return None if match is None else PublishedSource(None, match["repo_id"], match["revision"])


def at_one_commit(source: PublishedSource) -> PublishedSource:
    """Return a source that stays as it is now, whatever is pushed to the Hub meanwhile.

    Raises:
        FileNotFoundError: It, or its revision, is not there.
    """
    if source.repo_id is None:
        return source
    try:
        found = HfApi().dataset_info(source.repo_id, revision=source.revision)
    except (httpx.HTTPError, OSError) as error:
        raise _not_found(source, error) from error
    return source._replace(revision=found.sha)


def list_groups(folder: Path) -> list[ShardGroup]:
    """Return the groups that have a shard in a local folder, in order."""
    paths = (path.relative_to(folder).as_posix() for path in folder.glob("*/*/*/*-*.parquet"))
    patterns = {re.sub(r"-\d{5}-of-\d{5}\.", "-*.", path) for path in paths}
    return in_order(group for group in map(ShardGroup.parse, patterns) if group is not None)


def load_published(
    source: PublishedSource,
    *,
    year: int,
    machine_types: Collection[str] | None = None,
    subsets: Collection[str] | None = None,
    streaming: bool = False,
    audio: bool = True,
    num_proc: int | None = None,
    cache_dir: str | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Load published recordings: the rows of `load_near_far`, to the bit and in their order.

    From the Hub, what is asked for is downloaded once and then found in its cache, also offline;
    streaming reads files as they are needed, and processes and workers share them by the file.

    Args:
        source: What `find_published` returns.
        year: Of the recordings.
        machine_types: Load only these; None loads all.
        subsets: Load only these; None loads all.
        streaming: Read rows when they are asked for, without a cache of them.
        audio: Read sound; without it the other columns alone are read, and nothing else is.
        num_proc: Processes that build the cache.
        cache_dir: Where the rows are kept; None is the default of datasets.

    Raises:
        FileNotFoundError: The data set, a part of it or what is asked for is not there.
        ValueError: An option names something that does not exist, or a file is damaged.
    """
    there = _read_card(source)
    chosen = select_groups(
        there, source.name, year=year, machine_types=machine_types, subsets=subsets
    )
    folder = source.folder or (None if streaming else _download(source, chosen))
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    for group in chosen:
        if folder is None:
            root, paths = (
                f"hf://datasets/{source.repo_id}@{source.revision or 'main'}",
                [group.pattern],
            )
        else:
            root, paths = str(folder), check_shards(folder, group, source.name)
        files[group.split].extend(f"{root}/{path}" for path in paths)
    return datasets.load_dataset(
        "parquet",
        data_files={split: paths for split, paths in files.items() if paths},
        features=row_features(),
        columns=None if audio else [name for name in COLUMNS if name not in ("near", "far")],
        # Small columns lie apart, so what would be read ahead is sound.
        storage_options=None if audio else {"hf": {"block_size": SMALL_BLOCK}},
        streaming=streaming,
        num_proc=None if streaming else num_proc,
        cache_dir=cache_dir,
    )


def select_groups(
    groups: Sequence[ShardGroup],
    name: str,
    *,
    year: int,
    machine_types: Collection[str] | None = None,
    subsets: Collection[str] | None = None,
) -> list[ShardGroup]:
    """Return the groups asked for, in the order of `load_near_far`.

    Args:
        groups: Those that are there.
        name: Of the data set, for messages.
        year: Of the recordings.
        machine_types: Take only these; None takes all.
        subsets: Take only these; None takes all.

    Raises:
        FileNotFoundError: Nothing is left.
        ValueError: An option names something that does not exist.
    """
    years = sorted({group.year for group in groups})
    if year not in years:
        raise ValueError(
            f"{name} holds recordings of {listed(years)}, but year={year} was asked for."
        )
    of_year = [group for group in groups if group.year == year]
    return in_order(select(of_year, name, machine_types=machine_types, subsets=subsets))


def in_order(groups: Iterable[ShardGroup]) -> list[ShardGroup]:
    """Return groups in the order in which `load_near_far` gives their clips."""
    return sorted(
        groups,
        key=lambda group: (
            SUBSETS.index(group.subset),
            group.machine_type,
            SPLITS.index(group.split),
        ),
    )


def check_shards(folder: Path, group: ShardGroup, name: str) -> list[str]:
    """Return the paths of a group's shards in a local folder: all are there, each is whole.

    Args:
        folder: That holds them.
        group: Whose.
        name: Of the data set, for messages.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One is damaged, or has other columns.
    """
    found = group.found(folder)
    count = _COUNT.search(found[0]) if found else None
    due = group.paths(int(count[1]) if count else 1)
    if found != due:
        wrong = sorted(set(due) ^ set(found))[0]
        what = "lacks" if wrong in due else "has, beside the files due,"
        raise FileNotFoundError(f"{name} {what} {wrong}. Publish or download it again.")
    for path in found:
        read_footer(folder, path)
    return found


def read_footer(folder: Path, path: str) -> pq.FileMetaData:
    """Return what the footer of a local shard says; `path` is below `folder`.

    Raises:
        ValueError: It is not a whole Parquet file of such rows.
    """
    try:
        footer = pq.read_metadata(folder / path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} is not a whole Parquet file ({_first_line(error)}). Publish or download it "
            "again."
        ) from error
    columns = footer.schema.to_arrow_schema().names
    if columns != list(COLUMNS):
        raise ValueError(
            f"{path} has the columns {columns}, expected {list(COLUMNS)}. Publish it again."
        )
    return footer


def _read_card(source: PublishedSource) -> list[ShardGroup]:
    """Return the groups that the card names."""
    if source.folder is not None:
        path = source.folder / CARD
        if not path.is_file():
            raise FileNotFoundError(
                f"{source.name} holds no {CARD}, so its publication was not finished. Run `python "
                "-m data_scripts.publish` again with the same options."
            )
    else:
        assert source.repo_id is not None  # it is not local
        try:
            path = Path(
                hf_hub_download(source.repo_id, CARD, repo_type="dataset", revision=source.revision)
            )
        except (HfHubHTTPError, OSError) as error:
            raise _not_found(source, error) from error
    configs = DatasetCard.load(path).data.get("configs") or []
    patterns = [
        pattern
        for config in configs
        for files in config.get("data_files") or []
        for pattern in ([files["path"]] if isinstance(files["path"], str) else files["path"])
    ]
    groups = [group for group in map(ShardGroup.parse, patterns) if group is not None]
    if not groups:
        raise FileNotFoundError(
            f"The card of {source.name} names no recordings as `python -m data_scripts.publish` "
            "lays them out. Give another folder or repository."
        )
    return groups


def _download(source: PublishedSource, groups: Iterable[ShardGroup]) -> Path:
    """Return the local copy of a data set, with these groups in it."""
    assert source.repo_id is not None  # it is not local
    try:
        folder = snapshot_download(
            source.repo_id,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=[CARD, *(group.pattern for group in groups)],
        )
    except (HfHubHTTPError, OSError) as error:
        raise _not_found(source, error) from error
    return Path(folder)


def _not_found(source: PublishedSource, error: Exception) -> FileNotFoundError:
    """Say in one line why a data set cannot be had."""
    if isinstance(error, RevisionNotFoundError):
        reason = f"it has no revision {source.revision!r}"
    elif isinstance(error, GatedRepoError):
        reason = "it is gated, and the token has no access to it: ask for it on its page"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "there is none, or it is private and the token does not open it"
    elif isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        reason = "the Hub was not asked or could not be reached, and the cache does not hold it"
    elif isinstance(error, EntryNotFoundError):
        reason = f"it has no {CARD}"
    else:
        reason = _first_line(error)
    return FileNotFoundError(
        f"{source.name} is neither a folder here nor a data set that the Hub gave ({reason}). "
        "Give the folder of the recordings, or log in and check the name."
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")
