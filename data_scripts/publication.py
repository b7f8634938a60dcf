"""What a published folder holds, as its card and its Croissant description tell it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from nearfar.schema import CONDITIONS, DOMAINS

from .clip_names import SPLITS
from .published import ShardGroup, check_shards, list_groups, read_footer
from .selection import SUBSETS


class ShardFile(NamedTuple):
    """One Parquet file.

    Attributes:
        path: Below the folder.
        group: It is of.
        sha256: Of the file, in hexadecimal digits.
        num_bytes: Of the file.
        num_clips: Its rows.
        num_plain_bytes: Of the rows, before Parquet packs them.
    """

    path: str
    group: ShardGroup
    sha256: str
    num_bytes: int
    num_clips: int
    num_plain_bytes: int


class ClipCounts(NamedTuple):
    """What the clips of one machine, subset and split are, by what their names tell.

    Attributes:
        sections: In order.
        domains: Domain -> clips; None where the name does not tell.
        conditions: Condition -> clips; None where the name does not tell.
    """

    sections: list[int]
    domains: dict[str | None, int]
    conditions: dict[str | None, int]


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A whole published folder.

    Attributes:
        year: Of the recordings, or of those they are made to be like.
        files: All shards, in the order of `load_near_far`.
        counts: Of each group.
        licenses: The Hub's identifiers.
        simulated: Whether `data_scripts.factory` made the recordings.
        resampled: Whether clips of other sampling rates were brought to 16 kHz.
        repo_id: Where it is going to be on the Hub; None: it is not known.
    """

    year: int
    files: list[ShardFile]
    counts: dict[ShardGroup, ClipCounts]
    licenses: list[str]
    simulated: bool
    resampled: bool
    repo_id: str | None

    @property
    def machine_types(self) -> list[str]:
        """The machine types, which are the configurations, sorted."""
        return sorted({file.group.machine_type for file in self.files})

    @property
    def subsets(self) -> list[str]:
        """The subsets that are there."""
        there = {file.group.subset for file in self.files}
        return [subset for subset in SUBSETS if subset in there]

    @property
    def title(self) -> str:
        """What the data set is called."""
        if self.simulated:
            return f"Simulated machine sounds in the layout of DCASE {self.year} Task 2"
        return f"DCASE {self.year} Task 2 machine sounds"

    def patterns(self, machine_type: str) -> dict[str, list[str]]:
        """Return, for the splits of a machine type that are there, what matches their files."""
        groups = list(dict.fromkeys(f.group for f in self.of_machine(machine_type)))
        found = {s: [g.pattern for g in groups if g.split == s] for s in SPLITS}
        return {split: patterns for split, patterns in found.items() if patterns}

    def of_machine(self, machine_type: str) -> list[ShardFile]:
        """Return the files of a machine type."""
        return [file for file in self.files if file.group.machine_type == machine_type]


def list_files(folder: Path, digests: dict[str, str]) -> list[ShardFile]:
    """Return the shards of a folder, every one of them whole.

    Args:
        folder: Of the publication.
        digests: Path -> SHA-256, of each file in it.

    Raises:
        FileNotFoundError: A shard is missing.
        ValueError: One is damaged.
    """
    files = []
    for group in list_groups(folder):
        for path in check_shards(folder, group, repr(str(folder))):
            footer = read_footer(folder, path)
            row_groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
            files.append(
                ShardFile(
                    path=path,
                    group=group,
                    sha256=digests[path],
                    num_bytes=(folder / path).stat().st_size,
                    num_clips=footer.num_rows,
                    num_plain_bytes=sum(rows.total_byte_size for rows in row_groups),
                )
            )
    return files


def count_clips(folder: Path, files: list[ShardFile]) -> dict[ShardGroup, ClipCounts]:
    """Return what the clips of each group are; no audio is read."""
    sections: dict[ShardGroup, set[int]] = {}
    domains: dict[ShardGroup, Counter[str | None]] = {}
    conditions: dict[ShardGroup, Counter[str | None]] = {}
    for file in files:
        columns = ["section", "domain", "condition"]
        table = pq.read_table(folder / file.path, columns=columns, partitioning=None).to_pydict()
        sections.setdefault(file.group, set()).update(table["section"])
        for counter, words, column in (
            (domains, DOMAINS, "domain"),
            (conditions, CONDITIONS, "condition"),
        ):
            known = (words[value] if value >= 0 else None for value in table[column])
            counter.setdefault(file.group, Counter()).update(known)
    return {
        group: ClipCounts(sorted(sections[group]), dict(domains[group]), dict(conditions[group]))
        for group in sections
    }
