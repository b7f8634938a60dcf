"""Publish recordings as Parquet files with a card, in a folder or on the Hub.

    python -m data_scripts.publish --data_dir DATA --output_dir PARQUET [--repo_id owner/name]

Every machine type becomes a configuration with the splits train and test. Files are written one at
a time, each whole or not at all; an interrupted run is finished by the same command, which keeps
the files that are done if their checksums are still right. The recordings' samples are unchanged.
"""

import argparse
import hashlib
import json
import logging
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, its own
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .clip_files import ClipFile, fingerprint
from .clip_names import YEARS
from .credits import UNKNOWN_LICENSE, licenses_of
from .croissant import CROISSANT, croissant
from .dataset_card import dataset_card
from .features import row_features
from .near_far import NearFarMachineSounds
from .publication import Publication, count_clips, list_files
from .published import CARD, ShardGroup, list_groups
from .selection import SUBSETS
from .whole_files import whole_file

logger = logging.getLogger(__name__)

RECORD = ".publication.json"  # of this computer, never uploaded: which clips each file was made of
MAX_SHARD_SIZE = "256MB"  # of the recordings in it
ROW_GROUP_BYTES = 16 * 2**20  # of the recordings in it: what a reader has in memory at once

_MACHINE_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class PlannedShard(NamedTuple):
    """A file to be written.

    Attributes:
        path: Below the output folder.
        group: It is of.
        clips: In their order.
    """

    path: str
    group: ShardGroup
    clips: list[ClipFile]

    @property
    def digest(self) -> str:
        """What changes when one of its clips does, or the form of the rows."""
        return f"{NearFarMachineSounds.VERSION} {fingerprint(self.clips)}"


def publish_recordings(
    data_dir: str | Path,
    output_dir: str | Path,
    *,
    year: int = 2026,
    subsets: Collection[str] | None = None,
    machine_types: Collection[str] | None = None,
    resample: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    licenses: Sequence[str] = (),
    repo_id: str | None = None,
    show_progress: bool = False,
) -> Publication:
    """Write recordings as Parquet files with a card, or finish what was interrupted.

    What is there of other subsets and machine types stays, and the card tells of it, too. Memory is
    bounded by a row group (`ROW_GROUP_BYTES`). The same recordings give the same bytes.

    Args:
        data_dir: In the challenge's layout, as `load_near_far` takes it.
        output_dir: The folder of the publication.
        year: Of the recordings.
        subsets: Publish only these, of "dev", "eval_train" and "eval_test"; None: all found.
        machine_types: Publish only these; None: all.
        resample: Bring other sampling rates to 16 kHz.
        max_shard_size: Of the recordings in one file, in bytes or like "256MB".
        licenses: The Hub's identifiers, if they are not to be those of the challenge's data.
        repo_id: "owner/name" where it is going to be on the Hub, for the card.
        show_progress: Whether to draw progress bars.

    Raises:
        FileNotFoundError: There are no such recordings.
        ValueError: An option makes no sense, a clip cannot be loaded as it is (`ClipError`), or
            `output_dir` holds another year.
    """
    data_dir, output_dir = Path(data_dir), Path(output_dir)
    builder = NearFarMachineSounds(
        data_dir=str(data_dir),
        year=year,
        machine_types=None if machine_types is None else sorted(set(machine_types)),
        subsets=None if subsets is None else sorted(set(subsets)),
        resample=resample,
    )
    plan = plan_shards(builder.config.clips, year=year, max_shard_size=max_shard_size)
    if others := sorted({group.year for group in list_groups(output_dir)} - {year}):
        raise ValueError(
            f"{str(output_dir)!r} holds recordings of {others[0]}, and the same machine names mean "
            f"others in {year}. Choose another output_dir."
        )
    record = _Record(output_dir / RECORD)
    checking = tqdm(plan, desc="checking", unit="file", disable=not show_progress, leave=False)
    pending = [shard for shard in checking if not record.is_done(shard)]
    stale = {path for shard in plan for path in shard.group.found(output_dir)}
    stale -= {shard.path for shard in plan}
    if pending or stale:
        (output_dir / CARD).unlink(missing_ok=True)  # until all of it is there again
    for path in stale:  # of a plan with other sizes
        (output_dir / path).unlink()
    done = sum(len(shard.clips) for shard in plan) - sum(len(shard.clips) for shard in pending)
    bar = tqdm(
        total=sum(len(shard.clips) for shard in plan),
        initial=done,
        desc="publishing",
        unit="clip",
        disable=not show_progress,
    )
    with bar:
        for shard in pending:
            write_shard(output_dir / shard.path, builder, shard.clips, bar)
            record.add(shard)
    files = list_files(output_dir, record.digests(output_dir))
    simulated = is_simulated(data_dir)
    publication = Publication(
        year=year,
        files=files,
        counts=count_clips(output_dir, files),
        licenses=licenses_of(
            year, [] if simulated else {file.group.subset for file in files}, licenses
        ),
        simulated=simulated,
        resampled=resample,
        repo_id=repo_id,
    )
    write_descriptions(output_dir, publication)
    return publication


def plan_shards(
    clips: Sequence[ClipFile], *, year: int, max_shard_size: int | str = MAX_SHARD_SIZE
) -> list[PlannedShard]:
    """Return which files to write; those of a machine, subset and split are about equally long.

    Args:
        clips: In the order of `find_clips`, which they keep within a group.
        year: Of the recordings.
        max_shard_size: Of the recordings in one file, in bytes or like "256MB"; a file has a clip
            at least.

    Raises:
        ValueError: The size is none, or a machine type cannot be the name of a configuration.
    """
    limit = _num_bytes(max_shard_size)
    groups: dict[ShardGroup, list[ClipFile]] = {}
    for clip in clips:
        if not _MACHINE_TYPE.fullmatch(clip.machine_type):
            raise ValueError(
                f"Machine type {clip.machine_type!r} cannot be a configuration's name: expected "
                "letters, digits, '_', '-' and '.'. Rename its folder."
            )
        group = ShardGroup(year, clip.subset, clip.machine_type, clip.split)
        groups.setdefault(group, []).append(clip)
    plan = []
    for group, own in groups.items():
        count = min(len(own), -(-sum(clip.num_bytes for clip in own) // limit))
        for index, path in enumerate(group.paths(count)):
            first, last = (len(own) * i // count for i in (index, index + 1))
            plan.append(PlannedShard(path, group, own[first:last]))
    return plan


def write_shard(
    path: Path, builder: NearFarMachineSounds, clips: Sequence[ClipFile], bar: "tqdm[Any]"
) -> None:
    """Write clips as one Parquet file, whole or not at all.

    Args:
        path: Of the file; its folder is made.
        builder: Makes rows of clips.
        clips: In their order.
        bar: Moves by one with each clip.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = row_features(decode=True).arrow_schema
    with (
        whole_file(path) as partial,
        # The boundaries of its pages depend on content, so that the Hub stores no page twice.
        pq.ParquetWriter(partial, schema, use_content_defined_chunking=True) as writer,
    ):
        rows: list[pa.Table] = []
        num_bytes = 0
        for clip, (_, row) in zip(clips, builder._generate_tables(list(clips)), strict=True):
            rows.append(row)
            num_bytes += clip.num_bytes
            if num_bytes >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(rows), row_group_size=len(rows))
                rows, num_bytes = [], 0
            bar.update()
        if rows:
            writer.write_table(pa.concat_tables(rows), row_group_size=len(rows))


def write_descriptions(folder: Path, publication: Publication) -> None:
    """Write croissant.json and then the card, which makes the folder complete."""
    url = None
    if publication.repo_id is not None:
        url = f"https://huggingface.co/datasets/{publication.repo_id}"
    description = croissant(publication, version=str(NearFarMachineSounds.VERSION), url=url)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    for name, content in ((CROISSANT, text), (CARD, dataset_card(publication))):
        with whole_file(folder / name) as partial:
            partial.write_text(content, encoding="utf-8")


def push_to_hub(folder: str | Path, publication: Publication, *, private: bool = False) -> str:
    """Upload a published folder; return the address of the commit.

    The files go first and the card last, together with the removal of files that are no more, so
    that a data set on the Hub is as it was until all is there. What was uploaded before an
    interruption is not sent again.

    Args:
        folder: The output folder of `publish_recordings`.
        publication: What it returned, with its `repo_id`.
        private: Whether a new repository is private.

    Raises:
        ValueError: There is no repo_id, a licence is not known, or what is to be private is there
            and is public.
        HfHubHTTPError: The Hub refused.
    """
    repo_id = publication.repo_id
    if repo_id is None:
        raise ValueError("repo_id is missing. Give it to publish_recordings, for the card.")
    api = HfApi()
    if UNKNOWN_LICENSE in publication.licenses and not _is_private(api, repo_id, private):
        raise ValueError(
            f"The licence of {', '.join(publication.subsets)} of {publication.year} is not known "
            f"here, so {repo_id!r} is not made public. Read it where the recordings were published "
            "and give --license, or push to a private repository with --private."
        )
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    if private and not _is_private(api, repo_id, private):
        raise ValueError(
            f"{repo_id!r} is there and is public, so --private cannot be kept. Take another name, "
            "or make it private in its settings first."
        )
    paths = [file.path for file in publication.files]
    api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=paths,
        commit_message=f"Recordings: {', '.join(publication.machine_types)}",
    )
    there = api.list_repo_files(repo_id, repo_type="dataset")
    commit = api.upload_folder(
        repo_id=repo_id,
        repo_type="dataset",
        folder_path=folder,
        allow_patterns=[CARD, CROISSANT],
        delete_patterns=[
            path for path in there if path.endswith(".parquet") and path not in set(paths)
        ],
        commit_message="Card and Croissant description",
    )
    return str(commit.commit_url)


def _is_private(api: HfApi, repo_id: str, private: bool) -> bool:  # noqa: FBT001 - one caller
    """Return whether a repository is private, or will be when it is made."""
    try:
        return bool(api.dataset_info(repo_id).private)
    except RepositoryNotFoundError:
        return private


def is_simulated(data_dir: Path) -> bool:
    """Return whether the recordings are a simulated factory's, by its manifest beside them."""
    folder = data_dir.resolve()
    return any((place / "factory.json").is_file() for place in (folder, *folder.parents[:2]))


class _Record:
    """Which clips each file was made of, and its checksum; written after each file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, str]] = {}
        self.checked: dict[str, str] = {}  # path -> SHA-256, computed in this run
        try:
            self.entries = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            pass
        except ValueError:
            logger.warning("%s was damaged, so that all files are written again.", path)

    def is_done(self, shard: PlannedShard) -> bool:
        """Return whether a file is there, of the same clips and with the checksum it had."""
        entry = self.entries.get(shard.path)
        path = self.path.parent / shard.path
        if entry is None or entry["clips"] != shard.digest or not path.is_file():
            return False
        if _sha256(path) != entry["sha256"]:
            logger.warning("%s has changed since it was written; writing it again.", shard.path)
            return False
        self.checked[shard.path] = entry["sha256"]
        return True

    def add(self, shard: PlannedShard) -> None:
        """Note that a file was written."""
        digest = self.checked[shard.path] = _sha256(self.path.parent / shard.path)
        self.entries[shard.path] = {"clips": shard.digest, "sha256": digest}
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")

    def digests(self, folder: Path) -> dict[str, str]:
        """Return the checksum of every file in the folder.

        Raises:
            ValueError: One of another subset or machine type has changed since it was written.
        """
        digests = {}
        for path in (path for group in list_groups(folder) for path in group.found(folder)):
            digests[path] = self.checked.get(path) or _sha256(folder / path)
            if path in self.entries and digests[path] != self.entries[path]["sha256"]:
                raise ValueError(
                    f"{path} has changed since it was written. Publish its subset and machine type "
                    "again, too."
                )
        return digests


def _num_bytes(size: int | str) -> int:
    """Return a size such as 4096, "4096" or "256MB" in bytes."""
    try:
        number = int(size) if str(size).isdigit() else convert_file_size_to_int(size)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"max_shard_size={size!r} is no size. Give bytes, or such as '256MB'.")
    return int(number)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, publish, and push if a repository is named."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.publish",
        description="Publish recordings as Parquet files with a card, in a folder or on the Hub.",
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="recordings, official layout")
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder for this year")
    parser.add_argument("--year", type=int, default=2026, choices=YEARS)
    parser.add_argument(
        "--subset", dest="subsets", nargs="+", choices=SUBSETS, help="all found unless named"
    )
    parser.add_argument("--machine_types", nargs="+", metavar="MACHINE", help="all unless named")
    parser.add_argument("--resample", action="store_true", help="other sampling rates to 16 kHz")
    parser.add_argument(
        "--max_shard_size", default=MAX_SHARD_SIZE, help="of the recordings in one file"
    )
    parser.add_argument(
        "--license", dest="licenses", nargs="+", default=(), help="the Hub's name of it"
    )
    parser.add_argument("--repo_id", help="owner/name, to push it there")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    args: dict[str, Any] = vars(parser.parse_args(arguments))
    private = args.pop("private")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args["repo_id"] is not None:
            HfApi().whoami()  # before files are written, not after it
        with logging_redirect_tqdm():
            publication = publish_recordings(**args, show_progress=True)
            if args["repo_id"] is not None:
                logger.info("%s", push_to_hub(args["output_dir"], publication, private=private))
    except KeyboardInterrupt:
        logger.error("Interrupted. Run the same command again to go on from here.")
        sys.exit(130)
    except LocalTokenNotFoundError:
        sys.exit("There is no access token. Log in with `hf auth login`, or set HF_TOKEN.")
    except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: a file did not get there
        reason = " ".join(str(error).split())
        sys.exit(f"{args['repo_id']}: {reason} Run the same command again to go on from here.")
    except (ValueError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
    logger.info("%d files in %s", len(publication.files), args["output_dir"])


if __name__ == "__main__":
    main()
